//! The disk: superblock, activity log, text of a dump, foreign data.

use tandem_metadata::detect::{self as foreign, Probed, probes};
use tandem_metadata::restore::Restore;
use tandem_metadata::{
    AlGeometry, ApplyAl, ByteLen, ByteOffset, Flags, Layout, LogBlock, Placement, Step, Superblock,
    activity_log as log, gi,
};

/// Superblocks: what is decoded is encoded to the same used bytes, and what is opened fits its device.
///
/// The input is a device size (8 bytes), a placement (1 byte) and the head of a block.
pub fn superblock(input: &[u8]) {
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
}

/// The activity log: no ring panics, and a plan never marks what is outside the bitmap.
///
/// The input is a mask of blocks whose checksum is made right (1 byte), the superblock's flags (1 byte), and the
/// blocks' heads of 512 bytes each.
pub fn activity_log(input: &[u8]) {
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
            let crc = log::checksum(block).expect("a whole block");
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
}

/// The parser of `restore-md`: no text panics, and what is parsed is written and parsed to the same values, within
/// the metadata's area.
pub fn dump_text(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let Ok(restore) = Restore::parse(text) else {
        return;
    };
    assert_eq!(Restore::parse(&restore.to_text()).as_ref(), Ok(&restore));
    let Ok(layout) = Layout::new(Placement::Internal, ByteLen(1 << 30), restore.geometry) else {
        return;
    };
    let (start, len) = layout.area();
    for step in restore.steps(&layout) {
        if let Step::Write(write) = step {
            assert!(write.offset >= start);
            assert!(write.offset.0 + write.len().0 <= start.0 + len.0);
        }
    }
}

/// Detection of foreign data: no contents of a device panic, and something is found unless all is zero.
///
/// The input is the device's size (8 bytes) and the contents of its head.
pub fn detect(input: &[u8]) {
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
    let found = foreign::detect(device, &probed);
    if head.len() <= 4096 {
        assert_eq!(found.is_some(), head.iter().any(|byte| *byte != 0));
    }
}
