//! The actions of a script.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tandem_protocol::Socket;
use tandem_protocol::bitmap_code::Compression;
use tandem_protocol::command::SocketUse;
use tandem_protocol::packet::{Frame, Packet};
use tandem_replicator::state::word::ConnState;
use tandem_replicator::{
    Command, Event, Force, Fua, IoError, Operation, Request, RequestId, Unmap,
};

use super::answers::Manner;
use super::script::Script;
use super::{Stage, VOLUME, World};

/// Bytes of the payloads of one packet that is repeated.
const REPEATED_BYTES_MAX: usize = 4 << 20;

/// Requests of clients that are open at one time.
const REQUESTS_MAX: usize = 64;

/// What happens to the bytes of a packet on their way.
#[derive(Clone, Copy, Debug)]
enum Damage {
    None,
    /// They arrive in two pieces.
    Split(usize),
    /// The rest never comes.
    Cut(usize),
    /// One byte is another.
    Changed(usize, u8),
}

impl Damage {
    fn new(script: &mut Script) -> Damage {
        match script.byte() % 16 {
            0 => Damage::Split(usize::from(script.byte())),
            1 => Damage::Cut(usize::from(script.byte())),
            2 => Damage::Changed(usize::from(script.byte()), script.byte() | 1),
            _ => Damage::None,
        }
    }
}

impl World {
    /// What the setting says, before the script.
    pub(super) fn prelude(&mut self, script: &mut Script) {
        self.command(Command::Attach { volume: VOLUME });
        self.connect();
        if self.setting.stage == Stage::Alone {
            return;
        }
        self.make_sockets();
        if self.setting.stage == Stage::Sockets {
            return;
        }
        // The sockets have to survive for a while.
        for _ in 0..4 {
            if self.heard.is_empty() {
                self.advance(Duration::from_secs(1));
            }
        }
        if self.setting.stage == Stage::Link {
            self.answer(0, Manner::Sound);
            self.settle();
            return;
        }
        self.answer_handshake();
        if self.setting.deep {
            self.bring_to_resync();
        }
        if self.setting.primary {
            let force = if script.one_in(4) {
                Force::Yes
            } else {
                Force::No
            };
            self.command(Command::Primary {
                volume: VOLUME,
                force,
            });
            self.answer_handshake();
        }
    }

    fn make_sockets(&mut self) {
        for (kind, first) in [
            (Socket::Data, Packet::InitialData),
            (Socket::Meta, Packet::InitialMeta),
        ] {
            let there = match kind {
                Socket::Data => self.data,
                Socket::Meta => self.meta,
            };
            if there.is_none() {
                self.dial_in(kind);
                self.say(first.on_connection());
                self.settle();
            }
        }
    }

    /// The peer sends a packet on the socket where it belongs.
    pub(super) fn say(&mut self, frame: Frame) {
        self.say_damaged(&frame, Damage::None);
    }

    fn say_damaged(&mut self, frame: &Frame, damage: Damage) {
        let socket = match frame.packet.command().socket() {
            SocketUse::Only(Socket::Meta) => self.meta,
            SocketUse::Only(Socket::Data) | SocketUse::Both => self.data,
        };
        let Some(socket) = socket else {
            return;
        };
        let Ok(encoded) = frame.encode(frame.packet.header_kind()) else {
            return;
        };
        let mut pieces: Vec<Bytes> = [Some(encoded.head), encoded.payload]
            .into_iter()
            .flatten()
            .collect();
        let head = &mut pieces[0];
        match damage {
            Damage::None => {}
            Damage::Split(at) => {
                let rest = head.split_off(at.min(head.len()));
                pieces.insert(1, rest);
            }
            Damage::Cut(at) => {
                head.truncate(at);
                pieces.truncate(1);
            }
            Damage::Changed(at, by) => {
                let mut changed = BytesMut::from(&head[..]);
                let at = at % changed.len();
                changed[at] ^= by;
                *head = changed.freeze();
            }
        }
        for piece in pieces {
            self.deliver(socket, piece);
        }
    }

    /// One action.
    pub(super) fn act(&mut self, script: &mut Script) {
        match script.byte() % 32 {
            0..=7 => {
                let frame = script.frame(&self.facts);
                let damage = Damage::new(script);
                self.say_damaged(&frame, damage);
            }
            8 => self.repeat(script),
            9..=11 => {
                self.answer(0, Manner::Sound);
            }
            12 => {
                let at = usize::from(script.byte());
                self.answer(at, Manner::Sound);
            }
            13 => {
                let at = usize::from(script.byte());
                self.answer(at, Manner::Refusal);
            }
            14 => self.answer_handshake(),
            15 => self.bring_to_resync(),
            16 => self.bitmap(script),
            17 => self.raw(script),
            18 | 19 => self.time(script),
            20 | 21 => self.disk(script),
            22 => self.socket(script),
            23 => self.deafness(script),
            24..=28 => self.client(script),
            _ => self.administrator(script),
        }
        self.settle();
    }

    /// The same packet many times.
    fn repeat(&mut self, script: &mut Script) {
        let frame = script.frame(&self.facts);
        let payload = frame.packet.payload().map_or(0, Bytes::len);
        let most = REPEATED_BYTES_MAX.checked_div(payload).unwrap_or(255);
        let count = usize::from(script.byte()).min(most);
        for _ in 0..count {
            self.say(frame.clone());
        }
    }

    fn bitmap(&mut self, script: &mut Script) {
        let compression = if script.one_in(2) {
            Compression::Plain
        } else {
            Compression::RunLength
        };
        self.send_bitmap(u64::from(script.u16()), compression);
    }

    fn raw(&mut self, script: &mut Script) {
        let socket = if script.one_in(3) {
            self.meta
        } else {
            self.data
        };
        let length = usize::from(script.byte());
        let bytes = Bytes::copy_from_slice(script.take(length));
        if let Some(socket) = socket {
            self.deliver(socket, bytes);
        }
    }

    fn time(&mut self, script: &mut Script) {
        let length = match script.byte() % 4 {
            0 => Duration::from_millis(u64::from(script.byte())),
            1 => Duration::from_secs(u64::from(script.byte())),
            _ => Duration::from_secs(3600),
        };
        self.advance(length);
    }

    fn disk(&mut self, script: &mut Script) {
        match script.byte() % 4 {
            0 => self.hold_disk = true,
            1 => self.hold_disk = false,
            2 => {
                let at = usize::from(script.byte());
                self.complete(at, Ok(()));
            }
            _ => {
                let at = usize::from(script.byte());
                let text = "input/output error".to_owned();
                self.complete(at, Err(IoError { text }));
            }
        }
    }

    fn socket(&mut self, script: &mut Script) {
        match script.byte() % 8 {
            0 => self.close(self.data),
            1 => self.close(self.meta),
            2 => {
                self.close(self.data);
                self.close(self.meta);
            }
            3 => self.dial_in(Socket::Data),
            4 => self.dial_in(Socket::Meta),
            5 => self.setting.reachable ^= true,
            _ => {
                self.make_sockets();
                self.advance(Duration::from_secs(1));
                self.answer_handshake();
            }
        }
    }

    fn close(&mut self, socket: Option<tandem_replicator::SocketId>) {
        if let Some(socket) = socket {
            self.peer_closes(socket);
            self.settle();
        }
    }

    /// The peer stops or starts to take what is sent.
    fn deafness(&mut self, script: &mut Script) {
        self.deaf = script.one_in(2);
        if !self.deaf {
            for socket in self.streams.keys().copied().collect::<Vec<_>>() {
                self.take_sent(socket);
            }
        }
    }

    fn client(&mut self, script: &mut Script) {
        if self.requests.len() >= REQUESTS_MAX {
            return;
        }
        let sectors = self.status().bytes / 512;
        let offset = script.sector(sectors).saturating_mul(512);
        let length = script.size();
        let fua = if script.one_in(4) { Fua::Yes } else { Fua::No };
        let operation = match script.byte() % 8 {
            0..=2 => {
                let length = length.min(1 << 20) as usize;
                let data = Bytes::from(vec![script.byte(); length]);
                Operation::Write { offset, data, fua }
            }
            3 | 4 => Operation::Read {
                offset,
                length: length.min(1 << 25),
            },
            5 => Operation::Flush,
            6 => Operation::Discard {
                offset,
                length,
                fua,
            },
            _ => Operation::WriteZeroes {
                offset,
                length,
                fua,
                unmap: Unmap::Allowed,
            },
        };
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.requests.insert(id);
        self.event(Event::Request(Request {
            id,
            volume: VOLUME,
            operation,
        }));
    }

    fn administrator(&mut self, script: &mut Script) {
        // An administrator waits for the answer; a few do not.
        if self.commands.len() >= 4 {
            return;
        }
        let volume = VOLUME;
        let force = |script: &mut Script| {
            if script.one_in(2) {
                Force::Yes
            } else {
                Force::No
            }
        };
        let command = match script.byte() % 18 {
            0 | 1 => Command::Primary {
                volume,
                force: force(script),
            },
            2 => Command::Secondary { volume },
            3 => Command::Disconnect {
                force: force(script),
            },
            4 | 5 => return self.connect(),
            6 => Command::Detach {
                volume,
                force: force(script),
            },
            7 | 8 => Command::Attach { volume },
            9 => Command::Invalidate { volume },
            10 => Command::InvalidateRemote { volume },
            11 => Command::Outdate { volume },
            12 => Command::NewCurrentUuid {
                volume,
                clear_bitmap: script.one_in(2),
            },
            13 => Command::PauseSync { volume },
            14 => Command::ResumeSync { volume },
            15 => Command::SuspendIo { volume },
            16 => Command::ResumeIo { volume },
            _ => {
                let discard_my_data = self.status().state.conn == ConnState::StandAlone;
                let (net, tentative) = (self.setting.net(), script.one_in(4));
                Command::Connect {
                    net,
                    discard_my_data,
                    tentative,
                }
            }
        };
        self.command(command);
    }
}
