//! Goal: a resync that is interrupted goes on where it was, whichever node dies in the middle of it.
//! Method: a slow resync of filled disks; SIGKILL of the daemon or of the whole machine; then a quick rate.

use tandem_tests::kernel::{Couple, Machine, Setup, noise};

use super::crash::{LOSS, quick_to_notice};

const DISK: usize = 8 << 20;
const SLOW: &str = "c-plan-ahead 0; resync-rate 1M;";
const QUICK: &str = "c-plan-ahead 0; resync-rate 400M;";

/// A full sync has begun, from the kernel or from Tandem, and some of it is done.
fn in_the_middle<'m>(machine: &'m Machine, source: Source) -> Couple<'m> {
    let setup = Setup {
        disk: String::from(SLOW),
        ..quick_to_notice()
    };
    let mut couple = Couple::configured(machine, setup);
    couple.may_say(LOSS);
    std::fs::write(couple.tandem.disk(0), noise(1, DISK)).unwrap();
    couple.kernel.fill(0, &noise(2, DISK));
    couple.create();
    couple.up();
    couple.wait_connected("Inconsistent/Inconsistent");
    match source {
        Source::Kernel => {
            couple.kernel.must("primary --force");
            couple.kernel.wait_for("cs:SyncSource ");
        }
        Source::Tandem => {
            couple.tandem.must(&["primary", "--force", "r0"]);
            couple.kernel.wait_for("cs:SyncTarget ");
        }
    }
    couple.wait_out_of_sync_below(6 << 10);
    couple
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Kernel,
    Tandem,
}

/// The rest comes quickly.
fn hurry(couple: &mut Couple<'_>) {
    couple.setup.disk = String::from(QUICK);
    couple.reconfigure();
}

/// In sync; what was copied before the interruption was not copied again.
fn goes_on(couple: &Couple<'_>, kernel_is: &str) {
    couple.wait_connected("UpToDate/UpToDate");
    let begun = format!("Began resync as {kernel_is} (will sync ");
    let amounts: Vec<u64> = couple
        .kernel
        .messages()
        .iter()
        .filter_map(|message| message.strip_prefix(&begun)?.split(' ').next()?.parse().ok())
        .collect();
    let last = *amounts.last().unwrap();
    assert!(last < 7 << 10, "{amounts:?}\n{}", couple.kernel.log());
    couple.compare_disks();
}

#[test]
fn a_killed_tandem_sync_source_goes_on_after_its_return() {
    let mut couple = in_the_middle(Machine::shared(), Source::Tandem);
    couple.tandem.kill();
    couple
        .kernel
        .wait_state("WFConnection", "Secondary/Unknown", "Inconsistent/DUnknown");
    hurry(&mut couple);
    couple.kernel.must("adjust");
    couple.tandem.start();
    couple.tandem.must(&["up", "r0"]);
    goes_on(&couple, "SyncTarget");
    couple.finish();
}

#[test]
fn a_resync_goes_on_after_the_kernel_was_reset_as_its_target() {
    let machine = Machine::breakable();
    let mut couple = in_the_middle(&machine, Source::Tandem);
    machine.crash();
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    hurry(&mut couple);
    couple.tandem.must(&["adjust", "r0"]);
    machine.boot_again();
    couple.after_boot();
    couple.kernel.must("up");
    couple.wait_connected("UpToDate/UpToDate");
    couple.compare_disks();
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

#[test]
fn a_resync_goes_on_after_the_kernel_was_reset_as_its_source() {
    let machine = Machine::breakable();
    let mut couple = in_the_middle(&machine, Source::Kernel);
    machine.crash();
    couple
        .tandem
        .wait_state("WFConnection", "Inconsistent/DUnknown");
    // Half of a copy is not shown to anybody.
    let refused = couple.tandem.adm(&["primary", "r0"]);
    assert_ne!(refused.code, Some(0), "{}", refused.all());
    hurry(&mut couple);
    couple.tandem.must(&["adjust", "r0"]);
    machine.boot_again();
    couple.after_boot();
    couple.kernel.must("up");
    couple.wait_connected("UpToDate/UpToDate");
    couple.compare_disks();
    couple.finish();
}
