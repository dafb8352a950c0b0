//! The activity log: no ring panics, and a plan never marks what is outside the bitmap.
//!
//! The input is a mask of blocks whose checksum is made right (1 byte), the superblock's flags (1 byte), and the
//! blocks' heads of 512 bytes each.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_metadata::{
    AlGeometry, ApplyAl, ByteLen, Flags, Layout, LogBlock, Placement, Superblock, activity_log,
};

fuzz_target!(|input: &[u8]| {
    let Some((&[valid, flags], heads)) = input.split_first_chunk::<2>() else {
        return;
    };
    let mut ring = vec![0xFF; 8 * 4096];
    for (index, (block, head)) in ring
        .chunks_exact_mut(4096)
        .zip(heads.chunks(512))
        .enumerate()
    {
        block[..head.len()].copy_from_slice(head);
        if valid & 1 << index != 0 {
            block[..4].copy_from_slice(&0x69CB_65A2_u32.to_be_bytes());
            let crc = activity_log::checksum(block).expect("a whole block");
            block[8..12].copy_from_slice(&crc.to_be_bytes());
            assert!(LogBlock::decode(block).is_ok());
        }
    }
    let layout = Layout::new(Placement::Internal, ByteLen(1 << 29), AlGeometry::DEFAULT)
        .expect("a good size");
    let mut superblock = Superblock::fresh(&layout).in_use();
    superblock.la_size = layout.data_size_max();
    superblock.flags = superblock.flags.with(Flags(u32::from(flags)));
    if let Ok(plan) = ApplyAl::plan(&superblock, &layout, &ring) {
        let mut newly_set = 0;
        for page in plan.pages() {
            let (_, len) = layout
                .bitmap_page(page)
                .expect("marked pages are within the bitmap");
            newly_set += plan.mark_page(page, &mut vec![0; len.0 as usize]);
        }
        let _ = plan.messages(newly_set);
    }
});
