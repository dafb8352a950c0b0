//! Bytes that were fed and not parsed yet, as the pieces in which they came.

use alloc::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

/// Pieces shorter than this many bytes are copied together while others wait before them: each piece keeps the buffer
/// alive that it was read into, and a client that sends byte by byte must not make us hold thousands of them.
const PIECE_MIN: usize = 4096;

/// A rope of received pieces. Its length is bounded by what the caller feeds.
#[derive(Debug, Default)]
pub(crate) struct Input {
    pieces: VecDeque<Bytes>,
    /// Short pieces after the last of `pieces`, put together.
    tail: BytesMut,
    len: usize,
}

impl Input {
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let waits = self.len > 0;
        self.len += bytes.len();
        if waits && bytes.len() < PIECE_MIN {
            self.tail.extend_from_slice(&bytes);
            return;
        }
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
        self.pieces.push_back(bytes);
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The next `N` bytes, which stay in the input.
    pub(crate) fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        if self.len < N {
            return None;
        }
        let mut out = [0; N];
        let mut at = 0;
        for piece in self
            .pieces
            .iter()
            .map(|piece| &piece[..])
            .chain([&self.tail[..]])
        {
            let n = piece.len().min(N - at);
            out[at..at + n].copy_from_slice(&piece[..n]);
            at += n;
        }
        Some(out)
    }

    /// Drops up to `n` bytes and says how many.
    pub(crate) fn skip(&mut self, n: u64) -> u64 {
        let total = n.min(self.len as u64);
        let mut left = total as usize;
        while left > 0 {
            left -= self.with_front(left, |_| {});
        }
        total
    }

    /// The next `n` bytes: a slice of what was fed if they came in one piece, else a copy.
    pub(crate) fn take(&mut self, n: usize) -> Option<Bytes> {
        if self.len < n {
            return None;
        }
        if let Some(front) = self.pieces.front_mut().filter(|front| front.len() >= n) {
            let taken = front.split_to(n);
            if front.is_empty() {
                self.pieces.pop_front();
            }
            self.len -= n;
            return Some(taken);
        }
        let mut out = BytesMut::zeroed(n);
        self.move_to(&mut out);
        Some(out.freeze())
    }

    /// Moves bytes into `block` until one of them is used up; says how many.
    pub(crate) fn move_to(&mut self, block: &mut [u8]) -> usize {
        let total = block.len().min(self.len);
        let mut at = 0;
        while at < total {
            let rest = &mut block[at..total];
            at += self.with_front(rest.len(), |front| {
                rest[..front.len()].copy_from_slice(front);
            });
        }
        total
    }

    /// Consumes up to `max` bytes of the first piece, after `act` saw them; says how many. `max` is not 0 and the input
    /// not empty.
    fn with_front(&mut self, max: usize, act: impl FnOnce(&[u8])) -> usize {
        let n = match self.pieces.front_mut() {
            Some(front) => {
                let n = front.len().min(max);
                act(&front[..n]);
                front.advance(n);
                if front.is_empty() {
                    self.pieces.pop_front();
                }
                n
            }
            None => {
                let n = self.tail.len().min(max);
                act(&self.tail[..n]);
                self.tail.advance(n);
                n
            }
        };
        self.len -= n;
        n
    }

    pub(crate) fn clear(&mut self) {
        *self = Input::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(pieces: &[&'static [u8]]) -> Input {
        let mut input = Input::default();
        for piece in pieces {
            input.push(Bytes::from_static(piece));
        }
        input
    }

    #[test]
    fn bytes_in_one_piece_are_taken_without_a_copy() {
        let whole = Bytes::from_static(b"abcdef");
        let mut input = Input::default();
        input.push(whole.clone());
        let taken = input.take(4).unwrap();
        assert_eq!(taken.as_ptr(), whole.as_ptr());
        assert_eq!(input.len(), 2);
    }

    #[test]
    fn bytes_across_pieces_are_put_together() {
        let mut input = input(&[b"ab", b"", b"cde", b"f"]);
        assert_eq!(input.peek::<4>(), Some(*b"abcd"));
        assert_eq!(input.take(5).unwrap(), &b"abcde"[..]);
        assert_eq!(input.peek::<2>(), None);
        assert_eq!(input.take(2), None);
        assert_eq!(input.len(), 1);
    }

    #[test]
    fn short_pieces_that_wait_are_put_together() {
        let mut input = Input::default();
        for n in 0..PIECE_MIN {
            input.push(Bytes::from(alloc::vec![n as u8]));
        }
        assert_eq!(input.pieces.len(), 1);
        input.push(Bytes::from(alloc::vec![9; PIECE_MIN]));
        assert_eq!((input.pieces.len(), input.len()), (3, 2 * PIECE_MIN));
        input.push(Bytes::from_static(b"end"));
        assert_eq!(input.skip(2 * PIECE_MIN as u64), 2 * PIECE_MIN as u64);
        assert_eq!(input.peek::<3>(), Some(*b"end"));
        assert_eq!(input.take(2).unwrap(), &b"en"[..]);
        assert_eq!((input.len(), input.skip(5)), (1, 1));
    }

    #[test]
    fn skipping_stops_at_the_end_of_what_is_there() {
        let mut input = input(&[b"ab", b"cd"]);
        assert_eq!(input.skip(3), 3);
        assert_eq!(input.skip(9), 1);
        assert_eq!(input.len(), 0);
    }

    #[test]
    fn moving_fills_a_block_from_several_pieces() {
        let mut input = input(&[b"ab", b"cde"]);
        let mut block = [0; 4];
        assert_eq!(input.move_to(&mut block), 4);
        assert_eq!(&block, b"abcd");
        let mut block = [0; 4];
        assert_eq!(input.move_to(&mut block), 1);
        assert_eq!(input.len(), 0);
    }
}
