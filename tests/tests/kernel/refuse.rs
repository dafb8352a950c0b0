//! Goal: what must not be connected is not, and each side says why.
//! Method: one setting differs.

use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::wait;
use tandem_tests::kernel::couple::MOMENT;
use tandem_tests::kernel::{Couple, Health, Machine, Setup, noise};

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

/// The answers differ in length already: neither a kernel nor Tandem takes that for a wrong secret, both try again.
fn different_digests(tandem: &str, kernel: &str) {
    let net =
        |name: &str| format!("protocol C; cram-hmac-alg {name}; shared-secret \"one secret\";");
    let couple = refused(&net(tandem), &net(kernel), crate::crash::LOSS);
    couple.may_say(&["uthentication", "AuthResponse"]);
    both_say(
        &couple,
        "expected AuthResponse payload of wrong size",
        "give both nodes the same cram-hmac-alg",
    );
    couple
        .kernel
        .wait_for("cs:(WFConnection|Unconnected|NetworkFailure) ro:Secondary/Unknown ds:Inconsistent/DUnknown ");
    // As soon as both have the same they come together, without a command for the kernel.
    let mut couple = couple;
    couple.setup.tandem_net = net(kernel);
    couple.reconfigure_tandem();
    for word in ["adjust", "disconnect", "connect"] {
        couple.tandem.must(&[word, "r0"]);
    }
    couple.wait_connected("Inconsistent/Inconsistent");
    couple.finish_unequal();
}

#[test]
fn different_digests_of_the_same_secret_keep_both_apart() {
    different_digests("sha1", "sha256");
}

#[test]
fn a_longer_digest_on_tandem_keeps_both_apart() {
    different_digests("sha256", "sha1");
}

#[test]
fn a_secret_on_tandem_alone_keeps_both_apart() {
    let secret = "protocol C; cram-hmac-alg sha256; shared-secret \"one secret\";";
    let couple = refused(secret, "protocol C;", crate::crash::LOSS);
    // As with a kernel that has a secret, the one without it is asked for an answer that it does not know, and left.
    both_say(
        &couple,
        "Connection closed",
        "the peer does not authenticate itself",
    );
    couple
        .tandem
        .wait_state("StandAlone", "Inconsistent/DUnknown");
    couple.may_say(&[
        "Unexpected data packet AuthChallenge (0x0010)",
        "ProtocolError",
    ]);
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

/// Tandem's disk was made Primary on its own; the kernel's has lived on, and remembers no generation of the beginning.
#[test]
fn unrelated_data_leave_both_alone() {
    let couple = Couple::synced(Machine::shared(), Setup::default());
    couple.kernel.must("primary");
    for turn in 1..=2u64 {
        couple.tandem.must(&["disconnect", "r0"]);
        couple.kernel.wait_for("cs:WFConnection ");
        couple.kernel.write(0, &noise(turn, 4096));
        couple.tandem.must(&["connect", "r0"]);
        couple.wait_connected("UpToDate/UpToDate");
    }
    couple.kernel.must("secondary");
    couple.kernel.must("disconnect");
    couple.tandem.must(&["down", "r0"]);
    couple.tandem.must(&["create-md", "--force", "r0"]);
    couple.tandem.must(&["up", "r0"]);
    couple.tandem.must(&["primary", "--force", "r0"]);
    couple.tandem.must(&["secondary", "r0"]);
    couple.may_say(&[
        "Unrelated data, aborting!",
        "Discarding network configuration",
        "error receiving Report",
    ]);
    couple.kernel.must("connect");
    couple
        .kernel
        .wait_state("StandAlone", "Secondary/Unknown", "UpToDate/DUnknown");
    couple.tandem.wait_state("StandAlone", "UpToDate/DUnknown");
    both_say(&couple, "Unrelated data, aborting!", "unrelated");
    couple.finish_unequal();
}

/// In sync on disks of 16 MiB, with data; the kernel or Tandem is Primary.
fn large_and_synced(primary: &str) -> Couple<'static> {
    let setup = Setup {
        tandem_bytes: 16 << 20,
        kernel_bytes: 16 << 20,
        ..Setup::default()
    };
    let couple = Couple::synced(Machine::shared(), setup);
    if primary == "kernel" {
        couple.kernel.must("primary");
        couple.kernel.write(0, &noise(1, 4096));
    } else {
        couple.tandem.must(&["primary", "r0"]);
        let mut client = couple.client();
        client.write(0, &noise(1, 4096), Fua::No).unwrap();
        client.disconnect().unwrap();
    }
    couple
}

#[test]
fn a_disk_of_tandem_that_became_too_small_is_refused_by_the_kernel() {
    let mut couple = large_and_synced("kernel");
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
    // Only the node with the data can judge, as between two kernels.
    both_say(
        &couple,
        "The peer's disk size is too small",
        "the peer closed the connection",
    );
    couple.kernel.must("secondary");
    couple.finish_unequal();
}

#[test]
fn a_disk_of_the_kernel_that_became_too_small_is_refused_by_tandem() {
    let mut couple = large_and_synced("tandem");
    couple.kernel.must("down");
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    couple.kernel.disk_bytes = 8 << 20;
    couple.kernel.set_disk(Health::Good);
    couple.kernel.must("create-md --force");
    couple.may_say(crate::crash::LOSS);
    couple.may_say(&["Considerable difference in lower level device sizes"]);
    couple.kernel.must("up");
    couple.tandem.wait_state("StandAlone", "UpToDate/DUnknown");
    both_say(&couple, "shut down by peer", "the peer's disk is too small");
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish_unequal();
}
