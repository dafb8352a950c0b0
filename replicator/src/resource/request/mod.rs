//! Requests of this node's clients: admission, order, and the moment of the answer.
//!
//! ```text
//!  on_request ─► held? ─► admit ─► interval free? ─► activity log hot? ─► start ─► legs done? ─► answer ─► retire
//!                 │ suspended, bounds    │ overlap            │ cold: a transaction        │            │ barrier ack
//! ```
//!
//! What does not start or end on a sector is widened first, and its edges are read between the interval and the log (`odd`).
//!
//! Invariants:
//! - A write is answered with success only when at least one UpToDate disk has it (both, under protocol C, while the
//!   peer is there), and when the data generation that protects it from a peer that missed it is durable.
//! - Two writes that overlap are never in flight together: two disks may order them differently.
//! - The activity log names a write's extents on disk before the write is submitted or sent, until the peer's
//!   barrier ack (or, without a peer, its completion) retires it.
//! - A write that is retired without success on both disks has its bits set before it is answered or forgotten.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use bytes::{Bytes, BytesMut};

use super::{Pending, Resource};
use crate::activity_log::Ticket;
use crate::effect::{DiskOperation, Effect};
use crate::event::{
    Fua, IoError, Operation, Request, RequestError, RequestId, Token, Unmap, VolumeNumber,
};
use crate::numbered::Numbered;
use crate::state::word::{ConnState, DiskState, Role};
use crate::time::Time;
use crate::transfer_log::Epoch;

mod log;
mod odd;
pub(crate) mod remote;
mod retire;
mod writes;

/// Names a write in the transfer log; its block id on the wire and its interval.
pub(crate) type WriteId = u64;

/// Largest piece of a client's request that is handled (and sent) as one, in bytes: the protocol's largest
/// request (wire-protocol.md 3.4), since a peer that does not know discards gets zeroes as data.
pub(crate) const PART_BYTES_MAX: u32 = 1 << 20;

/// Bytes of writes in flight before clients are paused: bounds memory, about a second of a fast disk.
const BYTES_IN_FLIGHT_MAX: u64 = 64 << 20;

/// Requests held back for a volume before its clients are paused.
const HELD_MAX: usize = 256;

/// What a completion of the local leg belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Io {
    /// A part of a write.
    Write(WriteId),
    /// A part of a read.
    Read(u64),
}

/// A client's request while any part of it is open.
#[derive(Debug)]
struct Client {
    volume: VolumeNumber,
    parts_left: u32,
    result: Result<(), RequestError>,
    /// Data of a read, by part; those that have not come are empty.
    data: Vec<Bytes>,
    /// What was asked for within a read of whole sectors; `None`: all of it.
    window: Option<core::ops::Range<usize>>,
}

/// What a write does to its range.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// Write this.
    Data(Bytes),
    /// Discard (reads as zeroes afterwards).
    Discard,
    /// Write zeroes.
    Zeroes(Unmap),
}

/// How far a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Waits for an overlapping write.
    Interval,
    /// The old bytes around it are being read.
    Edges,
    /// Waits for the activity log.
    Log,
    /// Both legs are on their way or done.
    Started,
    /// Answered; waits for its barrier ack.
    Answered,
}

/// The local leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Local {
    /// No usable disk when it started.
    None,
    /// Submitted.
    Pending,
    /// On the disk.
    Done,
    /// The disk failed it.
    Failed,
}

/// The remote leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remote {
    /// Not replicated when it started.
    None,
    /// Sent; `position` is the count of bytes on the data socket behind it.
    Sent { position: u64 },
    /// Handed to the socket (enough for protocol A).
    Handed,
    /// The peer has it in memory (enough for protocol B).
    Received,
    /// The peer has it on its disk.
    Written,
    /// The peer refused it: it is answered when this node knows why (its disk state, or the end of the link).
    Refused,
    /// The link was lost, or the peer's disk failed.
    Failed,
}

/// What a write (of a client, or of a diskless peer) has to do with the activity log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logged {
    /// Extents that it holds a reference of.
    pub(crate) extents: Option<core::ops::RangeInclusive<u32>>,
    /// The transaction that it waits for.
    pub(crate) ticket: Option<Ticket>,
}

/// A write in the transfer log.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) client: RequestId,
    pub(crate) volume: VolumeNumber,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) body: Body,
    /// Parts of sectors at its ends that are not merged yet.
    pub(crate) edges: Option<odd::Edges>,
    pub(crate) fua: Fua,
    pub(crate) stage: Stage,
    pub(crate) logged: Logged,
    pub(crate) local: Local,
    pub(crate) remote: Remote,
    /// The epoch that it was sent in, until the barrier ack.
    pub(crate) epoch: Option<Epoch>,
    /// The peer's disk was UpToDate when it was sent: its copy counts as a copy.
    pub(crate) peer_counts: bool,
    /// The local disk was not UpToDate when it was sent: under every protocol only the peer's disk makes it safe.
    pub(crate) peer_only: bool,
    pub(crate) sent_at: Time,
    /// Its bits stay, whatever the peer still says: a disk is gone since it was sent, or only one has a later write of its blocks.
    bits_stay: bool,
}

/// All open requests of a resource.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    next: u64,
    clients: Numbered<RequestId, Client>,
    pub(crate) writes: Numbered<WriteId, Write>,
    /// Writes that wait until the peer has been told that the own disk has failed.
    untold: Vec<WriteId>,
    /// Writes that could not start while I/O was suspended.
    frozen: Vec<WriteId>,
    /// Writes whose bits the peer has cleared (P_RS_WRITE_ACK): here they are cleared when both the barrier ack and the answer are there,
    /// unless something has failed on their blocks since.
    in_sync: BTreeSet<WriteId>,
    /// Writes that the peer has refused without having said why; some may be gone.
    refused: BTreeSet<WriteId>,
    pub(crate) reads: BTreeMap<u64, super::reads::Read>,
    /// Requests that must wait, in order of arrival, by volume.
    held: BTreeMap<VolumeNumber, VecDeque<Request>>,
    paused: BTreeMap<VolumeNumber, bool>,
    /// Writes that wait for the activity log, in order.
    pub(crate) log_waiters: BTreeMap<VolumeNumber, VecDeque<WriteId>>,
    bytes_in_flight: u64,
    /// Writes of each epoch that the peer has not acknowledged as a whole, in the order of sending.
    epochs: BTreeMap<Epoch, Vec<WriteId>>,
    /// Writes that the data socket has not taken yet, with the count of bytes behind each.
    unsent: VecDeque<(u64, WriteId)>,
}

impl Requests {
    /// A number that no write, read or interval of this resource has had.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Resource {
    /// A client's request enters. Every path ends in exactly one `Effect::Reply`.
    pub(crate) fn on_request(&mut self, request: Request) {
        if let Err(error) = self.check_request(&request) {
            self.reply(request.id, Err(error));
            return;
        }
        let volume = request.volume;
        let behind = self
            .requests
            .held
            .get(&volume)
            .is_some_and(|held| !held.is_empty());
        if behind || self.must_hold(volume) || self.requests_at_bound() {
            self.hold(request);
        } else {
            self.admit(request);
        }
    }

    fn check_request(&self, request: &Request) -> Result<(), RequestError> {
        let volume = self
            .volumes
            .get(&request.volume)
            .ok_or(RequestError::Invalid)?;
        if volume.state.role != Role::Primary {
            return Err(RequestError::NotPrimary);
        }
        let (offset, length) = match &request.operation {
            Operation::Flush => return Ok(()),
            Operation::Write { offset, data, .. } => (*offset, data.len() as u64),
            Operation::Read { offset, length }
            | Operation::Discard { offset, length, .. }
            | Operation::WriteZeroes { offset, length, .. } => (*offset, u64::from(*length)),
        };
        let end = offset.checked_add(length).ok_or(RequestError::Invalid)?;
        if length == 0 || end > volume.bytes {
            return Err(RequestError::Invalid);
        }
        Ok(())
    }

    /// Whether new requests of a volume wait (state-machine.md 1.5).
    fn must_hold(&self, volume: VolumeNumber) -> bool {
        self.volumes.get(&volume).is_some_and(|volume| {
            let state = &volume.state;
            state.susp
                || state.susp_nod
                || state.susp_fen
                || !volume.io_holds.is_empty()
                || matches!(state.conn, ConnState::WFBitMapT | ConnState::WFSyncUUID)
                || matches!(state.disk, DiskState::Attaching | DiskState::Negotiating)
        })
    }

    fn requests_at_bound(&self) -> bool {
        let buffers = self
            .connection
            .net
            .as_ref()
            .map_or(u32::MAX, |net| net.max_buffers);
        self.requests.bytes_in_flight >= BYTES_IN_FLIGHT_MAX
            || self.requests.writes.len() + self.requests.reads.len() >= buffers as usize
    }

    fn hold(&mut self, request: Request) {
        let volume = request.volume;
        let held = self.requests.held.entry(volume).or_default();
        held.push_back(request);
        let full = held.len() >= HELD_MAX;
        let paused = self.requests.paused.entry(volume).or_insert(false);
        if full && !core::mem::replace(paused, full || *paused) {
            self.effects.push(Effect::PauseClients { volume });
        }
    }

    /// Lets held requests go on as far as they may. Called at the end of every event.
    pub(crate) fn release_held(&mut self) {
        if self.requests.held.is_empty() {
            return;
        }
        let volumes: Vec<VolumeNumber> = self.requests.held.keys().copied().collect();
        for volume in volumes {
            while !self.must_hold(volume) && !self.requests_at_bound() {
                let Some(held) = self.requests.held.get_mut(&volume) else {
                    break;
                };
                let Some(request) = held.pop_front() else {
                    self.requests.held.remove(&volume);
                    break;
                };
                match self.check_request(&request) {
                    Ok(()) => self.admit(request),
                    Err(error) => self.reply(request.id, Err(error)),
                }
            }
            let left = self.requests.held.get(&volume).map_or(0, VecDeque::len);
            if left < HELD_MAX / 2 && self.requests.paused.remove(&volume) == Some(true) {
                self.effects.push(Effect::ResumeClients { volume });
            }
        }
    }

    /// Fails every request of a volume that still waits to be admitted, as when the resource goes down by force.
    pub(crate) fn refuse_held(&mut self, volume: VolumeNumber, error: RequestError) {
        for request in self.requests.held.remove(&volume).unwrap_or_default() {
            self.reply(request.id, Err(error));
        }
    }

    fn admit(&mut self, request: Request) {
        let Request {
            id,
            volume,
            operation,
        } = request;
        match operation {
            Operation::Flush => self.admit_flush(id, volume),
            Operation::Read { offset, length } => {
                self.admit_read_span(id, volume, (offset, length));
            }
            Operation::Write { offset, data, fua } => {
                let length = data.len() as u32;
                let parts = split(offset, length, PART_BYTES_MAX);
                self.open_client(id, volume, parts.len());
                for (at, length) in parts {
                    let start = (at - offset) as usize;
                    let body = Body::Data(data.slice(start..start + length as usize));
                    self.admit_write(id, volume, at, length, body, fua);
                }
            }
            Operation::Discard {
                offset,
                length,
                fua,
            } => {
                self.admit_discard(id, volume, (offset, length), fua);
            }
            Operation::WriteZeroes {
                offset,
                length,
                fua,
                unmap,
            } => {
                self.admit_zeroes(id, volume, (offset, length), &Body::Zeroes(unmap), fua);
            }
        }
    }

    pub(crate) fn open_client(&mut self, id: RequestId, volume: VolumeNumber, parts: usize) {
        let client = Client {
            volume,
            parts_left: parts as u32,
            result: Ok(()),
            data: Vec::new(),
            window: None,
        };
        self.requests.clients.insert(id, client);
    }

    /// One part of a client's request ended; the last one is followed by the reply.
    pub(crate) fn part_done(
        &mut self,
        id: RequestId,
        part: usize,
        result: Result<Bytes, RequestError>,
    ) {
        let Some(client) = self.requests.clients.get_mut(&id) else {
            return;
        };
        match result {
            Ok(data) => {
                if !data.is_empty() {
                    let parts = client.data.len().max(part + 1);
                    client.data.resize(parts, Bytes::new());
                    if let Some(slot) = client.data.get_mut(part) {
                        *slot = data;
                    }
                }
            }
            Err(error) => client.result = Err(error),
        }
        client.parts_left -= 1;
        if client.parts_left > 0 {
            return;
        }
        if let Some(client) = self.requests.clients.remove(&id) {
            let result = client.result.map(|()| {
                let whole = join(client.data);
                match client.window {
                    // Whoever reads is given as much as was asked for: the parts were checked one by one.
                    Some(window) if window.end <= whole.len() => whole.slice(window),
                    _ => whole,
                }
            });
            self.reply(id, result);
        }
    }

    pub(crate) fn reply(&mut self, request: RequestId, result: Result<Bytes, RequestError>) {
        self.effects.push(Effect::Reply { request, result });
    }

    /// Clients' requests on this volume that are admitted and not answered (`ap` of the status).
    pub(crate) fn applications_open(&self, volume: VolumeNumber) -> u32 {
        self.requests
            .clients
            .values()
            .filter(|client| client.volume == volume)
            .count() as u32
    }

    /// Whether a write of this volume is in the transfer log, answered or not: a demotion waits for the peer's
    /// confirmations.
    pub(crate) fn writes_open(&self, volume: VolumeNumber) -> bool {
        self.requests
            .writes
            .values()
            .any(|write| write.volume == volume)
    }

    /// Whether an application write of this volume is admitted and not answered: whole-bitmap operations wait for them.
    pub(crate) fn application_writes_in_flight(&self, volume: VolumeNumber) -> bool {
        self.requests
            .writes
            .values()
            .any(|write| write.volume == volume && write.stage != Stage::Answered)
    }

    /// A local leg ended.
    pub(crate) fn request_io_done(
        &mut self,
        volume: VolumeNumber,
        io: Io,
        result: Result<Bytes, IoError>,
    ) {
        match io {
            Io::Write(id) => self.write_local_done(volume, id, result.map(|_| ())),
            Io::Read(id) => self.read_local_done(volume, id, result),
        }
    }

    /// Emits a data I/O and registers what waits for it.
    pub(crate) fn disk(
        &mut self,
        volume: VolumeNumber,
        what: Pending,
        operation: DiskOperation,
    ) -> Token {
        let token = self.token(what);
        self.effects.push(Effect::Disk {
            token,
            volume,
            operation,
        });
        token
    }
}

/// Cuts a range into pieces of at most `max` bytes that do not cross multiples of `max`.
fn split(offset: u64, length: u32, max: u32) -> impl ExactSizeIterator<Item = (u64, u32)> {
    let (max, end) = (u64::from(max), offset + u64::from(length));
    let pieces = end.div_ceil(max).saturating_sub(offset / max);
    (0..if length == 0 { 0 } else { pieces as usize }).map(move |piece| {
        let start = offset.max((offset / max + piece as u64) * max);
        let stop = end.min((offset / max + piece as u64 + 1) * max);
        (start, (stop - start) as u32)
    })
}

/// Joins the parts of a read; a single part is not copied.
fn join(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.pop().unwrap_or_default();
    }
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    for part in parts {
        whole.extend_from_slice(&part);
    }
    whole.freeze()
}
