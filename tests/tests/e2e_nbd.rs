//! What clients may ask besides data, on a synced pair: which ranges are holes, which differ from the peer, whether zeroes are fast;
//! and clients that leave without reading.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::node::Settings;
use tandem_tests::e2e::pair::{LinkKind, Pair};
use tandem_tests::e2e::tool;

const ALLOCATION: &str = "base:allocation";
const OUT_OF_SYNC: &str = "x-tandem:out-of-sync";

fn synced() -> Pair {
    Pair::synced(&Settings::default(), LinkKind::Direct)
}

fn must(pair: &Pair, program: &str, args: &[&str]) -> String {
    tool::must(pair.dir.path(), program, args, || pair.logs()).stdout
}

/// Runs commands of qemu-io, none of which may find other bytes than it expects.
fn qemu_io(pair: &Pair, commands: &[&str]) {
    let uri = pair.alpha.uri(0);
    let mut args = vec!["-f", "raw"];
    commands
        .iter()
        .for_each(|command| args.extend(["-c", *command]));
    args.push(&uri);
    let said = must(pair, "qemu-io", &args);
    assert!(!said.contains("Pattern verification failed"), "{said}");
}

/// Offset, length and flags of each extent that `nbdinfo --map` prints.
fn map(pair: &Pair, context: &str) -> Vec<(u64, u64, u32)> {
    let option = format!("--map={context}");
    let said = must(pair, "nbdinfo", &[&option, &pair.alpha.uri(0)]);
    let extents = said.lines().map(|line| {
        let mut words = line.split_whitespace();
        let mut word = || words.next().unwrap_or_else(|| panic!("{said}"));
        (
            word().parse().unwrap(),
            word().parse().unwrap(),
            word().parse().unwrap(),
        )
    });
    extents.collect()
}

#[test]
fn nbdinfo_maps_what_differs_from_the_peer() {
    let pair = synced();
    let end = pair.device_bytes();
    assert_eq!(map(&pair, OUT_OF_SYNC), [(0, end, 0)]);
    pair.alpha.must(&["disconnect", "r0"]);
    let mut record = pair.record();
    record.fill(1 << 20, 64 << 10, 7);
    let write = ["-f", "raw", "-c", "write -P 7 1M 64k", &pair.alpha.uri(0)];
    must(&pair, "qemu-io", &write);
    let (start, length) = (1 << 20, 64 << 10);
    let rest = start + length;
    assert_eq!(
        map(&pair, OUT_OF_SYNC),
        [(0, start, 0), (start, length, 1), (rest, end - rest, 0)]
    );
    pair.alpha.must(&["connect", "r0"]);
    pair.wait_synced();
    assert_eq!(map(&pair, OUT_OF_SYNC), [(0, end, 0)]);
    pair.down_and_compare(&record);
}

/// Flags of the extent at an offset.
fn at(extents: &[(u64, u64, u32)], offset: u64) -> u32 {
    let found = extents
        .iter()
        .find(|(start, length, _)| (*start..start + length).contains(&offset));
    found
        .unwrap_or_else(|| panic!("{offset} is not in {extents:?}"))
        .2
}

/// Everything is given back but 64 KiB at 1 MiB.
fn mostly_holes(pair: &Pair) {
    let end = pair.device_bytes();
    let discard = format!("discard 0 {end}");
    qemu_io(pair, &[&discard, "write -P 7 1M 64k", "flush"]);
}

#[test]
fn nbdinfo_and_qemu_img_map_data_and_holes_of_the_backing_file() {
    let pair = synced();
    mostly_holes(&pair);
    let extents = map(&pair, ALLOCATION);
    let covered: u64 = extents.iter().map(|(_, length, _)| length).sum();
    assert_eq!(covered, pair.device_bytes(), "{extents:?}");
    // The file system may round holes inward, never outward.
    assert_eq!(at(&extents, 1 << 20), 0, "{extents:?}");
    assert_eq!(at(&extents, (1 << 20) + (64 << 10) - 1), 0, "{extents:?}");
    assert_eq!(at(&extents, 4 << 20), 3, "{extents:?}");
    let args = ["map", "--output=json", &pair.alpha.uri(0)];
    let json: serde_json::Value = serde_json::from_str(&must(&pair, "qemu-img", &args)).unwrap();
    let at = |offset: u64| {
        let extents = json.as_array().unwrap().iter();
        let mut found = extents.filter(|extent| {
            let start = extent["start"].as_u64().unwrap();
            (start..start + extent["length"].as_u64().unwrap()).contains(&offset)
        });
        found.next().unwrap()["zero"].as_bool().unwrap()
    };
    assert!(at(4 << 20) && !at(1 << 20), "{json}");
}

#[test]
fn a_copy_by_nbdcopy_has_the_same_bytes_and_the_same_holes() {
    let pair = synced();
    mostly_holes(&pair);
    let copy = pair.dir.path().join("copy.img");
    let path = copy.display().to_string();
    must(
        &pair,
        "nbdcopy",
        &["--connections=4", &pair.alpha.uri(0), &path],
    );
    let bytes = std::fs::read(&copy).unwrap();
    assert_eq!(bytes.len() as u64, pair.device_bytes());
    let data = (1 << 20)..(1 << 20) + (64 << 10);
    let wrong = bytes
        .iter()
        .enumerate()
        .position(|(at, byte)| *byte != if data.contains(&at) { 7 } else { 0 });
    assert_eq!(wrong, None);
    let allocated = copy.metadata().unwrap().blocks() * 512;
    assert!(
        allocated < pair.device_bytes() / 4,
        "{allocated} bytes are allocated"
    );
    // And back: what was zero is sent as zeroes, and both nodes agree.
    qemu_io(&pair, &["write -P 3 2M 1M"]);
    must(&pair, "nbdcopy", &["--flush", &path, &pair.alpha.uri(0)]);
    let mut record = pair.record();
    record.fill(0, pair.device_bytes(), 0);
    record.fill(1 << 20, 64 << 10, 7);
    pair.down_and_compare(&record);
}

#[test]
fn a_primary_without_a_disk_tells_no_holes_and_that_all_may_differ() {
    let pair = synced();
    mostly_holes(&pair);
    pair.alpha.must(&["detach", "r0"]);
    let end = pair.device_bytes();
    assert_eq!(map(&pair, ALLOCATION), [(0, end, 0)]);
    assert_eq!(map(&pair, OUT_OF_SYNC), [(0, end, 1)]);
    qemu_io(&pair, &["read -P 7 1M 64k", "read -P 0 4M 64k"]);
    pair.alpha.must(&["attach", "r0"]);
    pair.wait_synced();
    assert_eq!(map(&pair, OUT_OF_SYNC), [(0, end, 0)]);
}

#[test]
fn fio_verifies_requests_that_are_aligned_to_nothing() {
    let pair = synced();
    let uri = format!("--uri={}", pair.alpha.uri(0));
    let ended = tool::run(
        pair.dir.path(),
        "fio",
        &[
            "--name=odd",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=601-9001",
            "--bs_unaligned=1",
            "--iodepth=8",
            "--size=4m",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ],
    );
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.all(), pair.logs());
    assert!(ended.says("err= 0"), "{}\n{}", ended.all(), pair.logs());
    pair.wait_synced();
    pair.down();
    pair.compare_disks(0, pair.device_bytes());
}

#[test]
fn a_demotion_takes_what_leaving_clients_wrote_and_waits_for_no_client_that_reads_nothing() {
    let pair = synced();
    let mut record = pair.record();
    // One asks for far more than a socket holds, says goodbye and reads nothing.
    let deaf = pair.client(&pair.alpha);
    let mut stream = deaf.breaker().unwrap();
    for (kind, length) in std::iter::repeat_n((0_u8, 1_u32 << 20), 12).chain([(2, 0)]) {
        let mut head = 0x2560_9513_u32.to_be_bytes().to_vec();
        head.extend([0, 0, 0, kind]);
        head.extend([0; 16]);
        head.extend(length.to_be_bytes());
        stream.write_all(&head).unwrap();
    }
    // Others write on connections of their own, and leave.
    let writers: Vec<_> = (0..3_u8)
        .map(|writer| {
            let mut client = pair.client(&pair.alpha);
            let offset = u64::from(writer) << 20;
            record.fill(offset, 256 << 10, writer + 1);
            std::thread::spawn(move || {
                client
                    .write(offset, &vec![writer + 1; 256 << 10], Fua::No)
                    .unwrap();
                client.disconnect().unwrap();
            })
        })
        .collect();
    for writer in writers {
        assert!(writer.join().is_ok(), "{}", pair.logs());
    }
    let begun = Instant::now();
    pair.alpha.must(&["secondary", "r0"]);
    assert!(begun.elapsed() < Duration::from_secs(20));
    // What it was sent until then is there; more never comes.
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 12 << 20, "{}", rest.len());
    pair.down_and_compare(&record);
}

#[test]
fn zeroes_that_must_be_fast_are_written_or_refused_at_once() {
    let pair = synced();
    let mut record = pair.record();
    record.fill(0, 1 << 20, 7);
    record.fill(256 << 10, 64 << 10, 0);
    let uri = pair.alpha.uri(0);
    let good = [
        "-f",
        "raw",
        "-c",
        "write -P 7 0 1M",
        "-c",
        "write -zun 256k 64k",
        "-c",
        "read -P 0 256k 64k",
        &uri,
    ];
    let said = must(&pair, "qemu-io", &good);
    assert!(!said.contains("Pattern verification failed"), "{said}");
    // Zeroes that stay allocated are as slow as data: nothing is changed.
    let slow = ["-f", "raw", "-c", "write -zn 512k 64k", &uri];
    let said = tool::run(pair.dir.path(), "qemu-io", &slow);
    assert!(said.says("Operation not supported"), "{}", said.all());
    pair.down_and_compare(&record);
}
