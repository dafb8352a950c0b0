//! Goal: what must not be connected is not, and each side says why.
//! Method: one setting differs.

use tandem_tests::kernel::{Couple, Machine, Setup};

/// Brings both up and waits until the kernel has given up.
fn refused(tandem_net: &str, kernel_net: &str, words: &[&'static str]) -> Couple<'static> {
    let setup = Setup {
        net: String::new(),
        tandem_net: tandem_net.to_owned(),
        kernel_net: kernel_net.to_owned(),
        ..Setup::default()
    };
    let couple = Couple::created(Machine::shared(), setup);
    couple.may_say(words);
    couple.may_say(&["Discarding network configuration", "error receiving Report"]);
    couple.up();
    couple
}

#[test]
fn a_wrong_secret_leaves_both_alone() {
    let net =
        |secret: &str| format!("protocol C; cram-hmac-alg sha256; shared-secret \"{secret}\";");
    let words = ["Authentication of peer failed", "uthentication failed"];
    let couple = refused(&net("one secret"), &net("another secret"), &words);
    couple
        .kernel
        .wait_state("StandAlone", "Secondary/Unknown", "Inconsistent/DUnknown");
    couple
        .tandem
        .wait_state("StandAlone", "Inconsistent/DUnknown");
    couple.finish_unequal();
}

#[test]
fn different_protocols_leave_both_alone() {
    let couple = refused("protocol A;", "protocol C;", &["incompatible "]);
    couple
        .kernel
        .wait_state("StandAlone", "Secondary/Unknown", "Inconsistent/DUnknown");
    couple
        .tandem
        .wait_state("StandAlone", "Inconsistent/DUnknown");
    couple.finish_unequal();
}

#[test]
fn a_disk_that_became_too_small_is_refused() {
    let mut couple = Couple::created(
        Machine::shared(),
        Setup {
            tandem_bytes: 16 << 20,
            kernel_bytes: 16 << 20,
            ..Setup::default()
        },
    );
    couple.up();
    couple.wait_connected("Inconsistent/Inconsistent");
    couple.kernel.must("primary --force");
    couple.wait_connected("UpToDate/UpToDate");
    couple
        .kernel
        .write(0, &tandem_tests::kernel::noise(1, 4096));
    couple.tandem.must(&["down", "r0"]);
    couple
        .kernel
        .wait_state("WFConnection", "Primary/Unknown", "UpToDate/DUnknown");
    // Another, smaller disk in its place, never written.
    couple.tandem.kill();
    let disk = std::fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(couple.tandem.disk(0))
        .unwrap();
    disk.set_len(8 << 20).unwrap();
    couple.tandem.must(&["create-md", "--force", "r0"]);
    couple.tandem.start();
    couple.may_say(&[
        "The peer's disk size is too small",
        "Considerable difference in lower level device sizes",
        "error receiving ReportSizes",
        "Discarding network configuration",
        "new current UUID",
    ]);
    couple.tandem.must(&["up", "r0"]);
    couple
        .kernel
        .wait_state("StandAlone", "Primary/Unknown", "UpToDate/DUnknown");
    couple.kernel.must("secondary");
    couple.finish_unequal();
}
