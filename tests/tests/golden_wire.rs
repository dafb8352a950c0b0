#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
//! Everything that two kernel nodes said to each other is decoded and encoded again to the byte.
//! Another decoder's listing of the same captures is the witness.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use tandem_protocol::auth::{HmacAlgorithm, SharedSecret, Verdict};
use tandem_protocol::bitmap_code::{
    BitSink, BitSource, BitmapReceiver, BitmapSender, Compression, Progress,
};
use tandem_protocol::digest::DigestAlgorithm;
use tandem_protocol::{Frame, Framer, HeaderKind, Packet, Socket};
use tandem_tests::golden::{self, Direction, Listed, Stream};

/// The one capture with a packet that was cut off when its cable was pulled.
const CABLE_CUT: &str = "13-cable-cut";

/// A frame, and where its header is in the stream.
struct At {
    offset: usize,
    frame: Frame,
}

fn framer(stream: &Stream) -> Framer {
    if stream
        .bytes
        .starts_with(&[0x83, 0x74, 0x02, 0x67, 0xff, 0xf1])
        || stream
            .bytes
            .starts_with(&[0x83, 0x74, 0x02, 0x67, 0xff, 0xf2])
    {
        Framer::accepted()
    } else {
        Framer::dialled(stream.socket)
    }
}

/// All frames of a stream, fed in pieces of `step` bytes, and how many bytes are left over.
fn decode(stream: &Stream, step: usize) -> (Vec<At>, usize) {
    let mut framer = framer(stream);
    let (mut frames, mut offset) = (vec![], 0);
    let bytes = Bytes::copy_from_slice(&stream.bytes);
    for start in (0..bytes.len()).step_by(step) {
        framer.push(bytes.slice(start..bytes.len().min(start + step)));
        while let Some(frame) = framer.next().unwrap() {
            let length = encode(&frame).len();
            frames.push(At { offset, frame });
            offset += length;
        }
    }
    if !bytes.is_empty() {
        assert!(framer.socket().is_none_or(|socket| socket == stream.socket));
    }
    (frames, bytes.len() - offset)
}

fn encode(frame: &Frame) -> Bytes {
    let mut out = BytesMut::new();
    let payload = frame
        .encode_into(frame.packet.header_kind(), &mut out)
        .unwrap();
    out.extend_from_slice(&payload.unwrap_or_default());
    out.freeze()
}

#[test]
fn every_capture_decodes_completely_and_encodes_identically() {
    let scenarios = golden::scenarios().unwrap();
    assert_eq!(scenarios.len(), 23);
    let mut seen = BTreeMap::new();
    for scenario in scenarios {
        for stream in golden::streams(&scenario).unwrap() {
            let about = format!("{scenario} {} {:?}", stream.connection, stream.direction);
            let (frames, left) = decode(&stream, usize::MAX);
            let cut = scenario == CABLE_CUT && left > 0;
            assert!(
                left == 0 || (cut && left == 1448),
                "{about}: {left} bytes are left"
            );
            let mut again = BytesMut::new();
            for at in &frames {
                again.extend_from_slice(&encode(&at.frame));
                *seen.entry(at.frame.packet.command().name()).or_insert(0) += 1;
            }
            assert!(
                again[..] == stream.bytes[..stream.bytes.len() - left],
                "{about} differs"
            );
            let small = if stream.bytes.len() < 50_000 { 1 } else { 999 };
            for step in [small, 1448] {
                let (pieces, rest) = decode(&stream, step);
                assert_eq!(rest, left, "{about}");
                let same = pieces.iter().zip(&frames).all(|(a, b)| a.frame == b.frame);
                assert!(
                    same && pieces.len() == frames.len(),
                    "{about} in pieces of {step}"
                );
            }
        }
    }
    // Everything that the captures are there for was met.
    assert!(seen.len() >= 36, "{seen:?}");
}

#[test]
fn another_decoder_lists_the_same_packets() {
    for scenario in golden::scenarios().unwrap() {
        let listing = golden::listing(&scenario).unwrap();
        assert!(!listing.is_empty());
        for stream in golden::streams(&scenario).unwrap() {
            let of_stream = |listed: &&Listed| {
                (listed.connection, listed.direction) == (stream.connection, stream.direction)
            };
            let mut expected: Vec<_> = listing.iter().filter(of_stream).cloned().collect();
            expected.sort_by_key(|listed| listed.offset);
            let (frames, _) = decode(&stream, usize::MAX);
            assert_eq!(
                frames.len(),
                expected.len(),
                "{scenario} {}",
                stream.connection
            );
            for (at, listed) in frames.iter().zip(&expected) {
                let kind = at.frame.packet.header_kind();
                let length = encode(&at.frame).len() - kind.len();
                assert_eq!(at.offset, listed.offset, "{scenario} {listed:?}");
                assert_eq!(at.frame.packet.command().name(), listed.name);
                assert_eq!(kind.to_string(), listed.header);
                assert_eq!((at.frame.volume, length), (listed.volume, listed.length));
            }
        }
    }
}

/// All packets of a scenario by connection, data sockets only.
fn data_sockets(scenario: &str) -> BTreeMap<(u32, Direction), Vec<Packet>> {
    let streams = golden::streams(scenario).unwrap().into_iter();
    let data = streams.filter(|stream| stream.socket == Socket::Data);
    data.map(|stream| {
        let packets = decode(&stream, usize::MAX)
            .0
            .into_iter()
            .map(|at| at.frame.packet);
        ((stream.connection, stream.direction), packets.collect())
    })
    .collect()
}

#[test]
fn integrity_digests_of_the_kernel_are_ours() {
    let mut checked = 0;
    for packets in data_sockets("09-data-integrity").into_values() {
        for packet in packets {
            if let (Some(payload), Some(digest)) = (packet.payload(), packet.payload_digest()) {
                assert_eq!(digest.len(), 4);
                assert!(DigestAlgorithm::Crc32c.matches(payload, digest));
                checked += 1;
            }
        }
    }
    assert!(checked > 3, "{checked}");
}

#[test]
fn the_kernels_cram_hmac_is_ours() {
    let secret = SharedSecret::new(b"golden secret");
    for (scenario, algorithm, b_secret) in [
        ("06-auth-sha1", HmacAlgorithm::Sha1, &secret),
        ("06-auth-sha256", HmacAlgorithm::Sha256, &secret),
        (
            "06-auth-wrong-secret",
            HmacAlgorithm::Sha256,
            &SharedSecret::new(b"other secret"),
        ),
    ] {
        let sockets = data_sockets(scenario);
        let mut checked = 0;
        let connections: Vec<_> = sockets.keys().map(|(connection, _)| *connection).collect();
        for connection in connections {
            let find = |direction| {
                let packets = sockets.get(&(connection, direction)).into_iter().flatten();
                let (mut challenge, mut response) = (None, None);
                for packet in packets {
                    match packet {
                        Packet::AuthChallenge(bytes) => challenge = Some(bytes.clone()),
                        Packet::AuthResponse(bytes) => response = Some(bytes.clone()),
                        _ => {}
                    }
                }
                challenge.zip(response)
            };
            let (Some(a), Some(b)) = (find(Direction::AToB), find(Direction::BToA)) else {
                continue;
            };
            assert_eq!(algorithm.response(&secret, &b.0).as_ref(), &a.1[..]);
            assert_eq!(algorithm.response(b_secret, &a.0).as_ref(), &b.1[..]);
            let challenge: [u8; 64] = a.0[..].try_into().unwrap();
            let verdict = algorithm.verify(&secret, &challenge, &b.1);
            let same = b_secret == &secret;
            assert_eq!(
                verdict,
                if same {
                    Verdict::Accepted
                } else {
                    Verdict::Refused
                }
            );
            checked += 1;
        }
        assert!(checked > 0, "{scenario}");
    }
}

/// A bool for each bit.
struct Bools(Vec<bool>);

impl BitSource for Bools {
    fn bits(&self) -> u64 {
        self.0.len() as u64
    }
    fn next_set(&self, from: u64) -> Option<u64> {
        (from..self.bits()).find(|&bit| self.0[bit as usize])
    }
    fn next_clear(&self, from: u64) -> Option<u64> {
        (from..self.bits()).find(|&bit| !self.0[bit as usize])
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

#[test]
fn bitmaps_of_the_kernel_come_out_of_our_sender_as_the_same_bytes() {
    let mut transfers = 0;
    for (scenario, compression) in [
        ("01-initial-sync", Compression::RunLength),
        ("03-bitmap-resync", Compression::RunLength),
        ("03-bitmap-resync-no-rle", Compression::Plain),
        ("04-verify", Compression::RunLength),
        ("05-split-brain", Compression::RunLength),
        ("12-hard-kill-primary", Compression::RunLength),
        ("16-flexible-external-md", Compression::RunLength),
    ] {
        for packets in data_sockets(scenario).into_values() {
            let bits = packets.iter().find_map(|packet| match packet {
                Packet::Sizes(sizes) => Some(sizes.d_size.div_ceil(8) as usize),
                _ => None,
            });
            let Some(bits) = bits else {
                continue;
            };
            let is_bitmap =
                |packet: &Packet| matches!(packet, Packet::Bitmap(_) | Packet::CompressedBitmap(_));
            let mut packets = packets.into_iter().filter(is_bitmap).peekable();
            while packets.peek().is_some() {
                let mut sink = Bools(vec![false; bits]);
                let mut receiver = BitmapReceiver::new(bits as u64);
                let (mut sent, mut progress) = (vec![], Progress::More);
                while progress == Progress::More {
                    let packet = packets.next().unwrap();
                    progress = match &packet {
                        Packet::Bitmap(chunk) => receiver.plain(chunk, &mut sink),
                        Packet::CompressedBitmap(code) => receiver.compressed(code, &mut sink),
                        other => panic!("{other:?}"),
                    }
                    .unwrap();
                    sent.push(packet);
                }
                let mut sender = BitmapSender::new(bits as u64, compression);
                let ours: Vec<_> = std::iter::from_fn(|| sender.next_packet(&sink)).collect();
                assert_eq!(ours, sent, "{scenario}");
                transfers += 1;
            }
        }
    }
    assert!(transfers >= 8, "{transfers}");
}

#[test]
fn the_header_of_every_captured_packet_is_the_one_of_the_rules() {
    for scenario in golden::scenarios().unwrap() {
        for listed in golden::listing(&scenario).unwrap() {
            let early = ["P_INITIAL_DATA", "P_INITIAL_META", "P_CONNECTION_FEATURES"];
            let kind = if early.contains(&&*listed.name) {
                HeaderKind::H80
            } else {
                HeaderKind::H100
            };
            assert_eq!(listed.header, kind.to_string(), "{scenario} {listed:?}");
        }
    }
}
