//! Writers on connections of their own, each with blocks of its own, that remember what they were told.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::{Client, Fua};
use super::history::{BLOCK, Contents, History, Write, contents, stamp};

/// A running load. It ends with [`Load::stop`], or by itself when its connections break.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<JoinHandle<History>>,
}

/// What a load does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names the run in every stamp.
    pub run: u64,
    /// The NBD socket.
    pub socket: PathBuf,
    /// The export.
    pub export: String,
    /// Connections.
    pub writers: u64,
    /// Blocks of each writer; writer k has blocks k * blocks .. (k + 1) * blocks.
    pub blocks: u64,
    /// First block of the first writer; writer k starts `k * blocks` behind it.
    pub first: u64,
    /// Chooses blocks and kinds of writes.
    pub seed: u64,
}

impl Load {
    /// Starts the writers.
    pub fn start(plan: &Plan) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let writers = (0..plan.writers).map(|writer| {
            let (plan, stop, told) = (plan.clone(), Arc::clone(&stop), Arc::clone(&acknowledged));
            std::thread::spawn(move || write(&plan, writer, &stop, &told))
        });
        let writers = writers.collect();
        Load {
            stop,
            acknowledged,
            writers,
        }
    }

    /// Writes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Ends the writers and returns what they remember.
    ///
    /// # Panics
    /// When a writer panicked.
    pub fn stop(self) -> Vec<History> {
        self.stop.store(true, Ordering::SeqCst);
        self.writers
            .into_iter()
            .map(|writer| writer.join().expect("a writer ends"))
            .collect()
    }
}

fn write(plan: &Plan, writer: u64, stop: &AtomicBool, told: &AtomicU64) -> History {
    let mut history = History {
        writer,
        writes: Vec::new(),
    };
    let limit = Duration::from_secs(60);
    let Ok(mut client) = Client::connect(&plan.socket, &plan.export, limit) else {
        return history;
    };
    let mut dice = plan.seed ^ (writer + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        let draw = next(&mut dice);
        let block = plan.first + writer * plan.blocks + draw % plan.blocks;
        let fua = if draw >> 32 & 15 == 0 {
            Fua::Yes
        } else {
            Fua::No
        };
        let issued = Instant::now();
        let data = stamp(plan.run, writer, number, block);
        let result = client.write(block * BLOCK as u64, &data, fua);
        let acknowledged = result.is_ok().then(Instant::now);
        history.writes.push(Write {
            number,
            block,
            issued,
            acknowledged,
        });
        if acknowledged.is_none() {
            break;
        }
        told.fetch_add(1, Ordering::SeqCst);
        if draw >> 40 & 63 == 0 && client.flush().is_err() {
            break;
        }
    }
    history
}

/// xorshift: enough to choose blocks.
fn next(dice: &mut u64) -> u64 {
    *dice ^= *dice << 13;
    *dice ^= *dice >> 7;
    *dice ^= *dice << 17;
    *dice
}

/// Reads every block of a plan.
///
/// # Errors
/// The client's.
pub fn read_back(
    plan: &Plan,
    socket: &Path,
    export: &str,
) -> std::io::Result<std::collections::BTreeMap<u64, Contents>> {
    let mut client = Client::connect(socket, export, Duration::from_secs(60))?;
    let mut found = std::collections::BTreeMap::new();
    let end = plan.first + plan.writers * plan.blocks;
    let step = 64;
    let mut first = plan.first;
    while first < end {
        let count = step.min(end - first);
        let data = client.read(first * BLOCK as u64, (count as usize * BLOCK) as u32)?;
        for (block, bytes) in (first..).zip(data.chunks(BLOCK)) {
            found.insert(block, contents(plan.run, block, bytes));
        }
        first += count;
    }
    Ok(found)
}
