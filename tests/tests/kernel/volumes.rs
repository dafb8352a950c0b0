//! Goal: several volumes share one connection.
//! Method: two volumes with writes on both at once, each way, and a resync of one of them.

use tandem_tests::e2e::client::Fua;
use tandem_tests::e2e::node::Meta;
use tandem_tests::kernel::{Couple, Machine, Setup, noise};

fn two_volumes(protocol: char) {
    let setup = Setup {
        net: format!("protocol {protocol};"),
        volumes: 2,
        ..Setup::default()
    };
    let couple = Couple::synced(Machine::shared(), setup);
    let second = couple.kernel.volume(1);
    couple.kernel.must("primary");
    couple.kernel.write(0, &noise(1, 1 << 20));
    second.write(1 << 20, &noise(2, 1 << 20));
    couple.kernel.must("secondary");
    couple.tandem.must(&["primary", "r0"]);
    let mut clients = [couple.client_of(0), couple.client_of(1)];
    std::thread::scope(|scope| {
        for (volume, client) in (0u64..).zip(&mut clients) {
            scope.spawn(move || {
                for turn in 0..40u64 {
                    let data = noise(turn << 8 | volume, 16_384);
                    client.write(turn * 20_480, &data, Fua::No).unwrap();
                    if turn % 10 == 9 {
                        client.flush().unwrap();
                    }
                }
            });
        }
    });
    couple.kernel.must("disconnect");
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    clients[1]
        .write(2 << 20, &noise(7, 65_536), Fua::No)
        .unwrap();
    couple.kernel.must("connect");
    couple.wait_connected("UpToDate/UpToDate");
    couple.compare_disks();
    for client in clients {
        client.disconnect().unwrap();
    }
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}

#[test]
fn two_volumes_of_one_connection_are_written_and_resynced_with_protocol_a() {
    two_volumes('A');
}

#[test]
fn two_volumes_of_one_connection_are_written_and_resynced_with_protocol_c() {
    two_volumes('C');
}

#[test]
fn flexible_external_metadata_serve_writes_and_resyncs_of_either_side() {
    let setup = Setup {
        meta: Meta::External,
        ..Setup::default()
    };
    let bytes = setup.kernel_bytes;
    let couple = Couple::synced(Machine::shared(), setup);
    assert_eq!(
        couple.kernel.device_bytes(),
        bytes,
        "the whole disk is data"
    );
    couple.kernel.must("primary");
    couple.kernel.write(bytes - 65_536, &noise(1, 65_536));
    couple.tandem.must(&["disconnect", "r0"]);
    couple
        .kernel
        .wait_state("WFConnection", "Primary/Unknown", "UpToDate/DUnknown");
    couple.kernel.write(0, &noise(2, 65_536));
    couple.tandem.must(&["connect", "r0"]);
    couple.wait_connected("UpToDate/UpToDate");
    couple.kernel.must("secondary");
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    assert_eq!(client.bytes, bytes);
    client
        .write(bytes - 4096, &noise(3, 4096), Fua::Yes)
        .unwrap();
    couple.kernel.must("down");
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    client.write(1 << 20, &noise(4, 65_536), Fua::No).unwrap();
    couple.kernel.must("up");
    couple.wait_connected("UpToDate/UpToDate");
    client.disconnect().unwrap();
    couple.tandem.must(&["secondary", "r0"]);
    couple.finish();
}
