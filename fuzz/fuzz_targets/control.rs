//! Lines of the control socket: never more than the limit is kept, and never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_protocol::ProtocolError;
use tandem_protocol::control::{LineReader, to_line};

/// Any message at all: a number, texts by name.
type Message = (u64, std::collections::BTreeMap<String, String>);

const LIMIT: usize = 4096;

fuzz_target!(|input: &[u8]| {
    let mut reader = LineReader::new(LIMIT);
    for bytes in input.chunks(100) {
        reader.push(bytes);
        loop {
            match reader.next_message::<Message>() {
                Ok(Some(message)) => {
                    to_line(&message, LIMIT * 8).expect("a message has a line");
                }
                Ok(None) => break,
                Err(ProtocolError::BadLine { .. }) => {}
                Err(_) => return,
            }
        }
    }
});
