//! Goal: the two connections come up whoever dials, and end and return on either side's command.
//! Method: one of the two addresses leads nowhere, or a gate holds what both dial until both have.

use tandem_tests::e2e::wait;
use tandem_tests::kernel::couple::MOMENT;
use tandem_tests::kernel::{Couple, Dial, Machine, Setup, Wire};

fn connects(dial: Dial) {
    let setup = Setup {
        dial,
        ..Setup::default()
    };
    let couple = Couple::connected(Machine::shared(), setup);
    couple.kernel.wait_state(
        "Connected",
        "Secondary/Secondary",
        "Inconsistent/Inconsistent",
    );
    assert_eq!(couple.tandem.word("role"), "Secondary/Secondary");
    couple.finish_unequal();
}

#[test]
fn both_dial_and_the_pair_connects() {
    connects(Dial::Both);
}

#[test]
fn only_the_kernel_dials_and_the_pair_connects() {
    connects(Dial::OnlyKernel);
}

#[test]
fn only_tandem_dials_and_the_pair_connects() {
    connects(Dial::OnlyTandem);
}

/// How often the kernel and how often Tandem found that both had dialled.
fn crossings(couple: &Couple<'_>) -> (usize, usize) {
    let count = |text: &str, words: &str| text.matches(words).count();
    (
        count(
            &couple.kernel.messages().join("\n"),
            "initial packet S crossed",
        ),
        count(&couple.tandem.whole_log(), "data sockets crossed"),
    )
}

/// Each dials its data connection while the other's is on the way, so both meet a second one.
#[test]
fn connections_that_both_dialled_at_once_cross_and_the_pair_connects() {
    let setup = Setup {
        wire: Wire::Gated,
        // Who has dialled waits for the other's, longer than a command takes here.
        times: "connect-int 6; ping-timeout 30; socket-check-timeout 3;",
        ..Setup::default()
    };
    let couple = Couple::created(Machine::shared(), setup);
    let gate = couple.gate();
    gate.close();
    dial_at_once(&couple, "up");
    for turn in 1..=5u32 {
        let crossed = || {
            let (kernel, tandem) = crossings(&couple);
            let least = turn as usize;
            (gate.together() == turn && kernel >= least && tandem >= least).then_some(())
        };
        wait::until("a crossing", MOMENT * 3, crossed, || {
            let (tandem, kernel) = (couple.tandem.log(), couple.kernel.log());
            format!("turn {turn} of {}\n{tandem}{kernel}", gate.together())
        });
        couple.wait_connected("Inconsistent/Inconsistent");
        if turn == 5 {
            break;
        }
        couple.tandem.must(&["disconnect", "r0"]);
        couple.kernel.must("disconnect");
        couple
            .kernel
            .wait_for("cs:StandAlone ro:Secondary/Unknown ");
        gate.close();
        dial_at_once(&couple, "connect");
    }
    couple.finish_unequal();
}

/// Tandem dials as soon as the kernel's connection is held.
fn dial_at_once(couple: &Couple<'_>, word: &str) {
    let kernel = &couple.kernel;
    std::thread::scope(|scope| {
        scope.spawn(|| kernel.must(word));
        let held = || couple.gate().holds_the_kernel().then_some(());
        wait::until("the kernel's call", MOMENT * 3, held, || {
            couple.kernel.log()
        });
        couple.tandem.must(&[word, "r0"]);
    });
}

#[test]
fn a_disconnect_on_either_side_is_agreed_and_a_connect_brings_the_pair_back() {
    let couple = Couple::synced(Machine::shared(), Setup::default());
    couple.tandem.must(&["disconnect", "r0"]);
    couple.tandem.wait_state("StandAlone", "UpToDate/DUnknown");
    couple
        .kernel
        .wait_state("WFConnection", "Secondary/Unknown", "UpToDate/DUnknown");
    couple.tandem.must(&["connect", "r0"]);
    couple.wait_connected("UpToDate/UpToDate");
    couple.kernel.must("disconnect");
    couple
        .kernel
        .wait_state("StandAlone", "Secondary/Unknown", "UpToDate/DUnknown");
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    couple.kernel.must("connect");
    couple.wait_connected("UpToDate/UpToDate");
    couple.finish();
}

#[test]
fn the_initial_sync_is_skipped_on_either_sides_command() {
    for side in ["kernel", "tandem"] {
        let couple = Couple::connected(Machine::shared(), Setup::default());
        if side == "kernel" {
            couple.kernel.skip_initial_sync();
        } else {
            couple
                .tandem
                .must(&["new-current-uuid", "--clear-bitmap", "r0"]);
        }
        couple.wait_connected("UpToDate/UpToDate");
        assert_eq!(couple.kernel.out_of_sync_kib(), 0);
        couple.finish();
    }
}

fn authenticates(algorithm: &str, bytes: u32) {
    let setup = Setup {
        net: format!("protocol C; cram-hmac-alg {algorithm}; shared-secret \"a secret of two\";"),
        ..Setup::default()
    };
    let couple = Couple::connected(Machine::shared(), setup);
    let proved = format!("Peer authenticated using {bytes} bytes HMAC");
    let log = couple.kernel.log();
    assert!(log.contains(&proved), "{proved}\n{log}");
    couple.finish_unequal();
}

#[test]
fn a_shared_secret_with_sha1_is_proved_to_each_other() {
    authenticates("sha1", 20);
}

#[test]
fn a_shared_secret_with_sha256_is_proved_to_each_other() {
    authenticates("sha256", 32);
}
