//! The wire: framing of both sockets, bitmap packets, authentication, lines of the control socket.

use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tandem_daemon::control::messages::Request;
use tandem_protocol::Packet;
use tandem_protocol::ProtocolError;
use tandem_protocol::auth::{HmacAlgorithm, SharedSecret, Verdict, check_challenge};
use tandem_protocol::bitmap_code::{
    BitSink, BitSource, BitmapReceiver, BitmapSender, Compression, Progress,
};
use tandem_protocol::control::{LineReader, to_line};
use tandem_protocol::{Framer, HeaderKind, Socket};

/// The data socket: whatever is understood encodes back to the bytes it came from, at any cut.
///
/// The first byte of the input chooses how the stream begins and the length of its pieces.
pub fn framing_data(input: &[u8]) {
    let Some((&choice, stream)) = input.split_first() else {
        return;
    };
    let mut framer = match choice & 3 {
        0 => Framer::accepted(),
        1 => Framer::dialled(Socket::Data),
        _ => Framer::established(Socket::Data, HeaderKind::H100),
    };
    framer.set_integrity_len(if choice & 4 == 0 { 0 } else { 4 });
    let piece = usize::from(choice >> 3) * 16 + 1;
    let mut again = BytesMut::new();
    for bytes in stream.chunks(piece) {
        framer.push(Bytes::copy_from_slice(bytes));
        loop {
            match framer.next() {
                Ok(Some(frame)) => {
                    let kind = frame.packet.header_kind();
                    // The volume of an 8-byte header is always 0, so each frame fits the one it had.
                    let payload = frame.encode_into(kind, &mut again).expect("it was decoded");
                    again.extend_from_slice(&payload.unwrap_or_default());
                    assert!(stream.starts_with(&again));
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        if let Some(pending) = framer.pending_payload() {
            assert!(pending.buffered < pending.length && pending.length <= 1 << 20);
        }
    }
}

/// The meta socket: whatever is understood encodes back to the bytes it came from.
pub fn framing_meta(stream: &[u8]) {
    let mut framer = if stream.starts_with(&[0x83, 0x74]) {
        Framer::accepted()
    } else {
        Framer::established(Socket::Meta, HeaderKind::H100)
    };
    framer.push(Bytes::copy_from_slice(stream));
    let mut again = BytesMut::new();
    while let Ok(Some(frame)) = framer.next() {
        let kind = frame.packet.header_kind();
        let payload = frame.encode_into(kind, &mut again).expect("it was decoded");
        again.extend_from_slice(&payload.unwrap_or_default());
        assert!(stream.starts_with(&again));
    }
}

/// Bitmap packets: nothing is set outside of the bitmap, and what came is sent on as the same bits.
///
/// The input is a number of bits (2 bytes) and packets: 1 byte kind, 1 byte length, contents.
pub fn bitmap_code(input: &[u8]) {
    let Some((size, mut rest)) = input.split_first_chunk::<2>() else {
        return;
    };
    let bits = usize::from(u16::from_le_bytes(*size));
    let mut map = Bools(vec![false; bits]);
    let mut receiver = BitmapReceiver::new(bits as u64);
    while let Some((&[kind, length], tail)) = rest.split_first_chunk::<2>() {
        let length = if kind & 2 == 0 {
            usize::from(length)
        } else {
            usize::from(length) * 16
        };
        let (payload, tail) = tail.split_at(length.min(tail.len()));
        rest = tail;
        let result = if kind & 1 == 0 {
            receiver.plain(payload, &mut map)
        } else {
            receiver.compressed(payload, &mut map)
        };
        if result.is_err() {
            break;
        }
    }
    let compression = if bits % 2 == 0 {
        Compression::RunLength
    } else {
        Compression::Plain
    };
    let mut sender = BitmapSender::new(bits as u64, compression);
    let mut copy = Bools(vec![false; bits]);
    let mut receiver = BitmapReceiver::new(bits as u64);
    let mut progress = Progress::More;
    while let Some(packet) = sender.next_packet(&map) {
        progress = match packet {
            Packet::Bitmap(chunk) => receiver.plain(&chunk, &mut copy),
            Packet::CompressedBitmap(code) => receiver.compressed(&code, &mut copy),
            other => panic!("{other:?}"),
        }
        .expect("what we send we take");
    }
    assert!(progress == Progress::Complete && copy == map);
}

#[derive(Clone, PartialEq)]
struct Bools(Vec<bool>);

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

/// Authentication: no challenge or response of any length panics, and only the right one passes.
pub fn auth(input: &[u8]) {
    let Some((own, peer)) = input.split_first_chunk::<64>() else {
        return;
    };
    let secret = SharedSecret::new(&own[..usize::from(own[0] & 63)]);
    if check_challenge(own, peer).is_ok() {
        assert!((64..=128).contains(&peer.len()) && !peer.starts_with(own));
    }
    for algorithm in HmacAlgorithm::ALL {
        let right = algorithm.response(&secret, own);
        let accepted = algorithm.verify(&secret, own, peer) == Verdict::Accepted;
        assert_eq!(accepted, peer == right.as_ref());
        assert_eq!(
            algorithm.verify(&secret, own, right.as_ref()),
            Verdict::Accepted
        );
    }
}

/// Lines of the control socket, as requests of the daemon and as a message that any line of its form is: never more than the limit is
/// kept, never a panic, and what is understood says the same when it is told again.
pub fn control(input: &[u8]) {
    lines::<Request>(input);
    lines::<Message>(input);
}

fn lines<T: Serialize + DeserializeOwned + PartialEq + Debug>(input: &[u8]) {
    let mut reader = LineReader::new(LIMIT);
    for bytes in input.chunks(100) {
        reader.push(bytes);
        loop {
            match reader.next_message::<T>() {
                Ok(Some(message)) => {
                    let line = to_line(&message, LIMIT * 8).expect("a message has a line");
                    let mut again = LineReader::new(LIMIT * 8);
                    again.push(&line);
                    assert_eq!(again.next_message::<T>().unwrap(), Some(message));
                }
                Ok(None) => break,
                Err(ProtocolError::BadLine { .. }) => {}
                Err(_) => return,
            }
        }
    }
}

/// Any message at all: a number, texts by name.
type Message = (u64, std::collections::BTreeMap<String, String>);

const LIMIT: usize = 4096;
