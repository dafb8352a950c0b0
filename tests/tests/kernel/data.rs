//! Goal: what is written on one node is on both disks, with every protocol, flag and kind of request.
//! Method: writes on the Primary, then both backing disks are compared.

use std::os::unix::fs::MetadataExt;

use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::tool;
use tandem_tests::kernel::{Couple, Machine, Setup, noise};

/// The kernel as Primary writes, then Tandem as Primary, then the kernel reads what Tandem wrote.
fn writes_both_ways(protocol: char) {
    let setup = Setup {
        net: format!("protocol {protocol};"),
        ..Setup::default()
    };
    let couple = Couple::synced(Machine::shared(), setup);
    couple.kernel.must("primary");
    couple.kernel.write(0, &noise(1, 4096));
    couple.kernel.write(65_536, &noise(2, 1 << 20));
    couple.kernel.write((6 << 20) + 512, &noise(3, 512));
    couple.kernel.must("secondary");
    couple.tandem.must(&["primary", "r0"]);
    couple
        .kernel
        .wait_state("Connected", "Secondary/Primary", "UpToDate/UpToDate");
    let mut client = couple.client();
    assert_eq!(client.bytes, couple.kernel.device_bytes());
    assert_eq!(client.read(0, 4096).unwrap(), noise(1, 4096));
    assert_eq!(client.read(65_536, 1 << 20).unwrap(), noise(2, 1 << 20));
    client.write(4096, &noise(4, 4096), Fua::No).unwrap();
    client.write(2 << 20, &noise(5, 1 << 20), Fua::No).unwrap();
    client.write(8192 + 512, &noise(6, 1536), Fua::Yes).unwrap();
    client.write(3 << 20, &noise(7, 4 << 20), Fua::No).unwrap();
    client.flush().unwrap();
    client.disconnect().unwrap();
    couple.tandem.must(&["secondary", "r0"]);
    couple.kernel.must("primary");
    assert_eq!(couple.kernel.read(2 << 20, 1 << 20), noise(5, 1 << 20));
    couple.kernel.must("secondary");
    couple.compare_disks();
    couple.finish();
}

#[test]
fn writes_of_either_primary_are_on_both_disks_with_protocol_a() {
    writes_both_ways('A');
}

#[test]
fn writes_of_either_primary_are_on_both_disks_with_protocol_b() {
    writes_both_ways('B');
}

#[test]
fn writes_of_either_primary_are_on_both_disks_with_protocol_c() {
    writes_both_ways('C');
}

#[test]
fn discards_zeroes_flushes_and_fua_of_the_kernel_reach_tandem() {
    let couple = Couple::synced(Machine::shared(), Setup::default());
    couple.kernel.must("primary");
    couple.kernel.write(0, &noise(1, 4 << 20));
    let device = couple.kernel.device();
    let allocated = || std::fs::metadata(couple.tandem.disk(0)).unwrap().blocks() * 512;
    let before = allocated();
    couple
        .kernel
        .shell(&format!("blkdiscard -f -o 65536 -l 65536 {device}"));
    let given_back = before - allocated();
    assert!(given_back >= 65_536, "{given_back} bytes were given back");
    couple
        .kernel
        .shell(&format!("blkdiscard -f -o 4096 -l 12288 {device}"));
    couple
        .kernel
        .shell(&format!("blkdiscard -f -z -o 262144 -l 65536 {device}"));
    couple
        .kernel
        .shell(&format!("fallocate -z -o 524288 -l 32768 {device}"));
    couple.kernel.write_with(
        1 << 20,
        &noise(2, 65536),
        "conv=notrunc oflag=direct,dsync,seek_bytes",
    );
    couple.kernel.shell(&format!(
        "dd if=/dev/zero of={device} bs=4k count=1 seek=600 oflag=direct; sync {device}"
    ));
    couple.compare_disks();
    couple.kernel.must("secondary");
    couple.finish();
}

#[test]
fn discards_zeroes_flushes_and_fua_of_tandem_reach_the_kernel() {
    let couple = Couple::synced(Machine::shared(), Setup::default());
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    client.write(0, &noise(1, 4 << 20), Fua::No).unwrap();
    client.flush().unwrap();
    client.flush().unwrap();
    client.trim(65_536, 65_536).unwrap();
    client.trim(4096, 12_288).unwrap();
    client.write_zeroes(262_144, 65_536).unwrap();
    client.write_zeroes(524_288 + 512, 1024).unwrap();
    client.write(1 << 20, &noise(2, 65_536), Fua::Yes).unwrap();
    client.flush().unwrap();
    client.disconnect().unwrap();
    couple.compare_disks();
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

#[test]
fn a_storm_of_small_overlapping_writes_of_the_kernel_leaves_equal_disks() {
    let couple = Couple::synced(Machine::shared(), Setup::default());
    couple.kernel.must("primary");
    let device = couple.kernel.device();
    couple.kernel.shell(&format!(
        "fio --name=storm --filename={device} --direct=1 --ioengine=libaio --iodepth=32 --rw=randwrite \
         --bsrange=512-32k --blockalign=512 --size=2m --io_size=12m --fsync=50 --time_based=0 --randseed=7 --allow_file_create=0"
    ));
    couple.compare_disks();
    couple.kernel.must("secondary");
    couple.finish();
}

#[test]
fn writers_side_by_side_on_tandem_leave_equal_disks() {
    for protocol in ['A', 'C'] {
        let setup = Setup {
            net: format!("protocol {protocol};"),
            ..Setup::default()
        };
        let couple = Couple::synced(Machine::shared(), setup);
        couple.tandem.must(&["primary", "r0"]);
        std::thread::scope(|scope| {
            for writer in 0..4u64 {
                let mut client = couple.client();
                scope.spawn(move || {
                    for turn in 0..150u64 {
                        // All writers meet in the same 64 blocks.
                        let block = (turn * 7 + writer * 3) % 64;
                        let data = noise(writer << 32 | turn, 4096 + 512 * (turn as usize % 8));
                        client.write(block * 4096, &data, Fua::No).unwrap();
                        if turn % 25 == 24 {
                            client.flush().unwrap();
                        }
                    }
                    client.disconnect().unwrap();
                });
            }
        });
        couple.tandem.must(&["secondary", "r0"]);
        couple.finish();
    }
}

#[test]
fn large_requests_and_many_in_flight_of_the_kernel_reach_tandem() {
    let couple = Couple::synced(Machine::shared(), Setup::default());
    couple.kernel.must("primary");
    let device = couple.kernel.device();
    couple.kernel.shell(&format!(
        "dd if=/dev/urandom of={device} bs=1M count=3 seek=4 iflag=fullblock oflag=direct"
    ));
    couple.kernel.shell(&format!(
        "fio --name=many --filename={device} --direct=1 --ioengine=libaio --iodepth=128 --rw=randwrite --bs=4k \
         --size=4m --io_size=4m --fdatasync=200 --randseed=11 --allow_file_create=0"
    ));
    couple.compare_disks();
    couple.kernel.must("secondary");
    couple.finish();
}

#[test]
fn large_requests_and_many_in_flight_of_tandem_reach_the_kernel() {
    for protocol in ['A', 'B', 'C'] {
        let setup = Setup {
            net: format!("protocol {protocol};"),
            ..Setup::default()
        };
        let couple = Couple::synced(Machine::shared(), setup);
        couple.tandem.must(&["primary", "r0"]);
        let mut client = couple.client();
        let bytes = client.bytes;
        client.write(0, &noise(1, 1 << 20), Fua::Yes).unwrap();
        assert_eq!(client.read(0, 1 << 20).unwrap(), noise(1, 1 << 20));
        client.disconnect().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), noise(2, bytes as usize)).unwrap();
        let uri = couple.tandem.uri(0);
        let words = [
            "--requests=64",
            "--connections=4",
            "--request-size=16384",
            "--flush",
            "image",
            &uri,
        ];
        tool::must(dir.path(), "nbdcopy", &words, || couple.tandem.log());
        couple.tandem.must(&["secondary", "r0"]);
        couple.compare_disks();
        assert_eq!(couple.kernel.disk(0, bytes), noise(2, bytes as usize));
        couple.finish();
    }
}
