//! What must be true of the data, judged from outside the engine: only what clients wrote and were told, what nodes say of
//! themselves, and what lies on the disks.
//!
//! - A *history* is what clients of one line of Primaries wrote, per sector. A node that is promoted without its peer starts a new
//!   one from what its disk holds at that moment; a resync target takes over that of its source.
//! - A node's *floor* is, per sector, the youngest write that it must not have lost: `live` while its process lives, `kept` after
//!   it was killed, `durable` after it lost power. Any content that is not older than the floor is right.
//! - A write that was never answered may be there or not, and no longer appears once a younger one was seen to replace it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use tandem_replicator::Protocol;
use tandem_replicator::state::word::{ConnState, DiskState, Role, State};

use super::node::Node;
use super::stamp::{Content, UNITS, Unit};
use super::trace::name;

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
    /// node may put older data in its place.
    cache_lost: Option<u64>,
    /// Its node had no UpToDate disk when it was submitted: its answer says that the peer has it durably.
    remote_only: bool,
    /// It was submitted in two requests that meet inside a sector: at this unit of the device.
    cut: Option<u64>,
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
    sectors: BTreeMap<u64, Vec<Version>>,
    /// Youngest acknowledged write.
    acknowledged: Floor,
}

/// What a resync from this node promises to its target.
#[derive(Clone, Debug)]
struct Promise {
    history: usize,
    floor: Floor,
    durable: Floor,
    excused: bool,
}

#[derive(Clone, Debug, Default)]
struct View {
    history: usize,
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
    /// A person gave up its data.
    discard: bool,
    /// Answered writes were lost that no flush had covered: its next flush has to tell (docs/durability.md, "When a disk fails").
    owes_error: bool,
    /// Acknowledged by this node and not flushed since: tick of the answer, write.
    unflushed: Vec<(u64, u64)>,
    /// Its own disk is UpToDate.
    up_to_date: bool,
    /// Its own disk failed, or it has none.
    failed: bool,
    /// It was the target of the resync that its peer may still be the source of, and has finished it.
    finished: bool,
}

/// The judge.
#[derive(Debug)]
pub struct Oracle {
    protocol: Protocol,
    writes: Vec<Write>,
    histories: Vec<History>,
    views: [View; 2],
    tick: u64,
    /// Not answered, and nobody is left to answer.
    open: BTreeSet<u64>,
}

impl Oracle {
    /// Two nodes with blank, equal disks.
    #[must_use]
    pub fn new(protocol: Protocol) -> Oracle {
        let never = Write {
            first: 0,
            sectors: 0,
            submitted: 0,
            ended: Some(0),
            acknowledged: true,
            history: 0,
            cache_lost: None,
            remote_only: false,
            cut: None,
        };
        let history = History {
            parent: None,
            forked: 0,
            sectors: BTreeMap::new(),
            acknowledged: Floor::new(),
        };
        Oracle {
            protocol,
            writes: vec![never],
            histories: vec![history],
            views: [View::default(), View::default()],
            tick: 1,
            open: BTreeSet::new(),
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

    /// A client of this node submits a write (or zeroes).
    pub fn submit(&mut self, node: usize, first: u64, sectors: u64, zeroes: bool) -> u64 {
        let id = self.next_write();
        let history = self.views[node].history;
        let submitted = self.tick();
        self.writes.push(Write {
            first,
            sectors,
            submitted,
            ended: None,
            acknowledged: false,
            history,
            cache_lost: None,
            remote_only: !self.views[node].up_to_date,
            cut: None,
        });
        for sector in first..first + sectors {
            let content = if zeroes {
                Content::Zero
            } else {
                Content::Stamp(id)
            };
            let versions = self.histories[history].sectors.entry(sector).or_default();
            versions.push(Version { write: id, content });
        }
        id
    }

    /// The write that was submitted last goes out as two requests that meet at this unit of the device.
    pub fn cut(&mut self, unit: u64) {
        if let Some(write) = self.writes.last_mut() {
            write.cut = Some(unit);
        }
    }

    /// The write was answered with success by this node, which then was in this state.
    pub fn acknowledge(&mut self, node: usize, id: u64, durable: bool, after: Option<State>) {
        let tick = self.tick();
        let write = &mut self.writes[id as usize];
        write.ended = Some(tick);
        write.acknowledged = true;
        let history = write.history;
        raise(&self.writes, &mut self.histories[history].acknowledged, id);
        let Some(state) = after else { return };
        let own = state.disk == DiskState::UpToDate;
        let connected = state.conn.is_connected();
        let peer = connected && state.pdsk == DiskState::UpToDate;
        let writes = &self.writes;
        raise(writes, &mut self.views[node].client, id);
        if own {
            raise(writes, &mut self.views[node].live, id);
            raise(writes, &mut self.views[node].kept, id);
        } else if let Some(promise) = &mut self.views[node].promised {
            raise(writes, &mut promise.floor, id);
        }
        let other = &mut self.views[1 - node];
        if peer && (self.protocol == Protocol::C || self.protocol == Protocol::B && !other.failed) {
            raise(writes, &mut other.live, id);
        }
        if self.protocol == Protocol::C {
            if peer {
                raise(writes, &mut other.kept, id);
            }
            if let Some(promise) = other.promised.as_mut().filter(|_| connected) {
                raise(writes, &mut promise.floor, id);
            } else if state.conn.is_resync() && other.finished {
                // The target has finished, and this node has not heard of it yet.
                raise(writes, &mut other.live, id);
                raise(writes, &mut other.kept, id);
            }
        }
        let remote_only = self.writes[id as usize].remote_only && !own;
        if durable {
            self.make_durable(node, id, state);
            return;
        }
        if remote_only {
            // On the peer alone: its own disk may become UpToDate with this write still in the cache.
            self.make_durable_on_peer(node, id, state);
        }
        self.views[node].unflushed.push((tick, id));
    }

    /// The write was answered with an error, or its node died first: it may be there or not.
    pub fn leave_open(&mut self, id: u64) {
        self.open.insert(id);
    }

    /// A flush begins: give this number back to [`Oracle::flushed`].
    pub fn flush_submitted(&mut self) -> u64 {
        self.tick()
    }

    /// A flush was answered with an error.
    pub fn flush_failed(&mut self, node: usize) {
        self.views[node].owes_error = false;
    }

    /// A flush was answered with success.
    ///
    /// # Errors
    /// Answered writes were lost before it, and nobody was told.
    pub fn flushed(
        &mut self,
        node: usize,
        submitted: u64,
        after: Option<State>,
    ) -> Result<(), String> {
        if std::mem::take(&mut self.views[node].owes_error) {
            return Err(format!(
                "a flush on {} succeeds, but writes answered before it were lost with its disk and its peer's cache",
                name(node)
            ));
        }
        let Some(state) = after else { return Ok(()) };
        let unflushed = std::mem::take(&mut self.views[node].unflushed);
        let (covered, left): (Vec<_>, Vec<_>) =
            unflushed.into_iter().partition(|(at, _)| *at < submitted);
        self.views[node].unflushed = left;
        for (_, id) in covered {
            self.make_durable(node, id, state);
        }
        Ok(())
    }

    fn make_durable(&mut self, node: usize, id: u64, state: State) {
        let writes = &self.writes;
        if state.disk == DiskState::UpToDate {
            raise(writes, &mut self.views[node].durable, id);
        } else if let Some(promise) = &mut self.views[node].promised {
            raise(writes, &mut promise.durable, id);
        }
        self.make_durable_on_peer(node, id, state);
    }

    fn make_durable_on_peer(&mut self, node: usize, id: u64, state: State) {
        let writes = &self.writes;
        let other = &mut self.views[1 - node];
        if self.protocol == Protocol::C && state.conn.is_connected() {
            if state.pdsk == DiskState::UpToDate {
                raise(writes, &mut other.durable, id);
            }
            if let Some(promise) = &mut other.promised {
                raise(writes, &mut promise.durable, id);
            } else if state.conn.is_resync() && other.finished {
                raise(writes, &mut other.durable, id);
            }
        }
    }

    /// What a read of these sectors that is submitted now must not be older than.
    #[must_use]
    pub fn read_floor(&self, node: usize, first: u64, sectors: u64) -> Vec<u64> {
        let client = &self.views[node].client;
        (first..first + sectors)
            .map(|sector| client.get(&sector).copied().unwrap_or(NEVER_WRITTEN))
            .collect()
    }

    /// A read of these units of the device was answered, with these contents of the sectors that it touches.
    ///
    /// # Errors
    /// It shows what was never written there, or what had been overwritten before it was submitted.
    pub fn check_read(
        &self,
        node: usize,
        units: Range<u64>,
        floor: &[u64],
        contents: &[Content],
    ) -> Result<(), String> {
        let history = self.views[node].history;
        let per_sector = UNITS as u64;
        let first = units.start / per_sector;
        for (sector, (floor, content)) in (first..).zip(floor.iter().zip(contents)) {
            let from = units.start.max(sector * per_sector) - sector * per_sector;
            let to = units.end.min((sector + 1) * per_sector) - sector * per_sector;
            self.allowed_part(history, sector, from as usize..to as usize, content, *floor)
                .map_err(|why| format!("a read on {} is wrong: {why}", name(node)))?;
        }
        Ok(())
    }

    fn ended(&self, id: u64, history: usize) -> u64 {
        let write = &self.writes[id as usize];
        let ended = write.ended.unwrap_or(u64::MAX);
        if write.history == history {
            return ended;
        }
        ended.min(self.histories[history].forked)
    }

    /// Did `old` end before `young` was submitted?
    fn is_before(&self, old: u64, young: u64, history: usize) -> bool {
        old != young && self.ended(old, history) < self.writes[young as usize].submitted
    }

    /// The youngest version of this sector that has this content, if any.
    fn versions<'a>(
        &'a self,
        history: usize,
        sector: u64,
        content: &'a Content,
    ) -> impl Iterator<Item = u64> + 'a {
        let versions = self.histories[history].sectors.get(&sector);
        let first = Version {
            write: NEVER_WRITTEN,
            content: Content::Zero,
        };
        std::iter::once(first)
            .filter(move |version| version.content == *content)
            .map(|version| version.write)
            .chain(
                versions
                    .into_iter()
                    .flatten()
                    .filter(move |version| version.content == *content)
                    .map(|version| version.write),
            )
    }

    /// Whether a part of a sector may hold this: each run of it on its own, where writes were cut.
    fn allowed_part(
        &self,
        history: usize,
        sector: u64,
        part: Range<usize>,
        content: &Content,
        floor: u64,
    ) -> Result<(), String> {
        let runs = content.runs(part.clone());
        if part == (0..UNITS) && runs.len() < 2 {
            return self.allowed(history, sector, content, floor);
        }
        if runs.is_empty() {
            return Err(format!("sector {sector} holds {content:?}"));
        }
        let cuts = self.cuts(history, sector);
        for (run, unit) in runs {
            if run.start != part.start && !cuts.contains(&run.start) {
                return Err(format!(
                    "sector {sector} holds {content:?}, but nothing was ever cut at byte {}",
                    run.start * 16
                ));
            }
            let mut shown = self.shown(history, sector, run, unit).peekable();
            let any = shown.peek().is_some();
            if !any || shown.all(|write| self.is_before(write, floor, history)) {
                return Err(format!(
                    "sector {sector} holds {content:?}, of which a part was {}; the last that must not be lost is {}",
                    if any {
                        "overwritten before"
                    } else {
                        "never written there"
                    },
                    self.describe(floor)
                ));
            }
        }
        Ok(())
    }

    /// Where writes of this sector were cut, in units of the sector.
    fn cuts(&self, history: usize, sector: u64) -> BTreeSet<usize> {
        let versions = self.histories[history].sectors.get(&sector);
        let per_sector = UNITS as u64;
        let mut cuts = BTreeSet::new();
        for version in versions.into_iter().flatten() {
            let cut = self.writes[version.write as usize].cut;
            cuts.extend(
                cut.filter(|cut| cut / per_sector == sector)
                    .map(|cut| (cut % per_sector) as usize),
            );
            // What was found at the beginning of a history may be cut already.
            let inherited = version.content.runs(0..UNITS).into_iter().skip(1);
            cuts.extend(inherited.map(|(run, _)| run.start));
        }
        cuts
    }

    /// The versions of a sector that show this in a run of its units.
    fn shown(
        &self,
        history: usize,
        sector: u64,
        run: Range<usize>,
        unit: Unit,
    ) -> impl Iterator<Item = u64> + '_ {
        let versions = self.histories[history].sectors.get(&sector);
        let first = unit.is_none().then_some(NEVER_WRITTEN);
        let holds = move |content: &Content| run.clone().all(|at| content.unit(at) == Some(unit));
        first.into_iter().chain(
            versions
                .into_iter()
                .flatten()
                .filter(move |version| holds(&version.content))
                .map(|version| version.write),
        )
    }

    /// Whether all that a sector shows ended before this write was submitted, somewhere in it.
    fn shows_older(&self, history: usize, sector: u64, content: &Content, than: u64) -> bool {
        let older = |write: u64| self.is_before(write, than, history);
        let runs = content.runs(0..UNITS);
        if runs.len() < 2 {
            return self.versions(history, sector, content).all(older);
        }
        runs.into_iter()
            .any(|(run, unit)| self.shown(history, sector, run, unit).all(older))
    }

    fn allowed(
        &self,
        history: usize,
        sector: u64,
        content: &Content,
        floor: u64,
    ) -> Result<(), String> {
        if matches!(content, Content::Mixed(_)) {
            return self.allowed_part(history, sector, 0..UNITS, content, floor);
        }
        let mut found = None;
        for write in self.versions(history, sector, content) {
            if !self.is_before(write, floor, history) {
                return Ok(());
            }
            found = Some(write);
        }
        let floor_words = self.describe(floor);
        Err(match found {
            Some(write) => format!(
                "sector {sector} holds {content:?} ({}), which was overwritten by {floor_words}",
                self.describe(write)
            ),
            None => format!(
                "sector {sector} holds {content:?}, which was never written there in this history ({history}); the last \
                 that must not be lost is {floor_words}"
            ),
        })
    }

    fn describe(&self, id: u64) -> String {
        let write = &self.writes[id as usize];
        let fate = match (write.acknowledged, write.ended) {
            (true, Some(at)) => format!("acknowledged at tick {at}"),
            _ => "never acknowledged".to_owned(),
        };
        format!(
            "write {id} of sectors {}+{}, submitted at tick {} in history {}, {fate}",
            write.first, write.sectors, write.submitted, write.history
        )
    }

    /// The only good copy of what the other node's clients wrote was in the cache of this node, which lost power, since the
    /// other node's own disk failed after it had answered: two failures, of which its next flush tells.
    fn lose_the_last_copy(&mut self, node: usize, on: &Node) {
        let kept = self.views[node].durable.clone();
        let other = &self.views[1 - node];
        if other.up_to_date {
            return;
        }
        let is_lost = other.unflushed.iter().any(|(_, id)| {
            let write = &self.writes[*id as usize];
            (write.first..write.first + write.sectors).any(|sector| {
                other.client.get(&sector).is_some_and(|seen| seen == id)
                    && self
                        .allowed(other.history, sector, on.data.content(sector), *id)
                        .is_err()
            })
        });
        let other = &mut self.views[1 - node];
        other.owes_error |= is_lost;
        for (_, id) in &other.unflushed {
            let write = &self.writes[*id as usize];
            for sector in write.first..write.first + write.sectors {
                if other.client.get(&sector).is_some_and(|seen| seen == id) {
                    let floor = kept.get(&sector).copied().unwrap_or(NEVER_WRITTEN);
                    other.client.insert(sector, floor);
                }
            }
        }
    }

    /// A promotion that was cut short, or under which nobody wrote, leaves no trace that counts.
    fn forget_empty_history(&mut self, node: usize) {
        let history = self.views[node].history;
        let Some(parent) = self.histories[history].parent.clone() else {
            return;
        };
        let written = self
            .writes
            .iter()
            .any(|write| write.history == history && write.sectors > 0);
        let goes_on = self.histories.iter().any(|young| {
            let parent = young.parent.as_ref();
            parent.is_some_and(|parent| parent.history == history)
        });
        if written || goes_on || self.views[1 - node].history == history {
            return;
        }
        let view = &mut self.views[node];
        view.history = parent.history;
        view.live = parent.floor.clone();
        view.kept = parent.floor;
        view.lost_power |= parent.lost_power;
    }

    /// The process of a node died, or its host lost power.
    pub fn died(&mut self, node: usize, power: bool, on: &Node) {
        let tick = self.tick();
        if power {
            self.lose_the_last_copy(node, on);
        }
        self.forget_empty_history(node);
        if power {
            for (_, id) in &self.views[node].unflushed {
                self.writes[*id as usize].cache_lost = Some(tick);
            }
        }
        let view = &mut self.views[node];
        if power {
            view.kept = view.durable.clone();
            view.lost_power = true;
        }
        view.live = view.kept.clone();
        view.unflushed.clear();
        view.promised = None;
        view.up_to_date = false;
        view.finished = false;
        view.owes_error = false;
    }

    /// This Secondary lost its peer and has come to rest: what it received is durable (docs/durability.md, "Order on disk", 8).
    pub fn rested(&mut self, node: usize) {
        let view = &mut self.views[node];
        view.durable = view.live.clone();
    }

    /// A person gives up this node's data.
    pub fn discard(&mut self, node: usize) {
        self.views[node].discard = true;
    }

    /// Does this node have everything that was acknowledged in the youngest history?
    #[must_use]
    pub fn is_current(&self, node: usize) -> bool {
        let view = &self.views[node];
        let other = &self.views[1 - node];
        // The other node's history may not go on where this one's ended.
        let same = view.history == other.history || self.descends(view.history, other.history);
        let acknowledged = &self.histories[view.history].acknowledged;
        same && self
            .dominates(&view.live, acknowledged, view.history)
            .is_ok()
    }

    /// Are the two nodes of one history, as far as acknowledged writes go?
    #[must_use]
    pub fn same_history(&self) -> bool {
        self.views[0].history == self.views[1].history
    }

    /// Does this node lack something that was acknowledged and that the other one has?
    #[must_use]
    pub fn lacks(&self, node: usize) -> bool {
        let (own, other) = (&self.views[node], &self.views[1 - node]);
        self.dominates(&own.live, &other.live, own.history).is_err()
    }

    fn descends(&self, young: usize, old: usize) -> bool {
        let mut at = young;
        while let Some(parent) = &self.histories[at].parent {
            at = parent.history;
            if at == old {
                return true;
            }
        }
        false
    }

    fn dominates(&self, have: &Floor, need: &Floor, history: usize) -> Result<(), String> {
        for (sector, need) in need {
            let have = have.get(sector).copied().unwrap_or(NEVER_WRITTEN);
            if self.is_before(have, *need, history) {
                return Err(format!(
                    "sector {sector}: has {}, lacks {}",
                    self.describe(have),
                    self.describe(*need)
                ));
            }
        }
        Ok(())
    }

    /// A node's state changed.
    ///
    /// # Errors
    /// What must never be, or a node that takes over data which it must not have lost.
    pub fn state_changed(
        &mut self,
        node: usize,
        old: State,
        new: State,
        nodes: &[Node; 2],
    ) -> Result<(), String> {
        let tick = self.tick();
        let view = &mut self.views[node];
        view.up_to_date = new.disk == DiskState::UpToDate;
        // A disk of its own that has everything makes good what the peer lost; a demotion ends what it told its clients.
        view.owes_error &= !view.up_to_date && new.role == Role::Primary;
        let failed = old.disk >= DiskState::Inconsistent && new.disk <= DiskState::Failed;
        view.failed = new.disk <= DiskState::Failed;
        if failed && self.protocol != Protocol::C {
            // What its process had received and not written yet never reaches this disk.
            view.live = view.kept.clone();
        }
        let attaching = matches!(old.disk, DiskState::Attaching | DiskState::Negotiating);
        if attaching && new.disk >= DiskState::Inconsistent && new.disk != DiskState::Negotiating {
            // An attach flushes what was found.
            view.durable = view.live.clone();
        }
        if new.role == Role::Primary && new.conn.is_connected() && new.peer == Role::Primary {
            return Err(format!("{} is Primary and sees a Primary", name(node)));
        }
        let becomes_source = |state: State| {
            matches!(
                state.conn,
                ConnState::WFBitMapS
                    | ConnState::StartingSyncS
                    | ConnState::SyncSource
                    | ConnState::PausedSyncS
            )
        };
        if becomes_source(new) && !becomes_source(old) {
            self.promise(node);
        }
        let forced = old.disk < DiskState::UpToDate && new.disk == DiskState::UpToDate;
        if new.role == Role::Primary && old.role != Role::Primary {
            return self.promoted(node, new, forced, tick, nodes);
        }
        let was_target = matches!(
            old.conn,
            ConnState::SyncTarget | ConnState::PausedSyncT | ConnState::WFSyncUUID
        );
        if forced && was_target {
            return self.adopted(node, new.role);
        }
        Ok(())
    }

    /// This node begins to be the source of a resync.
    fn promise(&mut self, node: usize) {
        let view = &self.views[node];
        let excused = view.lost_power || self.protocol != Protocol::C;
        let promise = Promise {
            history: view.history,
            floor: view.live.clone(),
            durable: view.durable.clone(),
            excused,
        };
        self.views[1 - node].promised = Some(promise);
        self.views[1 - node].finished = false;
    }

    /// A resync has ended on its target: it has what its source had.
    fn adopted(&mut self, node: usize, role: Role) -> Result<(), String> {
        let Some(promise) = self.views[node].promised.take() else {
            return Err(format!(
                "{} says that a resync has ended, but its peer never was a source",
                name(node)
            ));
        };
        self.may_adopt(node, &promise).map_err(|why| {
            format!(
                "{} became target of a resync that costs acknowledged writes: {why}",
                name(node)
            )
        })?;
        let source = &mut self.views[1 - node];
        if source.lost_power && source.history == promise.history {
            // What a crashed Primary had not flushed is gone for good, and legally so.
            source.lost_power = false;
            self.histories[promise.history].acknowledged = promise.floor.clone();
        }
        let view = &mut self.views[node];
        if view.discard && view.history == promise.history {
            // What only the other node had acknowledged was given up by a person.
            self.histories[promise.history].acknowledged = promise.floor.clone();
        }
        view.history = promise.history;
        view.live = promise.floor.clone();
        view.kept = promise.floor.clone();
        view.durable = promise.durable;
        // A Primary that was the target goes on where its clients are.
        let client = std::mem::take(&mut view.client);
        view.client = promise.floor;
        merge(&self.writes, &mut view.client, &client);
        view.lost_power = false;
        view.wrote = role == Role::Primary;
        view.discard = false;
        view.finished = true;
        Ok(())
    }

    fn may_adopt(&self, node: usize, promise: &Promise) -> Result<(), String> {
        let view = &self.views[node];
        if view.discard {
            return Ok(());
        }
        if view.history == promise.history {
            if promise.excused {
                return Ok(());
            }
            return self.dominates(&promise.floor, &view.kept, view.history);
        }
        let mut at = promise.history;
        while let Some(parent) = &self.histories[at].parent {
            if parent.history == view.history {
                let since = self.histories[at].forked;
                let lost = view.live.values().find(|id| {
                    let write = &self.writes[**id as usize];
                    write.submitted > since && write.acknowledged && write.history == view.history
                });
                if let Some(lost) = lost {
                    return Err(format!(
                        "{} was acknowledged here after the other node had gone its own way",
                        self.describe(*lost)
                    ));
                }
                if parent.excused {
                    return Ok(());
                }
                return self.dominates(&parent.floor, &view.kept, view.history);
            }
            at = parent.history;
        }
        Err(format!(
            "its history {} is no ancestor of the source's {}",
            view.history, promise.history
        ))
    }

    /// A node became Primary.
    fn promoted(
        &mut self,
        node: usize,
        state: State,
        forced: bool,
        tick: u64,
        nodes: &[Node; 2],
    ) -> Result<(), String> {
        self.views[node].unflushed.clear();
        let wrote = std::mem::replace(&mut self.views[node].wrote, true);
        if state.conn.is_connected() {
            let peer = 1 - node;
            if state.disk == DiskState::UpToDate && state.pdsk == DiskState::UpToDate && !forced {
                if self.views[node].history != self.views[peer].history {
                    return Err(format!(
                        "{} is promoted, but the two nodes have different histories",
                        name(node)
                    ));
                }
                let history = self.views[node].history;
                self.views[node].client = self.histories[history].acknowledged.clone();
            } else if state.disk == DiskState::UpToDate {
                self.views[node].client = self.views[node].live.clone();
            } else {
                self.views[node].history = self.views[peer].history;
                self.views[node].client = self.views[peer].live.clone();
            }
            return Ok(());
        }
        if !forced {
            self.check_disk(node, &nodes[node])
                .map_err(|why| format!("{} was promoted alone: {why}", name(node)))?;
            let own_cache = wrote && self.views[node].lost_power;
            if self.protocol != Protocol::C && !own_cache {
                self.check_order(node, &nodes[node])
                    .map_err(|why| format!("{} was promoted alone: {why}", name(node)))?;
            }
        }
        self.fork(node, tick, forced, &nodes[node]);
        Ok(())
    }

    /// Everything that this node must not have lost is on its disk.
    ///
    /// # Errors
    /// The first sector that is wrong.
    pub fn check_disk(&self, node: usize, on: &Node) -> Result<(), String> {
        let view = &self.views[node];
        let busy = on.sectors_in_flight();
        for sector in self.histories[view.history].sectors.keys() {
            if busy.iter().any(|range| range.contains(sector)) {
                continue;
            }
            let floor = view.live.get(sector).copied().unwrap_or(NEVER_WRITTEN);
            self.allowed(view.history, *sector, on.data.content(*sector), floor)?;
        }
        Ok(())
    }

    /// No write is missing that was completed before another, present one was submitted.
    fn check_order(&self, node: usize, on: &Node) -> Result<(), String> {
        let history = self.views[node].history;
        let busy = on.sectors_in_flight();
        let sectors = &self.histories[history].sectors;
        let present = sectors
            .keys()
            .filter_map(|sector| match on.data.content(*sector) {
                Content::Stamp(write) if (*write as usize) < self.writes.len() => Some(*write),
                _ => None,
            });
        let Some(youngest) = present.max_by_key(|id| self.writes[*id as usize].submitted) else {
            return Ok(());
        };
        for (sector, versions) in sectors {
            if busy.iter().any(|range| range.contains(sector)) {
                continue;
            }
            let content = on.data.content(*sector);
            let missing = versions.iter().map(|version| version.write).filter(|id| {
                let write = &self.writes[*id as usize];
                let excused = write
                    .cache_lost
                    .is_some_and(|tick| tick < self.writes[youngest as usize].submitted);
                write.acknowledged && !excused && self.is_before(*id, youngest, history)
            });
            for missing in missing {
                if self.shows_older(history, *sector, content, missing) {
                    return Err(format!(
                        "reordered: {} is there, but sector {sector} lacks {}",
                        self.describe(youngest),
                        self.describe(missing)
                    ));
                }
            }
        }
        Ok(())
    }

    /// A new history begins with what this node's disk holds.
    fn fork(&mut self, node: usize, tick: u64, forced: bool, on: &Node) {
        let view = &self.views[node];
        let old = &self.histories[view.history];
        let busy = on.sectors_in_flight();
        let base = self.writes.len() as u64;
        let mut sectors = old.sectors.clone();
        let mut floor = view.live.clone();
        for (sector, versions) in &mut sectors {
            if busy.iter().any(|range| range.contains(sector)) {
                continue;
            }
            let content = on.data.content(*sector).clone();
            versions.push(Version {
                write: base,
                content,
            });
            floor.insert(*sector, base);
        }
        let parent = Parent {
            history: view.history,
            floor: view.live.clone(),
            excused: view.lost_power || forced || self.protocol != Protocol::C,
            lost_power: view.lost_power,
        };
        let history = self.histories.len();
        self.histories.push(History {
            parent: Some(parent),
            forked: tick,
            sectors,
            acknowledged: floor.clone(),
        });
        self.writes.push(Write {
            first: 0,
            sectors: 0,
            submitted: tick,
            ended: Some(tick),
            acknowledged: true,
            history,
            cache_lost: None,
            remote_only: false,
            cut: None,
        });
        let view = &mut self.views[node];
        view.history = history;
        view.live = floor.clone();
        view.kept = floor.clone();
        view.client = floor;
        view.lost_power = false;
    }

    /// Both nodes are UpToDate and connected, and nothing is under way: they must be equal, and right.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_equal(&mut self, nodes: &[Node; 2], sectors: u64) -> Result<(), String> {
        let mut used: BTreeSet<u64> = nodes[0].data.used(sectors).collect();
        used.extend(nodes[1].data.used(sectors));
        for sector in &used {
            let [a, b] = [0, 1].map(|node| nodes[node].data.content(*sector));
            if a != b {
                return Err(format!(
                    "both are UpToDate, connected and idle, but sector {sector} is {a:?} on A and {b:?} on B"
                ));
            }
        }
        if self.views[0].history != self.views[1].history {
            return Err(format!(
                "both are UpToDate and connected, but A has history {} and B {}, without a resync",
                self.views[0].history, self.views[1].history
            ));
        }
        let history = self.views[0].history;
        let mut floor = self.views[0].live.clone();
        merge(&self.writes, &mut floor, &self.views[1].live);
        for sector in used.iter().chain(floor.keys()) {
            let floor = floor.get(sector).copied().unwrap_or(NEVER_WRITTEN);
            self.allowed(history, *sector, nodes[0].data.content(*sector), floor)
                .map_err(|why| format!("both are UpToDate, connected and idle: {why}"))?;
        }
        for view in &mut self.views {
            view.live = floor.clone();
            view.kept = floor.clone();
            view.lost_power = false;
            view.promised = None;
            view.discard = false;
        }
        self.settle_open(history, nodes);
        Ok(())
    }

    /// Writes that nobody answered are over: what is there now stays.
    fn settle_open(&mut self, history: usize, nodes: &[Node; 2]) {
        let open: Vec<u64> = self
            .open
            .iter()
            .copied()
            .filter(|id| self.writes[*id as usize].history == history)
            .collect();
        if open.is_empty() {
            return;
        }
        let tick = self.tick();
        let base = self.writes.len() as u64;
        self.writes.push(Write {
            first: 0,
            sectors: 0,
            submitted: tick,
            ended: Some(tick),
            acknowledged: true,
            history,
            cache_lost: None,
            remote_only: false,
            cut: None,
        });
        for id in open {
            self.open.remove(&id);
            let write = &mut self.writes[id as usize];
            write.ended = Some(tick - 1);
            for sector in write.first..write.first + write.sectors {
                let content = nodes[0].data.content(sector).clone();
                let versions = self.histories[history].sectors.entry(sector).or_default();
                versions.push(Version {
                    write: base,
                    content,
                });
                for view in &mut self.views {
                    view.live.insert(sector, base);
                    view.kept.insert(sector, base);
                    view.client.insert(sector, base);
                }
            }
        }
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
