//! One NBD connection with several requests in flight (docs/spec/nbd.md, transmission).

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

use super::endpoint::Stream;
use super::replies::{Found, Replies};
use crate::disks::noise;

/// A request of the generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Write that is durable when it is answered.
    WriteFua,
    /// Flush.
    Flush,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// What.
    pub(super) command: Command,
    /// First byte.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) length: u32,
}

/// Bytes of a request's head.
const HEAD_BYTES: usize = 28;

/// Requests in one vectored send, two pieces each.
const SEND_REQUESTS_MAX: usize = 32;

/// Bytes of payload kept: each write begins somewhere else in them, so that no two blocks are equal by design.
const PAYLOAD_BYTES: usize = 1 << 20;

#[derive(Debug)]
struct Outgoing {
    head: [u8; HEAD_BYTES],
    /// Payload as a part of the connection's noise.
    payload: (usize, usize),
    sent: usize,
}

impl Outgoing {
    fn left(&self) -> usize {
        HEAD_BYTES + self.payload.1 - self.sent
    }
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    command: Command,
    length: u32,
    issued: Instant,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    outgoing: VecDeque<Outgoing>,
    /// The cookie of a request is its place here.
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    replies: Replies,
    noise: Vec<u8>,
    submitted: usize,
}

impl Connection {
    pub(super) fn new(stream: Stream, slots: usize) -> Connection {
        Connection {
            stream,
            outgoing: VecDeque::with_capacity(slots),
            flights: vec![None; slots],
            free: (0..slots).collect(),
            replies: Replies::default(),
            noise: noise(PAYLOAD_BYTES + (128 << 10)),
            submitted: 0,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.free.len() < self.flights.len()
    }

    pub(super) fn has_to_send(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Queues a request; there is room.
    pub(super) fn submit(&mut self, request: Request, now: Instant) {
        let Some(slot) = self.free.pop() else {
            return;
        };
        self.flights[slot] = Some(Flight {
            command: request.command,
            length: request.length,
            issued: now,
        });
        let is_write = matches!(request.command, Command::Write | Command::WriteFua);
        self.submitted += 1;
        let payload = if is_write {
            let start = self.submitted * 4096 % PAYLOAD_BYTES;
            (start, request.length as usize)
        } else {
            (0, 0)
        };
        self.outgoing.push_back(Outgoing {
            head: head(request, slot as u64),
            payload,
            sent: 0,
        });
    }

    /// Sends as much as the socket takes.
    pub(super) fn send(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            let mut pieces = Vec::with_capacity(2 * SEND_REQUESTS_MAX);
            for request in self.outgoing.iter().take(SEND_REQUESTS_MAX) {
                let (start, length) = request.payload;
                if request.sent < HEAD_BYTES {
                    pieces.push(IoSlice::new(&request.head[request.sent..]));
                }
                let passed = request.sent.saturating_sub(HEAD_BYTES);
                if length > passed {
                    pieces.push(IoSlice::new(&self.noise[start + passed..start + length]));
                }
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let none = &mut SendAncillaryBuffer::default();
            match sendmsg(&self.stream, &pieces, none, flags) {
                Ok(sent) => self.was_sent(sent),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn was_sent(&mut self, mut sent: usize) {
        while let Some(first) = self.outgoing.front_mut() {
            if sent < first.left() {
                first.sent += sent;
                return;
            }
            sent -= first.left();
            self.outgoing.pop_front();
        }
    }

    /// Receives into `buffer`; 0 when nothing is there now.
    pub(super) fn receive(&self, buffer: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        match recv(&self.stream, buffer, flags) {
            Ok((0, _)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((length, _)) => Ok(length),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes received bytes and tells what was answered.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        mut answered: impl FnMut(Command, Instant),
    ) -> Result<(), String> {
        let (flights, free) = (&mut self.flights, &mut self.free);
        let slot_of = |cookie: u64| usize::try_from(cookie).unwrap_or(usize::MAX);
        self.replies.take(bytes, |found| {
            match found {
                Found::Head(cookie) => match flights.get(slot_of(cookie)).copied().flatten() {
                    Some(flight) if flight.command == Command::Read => {
                        return Ok(flight.length as usize);
                    }
                    Some(_) => {}
                    None => return Err(format!("a reply to request {cookie}, which nobody made")),
                },
                Found::Whole(cookie) => {
                    let slot = slot_of(cookie);
                    if let Some(flight) = flights.get_mut(slot).and_then(Option::take) {
                        free.push(slot);
                        answered(flight.command, flight.issued);
                    }
                }
            }
            Ok(0)
        })
    }

    /// Takes leave, without waiting for anything.
    pub(super) fn disconnect(&mut self) {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[6..8].copy_from_slice(&2u16.to_be_bytes());
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // A server that is gone needs no goodbye.
        rustix::net::send(&self.stream, &bytes, flags).ok();
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

const REQUEST_MAGIC: u32 = 0x2560_9513;

fn head(request: Request, cookie: u64) -> [u8; HEAD_BYTES] {
    let (flags, kind): (u16, u16) = match request.command {
        Command::Read => (0, 0),
        Command::Write => (0, 1),
        Command::WriteFua => (1, 1),
        Command::Flush => (0, 3),
    };
    let mut bytes = [0; HEAD_BYTES];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&request.offset.to_be_bytes());
    bytes[24..].copy_from_slice(&request.length.to_be_bytes());
    bytes
}
