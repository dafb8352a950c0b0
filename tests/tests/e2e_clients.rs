//! Clients that nobody here wrote, on a synced pair: libnbd's tools, qemu's, fio, and the `nbd` crate.
//!
//! Each test compares both backing files with each other and with what the client knows it wrote.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;

use tandem_tests::e2e::client::{Client, Fua};
use tandem_tests::e2e::node::Settings;
use tandem_tests::e2e::pair::{CLIENT_LIMIT, LinkKind, Pair};
use tandem_tests::e2e::record::{Record, pattern};
use tandem_tests::e2e::{tool, wait};

fn synced() -> Pair {
    Pair::synced(&Settings::default(), LinkKind::Direct)
}

fn must(pair: &Pair, program: &str, args: &[&str]) -> String {
    tool::must(pair.dir.path(), program, args, || pair.logs()).stdout
}

/// qemu-img compares the data part of both backing files.
fn qemu_img_compares_both_disks(pair: &Pair) {
    let [a, b] = [&pair.alpha, &pair.bravo].map(|node| {
        format!(
            "driver=raw,size={},file.driver=file,file.filename={}",
            pair.device_bytes(),
            node.disk(0).display()
        )
    });
    let said = must(pair, "qemu-img", &["compare", "--image-opts", &a, &b]);
    assert!(said.contains("Images are identical"), "{said}");
}

#[test]
fn nbdinfo_sees_size_and_flags_of_a_primary() {
    let pair = synced();
    let uri = pair.alpha.uri(0);
    let size = must(&pair, "nbdinfo", &["--size", &uri]);
    assert_eq!(size.trim(), pair.device_bytes().to_string());
    let info = must(&pair, "nbdinfo", &["--json", &uri]);
    for fact in [
        "\"is_read_only\": false",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"can_multi_conn\": true",
        "\"can_cache\": true",
        "\"can_fast_zero\": true",
        "base:allocation",
        "x-tandem:out-of-sync",
    ] {
        assert!(info.contains(fact), "{fact} is not in {info}");
    }
    let list = must(
        &pair,
        "nbdinfo",
        &[
            "--list",
            &format!("nbd+unix:///?socket={}", pair.alpha.socket().display()),
        ],
    );
    assert!(list.contains("r0/0"), "the list lacks r0/0: {list}");
}

#[test]
fn a_volume_is_found_by_its_own_socket_and_by_the_name_of_its_resource() {
    let pair = synced();
    let socket = pair.alpha.root.join("run/tandem/nbd/r0-0.sock");
    let bytes = pair.device_bytes().to_string();
    for uri in [
        format!("nbd+unix:///?socket={}", socket.display()),
        format!("nbd+unix:///r0?socket={}", pair.alpha.socket().display()),
        format!("nbd+unix:///?socket={}", pair.alpha.socket().display()),
    ] {
        assert_eq!(
            must(&pair, "nbdinfo", &["--size", &uri]).trim(),
            bytes,
            "{uri}"
        );
    }
}

#[test]
fn nbdcopy_copies_in_and_out_with_four_connections() {
    let pair = synced();
    let mut record = pair.record();
    let image = pattern(1, pair.device_bytes() as usize);
    record.write(0, &image);
    let (before, after) = (
        pair.dir.path().join("in.img"),
        pair.dir.path().join("out.img"),
    );
    std::fs::write(&before, &image).unwrap();
    let uri = pair.alpha.uri(0);
    let many = ["--connections=4", "--requests=16"];
    must(
        &pair,
        "nbdcopy",
        &[
            many[0],
            many[1],
            "--flush",
            &before.display().to_string(),
            &uri,
        ],
    );
    must(
        &pair,
        "nbdcopy",
        &[many[0], many[1], &uri, &after.display().to_string()],
    );
    assert!(
        std::fs::read(&after).unwrap() == image,
        "nbdcopy read something else than it wrote"
    );
    pair.down_and_compare(&record);
    qemu_img_compares_both_disks(&pair);
}

#[test]
fn what_qemu_io_writes_zeroes_discards_and_flushes_is_on_both_disks() {
    let pair = synced();
    let mut record = pair.record();
    record.fill(0, 1 << 20, 1);
    record.fill(1 << 20, 64 << 10, 2);
    record.fill(4 << 20, 1 << 20, 3);
    record.fill((4 << 20) + 4096, 64 << 10, 0);
    record.fill(8 << 20, 512, 4);
    record.fill((8 << 20) + 3 * 512, 512, 5);
    record.fill(256 << 10, 256 << 10, 6);
    record.forget(512 << 10, 128 << 10);
    let commands = [
        "write -P 1 0 1M",
        "write -f -P 2 1M 64k",
        "flush",
        "write -P 3 4M 1M",
        "write -z 4100k 64k",
        "write -P 4 8M 512",
        "write -f -P 5 8390144 512",
        "discard 512k 128k",
        "write -P 6 256k 256k",
        "flush",
        "read -P 1 0 256k",
        "read -P 6 256k 256k",
        "read -P 2 1M 64k",
        "read -P 0 4100k 64k",
        "read -P 3 4164k 100k",
        "read -P 4 8M 512",
        "read -P 0 8389120 512",
        "read -P 5 8390144 512",
    ];
    let uri = pair.alpha.uri(0);
    let mut args = vec!["-f", "raw"];
    commands
        .iter()
        .for_each(|command| args.extend(["-c", *command]));
    args.push(&uri);
    let said = must(&pair, "qemu-io", &args);
    assert!(
        !said.contains("Pattern verification failed"),
        "{said}\n{}",
        pair.logs()
    );
    pair.down_and_compare(&record);
    qemu_img_compares_both_disks(&pair);
}

#[test]
fn fio_verifies_what_it_wrote_at_random() {
    let pair = synced();
    let uri = format!("--uri={}", pair.alpha.uri(0));
    let ended = tool::run(
        pair.dir.path(),
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randrw",
            "--bssplit=4k/60:64k/30:512/10",
            "--iodepth=16",
            "--size=12m",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ],
    );
    assert!(
        !ended.says("engine nbd not loadable"),
        "this fio has no nbd engine; next: apt-get install --no-install-recommends fio libnbd0"
    );
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.all(), pair.logs());
    assert!(ended.says("err= 0"), "{}\n{}", ended.all(), pair.logs());
    pair.wait_synced();
    pair.down();
    pair.compare_disks(0, pair.device_bytes());
    qemu_img_compares_both_disks(&pair);
}

#[test]
fn the_nbd_crate_works_as_a_legacy_client() {
    let pair = synced();
    let mut record = pair.record();
    let mut stream = UnixStream::connect(pair.alpha.socket()).unwrap();
    stream.set_read_timeout(Some(CLIENT_LIMIT)).unwrap();
    stream.set_write_timeout(Some(CLIENT_LIMIT)).unwrap();
    let export = nbd::client::handshake(&mut stream, b"r0/0").unwrap();
    assert_eq!(export.size, pair.device_bytes());
    assert!(export.send_flush && !export.readonly);
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    let data = pattern(3, 300 << 10);
    client.seek(SeekFrom::Start(8192)).unwrap();
    client.write_all(&data).unwrap();
    client.flush().unwrap();
    record.write(8192, &data);
    client.seek(SeekFrom::Start(8192)).unwrap();
    let mut back = vec![0; data.len()];
    client.read_exact(&mut back).unwrap();
    assert!(
        back == data,
        "the nbd crate read something else than it wrote"
    );
    drop(stream);
    pair.down_and_compare(&record);
}

#[test]
fn every_kind_of_request_at_odd_places_is_right_on_both_disks() {
    let pair = synced();
    let mut record = pair.record();
    let mut client = pair.client(&pair.alpha);
    let end = client.bytes;
    assert_eq!(end, pair.device_bytes());
    // Sectors, the last bytes of the device, across a 4 MiB extent and a 1 MiB request of the wire.
    for (seed, offset, length) in [
        (1, 512, 512),
        (2, 4096 - 512, 1024),
        (3, (4 << 20) - 4096, 8192),
        (4, end - 512, 512),
        (5, (1 << 20) - 512, (2 << 20) + 1024),
    ] {
        let data = pattern(seed, length);
        let fua = if seed % 2 == 0 { Fua::Yes } else { Fua::No };
        client.write(offset, &data, fua).unwrap();
        record.write(offset, &data);
        assert!(
            client.read(offset, length as u32).unwrap() == data,
            "read of write {seed}"
        );
    }
    client.write_zeroes(8192, 12288).unwrap();
    record.fill(8192, 12288, 0);
    client.trim(6 << 20, 1 << 20).unwrap();
    record.forget(6 << 20, 1 << 20);
    client.flush().unwrap();
    // Parts of sectors, across a request of the wire, up to the last byte.
    for (seed, offset, length) in [
        (11, 700, 1),
        (12, 511, 100),
        (13, 100, 512),
        (14, 300, (1 << 20) + 777),
        (15, end - 1, 1),
    ] {
        let data = pattern(seed, length);
        client.write(offset, &data, Fua::No).unwrap();
        record.write(offset, &data);
        assert!(
            client.read(offset, length as u32).unwrap() == data,
            "read of write {seed}"
        );
    }
    client.write_zeroes(20_000, 3000).unwrap();
    record.fill(20_000, 3000, 0);
    let beyond = client.write(end - 512, &[0; 1024], Fua::No).unwrap_err();
    assert_eq!(
        beyond.raw_os_error(),
        Some(28),
        "a write beyond the end is ENOSPC: {beyond}"
    );
    let beyond = client.read(end, 512).unwrap_err();
    assert_eq!(
        beyond.raw_os_error(),
        Some(22),
        "a read beyond the end is EINVAL: {beyond}"
    );
    client.write(0, &[9; 512], Fua::Yes).unwrap();
    record.fill(0, 512, 9);
    client.disconnect().unwrap();
    pair.down_and_compare(&record);
}

#[test]
fn four_clients_that_overwrite_each_other_leave_equal_disks() {
    let pair = synced();
    let socket = pair.alpha.socket();
    let writers: Vec<_> = (0..4u32)
        .map(|writer| {
            let socket = socket.clone();
            std::thread::spawn(move || {
                let mut client = Client::connect(&socket, "r0", CLIENT_LIMIT).unwrap();
                for round in 0..150u32 {
                    // All of them want the same few places, with other lengths and alignments.
                    let offset = u64::from((round * 7 + writer) % 13) * 1536;
                    let length = 512 * (1 + (round + writer * 3) % 16) as usize;
                    client
                        .write(offset, &pattern(round * 4 + writer, length), Fua::No)
                        .unwrap();
                }
                client.flush().unwrap();
            })
        })
        .collect();
    for writer in writers {
        let ended = writer.join();
        assert!(ended.is_ok(), "a writer failed\n{}", pair.logs());
    }
    let before = pair.client(&pair.alpha).read(0, 64 << 10).unwrap();
    pair.wait_synced();
    pair.down();
    pair.compare_disks(0, pair.device_bytes());
    let mut seen = Record::new(64 << 10);
    seen.write(0, &before);
    pair.compare_with(0, &seen);
}

#[test]
fn clients_over_tcp_see_the_same_exports() {
    let mut pair = synced();
    let address = tandem_tests::e2e::address::fresh();
    pair.bravo.kill();
    pair.bravo.start_with_nbd_tcp(address);
    pair.bravo.must(&["up", "r0"]);
    pair.wait_synced();
    let uri = format!("nbd://{address}/r0/0");
    let refused = tool::run(pair.dir.path(), "nbdinfo", &["--size", &uri]);
    assert_ne!(
        refused.code,
        Some(0),
        "a Secondary serves: {}",
        refused.all()
    );
    pair.alpha.must(&["secondary", "r0"]);
    pair.bravo.must(&["primary", "r0"]);
    let mut record = pair.record();
    record.fill(64 << 10, 1 << 20, 0x5a);
    let write = [
        "-f",
        "raw",
        "-c",
        "write -f -P 0x5a 64k 1M",
        "-c",
        "read -P 0x5a 64k 1M",
        &uri,
    ];
    let said = must(&pair, "qemu-io", &write);
    assert!(!said.contains("Pattern verification failed"), "{said}");
    let size = must(&pair, "nbdinfo", &["--size", &uri]);
    assert_eq!(size.trim(), pair.device_bytes().to_string());
    pair.down_and_compare(&record);
}

#[test]
fn clients_that_write_neighbouring_bytes_at_the_same_time_lose_nothing() {
    let pair = synced();
    let info = must(&pair, "nbdinfo", &["--json", &pair.alpha.uri(0)]);
    assert!(info.contains("\"block_size_minimum\": 1,"), "{info}");
    const LANE: usize = 37;
    let rounds = 120;
    let writers: Vec<_> = (0..4usize)
        .map(|writer| {
            let socket = pair.alpha.socket();
            std::thread::spawn(move || {
                let mut client = Client::connect(&socket, "r0", CLIENT_LIMIT).unwrap();
                for round in 0..rounds {
                    // Four writers share every sector, each with its own bytes.
                    let offset = ((round * 4 + writer) * LANE) as u64;
                    let data = pattern((round * 4 + writer) as u32, LANE);
                    client.write(offset, &data, Fua::No).unwrap();
                }
                client.flush().unwrap();
            })
        })
        .collect();
    for writer in writers {
        let ended = writer.join();
        assert!(ended.is_ok(), "a writer failed\n{}", pair.logs());
    }
    let mut record = pair.record();
    for lane in 0..4 * rounds {
        record.write((lane * LANE) as u64, &pattern(lane as u32, LANE));
    }
    pair.down_and_compare(&record);
}

#[test]
fn qemu_io_writes_and_reads_parts_of_sectors() {
    let pair = synced();
    let mut record = pair.record();
    record.fill(0, 8192, 1);
    record.fill(1000, 777, 2);
    record.fill(4095, 2, 3);
    record.fill(6000, 100, 0);
    let uri = pair.alpha.uri(0);
    let said = must(
        &pair,
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 1 0 8k",
            "-c",
            "write -P 2 1000 777",
            "-c",
            "write -f -P 3 4095 2",
            "-c",
            "write -z 6000 100",
            "-c",
            "flush",
            "-c",
            "read -P 2 1000 777",
            "-c",
            "read -P 3 4095 2",
            "-c",
            "read -P 1 999 1",
            "-c",
            "read -P 0 6000 100",
            &uri,
        ],
    );
    assert!(!said.contains("Pattern verification failed"), "{said}");
    pair.down_and_compare(&record);
    qemu_img_compares_both_disks(&pair);
}

#[test]
fn a_client_too_many_is_refused_in_words_and_taken_when_another_has_left() {
    let pair = synced();
    let socket = pair.alpha.socket();
    let connect = || Client::connect(&socket, "r0/0", CLIENT_LIMIT);
    let mut attached: Vec<Client> = (0..64).map(|_| connect().unwrap()).collect();
    let uri = pair.alpha.uri(0);
    let attempt = || tool::run(pair.dir.path(), "nbdinfo", &["--size", &uri]);
    wait::until(
        "the refusal",
        CLIENT_LIMIT,
        || (attempt().code != Some(0)).then_some(()),
        String::new,
    );
    assert!(attempt().says("server policy"), "{}", attempt().all());
    let refusal = connect().unwrap_err().to_string();
    assert!(refusal.contains("64 clients are attached"), "{refusal}");
    attached.pop();
    wait::until(
        "the end of the refusal",
        CLIENT_LIMIT,
        || (attempt().code == Some(0)).then_some(()),
        String::new,
    );
}
