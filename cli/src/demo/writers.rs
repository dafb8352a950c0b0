//! Clients that write stamped blocks over several connections until they are told to stop or the server is gone, and
//! clients that read everything back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::nbd_client::{NbdClient, NbdError};
use super::stamps::{BLOCK, Findings, Record, Versions, fill};

/// Writes in flight on each connection.
const DEPTH: usize = 8;

/// Bytes of one read when everything is read back.
const READ_BYTES: usize = 256 << 10;

/// How a writer ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its blocks as they are now.
    blocks: Vec<(usize, Versions)>,
    /// Writes that were sent and never answered.
    pub(crate) in_flight: usize,
    /// Why it ended, unless it was told to.
    pub(crate) error: Option<NbdError>,
}

/// Running writers.
#[derive(Debug)]
pub(crate) struct Writers {
    threads: Vec<JoinHandle<Result<Ended, NbdError>>>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
}

/// A small generator for the choice of blocks.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The bound is a count of blocks in memory.
        usize::try_from(self.0 % bound.max(1) as u64).unwrap_or(0)
    }
}

impl Writers {
    /// Starts `connections` writers on the blocks `first..end`; each block belongs to one of them.
    pub(crate) fn start(
        uri: &str,
        record: &Record,
        (first, end): (usize, usize),
        connections: usize,
    ) -> Result<Writers, NbdError> {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        for number in 0..connections {
            let client = NbdClient::connect(uri)?;
            let blocks = (first..end)
                .filter(|block| block % connections == number)
                .filter_map(|block| Some((block, *record.blocks.get(block)?)))
                .collect();
            let writer = Writer {
                client,
                seed: record.seed,
                blocks,
                flying: Vec::new(),
                dice: Dice(record.seed ^ (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
                stop: Arc::clone(&stop),
                acknowledged: Arc::clone(&acknowledged),
            };
            threads.push(std::thread::spawn(move || writer.run()));
        }
        Ok(Writers {
            threads,
            stop,
            acknowledged,
        })
    }

    /// Writes acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Whether every writer has ended by itself: the server is gone.
    pub(crate) fn all_ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Tells the writers to stop, waits for them, and writes down what they know.
    pub(crate) fn stop(self, record: &mut Record) -> Result<Vec<Ended>, NbdError> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for thread in self.threads {
            let ended = thread
                .join()
                .map_err(|_| NbdError::Protocol("a writer panicked".to_owned()))??;
            for (block, versions) in &ended.blocks {
                record.blocks[*block] = *versions;
            }
            all.push(ended);
        }
        Ok(all)
    }
}

struct Writer {
    client: NbdClient,
    seed: u64,
    blocks: Vec<(usize, Versions)>,
    /// Indices of blocks with a write in flight.
    flying: Vec<usize>,
    dice: Dice,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self) -> Result<Ended, NbdError> {
        let error = match self.write_until_told() {
            Ok(()) => {
                self.client.disconnect();
                None
            }
            // A connection that breaks is what the demo is about; a request that fails is not.
            Err(error @ NbdError::Io(_)) => Some(error),
            Err(error) => return Err(error),
        };
        Ok(Ended {
            blocks: self.blocks,
            in_flight: self.flying.len(),
            error,
        })
    }

    fn write_until_told(&mut self) -> Result<(), NbdError> {
        while !self.stop.load(Ordering::Relaxed) && !self.blocks.is_empty() {
            while self.flying.len() < DEPTH.min(self.blocks.len()) {
                self.send()?;
            }
            self.receive()?;
        }
        while !self.flying.is_empty() {
            self.receive()?;
        }
        self.client.flush()
    }

    fn send(&mut self) -> Result<(), NbdError> {
        let mut index = self.dice.below(self.blocks.len());
        while self.flying.contains(&index) {
            index = (index + 1) % self.blocks.len();
        }
        let (block, versions) = &mut self.blocks[index];
        versions.sent += 1;
        let mut data = vec![0; BLOCK];
        fill(&mut data, self.seed, *block as u64, versions.sent);
        self.flying.push(index);
        let offset = *block as u64 * BLOCK as u64;
        self.client.send_write(index as u64, offset, &data)
    }

    fn receive(&mut self) -> Result<(), NbdError> {
        let answer = self.client.answer()?;
        let at = self
            .flying
            .iter()
            .position(|index| *index as u64 == answer.handle)
            .ok_or_else(|| NbdError::Protocol(format!("answer to request {}", answer.handle)))?;
        if answer.error != 0 {
            return Err(NbdError::Request(answer.error));
        }
        let index = self.flying.swap_remove(at);
        let versions = &mut self.blocks[index].1;
        versions.acknowledged = versions.sent;
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Reads the whole device over several connections and compares every block.
pub(crate) fn read_back(
    uri: &str,
    record: &Record,
    connections: usize,
) -> Result<Findings, NbdError> {
    let end = record.blocks.len() * BLOCK;
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..connections)
            .map(|number| {
                scope.spawn(move || -> Result<Findings, NbdError> {
                    let mut client = NbdClient::connect(uri)?;
                    let mut findings = Findings::default();
                    let mut buffer = vec![0; READ_BYTES];
                    for at in (number * READ_BYTES..end).step_by(READ_BYTES * connections) {
                        let part = &mut buffer[..READ_BYTES.min(end - at)];
                        client.read(at as u64, part)?;
                        findings.add(record.compare((at / BLOCK) as u64, part));
                    }
                    client.disconnect();
                    Ok(findings)
                })
            })
            .collect();
        let mut findings = Findings::default();
        for reader in readers {
            let part = reader
                .join()
                .map_err(|_| NbdError::Protocol("a reader panicked".to_owned()))?;
            findings.add(part?);
        }
        Ok(findings)
    })
}
