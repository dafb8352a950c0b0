//! A volume: the state of one replicated device on this node, and what is known of the peer's side of it.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use tandem_metadata::{Flags, Layout, Superblock};
use tandem_protocol::packets::Sizes;

use super::lost_disk::LostDisk;
use super::plan::Plans;
use super::{attach, bitmap_exchange, detach, flush, resync, verify};
use crate::activity_log::ActivityLog;
use crate::bitmap::{BIT_BYTES, Bitmap};
use crate::event::{BackingInfo, MetaKind, VolumeNumber};
use crate::generations::{Generations, Uuids};
use crate::intervals::Intervals;
use crate::options::{DiskOptions, VolumeOptions};
use crate::state::rules::AttachResult;
use crate::state::word::{ConnState, DiskState, Role, State};
use crate::status::{Counters, VerifiedStatus};
use crate::time::Time;

/// A volume of the resource.
#[derive(Debug)]
pub(crate) struct Volume {
    /// Its number in the resource.
    pub(crate) number: VolumeNumber,
    /// Its minor on this node, for log lines.
    pub(crate) minor: u32,
    /// Options of its disk.
    pub(crate) options: DiskOptions,
    /// Its state. Changed only by `change_state` and `change_connection`.
    pub(crate) state: State,
    /// Data generations (the slots are zero without a disk) and the exposed-data UUID.
    pub(crate) generations: Generations,
    /// The local disk, while there is one.
    pub(crate) backing: Option<Backing>,
    /// What is known of the peer.
    pub(crate) peer: PeerDevice,
    /// Agreed size of the device in bytes; 0 while unknown. Stays after a detach.
    pub(crate) bytes: u64,
    /// This node crashed as Primary and the pair has not been UpToDate/UpToDate since (3.7).
    pub(crate) crashed_primary: bool,
    /// Primary and alone when it went down, the last time before the disk was attached: a boot waits differently (config-and-cli.md 7.5).
    pub(crate) was_degraded: bool,
    /// A new data generation was asked for and its superblock is not yet durable: no write is answered.
    pub(crate) generation_pending: bool,
    /// Answered writes may be lost that no flush had covered: the next flush is answered with an error.
    pub(crate) unflushed_lost: bool,
    /// The link was lost while the peer, a Primary without a good disk, showed this disk's data to its application; cleared by the next
    /// connection.
    pub(crate) shown_by_peer: bool,
    /// The peer's generation that this Primary's application sees, since the own disk is not good (the target of a resync): without a disk
    /// the exposed-data UUID says it.
    pub(crate) shown_from_peer: Option<u64>,
    /// The peer's disk may have this node's generation: the link, or that disk, was lost while the peer may have finished its resync from
    /// here, or this disk was attached with a bitmap UUID since. Cleared when the peer's disk is seen, and by another generation.
    pub(crate) end_unknown: bool,
    /// Writes were answered that the own disk does not have, because it was gone: cleared when a disk takes part again, as the target of
    /// a resync. A disk of the same generation may be older (state-machine.md 3.6).
    pub(crate) wrote_without_disk: bool,
    /// The own disk was lost beside a good peer that has not confirmed to know it: nothing that only the peer has is answered.
    pub(crate) lost_disk: Option<LostDisk>,
    /// The peer is told of the generation that is on its way to the disk as soon as it is there.
    pub(crate) generation_untold: bool,
    /// Under `pass_on` a write failed on this disk, the last good one, which the peer's may have in this connection: checksums that it
    /// made before say nothing, and its bit does not say that the peer lacks it.
    pub(crate) write_failed: bool,
    /// The peer was told to skip the initial sync, and its P_STATE does not say so yet.
    pub(crate) skip_untold: bool,
    /// Both disks were Inconsistent and the peer became Primary; cleared with the next processed P_STATE.
    pub(crate) consider_resync: bool,
    /// An attach or a late exchange of sizes found the device grown; cleared when its resync was started.
    pub(crate) grew_while_detached: bool,
    /// The device grows with the handshake under way, on one of the nodes or on both.
    pub(crate) grew_with_peer: bool,
    /// The peer's device is larger than this node's disk was: it is measured before the next connection.
    pub(crate) measure_again: bool,
    /// A resize made the device larger before the peer was asked: its answer starts the resync of the new area.
    pub(crate) resize_pending: bool,
    /// What is in flight on ranges of the device (bytes): client's and peer's writes, resync blocks.
    pub(crate) intervals: Intervals,
    /// Local flushes.
    pub(crate) flushes: flush::LocalFlushes,
    /// Clients that hold the device open.
    pub(crate) open_count: u32,
    /// Why new requests of clients wait although no state says so: short internal suspensions.
    pub(crate) io_holds: BTreeSet<IoHold>,
    /// A resync that runs, is about to start, or is paused.
    pub(crate) resync: Option<resync::Resync>,
    /// Blocks of resyncs on their way to or from the disk.
    pub(crate) sync_io: resync::SyncIo,
    /// An online verify that runs.
    pub(crate) verify: Option<verify::Verify>,
    /// What the command `verify` asked for, until it starts.
    pub(crate) verify_wish: Option<verify::Wish>,
    /// The block where the next verify starts, unless it is told: where the last one was interrupted.
    pub(crate) verify_next: u64,
    /// What came of the last verify.
    pub(crate) verified: Option<VerifiedStatus>,
    /// What a verify that has ended leaves to be settled.
    pub(crate) verify_gone: verify::Gone,
    /// The exchange of bitmaps before a resync.
    pub(crate) exchange: bitmap_exchange::Exchange,
    /// Writes that wait until the disk says no more of its data than is true.
    pub(crate) unsaid: Vec<u64>,
    /// Counters for people.
    pub(crate) counters: Counters,
    /// Durable sequences under way.
    pub(crate) plans: Plans,
    /// An attach under way.
    pub(crate) attach: Option<attach::Attach>,
    /// Why there is no disk, when nobody asked for that: in words, for the status.
    pub(crate) disk_error: Option<String>,
    /// A detach under way: from the change to Failed until the backing is closed.
    pub(crate) detach: Option<detach::Detach>,
    /// Deferred effects wait for the handler local-io-error, which runs before the peer is told anything.
    pub(crate) stalled: Option<alloc::collections::VecDeque<super::change::Deferred>>,
}

/// A short internal suspension of clients' requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum IoHold {
    /// An attach.
    Attach,
    /// A graceful detach.
    Detach,
    /// A change of the disk's options.
    Options,
    /// A whole-bitmap operation of a command.
    Bitmap,
    /// A bitmap is being sent.
    BitmapExchange,
    /// All bits are being set for a full sync.
    FullSync,
}

/// What is known of the peer's side of a volume. Forgotten with the link unless said otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeerDevice {
    /// Its data generations as last received.
    pub(crate) uuids: Option<PeerUuids>,
    /// Size of its disk as last announced, in bytes; 0: diskless or unknown. Kept over connections.
    pub(crate) disk_bytes: u64,
    /// Size of its device as last announced, in bytes.
    pub(crate) current_bytes: u64,
    /// What its disk offered when that was too little, and the connection was tried once more; 0: it was enough. Kept over
    /// connections.
    pub(crate) too_small_bytes: u64,
    /// Its P_SIZES that asks for ours, answered when the own disk was measured.
    pub(crate) sizes_asked: Option<Sizes>,
    /// Logical block of its disk in bytes as last announced; 0: unknown. Kept over connections.
    pub(crate) logical_block: u32,
    /// Largest request that it takes, in bytes.
    pub(crate) max_request: u32,
    /// Set bits of our bitmap that P_UUIDS told it.
    pub(crate) bits_sent: u64,
    /// Our changes may be given up in a split brain: copied from `discard-my-data` at each connect.
    pub(crate) discard_armed: bool,
    sequence: u32,
}

impl PeerDevice {
    /// The next packet sequence number of this volume on this connection, from 1 on (wire-protocol.md 5.7).
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// The link is new: sequence numbers start again.
    pub(crate) fn restart_sequence(&mut self) {
        self.sequence = 0;
    }
}

/// P_UUIDS as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerUuids {
    /// Its four generations.
    pub(crate) set: Uuids,
    /// Set bits of its bitmap.
    pub(crate) bits: u64,
    /// Flags (`generations::UUID_FLAG_*`).
    pub(crate) flags: u64,
}

/// An attached disk.
#[derive(Debug)]
pub(crate) struct Backing {
    /// What the caller opened.
    pub(crate) info: BackingInfo,
    /// Where its metadata are.
    pub(crate) layout: Layout,
    /// The superblock as of the last change; UUIDs, size and magic are filled in when it is written.
    pub(crate) superblock: Superblock,
    /// The flags of the superblock that is surely on disk.
    pub(crate) flags_on_disk: Flags,
    /// Since when the superblock on disk is older than this.
    pub(crate) superblock_dirty: Option<Time>,
    /// Blocks that differ from the peer's.
    pub(crate) bitmap: Bitmap,
    /// Hot extents.
    pub(crate) activity_log: ActivityLog,
    /// What the attach found, kept until the handshake decides (Negotiating).
    pub(crate) attached_as: Option<AttachResult>,
    /// Demotions (and attaches after a crash) whose bits are not yet on disk: as long as there are any, the primary
    /// flag stays on disk.
    pub(crate) primary_holds: u32,
    /// The activity log is a new one, of which nothing is on disk: before it is, what the former one names must be durable.
    pub(crate) log_replaced: bool,
    /// Metadata cannot be written any more: every plan fails.
    pub(crate) meta_failed: bool,
    /// An I/O on data failed, and it was a read: a bitmap that cannot be written at the detach asks for a full sync.
    pub(crate) read_failed: bool,
    /// The bits include those of the peer: of an Inconsistent disk, a block without a bit is current.
    pub(crate) bits_agreed: bool,
}

impl Volume {
    /// Why the disk that is being attached may not take the place of the peer's, whose data the application has seen: it is of that
    /// generation, but has blocks that may differ (state-machine.md 3.6). Known once its bitmap is read.
    pub(super) fn may_lack_what_was_seen(&self) -> Option<String> {
        let bits = self.bits_not_seen();
        (bits > 0 && self.generations.needs_the_peer(&self.state)).then(|| {
            format!(
                "the application works with the peer's data, and up to {} KiB of this disk may be older; connect first, then they are brought up \
                 to date; to go on without the peer, stop the application, make this node Secondary, and attach again",
                bits * BIT_BYTES / 1024
            )
        })
    }

    fn bits_not_seen(&self) -> u64 {
        let backing = self.backing.as_ref();
        let seen_there = |_: &&Backing| self.generations.exposed_by_peer;
        backing
            .filter(seen_there)
            .map_or(0, |backing| backing.bitmap.count())
    }

    /// Whether the disk being attached is what the application has seen last, so that it can do without the peer (rule S4).
    pub(super) fn exposed_is_current(&self) -> bool {
        let lacks =
            self.wrote_without_disk || self.state.role == Role::Primary && self.bits_not_seen() > 0;
        self.generations.has_shown(self.generations.uuids.current) && !lacks
    }

    /// A volume as configured.
    pub(crate) fn new(options: VolumeOptions) -> Volume {
        Volume {
            number: options.number,
            minor: options.minor,
            options: options.disk,
            state: State::UNCONFIGURED,
            generations: Generations::default(),
            backing: None,
            peer: PeerDevice::default(),
            bytes: 0,
            crashed_primary: false,
            was_degraded: false,
            generation_pending: false,
            unflushed_lost: false,
            shown_by_peer: false,
            shown_from_peer: None,
            end_unknown: false,
            wrote_without_disk: false,
            lost_disk: None,
            generation_untold: false,
            write_failed: false,
            skip_untold: false,
            consider_resync: false,
            grew_while_detached: false,
            grew_with_peer: false,
            measure_again: false,
            resize_pending: false,
            intervals: Intervals::new(),
            flushes: flush::LocalFlushes::default(),
            open_count: 0,
            io_holds: BTreeSet::new(),
            resync: None,
            sync_io: resync::SyncIo::default(),
            verify: None,
            verify_wish: None,
            verify_next: 0,
            verified: None,
            verify_gone: verify::Gone::default(),
            exchange: bitmap_exchange::Exchange::default(),
            unsaid: Vec::new(),
            counters: Counters::default(),
            plans: Plans::default(),
            attach: None,
            disk_error: None,
            detach: None,
            stalled: None,
        }
    }

    /// Whether writes (of clients, of the peer, of a resync) go to the local disk: it is attached, not failed, and
    /// the handshake about it is over (7.1).
    pub(crate) fn writes_locally(&self) -> bool {
        self.backing.is_some() && self.state.disk >= DiskState::Inconsistent
    }

    /// Whether what was written to the local disk can be flushed: also while it is being detached in good order.
    pub(crate) fn flushes_locally(&self) -> bool {
        let leaves_in_order = self.state.disk == DiskState::Failed
            && self.detach.as_ref().is_some_and(detach::Detach::can_flush);
        self.writes_locally() || (self.backing.is_some() && leaves_in_order)
    }

    /// Set bits of the bitmap; 0 without a disk.
    pub(crate) fn bits_set(&self) -> u64 {
        self.backing
            .as_ref()
            .map_or(0, |backing| backing.bitmap.count())
    }

    /// The disk says better of its data than they are: that it became Outdated or Inconsistent is not durable so far. A node that is
    /// started from it now would take what is written meanwhile for part of good data.
    pub(crate) fn says_too_much(&self) -> bool {
        self.writes_locally()
            && self.backing.as_ref().is_some_and(|backing| {
                let in_flight = self.plans.flags_in_flight().unwrap_or(Flags(0));
                let may_say = backing.flags_on_disk | in_flight;
                let better = |flag| may_say.contains(flag) && !backing.has(flag);
                better(Flags::CONSISTENT) || better(Flags::WAS_UP_TO_DATE)
            })
    }

    /// The disk does not say durably so far that its activity log counts: a node that is started from it now would take no notice of
    /// what is written meanwhile (docs/spec/metadata.md 3.9, R1).
    pub(crate) fn lacks_primary_mark(&self) -> bool {
        self.writes_locally()
            && self.backing.as_ref().is_some_and(|backing| {
                let mark = Flags::PRIMARY_IND;
                let in_flight = self.plans.flags_in_flight().unwrap_or(mark);
                let is_durable = backing.flags_on_disk.contains(mark) && in_flight.contains(mark);
                backing.has(mark) && !is_durable
            })
    }

    /// The superblock in memory differs from the one on disk from now on.
    pub(crate) fn superblock_changed(&mut self, now: Time) {
        if let Some(backing) = self.backing.as_mut() {
            backing.superblock_dirty.get_or_insert(now);
        }
    }
}

impl Backing {
    /// Keeps [`Backing::bits_agreed`] with a change of the state (7.2). A Primary that loses its peer goes on with what both had
    /// agreed on; anybody else may have missed what the peer wrote meanwhile, until bitmaps have been exchanged again.
    pub(crate) fn note_agreement(&mut self, new: &State) {
        self.bits_agreed = match new.conn {
            ConnState::SyncTarget | ConnState::PausedSyncT => true,
            conn if conn.is_connected() => false,
            _ => self.bits_agreed && new.role == Role::Primary,
        };
    }

    /// Data and metadata are on one device: a flush of one is a flush of the other.
    pub(crate) fn is_internal(&self) -> bool {
        self.info.meta_kind == MetaKind::Internal
    }

    /// A flag of the superblock as last computed.
    pub(crate) fn has(&self, flag: Flags) -> bool {
        self.superblock.flags.contains(flag)
    }

    /// The generations of a superblock in the engine's words.
    pub(crate) fn uuids_of(superblock: &Superblock) -> Uuids {
        Uuids {
            current: superblock.uuids.current,
            bitmap: superblock.uuids.bitmap,
            history: superblock.uuids.history,
        }
    }
}
