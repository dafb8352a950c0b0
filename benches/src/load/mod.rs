//! The load generator: one thread that keeps a number of NBD requests in flight, and measures each.
//!
//! It shares no code with Tandem's server. It must cost little itself: one vectored send for everything that is to be sent, one
//! receive for everything that has arrived, one reading of the clock for each of the two; with one connection it waits in the receive
//! itself. What it costs is measured with every row ([`Measured::own_cpu_us`]).

mod connection;
mod endpoint;
mod offsets;
mod replies;

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use rustix::time::{ClockId, clock_gettime};

pub use endpoint::{Address, Endpoint};

use crate::Failure;
use crate::process::Stop;
use crate::rows::{DEVICE_BYTES, Row};
use connection::{Command, Connection, Request};
use offsets::Requests;

/// A server that does not answer for this long has failed.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);

/// Bytes of each write of [`write_at`]: what a bit of the bitmap stands for.
pub(crate) const BLOCK_BYTES: u32 = 4096;

/// Writes of [`write_at`] in flight.
const WRITES_AT_A_TIME: usize = 32;

/// Bytes received at once.
const RECEIVE_BYTES: usize = 512 << 10;

/// How long a row is measured.
#[derive(Clone, Copy, Debug)]
pub struct Durations {
    /// Under load, before anything counts.
    pub warm_up: Duration,
    /// What counts.
    pub measured: Duration,
}

/// Where a row stands, for the caller who samples the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// From now on it counts.
    Start,
    /// Up to now it counted.
    End,
}

/// What a row gave.
#[derive(Debug)]
pub struct Measured {
    /// Seconds that counted.
    pub seconds: f64,
    /// Reads and writes that were answered in them.
    pub operations: u64,
    /// Flushes that were answered in them.
    pub flushes: u64,
    /// Reads and writes of the whole run, those outside the measured time included.
    pub operations_in_all: u64,
    /// Nanoseconds from the hand-over of a read or write to its answer.
    pub latency: Histogram<u64>,
    /// CPU time of the generator itself in the measured time.
    pub own_cpu_us: f64,
}

impl Measured {
    /// Reads and writes per second.
    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.seconds
    }

    /// A percentile of the latency in microseconds.
    pub fn latency_us(&self, percentile: f64) -> f64 {
        self.latency.value_at_quantile(percentile / 100.0) as f64 / 1000.0
    }
}

/// Runs one row against a server.
///
/// # Errors
/// When the server cannot be reached, serves less than [`DEVICE_BYTES`], answers with an error or not at all; when the run is given up.
pub fn run(
    endpoint: &Endpoint,
    row: &Row,
    durations: Durations,
    stop: &Stop,
    mut at_edge: impl FnMut(Edge),
) -> Result<Measured, Failure> {
    let mut load = Load::of_row(endpoint, row, stop)?;
    load.turns_until(Instant::now() + durations.warm_up)?;
    load.tally.reset();
    at_edge(Edge::Start);
    let own = own_cpu_ns();
    let start = Instant::now();
    load.turns_until(start + durations.measured)?;
    let seconds = start.elapsed().as_secs_f64();
    let own_cpu_us = own_cpu_ns().saturating_sub(own) as f64 / 1000.0;
    at_edge(Edge::End);
    let tally = load.tally.clone();
    load.drain()?;
    Ok(Measured {
        seconds,
        operations: tally.operations,
        flushes: tally.flushes,
        operations_in_all: load.tally.operations_in_all,
        latency: tally.latency,
        own_cpu_us,
    })
}

/// Writes [`BLOCK_BYTES`] at each of these offsets, some at a time, until all are done or `limit` has passed; how many were answered.
///
/// # Errors
/// When the server cannot be reached, answers with an error or not at all; when the run is given up.
pub(crate) fn write_at(
    endpoint: &Endpoint,
    offsets: impl Iterator<Item = u64> + 'static,
    limit: Duration,
    stop: &Stop,
) -> Result<u64, Failure> {
    let stream = endpoint.connect(SILENCE_LIMIT)?;
    let connections = vec![Connection::new(stream, WRITES_AT_A_TIME)];
    let requests = offsets.map(|offset| Request {
        command: Command::Write,
        offset,
        length: BLOCK_BYTES,
    });
    let mut load = Load::new(endpoint, connections, Box::new(requests), stop)?;
    load.turns_until(Instant::now() + limit)?;
    load.drain()?;
    Ok(load.tally.operations_in_all)
}

/// What was answered.
#[derive(Clone, Debug)]
struct Tally {
    operations: u64,
    flushes: u64,
    operations_in_all: u64,
    latency: Histogram<u64>,
}

impl Tally {
    fn reset(&mut self) {
        self.operations = 0;
        self.flushes = 0;
        self.latency.reset();
    }

    fn answered(&mut self, command: Command, took: Duration) {
        if command == Command::Flush {
            self.flushes += 1;
            return;
        }
        self.operations += 1;
        self.operations_in_all += 1;
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.latency.saturating_record(nanoseconds);
    }
}

struct Load {
    connections: Vec<Connection>,
    requests: Box<dyn Iterator<Item = Request>>,
    tally: Tally,
    buffer: Vec<u8>,
    stop: Stop,
    heard: Instant,
    name: String,
}

impl Load {
    fn of_row(endpoint: &Endpoint, row: &Row, stop: &Stop) -> Result<Load, Failure> {
        let slots = (row.depth / row.connections) as usize;
        let mut connections = Vec::new();
        for _ in 0..row.connections {
            let stream = endpoint.connect(SILENCE_LIMIT)?;
            if stream.export_bytes < DEVICE_BYTES {
                let text = format!("{endpoint} serves {} bytes only", stream.export_bytes);
                return Err(Failure::Unexpected(text));
            }
            connections.push(Connection::new(stream, slots));
        }
        Load::new(endpoint, connections, Box::new(Requests::new(row)), stop)
    }

    fn new(
        endpoint: &Endpoint,
        connections: Vec<Connection>,
        requests: Box<dyn Iterator<Item = Request>>,
        stop: &Stop,
    ) -> Result<Load, Failure> {
        // From 100 ns to a minute, three digits.
        let latency = Histogram::new_with_bounds(100, 60_000_000_000, 3)
            .map_err(|error| Failure::Unexpected(format!("make a histogram: {error:?}")))?;
        Ok(Load {
            connections,
            requests,
            tally: Tally {
                operations: 0,
                flushes: 0,
                operations_in_all: 0,
                latency,
            },
            buffer: vec![0; RECEIVE_BYTES],
            stop: stop.clone(),
            heard: Instant::now(),
            name: endpoint.to_string(),
        })
    }

    /// Keeps requests in flight until `end`, or until there are no more and all are answered.
    fn turns_until(&mut self, end: Instant) -> Result<(), Failure> {
        let mut now = Instant::now();
        while now < end {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Failure::Interrupted);
            }
            for connection in &mut self.connections {
                while connection.has_room() {
                    let Some(request) = self.requests.next() else {
                        break;
                    };
                    connection.submit(request, now);
                }
            }
            if !self.connections.iter().any(Connection::is_busy) {
                return Ok(());
            }
            now = self.turn()?;
        }
        Ok(())
    }

    /// Waits for the answers to everything in flight and takes leave.
    fn drain(&mut self) -> Result<(), Failure> {
        while self.connections.iter().any(Connection::is_busy) {
            self.turn()?;
        }
        for connection in &mut self.connections {
            connection.disconnect();
        }
        Ok(())
    }

    /// Sends what there is to send, waits for answers and counts them.
    fn turn(&mut self) -> Result<Instant, Failure> {
        let failed = |name: &str| Failure::system(format!("send to {name}"));
        for connection in &mut self.connections {
            connection.send().map_err(failed(&self.name))?;
        }
        let waits_in_receive = self.connections.len() == 1 && !self.connections[0].has_to_send();
        let flags = if waits_in_receive {
            RecvFlags::empty()
        } else {
            self.wait()?;
            RecvFlags::DONTWAIT
        };
        let mut now = None;
        for connection in &mut self.connections {
            let length = connection.receive(&mut self.buffer, flags);
            let length = length.map_err(Failure::system(format!("receive from {}", self.name)))?;
            if length > 0 {
                let now = *now.get_or_insert_with(Instant::now);
                let tally = &mut self.tally;
                connection
                    .take(&self.buffer[..length], |command, issued| {
                        tally.answered(command, now - issued);
                    })
                    .map_err(|text| Failure::Unexpected(format!("{}: {text}", self.name)))?;
            }
        }
        match now {
            Some(now) => self.heard = now,
            None if self.heard.elapsed() > SILENCE_LIMIT => {
                let text = format!("{}: no answer within {SILENCE_LIMIT:?}", self.name);
                return Err(Failure::Unexpected(text));
            }
            None => {}
        }
        Ok(now.unwrap_or_else(Instant::now))
    }

    fn wait(&self) -> Result<(), Failure> {
        let mut polled: Vec<PollFd<'_>> = self
            .connections
            .iter()
            .map(|connection| {
                let mut wanted = PollFlags::IN;
                if connection.has_to_send() {
                    wanted |= PollFlags::OUT;
                }
                PollFd::from_borrowed_fd(connection.as_fd(), wanted)
            })
            .collect();
        let limit = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        match poll(&mut polled, Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(Failure::system("wait for sockets")(error.into())),
        }
    }
}

fn own_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or_default()
}

#[cfg(test)]
mod tests;
