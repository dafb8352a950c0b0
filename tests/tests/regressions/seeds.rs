//! Histories that went wrong once, and why.

use tandem_replicator::Protocol;

/// A history that was wrong once, by protocol and seed, and why.
pub(crate) const SEEDS: &[(Protocol, u64, &str)] = &[
    (
        Protocol::A,
        3_051_587,
        "the judge looked for an answered write on the peer's disk under A, too (its own mistake)",
    ),
    (
        Protocol::C,
        3_404_330,
        "a write for the new area came while its disk was being measured for it: that costs the connection, and nothing else",
    ),
    (
        Protocol::B,
        3_066_333,
        "a node that was promoted while it was to become the source lacked what its peer had given up: the judge called that reordered",
    ),
    (
        Protocol::C,
        2_310_298,
        "a frozen write was answered after the node that had it was promoted alone: the judge missed that it had it",
    ),
    (
        Protocol::B,
        3_014_029,
        "a write was answered by a disk that had failed meanwhile, while the peer had only received it",
    ),
    (
        Protocol::A,
        3_084_779,
        "nodes were compared while one of them had not heard that its stream was cut",
    ),
    (
        Protocol::A,
        3_088_243,
        "a crashed Primary that was promoted again without its disk did not have what had been on its way: the judge missed it",
    ),
    (
        Protocol::A,
        3_075_555,
        "a target that was promoted by force showed what only its source had written: the judge did not know that place",
    ),
    (
        Protocol::C,
        3_049_010,
        "a disk on its way out took the size that a resize on the peer had asked about, and could not be attached again",
    ),
    (
        Protocol::C,
        3_022_730,
        "under pass_on a write that the own disk lacked was answered by the copy of a peer whose disk was on its way out",
    ),
    (
        Protocol::A,
        3_029_507,
        "under pass_on a write that the own disk lacked was answered by the copy of a peer that was lost",
    ),
    (
        Protocol::C,
        3_023_551,
        "writes of a peer without a disk went into a hot extent before the disk said durably that its activity log counts",
    ),
    (
        Protocol::C,
        2_002_050,
        "under pass_on the disk of a Primary alone became Inconsistent, and its peer's older one was copied over it",
    ),
    (
        Protocol::A,
        1_510_511,
        "a flush failed for writes that were lost, long after others had failed and said so",
    ),
    (
        Protocol::A,
        1_600_011,
        "every flush of a Primary that was the target of a resync failed, though its peer had everything durably",
    ),
    (
        Protocol::C,
        1,
        "an Inconsistent state that was under way when the initial sync was skipped stayed the last word",
    ),
    (
        Protocol::C,
        107,
        "a Primary that lost its disk missed the peer's new generation and attached stale data",
    ),
    (
        Protocol::C,
        238,
        "a Primary promoted without a disk did not know its peer's generation and attached stale data",
    ),
    (
        Protocol::C,
        240,
        "a resync target that lacked writes became UpToDate when its source's disk was lost",
    ),
    (
        Protocol::C,
        281,
        "a Primary that was attached alone wrote under its old generation",
    ),
    (
        Protocol::C,
        318,
        "a Primary that lost its peer while it was attached wrote under its old generation",
    ),
    (
        Protocol::C,
        458,
        "a backing was closed while a sequence begun by a lost link was about to write",
    ),
    (
        Protocol::C,
        697,
        "a Primary without good data answered writes that its peer's power failure then took back",
    ),
    (
        Protocol::C,
        956,
        "what a dead process had left in its disk's cache was shown to the peer's application, and lost with the power",
    ),
    (
        Protocol::C,
        1298,
        "a write was not mirrored while a state from before the skipped initial sync was taken for the truth",
    ),
    (
        Protocol::C,
        1379,
        "a Primary without a disk took the data that its promoted peer had changed for its own",
    ),
    (
        Protocol::C,
        500_161,
        "a source wrote on in the generation of a target that lost its power before it knew that it was one",
    ),
    (
        Protocol::C,
        800_656,
        "a disk that was being attached when the peer was lost went on without what the peer alone had",
    ),
    (
        Protocol::C,
        921_440,
        "an activity log of another size forgot the extents of the former one before their bits were on disk",
    ),
    (
        Protocol::C,
        601_015,
        "a flush whose peer was lost while I/O was suspended was not answered when I/O was resumed",
    ),
    (
        Protocol::C,
        710_728,
        "a refused write that was frozen by suspend-io kept the engine busy and cost every later connection; disk-options waited for it",
    ),
    (
        Protocol::C,
        900_295,
        "the judge did not see that a resync had ended on a disk whose node died before it said so",
    ),
    (
        Protocol::B,
        720_277,
        "the judge forgot that a crashed Primary's cache keeps writes in any order once its peer had copied them",
    ),
    (
        Protocol::B,
        700_805,
        "the judge held a node to what a person had given up, where both had begun in one history",
    ),
    (
        Protocol::B,
        600_693,
        "a node that was restarted and promoted alone wrote on in the generation that a diskless Primary showed its application",
    ),
    (
        Protocol::C,
        2944,
        "a Primary lost its disk just when its resync had ended, and attached it later as the newer copy of the same generation",
    ),
    (
        Protocol::C,
        111_650_971_174_238,
        "a refused handshake kept the correction of rule 34, and a Primary wrote on without a generation of its own",
    ),
    (
        Protocol::C,
        400_478,
        "a disk that was attached for a Primary without one started no generation, and the Primary's old disk passed for current",
    ),
    (
        Protocol::B,
        200_109,
        "a write was answered from the copy of a peer whose data had been invalidated",
    ),
    (
        Protocol::B,
        994_421,
        "a node was promoted while a write that its former Primary had answered still hung on the disk: reads did not see it",
    ),
    (
        Protocol::B,
        2055,
        "a write went to the disk of a Primary that was found to be old, before the disk said so: restarted, it passed for good",
    ),
    (
        Protocol::A,
        955_731,
        "a Primary let its disk go while the peer, whose disk hung, did not have what was answered; then that peer was killed",
    ),
    (
        Protocol::A,
        922_859,
        "the judge held the next Primary to writes that had been lost with a disk and a link, in that order",
    ),
    (
        Protocol::A,
        991_803,
        "the judge wanted such writes below those that were written without a disk afterwards",
    ),
    (
        Protocol::A,
        939_275,
        "the judge took for durable what it had found in the cache of a Primary",
    ),
    (
        Protocol::B,
        946_661,
        "the judge forgot what a node's own disk held when that node was Primary without it",
    ),
    (
        Protocol::A,
        58,
        "a write without a local copy was answered before any disk had it",
    ),
    (
        Protocol::C,
        956_966,
        "a write that the failed disk lacked was answered before the peer knew, and after a restart of both that disk passed for current",
    ),
    (
        Protocol::C,
        934_833,
        "an invalidated disk lost its power before it knew, and its peer forgot that it had everything to copy",
    ),
    (
        Protocol::C,
        943_687,
        "a Primary that was the target of a resync went on with the data that its promoted peer had changed",
    ),
    (
        Protocol::C,
        958_591,
        "the judge held a Primary whose disk had failed to what its peer had written after a promotion of its own",
    ),
    (
        Protocol::C,
        806_554,
        "a Primary that was the target of a resync went on with data that its promoted peer had changed",
    ),
    (
        Protocol::C,
        942_343,
        "writes that a failed disk lacked were answered before the peer had left its generation behind",
    ),
    (
        Protocol::A,
        1_201_747,
        "a disk that failed while its activity log was replaced was never let go",
    ),
    (
        Protocol::C,
        1_300_535,
        "what waited for a peer's confirmation was answered when the peer's disk had failed, too",
    ),
    (
        Protocol::A,
        810_291,
        "the judge took what it had settled for durable, although it was in a Primary's cache",
    ),
    (
        Protocol::C,
        801_008,
        "the judge measured a restarted node by what the clients of its former life had seen",
    ),
    (
        Protocol::C,
        1_304_535,
        "the judge took data of a resync for writes that a failed disk had done before they were answered",
    ),
    (
        Protocol::C,
        1_301_153,
        "the judge forgot that a peer had a write durably when it died before its answer",
    ),
    (
        Protocol::C,
        1_318_008,
        "a write was answered by an ack that came after both disks were lost",
    ),
    (
        Protocol::C,
        1_340_729,
        "a disk that was offered by a Primary and lost its peer as a Secondary still said that it was a Primary's",
    ),
    (
        Protocol::C,
        1_349_612,
        "the oracle forgot that a node's data were given up when its disk failed in the resync (its own mistake)",
    ),
    (
        Protocol::A,
        1_357_883,
        "the oracle took a write that was lost on its way for lost later, when its other copy went, too (its own mistake)",
    ),
    (
        Protocol::B,
        2_005_061,
        "under pass_on the target compared a block before it wrote what its source had failed to write, and both took it for equal",
    ),
    (
        Protocol::C,
        2_007_919,
        "under pass_on a Primary read its own disk in a verify, which lacked a write that its peer had",
    ),
    (
        Protocol::C,
        2_009_400,
        "under pass_on a disk that lacked a write became the source of a resync that its peer had asked for",
    ),
    (
        Protocol::B,
        2_027_853,
        "the oracle wanted an order among writes of which some were lost with both copies (its own mistake)",
    ),
    (
        Protocol::C,
        3_000_122,
        "a disk that had grown was announced with its former size, and the larger device of the peer gave it up for ever",
    ),
    (
        Protocol::A,
        3_001_427,
        "what the peer had flushed was taken for durable on the failed disk of its Primary, too",
    ),
    (
        Protocol::C,
        3_117_721,
        "under pass_on a source whose disk had failed a write lost the link when its target had finished, and wrote on in the target's generation",
    ),
    (
        Protocol::C,
        3_155_097,
        "a disk whose history its peer had forgotten waited for ever for an answer to its offer",
    ),
    (
        Protocol::A,
        3_158_691,
        "the oracle forgot what a peer without its disk had on its way when the other node was promoted beside it (its own mistake)",
    ),
    (
        Protocol::C,
        3_164_500,
        "a resize began a resync without bitmaps while the peer's disk lacked blocks that an earlier one could not copy",
    ),
    (
        Protocol::C,
        3_318_207,
        "a link that was made while a disk was attached had the activity log written anew before its extents were bits on disk",
    ),
    (
        Protocol::B,
        3_326_277,
        "an Inconsistent disk was read where it had no bit, though its peer's bits had never come",
    ),
    (
        Protocol::C,
        4_000_201,
        "a disk that was being attached when the link was made was sent a bitmap before a state",
    ),
    (
        Protocol::C,
        4_001_812,
        "the bitmap for a source whose disk had just failed was taken for a breach of the protocol",
    ),
    (
        Protocol::C,
        3_404_340,
        "the oracle denied a failed disk the write that it had done before (its own mistake)",
    ),
    (
        Protocol::C,
        4_006_004,
        "a resize began while the peer had just agreed to a verify, and the resync of the new area was taken for a breach of the protocol",
    ),
    (
        Protocol::C,
        3_432_580,
        "the correction of rule 34 outlived a loss of power before its resync: two disks with bits set were equal by rule 40",
    ),
    (
        Protocol::C,
        3_448_506,
        "the oracle denied a node what suspend-io had held back until after its return (its own mistake)",
    ),
    (
        Protocol::B,
        3_501_373,
        "the oracle did not know what a failed disk had only received while its Primary had lost its own (its own mistake)",
    ),
    (
        Protocol::C,
        3_666_220,
        "a write that the failed disk of a Primary lacked was answered because of a copy on a peer that had been left behind",
    ),
    (
        Protocol::C,
        3_676_546,
        "under pass_on a flush that the activity log needed failed: the log had ended, the disk stayed, and writes waited for ever",
    ),
    (
        Protocol::C,
        3_685_090,
        "both disks were attached at once beside each other, and both nodes took themselves for the source of the resync",
    ),
    (
        Protocol::C,
        3_714_929,
        "a verify that waited for the end of a resize without a peer was never answered",
    ),
    (
        Protocol::C,
        3_824_098,
        "the barrier ack of a write that both disks had cleared the bits of blocks on which a later write had failed",
    ),
    (
        Protocol::C,
        3_608_632,
        "the oracle forgot what a Primary without a disk had held back until its disk came (its own mistake)",
    ),
    (
        Protocol::A,
        3_497_347,
        "the oracle wanted what a Primary had answered before it saw that the link was gone, and then lost with its disk (its own mistake)",
    ),
    (
        Protocol::C,
        4_028_744,
        "a crashed Primary came back without its disk, was promoted beside its peer, lost it, and attached what it had before the crash",
    ),
    (
        Protocol::B,
        4_104_365,
        "a write that was answered when it was received, and waited for a read that hung, was forgotten with the link",
    ),
    (
        Protocol::B,
        4_114_077,
        "the disk of a Primary failed just after its peer's, which had failed a write that had been answered: the judge missed the former",
    ),
    (
        Protocol::C,
        4_154_104,
        "a disk that had lost power had more than was known, and its peer, which had got that, too, was said to cost it: the judge's mistake",
    ),
    (
        Protocol::C,
        5_027_055,
        "under pass_on a write that failed at the source of a resync reached its target when that was done: both disks stayed, and differed",
    ),
    (
        Protocol::C,
        5_055_062,
        "the same, with a source that had been promoted alone",
    ),
    (
        Protocol::C,
        5_153_922,
        "a source that had lost its cache lost its power again before the target was done: the judge went on to ask for the former",
    ),
    (
        Protocol::B,
        5_194_117,
        "a disk failed before the generation of its promotion was on it, and nobody had written: the judge took that for a history of its own",
    ),
    (
        Protocol::C,
        6_000_728,
        "a write of a part of a sector was refused when the peer, of which it reads its edges, was lost while I/O was suspended",
    ),
    (
        Protocol::C,
        6_001_863,
        "the disk of the Primary failed after its consent to an invalidate of its peer, which then had nothing to do and did not say so",
    ),
    (
        Protocol::C,
        6_001_929,
        "the peer's disk failed after its consent to a detach, which was refused then: the peer still took this disk for failed",
    ),
    (
        Protocol::C,
        6_029_902,
        "a write that waited for the activity log was refused when the peer was lost while I/O was suspended",
    ),
    (
        Protocol::C,
        6_035_529,
        "a target cleared bits that it had just sent to its source, which then waited without end for these blocks",
    ),
    (
        Protocol::C,
        6_132_705,
        "a disk that had failed was invalidated, and could not be attached again",
    ),
    (
        Protocol::B,
        6_153_573,
        "a promotion by force, under which nobody wrote, was forgotten: the judge took its half resynced disk for that of before",
    ),
    (
        Protocol::C,
        6_173_610,
        "a source that had asked to detach lost the link, and with it the consent under which its peer had begun a generation: it started none",
    ),
    (
        Protocol::C,
        6_189_015,
        "a source that corrected its generations for a disk attached late told its peer the corrected ones, which saw no need for the resync",
    ),
    (
        Protocol::C,
        6_200_732,
        "the disk of a crashed Primary was outdated while it was being attached: what the crash had left different on it was forgotten",
    ),
    (
        Protocol::C,
        6_308_256,
        "a detach that crossed an invalidate came to nothing: the source began the full sync that its target had given up for it",
    ),
    (
        Protocol::C,
        6_320_076,
        "the barrier ack of a write from before a disk failed cleared bits of the disk that had been attached since",
    ),
];
