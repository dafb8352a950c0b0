//! Goal: what Tandem adds to the protocol reaches no kernel.
//! Method: a relay keeps what Tandem says; the commands are compared with those of two kernels in the golden captures.

use std::collections::BTreeSet;

use bytes::Bytes;
use tandem_protocol::features::{CAPABILITY_MAGIC, Capabilities};
use tandem_protocol::{Framer, Packet};
use tandem_tests::e2e::client::Fua;
use tandem_tests::golden;
use tandem_tests::kernel::{Couple, Machine, Setup, Wire, noise};

/// All packets of a stream that its dialler sent.
pub(crate) fn packets(stream: &[u8]) -> Vec<Packet> {
    decode(Framer::accepted(), stream)
}

fn decode(mut framer: Framer, stream: &[u8]) -> Vec<Packet> {
    framer.push(Bytes::copy_from_slice(stream));
    let mut packets = Vec::new();
    while let Some(frame) = framer.next().unwrap() {
        packets.push(frame.packet);
    }
    packets
}

/// The names of all commands that two kernels said to each other in any capture.
fn kernels_own_commands() -> BTreeSet<String> {
    let scenarios = golden::scenarios().unwrap();
    let listed = scenarios
        .iter()
        .flat_map(|name| golden::streams(name).unwrap());
    let mut commands = BTreeSet::new();
    for stream in listed {
        let framer = if stream
            .bytes
            .starts_with(&[0x83, 0x74, 0x02, 0x67, 0xff, 0xf1])
            || stream
                .bytes
                .starts_with(&[0x83, 0x74, 0x02, 0x67, 0xff, 0xf2])
        {
            Framer::accepted()
        } else {
            Framer::dialled(stream.socket)
        };
        let said = decode(framer, &stream.bytes);
        commands.extend(said.iter().map(|packet| format!("{:?}", packet.command())));
    }
    commands
}

/// A life that uses much of the protocol.
fn live(couple: &Couple<'_>) {
    couple.tandem.must(&["primary", "r0"]);
    let mut client = couple.client();
    client.write(0, &noise(1, 1 << 20), Fua::No).unwrap();
    client.write(4096, &noise(2, 4096), Fua::Yes).unwrap();
    client.trim(65_536, 65_536).unwrap();
    client.write_zeroes(262_144, 65_536).unwrap();
    client.flush().unwrap();
    couple.kernel.must("disconnect");
    couple
        .tandem
        .wait_state("WFConnection", "UpToDate/DUnknown");
    client.write(2 << 20, &noise(3, 65_536), Fua::No).unwrap();
    couple.kernel.must("connect");
    couple.wait_connected("UpToDate/UpToDate");
    client.disconnect().unwrap();
    couple.tandem.must(&["secondary", "r0"]);
    couple.kernel.must("primary");
    couple.kernel.write(3 << 20, &noise(4, 1 << 20));
    couple.kernel.must("secondary");
}

#[test]
fn the_kernel_ignores_what_tandem_announces_and_hears_nothing_that_no_kernel_says() {
    let setup = Setup {
        wire: Wire::Tapped,
        ..Setup::default()
    };
    let couple = Couple::synced(Machine::shared(), setup);
    live(&couple);
    let known = kernels_own_commands();
    let mut announced = 0;
    let mut said = BTreeSet::new();
    for stream in couple.tap().sent() {
        for packet in packets(&stream) {
            said.insert(format!("{:?}", packet.command()));
            if let Packet::ConnectionFeatures(features) = packet {
                announced += 1;
                assert_eq!(features.reserved[0], CAPABILITY_MAGIC);
                assert_ne!(features.capabilities(), Capabilities::NONE);
            }
        }
    }
    assert!(announced >= 2, "two connections were made");
    assert!(said.len() > 15, "{said:?}");
    // A discard goes as a discard, zeroes as zeroes.
    for command in ["Trim", "Zeroes"] {
        assert!(said.contains(command), "{command}: {said:?}");
    }
    let own: Vec<_> = said.difference(&known).collect();
    assert!(own.is_empty(), "no kernel says {own:?}");
    // The kernel's own words stay zero, and it says nothing about ours.
    for stream in couple.tap().heard() {
        let socket = tandem_protocol::Socket::Data;
        if let [0x83, 0x74, 0x02, 0x67, 0xff, 0xfe, ..] = stream.as_slice() {
            let mut framer = Framer::dialled(socket);
            framer.push(Bytes::copy_from_slice(&stream));
            let first = framer.next().unwrap().unwrap();
            let Packet::ConnectionFeatures(features) = first.packet else {
                panic!("{first:?}");
            };
            assert_eq!(features.reserved, [0; 7]);
        }
    }
    couple.finish();
}
