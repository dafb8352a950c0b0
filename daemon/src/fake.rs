//! A small engine for the tests of the daemon: no replication, but every effect that the daemon carries out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use tandem_replicator::state::word::{ConnState, DiskState, Role, State};
use tandem_replicator::status::{Counters, ResourceStatus, VolumeStatus};
use tandem_replicator::{
    Answer, CloseHow, Command, CommandId, DiskOperation, Effect, Effects, Event, Level,
    Notification, Operation, RequestError, RequestId, ResourceOptions, SocketId, Time, Token,
    VolumeNumber,
};

use crate::resource_loop::Engine;

/// What a token waits for.
enum Wait {
    Request(RequestId),
    Attach(CommandId, VolumeNumber),
    Detach(CommandId, Option<VolumeNumber>),
    Dial,
    Handler(CommandId),
}

struct Volume {
    minor: u32,
    state: State,
    bytes: u64,
    open_count: u32,
}

/// Attach opens the backing, primary serves all of it, requests go to the disk and nowhere else; connect listens and dials, and sends
/// `hello` on the stream that it dialled; whatever comes in on a stream is sent back.
pub(crate) struct FakeEngine {
    name: String,
    volumes: BTreeMap<VolumeNumber, Volume>,
    waits: BTreeMap<Token, Wait>,
    sockets: BTreeSet<SocketId>,
    next: u64,
    connection: ConnState,
    deadline: Time,
    down: Option<CommandId>,
}

fn answer(number: i32, exit: u8) -> Answer {
    Answer {
        number,
        text: String::new(),
        info: Vec::new(),
        hint: None,
        exit,
    }
}

impl FakeEngine {
    fn token(&mut self, wait: Wait) -> Token {
        self.next += 1;
        self.waits.insert(Token(self.next), wait);
        Token(self.next)
    }

    fn command(&mut self, id: CommandId, command: Command, effects: &mut Effects) {
        let mut done = |number, exit| {
            effects.push(Effect::Notify(Notification::StatusChanged));
            effects.push(Effect::Answer {
                command: id,
                answer: answer(number, exit),
            });
        };
        match command {
            Command::Attach { volume } => {
                let token = self.token(Wait::Attach(id, volume));
                effects.push(Effect::OpenBacking { token, volume });
            }
            Command::Detach { volume, .. } => {
                let token = self.token(Wait::Detach(id, Some(volume)));
                effects.push(Effect::CloseBacking { token, volume });
            }
            Command::Primary { volume, .. } => {
                let Some(state) = self.volumes.get_mut(&volume) else {
                    return done(127, 10);
                };
                if state.state.disk != DiskState::UpToDate {
                    return done(-2, 17);
                }
                state.state.role = Role::Primary;
                let bytes = Some(state.bytes);
                effects.push(Effect::Notify(Notification::Serve { volume, bytes }));
                effects.push(Effect::Answer {
                    command: id,
                    answer: answer(1, 0),
                });
            }
            Command::Secondary { volume } => {
                let Some(state) = self.volumes.get_mut(&volume) else {
                    return done(127, 10);
                };
                if state.open_count > 0 {
                    return done(-12, 11);
                }
                state.state.role = Role::Secondary;
                effects.push(Effect::Notify(Notification::Serve {
                    volume,
                    bytes: None,
                }));
                effects.push(Effect::Answer {
                    command: id,
                    answer: answer(1, 0),
                });
            }
            Command::Connect { .. } => {
                self.connection = ConnState::WFConnection;
                self.volumes
                    .values_mut()
                    .for_each(|volume| volume.state.conn = self.connection);
                effects.push(Effect::Listen);
                let token = self.token(Wait::Dial);
                effects.push(Effect::Dial { token });
                effects.push(Effect::Answer {
                    command: id,
                    answer: answer(101, 0),
                });
            }
            Command::Disconnect { .. } => {
                self.connection = ConnState::StandAlone;
                effects.push(Effect::Unlisten);
                for socket in &self.sockets {
                    effects.push(Effect::Close {
                        socket: *socket,
                        how: CloseHow::Linger,
                    });
                }
                effects.push(Effect::Answer {
                    command: id,
                    answer: answer(101, 0),
                });
            }
            Command::PauseSync { volume } => {
                let token = self.token(Wait::Handler(id));
                effects.push(Effect::RunHandler {
                    token,
                    name: "split-brain",
                    volume: Some(volume),
                });
            }
            Command::Outdate { .. } => {
                // Answered later, by the timer.
                self.down = Some(id);
                self.deadline = Time(1);
            }
            Command::Down { .. } => {
                for (volume, state) in &mut self.volumes {
                    state.state.role = Role::Secondary;
                    let gone = Notification::Serve {
                        volume: *volume,
                        bytes: None,
                    };
                    effects.push(Effect::Notify(gone));
                    effects.push(Effect::CloseBacking {
                        token: Token(u64::MAX),
                        volume: *volume,
                    });
                }
                let token = self.token(Wait::Detach(id, None));
                effects.push(Effect::CloseBacking {
                    token,
                    volume: VolumeNumber(0),
                });
            }
            _ => done(-17, 11),
        }
    }

    fn request(&mut self, request: tandem_replicator::Request, effects: &mut Effects) {
        let volume = request.volume;
        let state = self.volumes.get(&volume);
        if state.is_none_or(|state| state.state.role != Role::Primary) {
            let result = Err(RequestError::NotPrimary);
            effects.push(Effect::Reply {
                request: request.id,
                result,
            });
            return;
        }
        let token = self.token(Wait::Request(request.id));
        let operation = match request.operation {
            Operation::Read { offset, length } => DiskOperation::Read { offset, length },
            Operation::Write { offset, data, fua } => DiskOperation::Write { offset, data, fua },
            Operation::Discard {
                offset,
                length,
                fua,
            } => DiskOperation::Discard {
                offset,
                length,
                fua,
            },
            Operation::WriteZeroes {
                offset,
                length,
                fua,
                unmap,
            } => DiskOperation::Zero {
                offset,
                length,
                unmap,
                fua,
            },
            Operation::Flush => DiskOperation::Flush,
        };
        effects.push(Effect::Disk {
            token,
            volume,
            operation,
        });
    }

    fn done(&mut self, token: Token, failed: Option<String>, effects: &mut Effects) {
        let success = if failed.is_some() {
            answer(104, 10)
        } else {
            answer(101, 0)
        };
        match self.waits.remove(&token) {
            Some(Wait::Attach(id, _)) => {
                let info = failed.into_iter().collect();
                let answer = Answer { info, ..success };
                effects.push(Effect::Notify(Notification::StatusChanged));
                effects.push(Effect::Answer {
                    command: id,
                    answer,
                });
            }
            Some(Wait::Detach(id, volume)) => {
                let state = volume.and_then(|volume| self.volumes.get_mut(&volume));
                if let Some(state) = state {
                    state.state.disk = DiskState::Diskless;
                }
                effects.push(Effect::Notify(Notification::StatusChanged));
                effects.push(Effect::Answer {
                    command: id,
                    answer: success,
                });
            }
            Some(Wait::Handler(id)) => {
                effects.push(Effect::Answer {
                    command: id,
                    answer: success,
                });
            }
            _ => {}
        }
    }
}

impl Engine for FakeEngine {
    fn sync_extents(
        &self,
        _: VolumeNumber,
        range: std::ops::Range<u64>,
        _: usize,
    ) -> Vec<tandem_replicator::SyncExtent> {
        vec![tandem_replicator::SyncExtent {
            length: range.end - range.start,
            out_of_sync: true,
        }]
    }

    fn reads_locally(&self, _: VolumeNumber) -> bool {
        true
    }

    fn zeroes_are_short(&self, _: VolumeNumber) -> bool {
        true
    }

    fn new(options: ResourceOptions) -> FakeEngine {
        let volumes = options.volumes.into_iter().map(|volume| {
            let state = Volume {
                minor: volume.minor,
                state: State::UNCONFIGURED,
                bytes: 0,
                open_count: 0,
            };
            (volume.number, state)
        });
        FakeEngine {
            name: options.name,
            volumes: volumes.collect(),
            waits: BTreeMap::new(),
            sockets: BTreeSet::new(),
            next: 0,
            connection: ConnState::StandAlone,
            deadline: Time::NEVER,
            down: None,
        }
    }

    fn handle(&mut self, now: Time, event: Event, effects: &mut Effects) {
        match event {
            Event::Command { id, command } => self.command(id, *command, effects),
            Event::Request(request) => self.request(request, effects),
            Event::Opened { volume } => {
                self.volumes
                    .entry(volume)
                    .and_modify(|state| state.open_count += 1);
            }
            Event::Released { volume } => {
                self.volumes
                    .entry(volume)
                    .and_modify(|state| state.open_count -= 1);
            }
            Event::DiskDone { token, result } | Event::MetaDone { token, result } => {
                if let Some(Wait::Request(request)) = self.waits.remove(&token) {
                    let result = result.map_err(|error| {
                        let log = Notification::Log {
                            level: Level::Error,
                            volume: None,
                            text: error.text,
                        };
                        effects.push(Effect::Notify(log));
                        RequestError::Io
                    });
                    effects.push(Effect::Reply { request, result });
                }
            }
            Event::BackingOpened { token, result } => {
                if let (Ok(info), Some(Wait::Attach(_, volume))) = (&result, self.waits.get(&token))
                    && let Some(state) = self.volumes.get_mut(volume)
                {
                    state.state.disk = DiskState::UpToDate;
                    state.bytes = info.data_bytes;
                }
                self.done(token, result.err().map(|error| error.text), effects);
            }
            Event::BackingClosed { token } => self.done(token, None, effects),
            Event::HandlerDone { token, exit } => {
                let failed = (exit != 0).then(|| exit.to_string());
                self.done(token, failed, effects);
            }
            Event::Bytes { socket, bytes } => {
                if bytes != "hello" && bytes != "olleh" {
                    return;
                }
                let reply = if bytes == "hello" { "olleh" } else { "" };
                if bytes == "olleh" {
                    self.connection = ConnState::Connected;
                    self.volumes
                        .values_mut()
                        .for_each(|volume| volume.state.conn = self.connection);
                    effects.push(Effect::Notify(Notification::StatusChanged));
                }
                let head = Bytes::from_static(reply.as_bytes());
                effects.push(Effect::Send {
                    socket,
                    head,
                    payload: None,
                });
            }
            Event::Accepted { socket } => {
                self.sockets.insert(socket);
            }
            Event::Dialled { token, result } => {
                self.waits.remove(&token);
                match result {
                    Ok(socket) => {
                        self.sockets.insert(socket);
                        let head = Bytes::from_static(b"hello");
                        effects.push(Effect::Send {
                            socket,
                            head,
                            payload: None,
                        });
                    }
                    Err(_) => self.deadline = now + Duration::from_millis(20),
                }
            }
            Event::Closed { socket, .. } => {
                self.sockets.remove(&socket);
            }
            Event::Timer => {
                if now < self.deadline {
                    return;
                }
                self.deadline = Time::NEVER;
                if let Some(command) = self.down.take() {
                    effects.push(Effect::Answer {
                        command,
                        answer: answer(1, 0),
                    });
                } else if self.connection == ConnState::WFConnection {
                    let token = self.token(Wait::Dial);
                    effects.push(Effect::Dial { token });
                }
            }
            Event::Sent { .. } | Event::ListenFailed { .. } => {}
        }
    }

    fn next_deadline(&self) -> Time {
        self.deadline
    }

    fn status(&self) -> ResourceStatus {
        let volumes = self.volumes.iter().map(|(number, volume)| VolumeStatus {
            number: *number,
            minor: volume.minor,
            state: volume.state,
            al_suspended: false,
            bytes: volume.bytes,
            was_degraded: false,
            disk_error: None,
            uuids: None,
            open_count: volume.open_count,
            write_order: 'f',
            counters: Counters::default(),
            resync: None,
            verified: None,
        });
        ResourceStatus {
            name: self.name.clone(),
            connection: self.connection,
            version: None,
            peer_versions: None,
            protocol: None,
            last_error: None,
            volumes: volumes.collect(),
        }
    }
}
