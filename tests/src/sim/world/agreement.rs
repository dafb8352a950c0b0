//! What two connected nodes agree on, and how a disk may become UpToDate: invariants of docs/spec/state-machine.md 12.1 that no engine
//! can check by itself, looked at from outside both.

use tandem_replicator::state::word::{ConnState, DiskState, Role, State};
use tandem_replicator::{Effect, Effects, OnIoError, RequestError};

use super::World;
use crate::sim::clients::Asked;
use crate::sim::pair::{nodes_of, pair_of};
use crate::sim::trace::{name, state_words};

/// How often something happened: a rule at which nobody looks is none, and neither is a fault that never comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// A node died when a part of what an event wanted was done.
    pub cut_events: u64,
    /// A disk wrote a part of a sector.
    pub torn_sectors: u64,
    /// No. 7 and no. 8: the states of two connected nodes with nothing under way, and who resolves conflicts.
    pub pairs: u64,
    /// No. 13: generations and bitmaps after a resync.
    pub resynced: u64,
    /// No. 14: generations during a resync.
    pub resyncs: u64,
    /// No. 26: events of a node with requests under way while I/O is suspended.
    pub suspended: u64,
    /// No. 30: a disk that becomes UpToDate.
    pub up_to_date: u64,
}

impl Seen {
    /// All of it, in words.
    #[must_use]
    pub fn list(&self) -> [(&'static str, u64); 7] {
        [
            ("a death inside an event", self.cut_events),
            ("a sector half written", self.torn_sectors),
            ("a pair at rest", self.pairs),
            ("generations after a resync", self.resynced),
            ("generations in a resync", self.resyncs),
            ("requests wait while suspended", self.suspended),
            ("a disk becomes UpToDate", self.up_to_date),
        ]
    }

    /// Adds those of another history.
    pub fn add(&mut self, other: Seen) {
        self.cut_events += other.cut_events;
        self.torn_sectors += other.torn_sectors;
        self.pairs += other.pairs;
        self.resynced += other.resynced;
        self.resyncs += other.resyncs;
        self.suspended += other.suspended;
        self.up_to_date += other.up_to_date;
    }
}

/// Pairs of connection states of two nodes between which nothing is under way (no. 7).
/// A source that begins may wait for its writes, which are not answered while I/O is suspended.
const PAIRS: [(ConnState, ConnState); 9] = [
    (ConnState::Connected, ConnState::Connected),
    (ConnState::StartingSyncS, ConnState::StartingSyncT),
    (ConnState::StartingSyncS, ConnState::WFSyncUUID),
    (ConnState::WFBitMapS, ConnState::WFBitMapT),
    (ConnState::WFBitMapS, ConnState::WFSyncUUID),
    (ConnState::SyncSource, ConnState::SyncTarget),
    (ConnState::PausedSyncS, ConnState::PausedSyncT),
    (ConnState::VerifyS, ConnState::VerifyT),
    (ConnState::Ahead, ConnState::Behind),
];

fn is_source(state: State) -> bool {
    matches!(state.conn, ConnState::SyncSource | ConnState::PausedSyncS)
}

fn is_target(state: State) -> bool {
    matches!(state.conn, ConnState::SyncTarget | ConnState::PausedSyncT)
}

impl World {
    /// After each event of a node of this pair.
    pub(super) fn check_pair(&mut self, pair: usize) {
        let nodes = nodes_of(pair);
        let [Some(a), Some(b)] = nodes.map(|node| self.nodes[node].state()) else {
            return;
        };
        if !a.conn.is_connected() || !b.conn.is_connected() {
            return;
        }
        let [one, other] = nodes;
        if is_target(a) && is_source(b) {
            self.check_generations_in_resync(one, other);
        } else if is_target(b) && is_source(a) {
            self.check_generations_in_resync(other, one);
        }
        let idle = |node: usize| self.awaited[node] == 0 && self.nodes[node].io.is_empty();
        // Under `pass_on` a disk that has failed some blocks stays: a source waits for them, and a write that a peer has refused for its end.
        if !self.passes_on() && nodes.into_iter().all(idle) && self.net.is_quiet(pair) {
            self.seen.pairs += 1;
            self.check_states([a, b]);
            self.check_who_resolves(pair);
        }
    }

    fn passes_on(&self) -> bool {
        self.settings.disk_options.on_io_error == OnIoError::PassOn
    }

    /// No. 7.
    fn check_states(&mut self, [a, b]: [State; 2]) {
        // A source that has bits left when its target is done goes on waiting (4.4, P_STATE): of its writes while I/O is suspended.
        let waits = |one: State, other: State| {
            is_source(one)
                && other.conn == ConnState::Connected
                && other.disk == DiskState::UpToDate
                && one.is_suspended()
        };
        if waits(a, b) || waits(b, a) {
            return;
        }
        // Until blocks are copied the source takes its target's disk for Consistent, whatever it is (4.5).
        let expects = |state: State| {
            matches!(
                state.conn,
                ConnState::StartingSyncS | ConnState::WFBitMapS | ConnState::PausedSyncS
            )
        };
        let mirrored = |one: State, other: State| {
            one.peer == other.role && (one.pdsk == other.disk || expects(one))
        };
        // What begins goes on, unless it waits for writes that are not answered.
        let begins =
            |state: State| matches!(state.conn, ConnState::StartingSyncS | ConnState::WFBitMapS);
        let stuck = (begins(a) || begins(b)) && !a.is_suspended() && !b.is_suspended();
        let pair = !stuck
            && PAIRS
                .iter()
                .any(|(s, t)| (a.conn, b.conn) == (*s, *t) || (b.conn, a.conn) == (*s, *t));
        if !pair || !mirrored(a, b) || !mirrored(b, a) {
            let words = [a, b].map(state_words);
            self.fail(format!(
                "nothing is under way, and the connected nodes do not agree: {words:?}"
            ));
        }
    }

    /// No. 8.
    fn check_who_resolves(&mut self, pair: usize) {
        let resolves = self.nodes_of_pair(pair).map(|node| {
            let engine = node.engine.as_ref();
            engine.and_then(|engine| engine.resolves_conflicts())
        });
        if let [Some(a), Some(b)] = resolves
            && a == b
        {
            self.fail(format!(
                "exactly one of two connected nodes resolves conflicts: {resolves:?}"
            ));
        }
    }

    /// No. 14.
    fn check_generations_in_resync(&mut self, target: usize, source: usize) {
        let uuids = |node: usize| self.nodes[node].status.as_ref().and_then(|at| at.uuids);
        let (Some(own), Some(source)) = (uuids(target), uuids(source)) else {
            return;
        };
        self.seen.resyncs += 1;
        let left = self.nodes[target].status.as_ref();
        let left = left.map_or(0, |status| status.counters.out_of_sync_kib);
        // Everything is there: the end is being stored; a disk under `pass_on` may fail a later write just then.
        let ends = (left == 0 || self.passes_on()) && own[0] & !1 == source[0] & !1;
        let same = own[0] & !1 == source[1] & !1;
        if !(same || ends) || own[1] != 0 {
            self.fail(format!(
                "in a resync the target {} has {own:x?}, the source {source:x?}",
                name(target)
            ));
        }
    }

    /// Whether what the last resync left is still there.
    pub(super) fn note_resync(&mut self, node: usize, old: State, new: State) {
        let joined = new.conn == ConnState::Connected;
        let target_done = is_target(old) && joined && new.disk == DiskState::UpToDate;
        let source_done = is_source(old) && joined && new.pdsk == DiskState::UpToDate;
        let of_interest = |state: State| (state.conn, state.disk, state.pdsk);
        if target_done {
            self.pair_mut(node).resynced = true;
        } else if !source_done && of_interest(old) != of_interest(new) {
            self.pair_mut(node).resynced = false;
        }
    }

    /// No. 13, once both nodes of a pair are idle and in sync.
    pub(super) fn check_resynced(&mut self, pair: usize) {
        let reports = self.nodes_of_pair(pair).map(|node| node.status.as_ref());
        let [Some(a), Some(b)] = reports else { return };
        let (Some(one), Some(other)) = (a.uuids, b.uuids) else {
            return;
        };
        let open = [a, b].map(|at| at.counters.out_of_sync_kib);
        if !self.pairs[pair].resynced || self.passes_on() {
            return;
        }
        self.seen.resynced += 1;
        // A resync that began twice has pushed the oldest one out on one of them.
        let equal = (0..3).all(|slot| one[slot] & !1 == other[slot] & !1);
        if !equal || one[1] != 0 || open != [0; 2] {
            let [a, b] = nodes_of(pair).map(name);
            self.fail(format!(
                "after a resync {a} has {one:x?}, {b} {other:x?}; out of sync: {open:?} KiB"
            ));
        }
    }

    /// No. 30.
    pub(super) fn check_becomes_up_to_date(&mut self, node: usize, old: State, new: State) {
        if old.disk == DiskState::UpToDate || new.disk != DiskState::UpToDate {
            return;
        }
        self.seen.up_to_date += 1;
        let typed = |node: usize, word: &str| {
            let open = &self.nodes[node].open_commands;
            open.values().any(|command| command.starts_with(word))
        };
        let by_rule = match old.disk {
            // What its flags say, or the comparison with a peer.
            DiskState::Attaching | DiskState::Negotiating => true,
            // The peer may be lost again in the same event.
            DiskState::Consistent | DiskState::Outdated if !old.conn.is_connected() => {
                new.conn.is_connected() || old.conn == ConnState::WFReportParams
            }
            _ => is_target(old) && new.conn == ConnState::Connected,
        };
        let begun = [old.disk, old.pdsk] == [DiskState::Inconsistent; 2]
            && [old.role, old.peer] == [Role::Secondary; 2];
        let mut both = nodes_of(pair_of(node)).into_iter();
        let skips = (self.pair(node).typed).contains("new-current-uuid --clear-bitmap")
            && (begun || both.any(|node| typed(node, "NewCurrentUuid")))
            && old.conn == ConnState::Connected
            && old.disk == DiskState::Inconsistent;
        let forced = |command: &String| {
            let good = old.disk >= DiskState::Outdated;
            command.starts_with("Primary") && (good || command.contains("force: Yes"))
        };
        let mut commands = self.nodes[node].open_commands.values();
        let by_person = skips || new.role == Role::Primary && commands.any(forced);
        if !by_rule && !by_person {
            let [old, new] = [old, new].map(state_words);
            let who = name(node);
            self.fail(format!(
                "{who} becomes UpToDate, and no rule says so: {old} to {new}"
            ));
        }
    }

    /// No. 26: what is answered while I/O is suspended was a read that was under way.
    pub(super) fn check_suspended(
        &mut self,
        node: usize,
        old: Option<State>,
        new: Option<State>,
        effects: &Effects,
    ) {
        let suspended = |state: Option<State>| state.is_some_and(|state| state.is_suspended());
        if !suspended(old) || !suspended(new) {
            return;
        }
        self.seen.suspended += u64::from(self.clients.in_flight(node) > 0);
        for effect in effects {
            let Effect::Reply { request, result } = effect else {
                continue;
            };
            // A node that goes down answers everybody.
            let ends = *result == Err(RequestError::ShuttingDown);
            let writes = |asked: Asked| !asked.read;
            if !ends && self.clients.asked(*request).is_some_and(writes) {
                let how = if result.is_ok() {
                    "well"
                } else {
                    "with an error"
                };
                self.fail(format!(
                    "request {} on {} is answered {how} while I/O is suspended",
                    request.0,
                    name(node),
                ));
            }
        }
    }
}
