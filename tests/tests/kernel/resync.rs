//! Goal: a node that was away gets exactly what it missed, in both directions.
//! Method: full syncs of filled disks, disconnects with writes on one side, split brain; disks compared afterwards.

use std::os::unix::fs::{FileExt, MetadataExt};

use tandem_protocol::Packet;
use tandem_tests::e2e::client::Fua;
use tandem_tests::kernel::{Couple, Machine, Setup, Wire, noise};

use super::extensions::packets;

const DISK: usize = 8 << 20;

#[test]
fn a_full_sync_from_the_kernel_fills_tandems_disk() {
    let mut couple = Couple::configured(Machine::shared(), Setup::default());
    couple.kernel.fill(0, &noise(1, DISK));
    couple.create();
    couple.up();
    couple.wait_connected("Inconsistent/Inconsistent");
    couple.kernel.must("primary --force");
    couple
        .kernel
        .wait_state("Connected", "Primary/Secondary", "UpToDate/UpToDate");
    couple.wait_connected("UpToDate/UpToDate");
    assert_eq!(couple.kernel.out_of_sync_kib(), 0);
    couple.compare_disks();
    couple.kernel.must("secondary");
    couple.finish();
}

#[test]
fn a_full_sync_from_tandem_fills_the_kernels_disk() {
    let mut couple = Couple::configured(Machine::shared(), Setup::default());
    std::fs::write(couple.tandem.disk(0), noise(2, DISK)).unwrap();
    couple.kernel.fill(0, &noise(3, DISK));
    couple.create();
    couple.up();
    couple.wait_connected("Inconsistent/Inconsistent");
    couple.tandem.must(&["primary", "--force", "r0"]);
    couple
        .kernel
        .wait_state("Connected", "Secondary/Primary", "UpToDate/UpToDate");
    couple.wait_connected("UpToDate/UpToDate");
    assert_eq!(couple.kernel.out_of_sync_kib(), 0);
    couple.compare_disks();
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

/// The kernel counts compressed bitmaps, and says nothing of plain ones.
fn exchanged_as(couple: &Couple<'_>, net: &str) {
    let compressed = couple
        .kernel
        .messages()
        .iter()
        .filter(|message| message.contains("bitmap stats [Bytes(packets)]: plain 0(0), RLE "))
        .count();
    let plain = net.contains("use-rle no");
    assert_eq!(compressed == 0, plain, "{}", couple.kernel.log());
}

/// The kernel writes while Tandem is away.
fn tandem_missed(net: &str) {
    let setup = Setup {
        net: net.to_owned(),
        ..Setup::default()
    };
    let couple = Couple::synced(Machine::shared(), setup);
    couple.kernel.must("primary");
    couple.kernel.write(0, &noise(1, 1 << 20));
    couple.tandem.must(&["disconnect", "r0"]);
    couple
        .kernel
        .wait_state("WFConnection", "Primary/Unknown", "UpToDate/DUnknown");
    couple.kernel.write(4096, &noise(2, 8192));
    couple.kernel.write(3 << 20, &noise(3, 65_536));
    assert_eq!(couple.kernel.out_of_sync_kib(), 72);
    couple.tandem.must(&["connect", "r0"]);
    couple.wait_connected("UpToDate/UpToDate");
    assert_eq!(couple.kernel.out_of_sync_kib(), 0);
    exchanged_as(&couple, net);
    couple.compare_disks();
    couple.kernel.must("secondary");
    couple.finish();
}

#[test]
fn tandem_gets_what_it_missed() {
    tandem_missed("protocol C;");
}

#[test]
fn tandem_gets_what_it_missed_with_a_plain_bitmap() {
    tandem_missed("protocol C; use-rle no;");
}

/// Tandem writes while the kernel is away.
fn kernel_missed(net: &str) {
    let setup = Setup {
        net: net.to_owned(),
        ..Setup::default()
    };
    let couple = Couple::synced(Machine::shared(), setup);
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    client.write(0, &noise(1, 1 << 20), Fua::No).unwrap();
    couple.kernel.must("disconnect");
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    client.write(4096, &noise(2, 8192), Fua::No).unwrap();
    client.write(3 << 20, &noise(3, 65_536), Fua::No).unwrap();
    client.flush().unwrap();
    couple.kernel.must("connect");
    couple.wait_connected("UpToDate/UpToDate");
    assert!(
        couple.kernel.log().contains("72 KB [18 bits set]"),
        "{}",
        couple.kernel.log()
    );
    client.disconnect().unwrap();
    exchanged_as(&couple, net);
    couple.compare_disks();
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

#[test]
fn the_kernel_gets_what_it_missed() {
    kernel_missed("protocol C;");
}

#[test]
fn the_kernel_gets_what_it_missed_with_a_plain_bitmap() {
    kernel_missed("protocol A; use-rle no;");
}

#[test]
fn writes_during_a_resync_end_on_both_disks() {
    for kernel_is_source in [true, false] {
        let setup = Setup {
            disk: String::from("c-plan-ahead 0; resync-rate 1M;"),
            ..Setup::default()
        };
        let couple = Couple::connected(Machine::shared(), setup);
        if kernel_is_source {
            couple.kernel.must("primary --force");
            couple.kernel.wait_for("cs:SyncSource");
            for turn in 0..6u64 {
                couple.kernel.write(turn * 1_200_128, &noise(turn, 65_536));
                // The first of them at least met the resync.
                let during = couple.kernel.state().starts_with("cs:SyncSource ");
                assert!(during || turn > 0, "{}", couple.kernel.log());
            }
            couple.wait_connected("UpToDate/UpToDate");
            couple.compare_disks();
            couple.kernel.must("secondary");
        } else {
            couple.tandem.must(&["primary", "--force", "r0"]);
            couple.kernel.wait_for("cs:SyncTarget");
            let mut client = couple.client();
            for turn in 0..60u64 {
                client
                    .write(turn * 120_320, &noise(turn, 16_384), Fua::No)
                    .unwrap();
            }
            client.disconnect().unwrap();
            couple.wait_connected("UpToDate/UpToDate");
            couple.compare_disks();
            couple.tandem.must(&["secondary", "r0"]);
        }
        couple.finish();
    }
}

/// One side is away while the other one writes 3 MiB; these are synced slowly, with writes going on.
fn writes_during_a_bitmap_resync(net: &str) {
    let setup = Setup {
        net: net.to_owned(),
        disk: String::from("c-plan-ahead 0; resync-rate 1M;"),
        ..Setup::default()
    };
    let couple = Couple::equal_from_the_start(Machine::shared(), setup);
    couple.kernel.must("primary");
    couple.tandem.must(&["disconnect", "r0"]);
    couple
        .kernel
        .wait_state("WFConnection", "Primary/Unknown", "UpToDate/DUnknown");
    couple.kernel.write(0, &noise(1, 3 << 20));
    couple.tandem.must(&["connect", "r0"]);
    couple.kernel.wait_for("cs:SyncSource ");
    couple.wait_agreement_of_states();
    for turn in 0..8u64 {
        couple
            .kernel
            .write(turn * 500_224, &noise(turn + 2, 32_768));
    }
    couple.wait_connected("UpToDate/UpToDate");
    couple.compare_disks();
    couple.kernel.must("secondary");
    couple.tandem.must(&["primary", "r0"]);
    couple.kernel.must("disconnect");
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    let mut client = couple.client();
    client.write(2 << 20, &noise(20, 3 << 20), Fua::No).unwrap();
    couple.kernel.must("connect");
    couple.kernel.wait_for("cs:SyncTarget ");
    couple.wait_agreement_of_states();
    for turn in 0..60u64 {
        let data = noise(turn + 30, 16_384);
        client
            .write((2 << 20) + turn * 60_416, &data, Fua::No)
            .unwrap();
    }
    client.disconnect().unwrap();
    couple.wait_connected("UpToDate/UpToDate");
    couple.wait_agreement();
    exchanged_as(&couple, net);
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

#[test]
fn writes_during_a_resync_by_bitmap_end_on_both_disks() {
    writes_during_a_bitmap_resync("protocol C;");
}

#[test]
fn writes_during_a_resync_by_plain_bitmap_end_on_both_disks() {
    writes_during_a_bitmap_resync("protocol B; use-rle no;");
}

#[test]
fn an_invalidate_on_either_side_syncs_everything_again() {
    let couple = Couple::synced(Machine::shared(), Setup::default());
    let kib = couple.kernel.device_bytes() >> 10;
    let mut begun = 1;
    let mut synced_as = |kernel_is: &str| {
        couple.wait_connected("UpToDate/UpToDate");
        let messages = couple.kernel.messages();
        let all = messages
            .iter()
            .filter(|said| said.starts_with("Began resync as "));
        let said: Vec<&String> = all.collect();
        begun += 1;
        assert_eq!(said.len(), begun, "{said:?}");
        let wanted = format!("Began resync as {kernel_is} (will sync {kib} KB ");
        assert!(said[begun - 1].starts_with(&wanted), "{wanted}: {said:?}");
    };
    couple.kernel.must("invalidate");
    synced_as("SyncTarget");
    couple.tandem.must(&["invalidate", "r0"]);
    synced_as("SyncSource");
    couple.kernel.must("invalidate-remote");
    synced_as("SyncSource");
    couple.tandem.must(&["invalidate-remote", "r0"]);
    synced_as("SyncTarget");
    couple.finish();
}

#[test]
fn checksums_spare_the_kernel_what_it_has_already() {
    let setup = Setup {
        net: String::from("protocol C; csums-alg sha1;"),
        ..Setup::default()
    };
    let couple = Couple::synced(Machine::shared(), setup);
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    client.write(0, &noise(1, 1 << 20), Fua::No).unwrap();
    couple.kernel.must("disconnect");
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    client.write(0, &noise(1, 65_536), Fua::No).unwrap();
    client.write(1 << 20, &noise(2, 65_536), Fua::No).unwrap();
    couple.kernel.must("connect");
    couple.wait_connected("UpToDate/UpToDate");
    couple.may_say(&["% had equal checksums"]);
    let spared = "50 % had equal checksums, eliminated: 64K; transferred 64K total 128K";
    let log = couple.kernel.log();
    assert!(log.contains(spared), "{spared}\n{log}");
    client.disconnect().unwrap();
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

#[test]
fn holes_are_synced_to_the_kernel_as_discards() {
    let mut couple = Couple::configured(
        Machine::shared(),
        Setup {
            kernel_disk: String::from("rs-discard-granularity 65536;"),
            wire: Wire::Tapped,
            ..Setup::default()
        },
    );
    // Tandem's disk is noise in its first MiB and empty behind it.
    std::fs::OpenOptions::new()
        .write(true)
        .open(couple.tandem.disk(0))
        .unwrap()
        .write_all_at(&noise(4, 1 << 20), 0)
        .unwrap();
    couple.kernel.fill(0, &noise(3, DISK));
    couple.create();
    couple.up();
    couple.wait_connected("Inconsistent/Inconsistent");
    couple.tandem.must(&["primary", "--force", "r0"]);
    couple.wait_connected("UpToDate/UpToDate");
    let sent: Vec<Packet> = couple
        .tap()
        .sent()
        .iter()
        .flat_map(|s| packets(s))
        .collect();
    let holes = |packet: &Packet| match packet {
        Packet::RsDeallocated(hole) => u64::from(hole.blksize),
        _ => 0,
    };
    let bytes: u64 = sent.iter().map(holes).sum();
    assert!(bytes >= 6 << 20, "{bytes} bytes were told as holes");
    let filled = |packet: &Packet| match packet {
        Packet::RsDataReply(data) => data.payload.len() as u64,
        _ => 0,
    };
    let bytes: u64 = sent.iter().map(filled).sum();
    assert!(bytes <= 2 << 20, "{bytes} bytes were sent as data");
    couple.compare_disks();
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

#[test]
fn holes_are_synced_to_tandem_as_discards() {
    let mut setup = Setup {
        wire: Wire::Tapped,
        ..Setup::default()
    };
    setup.disk.push_str(" rs-discard-granularity 65536;");
    let mut couple = Couple::configured(Machine::shared(), setup);
    // The kernel's disk is noise in its first MiB and empty behind it; Tandem's is all noise.
    couple.kernel.fill(0, &vec![0; DISK]);
    couple.kernel.fill(0, &noise(3, 1 << 20));
    std::fs::write(couple.tandem.disk(0), noise(4, DISK)).unwrap();
    let blocks = || std::fs::metadata(couple.tandem.disk(0)).unwrap().blocks();
    let full = blocks();
    couple.create();
    couple.up();
    couple.wait_connected("Inconsistent/Inconsistent");
    couple.kernel.must("primary --force");
    couple.wait_connected("UpToDate/UpToDate");
    let sent: Vec<Packet> = couple
        .tap()
        .sent()
        .iter()
        .flat_map(|s| packets(s))
        .collect();
    let asked = |packet: &Packet| match packet {
        Packet::RsThinReq(request) => u64::from(request.blksize),
        _ => 0,
    };
    let bytes: u64 = sent.iter().map(asked).sum();
    assert!(bytes >= 6 << 20, "{bytes} bytes were asked for as holes");
    couple.compare_disks();
    // The file has given its space back where the kernel has zeroes (in units of 512 bytes).
    let left = std::fs::metadata(couple.tandem.disk(0)).unwrap().blocks();
    assert!(left < full / 2, "{left} of {full} blocks are left");
    couple.kernel.must("secondary");
    couple.finish();
}

/// Both were Primary and wrote while apart; both are Secondary and StandAlone afterwards.
fn split_brain() -> Couple<'static> {
    let couple = Couple::synced(Machine::shared(), Setup::default());
    couple.tandem.must(&["disconnect", "r0"]);
    couple
        .kernel
        .wait_state("WFConnection", "Secondary/Unknown", "UpToDate/DUnknown");
    couple.kernel.must("primary");
    couple.kernel.write(4096, &noise(1, 65_536));
    couple.kernel.must("secondary");
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    client.write(32_768, &noise(2, 65_536), Fua::No).unwrap();
    client.disconnect().unwrap();
    couple.tandem.must(&["secondary", "r0"]);
    // Each counts what it wrote since the two went separate ways.
    assert_eq!(couple.kernel.out_of_sync_kib(), 64);
    assert_eq!(couple.tandem.settled_counter(0, "oos"), 64);
    couple.may_say(&[
        "Split-Brain detected",
        "error receiving ReportState",
        "Discarding network configuration",
        // Both leave, and either may be the first.
        "meta connection shut down by peer",
        "conn( WFReportParams -> NetworkFailure )",
        "conn( NetworkFailure -> Disconnecting )",
    ]);
    couple.tandem.must(&["connect", "r0"]);
    couple
        .kernel
        .wait_state("StandAlone", "Secondary/Unknown", "UpToDate/DUnknown");
    couple.tandem.wait_state("StandAlone", "UpToDate/DUnknown");
    for log in [couple.kernel.log(), couple.tandem.log()] {
        let said = "Split-Brain detected but unresolved, dropping connection!";
        assert!(log.contains(said), "{log}");
    }
    let told = couple.tandem.explained();
    assert!(told.contains("connect --discard-my-data"), "{told}");
    couple
}

#[test]
fn split_brain_is_seen_and_the_kernel_discards_its_data() {
    let couple = split_brain();
    couple.tandem.must(&["connect", "r0"]);
    couple.kernel.must("connect --discard-my-data");
    couple.wait_connected("UpToDate/UpToDate");
    couple.compare_disks();
    couple.wait_agreement();
    assert_eq!(couple.kernel.disk(32_768, 65_536), noise(2, 65_536));
    couple.finish();
}

#[test]
fn split_brain_is_seen_and_tandem_discards_its_data() {
    let couple = split_brain();
    couple.kernel.must("connect");
    couple.tandem.must(&["connect", "--discard-my-data", "r0"]);
    couple.wait_connected("UpToDate/UpToDate");
    couple.compare_disks();
    couple.wait_agreement();
    assert_eq!(couple.kernel.disk(4096, 65_536), noise(1, 65_536));
    couple.finish();
}
