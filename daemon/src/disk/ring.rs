//! Disk I/O through io_uring, on the loop's own thread.
//!
//! Invariants: memory that the kernel may touch lives in [`Ring::slots`] until its completion has been seen, whatever happens to the
//! loop; an open file lives as long as an operation on it; every operation completes exactly once; dropping the ring waits for
//! everything in flight.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use io_uring::{IoUring, opcode, squeue, types};
use tandem_replicator::Fua;
use tokio::io::unix::AsyncFd;

use super::backing::Device;
use super::pool::Block;

/// Entries of the submission queue: what one batch submits with one system call. More are pushed after a submit.
const ENTRIES: u32 = 256;

/// Completion entries: more than all operations that the engine's bounds allow to be in flight; beyond, the kernel keeps them
/// (feature NODROP).
const COMPLETIONS: u32 = 4096;

/// What the kernel may touch.
#[derive(Debug)]
pub(crate) enum Work {
    /// Fill the block.
    Read(Block),
    /// Write the bytes (aligned as the device wants them).
    Write(Bytes, Fua),
    /// Make completed writes durable.
    Flush,
}

struct Slot<T> {
    device: Arc<Device>,
    offset: u64,
    work: Work,
    /// Bytes that earlier, short operations have done.
    done: usize,
    tag: T,
}

/// A finished operation.
pub(crate) struct Finished<T> {
    /// What was passed to [`Ring::push`].
    pub(crate) tag: T,
    /// The block of a read, nothing for all else.
    pub(crate) result: io::Result<Option<Block>>,
}

/// The ring of one loop.
pub(crate) struct Ring<T> {
    ring: IoUring,
    wake: AsyncFd<OwnedFd>,
    slots: Vec<Option<Slot<T>>>,
    free: Vec<usize>,
    in_flight: usize,
    /// Operations for which the submission queue had no room, in order.
    backlog: VecDeque<usize>,
}

impl<T> Ring<T> {
    /// A ring that wakes this thread's tokio runtime. Fails where io_uring is switched off or too old.
    pub(crate) fn new() -> io::Result<Ring<T>> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_cqsize(COMPLETIONS)
            .build(ENTRIES)
            // Before Linux 6.0 there is no SINGLE_ISSUER.
            .or_else(|_| IoUring::builder().setup_cqsize(COMPLETIONS).build(ENTRIES))?;
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        for code in [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE] {
            if !probe.is_supported(code) {
                return Err(io::Error::from(io::ErrorKind::Unsupported));
            }
        }
        if !ring.params().is_feature_nodrop() {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        let event = rustix::event::eventfd(
            0,
            rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK,
        )?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        // SAFETY: `OwnedFd` keeps one descriptor open, always the same, until it is dropped with the `AsyncFd` that owns it.
        let wake =
            unsafe { AsyncFd::register_with_interest(event, tokio::io::Interest::READABLE) }?;
        Ok(Ring {
            ring,
            wake,
            slots: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            backlog: VecDeque::new(),
        })
    }

    /// Operations that have not been reaped.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Operations that have not been handed to the kernel.
    pub(crate) fn queued(&mut self) -> usize {
        self.ring.submission().len() + self.backlog.len()
    }

    /// Queues an operation. It reaches the kernel with the next [`Ring::submit`].
    pub(crate) fn push(&mut self, device: Arc<Device>, offset: u64, work: Work, tag: T) {
        let slot = Slot {
            device,
            offset,
            work,
            done: 0,
            tag,
        };
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        if let Some(place) = self.slots.get_mut(index) {
            *place = Some(slot);
        }
        self.in_flight += 1;
        self.enqueue(index);
    }

    /// Puts an operation into the submission queue, or behind it if there is no room.
    fn enqueue(&mut self, index: usize) {
        if !self.backlog.is_empty() || !self.try_push(index) {
            self.backlog.push_back(index);
        }
    }

    fn try_push(&mut self, index: usize) -> bool {
        let Some(Some(slot)) = self.slots.get_mut(index) else {
            return true;
        };
        let entry = entry_of(slot).user_data(index as u64);
        // SAFETY: the memory and the descriptor of `entry` belong to the slot, which stays in `slots` until its completion is
        // reaped, and `Drop` reaps everything before `slots` is freed.
        unsafe { self.ring.submission().push(&entry) }.is_ok()
    }

    fn fill(&mut self) {
        while let Some(index) = self.backlog.front().copied() {
            if !self.try_push(index) {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Hands everything queued to the kernel, with one system call unless there is more than the queue holds.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        loop {
            self.fill();
            if self.ring.submission().is_empty() {
                return Ok(());
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // The completion queue is full or memory is short: what has completed is reaped by the caller, then again.
                    Some(libc::EAGAIN | libc::EBUSY) => return Ok(()),
                    _ => return Err(error),
                },
            }
        }
    }

    /// Takes every completion that is there.
    pub(crate) fn reap(&mut self, finished: &mut Vec<Finished<T>>) {
        loop {
            let completion = self
                .ring
                .completion()
                .next()
                .map(|entry| (entry.user_data(), entry.result()));
            let Some((index, result)) = completion else {
                return;
            };
            self.complete(
                usize::try_from(index).unwrap_or(usize::MAX),
                result,
                finished,
            );
        }
    }

    fn complete(&mut self, index: usize, result: i32, finished: &mut Vec<Finished<T>>) {
        let Some(place) = self.slots.get_mut(index) else {
            return;
        };
        let Some(slot) = place.as_mut() else { return };
        match progress(slot, result) {
            Progress::Again => {
                self.enqueue(index);
            }
            Progress::Done(result) => {
                let Some(slot) = place.take() else { return };
                self.free.push(index);
                self.in_flight -= 1;
                let result = result.map(|()| match slot.work {
                    Work::Read(block) => Some(block),
                    Work::Write(..) | Work::Flush => None,
                });
                finished.push(Finished {
                    tag: slot.tag,
                    result,
                });
            }
        }
    }

    /// Registers for a wake-up if something is in flight; ready when completions may have come since the last call.
    pub(crate) fn poll_wake(&mut self, context: &mut std::task::Context<'_>) -> bool {
        let mut woken = false;
        if self.in_flight == 0 {
            return woken;
        }
        while let std::task::Poll::Ready(Ok(mut guard)) = self.wake.poll_read_ready(context) {
            let mut count = [0; 8];
            match rustix::io::read(guard.get_inner(), &mut count) {
                Ok(_) => woken = true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => guard.clear_ready(),
            }
        }
        woken
    }

    /// Waits for everything in flight.
    fn drain(&mut self) {
        let mut finished = Vec::new();
        while self.in_flight > 0 {
            self.fill();
            let _ = self.ring.submit_and_wait(1);
            self.reap(&mut finished);
            finished.clear();
        }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        self.drain();
    }
}

fn entry_of<T>(slot: &mut Slot<T>) -> squeue::Entry {
    let fd = types::Fd(slot.device.file.as_raw_fd());
    let done = slot.done;
    let at = slot.offset + done as u64;
    match &mut slot.work {
        Work::Read(block) => {
            let rest = block.len() - done;
            // A block is at most 32 MiB long.
            let pointer = block.pointer().wrapping_add(done);
            opcode::Read::new(fd, pointer, u32::try_from(rest).unwrap_or(u32::MAX))
                .offset(at)
                .build()
        }
        Work::Write(data, fua) => {
            let rest = data.get(done..).unwrap_or_default();
            let flags = match fua {
                Fua::Yes => libc::RWF_DSYNC,
                Fua::No => 0,
            };
            opcode::Write::new(
                fd,
                rest.as_ptr(),
                u32::try_from(rest.len()).unwrap_or(u32::MAX),
            )
            .offset(at)
            .rw_flags(flags)
            .build()
        }
        Work::Flush => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
    }
}

enum Progress {
    Again,
    Done(io::Result<()>),
}

/// What a result means: short reads and writes go on, interrupted ones start again.
fn progress<T>(slot: &mut Slot<T>, result: i32) -> Progress {
    let Ok(moved) = usize::try_from(result) else {
        return match -result {
            libc::EINTR | libc::EAGAIN => Progress::Again,
            errno => Progress::Done(Err(io::Error::from_raw_os_error(errno))),
        };
    };
    let length = match &slot.work {
        Work::Read(block) => block.len(),
        Work::Write(data, _) => data.len(),
        Work::Flush => return Progress::Done(Ok(())),
    };
    slot.done += moved;
    if slot.done >= length {
        Progress::Done(Ok(()))
    } else if moved == 0 {
        Progress::Done(Err(io::Error::from(io::ErrorKind::UnexpectedEof)))
    } else {
        Progress::Again
    }
}
