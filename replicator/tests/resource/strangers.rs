//! Peers that are none: port scanners, garbage, packets at the wrong moment.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tandem_protocol::HeaderKind;
use tandem_protocol::features::{Capabilities, Features};
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{BlockRequest, ConnectionFeatures, Protocol as ProtocolPacket};
use tandem_replicator::state::word::ConnState;
use tandem_replicator::{Command, DiskOperation, Effect, Event, NetOptions, SocketId};

use crate::harness::{VOLUME, World};
use crate::linking::{both_connected, conn};

const DATA: SocketId = SocketId(1001);
const META: SocketId = SocketId(1002);

/// One node that waits for its peer.
fn waiting() -> World {
    let mut world = World::alone();
    world.ok(0, Command::Attach { volume: VOLUME });
    world.connect(0, &NetOptions::default());
    world
}

fn say(world: &mut World, socket: SocketId, packet: Packet) {
    let frame = packet.on_connection();
    let encoded = frame.encode(frame.packet.header_kind()).unwrap();
    world.event(
        0,
        Event::Bytes {
            socket,
            bytes: encoded.head,
        },
    );
}

fn closed(world: &World, socket: SocketId) -> bool {
    world.nodes[0]
        .history
        .iter()
        .any(|effect| matches!(effect, Effect::Close { socket: one, .. } if *one == socket))
}

fn meet(world: &mut World) {
    for (socket, packet) in [(DATA, Packet::InitialData), (META, Packet::InitialMeta)] {
        world.event(0, Event::Accepted { socket });
        say(world, socket, packet);
    }
    world.advance(Duration::from_millis(600));
}

fn features(min: u32, max: u32) -> Packet {
    let mut features = ConnectionFeatures::own(Features::KERNEL_8_4, Capabilities::NONE);
    features.protocol_min = min;
    features.protocol_max = max;
    Packet::ConnectionFeatures(features)
}

fn parameters() -> ProtocolPacket {
    ProtocolPacket {
        protocol: 3,
        after_sb_0p: 0,
        after_sb_1p: 0,
        after_sb_2p: 0,
        conn_flags: 0,
        two_primaries: 0,
        integrity_alg: String::new(),
    }
}

#[test]
fn a_stranger_who_says_nothing_or_nonsense_is_dropped() {
    let mut world = waiting();
    for (at, words) in ["GET / HTTP/1.0\r\n\r\n", "", "\0\0\0\0\0\0\0\0\0"]
        .iter()
        .enumerate()
    {
        let socket = SocketId(2000 + at as u64);
        world.event(0, Event::Accepted { socket });
        if !words.is_empty() {
            let bytes = Bytes::from_static(words.as_bytes());
            world.event(0, Event::Bytes { socket, bytes });
        }
        world.advance(Duration::from_secs(3));
        assert!(closed(&world, socket), "{words:?}");
        world.event(
            0,
            Event::Closed {
                socket,
                reason: String::from("closed"),
            },
        );
    }
    assert_eq!(conn(&world, 0), ConnState::WFConnection);
}

#[test]
fn many_silent_strangers_are_bounded() {
    let mut world = waiting();
    for at in 0..500 {
        world.event(
            0,
            Event::Accepted {
                socket: SocketId(3000 + at),
            },
        );
    }
    let refused = (0..500)
        .filter(|at| closed(&world, SocketId(3000 + at)))
        .count();
    assert!(refused >= 480, "{refused}");
}

#[test]
fn a_stranger_does_not_disturb_an_established_connection() {
    let mut world = World::ready(&NetOptions::default());
    world.event(0, Event::Accepted { socket: DATA });
    assert!(closed(&world, DATA));
    say(&mut world, DATA, Packet::InitialData);
    world.event(
        0,
        Event::Closed {
            socket: DATA,
            reason: String::from("closed"),
        },
    );
    both_connected(&mut world);
    world.write_ok(0, 0, 4096, 9);
    assert_eq!(world.nodes[1].disk.current[0], 9);
}

#[test]
fn a_second_socket_of_a_kind_replaces_the_first() {
    let mut world = waiting();
    world.event(0, Event::Accepted { socket: DATA });
    say(&mut world, DATA, Packet::InitialData);
    let again = SocketId(1003);
    world.event(0, Event::Accepted { socket: again });
    say(&mut world, again, Packet::InitialData);
    assert!(closed(&world, DATA) && !closed(&world, again));
}

#[test]
fn too_old_and_too_new_peers_are_refused_with_their_versions() {
    for (min, max, words) in [(86, 96, "86 to 96"), (110, 121, "110 to 121")] {
        let mut world = waiting();
        meet(&mut world);
        say(&mut world, DATA, features(min, max));
        assert_eq!(conn(&world, 0), ConnState::StandAlone);
        let status = world.nodes[0].resource.status();
        assert!(status.last_error.unwrap().contains(words));
    }
}

#[test]
fn another_packet_instead_of_the_features_is_refused_and_silence_is_not() {
    let mut world = waiting();
    meet(&mut world);
    say(&mut world, DATA, Packet::InitialData);
    assert_eq!(conn(&world, 0), ConnState::StandAlone);

    let mut world = waiting();
    meet(&mut world);
    world.advance(Duration::from_secs(3));
    assert_eq!(conn(&world, 0), ConnState::WFConnection);
    assert!(closed(&world, DATA) && closed(&world, META));
    assert!(
        world.nodes[0]
            .log
            .iter()
            .any(|line| line.contains("features in time"))
    );
}

#[test]
fn packets_at_the_wrong_moment_break_the_connection_and_the_node_goes_on() {
    let early = [
        Packet::UnplugRemote,
        Packet::AuthChallenge(Bytes::from(vec![7; 64])),
        Packet::Bitmap(Bytes::new()),
    ];
    for packet in early {
        let words = format!("{packet:?}");
        let mut world = waiting();
        meet(&mut world);
        say(&mut world, DATA, features(86, 101));
        assert_eq!(conn(&world, 0), ConnState::WFReportParams, "{words}");
        say(&mut world, DATA, packet);
        assert_eq!(conn(&world, 0), ConnState::WFConnection, "{words}");
        assert!(closed(&world, DATA) && closed(&world, META), "{words}");
    }
    for packet in [
        Packet::Protocol(parameters()),
        Packet::AuthResponse(Bytes::from(vec![1; 20])),
    ] {
        let mut world = waiting();
        meet(&mut world);
        say(&mut world, DATA, features(86, 101));
        say(&mut world, DATA, Packet::Protocol(parameters()));
        assert_eq!(conn(&world, 0), ConnState::WFReportParams);
        say(&mut world, DATA, packet);
        assert_eq!(conn(&world, 0), ConnState::WFConnection);
    }
}

#[test]
fn options_that_are_not_supported_are_refused_by_name() {
    let integrity = ProtocolPacket {
        integrity_alg: String::from("crc32c"),
        ..parameters()
    };
    let two = ProtocolPacket {
        two_primaries: 1,
        ..parameters()
    };
    for (packet, words) in [
        (integrity, "data-integrity-alg"),
        (two, "allow-two-primaries"),
    ] {
        let mut world = waiting();
        meet(&mut world);
        say(&mut world, DATA, features(86, 101));
        say(&mut world, DATA, Packet::Protocol(packet));
        assert_eq!(conn(&world, 0), ConnState::StandAlone);
        let status = world.nodes[0].resource.status();
        assert!(status.last_error.unwrap().contains(words));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn garbage_never_panics_and_never_stops_the_node(
        phase in 0..3_u8,
        pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..300)), 1..8),
    ) {
        let mut world = waiting();
        meet(&mut world);
        if phase > 0 {
            say(&mut world, DATA, features(86, 101));
        }
        if phase > 1 {
            say(&mut world, DATA, Packet::Protocol(parameters()));
        }
        for (on_data, bytes) in pieces {
            let socket = if on_data { DATA } else { META };
            world.event(0, Event::Bytes { socket, bytes: Bytes::from(bytes) });
        }
        world.advance(Duration::from_secs(30));
        prop_assert!(conn(&world, 0) <= ConnState::WFReportParams);
    }

    #[test]
    fn packets_in_any_order_never_panic(
        picks in prop::collection::vec((any::<bool>(), 0..14_usize, any::<u64>()), 1..20),
    ) {
        let mut world = waiting();
        meet(&mut world);
        say(&mut world, DATA, features(86, 101));
        say(&mut world, DATA, Packet::Protocol(parameters()));
        for (on_data, pick, number) in picks {
            let socket = if on_data { DATA } else { META };
            say(&mut world, socket, some_packet(pick, number));
        }
        world.advance(Duration::from_secs(30));
    }
}

/// A well-formed packet with numbers that may mean nothing.
fn some_packet(pick: usize, number: u64) -> Packet {
    use tandem_protocol::packets::{
        Barrier, BarrierAck, BlockAck, BlockDesc, BlockRequest, Sizes, State, StateChange,
        StateChangeReply, SyncUuid, Uuids,
    };
    use tandem_protocol::state_word::WireState;
    let low = number as u32;
    let ack = BlockAck {
        sector: number % 4096,
        block_id: if number.is_multiple_of(3) {
            [0xff; 8]
        } else {
            number.to_be_bytes()
        },
        blksize: 4096,
        seq_num: low,
    };
    match pick {
        0 => Packet::State(State {
            state: WireState(low),
        }),
        1 => Packet::State(State {
            state: WireState(low & 0x1_ffff),
        }),
        2 => Packet::Uuids(Uuids {
            current: number,
            bitmap: number % 5,
            history: [number % 7, 0],
            dirty_bits: number,
            flags: number % 16,
        }),
        3 => Packet::Sizes(Sizes {
            d_size: number % (1 << 55),
            u_size: 0,
            c_size: number % (1 << 20),
            max_bio_size: low,
            queue_order_type: 0,
            dds_flags: 0,
            limits: Some(tandem_protocol::packets::QueueLimits {
                physical_block_size: low,
                logical_block_size: low,
                alignment_offset: 0,
                io_min: 0,
                io_opt: 0,
                discard_enabled: 1,
                discard_zeroes_data: 1,
                write_same_capable: 0,
                pad: 0,
            }),
        }),
        4 => Packet::StateChgReq(StateChange {
            mask: WireState(low),
            value: WireState(low >> 3),
        }),
        5 => Packet::ConnStChgReq(StateChange {
            mask: WireState(0x1f0),
            value: WireState(low & 0x1f0),
        }),
        6 => Packet::ConnStChgReply(StateChangeReply {
            code: low as i32 % 5,
        }),
        7 => Packet::BarrierAck(BarrierAck {
            barrier: low.to_be_bytes(),
            set_size: low % 3,
        }),
        8 => Packet::Barrier(Barrier {
            barrier: low.to_be_bytes(),
            pad: 0,
        }),
        9 => Packet::WriteAck(ack),
        10 => Packet::NegAck(ack),
        11 => Packet::DataRequest(BlockRequest {
            sector: number % 200_000,
            block_id: [1; 8],
            blksize: 4096,
            pad: 0,
        }),
        12 => Packet::OutOfSync(BlockDesc {
            sector: number % 200_000,
            blksize: 4096,
            pad: 0,
        }),
        _ => Packet::SyncUuid(SyncUuid { uuid: number }),
    }
}

#[test]
fn a_dial_that_fails_after_the_peer_came_is_repeated_soon() {
    use tandem_replicator::DialError;
    let mut world = World::alone();
    let mut token = None;
    world.hold(0, |effect| matches!(effect, Effect::Dial { .. }));
    world.connect(0, &NetOptions::default());
    for effect in &world.nodes[0].history {
        if let Effect::Dial { token: dial } = effect {
            token = Some(*dial);
        }
    }
    world.event(0, Event::Accepted { socket: DATA });
    say(&mut world, DATA, Packet::InitialData);
    let dials = |world: &World| {
        let dials = world.nodes[0].history.iter();
        dials
            .filter(|effect| matches!(effect, Effect::Dial { .. }))
            .count()
    };
    assert_eq!(dials(&world), 1);
    let result = Err(DialError::Unreachable(String::from("timed out")));
    world.event(
        0,
        Event::Dialled {
            token: token.unwrap(),
            result,
        },
    );
    world.advance(Duration::from_secs(2));
    assert_eq!(dials(&world), 2);
}

/// Found while the fuzz target `peer_stream` was written: 40 bytes asked for 1 MiB each, without an end.
#[test]
fn reads_of_a_peer_are_bounded_while_the_disk_is_slow() {
    const READS: u64 = 60;
    let mut world = World::ready(&NetOptions::default());
    let socket = data_socket_of_secondary(&world);
    world.hold(1, |effect| {
        matches!(
            effect,
            Effect::Disk {
                operation: DiskOperation::Read { .. },
                ..
            }
        )
    });
    for at in 0..READS {
        let request = BlockRequest {
            sector: at * 2048,
            block_id: at.to_be_bytes(),
            blksize: 1 << 20,
            pad: 0,
        };
        let frame = Packet::DataRequest(request).on_volume(0);
        let bytes = frame.encode(HeaderKind::H100).unwrap().head;
        world.event(1, Event::Bytes { socket, bytes });
    }
    assert!(
        world.held(1) <= 33,
        "{} MiB are read at once",
        world.held(1)
    );
    world.release(1);
    let reads = |effect: &&Effect| {
        matches!(
            effect,
            Effect::Disk {
                operation: DiskOperation::Read { length, .. },
                ..
            } if *length == 1 << 20
        )
    };
    let done = world.nodes[1].history.iter().filter(reads).count() as u64;
    assert_eq!(done, READS, "all are done in the end");
}

/// The socket on which node 1 got the first packets of its link.
fn data_socket_of_secondary(world: &World) -> SocketId {
    let sends = world.nodes[1]
        .history
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { socket, head, .. } => Some((*socket, head.clone())),
            _ => None,
        });
    let mut sends = sends.filter(|(_, head)| {
        // A 16-byte header with P_PROTOCOL.
        head.len() > 16 && head[..4] == [0x86, 0x20, 0xec, 0x20] && head[6..8] == [0, 0x0b]
    });
    sends.next().unwrap().0
}
