//! The generator against a server of another crate.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tandem_nbd_server::Access;
use tandem_nbd_server::device::{Exports, MemoryDevice, plain_info, serve};

use super::*;
use crate::rows::ROWS;

/// A server in memory, one thread for each connection; it ends with the test process.
fn server(dir: &std::path::Path, bytes: u64) -> Endpoint {
    let socket = dir.join("nbd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut exports = Exports::default();
    let device = MemoryDevice::new(usize::try_from(bytes).unwrap());
    let info = plain_info("disk", bytes, Access::ReadWrite);
    exports.add(info, Arc::new(device));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let exports = exports.clone();
            std::thread::spawn(move || serve(stream.unwrap(), &exports));
        }
    });
    Endpoint::unix(socket, "disk")
}

fn brief() -> Durations {
    Durations {
        warm_up: Duration::from_millis(10),
        measured: Duration::from_millis(60),
    }
}

fn running() -> Stop {
    Arc::new(AtomicBool::new(false))
}

#[test]
fn every_row_is_answered_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = server(dir.path(), DEVICE_BYTES);
    for row in ROWS {
        let mut edges = Vec::new();
        let measured = run(&endpoint, row, brief(), &running(), |edge| edges.push(edge)).unwrap();
        assert_eq!(edges, [Edge::Start, Edge::End], "{}", row.name);
        assert!(measured.operations > 0, "{}", row.name);
        assert_eq!(measured.operations, measured.latency.len(), "{}", row.name);
        assert!(measured.operations_in_all >= measured.operations + u64::from(row.depth > 1));
        assert_eq!(measured.flushes > 0, row.flush_every > 0, "{}", row.name);
        assert!(
            measured.seconds >= 0.06 && measured.own_cpu_us > 0.0,
            "{}",
            row.name
        );
        assert!(measured.latency_us(99.9) >= measured.latency_us(50.0));
    }
}

#[test]
fn a_device_that_is_too_small_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = server(dir.path(), 1 << 20);
    let failure = run(&endpoint, &ROWS[0], brief(), &running(), |_| {}).unwrap_err();
    assert!(
        failure.to_string().contains("serves 1048576 bytes only"),
        "{failure}"
    );
}

#[test]
fn an_export_that_nobody_serves_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut endpoint = server(dir.path(), 1 << 20);
    endpoint.export = String::from("other");
    let failure = endpoint.probe().unwrap_err().to_string();
    assert!(
        failure.contains("/other?socket=") && failure.contains("refused"),
        "{failure}"
    );
}

#[test]
fn a_run_that_is_given_up_ends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = server(dir.path(), DEVICE_BYTES);
    let stop: Stop = Arc::new(AtomicBool::new(true));
    let hour = Durations {
        warm_up: Duration::from_secs(3600),
        measured: Duration::from_secs(3600),
    };
    let result = run(&endpoint, &ROWS[1], hour, &stop, |_| {});
    assert!(matches!(result, Err(Failure::Interrupted)));
}

#[test]
fn given_offsets_are_written_once_each() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = server(dir.path(), 1 << 20);
    let offsets = (0..100).map(|number| number * 8192);
    let minute = Duration::from_secs(60);
    assert_eq!(
        write_at(&endpoint, offsets, minute, &running()).unwrap(),
        100
    );
    let none = std::iter::empty();
    assert_eq!(write_at(&endpoint, none, minute, &running()).unwrap(), 0);
}

#[test]
fn a_write_behind_the_end_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = server(dir.path(), 1 << 20);
    let minute = Duration::from_secs(60);
    assert!(write_at(&endpoint, std::iter::once(1 << 20), minute, &running()).is_err());
}
