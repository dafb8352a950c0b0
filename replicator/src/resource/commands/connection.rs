//! connect and disconnect (state-machine.md 2.12).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use tandem_protocol::auth::HmacAlgorithm;

use super::Running as Command;
use crate::command::{Answer, Force};
use crate::event::CommandId;
use crate::options::NetOptions;
use crate::resource::Resource;
use crate::resource::change::Asker;
use crate::resource::integrity::unknown_algorithm;
use crate::state::word::{ConnState, DiskState, Request, Role};
use crate::state::{Failure, Hardness, StateResult};
use crate::time::Time;

/// A disconnect that finds a handshake under way waits for its end at most this long; then it does not ask any more,
/// since a connection that is not established yet protects nothing.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);

/// A disconnect under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Running {
    /// The plain request is with the rules or with the peer.
    Plain,
    /// Asked again with the peer's disk Outdated; the plain request follows if that cannot be.
    OutdatePeer,
    /// The plain request again: what it says now is final.
    PlainAgain,
    /// Asked again with the own disk Outdated.
    OutdateSelf,
    /// A handshake has to end first, until then.
    Handshake(Time),
    /// Agreed: waits for StandAlone.
    Ending,
}

impl Resource {
    /// The command `connect`: answered at once, the connection is made afterwards.
    pub(crate) fn command_connect(
        &mut self,
        id: CommandId,
        net: NetOptions,
        discard_my_data: bool,
        tentative: bool,
    ) {
        let refusal = self.connect_refusal(&net, discard_my_data);
        if let Some(answer) = refusal {
            self.answer(id, answer);
            return;
        }
        self.connection
            .send_epochs
            .set_writes_max(net.max_epoch_size);
        self.connection.net = Some(net);
        self.connection.discard_my_data = discard_my_data;
        self.connection.tentative = tentative;
        self.connection.trouble.acted();
        let result =
            self.change_connection(|state| state.conn = ConnState::Unconnected, Hardness::Soft);
        if self.connection.cstate == ConnState::Unconnected {
            self.answer(id, Answer::done());
        } else {
            self.connection.net = None;
            self.answer(id, Answer::state(result));
        }
    }

    fn connect_refusal(&self, net: &NetOptions, discard_my_data: bool) -> Option<Answer> {
        let name = &self.name;
        let cstate = self.connection.cstate;
        let primary = self
            .volumes
            .values()
            .any(|volume| volume.state.role == Role::Primary);
        if cstate != ConnState::StandAlone {
            let connected = self
                .volumes
                .values()
                .any(|volume| volume.state.conn.is_connected());
            let state = match cstate {
                ConnState::Disconnecting => "disconnecting",
                _ if connected => "connected",
                _ => "connecting",
            };
            let info = format!("{name} is {state} already; nothing was changed");
            let answer = Answer::failure(Failure::LocalAddressInUse).with_info(info);
            // A healthy pair must not be parted by typing what a hint says.
            return Some(if discard_my_data && connected {
                let info = "connected already; --discard-my-data counts only after a split brain";
                let answer = Answer::failure(Failure::LocalAddressInUse).with_info(info);
                answer.with_hint(format!("tandem adm status {name}"))
            } else if discard_my_data && primary {
                let info = "this node is Primary: its data are those in use, and --discard-my-data is for the other node";
                answer
                    .with_info(info)
                    .with_hint(format!("tandem adm status {name}"))
            } else if discard_my_data {
                answer.with_hint(format!(
                    "tandem adm disconnect {name}; then: tandem adm connect --discard-my-data {name}"
                ))
            } else if cstate == ConnState::Disconnecting {
                answer.with_hint(format!("tandem adm connect {name} (again, in a moment)"))
            } else {
                answer.with_hint(format!("tandem adm status {name}"))
            });
        }
        if discard_my_data && primary {
            let answer = Answer::failure(Failure::DiscardWhilePrimary);
            return Some(answer.with_hint(format!(
                "tandem adm secondary {name}; then: tandem adm connect --discard-my-data {name}"
            )));
        }
        if let Some((_, algorithm)) = &net.secret
            && HmacAlgorithm::from_name(algorithm).is_none()
        {
            let info =
                format!("cram-hmac-alg {algorithm} is not known: use sha1, sha256 or sha512");
            return Some(Answer::failure(Failure::InvalidRequest).with_info(info));
        }
        if let Some((option, name)) = unknown_algorithm(net) {
            let info = format!("{option} {name} is not known: use crc32c, md5, sha1 or sha256");
            return Some(Answer::failure(Failure::InvalidRequest).with_info(info));
        }
        None
    }

    /// The command `disconnect`, also as a part of `down`. Its end is told by `answer`.
    pub(crate) fn command_disconnect(&mut self, id: CommandId, force: Force) {
        if self.connection.cstate == ConnState::StandAlone {
            let answer = Answer::failure(Failure::InvalidRequest).with_info("unknown connection");
            self.answer(id, answer);
            return;
        }
        match force {
            Force::Yes => self.disconnect_hard(id),
            Force::No => self.ask_disconnect(id, Running::Plain),
        }
    }

    fn ask_disconnect(&mut self, id: CommandId, stage: Running) {
        let plain = Request::conn(ConnState::Disconnecting);
        let wish = match stage {
            Running::OutdatePeer => plain.with_pdsk(DiskState::Outdated),
            Running::OutdateSelf => plain.with_disk(DiskState::Outdated),
            _ => plain,
        };
        self.disconnect_is(id, stage);
        self.request_state(None, wish, Asker::Command(id));
    }

    fn disconnect_is(&mut self, id: CommandId, stage: Running) {
        self.commands.running.insert(id, Command::Connection(stage));
    }

    fn disconnect_hard(&mut self, id: CommandId) {
        self.disconnect_is(id, Running::Ending);
        if self.connection.cstate > ConnState::Disconnecting {
            self.change_connection(
                |state| state.conn = ConnState::Disconnecting,
                Hardness::Hard,
            );
        }
    }

    /// A state request of a command of the connection is decided.
    pub(crate) fn connection_command_state_done(&mut self, id: CommandId, result: StateResult) {
        let Some(Command::Connection(stage)) = self.commands.running.get(&id) else {
            return;
        };
        let stage = *stage;
        if result.is_success() || result == StateResult::AlreadyStandAlone {
            self.disconnect_is(id, Running::Ending);
            return;
        }
        let alone = self.connection.cstate <= ConnState::WFConnection;
        match (result, stage) {
            (StateResult::InTransientState, _) => {
                self.disconnect_is(id, Running::Handshake(self.now + HANDSHAKE_WAIT));
            }
            (StateResult::PrimaryNop, Running::Plain) => {
                self.ask_disconnect(id, Running::OutdatePeer);
            }
            (StateResult::OutdateWithoutConnection, Running::OutdatePeer) => {
                self.ask_disconnect(id, Running::PlainAgain);
            }
            (
                StateResult::CwFailedByPeer,
                Running::Plain | Running::PlainAgain | Running::OutdatePeer,
            ) => {
                let next = if alone {
                    Running::Plain
                } else {
                    Running::OutdateSelf
                };
                self.ask_disconnect(id, next);
            }
            (StateResult::IsDiskless | StateResult::LowerThanOutdated, Running::OutdateSelf) => {
                self.disconnect_hard(id);
            }
            _ => {
                let answer = self.disconnect_refused(result);
                self.answer(id, answer);
            }
        }
    }

    fn disconnect_refused(&self, result: StateResult) -> Answer {
        let name = &self.name;
        let answer = Answer::state(result);
        match result {
            StateResult::NoUpToDateDisk => answer.with_hint(format!(
                "this Primary reads its data from the peer: tandem adm secondary {name}, or attach its disk first: tandem adm attach {name}"
            )),
            StateResult::CwFailedByPeer => answer.with_hint(format!(
                "the peer needs this connection (its log says why); in any case: tandem adm disconnect --force {name}"
            )),
            _ => answer.with_hint(format!("tandem adm disconnect --force {name}")),
        }
    }

    /// Called after every round of deferred work: commands that wait for something look again.
    pub(crate) fn step_connection_commands(&mut self) {
        let waiting: Vec<(CommandId, Running)> = self
            .commands
            .running
            .iter()
            .filter_map(|(id, command)| match command {
                Command::Connection(stage) => Some((*id, *stage)),
                _ => None,
            })
            .collect();
        for (id, stage) in waiting {
            match stage {
                Running::Ending if self.connection.cstate == ConnState::StandAlone => {
                    self.answer(id, Answer::done());
                }
                Running::Handshake(_) if self.connection.cstate == ConnState::StandAlone => {
                    self.answer(id, Answer::done());
                }
                Running::Handshake(_) if self.handshake_is_over() => {
                    self.ask_disconnect(id, Running::Plain);
                }
                Running::Handshake(until) if until <= self.now => {
                    let text = String::from("disconnecting in the middle of a handshake");
                    self.log(crate::effect::Level::Warn, None, text);
                    self.disconnect_hard(id);
                }
                _ => {}
            }
        }
    }

    fn handshake_is_over(&self) -> bool {
        !self.connection.state_sent
            && matches!(
                self.connection.cstate,
                ConnState::WFConnection | ConnState::WFReportParams
            )
    }

    /// When a command of the connection wants to look again.
    pub(crate) fn connection_commands_deadline(&self) -> Time {
        let deadlines = self.commands.running.values().map(|command| match command {
            Command::Connection(Running::Handshake(until)) => *until,
            _ => Time::NEVER,
        });
        deadlines.min().unwrap_or(Time::NEVER)
    }
}
