//! Goal: a resync that is interrupted goes on where it was, whichever node dies in the middle of it.
//! Method: a slow resync of filled disks; SIGKILL of the daemon or of the whole machine; then a quick rate.

use tandem_tests::kernel::{Couple, Machine, Setup, noise};

use super::crash::{LOSS, quick_to_notice};

/// The bitmap on the disk learns of what is done in parts of 16 MiB.
const DISK: usize = 48 << 20;
/// When the interruption comes: one such part is done at least.
const LEFT_KIB: u64 = 24 << 10;
const SLOW: &str = "c-plan-ahead 0; resync-rate 4M;";
const QUICK: &str = "c-plan-ahead 0; resync-rate 400M;";

/// A full sync has begun, from the kernel or from Tandem, and some of it is done.
fn in_the_middle<'m>(machine: &'m Machine, source: Source) -> Couple<'m> {
    let setup = Setup {
        disk: String::from(SLOW),
        tandem_bytes: DISK as u64,
        kernel_bytes: DISK as u64,
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
    couple.wait_out_of_sync_below(LEFT_KIB);
    couple
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Kernel,
    Tandem,
}

/// The rest comes quickly; the kernel's node learns it when it is configured next.
fn hurry(couple: &mut Couple<'_>) {
    couple.setup.disk = String::from(QUICK);
    couple.reconfigure_tandem();
}

/// In sync; what was copied before the interruption was not copied again.
fn goes_on(couple: &Couple<'_>, kernel_is: &str) {
    couple.wait_connected("UpToDate/UpToDate");
    let begun = format!("Began resync as {kernel_is} (will sync ");
    let amounts: Vec<u64> = couple
        .kernel
        .messages()
        .iter()
        .filter_map(|message| {
            message
                .strip_prefix(&begun)?
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .collect();
    let last = *amounts.last().unwrap();
    assert!(
        last < LEFT_KIB + (16 << 10),
        "{amounts:?}\n{}",
        couple.kernel.log()
    );
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
    couple.reconfigure();
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
        .wait_state("WFConnection", "UpToDate/Inconsistent");
    hurry(&mut couple);
    couple.tandem.must(&["adjust", "r0"]);
    machine.boot_again();
    couple.after_boot();
    couple.kernel.must("up");
    goes_on(&couple, "SyncTarget");
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
    goes_on(&couple, "SyncSource");
    couple.finish();
}
