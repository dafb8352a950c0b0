//! Every change of a state goes through here: judged by the rules, stored, and followed by its effects
//! (state-machine.md 2.1, 2.6).
//!
//! Effects that are atomic with the change happen inside ([`super::effects`]); the others are queued as [`Deferred`]
//! and carried out in order before `handle` returns. A change that needs the peer is a [`StateRequest`]: it is tried
//! again after every state change until it is decided.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use tandem_protocol::packet::Packet;
use tandem_protocol::packets::StateChange;
use tandem_protocol::state_word::WireState;

use super::{Resource, plan};
use crate::effect::Level;
use crate::event::{CommandId, IoError, VolumeNumber};
use crate::state::effects::ConnectionEffect;
use crate::state::rules::{Context, NetContext};
use crate::state::word::{ConnState, DiskState, Request, Role, State, diff};
use crate::state::{self, EffectContext, Hardness, StateResult, Verdict, cluster_wide, evaluate};
use crate::time::Time;

/// Which I/O of the local disk failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskFault {
    /// A read of data.
    Read,
    /// A write (or flush) of data.
    Write,
    /// A flush of data that the activity log needs to go on: without the log nothing would name what differs after a crash.
    Log,
    /// Metadata.
    Meta,
}

/// Work that follows a change, in order.
#[derive(Debug)]
pub(crate) enum Deferred {
    /// An effect of 2.9.
    State {
        /// The volume that changed.
        volume: VolumeNumber,
        /// What to do.
        effect: state::Deferred,
        /// The state after that change: later changes may have followed.
        new: State,
    },
    /// An effect of 2.10.
    Connection(ConnectionEffect),
    /// The receiver is told something (2.8 no. 10). Said once for each volume: the second time does nothing.
    Receiver(Receiver),
    /// The peer's disk, or the connection to it, changed: writes that wait for it are looked at again.
    PeerDiskChanged(VolumeNumber),
    /// The local disk became Failed or Diskless.
    DiskGone(VolumeNumber),
    /// Requests that waited for others that overlap them have their intervals.
    IntervalsReady(VolumeNumber, Vec<u64>),
    /// The handler local-io-error has ended, and what waited for it was done.
    FailureTold(VolumeNumber),
    /// Nobody will confirm any more that this disk's loss is known: what waited for that is answered with an error.
    LossUnconfirmed(VolumeNumber),
    /// The disk says what is true of its data: writes that waited for that go on.
    DiskSaysIt(VolumeNumber),
    /// N1b of 3.3: a generation beside the one that the peer's disk may have.
    Branch(VolumeNumber),
    /// This node is not Primary any more: clients are told.
    Demoted(VolumeNumber),
    /// The primary flag was lost in memory: on disk it is cleared when the bits are written.
    ReleasePrimary(VolumeNumber),
    /// A durable sequence ended.
    PlanDone(VolumeNumber, plan::Then, Result<(), IoError>),
}

/// What the receiver is told by a change of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receiver {
    /// End, and stay StandAlone.
    Stop,
    /// Clean up and connect again.
    Restart,
}

/// A wished change that is not decided yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateRequest {
    /// The volume, or all volumes of the connection.
    pub(crate) volume: Option<VolumeNumber>,
    /// What is wished.
    pub(crate) wish: Request,
    /// Who is told the result.
    pub(crate) asker: Asker,
    /// When the peer was asked, which has not answered.
    pub(crate) asked: Option<Time>,
}

impl StateRequest {
    /// Whether it says what the own disk is worth.
    fn is_about_the_disk(&self) -> bool {
        self.wish.disk > Some(DiskState::Failed) || self.wish.conn == Some(ConnState::StartingSyncT)
    }

    /// Whether it is one for a full sync or a verify.
    fn copies_or_compares(&self) -> bool {
        matches!(
            self.wish.conn,
            Some(ConnState::StartingSyncS | ConnState::StartingSyncT | ConnState::VerifyS)
        )
    }
}

/// Who is told the result of a state request: always later, never inside `request_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A command: `command_state_done` is called.
    Command(CommandId),
    /// An attach: `attach_state_done` is called.
    Attach(VolumeNumber),
}

enum Tried {
    Decided(StateResult),
    Asked,
    Waits,
}

impl Resource {
    /// Changes the state of one volume. Effects that need other parts run later in this `handle`.
    pub(crate) fn change_state(
        &mut self,
        number: VolumeNumber,
        wish: impl FnOnce(&mut State),
        hardness: Hardness,
    ) -> StateResult {
        let Some(old) = self.volumes.get(&number).map(|volume| volume.state) else {
            return StateResult::UnknownError;
        };
        let mut wanted = old;
        wish(&mut wanted);
        let verdict = evaluate(&old, wanted, &self.rule_context(number), hardness);
        if verdict.is_allowed() {
            self.store(number, &verdict);
        } else {
            self.log_refusal(Some(number), &verdict);
        }
        verdict.result
    }

    /// Changes all volumes of the connection at once, and the connection's own state. One volume that refuses refuses
    /// for all.
    pub(crate) fn change_connection(
        &mut self,
        wish: impl Fn(&mut State),
        hardness: Hardness,
    ) -> StateResult {
        let mut verdicts = Vec::with_capacity(self.volumes.len());
        for number in self.volume_numbers() {
            let Some(old) = self.volumes.get(&number).map(|volume| volume.state) else {
                continue;
            };
            let mut wanted = old;
            wish(&mut wanted);
            let verdict = evaluate(&old, wanted, &self.rule_context(number), hardness);
            if !verdict.is_allowed() {
                self.log_refusal(Some(number), &verdict);
                return verdict.result;
            }
            verdicts.push((number, verdict));
        }
        let changed = verdicts.iter().any(|(_, verdict)| verdict.is_change());
        for (number, verdict) in &verdicts {
            self.store(*number, verdict);
        }
        self.store_cstate(wish);
        if changed {
            StateResult::Success
        } else {
            StateResult::NothingToDo
        }
    }

    fn store_cstate(&mut self, wish: impl Fn(&mut State)) {
        let old = self.connection.cstate;
        let mut probe = State {
            conn: old,
            ..State::UNCONFIGURED
        };
        wish(&mut probe);
        let new = probe.conn.min(ConnState::WFReportParams);
        if new == old {
            return;
        }
        self.connection.cstate = new;
        let highest = self.volumes.values().map(|volume| volume.state.pdsk).max();
        let frozen = self.volumes.values().any(|volume| volume.state.susp_fen);
        for effect in state::effects::derive_connection(old, new, frozen, highest) {
            self.deferred.push_back(Deferred::Connection(effect));
        }
        self.state_changed = true;
        self.status_changed = true;
    }

    /// What the rules look at beside the state of a volume.
    pub(crate) fn rule_context(&self, number: VolumeNumber) -> Context {
        let net = self.connection.net.as_ref().map(|net| NetContext {
            two_primaries_allowed: false,
            verify_alg_present: !net.verify_alg.is_empty(),
        });
        let mut others = self.others(number);
        let other_volume_peer_primary = others.any(|state| state.peer == Role::Primary);
        let mut context = Context {
            net,
            protocol: self.connection.version(),
            state_sent: self.connection.state_sent,
            other_volume_peer_primary,
            ..Context::default()
        };
        if let Some(volume) = self.volumes.get(&number) {
            context.device_open = volume.open_count > 0;
            context.attach_result = volume
                .backing
                .as_ref()
                .and_then(|backing| backing.attached_as);
            context.exposed_is_current = volume.exposed_is_current();
        }
        context
    }

    fn others(&self, number: VolumeNumber) -> impl Iterator<Item = &State> + '_ {
        self.volumes
            .values()
            .filter(move |volume| volume.number != number)
            .map(|volume| &volume.state)
    }

    fn effect_context(&self, number: VolumeNumber) -> EffectContext {
        let volume = self.volumes.get(&number);
        EffectContext {
            protocol: self.connection.version(),
            bitmap_uuid_is_zero: volume.is_none_or(|at| at.generations.uuids.bitmap == 0),
            grew_while_detached: volume.is_some_and(|at| at.grew_while_detached),
            others_connected: self.others(number).all(|state| state.conn.is_connected()),
            others_up_to_date: self
                .others(number)
                .all(|state| state.disk == state::DiskState::UpToDate),
            others_reporting: self
                .others(number)
                .any(|state| state.conn == ConnState::WFReportParams),
        }
    }

    /// Stores an allowed change and everything that is atomic with it.
    fn store(&mut self, number: VolumeNumber, verdict: &Verdict) {
        if !verdict.is_change() {
            return;
        }
        let (old, new) = (verdict.old, verdict.state);
        let effects = state::derive(&old, &new, &self.effect_context(number));
        let lost =
            old.conn.is_connected() && !new.conn.is_connected() || state::contact_lost(&old, &new);
        let end_unknown = lost && self.target_may_have_the_generation(number, &old);
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.state = new;
            if let Some(backing) = volume.backing.as_mut() {
                backing.note_agreement(&new);
            }
            if old.disk < state::DiskState::Inconsistent
                && new.disk >= state::DiskState::Inconsistent
            {
                volume.wrote_without_disk = false;
            }
            let (was, is) = (old.conn.is_connected(), new.conn.is_connected());
            if end_unknown {
                volume.end_unknown = true;
            } else if is
                && new.pdsk >= state::DiskState::Inconsistent
                && new.disk >= state::DiskState::Inconsistent
            {
                // Both disks take part. One that is Negotiating has not been compared with the peer's: the link may break first.
                volume.end_unknown = false;
            }
            if old.role == Role::Primary && new.role != Role::Primary {
                // The application that would have to be told is gone.
                volume.unflushed_lost = false;
            }
            if was != is {
                volume.shown_by_peer =
                    was && old.peer == Role::Primary && old.pdsk != state::DiskState::UpToDate;
                volume.skip_untold = false;
            }
        }
        for other in self.volumes.values_mut() {
            other.state.susp = new.susp;
            other.state.susp_nod = new.susp_nod;
            other.state.susp_fen = new.susp_fen;
        }
        self.log(Level::Info, Some(number), diff(&old, &new));
        self.state_changed = true;
        self.status_changed = true;
        for effect in effects.immediate {
            self.immediate(number, effect, &old, &new);
        }
        for effect in effects.deferred {
            if starts_generation(effect) {
                self.generation_is_due(number);
            }
            self.deferred.push_back(Deferred::State {
                volume: number,
                effect,
                new,
            });
        }
        self.branch_if_the_end_is_unknown(number, &new);
        self.watch_for_loss(number, &old, &new);
        self.queue_followers(number, &old, &new);
    }

    /// N1b of 3.3: the writes from here on reach this disk alone, and the peer's may have the same generation.
    fn branch_if_the_end_is_unknown(&mut self, number: VolumeNumber, new: &State) {
        let only_disk = if new.conn.is_connected() {
            new.pdsk < state::DiskState::Inconsistent && new.peer == Role::Primary
        } else {
            new.role == Role::Primary
        };
        let wanted = self
            .volumes
            .get(&number)
            .is_some_and(|volume| volume.end_unknown && volume.generations.uuids.bitmap != 0);
        if wanted && only_disk && new.disk == state::DiskState::UpToDate {
            self.generation_is_due(number);
            self.deferred.push_back(Deferred::Branch(number));
        }
    }

    fn queue_followers(&mut self, number: VolumeNumber, old: &State, new: &State) {
        let disk_gone =
            old.disk >= state::DiskState::Inconsistent && new.disk < state::DiskState::Inconsistent;
        if disk_gone {
            self.deferred.push_back(Deferred::DiskGone(number));
        }
        self.expose_peer_data(number);
        let suspension = old.is_suspended() != new.is_suspended();
        if old.pdsk != new.pdsk || old.conn != new.conn || old.disk != new.disk || suspension {
            self.deferred.push_back(Deferred::PeerDiskChanged(number));
        }
        if old.role == Role::Primary && new.role != Role::Primary {
            self.deferred.push_back(Deferred::Demoted(number));
        }
    }

    fn log_refusal(&mut self, number: Option<VolumeNumber>, verdict: &Verdict) {
        if verdict.result == StateResult::InTransientState {
            return; // It is tried again.
        }
        let rule = verdict.rule.map_or("", |rule| rule.name);
        let text = format!(
            "{} ({rule}); state = {} wanted = {}",
            verdict.result,
            verdict.old.dump(),
            verdict.wanted.dump()
        );
        self.log(Level::Info, number, text);
    }

    /// Wishes a soft change, asking the peer first where 2.6 says so. The answer is given later in any case.
    pub(crate) fn request_state(
        &mut self,
        volume: Option<VolumeNumber>,
        wish: Request,
        asker: Asker,
    ) {
        self.state_requests.push(StateRequest {
            volume,
            wish,
            asker,
            asked: None,
        });
        self.state_changed = true;
    }

    /// Whether the peer was asked for consent and has not answered.
    pub(crate) fn awaits_consent(&self) -> bool {
        self.oldest_question().is_some()
    }

    /// When the peer was asked the first of the questions that it has not answered; the request timeout counts from it.
    pub(crate) fn oldest_question(&self) -> Option<Time> {
        let asked = self.state_requests.iter().map(|request| request.asked);
        asked.flatten().min()
    }

    /// Whether the peer was asked for a full sync to here and has not answered. Once it agrees it may go ahead on the data
    /// socket before its answer arrives on the other one.
    pub(crate) fn asks_to_become_target(&self, number: VolumeNumber) -> bool {
        self.state_requests.iter().any(|request| {
            let target = request.wish.conn == Some(ConnState::StartingSyncT);
            request.asked.is_some() && request.volume == Some(number) && target
        })
    }

    /// Whether the peer was asked to go on without this disk and has not answered: if it agreed, it has begun a data generation.
    pub(crate) fn asks_to_detach(&self, number: VolumeNumber) -> bool {
        self.state_requests.iter().any(|request| {
            let detach = request.wish.disk == Some(DiskState::Failed);
            request.asked.is_some() && request.volume == Some(number) && detach
        })
    }

    /// Whether the peer was asked for a full sync or a verify of this volume and has not answered: it may have begun.
    pub(crate) fn asks_to_copy_or_compare(&self, number: VolumeNumber) -> bool {
        self.state_requests.iter().any(|request| {
            request.asked.is_some()
                && request.volume == Some(number)
                && request.copies_or_compares()
        })
    }

    /// Whether a request waits for something else than the peer's answer.
    pub(crate) fn state_requests_wait(&self) -> bool {
        self.state_requests
            .iter()
            .any(|request| request.asked.is_none())
    }

    /// Tries every request that is not with the peer.
    pub(crate) fn retry_state_requests(&mut self) {
        for mut request in core::mem::take(&mut self.state_requests) {
            if request.asked.is_some() {
                self.state_requests.push(request);
                continue;
            }
            match self.try_request(&request) {
                Tried::Decided(result) => self.state_decided(request.asker, result),
                Tried::Asked => {
                    request.asked = Some(self.now);
                    self.state_requests.push(request);
                }
                Tried::Waits => self.state_requests.push(request),
            }
        }
    }

    fn try_request(&mut self, request: &StateRequest) -> Tried {
        let busy = |other: &StateRequest| other.asked.is_some() && other.volume == request.volume;
        if self.state_requests.iter().any(busy) {
            return Tried::Waits;
        }
        if request.copies_or_compares() && request.volume.is_some_and(|at| self.is_resizing(at)) {
            return Tried::Waits;
        }
        match request.volume {
            Some(number) => self.try_volume(number, &request.wish),
            None => self.try_connection(&request.wish),
        }
    }

    fn try_volume(&mut self, number: VolumeNumber, wish: &Request) -> Tried {
        let Some(old) = self.volumes.get(&number).map(|volume| volume.state) else {
            return Tried::Decided(StateResult::UnknownError);
        };
        let context = self.rule_context(number);
        let verdict = evaluate(&old, wish.apply(old), &context, Hardness::Soft);
        if verdict.result == StateResult::InTransientState {
            return Tried::Waits;
        }
        if !verdict.is_allowed() {
            self.log_refusal(Some(number), &verdict);
            return Tried::Decided(verdict.result);
        }
        let linked = self.connection.link.is_some();
        if linked && verdict.is_change() && cluster_wide(&old, &verdict.state).is_some() {
            self.send(Some(number), Packet::StateChgReq(wire_change(wish)));
            return Tried::Asked;
        }
        self.store(number, &verdict);
        Tried::Decided(verdict.result)
    }

    fn try_connection(&mut self, wish: &Request) -> Tried {
        for number in self.volume_numbers() {
            let Some(old) = self.volumes.get(&number).map(|volume| volume.state) else {
                continue;
            };
            // The peer wants this node's disks to be old before it lets go, and what one is, its attach finds out first.
            if wish.disk.is_some() && self.is_attaching(number) {
                return Tried::Decided(StateResult::CwFailedByPeer);
            }
            let context = self.rule_context(number);
            let verdict = evaluate(&old, wish.apply(old), &context, Hardness::Soft);
            if !verdict.is_allowed() {
                self.log_refusal(Some(number), &verdict);
                return Tried::Decided(verdict.result);
            }
        }
        let asks = self.connection.link.is_some()
            && self.connection.cstate == ConnState::WFReportParams
            && wish.conn == Some(ConnState::Disconnecting);
        if asks {
            self.send(None, Packet::ConnStChgReq(wire_change(wish)));
            return Tried::Asked;
        }
        let wish = *wish;
        let result = self.change_connection(|state| *state = wish.apply(*state), Hardness::Soft);
        Tried::Decided(result)
    }

    /// P_STATE_CHG_REPLY (of a volume) or P_CONN_ST_CHG_REPLY: consent or refusal. An answer without a question is
    /// logged and ignored.
    pub(crate) fn on_state_change_reply(&mut self, volume: Option<VolumeNumber>, code: i32) {
        let place = self
            .state_requests
            .iter()
            .position(|request| request.asked.is_some() && request.volume == volume);
        let Some(place) = place else {
            let text = format!("the peer answered a state change that was not asked for ({code})");
            self.log(Level::Warn, volume, text);
            return;
        };
        let request = self.state_requests.remove(place);
        // Others of the same volume wait for this answer.
        self.state_changed = true;
        if code < 1 {
            let why = StateResult::from_number(code).map_or("", StateResult::message);
            let text = format!("the peer refused a state change: ({code}) {why}");
            self.log(Level::Info, volume, text);
            self.state_decided(request.asker, StateResult::CwFailedByPeer);
            return;
        }
        let wish = request.wish;
        let result = match volume {
            // The disk that was meant is gone, and another one is being attached.
            Some(number) if request.is_about_the_disk() && self.is_attaching(number) => {
                StateResult::InTransientState
            }
            Some(number) => {
                let apply = |state: &mut State| *state = wish.apply(*state);
                self.change_state(number, apply, Hardness::Soft)
            }
            None => {
                let apply =
                    |state: &mut State| *state = wish.without_raising_disk(state).apply(*state);
                self.change_connection(apply, Hardness::Soft)
            }
        };
        let result = match result {
            StateResult::Success => StateResult::CwSuccess,
            other => self.overtaken(&request, other),
        };
        self.state_decided(request.asker, result);
    }

    /// What the peer agreed to is not done: a disk failed meanwhile, or the like. The peer has changed its view of this node when it
    /// agreed, and is told what is so; the asker is told that nothing was done.
    fn overtaken(&mut self, request: &StateRequest, result: StateResult) -> StateResult {
        let Some(number) = request.volume else {
            return result;
        };
        self.send_state(number);
        let state = self.volumes.get(&number).map(|volume| volume.state);
        let is_so = state.is_some_and(|state| request.wish.apply(state) == state);
        let copies = matches!(
            request.wish.conn,
            Some(ConnState::StartingSyncS | ConnState::StartingSyncT)
        );
        if copies && result == StateResult::NothingToDo && !is_so {
            let text =
                String::from("the peer agreed, but a disk was lost meanwhile: nothing is copied");
            self.log(Level::Warn, request.volume, text);
            return StateResult::NoUpToDateDisk;
        }
        result
    }

    /// The link is lost: what the peer was asked goes on as a purely local request.
    pub(crate) fn state_requests_connection_lost(&mut self) {
        for request in &mut self.state_requests {
            request.asked = None;
        }
        self.state_changed = true;
    }

    fn state_decided(&mut self, asker: Asker, result: StateResult) {
        match asker {
            Asker::Command(id) => self.command_state_done(id, result),
            Asker::Attach(volume) => self.attach_state_done(volume, result),
        }
    }
}

/// The effect ends with a new data generation (3.3 N1, N2).
pub(super) fn starts_generation(effect: state::Deferred) -> bool {
    matches!(
        effect,
        state::Deferred::NewCurrentUuid | state::Deferred::NewCurrentPending
    )
}

fn wire_change(wish: &Request) -> StateChange {
    let (mask, value) = wish.to_wire();
    StateChange {
        mask: WireState(mask),
        value: WireState(value),
    }
}
