//! [`Framer`]: the byte stream of one direction of one socket becomes frames.
//!
//! # Use
//!
//! 1. [`Framer::dialled`] or [`Framer::accepted`] when the connection exists.
//! 2. [`Framer::push`] what was read, then [`Framer::next`] until it says `None`. After the packet
//!    that changes the rules (features, P_PROTOCOL) the framer follows by itself: features end the
//!    8-byte headers, and the integrity algorithm named in P_PROTOCOL or P_PROTOCOL_UPDATE gives
//!    the length of the digests that follow. [`Framer::set_agreed`] after the features makes the
//!    length of P_SIZES strict.
//! 3. A large payload may be received straight into the caller's block: [`Framer::pending_payload`],
//!    [`Framer::drain_payload`], [`Framer::finish_payload`]. Otherwise a payload that came in one
//!    piece is a slice of it, and one that came in many is copied once.
//!
//! The first error is the last word: every later call returns it again.

use alloc::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use crate::command::{Command, Socket};
use crate::digest::DigestAlgorithm;
use crate::error::ProtocolError;
use crate::features::{Agreed, Features};
use crate::header::{Header, HeaderKind};
use crate::limits::DIGEST_BYTES_MAX;
use crate::packet::{self, Frame, Packet};

/// A payload that is not there yet, in [`Framer::pending_payload`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingPayload {
    /// Bytes of the whole payload: at most 1 MiB.
    pub length: usize,
    /// Bytes of it that the framer holds already.
    pub buffered: usize,
    /// Bytes of the packet before it.
    pub head: usize,
}

#[derive(Debug)]
enum Stage {
    Header,
    Head {
        header: Header,
        command: Command,
        head: usize,
    },
    Payload {
        frame: Frame,
        length: usize,
        head: usize,
    },
    /// The caller receives the payload by itself.
    Direct {
        frame: Frame,
        length: usize,
    },
    Failed(ProtocolError),
}

/// What a stream may carry next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// P_INITIAL_DATA or P_INITIAL_META.
    FirstPacket,
    /// P_CONNECTION_FEATURES.
    Features,
    /// Everything that is neither.
    Packets,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Integrity {
    Bytes(usize),
    Unknown(alloc::string::String),
}

/// Decodes the stream that a peer sends on one socket. See the module's text for the order of calls.
#[derive(Debug)]
pub struct Framer {
    socket: Option<Socket>,
    phase: Phase,
    kind: HeaderKind,
    integrity: Integrity,
    agreed: Option<Features>,
    chunks: VecDeque<Bytes>,
    buffered: usize,
    stage: Stage,
}

impl Framer {
    /// For a connection that this node opened: the peer sends no first packet on it.
    #[must_use]
    pub fn dialled(socket: Socket) -> Self {
        let (phase, kind) = match socket {
            Socket::Data => (Phase::Features, HeaderKind::H80),
            Socket::Meta => (Phase::Packets, HeaderKind::H100),
        };
        Self::new(Some(socket), phase, kind)
    }

    /// For a connection that the peer opened: its first packet says which socket it is.
    #[must_use]
    pub fn accepted() -> Self {
        Self::new(None, Phase::FirstPacket, HeaderKind::H80)
    }

    /// For a stream in the middle of its life, past features and first packets.
    #[must_use]
    pub fn established(socket: Socket, kind: HeaderKind) -> Self {
        Self::new(Some(socket), Phase::Packets, kind)
    }

    fn new(socket: Option<Socket>, phase: Phase, kind: HeaderKind) -> Self {
        Self {
            socket,
            phase,
            kind,
            integrity: Integrity::Bytes(0),
            agreed: None,
            chunks: VecDeque::new(),
            buffered: 0,
            stage: Stage::Header,
        }
    }

    /// Which socket this is; `None` until the first packet of an accepted connection came.
    #[must_use]
    pub const fn socket(&self) -> Option<Socket> {
        self.socket
    }

    /// Bytes that were pushed and are not part of a returned frame yet. A bound on it is the
    /// caller's: stop reading while it is large and the engine says so.
    #[must_use]
    pub const fn buffered(&self) -> usize {
        self.buffered
    }

    /// The result of the features exchange: from now on P_SIZES must have the length of it.
    pub const fn set_agreed(&mut self, agreed: &Agreed) {
        self.agreed = Some(agreed.features);
    }

    /// Overrides the length of integrity digests, in bytes, capped at the longest digest. The
    /// framer follows P_PROTOCOL by itself; this is for streams taken up in the middle.
    pub fn set_integrity_len(&mut self, bytes: usize) {
        self.integrity = Integrity::Bytes(bytes.min(DIGEST_BYTES_MAX));
    }

    /// Takes bytes from the socket. Costs nothing: they are looked at by [`Framer::next`].
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.buffered += bytes.len();
            self.chunks.push_back(bytes);
        }
    }

    /// The next complete frame; `None` when more bytes are needed (or while the caller receives a
    /// payload by itself).
    ///
    /// # Errors
    ///
    /// The first thing that is not DRBD's protocol, for ever.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator's None is final, ours means: not yet"
    )]
    pub fn next(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let result = self.advance();
        if let Err(error) = &result {
            self.stage = Stage::Failed(error.clone());
            self.chunks.clear();
            self.buffered = 0;
        }
        result
    }

    /// The payload that the stream is in the middle of, after [`Framer::next`] returned `None`.
    #[must_use]
    pub fn pending_payload(&self) -> Option<PendingPayload> {
        match &self.stage {
            Stage::Payload { length, head, .. } => {
                let buffered = self.buffered.min(*length);
                Some(PendingPayload {
                    length: *length,
                    buffered,
                    head: *head,
                })
            }
            _ => None,
        }
    }

    /// Moves what is there of the pending payload to the start of `block`, and leaves the rest of the
    /// payload to the caller: it reads `length - returned` bytes from the socket behind them, and
    /// calls [`Framer::finish_payload`].
    ///
    /// # Errors
    ///
    /// [`ProtocolError::Misuse`] when no payload is pending or `block` is too short; nothing changes.
    pub fn drain_payload(&mut self, block: &mut [u8]) -> Result<usize, ProtocolError> {
        let Some(PendingPayload {
            length, buffered, ..
        }) = self.pending_payload()
        else {
            return Err(ProtocolError::Misuse {
                what: "no payload is pending",
            });
        };
        if block.len() < length {
            return Err(ProtocolError::Misuse {
                what: "block shorter than the payload",
            });
        }
        self.copy_out(&mut block[..buffered]);
        if let Stage::Payload { frame, length, .. } =
            core::mem::replace(&mut self.stage, Stage::Header)
        {
            self.stage = Stage::Direct { frame, length };
        }
        Ok(buffered)
    }

    /// The frame whose payload the caller received after [`Framer::drain_payload`].
    ///
    /// # Errors
    ///
    /// [`ProtocolError::Misuse`] when there is none, or `payload` has another length.
    pub fn finish_payload(&mut self, payload: Bytes) -> Result<Frame, ProtocolError> {
        match core::mem::replace(&mut self.stage, Stage::Header) {
            Stage::Direct { mut frame, length } if payload.len() == length => {
                packet::set_payload(&mut frame.packet, payload);
                Ok(frame)
            }
            other => {
                self.stage = other;
                Err(ProtocolError::Misuse {
                    what: "no payload of this length was left to finish",
                })
            }
        }
    }

    fn advance(&mut self) -> Result<Option<Frame>, ProtocolError> {
        loop {
            match core::mem::replace(&mut self.stage, Stage::Header) {
                Stage::Header => match self.header()? {
                    Some(stage) => self.stage = stage,
                    None => return Ok(None),
                },
                stage @ Stage::Head {
                    header,
                    command,
                    head,
                } => {
                    if self.buffered < head {
                        self.stage = stage;
                        return Ok(None);
                    }
                    let bytes = self.take(head);
                    let length = header.length as usize - head;
                    let head = self.kind.len() + head;
                    let packet = packet::decode(command, &bytes, length)?;
                    self.follow(&packet)?;
                    let frame = Frame {
                        volume: header.volume,
                        packet,
                    };
                    if length == 0 {
                        return Ok(Some(frame));
                    }
                    self.stage = Stage::Payload {
                        frame,
                        length,
                        head,
                    };
                }
                Stage::Payload {
                    mut frame,
                    length,
                    head,
                } => {
                    if self.buffered < length {
                        self.stage = Stage::Payload {
                            frame,
                            length,
                            head,
                        };
                        return Ok(None);
                    }
                    packet::set_payload(&mut frame.packet, self.take(length));
                    return Ok(Some(frame));
                }
                direct @ Stage::Direct { .. } => {
                    self.stage = direct;
                    return Ok(None);
                }
                Stage::Failed(error) => return Err(error),
            }
        }
    }

    /// Reads and judges a header; the lengths that leave here are safe to wait for and to allocate.
    fn header(&mut self) -> Result<Option<Stage>, ProtocolError> {
        let mut bytes = [0; 16];
        let have = self.peek(&mut bytes[..self.kind.len()]);
        let Some(header) = Header::decode(&bytes[..have], self.kind)? else {
            return Ok(None);
        };
        let command = Command::try_from(header.command)?;
        self.check_phase(command)?;
        let digest = match &self.integrity {
            Integrity::Bytes(digest) => *digest,
            Integrity::Unknown(name) => match command {
                Command::Data | Command::DataReply | Command::RsDataReply | Command::Wsame => {
                    return Err(ProtocolError::UnknownDigest { name: name.clone() });
                }
                _ => 0,
            },
        };
        let length = u64::from(header.length);
        let (min, max) = packet::length_bounds(command, digest);
        if !(min..=max).contains(&length) {
            return Err(ProtocolError::BadLength {
                command,
                length,
                min,
                max,
            });
        }
        self.check_sizes(command, length)?;
        self.discard(self.kind.len());
        let head = packet::head_len(command, header.length as usize, digest);
        Ok(Some(Stage::Head {
            header,
            command,
            head,
        }))
    }

    fn check_phase(&self, command: Command) -> Result<(), ProtocolError> {
        let unexpected = |expected| Err(ProtocolError::Unexpected { command, expected });
        match (self.phase, command) {
            (Phase::FirstPacket, Command::InitialData | Command::InitialMeta)
            | (Phase::Features, Command::ConnectionFeatures) => Ok(()),
            (Phase::FirstPacket, _) => unexpected("P_INITIAL_DATA or P_INITIAL_META"),
            (Phase::Features, _) => unexpected("P_CONNECTION_FEATURES"),
            (
                Phase::Packets,
                Command::InitialData | Command::InitialMeta | Command::ConnectionFeatures,
            ) => unexpected("a packet of an established connection"),
            (Phase::Packets, _) => match self.socket {
                Some(socket) if !command.belongs_on(socket) => {
                    Err(ProtocolError::WrongSocket { command, socket })
                }
                _ => Ok(()),
            },
        }
    }

    fn check_sizes(&self, command: Command, length: u64) -> Result<(), ProtocolError> {
        let (Command::Sizes, Some(features)) = (command, self.agreed) else {
            return Ok(());
        };
        let expected = if features.contains(Features::WSAME) {
            56
        } else {
            32
        };
        if length == expected {
            Ok(())
        } else {
            Err(ProtocolError::SizesLength { length, expected })
        }
    }

    /// Follows the packets that change how the rest of the stream is read.
    fn follow(&mut self, packet: &Packet) -> Result<(), ProtocolError> {
        match packet {
            Packet::InitialData => {
                self.socket = Some(Socket::Data);
                self.phase = Phase::Features;
            }
            Packet::InitialMeta => {
                self.socket = Some(Socket::Meta);
                self.phase = Phase::Packets;
                self.kind = HeaderKind::H100;
            }
            Packet::ConnectionFeatures(_) => {
                self.phase = Phase::Packets;
                self.kind = HeaderKind::H100;
            }
            Packet::Protocol(protocol) | Packet::ProtocolUpdate(protocol) => {
                let name = &protocol.integrity_alg;
                self.integrity = match DigestAlgorithm::from_name(name) {
                    Some(algorithm) => Integrity::Bytes(algorithm.len()),
                    None if name.is_empty() => Integrity::Bytes(0),
                    None => Integrity::Unknown(name.clone()),
                };
            }
            _ => {}
        }
        Ok(())
    }

    /// Copies the first bytes of the stream without consuming them; how many there were.
    fn peek(&self, into: &mut [u8]) -> usize {
        let mut at = 0;
        for chunk in &self.chunks {
            let count = chunk.len().min(into.len() - at);
            into[at..at + count].copy_from_slice(&chunk[..count]);
            at += count;
            if at == into.len() {
                break;
            }
        }
        at
    }

    /// Consumes `count` bytes, which are there.
    fn discard(&mut self, mut count: usize) {
        self.buffered -= count;
        while let Some(chunk) = self.chunks.front_mut() {
            if chunk.len() > count {
                chunk.advance(count);
                return;
            }
            count -= chunk.len();
            self.chunks.pop_front();
        }
    }

    /// Consumes `into.len()` bytes, which are there.
    fn copy_out(&mut self, into: &mut [u8]) {
        let count = self.peek(into);
        self.discard(count);
    }

    /// Consumes `count` bytes, which are there: a slice of one chunk, or one copy of several.
    fn take(&mut self, count: usize) -> Bytes {
        if count == 0 {
            return Bytes::new();
        }
        if let Some(chunk) = self.chunks.front_mut()
            && chunk.len() >= count
        {
            let bytes = chunk.split_to(count);
            self.buffered -= count;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
            return bytes;
        }
        let mut whole = BytesMut::zeroed(count);
        self.copy_out(&mut whole);
        whole.freeze()
    }
}
