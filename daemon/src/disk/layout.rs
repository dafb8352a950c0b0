//! Where a backing file has data and where it has holes, and reading ahead. Both may block: on a thread of their own, so that a disk
//! that hangs here holds up neither the loop nor what the engine waits for.

use std::fs::File;

use rustix::fs::{Advice, SeekFrom};

/// A piece of a backing device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Bytes.
    pub(crate) length: u64,
    /// Nothing is allocated there: it reads as zeroes.
    pub(crate) hole: bool,
}

/// What a look at a disk found.
pub(crate) enum Looked {
    /// The answer to the asker of this number.
    Layout(u64, Vec<Piece>),
    /// Nothing: a range was read ahead.
    ReadAhead,
}

/// Data and holes of a range, from its first byte on, at most `limit` pieces. What does not know holes is data.
pub(crate) fn pieces(file: &File, start: u64, length: u64, limit: usize) -> Vec<Piece> {
    let end = start.saturating_add(length);
    let mut pieces = Vec::new();
    let mut at = start;
    while at < end && pieces.len() < limit {
        let (to, hole) = match next(file, at) {
            Some(found) => found,
            None => (end, false),
        };
        // A file that is changed meanwhile must not stop the progress.
        let to = to.max(at + 1).min(end);
        pieces.push(Piece {
            length: to - at,
            hole,
        });
        at = to;
    }
    pieces
}

/// Whether all of a range of `file` is one hole. A look that fails, and a range that the file does not have, are none: reading tells why.
pub(crate) fn is_hole(file: &File, start: u64, length: u64) -> bool {
    let end = start.saturating_add(length);
    match rustix::fs::seek(file, SeekFrom::Data(start)) {
        Ok(data) => data >= end,
        Err(rustix::io::Errno::NXIO) => file.metadata().is_ok_and(|found| found.len() >= end),
        Err(_) => false,
    }
}

/// Where the piece that begins at `at` ends, and whether it is a hole.
fn next(file: &File, at: u64) -> Option<(u64, bool)> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) if data > at => Some((data, true)),
        Ok(_) => {
            let hole = rustix::fs::seek(file, SeekFrom::Hole(at)).ok()?;
            Some((hole, false))
        }
        // No data up to the end.
        Err(rustix::io::Errno::NXIO) => Some((u64::MAX, true)),
        Err(_) => None,
    }
}

/// Asks the kernel to read a range into its cache.
pub(crate) fn read_ahead(file: &File, start: u64, length: u64) {
    let length = std::num::NonZeroU64::new(length);
    if let Err(error) = rustix::fs::fadvise(file, start, length, Advice::WillNeed) {
        tracing::debug!(%error, "no reading ahead");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = 64 << 10;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn pieces_cover_the_range_and_no_written_byte_is_a_hole(
            written in prop::collection::btree_set(0u64..32, 0..12),
            start in 0u64..32 * BLOCK,
            length in 1u64..32 * BLOCK,
            limit in 1usize..40,
        ) {
            let file = tempfile::tempfile().unwrap();
            file.set_len(32 * BLOCK).unwrap();
            for block in &written {
                file.write_all_at(&[7; 4096], block * BLOCK).unwrap();
            }
            let end = (start + length).min(32 * BLOCK);
            prop_assume!(start < end);
            let found = pieces(&file, start, end - start, limit);
            prop_assert!(!found.is_empty() && found.len() <= limit);
            let mut at = start;
            for piece in &found {
                prop_assert!(piece.length > 0);
                for block in &written {
                    let data = block * BLOCK..block * BLOCK + 4096;
                    let touches = data.start < at + piece.length && at < data.end;
                    prop_assert!(!(piece.hole && touches), "{piece:?} at {at}");
                }
                at += piece.length;
            }
            prop_assert!(at == end || (found.len() == limit && at < end));
        }
    }

    #[test]
    fn a_range_with_a_written_byte_and_one_behind_the_end_are_no_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(32 * BLOCK).unwrap();
        assert!(is_hole(&file, 0, 32 * BLOCK));
        file.write_all_at(&[0], 4 * BLOCK).unwrap();
        assert!(is_hole(&file, 0, 4 * BLOCK));
        assert!(!is_hole(&file, 0, 4 * BLOCK + 1), "zeroes are data");
        assert!(!is_hole(&file, 4 * BLOCK, 1));
        assert!(is_hole(&file, 5 * BLOCK, 27 * BLOCK));
        assert!(!is_hole(&file, 5 * BLOCK, 27 * BLOCK + 1));
        assert!(!is_hole(&file, 40 * BLOCK, 1));
    }

    #[test]
    fn what_knows_no_holes_is_data() {
        let zero = File::open("/dev/zero").unwrap();
        assert!(!is_hole(&zero, 0, 4096));
        let found = pieces(&zero, 0, 8192, 10);
        assert!(found.iter().all(|piece| !piece.hole), "{found:?}");
    }
}
