//! Clients that write, read, zero, discard and flush, each sectors of its own, and check at once whatever they read.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::e2e::client::{Client, Fua};
use crate::sim::dice::Dice;
use crate::sim::stamp::{Content, SECTOR, Stamper};

use super::ledger::{Floor, Ledger};

/// Connections.
pub const WRITERS: u64 = 6;
/// Pieces of the device that belong to each writer, far apart: more extents than the activity log of a large device holds.
const SPOTS: u64 = 20;
/// Sectors of a piece.
const SPOT_SECTORS: u64 = 128;
/// No disturbance lasts as long: a request without an answer until then is a fault.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);

/// Which sectors belong to whom, and what their bytes mean.
#[derive(Clone, Copy, Debug)]
pub struct Ground {
    /// Sectors of the device.
    pub sectors: u64,
    /// The stamps of this run.
    pub stamper: Stamper,
}

impl Ground {
    fn spot(self, writer: u64, spot: u64) -> u64 {
        let number = spot * WRITERS + writer;
        let distance = self.sectors / (SPOTS * WRITERS);
        // Not aligned to blocks: the neighbours of a spot are read, changed and written with it.
        number * distance + number % 8
    }

    /// Reads every piece through a client.
    ///
    /// # Errors
    /// The client's.
    pub fn read(self, socket: &Path) -> io::Result<BTreeMap<u64, Content>> {
        let mut client = Client::connect(socket, "r0", ANSWER_LIMIT)?;
        let mut found = BTreeMap::new();
        for number in 0..SPOTS * WRITERS {
            let first = self.spot(number % WRITERS, number / WRITERS);
            let bytes = client.read(first * SECTOR, (SPOT_SECTORS * SECTOR) as u32)?;
            for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR as usize)) {
                found.insert(sector, self.stamper.get(sector, bytes));
            }
        }
        client.disconnect()?;
        Ok(found)
    }
}

/// What all writers share.
#[derive(Debug)]
struct Shared {
    ledger: Arc<Mutex<Ledger>>,
    ground: Ground,
    socket: PathBuf,
    ending: AtomicBool,
    errors: AtomicU64,
    faults: Mutex<Vec<String>>,
    broken: Mutex<Vec<String>>,
    breakers: Mutex<Vec<UnixStream>>,
}

/// What a load came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Requests answered with an error.
    pub errors: u64,
    /// Wrong reads, requests without an answer.
    pub faults: Vec<String>,
    /// Connections that broke.
    pub broken: Vec<String>,
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
}

/// How a load ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every request under way is answered first.
    Orderly,
    /// Connections are broken.
    Broken,
}

impl Load {
    /// Starts the writers; `part` sets one load of a run apart from the others.
    pub fn start(
        ledger: &Arc<Mutex<Ledger>>,
        ground: Ground,
        socket: &Path,
        seed: u64,
        part: usize,
    ) -> Load {
        let shared = Arc::new(Shared {
            ledger: Arc::clone(ledger),
            ground,
            socket: socket.to_owned(),
            ending: AtomicBool::new(false),
            errors: AtomicU64::new(0),
            faults: Mutex::default(),
            broken: Mutex::default(),
            breakers: Mutex::default(),
        });
        let writers = (0..WRITERS).map(|writer| {
            let shared = Arc::clone(&shared);
            let dice = Dice::new(seed, &format!("writer {writer} of load {part}"));
            std::thread::spawn(move || work(&shared, writer, dice))
        });
        let writers = writers.collect();
        Load { shared, writers }
    }

    /// Ends the writers.
    ///
    /// # Panics
    /// When a writer panicked.
    pub fn stop(self, how: End) -> Outcome {
        self.shared.ending.store(true, Ordering::SeqCst);
        if how == End::Broken {
            for stream in lock(&self.shared.breakers).iter() {
                stream.shutdown(std::net::Shutdown::Both).ok();
            }
        }
        for writer in self.writers {
            writer.join().expect("a writer ends");
        }
        Outcome {
            errors: self.shared.errors.load(Ordering::SeqCst),
            faults: std::mem::take(&mut lock(&self.shared.faults)),
            broken: std::mem::take(&mut lock(&self.shared.broken)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Write(Fua),
    Zero,
    Discard,
    Read,
    Flush,
}

fn work(shared: &Shared, writer: u64, mut dice: Dice) {
    // Taken before the connection is made: nobody may break a list that lacks it.
    let mut breakers = lock(&shared.breakers);
    let mut client = match Client::connect(&shared.socket, "r0", ANSWER_LIMIT) {
        Ok(client) => client,
        Err(error) => {
            lock(&shared.broken).push(format!("writer {writer}: {error}"));
            return;
        }
    };
    breakers.extend(client.breaker());
    drop(breakers);
    while !shared.ending.load(Ordering::SeqCst) {
        let start = Instant::now();
        let Err(error) = operate(shared, writer, &mut client, &mut dice) else {
            continue;
        };
        if error
            .raw_os_error()
            .is_some_and(|number| number == 5 || number == 28)
        {
            shared.errors.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        if start.elapsed() >= ANSWER_LIMIT {
            let text = format!("writer {writer}: no answer within {ANSWER_LIMIT:?}: {error}");
            lock(&shared.faults).push(text);
        }
        lock(&shared.broken).push(format!("writer {writer}: {error}"));
        return;
    }
    client.disconnect().ok();
}

fn operate(shared: &Shared, writer: u64, client: &mut Client, dice: &mut Dice) -> io::Result<()> {
    let operation = match dice.weighted(&[64, 10, 4, 3, 14, 5]) {
        0 => Operation::Write(Fua::No),
        1 => Operation::Write(Fua::Yes),
        2 => Operation::Zero,
        3 => Operation::Discard,
        4 => Operation::Read,
        _ => Operation::Flush,
    };
    let (first, sectors) = place(shared.ground, writer, operation, dice);
    let (offset, length) = (first * SECTOR, (sectors * SECTOR) as u32);
    let issue = |content: fn(u64) -> Content| lock(&shared.ledger).issue(first, sectors, content);
    let id = match operation {
        Operation::Flush => return client.flush(),
        Operation::Read => {
            let bytes = client.read(offset, length)?;
            check(shared, first, &bytes);
            return Ok(());
        }
        Operation::Write(fua) => {
            let id = issue(Content::Stamp);
            let data = shared.ground.stamper.payload(id, first, sectors);
            client.write(offset, &data, fua)?;
            id
        }
        Operation::Zero => {
            let id = issue(|_| Content::Zero);
            client.write_zeroes(offset, length)?;
            id
        }
        Operation::Discard => {
            let id = issue(|_| Content::Zero);
            client.trim(offset, length)?;
            id
        }
    };
    lock(&shared.ledger).tell(id);
    Ok(())
}

/// A range of the writer's own: mostly small, now and then a whole piece; discards in whole blocks, so that they mean zeroes.
fn place(ground: Ground, writer: u64, operation: Operation, dice: &mut Dice) -> (u64, u64) {
    // Some pieces are hot, so that blocks are written again soon.
    let spot = if dice.chance(1, 2) {
        dice.below(4)
    } else {
        dice.below(SPOTS)
    };
    let sectors = match dice.weighted(&[50, 25, 20, 5]) {
        0 => 8,
        1 => dice.between(1, 16),
        2 => dice.between(16, 64),
        _ => SPOT_SECTORS,
    };
    let start = ground.spot(writer, spot);
    let first = start + dice.below(SPOT_SECTORS - sectors + 1);
    if !matches!(operation, Operation::Discard) {
        return (first, sectors);
    }
    let first = first
        .next_multiple_of(8)
        .min((start + SPOT_SECTORS) / 8 * 8 - 8);
    let end = (first + sectors.max(8)).min(start + SPOT_SECTORS) / 8 * 8;
    (first, end - first)
}

fn check(shared: &Shared, first: u64, bytes: &[u8]) {
    let ledger = lock(&shared.ledger);
    for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR as usize)) {
        let content = shared.ground.stamper.get(sector, bytes);
        if let Some(fault) = ledger.contradiction(sector, &content, Floor::Everything) {
            lock(&shared.faults).push(format!("a read: {fault}"));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_writers_share_a_sector_and_nobody_leaves_the_device() {
        let ground = Ground {
            sectors: (32 << 20) / SECTOR - 100,
            stamper: Stamper::new(1),
        };
        let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
        for writer in 0..WRITERS {
            let mut dice = Dice::new(writer, "test");
            for _ in 0..2000 {
                let operation = if dice.chance(1, 2) {
                    Operation::Discard
                } else {
                    Operation::Read
                };
                let (first, sectors) = place(ground, writer, operation, &mut dice);
                assert!(sectors > 0 && first + sectors <= ground.sectors);
                for sector in first..first + sectors {
                    assert_eq!(*seen.entry(sector).or_insert(writer), writer);
                }
            }
        }
        assert!(seen.len() as u64 > SPOTS * WRITERS * SPOT_SECTORS / 2);
    }
}
