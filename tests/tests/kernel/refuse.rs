//! Goal: what must not be connected is not, and each side says why.
//! Method: one setting differs.

use tandem_tests::e2e::wait;
use tandem_tests::kernel::couple::MOMENT;
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

fn both_alone(couple: &Couple<'_>) {
    couple
        .kernel
        .wait_state("StandAlone", "Secondary/Unknown", "Inconsistent/DUnknown");
    couple
        .tandem
        .wait_state("StandAlone", "Inconsistent/DUnknown");
}

/// The kernel says the one in its log, Tandem tells the other to whoever asks.
fn both_say(couple: &Couple<'_>, kernel: &str, tandem: &str) {
    let said = || couple.kernel.log().contains(kernel).then_some(());
    wait::until(kernel, MOMENT, said, || couple.kernel.log());
    let told = || couple.tandem.explained().contains(tandem).then_some(());
    wait::until(tandem, MOMENT, told, || {
        format!("{}\n{}", couple.tandem.explained(), couple.tandem.log())
    });
}

#[test]
fn a_wrong_secret_leaves_both_alone() {
    let net =
        |secret: &str| format!("protocol C; cram-hmac-alg sha256; shared-secret \"{secret}\";");
    let words = ["Authentication of peer failed", "uthentication failed"];
    let couple = refused(&net("one secret"), &net("another secret"), &words);
    both_alone(&couple);
    both_say(
        &couple,
        "uthentication",
        "give both nodes the same shared-secret",
    );
    couple.finish_unequal();
}

#[test]
fn a_secret_on_tandem_alone_keeps_both_apart() {
    let secret = "protocol C; cram-hmac-alg sha256; shared-secret \"one secret\";";
    let couple = refused(secret, "protocol C;", &[]);
    both_say(&couple, "expected AuthChallenge", "cram-hmac-alg");
    couple.finish_unequal();
}

#[test]
fn a_secret_on_the_kernel_alone_keeps_both_apart() {
    let secret = "protocol C; cram-hmac-alg sha256; shared-secret \"one secret\";";
    let couple = refused("protocol C;", secret, &["uthentication", "AuthChallenge"]);
    both_say(&couple, "AuthChallenge", "cram-hmac-alg");
    couple.finish_unequal();
}

#[test]
fn different_protocols_leave_both_alone() {
    let couple = refused("protocol A;", "protocol C;", &["incompatible "]);
    both_alone(&couple);
    both_say(
        &couple,
        "incompatible protocol",
        "protocol is A here and C on the peer",
    );
    couple.finish_unequal();
}

#[test]
fn different_integrity_algorithms_leave_both_alone() {
    let couple = refused(
        "protocol C; data-integrity-alg sha1;",
        "protocol C; data-integrity-alg crc32c;",
        &["incompatible "],
    );
    both_alone(&couple);
    both_say(
        &couple,
        "incompatible data-integrity-alg",
        "data-integrity-alg is 'sha1' here and 'crc32c' on the peer",
    );
    couple.finish_unequal();
}

/// Each node was made Primary on its own, at the beginning, with its own data.
#[test]
fn unrelated_data_leave_both_alone() {
    let couple = Couple::created(Machine::shared(), Setup::default());
    couple.may_say(&[
        "Unrelated data, aborting!",
        "Discarding network configuration",
        "error receiving Report",
        "new current UUID",
    ]);
    couple.tandem.must(&["attach", "r0"]);
    couple.tandem.must(&["primary", "--force", "r0"]);
    couple.tandem.must(&["secondary", "r0"]);
    couple.kernel.must("attach");
    couple.kernel.must("primary --force");
    couple.kernel.must("secondary");
    couple.tandem.must(&["connect", "r0"]);
    couple.kernel.must("connect");
    couple
        .kernel
        .wait_state("StandAlone", "Secondary/Unknown", "UpToDate/DUnknown");
    couple.tandem.wait_state("StandAlone", "UpToDate/DUnknown");
    both_say(&couple, "Unrelated data, aborting!", "unrelated");
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
    both_say(
        &couple,
        "The peer's disk size is too small",
        "disk is too small",
    );
    couple.kernel.must("secondary");
    couple.finish_unequal();
}
