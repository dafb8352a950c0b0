//! Goal: after the sudden death of either Primary every acknowledged write is on the other node, and the dead one
//! comes back and becomes equal.
//! Method: SIGKILL of Tandem's daemon, of the whole machine, and a pulled cable, all while writes are under way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::wait;
use tandem_tests::kernel::couple::MOMENT;
use tandem_tests::kernel::machine::Cable;
use tandem_tests::kernel::{Couple, Machine, Setup, noise};

pub(crate) const LOSS: &[&str] = &[
    "BrokenPipe",
    "NetworkFailure",
    "Timeout",
    "sock was shut down by peer",
    "meta connection shut down by peer",
    "short read",
    "_drbd_send_page",
    "drbd_send_block() failed",
    "PingAck did not arrive in time",
    "sock_sendmsg returned",
    "sock_recvmsg returned",
    "asender terminated",
    "error receiving",
    "new current UUID",
    "has been blocked",
    "Remote failed to finish a request",
];

/// A peer that says nothing is missed soon.
pub(crate) fn quick_to_notice() -> Setup {
    Setup {
        net: String::from("protocol C; ping-int 2;"),
        ..Setup::default()
    }
}

/// Writes on Tandem until it dies; blocks with the seeds that were acknowledged last.
fn write_until_death(couple: &mut Couple<'_>) -> Vec<(u64, u64)> {
    let mut client = couple.client();
    let stop = AtomicBool::new(false);
    let acknowledged = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut done = Vec::new();
            let mut turn = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let block = (turn * 37) % 1500;
                if client
                    .write(block * 4096, &noise(turn + 1, 4096), Fua::No)
                    .is_err()
                {
                    break;
                }
                done.push((block, turn + 1));
                turn += 1;
            }
            done
        });
        std::thread::sleep(Duration::from_millis(700));
        couple.tandem.kill();
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    assert!(!acknowledged.is_empty());
    acknowledged
}

fn last_of_each_block(writes: &[(u64, u64)]) -> std::collections::BTreeMap<u64, u64> {
    writes.iter().copied().collect()
}

#[test]
fn the_kernel_takes_over_from_a_killed_tandem_primary_which_then_returns() {
    let mut couple = Couple::synced(Machine::shared(), Setup::default());
    couple.may_say(LOSS);
    couple.tandem.must(&["primary", "r0"]);
    let writes = write_until_death(&mut couple);
    couple
        .kernel
        .wait_state("WFConnection", "Secondary/Unknown", "UpToDate/DUnknown");
    couple.kernel.must("primary");
    for (block, seed) in last_of_each_block(&writes) {
        assert_eq!(
            couple.kernel.disk(block * 4096, 4096),
            noise(seed, 4096),
            "acknowledged write {seed} of block {block} is lost"
        );
    }
    couple.kernel.write(7 << 20, &noise(9, 65_536));
    couple.tandem.start();
    couple.tandem.must(&["up", "r0"]);
    couple.wait_connected("UpToDate/UpToDate");
    couple.compare_disks();
    couple.kernel.must("secondary");
    couple.finish();
}

#[test]
fn a_killed_tandem_primary_returns_before_anyone_took_over_and_syncs_what_was_hot() {
    let mut couple = Couple::synced(Machine::shared(), Setup::default());
    couple.may_say(LOSS);
    couple.tandem.must(&["primary", "r0"]);
    write_until_death(&mut couple);
    couple
        .kernel
        .wait_state("WFConnection", "Secondary/Unknown", "UpToDate/DUnknown");
    couple.tandem.start();
    couple.tandem.must(&["up", "r0"]);
    couple.wait_connected("UpToDate/UpToDate");
    assert!(
        couple.kernel.log().contains("Began resync as SyncTarget"),
        "{}",
        couple.kernel.log()
    );
    couple.compare_disks();
    couple.finish();
}

#[test]
fn tandem_takes_over_from_a_kernel_primary_that_is_reset_which_then_returns() {
    let machine = Machine::breakable();
    let couple = Couple::synced(&machine, quick_to_notice());
    couple.may_say(LOSS);
    couple.kernel.must("primary");
    couple.kernel.write(0, &noise(1, 1 << 20));
    // More writes, one after the other; each that is done is counted where this host sees it.
    let device = couple.kernel.device();
    couple.kernel.shell(&format!(
        "(n=0; while :; do tr '\\0' '\\101' </dev/zero | head -c 4096 | dd of={device} bs=4096 iflag=fullblock \
         seek=$((300 + n)) count=1 oflag=direct 2>/dev/null || break; n=$((n+1)); echo $n >>/share/done; done) >/dev/null 2>&1 &"
    ));
    let done = || {
        let text = std::fs::read_to_string(machine.share().join("done")).unwrap_or_default();
        text.lines()
            .last()
            .and_then(|line| line.parse::<u64>().ok())
    };
    wait::until(
        "ten writes of the kernel",
        MOMENT,
        || done().filter(|count| *count >= 10),
        String::new,
    );
    machine.crash();
    let acknowledged = done().unwrap();
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    assert_eq!(client.read(0, 1 << 20).unwrap(), noise(1, 1 << 20));
    for number in 0..acknowledged {
        let found = client.read((300 + number) * 4096, 4096).unwrap();
        assert!(
            found.iter().all(|byte| *byte == b'A'),
            "acknowledged write {number} is lost"
        );
    }
    client.write(5 << 20, &noise(2, 65_536), Fua::No).unwrap();
    client.flush().unwrap();
    client.disconnect().unwrap();
    machine.boot_again();
    couple.after_boot();
    couple.kernel.must("up");
    couple.wait_connected("UpToDate/UpToDate");
    couple.compare_disks();
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

#[test]
fn a_pulled_cable_is_noticed_by_either_primary_and_the_pair_comes_back() {
    let machine = Machine::breakable();
    let couple = Couple::synced(&machine, quick_to_notice());
    couple.may_say(LOSS);
    couple.kernel.must("primary");
    machine.cable(Cable::Pulled);
    couple.kernel.write(1 << 20, &noise(3, 65_536));
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    couple
        .kernel
        .wait_state("WFConnection", "Primary/Unknown", "UpToDate/DUnknown");
    machine.cable(Cable::Plugged);
    couple.wait_connected("UpToDate/UpToDate");
    couple.compare_disks();
    couple.kernel.must("secondary");
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    machine.cable(Cable::Pulled);
    client.write(2 << 20, &noise(4, 65_536), Fua::No).unwrap();
    couple
        .kernel
        .wait_state("WFConnection", "Secondary/Unknown", "UpToDate/DUnknown");
    machine.cable(Cable::Plugged);
    couple.wait_connected("UpToDate/UpToDate");
    client.disconnect().unwrap();
    couple.compare_disks();
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

#[test]
fn a_killed_tandem_sync_target_goes_on_after_its_return() {
    let mut couple = Couple::connected(
        Machine::shared(),
        Setup {
            disk: String::from("c-plan-ahead 0; resync-rate 1M;"),
            ..Setup::default()
        },
    );
    couple.may_say(LOSS);
    couple.kernel.must("primary --force");
    couple.kernel.write(3 << 20, &noise(1, 1 << 20));
    couple.kernel.wait_for("cs:SyncSource");
    couple.tandem.kill();
    couple
        .kernel
        .wait_state("WFConnection", "Primary/Unknown", "UpToDate/Inconsistent");
    couple.setup.disk = String::from("c-plan-ahead 0; resync-rate 400M;");
    couple.reconfigure();
    couple.kernel.must("adjust");
    couple.tandem.start();
    couple.tandem.must(&["up", "r0"]);
    couple.wait_connected("UpToDate/UpToDate");
    couple.compare_disks();
    couple.kernel.must("secondary");
    couple.finish();
}

#[test]
fn a_stopped_tandem_is_given_up_by_the_kernel_and_comes_back() {
    let couple = Couple::synced(
        Machine::shared(),
        Setup {
            net: String::from("protocol C; ping-int 1;"),
            kernel_net: String::from("timeout 20; ko-count 1;"),
            ..Setup::default()
        },
    );
    couple.may_say(LOSS);
    couple.kernel.must("primary");
    couple.tandem.signal("STOP");
    couple.kernel.write(0, &noise(1, 65_536));
    couple
        .kernel
        .wait_for("cs:WFConnection ro:Primary/Unknown ds:UpToDate/DUnknown");
    couple.tandem.signal("CONT");
    couple.wait_connected("UpToDate/UpToDate");
    couple.compare_disks();
    couple.kernel.must("secondary");
    couple.finish();
}

/// Disks of 16 extents of the activity log.
fn large() -> Setup {
    Setup {
        tandem_bytes: 64 << 20,
        kernel_bytes: 64 << 20,
        ..quick_to_notice()
    }
}

/// How much the last resync was to copy, in KiB.
fn last_resync_kib(couple: &Couple<'_>, kernel_is: &str) -> u64 {
    let messages = couple.kernel.messages();
    let begun = format!("Began resync as {kernel_is} (will sync ");
    let amount = messages
        .iter()
        .rev()
        .find_map(|message| message.strip_prefix(&begun)?.split(' ').next());
    let amount = amount.unwrap_or_else(|| panic!("no {begun}\n{}", couple.kernel.log()));
    amount.parse().unwrap()
}

/// Two extents of 4 MiB were hot when the Primary died; the other node wrote 64 KiB elsewhere afterwards.
const HOT_KIB: u64 = 2 * 4096;
const AFTERWARDS_KIB: u64 = 64;

#[test]
fn a_crashed_tandem_primary_gets_its_hot_extents_and_what_it_missed_and_no_more() {
    let mut couple = Couple::equal_from_the_start(Machine::shared(), large());
    couple.may_say(LOSS);
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    client.write(0, &noise(1, 65_536), Fua::No).unwrap();
    client.write(32 << 20, &noise(2, 65_536), Fua::No).unwrap();
    client.flush().unwrap();
    couple.tandem.kill();
    couple
        .kernel
        .wait_state("WFConnection", "Secondary/Unknown", "UpToDate/DUnknown");
    couple.kernel.must("primary");
    couple.kernel.write(48 << 20, &noise(3, 65_536));
    couple.tandem.start();
    couple.tandem.must(&["up", "r0"]);
    couple.wait_connected("UpToDate/UpToDate");
    let amount = last_resync_kib(&couple, "SyncSource");
    assert!(
        (AFTERWARDS_KIB + 1..=HOT_KIB + AFTERWARDS_KIB).contains(&amount),
        "{amount} KiB\n{}",
        couple.kernel.log()
    );
    couple.kernel.must("secondary");
    couple.finish();
}

#[test]
fn a_crashed_kernel_primary_gets_its_hot_extents_and_what_it_missed_and_no_more() {
    let machine = Machine::breakable();
    let couple = Couple::equal_from_the_start(&machine, large());
    couple.may_say(LOSS);
    couple.kernel.must("primary");
    couple.kernel.write(0, &noise(1, 65_536));
    couple.kernel.write(32 << 20, &noise(2, 65_536));
    machine.crash();
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    client.write(48 << 20, &noise(3, 65_536), Fua::No).unwrap();
    client.disconnect().unwrap();
    machine.boot_again();
    couple.after_boot();
    couple.kernel.must("up");
    couple.wait_connected("UpToDate/UpToDate");
    let amount = last_resync_kib(&couple, "SyncTarget");
    assert!(
        (AFTERWARDS_KIB + 1..=HOT_KIB + AFTERWARDS_KIB).contains(&amount),
        "{amount} KiB\n{}",
        couple.kernel.log()
    );
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

#[test]
fn a_reset_kernel_secondary_gets_what_tandem_wrote_meanwhile() {
    let machine = Machine::breakable();
    let couple = Couple::synced(&machine, quick_to_notice());
    couple.may_say(LOSS);
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    client.write(0, &noise(1, 65_536), Fua::No).unwrap();
    machine.crash();
    // Answered once the kernel is given up.
    client.write(1 << 20, &noise(2, 65_536), Fua::No).unwrap();
    client.flush().unwrap();
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    machine.boot_again();
    couple.after_boot();
    couple.kernel.must("up");
    couple.wait_connected("UpToDate/UpToDate");
    let amount = last_resync_kib(&couple, "SyncTarget");
    assert!((64..=128).contains(&amount), "{amount} KiB");
    client.disconnect().unwrap();
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}
