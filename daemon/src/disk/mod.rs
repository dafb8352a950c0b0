//! The disks of one resource: effects in, completions out.
//!
//! Every token that is handed in comes back exactly once: as a completion, or, if the loop ends first, it is dropped together with the
//! engine that waits for it.

pub(crate) mod backing;
mod helper;
mod inline;
#[allow(
    unsafe_code,
    reason = "ioctls without words in rustix; each call has its proof"
)]
mod ioctl;
pub(crate) mod layout;
#[allow(unsafe_code, reason = "aligned memory; each use has its proof")]
pub(crate) mod pool;
#[allow(
    unsafe_code,
    reason = "memory shared with the kernel; the proof is at its one push"
)]
mod ring;

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::task::Context;

use bytes::Bytes;
use tandem_replicator::{
    BackingInfo, DiskOperation, Event, Fua, IoError, MetaOperation, OpenError, Token, Unmap,
    VolumeNumber,
};

use backing::{Backing, BackingPaths, Device, Where};
use helper::Helper;
use layout::{Looked, Piece};
use pool::{Block, Pool, is_aligned};
use ring::{Finished, Ring, Work};

/// Threads for discards, zeroing, opening and closing.
const HELPERS_WITH_RING: usize = 2;

/// Threads when they do all I/O because io_uring is not to be had.
const HELPERS_WITHOUT_RING: usize = 8;

/// Longest single I/O in bytes that is accepted: the wire's largest discard (wire-protocol.md 10.1).
const OPERATION_BYTES_MAX: u32 = 128 << 20;

/// I/O on a memory filesystem that is done before what came of it is told: the peer, and clients, go on with the first answers while the
/// others are still worked on.
const INLINE_MAX: usize = 16;

/// Shortest hole that is made in metadata: shorter ones would cut the file into more pieces than they save.
const HOLE_BYTES_MIN: usize = 64 << 10;

/// Looks that may wait for a disk. Whoever asks beyond them is told that all is data.
const LOOKS_MAX: usize = 1024;

/// Beyond so many looks no range is read ahead.
const READ_AHEADS_MAX: usize = 16;

/// What one hint reads at most.
const READ_AHEAD_BYTES_MAX: u64 = 32 << 20;

/// Which of the two event kinds answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Area {
    Data,
    Meta,
}

/// Who waits for an operation, and what to say if it fails.
#[derive(Debug)]
struct Ticket {
    token: Token,
    area: Area,
    verb: &'static str,
    offset: u64,
    length: u64,
    device: Arc<Device>,
}

/// What a helper thread brings back.
enum Helped {
    Io(Ticket, io::Result<Option<Block>>),
    /// A transfer that was looked at first, and whether it finds nothing but a hole.
    Looked(Ticket, Transfer, bool),
    Opened(Token, VolumeNumber, Result<Backing, OpenError>),
    Measured(Token, VolumeNumber, Result<Backing, OpenError>),
    Closed(Token),
}

/// Which way I/O goes; the tests try all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// The ring if it can be had.
    Best,
    /// Threads only.
    #[cfg(test)]
    Threads,
}

/// The disks of one resource.
pub(crate) struct Disks {
    pool: Pool,
    ring: Option<Ring<Ticket>>,
    helper: Helper<Helped>,
    /// I/O on memory filesystems, which the loop's thread does itself in [`Disks::submit`].
    inline: VecDeque<(Ticket, Inline)>,
    backings: BTreeMap<VolumeNumber, Backing>,
    events: VecDeque<Event>,
    finished: Vec<Finished<Ticket>>,
    /// Looks at layouts, apart from what the engine waits for.
    looker: Helper<Looked>,
    /// Looks that have not come back.
    looks: usize,
    /// Layouts that were asked for, with the askers' numbers.
    layouts: Vec<(u64, Vec<Piece>)>,
}

impl Disks {
    /// Disks without any device. Must be called on the thread and in the runtime of the loop.
    pub(crate) fn new(resource: &str, engine: Engine) -> io::Result<Disks> {
        let ring = match engine {
            Engine::Best => Ring::new()
                .inspect_err(|error| {
                    tracing::warn!(%error, "no io_uring here: disk I/O goes through threads");
                })
                .ok(),
            #[cfg(test)]
            Engine::Threads => None,
        };
        let threads = if ring.is_some() {
            HELPERS_WITH_RING
        } else {
            HELPERS_WITHOUT_RING
        };
        Ok(Disks {
            pool: Pool::new(),
            ring,
            helper: Helper::new(resource, threads)?,
            inline: VecDeque::new(),
            backings: BTreeMap::new(),
            events: VecDeque::new(),
            finished: Vec::new(),
            looker: Helper::new(resource, 1)?,
            looks: 0,
            layouts: Vec::new(),
        })
    }

    /// The pool of aligned blocks, for payloads.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What is open for a volume.
    pub(crate) fn info(&self, volume: VolumeNumber) -> Option<BackingInfo> {
        self.backings.get(&volume).map(Backing::info)
    }

    /// Operations that have not been answered.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.helper.waiting()
            + self.inline.len()
            + self.events.len()
            + self.ring.as_ref().map_or(0, Ring::in_flight)
    }

    /// Opens and locks a backing device.
    pub(crate) fn open(&mut self, token: Token, volume: VolumeNumber, paths: Option<BackingPaths>) {
        match paths {
            Some(paths) => {
                self.helper
                    .run(move || Helped::Opened(token, volume, Backing::open(&paths)));
            }
            None => {
                let text = format!("volume {} has no disk in the configuration", volume.0);
                let result = Err(OpenError { number: 104, text });
                self.events
                    .push_back(Event::BackingOpened { token, result });
            }
        }
    }

    /// Measures an open backing device again.
    pub(crate) fn measure(&mut self, token: Token, volume: VolumeNumber) {
        match self.backings.get(&volume).cloned() {
            Some(backing) => self
                .helper
                .run(move || Helped::Measured(token, volume, backing.measured())),
            None => {
                let text = format!("volume {} has no open backing device", volume.0);
                let result = Err(OpenError { number: 104, text });
                self.events
                    .push_back(Event::BackingOpened { token, result });
            }
        }
    }

    /// Closes it.
    pub(crate) fn close(&mut self, token: Token, volume: VolumeNumber) {
        let backing = self.backings.remove(&volume);
        self.helper.run(move || {
            // The last close of a device may wait for the device: not on the loop's thread.
            drop(backing);
            Helped::Closed(token)
        });
    }

    /// Starts an I/O on data.
    pub(crate) fn data(&mut self, token: Token, volume: VolumeNumber, operation: DiskOperation) {
        let Some(backing) = self.backings.get(&volume) else {
            self.refuse(
                token,
                Area::Data,
                format!("volume {} has no open backing device", volume.0),
            );
            return;
        };
        let device = Arc::clone(&backing.data);
        self.start(
            token,
            Area::Data,
            device,
            (0, backing.data_bytes),
            operation,
        );
    }

    /// Starts an I/O on metadata.
    pub(crate) fn meta(&mut self, token: Token, volume: VolumeNumber, operation: MetaOperation) {
        let Some(backing) = self.backings.get(&volume) else {
            self.refuse(
                token,
                Area::Meta,
                format!("volume {} has no open metadata device", volume.0),
            );
            return;
        };
        let device = Arc::clone(&backing.meta);
        let window = (backing.meta_base, backing.meta_bytes);
        let operation = match operation {
            MetaOperation::Read { offset, length } => DiskOperation::Read { offset, length },
            MetaOperation::Write {
                offset,
                data,
                fua: Fua::No,
            } if device.sparse && becomes_a_hole(&data) => DiskOperation::Zero {
                offset,
                length: u32::try_from(data.len()).unwrap_or(u32::MAX),
                unmap: Unmap::Allowed,
                fua: Fua::No,
            },
            MetaOperation::Write { offset, data, fua } => {
                DiskOperation::Write { offset, data, fua }
            }
            MetaOperation::Flush => DiskOperation::Flush,
        };
        self.start(token, Area::Meta, device, window, operation);
    }

    /// Finds out where the data and the holes of a range are; [`Disks::layouts`] tells. Without a disk, or with too much to find out
    /// already, all is data.
    pub(crate) fn layout(
        &mut self,
        asker: u64,
        volume: VolumeNumber,
        (start, length): (u64, u64),
        limit: usize,
    ) {
        match self.seen(volume) {
            Some(file) if self.looks < LOOKS_MAX => {
                self.looks += 1;
                self.looker.run(move || {
                    Looked::Layout(asker, layout::pieces(&file, start, length, limit))
                });
            }
            _ => self.layouts.push((
                asker,
                vec![Piece {
                    length,
                    hole: false,
                }],
            )),
        }
    }

    /// Whether layouts are known that nobody has taken.
    pub(crate) fn has_layouts(&self) -> bool {
        !self.layouts.is_empty()
    }

    /// Layouts that are known now.
    pub(crate) fn layouts(&mut self) -> Vec<(u64, Vec<Piece>)> {
        std::mem::take(&mut self.layouts)
    }

    /// Has the beginning of a range read into the cache, if there is one. A hint: where there is much to do, nothing is done.
    pub(crate) fn read_ahead(&mut self, volume: VolumeNumber, start: u64, length: u64) {
        let cached = |backing: &Backing| backing.data.align == 1;
        if self.looks < READ_AHEADS_MAX
            && self.backings.get(&volume).is_some_and(cached)
            && let Some(file) = self.seen(volume)
        {
            self.looks += 1;
            self.looker.run(move || {
                layout::read_ahead(&file, start, length.min(READ_AHEAD_BYTES_MAX));
                Looked::ReadAhead
            });
        }
    }

    /// Whether zeroes cost the disk less than data of that length; `None` without a disk.
    pub(crate) fn fast_zero(&self, volume: VolumeNumber) -> Option<bool> {
        Some(self.backings.get(&volume)?.data.fast_zero)
    }

    fn seen(&self, volume: VolumeNumber) -> Option<Arc<File>> {
        self.backings.get(&volume)?.data.view.clone()
    }

    fn refuse(&mut self, token: Token, area: Area, text: String) {
        self.events
            .push_back(event(token, area, Err(IoError { text })));
    }

    fn start(
        &mut self,
        token: Token,
        area: Area,
        device: Arc<Device>,
        (base, size): (u64, u64),
        operation: DiskOperation,
    ) {
        let (verb, offset, length) = extent(&operation);
        let inside = offset.checked_add(length).is_some_and(|end| end <= size);
        if !inside || length > u64::from(OPERATION_BYTES_MAX) {
            let text = format!(
                "{verb} of {length} bytes at offset {offset} on {}: outside the device ({size} bytes)",
                device.path
            );
            return self.refuse(token, area, text);
        }
        let ticket = Ticket {
            token,
            area,
            verb,
            offset: base + offset,
            length,
            device,
        };
        match operation {
            DiskOperation::Read { length, .. } => self.transfer(ticket, Transfer::Read(length)),
            DiskOperation::Write { data, fua, .. } => {
                self.transfer(ticket, Transfer::Write(data, fua));
            }
            DiskOperation::Flush => self.transfer(ticket, Transfer::Flush),
            DiskOperation::Discard { fua, .. } => self.zero(ticket, Unmap::Allowed, fua),
            DiskOperation::Zero { unmap, fua, .. } => self.zero(ticket, unmap, fua),
        }
    }

    fn transfer(&mut self, ticket: Ticket, transfer: Transfer) {
        let device = Arc::clone(&ticket.device);
        if device.place == Where::Memory {
            self.inline.push_back((ticket, Inline::Transfer(transfer)));
        } else if self.ring.is_some() && transfer.may_meet_a_hole(&ticket) {
            self.helper.run(move || {
                let hole = layout::is_hole(&device.file, ticket.offset, ticket.length);
                Helped::Looked(ticket, transfer, hole)
            });
        } else {
            self.begin(ticket, transfer);
        }
    }

    fn begin(&mut self, ticket: Ticket, transfer: Transfer) {
        let device = Arc::clone(&ticket.device);
        match &mut self.ring {
            Some(ring) => {
                let work = match transfer {
                    Transfer::Read(length) => Work::Read(self.pool.block(length as usize)),
                    Transfer::Write(data, fua) => {
                        Work::Write(aligned(&self.pool, data, device.align), fua)
                    }
                    Transfer::Flush => Work::Flush,
                };
                ring.push(device, ticket.offset, work, ticket);
            }
            None => {
                let pool = self.pool.clone();
                self.helper.run(move || {
                    let result = transfer.run(&ticket, &pool);
                    Helped::Io(ticket, result)
                });
            }
        }
    }

    fn zero(&mut self, ticket: Ticket, unmap: Unmap, fua: Fua) {
        if ticket.device.place == Where::Memory {
            self.inline.push_back((ticket, Inline::Zero(unmap, fua)));
            return;
        }
        let pool = self.pool.clone();
        self.helper.run(move || {
            let result = Inline::Zero(unmap, fua).run(&ticket, &pool);
            Helped::Io(ticket, result)
        });
    }

    /// Hands everything started to the kernel, or does the next of it where the medium is memory ([`Disks::has_more`] tells whether some is
    /// left), and looks at what has completed already.
    ///
    /// # Errors
    /// The ring itself is broken: nothing can be said about what is in it. Going on would hang the writes of applications without a
    /// word, so the loop must end, as in a crash.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        let now = self.inline.len().min(INLINE_MAX);
        for (ticket, work) in self.inline.drain(..now) {
            let result = work.run(&ticket, &self.pool);
            self.events.push_back(answer(ticket, result));
        }
        while let Some(ring) = &mut self.ring {
            let before = ring.queued();
            ring.submit()?;
            let left = ring.queued();
            self.reap();
            if left == 0 || left == before {
                break;
            }
        }
        Ok(())
    }

    fn reap(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        ring.reap(&mut self.finished);
        for finished in self.finished.drain(..) {
            self.events.push_back(answer(finished.tag, finished.result));
        }
    }

    /// Registers for wake-ups and collects completions.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) {
        if self
            .ring
            .as_mut()
            .is_some_and(|ring| ring.poll_wake(context))
        {
            self.reap();
        }
        while let std::task::Poll::Ready(looked) = self.looker.poll(context) {
            self.looks -= 1;
            if let Looked::Layout(asker, pieces) = looked {
                self.layouts.push((asker, pieces));
            }
        }
        while let std::task::Poll::Ready(helped) = self.helper.poll(context) {
            let event = match helped {
                Helped::Io(ticket, result) => answer(ticket, result),
                Helped::Looked(ticket, _, true) => answer(ticket, Ok(None)),
                Helped::Looked(ticket, transfer, false) => {
                    self.begin(ticket, transfer);
                    continue;
                }
                Helped::Closed(token) => Event::BackingClosed { token },
                Helped::Opened(token, volume, Ok(backing))
                | Helped::Measured(token, volume, Ok(backing)) => {
                    let info = backing.info();
                    self.backings.insert(volume, backing);
                    Event::BackingOpened {
                        token,
                        result: Ok(info),
                    }
                }
                Helped::Opened(token, _, Err(error)) | Helped::Measured(token, _, Err(error)) => {
                    Event::BackingOpened {
                        token,
                        result: Err(error),
                    }
                }
            };
            self.events.push_back(event);
        }
        if self.ring.as_mut().is_some_and(|ring| ring.queued() > 0) {
            // Transfers that were looked at first, short ones that go on, or a submission that the kernel put off: another turn
            // submits them.
            context.waker().wake_by_ref();
        }
    }

    /// Whether [`Disks::submit`] has left something to do.
    pub(crate) fn has_more(&self) -> bool {
        !self.inline.is_empty()
    }

    /// The next completion.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

/// I/O with a payload.
enum Transfer {
    Read(u32),
    Write(Bytes, Fua),
    Flush,
}

impl Transfer {
    /// Metadata of a sparse file are mostly hole: its bitmap, until something is out of sync.
    fn may_meet_a_hole(&self, ticket: &Ticket) -> bool {
        let read = matches!(self, Transfer::Read(_));
        read && ticket.area == Area::Meta && ticket.device.sparse
    }

    fn run(self, ticket: &Ticket, pool: &Pool) -> io::Result<Option<Block>> {
        let device = &ticket.device;
        if self.may_meet_a_hole(ticket)
            && layout::is_hole(&device.file, ticket.offset, ticket.length)
        {
            return Ok(None);
        }
        match self {
            Transfer::Read(length) => {
                inline::read(device, pool, ticket.offset, length as usize).map(Some)
            }
            Transfer::Write(data, fua) => {
                inline::write(device, pool, ticket.offset, &data, fua).map(|()| None)
            }
            Transfer::Flush => inline::flush(&device.file).map(|()| None),
        }
    }
}

/// I/O that one thread does from end to end.
enum Inline {
    Transfer(Transfer),
    Zero(Unmap, Fua),
}

impl Inline {
    fn run(self, ticket: &Ticket, pool: &Pool) -> io::Result<Option<Block>> {
        match self {
            Inline::Transfer(transfer) => transfer.run(ticket, pool),
            Inline::Zero(unmap, fua) => {
                let range = (ticket.offset, ticket.length);
                inline::zero(&ticket.device, pool, range, unmap, fua).map(|()| None)
            }
        }
    }
}

/// A long run of clear pages of a bitmap is given back: it takes no room, and the next attach need not read it.
fn becomes_a_hole(data: &[u8]) -> bool {
    data.len() >= HOLE_BYTES_MIN && data.iter().all(|byte| *byte == 0)
}

fn aligned(pool: &Pool, data: Bytes, align: usize) -> Bytes {
    if is_aligned(&data, align) {
        data
    } else {
        pool.copy(&data).freeze()
    }
}

fn extent(operation: &DiskOperation) -> (&'static str, u64, u64) {
    match operation {
        DiskOperation::Read { offset, length } => ("read", *offset, u64::from(*length)),
        DiskOperation::Write { offset, data, .. } => ("write", *offset, data.len() as u64),
        DiskOperation::Discard { offset, length, .. } => ("discard", *offset, u64::from(*length)),
        DiskOperation::Zero { offset, length, .. } => ("zero", *offset, u64::from(*length)),
        DiskOperation::Flush => ("flush", 0, 0),
    }
}

fn answer(ticket: Ticket, result: io::Result<Option<Block>>) -> Event {
    let result = match result {
        Ok(Some(block)) => Ok(block.freeze()),
        Ok(None) => Ok(Bytes::new()),
        Err(error) => Err(IoError {
            text: words(&ticket, &error),
        }),
    };
    event(ticket.token, ticket.area, result)
}

fn words(ticket: &Ticket, error: &io::Error) -> String {
    let Ticket {
        verb,
        offset,
        length,
        device,
        ..
    } = ticket;
    if *verb == "flush" {
        format!("flush of {}: {error}", device.path)
    } else {
        format!(
            "{verb} of {length} bytes at offset {offset} on {}: {error}",
            device.path
        )
    }
}

fn event(token: Token, area: Area, result: Result<Bytes, IoError>) -> Event {
    match area {
        Area::Data => Event::DiskDone { token, result },
        Area::Meta => Event::MetaDone { token, result },
    }
}

#[cfg(test)]
mod tests;
