//! What must be true of the data, judged from outside the engine: only what clients wrote and were told, what nodes say of
//! themselves, and what lies on the disks.
//!
//! - A *history* is what clients of one line of Primaries wrote, per sector. A node that is promoted without its peer starts a new
//!   one from what its disk holds at that moment; a resync target takes over that of its source.
//! - A node's *floor* is, per sector, the youngest write that it must not have lost: `live` while its process lives, `kept` after
//!   it was killed, `durable` after it lost power. Any content that is not older than the floor is right.
//! - A write that was never answered may be there or not, and no longer appears once a younger one was seen to replace it.

mod answers;
mod content;
mod crashes;
mod disks;
mod lineage;

use std::collections::{BTreeMap, BTreeSet};

use tandem_replicator::Protocol;

use super::pair::OfPair;
use super::stamp::Content;

/// Youngest write that must not be lost, by sector.
type Floor = BTreeMap<u64, u64>;

/// What every sector held before the first write.
const NEVER_WRITTEN: u64 = 0;

#[derive(Clone, Debug)]
struct Write {
    first: u64,
    sectors: u64,
    /// When it was submitted, in ticks of the oracle.
    submitted: u64,
    /// When it can have no more effect: its answer, or the moment its history went on without it.
    ended: Option<u64>,
    /// Its client was told that it succeeded.
    acknowledged: bool,
    history: usize,
    /// Its Primary lost power before it was flushed there, at this tick: as the source of the resync that follows, that
    /// node may put older data in its place; tick 0 once it was that source.
    cache_lost: Option<u64>,
    /// Its node had no UpToDate disk when it was submitted: its answer says that the peer has it durably.
    remote_only: bool,
    /// It was submitted in two requests that meet inside a sector: at this unit of the device.
    cut: Option<u64>,
}

impl Write {
    /// What stands for all that was there at this tick.
    fn found(tick: u64, history: usize) -> Write {
        Write {
            first: 0,
            sectors: 0,
            submitted: tick,
            ended: Some(tick),
            acknowledged: true,
            history,
            cache_lost: None,
            remote_only: false,
            cut: None,
        }
    }
}

#[derive(Clone, Debug)]
struct Version {
    write: u64,
    content: Content,
}

#[derive(Clone, Debug)]
struct Parent {
    history: usize,
    /// What the forking node had of it.
    floor: Floor,
    /// It may legally have lacked acknowledged writes (power loss, protocols A and B, force).
    excused: bool,
    /// The forking node had lost power.
    lost_power: bool,
}

#[derive(Clone, Debug)]
struct History {
    parent: Option<Parent>,
    /// When it began.
    forked: u64,
    /// A person forced it: its disk need not have held what its parent has.
    forced: bool,
    sectors: BTreeMap<u64, Vec<Version>>,
    /// Youngest acknowledged write.
    acknowledged: Floor,
    /// Youngest acknowledged write that a flush or FUA covered.
    flushed: Floor,
}

/// What a resync from this node promises to its target.
#[derive(Clone, Debug)]
struct Promise {
    /// When it was made.
    made: u64,
    history: usize,
    floor: Floor,
    durable: Floor,
    /// The source has lost power: what it had not flushed may be gone.
    excused: bool,
    /// The source was promoted alone before, and what it had counts, though nobody wrote there.
    alone: bool,
}

#[derive(Clone, Debug, Default)]
struct View {
    history: usize,
    /// The history of what its own disk holds, while it goes on in that of its peer, as a Primary without a disk.
    on_disk: Option<usize>,
    live: Floor,
    kept: Floor,
    durable: Floor,
    /// What clients of this node, as Primary, have been told.
    client: Floor,
    promised: Option<Promise>,
    /// It lost power since it was last known to have everything.
    lost_power: bool,
    /// It was Primary since: its own cache, never flushed, may lose writes in any order.
    wrote: bool,
    /// A promotion alone, under which nobody wrote, left it a data generation of its own: it may lack what a history that is not C's
    /// had on its way.
    alone: bool,
    /// A person gave up its data.
    discard: bool,
    /// Answered writes were lost that no flush had covered: its next flush has to tell (docs/durability.md, "When a disk fails").
    owes_error: bool,
    /// Acknowledged by this node and not flushed since: tick of the answer, write.
    unflushed: Vec<(u64, u64)>,
    /// Submitted with a good disk, and answered after that had failed: the disk may have them all the same.
    in_doubt: Vec<u64>,
    /// Answered by the peer when this disk had failed, as the peer knew: what it has is not promised, and not denied.
    perhaps: Vec<u64>,
    /// What was unflushed when its process was killed: in the cache of its disk until an attach has flushed it.
    left_in_cache: Vec<u64>,
    /// It is Primary.
    primary: bool,
    /// It is connected.
    linked: bool,
    /// When, as Primary, it died or lost its link last: what it had answered before may have been on its way. 0: nothing is.
    parted: u64,
    /// Its own disk is UpToDate.
    up_to_date: bool,
    /// Its own disk failed, or it has none.
    failed: bool,
    /// Its own disk failed while it was Primary, and has not been attached since.
    failed_as_primary: bool,
    /// It was the target of the resync that its peer may still be the source of, and has finished it.
    finished: bool,
    /// When its process died last, and with it what was only in its memory.
    died: u64,
    /// When it lost its power last.
    went_dark: u64,
}

impl View {
    /// It had this write when it was answered by the other node, as far as the protocol wants: in memory under B, on disk under C.
    /// The answer may have waited for the other node's own disk, and this one may have died meanwhile.
    fn still_has(&self, write: &Write, protocol: Protocol) -> bool {
        match protocol {
            Protocol::A => false,
            Protocol::B => !self.failed && self.died < write.submitted,
            Protocol::C => self.went_dark < write.submitted,
        }
    }
}

/// The judge of one pair.
#[derive(Debug)]
pub struct Oracle {
    protocol: Protocol,
    writes: Vec<Write>,
    histories: Vec<History>,
    views: OfPair<View>,
    tick: u64,
    /// Not answered, and nobody is left to answer.
    open: BTreeSet<u64>,
    /// Where disks cut sectors in two: sector, unit.
    torn: BTreeSet<(u64, usize)>,
}

impl Oracle {
    /// The two nodes of a pair, with blank, equal disks.
    #[must_use]
    pub fn new(protocol: Protocol, pair: usize) -> Oracle {
        let never = Write::found(0, 0);
        let history = History {
            parent: None,
            forked: 0,
            forced: false,
            sectors: BTreeMap::new(),
            acknowledged: Floor::new(),
            flushed: Floor::new(),
        };
        Oracle {
            protocol,
            writes: vec![never],
            histories: vec![history],
            views: OfPair::new(pair),
            tick: 1,
            open: BTreeSet::new(),
            torn: BTreeSet::new(),
        }
    }

    /// Its tick: another one after everything that clients do.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.tick
    }

    fn tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// The number that the next write will have.
    #[must_use]
    pub fn next_write(&self) -> u64 {
        self.writes.len() as u64
    }

    /// This Secondary lost its peer and has come to rest: what it received is durable (docs/durability.md, "Order on disk", 8).
    pub fn rested(&mut self, node: usize) {
        let view = &mut self.views[node];
        view.durable = view.live.clone();
    }

    /// A disk cut sectors in two: both parts count by themselves.
    pub fn torn(&mut self, cuts: impl IntoIterator<Item = (u64, usize)>) {
        self.torn.extend(cuts);
    }

    /// A person gives up this node's data.
    pub fn discard(&mut self, node: usize) {
        self.views[node].discard = true;
    }

    /// Writes so far, for the summary.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let acknowledged = self
            .writes
            .iter()
            .filter(|write| write.acknowledged)
            .count();
        (self.writes.len() - 1, acknowledged, self.histories.len())
    }
}

/// The floor of a write's sectors is at least this write.
fn raise(writes: &[Write], floor: &mut Floor, id: u64) {
    let write = &writes[id as usize];
    for sector in write.first..write.first + write.sectors {
        let at = floor.entry(sector).or_insert(id);
        if writes[*at as usize].submitted < write.submitted {
            *at = id;
        }
    }
}

/// The younger of two floors, sector by sector.
fn merge(writes: &[Write], floor: &mut Floor, other: &Floor) {
    for (sector, id) in other {
        let at = floor.entry(*sector).or_insert(*id);
        if writes[*at as usize].submitted < writes[*id as usize].submitted {
            *at = *id;
        }
    }
}
