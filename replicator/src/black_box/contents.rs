//! Contents of events, with runs of one byte shortened: bitmaps are mostly runs, and blanked data is nothing else.
//!
//! Pieces: a length whose lowest bit says run (1) or literal (0); then the byte of the run, or the bytes.

use alloc::vec::Vec;

use super::{CONTENTS_BYTES_MAX, put_length, take_length};

/// Bytes that are looked at together: a run begins and ends at their bounds.
const STEP: usize = 16;

/// Appends `bytes`.
pub(super) fn pack(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut literal = 0;
    let mut at = 0;
    while let Some(byte) = run_starts(bytes, at) {
        let Some(byte) = byte else {
            at += STEP;
            continue;
        };
        let start = at;
        while run_starts(bytes, at) == Some(Some(byte)) {
            at += STEP;
        }
        pack_literal(out, &bytes[literal..start]);
        pack_run(out, byte, at - start);
        literal = at;
    }
    pack_literal(out, &bytes[literal..]);
}

/// None: fewer than [`STEP`] bytes are left. Some(None): they are not all equal.
fn run_starts(bytes: &[u8], at: usize) -> Option<Option<u8>> {
    let chunk = bytes.get(at..)?.first_chunk::<STEP>()?;
    let run = u128::from_le_bytes(*chunk) == u128::from_le_bytes([chunk[0]; STEP]);
    Some(run.then_some(chunk[0]))
}

fn pack_literal(out: &mut Vec<u8>, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_length(out, bytes.len() << 1);
        out.extend_from_slice(bytes);
    }
}

/// Appends `count` times `byte`.
pub(super) fn pack_run(out: &mut Vec<u8>, byte: u8, count: usize) {
    if count > 0 {
        put_length(out, count << 1 | 1);
        out.push(byte);
    }
}

/// What was packed; `None` if it cannot have been, or is longer than an event's contents can be.
pub(super) fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(unpacked_len(packed)?);
    let mut rest = packed;
    while !rest.is_empty() {
        let length = take_length(&mut rest)?;
        let count = length >> 1;
        if length & 1 == 1 {
            let (byte, after) = rest.split_first()?;
            out.resize(out.len() + count, *byte);
            rest = after;
        } else {
            let (literal, after) = rest.split_at_checked(count)?;
            out.extend_from_slice(literal);
            rest = after;
        }
    }
    Some(out)
}

fn unpacked_len(packed: &[u8]) -> Option<usize> {
    let (mut total, mut rest) = (0usize, packed);
    while !rest.is_empty() {
        let length = take_length(&mut rest)?;
        let skipped = if length & 1 == 1 { 1 } else { length >> 1 };
        rest = rest.get(skipped..)?;
        total = total.checked_add(length >> 1)?;
        if total > CONTENTS_BYTES_MAX {
            return None;
        }
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn contents_come_back(pieces in proptest::collection::vec((any::<u8>(), 0usize..100, any::<bool>()), 0..20)) {
            let mut bytes = Vec::new();
            for (byte, count, run) in pieces {
                for number in 0..count {
                    bytes.push(if run { byte } else { byte.wrapping_add(number as u8) });
                }
            }
            let mut packed = Vec::new();
            pack(&mut packed, &bytes);
            prop_assert_eq!(unpack(&packed), Some(bytes));
        }

        #[test]
        fn what_was_not_packed_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(contents) = unpack(&bytes) {
                prop_assert!(contents.len() <= CONTENTS_BYTES_MAX);
            }
        }
    }

    #[test]
    fn an_empty_bitmap_takes_a_few_bytes_and_absurd_lengths_are_refused() {
        let mut packed = Vec::new();
        pack(&mut packed, &vec![0; 256 << 10]);
        assert!(packed.len() < 8, "{} bytes", packed.len());
        let mut absurd = Vec::new();
        pack_run(&mut absurd, 0, CONTENTS_BYTES_MAX);
        assert_eq!(unpack(&absurd).unwrap().len(), CONTENTS_BYTES_MAX);
        pack_run(&mut absurd, 0, 1);
        assert_eq!(unpack(&absurd), None);
    }
}
