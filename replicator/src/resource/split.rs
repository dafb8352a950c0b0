//! P_STATE, the comparison of generations that it starts, and what is done about the result: resync, split brain,
//! refusal (state-machine.md 4.2 to 4.6, 5).

use alloc::format;
use alloc::string::String;

use tandem_protocol::features::Features;
use tandem_protocol::state_word::WireState;

use super::Resource;
use super::handlers;
use super::link::AfterPlan;
use super::plan::{Then, rewrite_bitmap};
use crate::effect::Level;
use crate::event::{IoError, VolumeNumber};
use crate::generations::decide::{Question, peer_disk_seen};
use crate::generations::{
    Action, Comparison, Correction, Decision, Demotion, Link as ComparedLink, Method, Party,
    Policies, Reason, RefusalOutcome, ResolveConflicts, Standing, UUID_FLAG_CRASHED_PRIMARY,
    UUID_FLAG_DISCARD_MY_DATA, compare, decide, refusal_outcome,
};
use crate::planted::Planted;
use crate::state::word::{ConnState, DiskState, Role, State};
use crate::state::{Hardness, StateResult, evaluate};

/// A handshake that waits until all bits are on disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    volume: VolumeNumber,
    report: Report,
    conn: ConnState,
}

/// What the peer says of itself.
#[derive(Clone, Copy, Debug)]
struct Report {
    /// As it was sent.
    sent: State,
    /// Its disk as it counts here.
    disk: DiskState,
}

/// What the comparison leads to.
enum Outcome {
    /// This connection state.
    Conn(ConnState),
    /// This connection state, once all bits are on disk.
    AfterFullBitmap(ConnState),
    /// The handshake is refused.
    Refused(Reason),
}

/// Whether a node in this state takes its own data for the better ones.
fn is_source(conn: ConnState) -> bool {
    matches!(
        conn,
        ConnState::WFBitMapS | ConnState::SyncSource | ConnState::PausedSyncS
    )
}

impl Resource {
    /// P_STATE.
    pub(super) fn on_state(&mut self, number: VolumeNumber, word: WireState) -> Result<(), String> {
        let sent = State::unpack(word.0).map_err(|error| format!("{error}"))?;
        let Some(volume) = self.volumes.get(&number) else {
            return Ok(());
        };
        let verified = volume.state.conn == ConnState::VerifyT
            && volume.state.disk == DiskState::UpToDate
            && sent.conn == ConnState::Connected
            && sent.disk == DiskState::UpToDate;
        if verified {
            self.verify_source_ended(number);
        }
        let Some(volume) = self.volumes.get(&number) else {
            return Ok(());
        };
        let (own, skip_untold) = (volume.state, volume.skip_untold);
        if own.conn <= ConnState::TearDown {
            return Ok(());
        }
        if is_source(own.conn) && is_source(sent.conn) {
            // Both disks were attached at the same time, and each node compared its own with what the other one had before. A new
            // connection compares what both have now.
            let text =
                "both nodes would be the source of the resync: they compare their data again";
            self.link_lost(ConnState::NetworkFailure, text);
            return Ok(());
        }
        let given_up = own.conn == ConnState::Connected
            && sent.conn == ConnState::StartingSyncS
            && own.disk >= DiskState::Negotiating
            && !self.asks_to_become_target(number);
        if given_up {
            // A detach of the source crossed it, which came to nothing when this node had ended the resync for it.
            let text = "the peer begins a full sync that this node has given up: they compare their data again";
            self.link_lost(ConnState::NetworkFailure, text);
            return Ok(());
        }
        let flags = volume.peer.uuids.map(|uuids| uuids.flags);
        if sent.disk == DiskState::Negotiating && flags.is_none() {
            return Err(String::from(
                "a disk is being attached, but its P_UUIDS did not come before",
            ));
        }
        let mut report = Report {
            sent,
            disk: peer_disk_seen(sent.disk, flags.unwrap_or(0)),
        };
        if self.target_finished(number, &own, &mut report) {
            return Ok(());
        }
        let late = own.pdsk == DiskState::UpToDate
            && report.disk == DiskState::Inconsistent
            && own.conn == ConnState::Connected
            && sent.conn > ConnState::SyncSource;
        // What the peer sent before it was told to skip the initial sync: taken for the truth, writes would not be mirrored.
        let before_skip = skip_untold
            && report.disk == DiskState::Inconsistent
            && sent.conn == ConnState::Connected;
        if late || before_skip {
            report.disk = DiskState::UpToDate;
        } else if let Some(volume) = self.volumes.get_mut(&number) {
            volume.skip_untold = false;
        }
        if sent.conn == ConnState::Ahead && own.conn != ConnState::Behind {
            self.resync_left_behind(number);
        }
        let conn = match (own.conn, sent.conn) {
            (_, ConnState::Ahead) => ConnState::Behind,
            (ConnState::WFReportParams, _) => ConnState::Connected,
            (conn, _) => conn,
        };
        if !self.must_compare(number, &report) {
            return self.accept_report(number, report, conn);
        }
        let outcome = self.compare_with_peer(number, &report);
        let outcome = self.with_lost_writes(number, &report, outcome);
        if let (Outcome::Refused(_), Some(volume)) = (&outcome, self.volumes.get_mut(&number)) {
            // A Primary would write on without a generation of its own.
            volume.generations.take_back_correction();
        }
        match outcome {
            Outcome::Conn(conn) => self.accept_report(number, report, conn),
            Outcome::AfterFullBitmap(conn) => {
                self.set_all_bits(
                    number,
                    Waiting {
                        volume: number,
                        report,
                        conn,
                    },
                );
                Ok(())
            }
            Outcome::Refused(reason) => self.refuse_report(number, report, reason),
        }
    }

    /// Whether the packet only says that the target of a resync is done (4.6 step 3 of the wire's specification).
    fn target_finished(&mut self, number: VolumeNumber, own: &State, report: &mut Report) -> bool {
        let syncs = matches!(own.conn, ConnState::SyncSource | ConnState::PausedSyncS);
        if syncs
            && report.disk == DiskState::Inconsistent
            && report.sent.conn == ConnState::Connected
        {
            // A kernel would stay SyncSource until the next connection (6.4).
            self.resync_target_gave_up(number);
            return true;
        }
        let source = matches!(own.pdsk, DiskState::Inconsistent | DiskState::Consistent)
            && report.disk == DiskState::UpToDate
            && own.conn > ConnState::Connected
            && own.disk == DiskState::UpToDate;
        if !source {
            return false;
        }
        let conn = report.sent.conn;
        if conn >= ConnState::StartingSyncS && conn <= ConnState::WFSyncUUID {
            report.disk = DiskState::Inconsistent;
            return false;
        }
        if own.conn >= ConnState::SyncSource && conn == ConnState::Connected {
            self.resync_target_finished(number);
            return true;
        }
        false
    }

    /// 4.2.
    fn must_compare(&self, number: VolumeNumber, report: &Report) -> bool {
        let Some(volume) = self.volumes.get(&number) else {
            return false;
        };
        let own = &volume.state;
        let both = volume.peer.uuids.is_some()
            && report.sent.disk >= DiskState::Negotiating
            && own.disk >= DiskState::Negotiating;
        let connected = own.conn == ConnState::Connected;
        let attaching =
            report.sent.disk == DiskState::Negotiating || own.disk == DiskState::Negotiating;
        let starting = report.sent.conn >= ConnState::StartingSyncS
            && report.sent.conn <= ConnState::WFBitMapT;
        both && (own.conn < ConnState::Connected
            || (connected && (attaching || starting))
            || volume.consider_resync)
    }

    /// The peer's report becomes part of this node's state.
    fn accept_report(
        &mut self,
        number: VolumeNumber,
        report: Report,
        conn: ConnState,
    ) -> Result<(), String> {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return Ok(());
        };
        let own = volume.state;
        volume.consider_resync = false;
        let attached = volume
            .backing
            .as_ref()
            .and_then(|backing| backing.attached_as);
        let sent = report.sent;
        // A disk that was offered is decided by the comparison: what the peer said before it saw the offer is no answer to it.
        let awaited = volume.peer.uuids.is_none() && sent.disk >= DiskState::Negotiating;
        let change = |state: &mut State| {
            state.conn = conn;
            state.peer = sent.role;
            state.pdsk = report.disk;
            state.peer_isp = sent.aftr_isp || sent.user_isp;
            let decided = !awaited && matches!(conn, ConnState::Connected | ConnState::WFBitMapS);
            if let (DiskState::Negotiating, true, Some(attached)) = (state.disk, decided, attached)
            {
                state.disk = attached.disk;
            }
        };
        // Only a new connection may be refused by the rules; everything else is a fact.
        let new = own.conn < ConnState::Connected;
        let hardness = if new { Hardness::Soft } else { Hardness::Hard };
        let result = self.change_state(number, change, hardness);
        if new && !result.is_success() {
            let text = match result {
                StateResult::TwoPrimaries | StateResult::OtherVolumePeerPrimary => {
                    self.two_primaries(own.disk, report.disk)
                }
                other => format!(
                    "the states of the two nodes do not fit together: {}",
                    other.message()
                ),
            };
            self.refuse_connection(&text);
            return Ok(());
        }
        if new {
            self.volume_connected();
        }
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.peer.discard_armed = false;
        }
        let undecided = sent.conn <= ConnState::Connected && sent.disk != DiskState::Negotiating;
        // The state as it became: a peer whose disk failed has ended the resync.
        let after = self.volumes.get(&number).map(|volume| volume.state.conn);
        if !new && after > Some(ConnState::Connected) && undecided {
            self.send_uuids(number);
            self.send_state(number);
        }
        Ok(())
    }

    /// Whose demotion costs nothing is said where it is known.
    fn two_primaries(&self, own: DiskState, peer: DiskState) -> String {
        let name = &self.name;
        match (own == DiskState::UpToDate, peer == DiskState::UpToDate) {
            (true, false) => format!(
                "both nodes are Primary, and the peer has no good data of its own; on the peer type: tandem adm secondary {name}"
            ),
            (false, true) => format!(
                "both nodes are Primary, and this one has no good data of its own; here type: tandem adm secondary {name}"
            ),
            _ => {
                format!("both nodes are Primary; on one of them type: tandem adm secondary {name}")
            }
        }
    }

    fn volume_connected(&mut self) {
        if let Some(link) = self.connection.link.as_mut() {
            link.was_connected = true;
        }
        if self.connection.trouble.over() {
            self.status_changed = true;
        }
    }

    /// 4.3 and 4.4.
    fn compare_with_peer(&mut self, number: VolumeNumber, report: &Report) -> Outcome {
        let Some(comparison) = self.compare_generations(number, report) else {
            return Outcome::Refused(Reason::Unrelated);
        };
        let Some(question) = self.question(number, report, comparison) else {
            return Outcome::Refused(Reason::Unrelated);
        };
        let Decision {
            action,
            handlers: names,
            demote,
            log,
        } = decide(&question);
        for line in log {
            self.log(Level::Info, Some(number), line);
        }
        for handler in names {
            self.run_handler(handler.name(), Some(number), handlers::Then::Nothing);
        }
        if demote {
            self.change_state(number, |state| state.role = Role::Secondary, Hardness::Soft);
        }
        match action {
            Action::Connected => Outcome::Conn(ConnState::Connected),
            Action::Source(Method::Bitmap) => Outcome::Conn(ConnState::WFBitMapS),
            Action::Target(Method::Bitmap) => Outcome::Conn(ConnState::WFBitMapT),
            Action::Source(Method::Full) => Outcome::AfterFullBitmap(ConnState::WFBitMapS),
            Action::Target(Method::Full) => Outcome::AfterFullBitmap(ConnState::WFBitMapT),
            Action::Refuse(Reason::SplitBrain) if self.planted(Planted::AcceptSplitBrain) => {
                Outcome::Conn(if self.connection.resolve_conflicts {
                    ConnState::WFBitMapS
                } else {
                    ConnState::WFBitMapT
                })
            }
            Action::Refuse(reason) => Outcome::Refused(reason),
        }
    }

    /// A disk that lacks answered writes is never the source, whatever its generation says: it may have that of the peer because it had
    /// finished its resync just before it was lost, and then the crashed Primary that the peer takes it for (rule 41) would win.
    fn with_lost_writes(
        &mut self,
        number: VolumeNumber,
        report: &Report,
        outcome: Outcome,
    ) -> Outcome {
        let Some(volume) = self.volumes.get(&number) else {
            return outcome;
        };
        let lacks = volume.wrote_without_disk && volume.state.disk == DiskState::Negotiating;
        // Nobody has what was written if the peer's disk was invalidated: who attaches on a Secondary gives it up.
        let given_up = report.disk == DiskState::Inconsistent
            && !volume.generations.needs_the_peer(&volume.state);
        if lacks && given_up {
            let text = "this disk lacks what was written while it was gone, and the peer's disk, which had it, is Inconsistent: \
                        those writes are lost";
            self.log(Level::Warn, Some(number), String::from(text));
            return outcome;
        }
        if !lacks || self.planted(Planted::IgnoreExposedGeneration) {
            return outcome;
        }
        match outcome {
            Outcome::Conn(ConnState::WFBitMapT)
            | Outcome::AfterFullBitmap(ConnState::WFBitMapT)
            | Outcome::Refused(_) => outcome,
            // The refusal says why itself.
            _ if report.sent.conn != ConnState::WFBitMapS => Outcome::Refused(Reason::LacksWrites),
            _ => {
                let text =
                    "this disk lacks what was written while it was gone: it becomes the target";
                self.log(Level::Warn, Some(number), String::from(text));
                Outcome::Conn(ConnState::WFBitMapT)
            }
        }
    }

    fn compare_generations(&mut self, number: VolumeNumber, report: &Report) -> Option<Comparison> {
        let agreed = self.connection.agreed?;
        let link = ComparedLink {
            protocol: agreed.version,
            write_same: agreed.features.contains(Features::WSAME),
            resolve_conflicts: self.resolve_conflicts(),
            tandem: agreed.tandem,
        };
        let mistaken = self.planted(Planted::CrashedIsTarget);
        let volume = self.volumes.get_mut(&number)?;
        let peer = volume.peer.uuids?;
        let mut crashed = [
            volume.crashed_primary,
            peer.flags & UUID_FLAG_CRASHED_PRIMARY != 0,
        ];
        if mistaken {
            crashed.reverse();
        }
        let own = Party {
            uuids: volume.generations.uuids,
            crashed_primary: crashed[0],
            role: volume.state.role,
        };
        let other = Party {
            uuids: peer.set,
            crashed_primary: crashed[1],
            role: report.sent.role,
        };
        let mut comparison = compare(&own, &other, &link);
        let at = (volume.state.disk, report.disk);
        let good = at.0 >= DiskState::Outdated && at.1 >= DiskState::Outdated;
        if volume.grew_with_peer && comparison.rule == Some(40) && good && link.tandem {
            comparison = comparison.of_grown([own.role, other.role], link.resolve_conflicts);
        }
        let lines = [
            format!("self {}", own.uuids.log(volume.peer.bits_sent, 0)),
            format!("peer {}", other.uuids.log(peer.bits, peer.flags)),
            comparison.log(),
        ];
        match comparison.correction {
            Some(Correction::Own(uuids)) => {
                volume.generations.correct(uuids);
            }
            Some(Correction::Peer(uuids)) => {
                volume.peer.uuids = Some(super::volume::PeerUuids { set: uuids, ..peer })
            }
            None => {}
        }
        for line in lines {
            self.log(Level::Info, Some(number), line);
        }
        Some(comparison)
    }

    fn resolve_conflicts(&self) -> ResolveConflicts {
        if self.connection.resolve_conflicts {
            ResolveConflicts::Here
        } else {
            ResolveConflicts::There
        }
    }

    fn question(
        &self,
        number: VolumeNumber,
        report: &Report,
        comparison: Comparison,
    ) -> Option<Question> {
        let volume = self.volumes.get(&number)?;
        let peer = volume.peer.uuids?;
        let attached = volume
            .backing
            .as_ref()
            .and_then(|backing| backing.attached_as);
        let disk = match (volume.state.disk, attached) {
            (DiskState::Negotiating, Some(attached)) => attached.disk,
            (disk, _) => disk,
        };
        let secondary = State {
            role: Role::Secondary,
            ..volume.state
        };
        let context = self.rule_context(number);
        let demotes = evaluate(&volume.state, secondary, &context, Hardness::Soft).is_allowed();
        Some(Question {
            comparison,
            own: Standing {
                role: volume.state.role,
                disk,
                changes: volume.peer.bits_sent,
                bitmap_uuid: volume.generations.uuids.bitmap,
                discard_my_data: volume.peer.discard_armed,
            },
            peer: Standing {
                role: report.sent.role,
                disk: report.disk,
                changes: peer.bits,
                bitmap_uuid: peer.set.bitmap,
                discard_my_data: peer.flags & UUID_FLAG_DISCARD_MY_DATA != 0,
            },
            own_disk_now: volume.state.disk,
            own_bits_now: volume.bits_set(),
            resolve_conflicts: self.resolve_conflicts(),
            policies: self
                .connection
                .net
                .as_ref()
                .map(Policies::from_options)
                .unwrap_or_default(),
            demotion: if demotes {
                Demotion::Possible
            } else {
                Demotion::Refused
            },
            tentative: self.connection.tentative,
            peer_dry_run: self.connection.peer_dry_run,
        })
    }

    /// "Refuse" of 4.4.
    fn refuse_report(
        &mut self,
        number: VolumeNumber,
        mut report: Report,
        reason: Reason,
    ) -> Result<(), String> {
        let Some(volume) = self.volumes.get(&number) else {
            return Ok(());
        };
        let dry_run = self.connection.peer_dry_run;
        match refusal_outcome(volume.state.disk, report.sent.disk, dry_run) {
            RefusalOutcome::FailOwnDisk => {
                let name = &self.name;
                let next = match reason {
                    Reason::LacksWrites => {
                        format!("; type: tandem adm create-md {name}, tandem adm attach {name}")
                    }
                    Reason::Unrelated | Reason::SplitBrain | Reason::BothDiscard => format!(
                        "; to give up what is on this disk type: tandem adm create-md {name}, tandem adm attach {name}"
                    ),
                    _ => String::new(),
                };
                let text = format!("the disk cannot be attached to this peer: {reason}{next}");
                if let Some(volume) = self.volumes.get_mut(&number) {
                    volume.disk_error = Some(text.clone());
                }
                self.log(Level::Error, Some(number), text);
                self.change_state(
                    number,
                    |state| state.disk = DiskState::Failed,
                    Hardness::Hard,
                );
                let conn = self
                    .volumes
                    .get(&number)
                    .map_or(ConnState::Connected, |at| at.state.conn);
                self.accept_report(number, report, conn.max(ConnState::Connected))
            }
            RefusalOutcome::PeerDiskless => {
                let text = format!("the attach on the peer was aborted: {reason}");
                self.log(Level::Warn, Some(number), text);
                report.disk = DiskState::Diskless;
                let conn = self
                    .volumes
                    .get(&number)
                    .map_or(ConnState::Connected, |at| at.state.conn);
                self.accept_report(number, report, conn.max(ConnState::Connected))?;
                // Nothing has changed here; the peer waits for an answer to its offer, and comes to the same result by it.
                self.send_uuids(number);
                self.send_state(number);
                Ok(())
            }
            RefusalOutcome::ProtocolError => Err(format!("{reason}")),
            RefusalOutcome::StandAlone => {
                let text = self.refusal_text(number, reason);
                self.refuse_connection(&text);
                Ok(())
            }
        }
    }

    /// Why, and what to do about it.
    fn refusal_text(&self, number: VolumeNumber, reason: Reason) -> String {
        let name = &self.name;
        let volume = number.0;
        match reason {
            Reason::SplitBrain => format!(
                "volume {volume}: split brain: both nodes have changes that the other one lacks; on the node whose changes are to be given up type: tandem adm secondary {name} and tandem adm connect --discard-my-data {name}; on the other one, if it is StandAlone, type: tandem adm connect {name}"
            ),
            Reason::BothDiscard => format!(
                "volume {volume}: split brain: both nodes were told to discard their own data, so nobody's data was discarded; only on the node whose changes are to be given up type: tandem adm connect --discard-my-data {name}; on the other one type: tandem adm connect {name}"
            ),
            Reason::PrimaryWouldBeTarget => format!(
                "volume {volume}: {reason}: the peer's data would overwrite what was written here; to allow that type: tandem adm secondary {name}; to keep this node's data instead, type on the peer: tandem adm down {name}, tandem adm create-md {name} and tandem adm up {name}"
            ),
            Reason::Unrelated => format!(
                "volume {volume}: {reason}; on the node whose data is to be given up type: tandem adm down {name}, tandem adm create-md {name} and tandem adm up {name}; on the other one type: tandem adm connect {name}"
            ),
            _ => format!("volume {volume}: {reason}"),
        }
    }

    /// A full sync: every bit is on disk before the handshake goes on (4.4 step 10).
    fn set_all_bits(&mut self, number: VolumeNumber, waiting: Waiting) {
        if let Some(link) = self.connection.link.as_mut() {
            link.waiting = Some(waiting);
        }
        if let Some(backing) = self
            .volumes
            .get_mut(&number)
            .and_then(|at| at.backing.as_mut())
        {
            backing.bitmap.set_all();
        }
        self.start_plan(number, rewrite_bitmap(), Then::Link(AfterPlan::FullSync));
    }

    /// All bits are on disk, or cannot be written.
    pub(super) fn all_bits_are_set(&mut self, number: VolumeNumber, result: Result<(), IoError>) {
        let waiting = self
            .connection
            .link
            .as_mut()
            .and_then(|link| link.waiting.take_if(|waiting| waiting.volume == number));
        // Without one the link that asked for it is gone: more bits than needed do no harm.
        let Some(waiting) = waiting else {
            return;
        };
        self.connection.link_work = true;
        if let Err(error) = result {
            let text = format!(
                "volume {}: the bitmap cannot be written: {}",
                number.0, error.text
            );
            self.refuse_connection(&text);
            return;
        }
        if let Err(text) = self.accept_report(number, waiting.report, waiting.conn) {
            self.link_lost(ConnState::ProtocolError, &text);
        }
    }
}
