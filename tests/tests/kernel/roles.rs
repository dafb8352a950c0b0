//! Goal: roles and states are agreed between the two as between two kernels.
//! Method: what one side must refuse the other is asked for, on both sides.

use tandem_tests::kernel::{Couple, Machine, Setup, noise};

/// What a kernel says of a refused change.
const REFUSED: &[&str] = &[
    "State change failed",
    "Requested state change failed by peer",
    "state = {",
    "wanted = {",
];

#[test]
fn a_second_primary_is_refused_on_either_side() {
    let couple = Couple::synced(Machine::shared(), Setup::default());
    couple.may_say(REFUSED);
    couple.kernel.must("primary");
    let refused = couple.tandem.adm(&["primary", "r0"]);
    assert_eq!(refused.code, Some(11), "{}", refused.all());
    let why = "Multiple primaries not allowed by config";
    assert!(refused.all().contains(why), "{}", refused.all());
    couple.kernel.must("secondary");
    couple.tandem.must(&["primary", "r0"]);
    let refused = couple.kernel.adm("primary");
    assert_eq!(refused.code, Some(11), "{}", refused.all());
    assert!(refused.all().contains(why), "{}", refused.all());
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

#[test]
fn a_verify_of_either_node_finds_equal_disks_equal() {
    let setup = Setup {
        net: String::from("protocol C; verify-alg crc32c;"),
        ..Setup::default()
    };
    let couple = Couple::synced(Machine::shared(), setup);
    couple.kernel.must("verify");
    couple
        .kernel
        .wait_state("Connected", "Secondary/Secondary", "UpToDate/UpToDate");
    couple.tandem.must(&["verify", "r0"]);
    couple
        .kernel
        .wait_state("Connected", "Secondary/Secondary", "UpToDate/UpToDate");
    couple.kernel.must("primary");
    couple.kernel.write(0, &noise(1, 65_536));
    couple.kernel.must("secondary");
    couple.finish();
}

#[test]
fn tandem_is_outdated_by_a_disconnect_of_a_fencing_kernel_primary() {
    let setup = Setup {
        kernel_disk: String::from("fencing resource-only;"),
        ..Setup::default()
    };
    let couple = Couple::synced(Machine::shared(), setup);
    couple.may_say(REFUSED);
    couple.kernel.must("primary");
    couple.kernel.must("disconnect");
    couple
        .kernel
        .wait_state("StandAlone", "Primary/Unknown", "UpToDate/Outdated");
    couple
        .tandem
        .wait_state("WFConnection", "Outdated/DUnknown");
    couple.kernel.must("connect");
    couple.wait_connected("UpToDate/UpToDate");
    couple.kernel.must("secondary");
    couple.finish();
}
