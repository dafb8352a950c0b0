//! Goal: an online verify finds what differs, whichever side starts it, and the next resync copies it; checksums spare blocks.
//! Method: differences are planted on either backing disk behind its owner's back, and both sides' counts are looked at.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use tandem_tests::e2e::client::Fua;
use tandem_tests::kernel::{Couple, Machine, Setup, noise};

const BOTH: &str = "UpToDate/UpToDate";

fn couple() -> Couple<'static> {
    let setup = Setup {
        net: String::from("protocol C; verify-alg crc32c;"),
        ..Setup::default()
    };
    Couple::synced(Machine::shared(), setup)
}

/// Blocks of Tandem's disk go bad.
fn plant(couple: &Couple<'_>, blocks: &[u64]) {
    let disk = couple.tandem.disk(0);
    let file = OpenOptions::new().write(true).open(disk).unwrap();
    for block in blocks {
        let bad = noise(1000 + block, 512);
        file.write_all_at(&bad, block * 4096 + 1024).unwrap();
    }
    file.sync_all().unwrap();
}

fn found(couple: &Couple<'_>, roles: &str, blocks: u64) {
    couple.kernel.wait_state("Connected", roles, BOTH);
    assert_eq!(couple.kernel.out_of_sync_kib(), 4 * blocks);
    couple.tandem.wait_state("Connected", BOTH);
    couple.wait_agreement();
    let words = format!("found {blocks} blocks of 4 KiB out of sync");
    let log = couple.tandem.log();
    assert!(log.contains(&words), "{words}\n{log}");
}

fn made_equal(couple: &Couple<'_>) {
    couple.kernel.must("disconnect");
    couple.kernel.must("connect");
    couple.wait_connected(BOTH);
    assert_eq!(couple.kernel.out_of_sync_kib(), 0);
    couple.compare_disks();
}

#[test]
fn a_verify_started_by_the_kernel_finds_what_differs() {
    let couple = couple();
    couple.kernel.must("primary");
    couple.kernel.write(0, &noise(1, 65_536));
    plant(&couple, &[3, 200, 201]);
    couple.kernel.must("verify");
    found(&couple, "Primary/Secondary", 3);
    made_equal(&couple);
    couple.kernel.must("secondary");
    couple.finish();
}

#[test]
fn a_verify_started_by_tandem_finds_what_differs() {
    let couple = couple();
    couple.kernel.must("primary");
    couple.kernel.write(0, &noise(1, 65_536));
    plant(&couple, &[0, 77]);
    couple.tandem.must(&["verify", "r0"]);
    found(&couple, "Primary/Secondary", 2);
    made_equal(&couple);
    couple.kernel.must("secondary");
    couple.finish();
}

/// Blocks of the kernel's disk go bad, Tandem is Primary; `start` begins the verify.
fn finds_what_went_bad_on_the_kernels_disk(
    blocks: &[u64],
    start: impl Fn(&Couple<'_>),
    role_of: &str,
) {
    let couple = couple();
    couple.tandem.must(&["primary", "r0"]);
    let data = noise(1, 1 << 20);
    let mut client = couple.client();
    client.write(0, &data, Fua::No).unwrap();
    client.flush().unwrap();
    for block in blocks {
        couple
            .kernel
            .write_beneath(block * 4096, &noise(1000 + block, 4096));
    }
    start(&couple);
    found(&couple, "Secondary/Primary", blocks.len() as u64);
    let log = couple.kernel.log();
    assert!(log.contains(role_of), "{role_of}\n{log}");
    // What the Primary writes meanwhile and the bad blocks, nothing more.
    couple.kernel.must("disconnect");
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    client.write(2 << 20, &noise(2, 4096), Fua::No).unwrap();
    client.disconnect().unwrap();
    couple.kernel.must("connect");
    couple.wait_connected(BOTH);
    couple.wait_agreement();
    assert_eq!(couple.kernel.out_of_sync_kib(), 0);
    let amount = format!(
        "Began resync as SyncTarget (will sync {} KB",
        4 * (blocks.len() + 1)
    );
    let log = couple.kernel.log();
    assert!(log.contains(&amount), "{amount}\n{log}");
    assert!(couple.kernel.disk(0, 1 << 20) == data, "not healed\n{log}");
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

#[test]
fn a_verify_started_by_the_kernel_finds_what_went_bad_on_its_own_disk() {
    let start = |couple: &Couple<'_>| {
        couple.kernel.must("verify");
    };
    finds_what_went_bad_on_the_kernels_disk(&[5, 100, 101, 255], start, "-> VerifyS )");
}

#[test]
fn a_verify_started_by_tandem_finds_what_went_bad_on_the_kernels_disk() {
    let start = |couple: &Couple<'_>| {
        couple.tandem.must(&["verify", "r0"]);
    };
    finds_what_went_bad_on_the_kernels_disk(&[0, 64, 200], start, "-> VerifyT )");
}

#[test]
fn checksums_spare_tandem_what_it_has_already() {
    let setup = Setup {
        net: String::from("protocol C; csums-alg sha1;"),
        ..Setup::default()
    };
    let couple = Couple::synced(Machine::shared(), setup);
    couple.kernel.must("primary");
    couple.kernel.write(0, &noise(1, 1 << 20));
    couple.kernel.must("disconnect");
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    couple.kernel.write(0, &noise(1, 65_536));
    couple.kernel.write(1 << 20, &noise(2, 65_536));
    couple.kernel.must("connect");
    couple.wait_connected(BOTH);
    couple.may_say(&["% had equal checksums"]);
    let log = couple.tandem.log();
    assert!(log.contains("16 of 32 blocks had equal checksums"), "{log}");
    couple.kernel.must("secondary");
    couple.finish();
}
