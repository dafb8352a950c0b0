//! Goal: a kernel that runs ahead of a slow Tandem is followed later.
//! Method: the daemon is stopped while the kernel writes with `on-congestion pull-ahead`.

use tandem_tests::e2e::wait;
use tandem_tests::kernel::couple::MOMENT;
use tandem_tests::kernel::{Couple, Machine, Setup, noise};

#[test]
fn a_kernel_that_pulls_ahead_is_followed_and_caught_up_with() {
    let setup = Setup {
        net: String::from("protocol A;"),
        kernel_net: String::from("on-congestion pull-ahead; congestion-fill 64K; ping-int 60;"),
        ..Setup::default()
    };
    let couple = Couple::synced(Machine::shared(), setup);
    couple.kernel.must("primary");
    couple.tandem.signal("STOP");
    let unsynced = "conv=notrunc oflag=direct,seek_bytes";
    for turn in 0..8u64 {
        couple
            .kernel
            .write_with(turn << 18, &noise(turn, 65_536), unsynced);
    }
    couple.kernel.wait_for("cs:Ahead ro:Primary/Secondary ");
    couple
        .kernel
        .write_with(3 << 20, &noise(9, 65_536), unsynced);
    couple.tandem.signal("CONT");
    // Tandem learns that it is left behind, and is caught up with.
    let behind = || {
        couple
            .tandem
            .whole_log()
            .contains("-> Behind )")
            .then_some(())
    };
    wait::until("Behind", MOMENT, behind, || couple.tandem.log());
    couple.wait_connected("UpToDate/UpToDate");
    let log = couple.kernel.log();
    assert!(log.contains("conn( Ahead -> SyncSource )"), "{log}");
    couple.compare_disks();
    couple.wait_agreement();
    couple.kernel.write(4 << 20, &noise(10, 65_536));
    // That may have been too much at once again.
    couple.wait_connected("UpToDate/UpToDate");
    couple.kernel.must("secondary");
    couple.finish();
}
