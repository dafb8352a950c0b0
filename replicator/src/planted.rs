//! Deliberate mistakes, to prove that the simulator finds them.
//!
//! Each is one line of the engine that a tired person could have written. They exist only with the feature `planted`, which no
//! program that serves data is built with: without it [`Plant`] is empty, and asking it is a constant `false` that leaves no
//! trace in the machine code.

#[cfg(feature = "planted")]
pub use crate::resource::plan::cut_points::PlanEnd;

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Planted {
            $($(#[doc = $doc])+ $name,)+
        }

        #[cfg(feature = "planted")]
        impl Planted {
            /// All of them, each with its name and what is wrong.
            pub const ALL: &[(Planted, &str, &str)] =
                &[$((Planted::$name, stringify!($name), concat!($($doc),+)),)+];
        }
    };
}

bugs! {
    // The activity log.
    /// A write starts without its extents in the activity log.
    SkipActivityLog,
    /// A write starts while the transaction that names its extents is on its way.
    StartBeforeLog,
    /// A transaction of the activity log is left in the cache of the metadata device.
    LogInCache,
    /// An extent is evicted from the log before its bits are on disk.
    EvictBeforeBits,
    /// The log of a crashed Primary is not applied.
    ForgetCrash,
    // The answer to a client.
    /// A write is answered before the peer acknowledged it.
    AnswerBeforePeer,
    /// A write is answered before the local disk has it.
    AnswerBeforeDisk,
    /// A write is answered before the generation that protects it is durable.
    AnswerBeforeGeneration,
    /// Writes are answered while I/O is suspended.
    AnswerWhileSuspended,
    /// The copy of a disk that is not UpToDate counts as a copy.
    CountStaleCopy,
    /// A flush does not wait for the peer.
    FlushWithoutPeer,
    /// A flush does not flush the local disk.
    FlushWithoutDisk,
    /// Writes for a peer that has the only good copy go out without FUA.
    NoFuaWhileDiskless,
    /// The target of a resync takes its own disk for one that a flush can rely on.
    TrustTargetsFlush,
    /// A write without a local disk is answered once it is on its way to the peer's memory.
    AnswerOnItsWay,
    /// A flush succeeds although writes answered before were lost with the disk and the link.
    ForgetLostFlush,
    /// A block that is out of sync is read from the local disk.
    ReadStaleBlock,
    // Order of writes.
    /// Two writes of clients that overlap are in flight together.
    IgnoreOverlap,
    /// A write of a part of a sector does not wait for another one that merges with the same sector.
    MergeWithoutLock,
    /// A write of a part of a sector does not keep the bytes behind it.
    ForgetEdge,
    /// Two writes of the peer that overlap are in flight together.
    IgnorePeerOverlap,
    /// Under protocol A an answered write does not close its epoch.
    EpochStaysOpen,
    /// Under protocol A writes of an epoch start before the one before it is durable.
    OverlapEpochs,
    // The peer's side.
    /// A write of the peer is acknowledged before the disk has it.
    AckBeforeDisk,
    /// A barrier is acknowledged without a flush.
    BarrierAckWithoutFlush,
    /// A barrier is acknowledged before the writes of its epoch are on the disk.
    BarrierAckTooEarly,
    /// Writes of a peer without a disk set no bits.
    ForgetPeersOnlyCopy,
    /// A Secondary that loses its Primary does not flush what it received.
    NoFlushAtLinkLoss,
    // Bits.
    /// A write that a disk lacks sets no bit.
    ForgetMissedWrite,
    /// Writes that were answered, but not yet durable on the peer, set no bit when the link is lost.
    ForgetUnconfirmedWrite,
    /// A write of a part of a block clears the block's bit.
    ClearPartOfBlock,
    /// Pages of the bitmap are not flushed before what relies on them.
    BitmapInCache,
    // Generations and flags.
    /// No generation is started when the peer is lost.
    NoNewGeneration,
    /// Every generation of a node is the same number.
    ReuseGeneration,
    /// The superblock is left in the cache of the metadata device.
    SuperblockInCache,
    /// An attach does not ask which data the application has seen.
    IgnoreExposedGeneration,
    /// After the crash of a Primary the other node becomes the source.
    CrashedIsTarget,
    /// Both nodes of a connection resolve its conflicts.
    BothResolve,
    /// The target of a resync takes its source's generation at the start.
    TakeGenerationEarly,
    /// The source of a resync does not close its bitmap generation at the end.
    KeepBitmapGeneration,
    /// A disk that its peer made Outdated calls itself UpToDate when the link is lost.
    ForgetOutdated,
    /// A split brain is decided by whichever node made the connection.
    AcceptSplitBrain,
    /// A promotion is answered before the primary mark is on disk.
    PromoteWithoutMark,
    /// The primary mark is released before the bits are on disk.
    ReleaseMarkBeforeBits,
    /// A demotion does not flush the data.
    DemoteWithoutFlush,
    /// A demotion does not wait for what the peer has not confirmed.
    DemoteBeforeConfirmed,
    /// What a killed process left in the disk's cache is not flushed at the attach.
    NoFlushAtAttach,
    // Digests.
    /// A source takes every digest of its target for that of its own block.
    TakeAnyDigestForEqual,
    /// A verify reads a block while a write to it is under way.
    VerifyDuringWrite,
    /// A verify sets no bits.
    VerifyMarksNothing,
    // Resync.
    /// The source clears its bitmap when a resync starts.
    ClearBitmapEarly,
    /// The target clears bits, on disk too, before the blocks are durable.
    ClearBitsBeforeData,
    /// The target calls itself UpToDate without a flush.
    UpToDateWithoutFlush,
    /// The target asks for blocks before its bits and its state are durable.
    TargetNotMarked,
    /// The source reads a block while a write to it is under way.
    SourceReadsDuringWrite,
    /// The target writes an old block while a newer write to it is under way.
    TargetOverwritesNewer,
    /// The target ignores the source's half of the bitmap exchange.
    IgnoreSourcesBits,
}

/// What is planted in one resource.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plant {
    #[cfg(feature = "planted")]
    bug: Option<Planted>,
}

impl Plant {
    /// This mistake.
    #[cfg(feature = "planted")]
    #[must_use]
    pub const fn of(bug: Option<Planted>) -> Plant {
        Plant { bug }
    }

    /// Whether it is this one.
    #[cfg(feature = "planted")]
    pub(crate) const fn has(self, bug: Planted) -> bool {
        match self.bug {
            Some(planted) => planted as u8 == bug as u8,
            None => false,
        }
    }

    /// Nothing can be planted in a program that serves data.
    #[cfg(not(feature = "planted"))]
    #[expect(
        clippy::unused_self,
        reason = "the same call with and without the feature"
    )]
    pub(crate) const fn has(self, _bug: Planted) -> bool {
        false
    }
}
