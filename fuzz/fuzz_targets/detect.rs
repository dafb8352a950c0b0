//! Detection of foreign data: no contents of a device panic, and something is found unless all is zero.
//!
//! The input is the device's size (8 bytes) and the contents of its head.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_metadata::detect::{Probed, detect, probes};
use tandem_metadata::{ByteLen, ByteOffset};

fuzz_target!(|input: &[u8]| {
    let Some((size, head)) = input.split_first_chunk::<8>() else {
        return;
    };
    let device = ByteLen(u64::from_le_bytes(*size));
    for probe in probes(device) {
        assert!(probe.offset.0 + probe.len.0 <= device.0);
    }
    let probed = [Probed {
        offset: ByteOffset(0),
        bytes: head,
    }];
    let found = detect(device, &probed);
    if head.len() <= 4096 {
        assert_eq!(found.is_some(), head.iter().any(|byte| *byte != 0));
    }
});
