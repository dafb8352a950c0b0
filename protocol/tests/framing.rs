#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
//! The framer by hand-made streams: phases, sockets, lengths, and payloads without copies.

use std::slice::from_ref;

use bytes::{Bytes, BytesMut};
use tandem_protocol::features::{Agreed, Capabilities, Features, TANDEM_CAPABILITIES, Versions};
use tandem_protocol::packets::{
    BLOCK_ID_SYNCER, Barrier, BlockAck, ConnectionFeatures, Data, DpFlags, Protocol, QueueLimits,
    Sizes, State,
};
use tandem_protocol::{Frame, Framer, HeaderKind, Packet, ProtocolError, Socket, WireState};

fn wire(frames: &[Frame]) -> Bytes {
    let mut out = BytesMut::new();
    for frame in frames {
        let payload = frame
            .encode_into(frame.packet.header_kind(), &mut out)
            .unwrap();
        out.extend_from_slice(&payload.unwrap_or_default());
    }
    out.freeze()
}

fn features() -> Frame {
    let features = ConnectionFeatures::own(Features::KERNEL_8_4, TANDEM_CAPABILITIES);
    Packet::ConnectionFeatures(features).on_connection()
}

fn protocol(integrity_alg: &str) -> Protocol {
    Protocol {
        protocol: 3,
        after_sb_0p: 0,
        after_sb_1p: 0,
        after_sb_2p: 0,
        conn_flags: 0,
        two_primaries: 0,
        integrity_alg: integrity_alg.into(),
    }
}

fn data(digest: &'static [u8], bytes: usize) -> Frame {
    let payload = Bytes::from((0..bytes).map(|at| at as u8).collect::<Vec<_>>());
    let data = Data {
        sector: 8,
        block_id: [1, 2, 3, 4, 5, 6, 7, 8],
        seq_num: 1,
        dp_flags: DpFlags::SEND_WRITE_ACK.with(DpFlags::FUA),
        digest: Bytes::from_static(digest),
        payload,
    };
    Packet::Data(data).on_volume(3)
}

fn sizes(limits: Option<QueueLimits>) -> Frame {
    let sizes = Sizes {
        d_size: 2048,
        u_size: 0,
        c_size: 2048,
        max_bio_size: 1 << 20,
        queue_order_type: 0,
        dds_flags: 0,
        limits,
    };
    Packet::Sizes(sizes).on_volume(0)
}

fn all(framer: &mut Framer, bytes: Bytes) -> Result<Vec<Frame>, ProtocolError> {
    framer.push(bytes);
    let mut frames = vec![];
    while let Some(frame) = framer.next()? {
        frames.push(frame);
    }
    Ok(frames)
}

#[test]
fn the_samples_of_the_specification_come_out() {
    assert_eq!(
        wire(&[Packet::InitialData.on_connection()])[..],
        *b"\x83\x74\x02\x67\xff\xf2\0\0"
    );
    assert_eq!(
        wire(&[Packet::InitialMeta.on_connection()])[..],
        *b"\x83\x74\x02\x67\xff\xf1\0\0"
    );
    let plain = wire(&[Packet::Protocol(protocol("")).on_connection()]);
    assert_eq!(
        plain[..16],
        *b"\x86\x20\xec\x20\0\0\0\x0b\0\0\0\x19\0\0\0\0"
    );
    assert_eq!(plain[16..20], [0, 0, 0, 3]);
    assert_eq!(plain[20..], [0; 21]);
    let kernel = ConnectionFeatures {
        protocol_min: 86,
        feature_flags: Features(15),
        protocol_max: 101,
        pad: 0,
        reserved: [0; 7],
    };
    let bytes = wire(&[Packet::ConnectionFeatures(kernel).on_connection()]);
    assert_eq!(
        bytes[..24],
        *b"\x83\x74\x02\x67\xff\xfe\0\x48\0\0\0\x56\0\0\0\x0f\0\0\0\x65\0\0\0\0"
    );
    assert_eq!(bytes[24..], [0; 56]);
    let state = State {
        state: WireState(0xd082),
    };
    let bytes = wire(&[Packet::State(state).on_volume(0)]);
    assert_eq!(
        bytes[..],
        *b"\x86\x20\xec\x20\0\0\0\x0e\0\0\0\x04\0\0\0\0\0\0\xd0\x82"
    );
}

#[test]
fn an_accepted_connection_learns_its_socket_from_the_first_packet() {
    let mut framer = Framer::accepted();
    assert_eq!(framer.socket(), None);
    let stream = [
        Packet::InitialData.on_connection(),
        features(),
        data(b"", 512),
    ];
    assert_eq!(all(&mut framer, wire(&stream)).unwrap(), stream);
    assert_eq!(framer.socket(), Some(Socket::Data));
    let mut framer = Framer::accepted();
    let stream = [
        Packet::InitialMeta.on_connection(),
        Packet::Ping.on_connection(),
    ];
    assert_eq!(all(&mut framer, wire(&stream)).unwrap(), stream);
    assert_eq!(framer.socket(), Some(Socket::Meta));
    assert_eq!(framer.buffered(), 0);
}

#[test]
fn first_packets_and_features_come_once_and_in_their_place() {
    let unexpected = |mut framer: Framer, stream: &[Frame]| {
        let refused = all(&mut framer, wire(stream));
        assert!(
            matches!(refused, Err(ProtocolError::Unexpected { .. })),
            "{refused:?}"
        );
    };
    unexpected(Framer::accepted(), &[features()]);
    unexpected(
        Framer::dialled(Socket::Data),
        &[Packet::InitialData.on_connection()],
    );
    let again = Frame {
        volume: 0,
        packet: features().packet,
    };
    let mut framer = Framer::dialled(Socket::Data);
    let mut bytes = BytesMut::from(&wire(&[features()])[..]);
    bytes.extend_from_slice(&again.encode(HeaderKind::H100).unwrap().head);
    let refused = all(&mut framer, bytes.freeze());
    assert!(
        matches!(refused, Err(ProtocolError::Unexpected { .. })),
        "{refused:?}"
    );
    // After the features the 8-byte header is history.
    let mut framer = Framer::dialled(Socket::Data);
    let refused = all(&mut framer, wire(&[features(), features()]));
    let bad = ProtocolError::BadMagic {
        magic: 0x8374_0267,
        expected: HeaderKind::H100,
    };
    assert_eq!(refused, Err(bad));
}

#[test]
fn a_command_on_the_other_socket_is_refused() {
    let ack = BlockAck {
        sector: 0,
        block_id: BLOCK_ID_SYNCER,
        blksize: 4096,
        seq_num: 1,
    };
    let mut framer = Framer::established(Socket::Data, HeaderKind::H100);
    let refused = all(&mut framer, wire(&[Packet::WriteAck(ack).on_volume(0)]));
    assert!(matches!(refused, Err(ProtocolError::WrongSocket { .. })));
    let mut framer = Framer::dialled(Socket::Meta);
    let refused = all(&mut framer, wire(&[data(b"", 512)]));
    assert!(matches!(refused, Err(ProtocolError::WrongSocket { .. })));
}

#[test]
fn the_first_error_stays() {
    let mut framer = Framer::dialled(Socket::Meta);
    framer.push(Bytes::from_static(b"GET / HTTP/1.1\r\n"));
    let bad = ProtocolError::BadMagic {
        magic: 0x4745_5420,
        expected: HeaderKind::H100,
    };
    assert_eq!(framer.next(), Err(bad.clone()));
    framer.push(wire(&[Packet::Ping.on_connection()]));
    assert_eq!(framer.next(), Err(bad));
}

#[test]
fn a_wrong_magic_is_told_after_four_bytes_and_a_pad_must_be_zero() {
    let mut framer = Framer::accepted();
    framer.push(Bytes::from_static(b"SSH-"));
    assert!(matches!(framer.next(), Err(ProtocolError::BadMagic { .. })));
    let mut framer = Framer::dialled(Socket::Meta);
    framer.push(Bytes::from_static(
        b"\x86\x20\xec\x20\0\0\0\x13\0\0\0\0\0\0\0\x01",
    ));
    assert_eq!(framer.next(), Err(ProtocolError::HeaderPad { pad: 1 }));
}

#[test]
fn no_length_beyond_the_limits_is_waited_for() {
    let header = |command: u8, length: u32| {
        let mut bytes = vec![0x86, 0x20, 0xec, 0x20, 0, 0, 0, command];
        bytes.extend(length.to_be_bytes());
        bytes.extend([0; 4]);
        Bytes::from(bytes)
    };
    let refused = |command, length| {
        let mut framer = Framer::established(Socket::Data, HeaderKind::H100);
        framer.push(header(command, length));
        let error = framer.next().unwrap_err();
        assert!(matches!(error, ProtocolError::BadLength { .. }), "{error}");
    };
    for length in [0, 24, 24 + 511, 24 + (1 << 20) + 512, u32::MAX] {
        refused(0x00, length);
    }
    for (command, length) in [
        (0x04, 4081),
        (0x24, 1),
        (0x24, 4081),
        (0x0b, 24),
        (0x0b, 89),
    ] {
        refused(command, length);
    }
    for (command, length) in [(0x10, 63), (0x10, 129), (0x11, 0), (0x11, 65), (0x23, 149)] {
        refused(command, length);
    }
    for (command, length) in [(0x1f, 24), (0x1f, 89), (0x0d, 31), (0x0d, 57), (0x31, 27)] {
        refused(command, length);
    }
}

#[test]
fn ranges_beyond_any_device_or_not_of_whole_sectors_are_refused() {
    let with = |sector: u64, bytes: usize| {
        let mut frame = data(b"", bytes);
        if let Packet::Data(data) = &mut frame.packet {
            data.sector = sector;
        }
        let mut framer = Framer::established(Socket::Data, HeaderKind::H100);
        all(&mut framer, wire(&[frame]))
    };
    assert!(with((1 << 55) - 1, 512).is_ok());
    assert!(matches!(
        with(1 << 55, 512),
        Err(ProtocolError::BadRange { .. })
    ));
    assert!(matches!(
        with(u64::MAX, 512),
        Err(ProtocolError::BadRange { .. })
    ));
    // A payload of 513 bytes cannot be sent, so it is made by hand.
    let mut bytes = BytesMut::from(&wire(&[data(b"", 512)])[..]);
    bytes[11] += 1;
    let mut framer = Framer::established(Socket::Data, HeaderKind::H100);
    let refused = all(&mut framer, bytes.freeze());
    assert!(
        matches!(refused, Err(ProtocolError::BadRange { bytes: 513, .. })),
        "{refused:?}"
    );
}

#[test]
fn the_digest_length_follows_p_protocol() {
    let stream = [
        features(),
        Packet::Protocol(protocol("crc32c")).on_connection(),
        data(b"abcd", 1024),
        Packet::ProtocolUpdate(protocol("")).on_connection(),
        data(b"", 1024),
        Packet::ProtocolUpdate(protocol("md5")).on_connection(),
        data(b"0123456789abcdef", 1024),
    ];
    let mut framer = Framer::dialled(Socket::Data);
    assert_eq!(all(&mut framer, wire(&stream)).unwrap(), stream);
    // All at once or one by one: the same.
    let update = Packet::ProtocolUpdate(protocol("whirlpool")).on_connection();
    let refused = all(&mut framer, wire(&[update, data(b"", 512)]));
    assert_eq!(
        refused,
        Err(ProtocolError::UnknownDigest {
            name: "whirlpool".into()
        })
    );
}

#[test]
fn a_name_needs_its_nul_at_the_end_and_only_there() {
    let good = wire(&[Packet::Protocol(protocol("sha1")).on_connection()]);
    for (at, byte) in [
        (good.len() - 1, b'x'),
        (good.len() - 3, 0),
        (good.len() - 2, 0xff),
    ] {
        let mut bad = BytesMut::from(&good[..]);
        bad[at] = byte;
        let mut framer = Framer::established(Socket::Data, HeaderKind::H100);
        let refused = all(&mut framer, bad.freeze());
        assert!(
            matches!(refused, Err(ProtocolError::BadName { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn p_sizes_has_the_length_of_the_agreed_features() {
    let limits = QueueLimits {
        physical_block_size: 4096,
        logical_block_size: 512,
        alignment_offset: 0,
        io_min: 4096,
        io_opt: 0,
        discard_enabled: 1,
        discard_zeroes_data: 0,
        write_same_capable: 0,
        pad: 0,
    };
    let (short, long) = (sizes(None), sizes(Some(limits)));
    assert_eq!(
        (wire(from_ref(&short)).len(), wire(from_ref(&long)).len()),
        (48, 72)
    );
    for (features, fits, differs) in [(0xf, &long, &short), (0xb, &short, &long)] {
        let capabilities = Capabilities::NONE;
        let agreed = Agreed {
            version: 101,
            peer_versions: Versions { min: 100, max: 101 },
            features: Features(features),
            capabilities,
        };
        let mut framer = Framer::established(Socket::Data, HeaderKind::H100);
        framer.set_agreed(&agreed);
        assert_eq!(
            all(&mut framer, wire(from_ref(fits))).unwrap(),
            *from_ref(fits)
        );
        let refused = all(&mut framer, wire(from_ref(differs)));
        assert!(matches!(refused, Err(ProtocolError::SizesLength { .. })));
    }
}

#[test]
fn a_payload_in_one_piece_is_not_copied() {
    let bytes = wire(&[data(b"", 8192)]);
    let start = bytes.as_ptr() as usize;
    let mut framer = Framer::established(Socket::Data, HeaderKind::H100);
    let frames = all(&mut framer, bytes).unwrap();
    let payload = frames[0].packet.payload().unwrap();
    assert_eq!(payload.as_ptr() as usize, start + 16 + 24);
    // And neither is one that is sent.
    let encoded = frames[0].encode(HeaderKind::H100).unwrap();
    assert_eq!(encoded.payload.unwrap().as_ptr(), payload.as_ptr());
    assert_eq!(encoded.head.len(), 16 + 24);
}

#[test]
fn a_payload_may_be_received_straight_into_a_block() {
    let frame = data(b"", 1 << 20);
    let next = Packet::Barrier(Barrier {
        barrier: [1, 0, 0, 0],
        pad: 0,
    })
    .on_connection();
    let bytes = wire(&[frame.clone(), next.clone()]);
    let head = 16 + 24;
    for cut in [head, head + 1, head + 70_000, head + (1 << 20) - 1] {
        let mut framer = Framer::established(Socket::Data, HeaderKind::H100);
        framer.push(bytes.slice(..10));
        assert_eq!(framer.next(), Ok(None));
        assert_eq!(framer.pending_payload(), None);
        assert!(matches!(
            framer.drain_payload(&mut []),
            Err(ProtocolError::Misuse { .. })
        ));
        framer.push(bytes.slice(10..cut));
        assert_eq!(framer.next(), Ok(None));
        let pending = framer.pending_payload().unwrap();
        assert_eq!((pending.length, pending.buffered), (1 << 20, cut - head));
        let mut block = vec![0; 1 << 20];
        let short = framer.drain_payload(&mut block[1..]);
        assert!(matches!(short, Err(ProtocolError::Misuse { .. })));
        assert_eq!(framer.drain_payload(&mut block), Ok(cut - head));
        assert_eq!(framer.buffered(), 0);
        let end = head + (1 << 20);
        block[cut - head..].copy_from_slice(&bytes[cut..end]);
        // What was read behind the payload waits for it.
        framer.push(bytes.slice(end..));
        assert_eq!(framer.next(), Ok(None));
        let wrong = framer.finish_payload(Bytes::from_static(b"short"));
        assert!(matches!(wrong, Err(ProtocolError::Misuse { .. })));
        assert_eq!(framer.finish_payload(Bytes::from(block)), Ok(frame.clone()));
        assert_eq!(framer.next(), Ok(Some(next.clone())));
        assert_eq!(framer.next(), Ok(None));
    }
}

#[test]
fn a_payload_in_thousands_of_pieces_is_assembled_once() {
    let frame = data(b"", 1 << 20);
    let bytes = wire(from_ref(&frame));
    let mut framer = Framer::established(Socket::Data, HeaderKind::H100);
    let mut frames = vec![];
    for at in (0..bytes.len()).step_by(3) {
        framer.push(bytes.slice(at..bytes.len().min(at + 3)));
        frames.extend(framer.next().unwrap());
    }
    assert_eq!(frames, [frame]);
}

#[test]
fn what_cannot_be_sent_is_refused_and_leaves_the_buffer_alone() {
    let mut out = BytesMut::from(&b"before"[..]);
    let unsendable = |frame: Frame, kind: HeaderKind, out: &mut BytesMut| {
        let refused = frame.encode_into(kind, out);
        assert!(
            matches!(refused, Err(ProtocolError::Unsendable { .. })),
            "{refused:?}"
        );
        assert_eq!(&out[..], b"before");
    };
    unsendable(data(b"", (1 << 20) + 512), HeaderKind::H100, &mut out);
    unsendable(data(b"", 0), HeaderKind::H100, &mut out);
    unsendable(data(b"", 700), HeaderKind::H100, &mut out);
    unsendable(data(&[0; 65], 512), HeaderKind::H100, &mut out);
    // No room for volume 3, or for 128 KiB, in an 8-byte header.
    unsendable(data(b"", 512), HeaderKind::H80, &mut out);
    let mut large = data(b"", 1 << 17);
    large.volume = 0;
    unsendable(large.clone(), HeaderKind::H80, &mut out);
    large.encode_into(HeaderKind::H95, &mut out).unwrap();
    let plain = Packet::Bitmap(Bytes::from(vec![0; 4081])).on_volume(0);
    assert!(plain.encode(HeaderKind::H100).is_err());
    let name = Packet::Protocol(protocol("a\0b")).on_connection();
    assert!(name.encode(HeaderKind::H100).is_err());
    let name = Packet::Protocol(protocol(&"x".repeat(64))).on_connection();
    assert!(name.encode(HeaderKind::H100).is_err());
}
