//! Superblocks: what is decoded is encoded to the same used bytes, and what is opened fits its device.
//!
//! The input is a device size (8 bytes), a placement (1 byte) and the head of a block.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_metadata::{ByteLen, Placement, Superblock, gi};

fuzz_target!(|input: &[u8]| {
    let Some((size, rest)) = input.split_first_chunk::<8>() else {
        return;
    };
    let Some((placement, head)) = rest.split_first() else {
        return;
    };
    let placement = match placement % 4 {
        0 => Placement::Internal,
        1 => Placement::FlexibleExternal,
        slot => Placement::Indexed(slot),
    };
    let device = ByteLen(u64::from_le_bytes(*size));
    let mut block = [0; 4096];
    let used = head.len().min(96);
    block[..used].copy_from_slice(&head[..used]);
    let Ok(superblock) = Superblock::decode(&block) else {
        return;
    };
    let encoded = superblock.encode();
    assert_eq!(encoded[..48], block[..48]);
    assert_eq!(encoded[56..], block[56..]);
    let _ = gi::show_gi(&superblock);
    if let Ok((_, layout)) = Superblock::open(placement, device, &block) {
        let (start, len) = layout.area();
        assert!(start.0 + len.0 <= device.0);
        let _ = superblock.check_size(&layout);
    }
});
