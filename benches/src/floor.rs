//! What the machine itself can do, beside the contenders: the backing file without any server, and loopback TCP without any protocol.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::Value;

use crate::Failure;
use crate::machine::is_installed;
use crate::process::Stop;
use crate::rows::{DEVICE_BYTES, Fua, HOT_BYTES, Kind, Row, Span};

/// A figure of the machine.
#[derive(Clone, Debug, Serialize)]
pub struct Floor {
    /// What was measured.
    pub name: String,
    /// Operations per second.
    pub per_second: f64,
    /// Millions of bytes per second.
    pub mb_per_second: f64,
    /// Median latency in microseconds; 0 where none was measured.
    pub p50_us: f64,
    /// 99th percentile of the latency in microseconds; 0 where none was measured.
    pub p99_us: f64,
}

/// The row on the backing file itself: fio, io_uring, O_DIRECT.
///
/// # Errors
/// When fio is missing or fails.
pub fn file(path: &Path, row: &Row, time: Duration) -> Result<Floor, Failure> {
    if !is_installed("fio") {
        return Err(Failure::Missing {
            program: String::from("fio"),
            package: String::from("fio"),
        });
    }
    let pattern = match (row.kind, row.span) {
        (Kind::Write, Span::Sequential) => "write",
        (Kind::Write, _) => "randwrite",
        (Kind::Read, Span::Sequential) => "read",
        (Kind::Read, _) => "randread",
        (Kind::Mixed, _) => "randrw",
    };
    let bytes = match row.span {
        Span::Hot => HOT_BYTES,
        Span::Scattered | Span::Sequential => DEVICE_BYTES,
    };
    let mut command = Command::new("fio");
    command
        .args([
            "--name=floor",
            "--output-format=json",
            "--ioengine=io_uring",
            "--direct=1",
        ])
        .args([
            "--time_based",
            "--norandommap",
            "--rwmixread=70",
            "--randrepeat=1",
        ])
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--rw={pattern}"))
        .arg(format!("--bs={}", row.block_bytes))
        .arg(format!("--iodepth={}", row.depth))
        .arg(format!("--size={bytes}"))
        .arg(format!("--runtime={}ms", time.as_millis()));
    if row.fua == Fua::Yes {
        command.arg("--sync=dsync");
    }
    if row.flush_every > 0 {
        command.arg(format!("--fdatasync={}", row.flush_every));
    }
    let report = fio(&mut command)?;
    Ok(from_fio(
        &format!("file, {}", row.name),
        &report,
        row.block_bytes,
    ))
}

/// Runs fio with JSON output; its only job.
///
/// # Errors
/// When it fails.
pub fn fio(command: &mut Command) -> Result<Value, Failure> {
    let output = command.output().map_err(Failure::system("run fio"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    // Remarks may stand before the document.
    let start = text.find('{').unwrap_or_default();
    let report: Option<Value> = serde_json::from_str(&text[start..]).ok();
    match report.and_then(|mut report| report.get_mut("jobs")?.get_mut(0).map(Value::take)) {
        Some(job) if output.status.success() => Ok(job),
        _ => Err(Failure::Unexpected(format!("fio failed: {said}{text}"))),
    }
}

/// Reads and writes of a job of fio together; the latency of the kind that there is more of.
pub fn from_fio(name: &str, job: &Value, block_bytes: u32) -> Floor {
    let number = |side: &str, pointer: &str| {
        let found = job.pointer(&format!("/{side}{pointer}"));
        found.and_then(Value::as_f64).unwrap_or_default()
    };
    let (reads, writes) = (number("read", "/iops"), number("write", "/iops"));
    let side = if reads > writes { "read" } else { "write" };
    let percentile = |share: &str| number(side, &format!("/clat_ns/percentile/{share}")) / 1000.0;
    Floor {
        name: name.to_owned(),
        per_second: reads + writes,
        mb_per_second: (reads + writes) * f64::from(block_bytes) / 1e6,
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
    }
}

/// A write's way over TCP and back, nothing done with it: 4 KiB with a head there, 16 bytes back.
///
/// # Errors
/// Those of the sockets.
pub fn ping_pong(time: Duration, stop: &Stop) -> Result<Floor, Failure> {
    const THERE: usize = 4096 + 28;
    const BACK: usize = 16;
    let (mut near, mut far) = loopback_pair()?;
    let echo = std::thread::spawn(move || {
        let (mut there, back) = ([0; THERE], [0; BACK]);
        while far.read_exact(&mut there).is_ok() && far.write_all(&back).is_ok() {}
    });
    let failed = || Failure::system("ping-pong over loopback");
    let mut latency = histogram()?;
    let (there, mut back) = ([7; THERE], [0; BACK]);
    let start = Instant::now();
    let mut turns = 0u64;
    while start.elapsed() < time && !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        near.write_all(&there).map_err(failed())?;
        near.read_exact(&mut back).map_err(failed())?;
        latency.saturating_record(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
        turns += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    drop(near);
    echo.join().ok();
    Ok(Floor {
        name: String::from("loopback TCP, 4 KiB there and an answer back"),
        per_second: turns as f64 / seconds,
        mb_per_second: turns as f64 * 4096.0 / 1e6 / seconds,
        p50_us: latency.value_at_quantile(0.5) as f64 / 1000.0,
        p99_us: latency.value_at_quantile(0.99) as f64 / 1000.0,
    })
}

/// Bytes in one direction over TCP as fast as they go.
///
/// # Errors
/// Those of the sockets.
pub fn stream(time: Duration, stop: &Stop) -> Result<Floor, Failure> {
    const PIECE: usize = 128 << 10;
    let (mut near, mut far) = loopback_pair()?;
    let sink = std::thread::spawn(move || {
        let mut buffer = vec![0; 512 << 10];
        while far.read(&mut buffer).is_ok_and(|length| length > 0) {}
    });
    let piece = vec![7; PIECE];
    let start = Instant::now();
    let mut pieces = 0u64;
    while start.elapsed() < time && !stop.load(Ordering::Relaxed) {
        near.write_all(&piece)
            .map_err(Failure::system("stream over loopback"))?;
        pieces += 1;
    }
    drop(near);
    sink.join().ok();
    let seconds = start.elapsed().as_secs_f64();
    Ok(Floor {
        name: String::from("loopback TCP, a stream of 128 KiB pieces"),
        per_second: pieces as f64 / seconds,
        mb_per_second: pieces as f64 * PIECE as f64 / 1e6 / seconds,
        p50_us: 0.0,
        p99_us: 0.0,
    })
}

fn loopback_pair() -> Result<(TcpStream, TcpStream), Failure> {
    let make = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        let (far, _) = listener.accept()?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        Ok((near, far))
    };
    make().map_err(Failure::system("make a loopback connection"))
}

fn histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(100, 60_000_000_000, 3)
        .map_err(|error| Failure::Unexpected(format!("make a histogram: {error:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_answers_and_streams() {
        let (time, stop) = (Duration::from_millis(30), Stop::default());
        let pong = ping_pong(time, &stop).unwrap();
        assert!(pong.per_second > 10.0 && pong.p50_us > 0.1 && pong.p99_us >= pong.p50_us);
        assert!(stream(time, &stop).unwrap().mb_per_second > 1.0);
    }

    #[test]
    fn a_report_of_fio_is_read() {
        let job = serde_json::json!({
            "read": {"iops": 0.0},
            "write": {"iops": 2000.0, "clat_ns": {"percentile": {"50.000000": 5000, "99.000000": 9000}}},
        });
        let floor = from_fio("x", &job, 4096);
        assert_eq!(
            (floor.per_second, floor.p50_us, floor.p99_us),
            (2000.0, 5.0, 9.0)
        );
        assert!((floor.mb_per_second - 8.192).abs() < 1e-9);
    }
}
