//! Goal: an online verify finds what differs, whichever side starts it, and the next resync copies it; checksums spare blocks.
//! Method: differences are planted on Tandem's backing disk behind the daemon's back, and both sides' counts are looked at.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

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
