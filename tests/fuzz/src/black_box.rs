//! Black boxes.

use tandem_replicator::ResourceOptions;
use tandem_replicator::black_box::{Extent, Reader, Recorder};

/// Whatever is in a file, it is read to its end or refused in words, without an allocation beyond the bounds. The first byte says
/// whether the rest is a whole file, or entries behind a sound head.
///
/// # Panics
/// The reader does.
pub fn black_box(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    let mut file = Vec::new();
    if kind & 1 == 1 {
        let recorder = Recorder::new(&ResourceOptions {
            name: "r0".into(),
            volumes: Vec::new(),
            seed: [0; 32],
        });
        file = recorder.head(Extent::Whole, "a fuzzer", "", 0);
    }
    file.extend_from_slice(rest);
    let mut reader = match Reader::open(&file) {
        Ok(reader) => reader,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    loop {
        match reader.next() {
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        }
    }
}
