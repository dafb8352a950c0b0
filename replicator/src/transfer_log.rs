//! Epochs on the sending side (spec/state-machine.md 7.6, spec/wire-protocol.md 5.3): which write belongs to which epoch, when a
//! barrier is due, and which epoch a barrier acknowledgement is for.
//!
//! # Invariants
//!
//! * Every epoch with writes that were assigned and not acknowledged is known here; their numbers ascend.
//! * A barrier is sent at most once for an epoch, after its last write, and never for an epoch without a sent write: that would
//!   poison a kernel's receiver.
//! * Acknowledgements are taken in the order of the epochs only.
//!
//! ```text
//!   assign ──► (open) ──close──► (closed) ──last write sent──► barrier_due ──► barrier_sent ──► barrier_ack
//! ```

use alloc::collections::VecDeque;

/// Writes after which an epoch is closed unless `max-epoch-size` says otherwise.
pub const EPOCH_WRITES_DEFAULT: u32 = 2048;

/// An epoch. The number on the wire is its lower half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The number in P_BARRIER.
    pub fn wire(self) -> u32 {
        self.0 as u32
    }
}

/// A barrier acknowledgement that fits no epoch: the connection must be dropped (ProtocolError).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarrierMismatch {
    /// No barrier is unanswered.
    #[error("the peer acknowledged barrier {number} ({count} writes) but no barrier is unanswered")]
    NoneExpected {
        /// Number in the packet.
        number: u32,
        /// Count in the packet.
        count: u32,
    },
    /// It is not the one of the oldest unacknowledged epoch.
    #[error(
        "the peer acknowledged barrier {number} ({count} writes), expected barrier {number_expected} ({count_expected} writes)"
    )]
    Unexpected {
        /// Number in the packet.
        number: u32,
        /// Count in the packet.
        count: u32,
        /// Number of the oldest unacknowledged epoch.
        number_expected: u32,
        /// Its writes.
        count_expected: u32,
    },
}

#[derive(Clone, Copy, Debug)]
struct Record {
    epoch: Epoch,
    /// Writes assigned and not yet sent.
    queued: u32,
    /// Writes sent.
    sent: u32,
    barrier_sent: bool,
}

/// The epochs of one connection, all volumes together. Numbers go on over reconnects.
#[derive(Clone, Debug)]
pub struct SendEpochs {
    current: Epoch,
    /// Writes assigned to the current epoch.
    current_writes: u32,
    writes_max: u32,
    records: VecDeque<Record>,
}

impl SendEpochs {
    /// Begins with epoch `first`; an epoch is closed after `writes_max` writes (`max-epoch-size`, at least 1).
    pub fn new(first: Epoch, writes_max: u32) -> Self {
        Self {
            current: first,
            current_writes: 0,
            writes_max: writes_max.max(1),
            records: VecDeque::new(),
        }
    }

    /// Changes `max-epoch-size`.
    pub fn set_writes_max(&mut self, writes_max: u32) {
        self.writes_max = writes_max.max(1);
        if self.current_writes >= self.writes_max {
            self.close();
        }
    }

    /// The epoch that the next write gets.
    pub fn current(&self) -> Epoch {
        self.current
    }

    /// Writes assigned to the current epoch.
    pub fn current_writes(&self) -> u32 {
        self.current_writes
    }

    /// Gives a write that will be sent its epoch; ends with [`SendEpochs::sent`] or [`SendEpochs::cancelled`]. The epoch
    /// closes behind its last write.
    pub fn assign(&mut self) -> Epoch {
        let epoch = self.current;
        match self.records.back_mut() {
            Some(record) if record.epoch == epoch => record.queued += 1,
            _ => self.records.push_back(Record {
                epoch,
                queued: 1,
                sent: 0,
                barrier_sent: false,
            }),
        }
        self.current_writes += 1;
        if self.current_writes >= self.writes_max {
            self.close();
        }
        epoch
    }

    /// Closes the current epoch if it has writes; returns it.
    pub fn close(&mut self) -> Option<Epoch> {
        if self.current_writes == 0 {
            return None;
        }
        let closed = self.current;
        self.current = Epoch(closed.0.wrapping_add(1));
        self.current_writes = 0;
        self.forget_empty();
        Some(closed)
    }

    /// Closes the current epoch if it is `epoch`: a write of it was completed to the application, and later writes may
    /// depend on that.
    pub fn close_if_current(&mut self, epoch: Epoch) -> Option<Epoch> {
        if epoch == self.current {
            self.close()
        } else {
            None
        }
    }

    /// A write of `epoch` was handed to the socket.
    pub fn sent(&mut self, epoch: Epoch) {
        if let Some(record) = self.record(epoch) {
            record.queued = record.queued.saturating_sub(1);
            record.sent += 1;
        }
    }

    /// A write of `epoch` will not be sent after all.
    pub fn cancelled(&mut self, epoch: Epoch) {
        if let Some(record) = self.record(epoch) {
            record.queued = record.queued.saturating_sub(1);
        }
        self.forget_empty();
    }

    /// The epoch whose barrier must be sent now, before any packet of a newer epoch, or because the socket is idle: it is
    /// closed and all its writes were sent. Ask again after [`SendEpochs::barrier_sent`].
    pub fn barrier_due(&self) -> Option<Epoch> {
        let record = self.records.iter().find(|record| !record.barrier_sent)?;
        let complete = record.epoch < self.current && record.queued == 0 && record.sent > 0;
        complete.then_some(record.epoch)
    }

    /// The barrier of `epoch` was handed to the socket.
    pub fn barrier_sent(&mut self, epoch: Epoch) {
        if let Some(record) = self.record(epoch) {
            record.barrier_sent = true;
        }
    }

    /// P_BARRIER_ACK came. Returns the epoch that is acknowledged.
    ///
    /// # Errors
    /// [`BarrierMismatch`]: the peer did not follow the protocol.
    pub fn barrier_ack(&mut self, number: u32, count: u32) -> Result<Epoch, BarrierMismatch> {
        match self.records.front() {
            Some(record) if record.barrier_sent => {
                if record.epoch.wire() != number || record.sent != count {
                    return Err(BarrierMismatch::Unexpected {
                        number,
                        count,
                        number_expected: record.epoch.wire(),
                        count_expected: record.sent,
                    });
                }
                let epoch = record.epoch;
                self.records.pop_front();
                Ok(epoch)
            }
            _ => Err(BarrierMismatch::NoneExpected { number, count }),
        }
    }

    /// The connection is lost: no epoch of it will be acknowledged. Every write without barrier acknowledgement is the
    /// caller's to mark out of sync, or to assign and send again. Numbers go on.
    pub fn connection_lost(&mut self) {
        self.close();
        self.records.clear();
    }

    /// The newest epoch with a write that was assigned and not acknowledged: what a flush that comes now waits for, after
    /// [`SendEpochs::close`].
    pub fn newest_unacknowledged(&self) -> Option<Epoch> {
        self.records.back().map(|record| record.epoch)
    }

    /// The oldest such epoch.
    pub fn oldest_unacknowledged(&self) -> Option<Epoch> {
        self.records.front().map(|record| record.epoch)
    }

    /// Whether no write of `epoch` or of an older one is without acknowledgement.
    pub fn is_acknowledged(&self, epoch: Epoch) -> bool {
        self.oldest_unacknowledged()
            .is_none_or(|oldest| epoch < oldest)
    }

    /// Epochs with writes that are not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.records.len()
    }

    fn record(&mut self, epoch: Epoch) -> Option<&mut Record> {
        let index = self
            .records
            .binary_search_by_key(&epoch, |record| record.epoch)
            .ok()?;
        self.records.get_mut(index)
    }

    /// Epochs that are closed and of which nothing was or will be sent get no barrier.
    fn forget_empty(&mut self) {
        let current = self.current;
        self.records
            .retain(|record| record.epoch >= current || record.queued > 0 || record.sent > 0);
    }
}
