//! Goal: the role goes back and forth between the two as often as anybody likes, and each sees all that the other wrote.
//! Method: ten rounds; in each, the kernel mounts a filesystem on the device, and a client of Tandem writes behind it.

use std::fs;
use std::path::Path;

use tandem_tests::e2e::client::{Client, Fua};
use tandem_tests::e2e::tool;
use tandem_tests::kernel::{Couple, Machine, Setup, noise};

/// The filesystem has the first part of the device, Tandem's client the rest.
const FILESYSTEM: u64 = 12 << 20;
const RECORD: usize = 65_536;
const ROUNDS: u64 = 10;

fn place(round: u64) -> u64 {
    FILESYSTEM + round * RECORD as u64
}

/// The kernel has the role: everything older is there, a file comes.
fn on_the_kernel(couple: &Couple<'_>, round: u64) {
    let (device, name) = (couple.kernel.device(), &couple.kernel.name);
    couple.kernel.must("primary");
    if round == 0 {
        let kib = FILESYSTEM >> 10;
        couple
            .kernel
            .shell(&format!("mkfs.ext4 -q -F -b 4096 {device} {kib}k"));
    }
    couple.kernel.shell(&format!(
        "set -e; mkdir -p /mnt/{name}; mount -t ext4 {device} /mnt/{name}; cd /mnt/{name}; \
         [ ! -e sums ] || sha256sum -c sums >/dev/null; \
         head -c 300000 /dev/urandom >file{round}; sha256sum file{round} >>sums; sync; cd /; umount /mnt/{name}"
    ));
    for earlier in 0..round {
        let found = couple.kernel.read(place(earlier), RECORD);
        assert_eq!(
            found,
            noise(earlier + 1, RECORD),
            "round {round}: {earlier}"
        );
    }
    couple.kernel.must("secondary");
}

/// Tandem has the role: the filesystem is whole and has the newest file, a record comes.
fn on_tandem(couple: &Couple<'_>, round: u64, dir: &Path) {
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    look_at_the_filesystem(couple, &mut client, round, dir);
    for earlier in 0..round {
        let found = client.read(place(earlier), RECORD as u32).unwrap();
        assert_eq!(
            found,
            noise(earlier + 1, RECORD),
            "round {round}: {earlier}"
        );
    }
    client
        .write(place(round), &noise(round + 1, RECORD), Fua::No)
        .unwrap();
    client.flush().unwrap();
    client.disconnect().unwrap();
    couple.tandem.must(&["secondary", "r0"]);
}

fn look_at_the_filesystem(couple: &Couple<'_>, client: &mut Client, round: u64, dir: &Path) {
    let mut image = Vec::new();
    for start in (0..FILESYSTEM).step_by(1 << 20) {
        image.extend(client.read(start, 1 << 20).unwrap());
    }
    fs::write(dir.join("image"), image).unwrap();
    let explain = || couple.kernel.log();
    tool::must(dir, "e2fsck", &["-fn", "image"], explain);
    let listed = tool::must(dir, "debugfs", &["-R", "cat sums", "image"], explain);
    let files = listed.stdout.lines().count() as u64;
    assert_eq!(files, round + 1, "{}", listed.all());
}

#[test]
fn ten_switch_overs_with_a_filesystem_on_the_kernel_and_a_client_on_tandem() {
    let setup = Setup {
        tandem_bytes: 16 << 20,
        kernel_bytes: 16 << 20,
        ..Setup::default()
    };
    let couple = Couple::synced(Machine::shared(), setup);
    let dir = tempfile::tempdir().unwrap();
    for round in 0..ROUNDS {
        on_the_kernel(&couple, round);
        on_tandem(&couple, round, dir.path());
    }
    couple
        .kernel
        .wait_state("Connected", "Secondary/Secondary", "UpToDate/UpToDate");
    assert_eq!(couple.kernel.out_of_sync_kib(), 0);
    couple.finish();
}
