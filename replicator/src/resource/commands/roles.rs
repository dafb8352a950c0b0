//! primary and secondary (state-machine.md 9).

use alloc::format;
use alloc::string::String;
use alloc::vec;
use core::time::Duration;

use super::{AfterPlan, Running, clients_hold};
use crate::command::{Answer, Force};
use crate::effect::{Effect, Level, Notification};
use crate::event::{CommandId, RequestError, VolumeNumber};
use crate::generations::Forced;
use crate::planted::Planted;
use crate::resource::Resource;
use crate::resource::change::Asker;
use crate::resource::plan::{Stage, Then};
use crate::state::word::{ConnState, DiskState, Request, Role, State};
use crate::state::{Hardness, StateResult, evaluate};
use crate::time::Time;

/// Rounds of a promotion: each adds something to the request (9.1).
const ROUNDS_MAX: u8 = 4;

/// Added to the ping timeout before a promotion that found another Primary is tried once more.
const GRACE: Duration = Duration::from_millis(100);

/// How long a promotion waits for writes of the former Primary that the disk has not done.
const LATE_WRITES_WAIT: Duration = Duration::from_secs(10);

/// A promotion under way.
#[derive(Debug)]
pub(crate) struct Promotion {
    volume: VolumeNumber,
    force: Force,
    wish: Request,
    round: u8,
    /// It needed data that the rules would not have used.
    forced: Forced,
    /// Another Primary was found: tried once more at this time, which finds a dead one.
    retry: Option<Time>,
    /// It waits for writes of the former Primary, until this time.
    late_writes: Option<Time>,
    /// That was the last try.
    last: bool,
    /// Its writes are under way: the role has changed.
    changed: bool,
}

impl Promotion {
    /// When it wants to be tried again, or has waited long enough.
    pub(super) fn retry_at(&self) -> Time {
        let waits = self.late_writes.unwrap_or(Time::NEVER);
        self.retry.unwrap_or(Time::NEVER).min(waits)
    }
}

/// A demotion under way.
#[derive(Debug)]
pub(crate) struct Demotion {
    volume: VolumeNumber,
    /// `down --force`: clients do not matter.
    force: Force,
    changed: bool,
}

impl Resource {
    pub(super) fn command_primary(&mut self, id: CommandId, volume: VolumeNumber, force: Force) {
        let promotion = Promotion {
            volume,
            force,
            wish: Request::role(Role::Primary),
            round: 1,
            forced: Forced::No,
            retry: None,
            late_writes: None,
            last: false,
            changed: false,
        };
        self.commands
            .running
            .insert(id, Running::Promote(promotion));
        self.ping_now();
        self.ask_promotion(id);
    }

    fn promotion(&mut self, id: CommandId) -> Option<&mut Promotion> {
        match self.commands.running.get_mut(&id) {
            Some(Running::Promote(promotion)) => Some(promotion),
            _ => None,
        }
    }

    fn ask_promotion(&mut self, id: CommandId) {
        let until = self.now + LATE_WRITES_WAIT;
        let Some(promotion) = self.promotion(id) else {
            return;
        };
        let (volume, wish) = (promotion.volume, promotion.wish);
        let late = self.late_writes(volume);
        let waits = self
            .promotion(id)
            .and_then(|promotion| core::mem::take(&mut promotion.late_writes));
        if late == 0 {
            self.request_state(Some(volume), wish, Asker::Command(id));
            return;
        }
        if waits.is_none() {
            let text = format!("the promotion waits for {}", late_writes_words(late));
            self.log(Level::Info, Some(volume), text);
        }
        if let Some(promotion) = self.promotion(id) {
            promotion.late_writes = waits.or(Some(until));
        }
    }

    /// Writes that came from a Primary which is gone, and that the disk has not done: under protocol B they were answered, and an
    /// application here would read what they are about to overwrite.
    fn late_writes(&self, number: VolumeNumber) -> usize {
        let Some(volume) = self.volumes.get(&number) else {
            return 0;
        };
        if volume.state.peer == Role::Primary {
            return 0; // The rules refuse it.
        }
        let writes = self.peer_io.writes.values();
        writes.filter(|write| write.volume == number).count()
    }

    /// A promotion that waits for late writes goes on when they have ended.
    pub(super) fn step_promotion(&mut self, id: CommandId) {
        let waits = self.promotion(id).filter(|at| at.late_writes.is_some());
        let Some(volume) = waits.map(|promotion| promotion.volume) else {
            return;
        };
        if self.late_writes(volume) == 0 {
            self.ask_promotion(id);
        }
    }

    /// Its time has come: it is tried once more, or has waited for a disk in vain.
    pub(super) fn retry_promotion(&mut self, id: CommandId) {
        let Some(promotion) = self.promotion(id) else {
            return;
        };
        if promotion.late_writes.is_some() {
            let volume = promotion.volume;
            let late = self.late_writes(volume);
            let name = &self.name;
            let answer = Answer::state(StateResult::InTransientState)
                .with_info(format!(
                    "{}: the disk may hang, look at the kernel log",
                    late_writes_words(late)
                ))
                .with_hint(format!(
                    "tandem adm primary {name} (again, when the disk works)"
                ));
            self.answer(id, answer);
            return;
        }
        promotion.retry = None;
        promotion.last = true;
        self.ask_promotion(id);
    }

    pub(super) fn promotion_decided(&mut self, id: CommandId, result: StateResult) {
        let Some(promotion) = self.promotion(id) else {
            return;
        };
        let (volume, force, last) = (promotion.volume, promotion.force, promotion.last);
        if result == StateResult::NothingToDo {
            self.answer(id, Answer::done());
            return;
        }
        if result.is_success() {
            self.promoted(id, volume);
            return;
        }
        let disk = self.volumes.get(&volume).map(|at| at.state.disk);
        let ping = self
            .connection
            .net
            .as_ref()
            .map_or(Duration::from_millis(500), |net| net.ping_timeout);
        let retry_at = self.now + ping + GRACE;
        let Some(promotion) = self.promotion(id) else {
            return;
        };
        promotion.round += 1;
        let again = !last && promotion.round <= ROUNDS_MAX;
        let raises = promotion.wish.disk.is_none();
        match (result, disk) {
            // Consistent data count as UpToDate where nobody has to be fenced first.
            (StateResult::NoUpToDateDisk, Some(DiskState::Consistent)) if again && raises => {
                promotion.wish = promotion.wish.with_disk(DiskState::UpToDate);
                self.ask_promotion(id);
            }
            (StateResult::NoUpToDateDisk, Some(disk))
                if again
                    && raises
                    && force == Force::Yes
                    && disk >= DiskState::Inconsistent
                    && disk < DiskState::UpToDate =>
            {
                promotion.wish = promotion.wish.with_disk(DiskState::UpToDate);
                promotion.forced = Forced::Yes;
                self.ask_promotion(id);
            }
            (StateResult::TwoPrimaries, _) if again => promotion.retry = Some(retry_at),
            _ => {
                let answer = self.promotion_refused(volume, result);
                self.answer(id, answer);
            }
        }
    }

    fn promotion_refused(&self, volume: VolumeNumber, result: StateResult) -> Answer {
        let answer = Answer::state(result);
        let Some(state) = self.volumes.get(&volume).map(|at| at.state) else {
            return answer;
        };
        let name = &self.name;
        match result {
            StateResult::NoUpToDateDisk if state.disk == DiskState::Diskless => answer
                .with_info("this node has no disk attached and no peer with UpToDate data")
                .with_hint(format!("tandem adm attach {name}")),
            StateResult::NoUpToDateDisk
                if state.conn < ConnState::Connected && state.conn != ConnState::StandAlone =>
            {
                answer
                    .with_info(format!(
                        "the data of this node is {}, and the peer is waited for; if it is gone for good, with its data, \
                         primary --force makes do with those of this node",
                        state.disk
                    ))
                    .with_hint(format!("tandem adm up {name} (on the peer)"))
            }
            StateResult::NoUpToDateDisk if state.conn < ConnState::Connected => answer
                .with_info(format!("the data of this node is {}, and the peer is not connected", state.disk))
                .with_hint(format!("tandem adm connect {name}")),
            StateResult::NoUpToDateDisk => answer
                .with_info(format!("the data of this node is {}, that of the peer {}", state.disk, state.pdsk))
                .with_hint(format!(
                    "tandem adm primary --force {name} (this node's data wins, the peer's is overwritten)"
                )),
            StateResult::TwoPrimaries | StateResult::OtherVolumePeerPrimary => answer
                .with_info("the peer is Primary")
                .with_hint(format!("tandem adm secondary {name} (on the peer)")),
            _ => answer,
        }
    }

    /// Step 3 of 9.1: the generation, the peer is told, the superblock; then the device is served.
    fn promoted(&mut self, id: CommandId, number: VolumeNumber) {
        let Some(promotion) = self.promotion(id) else {
            return;
        };
        promotion.changed = true;
        let forced = promotion.forced;
        self.connection.discard_my_data = false;
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        volume.peer.discard_armed = false;
        let state = volume.state;
        let has_disk = volume.writes_locally();
        if volume
            .generations
            .promotion_starts_generation(&state, forced)
        {
            volume.generation_pending = true;
            self.new_current_uuid(number);
        } else if has_disk
            && (volume.shown_by_peer || volume.end_unknown)
            && (state.conn < ConnState::Connected || state.pdsk <= DiskState::Failed)
        {
            self.branch_generation(number);
        }
        if has_disk && let Some(volume) = self.volumes.get_mut(&number) {
            volume.generations.mark_role(Role::Primary);
        }
        self.write_superblock_soon(number);
        if self.connection.link.is_some() && state.conn >= ConnState::WFReportParams {
            if forced == Forced::Yes {
                self.send_uuids(number);
            }
            self.send_state(number);
        }
        if has_disk && !self.planted(Planted::PromoteWithoutMark) {
            let then = Then::Command(AfterPlan::Promoted(id));
            self.start_plan(number, vec![Stage::Superblock], then);
        } else {
            self.promotion_written(id, number);
        }
    }

    /// The superblock says Primary (or there is no disk to say it): clients may come.
    pub(super) fn promotion_written(&mut self, id: CommandId, number: VolumeNumber) {
        let Some(volume) = self.volumes.get(&number) else {
            return;
        };
        let bytes = volume.bytes;
        if volume.state.role == Role::Primary {
            self.effects.push(Effect::Notify(Notification::Serve {
                volume: number,
                bytes: Some(bytes),
            }));
        }
        self.answer(id, Answer::done());
    }

    pub(super) fn command_secondary(&mut self, id: CommandId, volume: VolumeNumber) {
        self.start_demotion(id, volume, Force::No);
    }

    pub(super) fn start_demotion(&mut self, id: CommandId, number: VolumeNumber, force: Force) {
        if force == Force::Yes {
            self.refuse_clients(number);
        }
        let Some(volume) = self.volumes.get(&number) else {
            return;
        };
        if volume.state.role != Role::Primary {
            self.answer(id, Answer::done());
            return;
        }
        let open = volume.open_count;
        let wanted = State {
            role: Role::Secondary,
            ..volume.state
        };
        let verdict = evaluate(
            &volume.state,
            wanted,
            &self.rule_context(number),
            Hardness::Soft,
        );
        let transient = verdict.result == StateResult::InTransientState;
        if force == Force::No && !verdict.is_allowed() && !transient {
            let mut answer = Answer::state(verdict.result);
            if open > 0 {
                answer = self.told_how_to_free(answer.with_info(clients_hold(open)), &volume.state);
            }
            self.answer(id, answer);
            return;
        }
        let demotion = Demotion {
            volume: number,
            force,
            changed: false,
        };
        self.commands.running.insert(id, Running::Demote(demotion));
        // What was answered and not yet confirmed by the peer is confirmed first: see `step_demotion`.
        self.close_epoch();
        self.state_changed = true;
    }

    /// A client whose requests are held stays, even one that has closed its socket, until they are answered.
    fn told_how_to_free(&self, answer: Answer, state: &State) -> Answer {
        let held = "its I/O is suspended: a client stays until its requests are answered, also one that is gone";
        let answer = match state {
            _ if state.susp || state.susp_fen || state.susp_nod => answer.with_info(held),
            _ => answer,
        };
        answer.with_hint(if state.susp || state.susp_fen {
            format!("tandem adm resume-io {}", self.name)
        } else if state.susp_nod {
            String::from("tandem status")
        } else {
            String::from("unmount the file system and disconnect its NBD clients")
        })
    }

    /// Waits until nothing of this node's is in flight, then demotes; answered when bits and flags are on disk.
    pub(super) fn step_demotion(&mut self, id: CommandId) {
        let Some(Running::Demote(demotion)) = self.commands.running.get(&id) else {
            return;
        };
        let (number, force, changed) = (demotion.volume, demotion.force, demotion.changed);
        if !changed && force == Force::Yes {
            self.refuse_frozen(number, RequestError::ShuttingDown);
        }
        let waits = self.writes_open(number) && !self.planted(Planted::DemoteBeforeConfirmed);
        if changed || waits {
            return;
        }
        let hardness = match force {
            Force::Yes => Hardness::Hard,
            Force::No => Hardness::Soft,
        };
        let result = self.change_state(number, |state| state.role = Role::Secondary, hardness);
        if result == StateResult::InTransientState {
            return; // Tried again after the next change.
        }
        if !result.is_success() {
            self.answer(id, Answer::state(result));
            return;
        }
        if let Some(Running::Demote(demotion)) = self.commands.running.get_mut(&id) {
            demotion.changed = true;
        }
        let conn = self.volumes.get(&number).map(|volume| volume.state.conn);
        if conn.is_some_and(|conn| conn >= ConnState::WFReportParams) {
            self.send_state(number);
        }
        let has_disk = self
            .volumes
            .get(&number)
            .is_some_and(crate::resource::volume::Volume::writes_locally);
        if has_disk {
            self.deferred_answer(id, number);
        } else {
            self.answer(id, Answer::done());
        }
    }

    /// The answer waits for the plans that this change is about to queue, and for a superblock behind them.
    fn deferred_answer(&mut self, id: CommandId, number: VolumeNumber) {
        // Deferred effects of the change (bits, then the flags) are queued before this plan.
        self.run_deferred();
        let then = Then::Command(AfterPlan::Answer(id));
        self.start_plan(number, vec![Stage::Superblock], then);
    }

    /// A promotion of this volume is between its change and its superblock: the role bit may lag.
    pub(in crate::resource) fn changes_role(&self, number: VolumeNumber) -> bool {
        self.commands.running.values().any(|running| {
            matches!(running, Running::Promote(promotion) if promotion.volume == number && promotion.changed)
        })
    }
}

/// What a promotion waits for.
fn late_writes_words(count: usize) -> String {
    let what = "received from the former Primary before the connection was lost, still under way to the disk of this node";
    match count {
        1 => format!("1 write {what}"),
        count => format!("{count} writes {what}"),
    }
}
