//! The data socket: whatever is understood encodes back to the bytes it came from, at any cut.
//!
//! The first byte of the input chooses how the stream begins and the length of its pieces.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use tandem_protocol::{Framer, HeaderKind, Socket};

fuzz_target!(|input: &[u8]| {
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
});
