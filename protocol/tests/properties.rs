#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
//! Codecs against random input: what is encoded is decoded again at any cut, what is not DRBD's
//! is refused without a panic, and bitmaps agree with a slow oracle.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use tandem_protocol::bitmap_code::{
    BitSink, BitSource, BitmapReceiver, BitmapSender, Compression, Progress,
};
use tandem_protocol::control::{LineReader, to_line};
use tandem_protocol::digest::DigestAlgorithm;
use tandem_protocol::features::Features;
use tandem_protocol::packets::{
    Barrier, BarrierAck, BlockAck, BlockDesc, BlockRequest, ConnectionFeatures, Data, DelayProbe,
    DpFlags, HashedRequest, NameField, Protocol, QueueLimits, Sizes, State, StateChange,
    StateChangeReply, SyncParam89, SyncUuid, Trim, Uuids, Wsame,
};
use tandem_protocol::{Command, Frame, Framer, HeaderKind, Packet, Socket, WireState};

/// Bytes of the integrity digest in all generated streams.
const DIGEST: usize = 4;

fn bytes(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), len).prop_map(Bytes::from)
}

fn sector() -> impl Strategy<Value = u64> {
    prop_oneof![0..100_000_u64, Just((1 << 55) - (1 << 18))]
}

fn sectors_as_bytes(max: u32) -> impl Strategy<Value = u32> {
    (1..=max / 512).prop_map(|sectors| sectors * 512)
}

fn data() -> impl Strategy<Value = Data> {
    let payload = (1..20_usize).prop_flat_map(|sectors| bytes(sectors * 512));
    (
        sector(),
        any::<[u8; 8]>(),
        any::<u32>(),
        any::<u32>(),
        bytes(DIGEST),
        payload,
    )
        .prop_map(|(sector, block_id, seq_num, flags, digest, payload)| Data {
            sector,
            block_id,
            seq_num,
            dp_flags: DpFlags(flags),
            digest,
            payload,
        })
}

fn trim() -> impl Strategy<Value = Trim> {
    (
        sector(),
        any::<[u8; 8]>(),
        any::<u32>(),
        any::<u32>(),
        sectors_as_bytes(128 << 20),
    )
        .prop_map(|(sector, block_id, seq_num, flags, size)| Trim {
            sector,
            block_id,
            seq_num,
            dp_flags: DpFlags(flags),
            size,
        })
}

fn request() -> impl Strategy<Value = BlockRequest> {
    (
        sector(),
        any::<[u8; 8]>(),
        sectors_as_bytes(1 << 20),
        any::<u32>(),
    )
        .prop_map(|(sector, block_id, blksize, pad)| BlockRequest {
            sector,
            block_id,
            blksize,
            pad,
        })
}

fn hashed() -> impl Strategy<Value = HashedRequest> {
    (request(), bytes(1..=64)).prop_map(|(request, digest)| HashedRequest { request, digest })
}

fn ack() -> impl Strategy<Value = BlockAck> {
    (any::<u64>(), any::<[u8; 8]>(), any::<u32>(), any::<u32>()).prop_map(
        |(sector, block_id, blksize, seq_num)| BlockAck {
            sector,
            block_id,
            blksize,
            seq_num,
        },
    )
}

fn change() -> impl Strategy<Value = StateChange> {
    any::<(u32, u32)>().prop_map(|(mask, value)| StateChange {
        mask: WireState(mask),
        value: WireState(value),
    })
}

/// Without a change of the integrity algorithm, whose length the stream would follow.
fn protocol() -> impl Strategy<Value = Protocol> {
    any::<[u32; 6]>().prop_map(|n| Protocol {
        protocol: n[0],
        after_sb_0p: n[1],
        after_sb_1p: n[2],
        after_sb_2p: n[3],
        conn_flags: n[4],
        two_primaries: n[5],
        integrity_alg: "crc32c".into(),
    })
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let limits = (any::<[u32; 5]>(), any::<[u8; 4]>()).prop_map(|(n, b)| QueueLimits {
        physical_block_size: n[0],
        logical_block_size: n[1],
        alignment_offset: n[2],
        io_min: n[3],
        io_opt: n[4],
        discard_enabled: b[0],
        discard_zeroes_data: b[1],
        write_same_capable: b[2],
        pad: b[3],
    });
    let limits = proptest::option::of(limits);
    (any::<[u64; 3]>(), any::<u32>(), any::<[u16; 2]>(), limits).prop_map(
        |(n, max_bio_size, small, limits)| Sizes {
            d_size: n[0],
            u_size: n[1],
            c_size: n[2],
            max_bio_size,
            queue_order_type: small[0],
            dds_flags: small[1],
            limits,
        },
    )
}

fn sync_param() -> impl Strategy<Value = SyncParam89> {
    (any::<[u32; 5]>(), any::<[[u8; 32]; 4]>()).prop_map(|(n, names)| {
        let name = |at: usize| {
            let mut field = [0; 64];
            field[..32].copy_from_slice(&names[at]);
            field[32..].copy_from_slice(&names[at + 1]);
            NameField(field)
        };
        SyncParam89 {
            resync_rate: n[0],
            verify_alg: name(0),
            csums_alg: name(2),
            c_plan_ahead: n[1],
            c_delay_target: n[2],
            c_fill_target: n[3],
            c_max_rate: n[4],
        }
    })
}

fn uuids() -> impl Strategy<Value = Uuids> {
    any::<[u64; 6]>().prop_map(|n| Uuids {
        current: n[0],
        bitmap: n[1],
        history: [n[2], n[3]],
        dirty_bits: n[4],
        flags: n[5],
    })
}

fn desc() -> impl Strategy<Value = BlockDesc> {
    (sector(), sectors_as_bytes(128 << 20), any::<u32>()).prop_map(|(sector, blksize, pad)| {
        BlockDesc {
            sector,
            blksize,
            pad,
        }
    })
}

/// A packet for the command: every command that an established connection carries.
fn packet_of(command: Command) -> BoxedStrategy<Packet> {
    use Command as C;
    match command {
        C::InitialData => Just(Packet::InitialData).boxed(),
        C::InitialMeta => Just(Packet::InitialMeta).boxed(),
        C::ConnectionFeatures => any::<([u32; 4], [u64; 7])>()
            .prop_map(|(n, reserved)| {
                Packet::ConnectionFeatures(ConnectionFeatures {
                    protocol_min: n[0],
                    feature_flags: Features(n[1]),
                    protocol_max: n[2],
                    pad: n[3],
                    reserved,
                })
            })
            .boxed(),
        C::AuthChallenge => bytes(64..=128).prop_map(Packet::AuthChallenge).boxed(),
        C::AuthResponse => bytes(1..=64).prop_map(Packet::AuthResponse).boxed(),
        C::Protocol => protocol().prop_map(Packet::Protocol).boxed(),
        C::ProtocolUpdate => protocol().prop_map(Packet::ProtocolUpdate).boxed(),
        C::SyncParam89 => sync_param().prop_map(Packet::SyncParam89).boxed(),
        C::Sizes => sizes().prop_map(Packet::Sizes).boxed(),
        C::Uuids => uuids().prop_map(Packet::Uuids).boxed(),
        C::State => any::<u32>()
            .prop_map(|n| {
                Packet::State(State {
                    state: WireState(n),
                })
            })
            .boxed(),
        C::SyncUuid => any::<u64>()
            .prop_map(|uuid| Packet::SyncUuid(SyncUuid { uuid }))
            .boxed(),
        C::StateChgReq => change().prop_map(Packet::StateChgReq).boxed(),
        C::ConnStChgReq => change().prop_map(Packet::ConnStChgReq).boxed(),
        C::StateChgReply => any::<i32>()
            .prop_map(|code| Packet::StateChgReply(StateChangeReply { code }))
            .boxed(),
        C::ConnStChgReply => any::<i32>()
            .prop_map(|code| Packet::ConnStChgReply(StateChangeReply { code }))
            .boxed(),
        C::Data => data().prop_map(Packet::Data).boxed(),
        C::DataReply => data().prop_map(Packet::DataReply).boxed(),
        C::RsDataReply => data().prop_map(Packet::RsDataReply).boxed(),
        C::Trim => trim().prop_map(Packet::Trim).boxed(),
        C::Zeroes => trim().prop_map(Packet::Zeroes).boxed(),
        C::Wsame => (trim(), bytes(DIGEST), bytes(512))
            .prop_map(|(range, digest, payload)| {
                Packet::Wsame(Wsame {
                    range,
                    digest,
                    payload,
                })
            })
            .boxed(),
        C::Barrier => any::<([u8; 4], u32)>()
            .prop_map(|(barrier, pad)| Packet::Barrier(Barrier { barrier, pad }))
            .boxed(),
        C::BarrierAck => any::<([u8; 4], u32)>()
            .prop_map(|(barrier, set_size)| Packet::BarrierAck(BarrierAck { barrier, set_size }))
            .boxed(),
        C::UnplugRemote => Just(Packet::UnplugRemote).boxed(),
        C::DataRequest => request().prop_map(Packet::DataRequest).boxed(),
        C::RsDataRequest => request().prop_map(Packet::RsDataRequest).boxed(),
        C::RsThinReq => request().prop_map(Packet::RsThinReq).boxed(),
        C::OvRequest => request().prop_map(Packet::OvRequest).boxed(),
        C::CsumRsRequest => hashed().prop_map(Packet::CsumRsRequest).boxed(),
        C::OvReply => hashed().prop_map(Packet::OvReply).boxed(),
        C::OutOfSync => desc().prop_map(Packet::OutOfSync).boxed(),
        C::RsDeallocated => desc().prop_map(Packet::RsDeallocated).boxed(),
        C::Bitmap => bytes(0..=4080).prop_map(Packet::Bitmap).boxed(),
        C::CompressedBitmap => bytes(2..=4080).prop_map(Packet::CompressedBitmap).boxed(),
        C::RecvAck => ack().prop_map(Packet::RecvAck).boxed(),
        C::WriteAck => ack().prop_map(Packet::WriteAck).boxed(),
        C::RsWriteAck => ack().prop_map(Packet::RsWriteAck).boxed(),
        C::Superseded => ack().prop_map(Packet::Superseded).boxed(),
        C::RetryWrite => ack().prop_map(Packet::RetryWrite).boxed(),
        C::NegAck => ack().prop_map(Packet::NegAck).boxed(),
        C::NegDreply => ack().prop_map(Packet::NegDreply).boxed(),
        C::NegRsDreply => ack().prop_map(Packet::NegRsDreply).boxed(),
        C::OvResult => ack().prop_map(Packet::OvResult).boxed(),
        C::RsIsInSync => ack().prop_map(Packet::RsIsInSync).boxed(),
        C::RsCancel => ack().prop_map(Packet::RsCancel).boxed(),
        C::Ping => Just(Packet::Ping).boxed(),
        C::PingAck => Just(Packet::PingAck).boxed(),
        C::DelayProbe => any::<(u32, u32)>()
            .prop_map(|(seq_num, offset_us)| Packet::DelayProbe(DelayProbe { seq_num, offset_us }))
            .boxed(),
    }
}

/// A frame of an established connection's socket.
fn frame(socket: Socket) -> impl Strategy<Value = Frame> {
    let first = [
        Command::InitialData,
        Command::InitialMeta,
        Command::ConnectionFeatures,
    ];
    let commands: Vec<_> = Command::ALL
        .iter()
        .copied()
        .filter(|command| command.belongs_on(socket) && !first.contains(command))
        .collect();
    let packet = select(commands).prop_flat_map(packet_of);
    (packet, any::<u16>()).prop_map(|(packet, volume)| packet.on_volume(volume))
}

fn socket() -> impl Strategy<Value = Socket> {
    select(vec![Socket::Data, Socket::Meta])
}

/// Both sockets and a stream of frames on it.
fn stream(max: usize) -> impl Strategy<Value = (Socket, Vec<Frame>)> {
    socket().prop_flat_map(move |socket| (Just(socket), vec(frame(socket), 1..max)))
}

fn wire(frames: &[Frame]) -> Bytes {
    let mut out = BytesMut::new();
    for frame in frames {
        let payload = frame.encode_into(HeaderKind::H100, &mut out).unwrap();
        out.extend_from_slice(&payload.unwrap_or_default());
    }
    out.freeze()
}

fn framer(socket: Socket) -> Framer {
    let mut framer = Framer::established(socket, HeaderKind::H100);
    framer.set_integrity_len(DIGEST);
    framer
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn frames_survive_the_wire_at_any_cut(
        (socket, frames) in stream(6),
        cuts in vec(any::<Index>(), 0..6),
    ) {
        let bytes = wire(&frames);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut framer = framer(socket);
        let mut got = vec![];
        for pair in cuts.windows(2) {
            framer.push(bytes.slice(pair[0]..pair[1]));
            while let Some(frame) = framer.next().unwrap() {
                got.push(frame);
            }
        }
        prop_assert_eq!(framer.buffered(), 0);
        prop_assert_eq!(&wire(&got), &bytes);
        prop_assert_eq!(got, frames);
    }

    #[test]
    fn byte_by_byte_gives_the_same_frames((socket, frames) in stream(3)) {
        let bytes = wire(&frames);
        let mut framer = framer(socket);
        let mut got = vec![];
        for at in 0..bytes.len() {
            framer.push(bytes.slice(at..=at));
            got.extend(framer.next().unwrap());
        }
        prop_assert_eq!(got, frames);
    }

    #[test]
    fn damaged_streams_are_frames_or_an_error(
        (socket, frames) in stream(4),
        damage in vec((any::<Index>(), any::<u8>()), 1..8),
        head_only in any::<bool>(),
    ) {
        let mut bytes = BytesMut::from(&wire(&frames)[..]);
        for (at, byte) in damage {
            // Half of the cases hit the first header and fixed part, where it hurts most.
            let at = at.index(if head_only { bytes.len().min(44) } else { bytes.len() });
            bytes[at] = byte;
        }
        let total = bytes.len();
        let mut framer = framer(socket);
        framer.push(bytes.freeze());
        let mut got = vec![];
        while let Ok(Some(frame)) = framer.next() {
            got.push(frame);
        }
        // What was understood encodes again, and is no more than what came.
        prop_assert!(wire(&got).len() <= total);
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..400), socket in socket()) {
        for mut framer in [Framer::accepted(), Framer::dialled(socket), framer(socket)] {
            framer.push(Bytes::copy_from_slice(&bytes));
            while let Ok(Some(_)) = framer.next() {}
        }
    }

    #[test]
    fn random_bodies_never_panic(
        command in select(Command::ALL),
        body in vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = vec![0x86, 0x20, 0xec, 0x20, 0, 1];
        bytes.extend(command.number().to_be_bytes());
        bytes.extend((body.len() as u32).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&body);
        for socket in [Socket::Data, Socket::Meta] {
            let mut framer = framer(socket);
            framer.push(Bytes::copy_from_slice(&bytes));
            if let Ok(Some(frame)) = framer.next() {
                prop_assert_eq!(&wire(&[frame])[..], &bytes[..]);
            }
        }
    }

    #[test]
    fn first_packets_and_features_survive_their_header(
        packet in select(vec![
            Command::InitialData, Command::InitialMeta, Command::ConnectionFeatures,
        ]).prop_flat_map(packet_of),
    ) {
        let frame = packet.on_connection();
        let encoded = frame.encode(HeaderKind::H80).unwrap();
        let mut framer = match frame.packet {
            Packet::ConnectionFeatures(_) => Framer::dialled(Socket::Data),
            _ => Framer::accepted(),
        };
        framer.push(encoded.head);
        prop_assert_eq!(framer.next(), Ok(Some(frame)));
    }

    #[test]
    fn digests_depend_on_every_byte(
        algorithm in select(DigestAlgorithm::ALL.to_vec()),
        mut data in vec(any::<u8>(), 1..600),
        at in any::<Index>(),
    ) {
        let digest = algorithm.digest(&data);
        let at = at.index(data.len());
        data[at] ^= 1;
        prop_assert!(!algorithm.matches(&data, digest.as_ref()));
        data[at] ^= 1;
        prop_assert!(algorithm.matches(&data, digest.as_ref()));
    }

    #[test]
    fn random_lines_never_panic(bytes in vec(any::<u8>(), 0..300), limit in 1..200_usize) {
        let mut reader = LineReader::new(limit);
        for part in bytes.chunks(7) {
            reader.push(part);
            for _ in 0..10 {
                let _ = reader.next_message::<(u64, String)>();
            }
        }
    }

    #[test]
    fn messages_survive_their_line(message in any::<(u64, String, Vec<String>)>()) {
        let mut reader = LineReader::new(1 << 20);
        reader.push(&to_line(&message, 1 << 20).unwrap());
        prop_assert_eq!(reader.next_message(), Ok(Some(message)));
        prop_assert!(!reader.is_inside_message());
    }
}

/// The slow oracle: a bool for each bit.
#[derive(Clone, PartialEq, Eq)]
struct Bools(Vec<bool>);

impl std::fmt::Debug for Bools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let set: Vec<_> = (0..self.0.len()).filter(|&bit| self.0[bit]).collect();
        write!(f, "{} bits, set: {set:?}", self.0.len())
    }
}

impl BitSource for Bools {
    fn bits(&self) -> u64 {
        self.0.len() as u64
    }
    fn next_set(&self, from: u64) -> Option<u64> {
        let at = self.0[from as usize..].iter().position(|&bit| bit);
        at.map(|at| from + at as u64)
    }
    fn next_clear(&self, from: u64) -> Option<u64> {
        let at = self.0[from as usize..].iter().position(|&bit| !bit);
        at.map(|at| from + at as u64)
    }
    fn word(&self, index: u64) -> u64 {
        let bits = self.0.iter().skip(index as usize * 64).take(64);
        bits.rev().fold(0, |word, &bit| word << 1 | u64::from(bit))
    }
}

impl BitSink for Bools {
    fn set_range(&mut self, first: u64, count: u64) {
        self.0[first as usize..(first + count) as usize].fill(true);
    }
    fn merge_word(&mut self, index: u64, word: u64) {
        for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
            self.0[index as usize * 64 + bit] = true;
        }
    }
}

/// Runs of all lengths, noise between them (which does not compress), and any tail.
fn bools() -> impl Strategy<Value = Bools> {
    let run = prop_oneof![
        4 => (any::<bool>(), prop_oneof![1..70_usize, 200..2000_usize, 30_000..60_000_usize])
            .prop_map(|(set, count)| vec![set; count]),
        1 => vec(any::<bool>(), 1..5000),
        1 => (1..40_000_usize).prop_map(|count| (0..count).map(|bit| bit % 2 == 0).collect()),
    ];
    vec(run, 0..8).prop_map(|runs| Bools(runs.concat()))
}

/// Receives one packet as a peer would.
fn receive(receiver: &mut BitmapReceiver, packet: &Packet, sink: &mut Bools) -> Progress {
    match packet {
        Packet::Bitmap(chunk) => receiver.plain(chunk, sink).unwrap(),
        Packet::CompressedBitmap(payload) => receiver.compressed(payload, sink).unwrap(),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_bitmap_is_the_or_of_both_after_the_transfer(
        source in bools(),
        seed in any::<u64>(),
        plain in any::<bool>(),
    ) {
        let compression = if plain { Compression::Plain } else { Compression::RunLength };
        let before = |bit: usize| (seed >> (bit % 64)) & 1 == 1;
        let mut sink = Bools((0..source.0.len()).map(before).collect());
        let expected = source.0.iter().enumerate().map(|(bit, &set)| set || before(bit));
        let expected = Bools(expected.collect());
        let mut sender = BitmapSender::new(source.bits(), compression);
        let mut receiver = BitmapReceiver::new(source.bits());
        let mut progress = Progress::More;
        while let Some(packet) = sender.next_packet(&source) {
            prop_assert_eq!(progress, Progress::More, "a packet after the end");
            // Every packet fits its frame.
            packet.clone().on_volume(0).encode(HeaderKind::H100).unwrap();
            progress = receive(&mut receiver, &packet, &mut sink);
            // A plain chunk may go back to a word's start, never to before it.
            prop_assert_eq!(receiver.bits_received(), sender.bits_sent());
        }
        prop_assert_eq!(progress, Progress::Complete);
        prop_assert_eq!(sink, expected);
    }

    #[test]
    fn code_that_does_not_pay_is_never_sent(source in bools()) {
        let mut sender = BitmapSender::new(source.bits(), Compression::RunLength);
        let mut last = 0;
        while let Some(packet) = sender.next_packet(&source) {
            if let Packet::CompressedBitmap(payload) = &packet {
                let covered = sender.bits_sent() - last;
                prop_assert!((payload.len() as u64 - 1) * 8 <= covered + 7);
            }
            last = sender.bits_sent();
        }
    }

    #[test]
    fn random_bitmap_packets_never_panic_nor_leave_the_bitmap(
        bits in 0..5000_usize,
        payloads in vec((any::<bool>(), vec(any::<u8>(), 0..120)), 1..6),
        second in any::<bool>(),
    ) {
        let mut sink = Bools(vec![false; bits]);
        let mut receiver = BitmapReceiver::new(bits as u64);
        for (plain, mut payload) in payloads {
            if second && let Some(first) = payload.first_mut() {
                *first = *first & 0xf0 | 2;
            }
            let result = if plain {
                receiver.plain(&payload, &mut sink)
            } else {
                receiver.compressed(&payload, &mut sink)
            };
            prop_assert!(receiver.bits_received() <= bits as u64);
            if result.is_err() {
                break;
            }
        }
    }
}
