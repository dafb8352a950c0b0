//! Bitmap packets: nothing is set outside of the bitmap, and what came is sent on as the same bits.
//!
//! The input is a number of bits (2 bytes) and packets: 1 byte kind, 1 byte length, contents.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_protocol::Packet;
use tandem_protocol::bitmap_code::{
    BitSink, BitSource, BitmapReceiver, BitmapSender, Compression, Progress,
};

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

fuzz_target!(|input: &[u8]| {
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
});
