//! Bytes for the client as pieces for one vectored send: heads are gathered, payloads are passed on uncopied.

use alloc::vec::Vec;

use bytes::{BufMut, Bytes, BytesMut};

use crate::wire;

/// Payloads up to this many bytes are copied behind their head: a copy is cheaper than another piece.
const COPY_MAX: usize = 256;

/// Bytes for heads that are allocated at once, and below how many left there is a new allocation.
const HEAD_BLOCK: usize = 4096;
const HEAD_MIN: usize = 128;

/// Pieces that wait for [`crate::Session::take_output`].
#[derive(Debug, Default)]
pub(crate) struct Output {
    pieces: Vec<Bytes>,
    /// Heads that follow the last piece.
    head: BytesMut,
}

impl Output {
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.head.is_empty()
    }

    pub(crate) fn head(&mut self) -> &mut BytesMut {
        if self.head.capacity() - self.head.len() < HEAD_MIN {
            self.head.reserve(HEAD_BLOCK);
        }
        &mut self.head
    }

    pub(crate) fn payload(&mut self, bytes: Bytes) {
        if bytes.len() <= COPY_MAX {
            self.head.put_slice(&bytes);
            return;
        }
        self.close_head();
        self.pieces.push(bytes);
    }

    /// Moves everything to the end of `out`, in order.
    pub(crate) fn take(&mut self, out: &mut Vec<Bytes>) {
        self.close_head();
        out.append(&mut self.pieces);
    }

    fn close_head(&mut self) {
        if !self.head.is_empty() {
            let head = self.head.split().freeze();
            self.pieces.push(head);
        }
    }

    /// Greeting: magics and handshake flags (spec 3.1).
    pub(crate) fn greeting(&mut self) {
        self.head.put_u64(wire::NBDMAGIC);
        self.head.put_u64(wire::IHAVEOPT);
        self.head
            .put_u16(wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
    }

    /// Option reply: magic, option, type, length, data (spec 3.2). `parts` are written one after the other.
    pub(crate) fn option_reply(&mut self, option: u32, reply: u32, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.head.put_u64(wire::OPTION_REPLY_MAGIC);
        self.head.put_u32(option);
        self.head.put_u32(reply);
        self.head.put_u32(length as u32);
        for part in parts {
            self.head.put_slice(part);
        }
    }

    /// Simple reply without its data (spec section 5).
    pub(crate) fn simple(&mut self, error: u32, cookie: u64) {
        let head = self.head();
        head.put_u32(wire::SIMPLE_REPLY_MAGIC);
        head.put_u32(error);
        head.put_u64(cookie);
    }

    /// Head of a chunk that is the last of its reply (spec section 5).
    pub(crate) fn last_chunk(&mut self, kind: u16, cookie: u64, length: u32) {
        self.chunk(wire::chunk::FLAG_DONE, kind, cookie, length);
    }

    /// Head of a chunk.
    pub(crate) fn chunk(&mut self, flags: u16, kind: u16, cookie: u64, length: u32) {
        let head = self.head();
        head.put_u32(wire::STRUCTURED_REPLY_MAGIC);
        head.put_u16(flags);
        head.put_u16(kind);
        head.put_u64(cookie);
        head.put_u32(length);
    }
}

/// Cuts a text to `max` bytes without cutting a character.
pub(crate) fn clip(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_payloads_pass_through_without_a_copy() {
        let mut output = Output::default();
        let big = Bytes::from(alloc::vec![7; COPY_MAX + 1]);
        output.simple(0, 1);
        output.payload(big.clone());
        output.simple(0, 2);
        output.payload(Bytes::from_static(b"tiny"));
        let mut out = Vec::new();
        output.take(&mut out);
        assert_eq!(out.len(), 3);
        assert_eq!(out[1].as_ptr(), big.as_ptr());
        assert_eq!(out[2].len(), 16 + 4);
        assert!(output.is_empty());
    }

    #[test]
    fn texts_are_clipped_at_a_character() {
        assert_eq!(clip("aäb", 2), "a");
        assert_eq!(clip("aäb", 3), "aä");
        assert_eq!(clip("ab", 9), "ab");
    }
}
