//! The meta socket: whatever is understood encodes back to the bytes it came from.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use tandem_protocol::{Framer, HeaderKind, Socket};

fuzz_target!(|stream: &[u8]| {
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
});
