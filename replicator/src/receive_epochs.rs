//! Epochs on the receiving side (spec/wire-protocol.md 5.5): when the writes of an epoch are on stable storage and its barrier may
//! be acknowledged.
//!
//! # Invariants
//!
//! * A barrier is acknowledged only when every write of its epoch is done (its own acknowledgement sent) and a flush of every
//!   device written, started after that, succeeded; and only after every earlier barrier.
//! * Between two nodes that do not overlap epochs, no write of the next epoch starts before that.
//! * A failed flush is never followed by an acknowledgement: the sender must find its writes unacknowledged and mark
//!   them out of sync.
//!
//! ```text
//!   write ──► (open) ──barrier──► (closed) ──last write done──► (complete) ──flush──► (stable) ──► acknowledged
//! ```

use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;

/// Closed epochs that may wait for their acknowledgement while newer writes are received (overlapping mode). Each costs a
/// few words; the sender's writes in flight are bounded elsewhere.
pub const EPOCHS_WAITING_MAX: usize = 64;

/// What may happen while an epoch is not yet acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// Nothing of the next epoch is handled: what a kernel's sender relies on.
    Drain,
    /// Writes of the next epochs start; one flush may cover several epochs. Only between nodes that agreed on it.
    Overlapped,
}

/// How writes become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordering {
    /// The devices are flushed: the default.
    Flush,
    /// Waiting for completions is enough (`disk-flushes no`): the administrator vouches for the disk's cache.
    Drain,
}

/// Names an epoch being received, in ascending order; not the number of its barrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReceiveEpoch(pub u64);

/// What to do next; every answer is given once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Flush these volumes' devices, then call [`ReceiveEpochs::flushed`].
    Flush {
        /// Numbers of the volumes, ascending.
        volumes: Vec<u16>,
    },
    /// Send P_BARRIER_ACK.
    Acknowledge {
        /// Number of the barrier.
        number: u32,
        /// Writes of the epoch.
        count: u32,
    },
}

/// What a barrier did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierReceived {
    /// The epoch is closed and will be acknowledged.
    Closed,
    /// It held no write: no answer is sent, as the protocol wants it.
    Empty,
}

/// How a flush ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushOutcome {
    /// Everything written before it is on stable storage.
    Stable,
    /// At least one device failed. Nothing is acknowledged any more: the connection must be dropped.
    Failed,
}

#[derive(Clone, Debug, Default)]
struct Record {
    epoch: ReceiveEpoch,
    /// Writes received.
    count: u32,
    /// Writes whose acknowledgement was not sent yet.
    active: u32,
    volumes: BTreeSet<u16>,
    /// Number of the barrier that closed it.
    barrier: Option<u32>,
    stable: bool,
}

impl Record {
    fn is_complete(&self) -> bool {
        self.barrier.is_some() && self.active == 0
    }
}

/// The epochs of one connection, all volumes together. A new one begins with every connection.
#[derive(Clone, Debug)]
pub struct ReceiveEpochs {
    overlap: Overlap,
    ordering: Ordering,
    /// Oldest first; the last one is open.
    records: VecDeque<Record>,
    /// Epochs up to this one are covered by the flush in flight.
    flushing: Option<ReceiveEpoch>,
    failed: bool,
}

impl ReceiveEpochs {
    /// Nothing received yet.
    pub fn new(overlap: Overlap, ordering: Ordering) -> Self {
        let mut records = VecDeque::new();
        records.push_back(Record::default());
        Self {
            overlap,
            ordering,
            records,
            flushing: None,
            failed: false,
        }
    }

    /// Whether the next packet of the data socket may be handled. If not: ask again when a write is done, a flush ended, or an
    /// acknowledgement was sent.
    pub fn may_receive(&self) -> bool {
        let waiting = self.records.len() - 1;
        match self.overlap {
            Overlap::Drain => waiting == 0,
            Overlap::Overlapped => waiting < EPOCHS_WAITING_MAX,
        }
    }

    /// A write (P_DATA, P_TRIM, P_ZEROES, P_WSAME) was received for `volume`, also one that is going to be refused. Ends with
    /// [`ReceiveEpochs::done`].
    pub fn write(&mut self, volume: u16) -> ReceiveEpoch {
        let open = self.open();
        open.count += 1;
        open.active += 1;
        open.volumes.insert(volume);
        open.epoch
    }

    /// A write of `epoch` is finished, and its acknowledgement, if it gets one, is on its way to the socket.
    pub fn done(&mut self, epoch: ReceiveEpoch) {
        if let Ok(index) = self
            .records
            .binary_search_by_key(&epoch, |record| record.epoch)
        {
            let record = &mut self.records[index];
            record.active = record.active.saturating_sub(1);
        }
    }

    /// P_BARRIER came.
    pub fn barrier(&mut self, number: u32) -> BarrierReceived {
        let open = self.open();
        if open.count == 0 {
            return BarrierReceived::Empty;
        }
        open.barrier = Some(number);
        let next = ReceiveEpoch(open.epoch.0 + 1);
        self.records.push_back(Record {
            epoch: next,
            ..Record::default()
        });
        BarrierReceived::Closed
    }

    /// What to do now; none while a flush is awaited or writes are active. Ask until it is none.
    pub fn next_step(&mut self) -> Option<NextStep> {
        if self.failed {
            return None;
        }
        let oldest = self.records.front()?;
        let durable = oldest.stable || self.ordering == Ordering::Drain;
        if let (true, Some(number)) = (durable && oldest.is_complete(), oldest.barrier) {
            let count = oldest.count;
            self.records.pop_front();
            return Some(NextStep::Acknowledge { number, count });
        }
        if self.flushing.is_some() || !oldest.is_complete() {
            return None;
        }
        // One flush covers every epoch that is complete by now, up to the first one that is not: acknowledgements
        // behind that one would have to wait for it anyway.
        let mut volumes = BTreeSet::new();
        let mut through = oldest.epoch;
        for record in self
            .records
            .iter()
            .take_while(|record| record.is_complete())
        {
            volumes.extend(record.volumes.iter().copied());
            through = record.epoch;
        }
        self.flushing = Some(through);
        Some(NextStep::Flush {
            volumes: volumes.into_iter().collect(),
        })
    }

    /// The flush asked for by [`ReceiveEpochs::next_step`] ended on every device.
    pub fn flushed(&mut self, outcome: FlushOutcome) {
        let Some(through) = self.flushing.take() else {
            return;
        };
        match outcome {
            FlushOutcome::Stable => {
                for record in self
                    .records
                    .iter_mut()
                    .take_while(|record| record.epoch <= through)
                {
                    record.stable = true;
                }
            }
            FlushOutcome::Failed => self.failed = true,
        }
    }

    /// A flush failed: the connection must be dropped.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Writes received that are not done.
    pub fn active_writes(&self) -> u64 {
        self.records
            .iter()
            .map(|record| u64::from(record.active))
            .sum()
    }

    /// Closed epochs that are not acknowledged.
    pub fn waiting(&self) -> usize {
        self.records.len() - 1
    }

    fn open(&mut self) -> &mut Record {
        let last = self.records.len() - 1;
        &mut self.records[last]
    }
}
