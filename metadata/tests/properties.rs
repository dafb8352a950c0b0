//! Goal: every codec agrees with a slow oracle, every parser takes any bytes without a panic.
//! Method: generated inputs, random bytes, and small spaces enumerated.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tandem_metadata::activity_log::{self, initialized_block};
use tandem_metadata::detect::{self, Kind, Probed};
use tandem_metadata::dump::{DumpHeader, dump_md};
use tandem_metadata::placement::{CAPACITY_SECTORS_MAX, SLOT_SECTORS, external_size_for};
use tandem_metadata::relocate::LastKnown;
use tandem_metadata::restore::Restore;
use tandem_metadata::size::SizeFacts;
use tandem_metadata::{
    AlExtent, AlGeometry, ApplyAl, ByteLen, ByteOffset, Coverage, Flags, Layout, LogBlock,
    LogWriter, Magic, Marking, PageNumber, Placement, Replay, Replayed, Sector, SectorCount,
    SlotUpdate, Superblock, Transaction, Uuids, bitmap, gi,
};

fn geometry() -> impl Strategy<Value = AlGeometry> {
    (1_u32..40, 1_u32..40).prop_filter_map("product", |(stripes, size)| {
        AlGeometry::new(stripes, size).ok()
    })
}

fn placement() -> impl Strategy<Value = Placement> {
    prop_oneof![
        Just(Placement::Internal),
        Just(Placement::FlexibleExternal),
        (0..4_u8).prop_map(Placement::Indexed),
    ]
}

fn superblock() -> impl Strategy<Value = Superblock> {
    let uuids = any::<[u64; 4]>().prop_map(|[current, bitmap, younger, older]| Uuids {
        current,
        bitmap,
        history: [younger, older],
    });
    let layout = (any::<u32>(), any::<i32>(), any::<i32>(), any::<[u32; 5]>());
    (
        any::<u64>(),
        uuids,
        any::<u64>(),
        any::<u32>(),
        any::<bool>(),
        layout,
    )
        .prop_map(
            |(la_size, uuids, device_uuid, flags, clean, (size, al, bm, rest))| Superblock {
                la_size: SectorCount(la_size),
                uuids,
                device_uuid,
                flags: Flags(flags),
                magic: if clean { Magic::Clean } else { Magic::Unclean },
                md_size_sect: size,
                al_offset: al,
                al_extents: rest[0],
                bm_offset: bm,
                bm_bytes_per_bit: rest[1],
                la_peer_max_bio_size: rest[2],
                al_stripes: rest[3],
                al_stripe_size_4k: rest[4],
            },
        )
}

/// Section 3.4, bit by bit.
fn slow_checksum(block: &[u8]) -> u32 {
    let mut crc = 0_u32;
    for (index, byte) in block.iter().enumerate() {
        let byte = if (8..12).contains(&index) { 0 } else { *byte };
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0x82F6_3B78
            } else {
                crc >> 1
            };
        }
    }
    crc
}

fn slot_updates(slots: u16) -> impl Strategy<Value = Vec<SlotUpdate>> {
    prop::collection::btree_map(0..slots, 0..5000_u32, 0..10).prop_map(|map| {
        let update = |(slot, extent)| SlotUpdate {
            slot,
            extent: Some(AlExtent(extent)),
        };
        map.into_iter().map(update).collect()
    })
}

#[test]
fn the_checksum_of_the_initialized_block_is_the_known_constant() {
    let block = initialized_block();
    assert_eq!(
        block[..16],
        *b"\x69\xCB\x65\xA2\0\0\0\0\x70\x9C\xC6\x51\xFF\xFF\0\0"
    );
    assert!(block[16..].iter().all(|byte| *byte == 0));
}

#[test]
fn worked_examples_of_the_placement_are_met() {
    let example = [
        (
            67_108_864_u64,
            80,
            67_104_768_u64,
            67_072_000_u64,
            130_992_u64,
        ),
        (134_217_728, 80, 134_213_632, 134_180_864, 262_064),
        (134_218_240, 88, 134_213_632, 134_180_864, 262_056),
        (1 << 30, 136, 1_073_737_728, 1_073_704_960, 2_097_016),
        (1 << 33, 584, 8_589_930_496, 8_589_897_728, 16_776_632),
        (
            (1 << 33) + 3584,
            592,
            8_589_930_496,
            8_589_897_728,
            16_776_624,
        ),
        (
            1 << 40,
            65_608,
            1_099_511_623_680,
            1_099_511_590_912,
            2_147_418_040,
        ),
        (
            1 << 44,
            1_048_648,
            17_592_186_040_320,
            17_592_186_007_552,
            34_358_689_720,
        ),
        (
            1 << 50,
            67_108_936,
            1_125_899_906_838_528,
            1_125_899_906_805_760,
            2_198_956_146_616,
        ),
    ];
    for (device, size, superblock, log, usable) in example {
        let layout =
            Layout::new(Placement::Internal, ByteLen(device), AlGeometry::DEFAULT).unwrap();
        assert_eq!(layout.md_size_sect(), size);
        assert_eq!(layout.superblock_offset(), ByteOffset(superblock));
        assert_eq!(layout.activity_log_offset(), ByteOffset(log));
        assert_eq!(layout.bitmap_offset(), ByteOffset(usable * 512));
        assert_eq!(layout.data_size_max(), SectorCount(usable));
    }
    let default = AlGeometry::DEFAULT;
    assert_eq!(
        external_size_for(SectorCount(16_777_216), default),
        SectorCount(2048)
    );
    assert_eq!(
        external_size_for(SectorCount(1 << 31), default),
        SectorCount(65_608)
    );
    assert_eq!(
        external_size_for(SectorCount(1 << 35), default),
        SectorCount(1_048_648)
    );
    let slot = Layout::new(Placement::Indexed(1), ByteLen(268_435_456), default).unwrap();
    assert_eq!(slot.data_size_max(), SectorCount(8_587_575_296));
    assert_eq!(slot.superblock(), Sector(SLOT_SECTORS));
}

#[test]
fn al_extents_are_limited_by_what_the_ring_can_describe() {
    let limit = |stripes, size| AlGeometry::new(stripes, size).unwrap().al_extents_max();
    assert_eq!(
        (limit(1, 8), limit(1, 72), limit(1, 73)),
        (6433, 65_249, 65_534)
    );
    assert_eq!(AlGeometry::DEFAULT.al_extents_clamped(7), 67);
    assert_eq!(AlGeometry::DEFAULT.al_extents_clamped(1237), 1237);
    assert_eq!(AlGeometry::DEFAULT.al_extents_clamped(65_534), 6433);
    assert!(LogWriter::new(AlGeometry::DEFAULT, 6434).is_err());
}

#[test]
fn each_half_of_the_stripe_fields_alone_is_damage() {
    assert_eq!(AlGeometry::from_disk(0, 0), Ok(AlGeometry::DEFAULT));
    assert!(AlGeometry::from_disk(1, 0).is_err());
    assert!(AlGeometry::from_disk(0, 8).is_err());
    assert!(AlGeometry::from_disk(u32::MAX, u32::MAX).is_err());
}

#[test]
fn clean_means_magic_and_flag() {
    let layout = Layout::new(Placement::Internal, ByteLen(1 << 26), AlGeometry::DEFAULT).unwrap();
    let fresh = Superblock::fresh(&layout);
    assert!(fresh.check_clean().is_ok());
    let mut without_flag = fresh.clone();
    without_flag.flags = Flags::NONE;
    let mut without_magic = fresh.clone();
    without_magic.magic = Magic::Unclean;
    assert!(without_flag.needs_replay() && without_magic.needs_replay());
    assert!(fresh.clone().in_use().needs_replay());
    assert_eq!(fresh.clone().in_use().released(), fresh);
}

#[test]
fn other_versions_are_refused_by_name() {
    let mut block = [0_u8; 4096];
    let error = |block: &[u8]| Superblock::decode(block).unwrap_err().to_string();
    assert!(error(&block).contains("no DRBD metadata"));
    block[60..64].copy_from_slice(&0x8374_026D_u32.to_be_bytes());
    assert!(error(&block).contains("v09"));
    block[60..64].fill(0);
    block[28..32].copy_from_slice(&0x8374_026A_u32.to_be_bytes());
    assert!(error(&block).contains("v07"));
    assert!(error(&block[..4000]).contains("4000"));
}

#[test]
fn metadata_of_another_device_size_are_not_accepted() {
    let make = |size| Layout::new(Placement::Internal, ByteLen(size), AlGeometry::DEFAULT).unwrap();
    let block = Superblock::fresh(&make(1 << 30)).encode();
    assert!(Superblock::open(Placement::Internal, ByteLen(1 << 30), &block).is_ok());
    let grown = Superblock::open(Placement::Internal, ByteLen((1 << 30) + (1 << 28)), &block);
    assert!(grown.unwrap_err().to_string().contains("bm_offset"));
}

#[test]
fn a_log_from_before_8_4_is_named_and_refused() {
    let mut ring = vec![0; 8 * 4096];
    let check = |ring: &[u8], magic| Replay::check_format(ring, AlGeometry::DEFAULT, magic);
    assert!(
        check(&ring, Magic::Clean)
            .unwrap_err()
            .to_string()
            .contains("before DRBD 8.4")
    );
    assert!(check(&ring, Magic::Unclean).is_ok());
    ring[..4].copy_from_slice(&0x6AA6_67A6_u32.to_be_bytes());
    assert!(
        check(&ring, Magic::Unclean)
            .unwrap_err()
            .to_string()
            .contains("DRBD 9")
    );
}

fn transaction_ring(slots: u16, count: u32) -> (Vec<u8>, LogWriter, Vec<BTreeSet<AlExtent>>) {
    let mut writer = LogWriter::new(AlGeometry::DEFAULT, slots).unwrap();
    let mut ring = initialized_block().repeat(8);
    let mut sets = vec![BTreeSet::new()];
    for number in 0..count {
        let slot = (number * 7 % u32::from(slots)) as u16;
        let extent = Some(AlExtent(number + 100));
        let pending = writer.build(&[SlotUpdate { slot, extent }]).unwrap();
        let at = pending.block as usize * 4096;
        ring[at..at + 4096].copy_from_slice(&pending.bytes[..]);
        writer.commit(pending);
        sets.push(writer.slots().iter().flatten().copied().collect());
    }
    (ring, writer, sets)
}

fn coverage(ring: &[u8]) -> (BTreeSet<AlExtent>, Coverage) {
    match Replay::of(ring, AlGeometry::DEFAULT).unwrap().result {
        Replayed::Updates { active, coverage } => (active, coverage),
        Replayed::Nothing => panic!("updates expected"),
    }
}

#[test]
fn a_torn_newest_block_gives_exactly_the_set_before_it() {
    for count in 2..30 {
        let (mut ring, _, sets) = transaction_ring(67, count);
        assert_eq!(
            coverage(&ring),
            (sets[count as usize].clone(), Coverage::Exact)
        );
        let torn = (count - 1) % 8;
        ring[torn as usize * 4096 + 2000] ^= 1;
        assert_eq!(
            coverage(&ring),
            (sets[count as usize - 1].clone(), Coverage::Exact)
        );
    }
}

#[test]
fn damage_in_the_middle_never_loses_a_hot_extent() {
    let (ring, _, sets) = transaction_ring(67, 30);
    let hot = &sets[30];
    for broken in 0..8_usize {
        for other in 0..8_usize {
            let mut ring = ring.clone();
            ring[broken * 4096 + 600] ^= 0x10;
            ring[other * 4096 + 700] ^= 0x20;
            let (active, coverage) = coverage(&ring);
            let torn_newest = broken == other && broken == 29 % 8;
            if coverage != Coverage::Unknown && !torn_newest {
                // The newest transaction cannot be told from one that never happened if its block is torn.
                let newest_lost = broken == 29 % 8 || other == 29 % 8;
                let expected = if newest_lost { &sets[29] } else { hot };
                assert!(active.is_superset(expected), "{broken} {other}");
            }
        }
    }
}

#[test]
fn a_writer_that_started_anew_over_an_old_ring_loses_no_hot_extent() {
    // What restore-md of drbdmeta leaves: it does not touch the log, and the next writer starts at 0.
    let (mut ring, _, _) = transaction_ring(67, 30);
    let mut writer = LogWriter::new(AlGeometry::DEFAULT, 67).unwrap();
    for number in 0..3_u16 {
        let extent = Some(AlExtent(900 + u32::from(number)));
        let pending = writer
            .build(&[SlotUpdate {
                slot: number,
                extent,
            }])
            .unwrap();
        let at = pending.block as usize * 4096;
        ring[at..at + 4096].copy_from_slice(&pending.bytes[..]);
        writer.commit(pending);
    }
    let (active, coverage) = coverage(&ring);
    assert_eq!(coverage, Coverage::Union);
    let hot: BTreeSet<AlExtent> = writer.slots().iter().flatten().copied().collect();
    assert!(active.is_superset(&hot));
}

#[test]
fn two_lost_newest_blocks_mean_that_everything_is_suspect() {
    let (mut ring, _, _) = transaction_ring(67, 30);
    ring[(29 % 8) * 4096 + 600] ^= 1;
    ring[(28 % 8) * 4096 + 600] ^= 1;
    assert_eq!(coverage(&ring).1, Coverage::Unknown);
    let layout = Layout::new(Placement::Internal, ByteLen(1 << 30), AlGeometry::DEFAULT).unwrap();
    let mut superblock = Superblock::fresh(&layout).in_use();
    superblock.la_size = layout.data_size_max();
    superblock.flags = superblock.flags.with(Flags::PRIMARY_IND);
    let plan = ApplyAl::plan(&superblock, &layout, &ring).unwrap();
    assert_eq!(plan.marking, Marking::Everything);
    assert_eq!(plan.pages().len() as u64, bitmap::pages(superblock.la_size));
    let mut page = [0; 4096];
    assert_eq!(plan.mark_page(PageNumber(3), &mut page), 32_768);
}

#[test]
fn the_wrap_of_transaction_numbers_is_avoided_where_the_position_would_jump() {
    let uneven = AlGeometry::new(3, 3).unwrap();
    let mut writer = LogWriter::starting_at(uneven, 67, u32::MAX).unwrap();
    assert!(writer.build(&[]).is_err());
    let mut writer = LogWriter::starting_at(AlGeometry::DEFAULT, 67, u32::MAX).unwrap();
    let pending = writer.build(&[]).unwrap();
    writer.commit(pending);
    assert_eq!(writer.next_number(), 0);
}

#[test]
fn a_slot_beyond_the_log_or_named_twice_is_refused() {
    let mut writer = LogWriter::new(AlGeometry::DEFAULT, 67).unwrap();
    let update = |slot| SlotUpdate {
        slot,
        extent: Some(AlExtent(1)),
    };
    assert!(writer.build(&[update(67)]).is_err());
    assert!(writer.build(&[update(1), update(1)]).is_err());
    let many: Vec<_> = (0..65).map(update).collect();
    assert!(writer.build(&many).is_err());
}

#[test]
fn sizes_are_agreed_as_the_table_says() {
    let agree = |own, peer, last, configured| {
        let facts = SizeFacts {
            own: SectorCount(own),
            peer: SectorCount(peer),
            last_agreed: SectorCount(last),
            configured: SectorCount(configured),
        };
        facts.agree().sectors().0
    };
    assert_eq!(agree(100, 80, 50, 0), 80);
    assert_eq!(agree(100, 0, 50, 0), 50);
    assert_eq!(agree(40, 0, 50, 0), 40);
    assert_eq!(agree(0, 30, 50, 0), 30);
    assert_eq!(agree(100, 0, 0, 0), 100);
    assert_eq!(agree(0, 0, 0, 0), 0);
    assert_eq!(agree(100, 80, 0, 60), 60);
    assert_eq!(agree(100, 80, 0, 90), 80);
}

#[test]
fn set_gi_takes_short_forms_and_names_what_is_wrong() {
    let layout = Layout::new(Placement::Internal, ByteLen(1 << 26), AlGeometry::DEFAULT).unwrap();
    let fresh = Superblock::fresh(&layout);
    let set = |argument: &str| gi::set_gi(&fresh, argument);
    let changed = set("1122334455667788::0102:4:1:1").unwrap();
    assert_eq!(
        gi::get_gi(&changed),
        "1122334455667788:0000000000000000:0000000000000102:0000000000000004:1:1:0:0:0:0:0"
    );
    assert!(changed.flags.contains(Flags::AL_CLEAN));
    assert_eq!(
        set("xyz").unwrap_err().to_string(),
        "'xyz' is not a number."
    );
    assert_eq!(set("::::2").unwrap_err().to_string(), "'2' is not 0 or 1.");
    assert!(
        set("::::::::::::")
            .unwrap_err()
            .to_string()
            .contains("13 fields")
    );
    assert!(set("+1").is_err());
    let outdated = gi::outdate(&changed).unwrap();
    assert_eq!(gi::dstate(&outdated), "Outdated");
    assert_eq!(gi::dstate(&gi::invalidate(&changed)), "Inconsistent");
    assert!(gi::outdate(&fresh).is_err());
}

#[test]
fn sizes_are_written_as_the_tools_write_them() {
    let expected = [
        (4, "4 KB"),
        (8192, "8192 KB"),
        (20_480, "20 MB"),
        (1_048_508, "1024 MB"),
        (16_776_668, "16 GB"),
        (u64::MAX, "18014398509481984 KB"),
    ];
    for (kib, text) in &expected[..5] {
        assert_eq!(gi::pretty_kib(*kib), *text);
    }
    assert!(gi::pretty_kib(u64::MAX).ends_with(" EB"));
}

#[test]
fn the_last_known_record_is_read_as_drbdmeta_writes_it() {
    let record = LastKnown::parse("67108864\t/dev/sdb1\nuuid:\tC0FFEE00DEADBEEF\n").unwrap();
    assert_eq!(record.size, ByteLen(67_108_864));
    assert_eq!(record.device_uuid, Some(0xC0FF_EE00_DEAD_BEEF));
    assert_eq!(LastKnown::parse("67108864 /dev/sdb1"), None);
    assert_eq!(LastKnown::file_name(3), "drbd-minor-3.lkbd");
}

proptest! {
    #[test]
    fn superblocks_survive_a_round_trip(superblock in superblock()) {
        let block = superblock.encode();
        prop_assert_eq!(Superblock::decode(&block).unwrap(), superblock);
        prop_assert!(block[96..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn random_superblocks_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 4096),
        magic in 0x8374_0268_u32..0x8374_026F,
        device in any::<u64>(),
        placement in placement(),
    ) {
        bytes[60..64].copy_from_slice(&magic.to_be_bytes());
        let _ = Superblock::open(placement, ByteLen(device), &bytes);
        if let Ok(superblock) = Superblock::decode(&bytes) {
            let _ = gi::show_gi(&superblock);
            let _ = superblock.geometry();
        }
    }

    #[test]
    fn areas_are_disjoint_and_within_the_device(
        placement in placement(),
        geometry in geometry(),
        device in prop_oneof![0_u64..1 << 24, 0_u64..1 << 52, any::<u64>()],
    ) {
        let Ok(layout) = Layout::new(placement, ByteLen(device), geometry) else { return Ok(()) };
        let (start, len) = layout.area();
        let end = start.0 + len.0;
        prop_assert!(end <= device);
        let mut areas = [
            (layout.superblock_offset().0, 4096),
            (layout.activity_log_offset().0, layout.activity_log_len().0),
            (layout.bitmap_offset().0, layout.bitmap_len().0),
        ];
        areas.sort_unstable();
        prop_assert!(areas[0].0 >= start.0);
        prop_assert!(areas[0].0 + areas[0].1 <= areas[1].0);
        prop_assert!(areas[1].0 + areas[1].1 <= areas[2].0);
        prop_assert!(areas[2].0 + areas[2].1 <= end);
        // The bitmap describes all the data, and internal metadata do not overlap them.
        let data = layout.data_size_max();
        prop_assert!(data.0 <= CAPACITY_SECTORS_MAX.max(8_587_575_296));
        prop_assert!(data.bits().div_ceil(8) <= layout.bitmap_len().0);
        if placement == Placement::Internal {
            prop_assert_eq!(data.0 * 512, start.0);
            prop_assert_eq!(data.0 % 8, 0);
        }
        let superblock = Superblock::fresh(&layout);
        let opened = Superblock::open(placement, ByteLen(device), &superblock.encode());
        prop_assert_eq!(opened.unwrap(), (superblock, layout));
    }

    #[test]
    fn every_transaction_has_its_own_block_of_the_ring(geometry in geometry()) {
        let blocks: BTreeSet<u32> =
            (0..geometry.blocks()).map(|number| geometry.block_of(number)).collect();
        prop_assert_eq!(blocks.len() as u32, geometry.blocks());
        prop_assert_eq!(blocks.last().copied(), Some(geometry.blocks() - 1));
    }

    #[test]
    fn checksums_agree_with_the_bitwise_definition(
        block in prop::collection::vec(any::<u8>(), 4096),
    ) {
        prop_assert_eq!(activity_log::checksum(&block).unwrap(), slow_checksum(&block));
    }

    #[test]
    fn transactions_survive_a_round_trip(
        number in any::<u32>(),
        slots in 67_u16..1500,
        contents in prop::collection::vec(prop::option::of(0..10_000_u32), 919),
        updates in slot_updates(67),
    ) {
        let context: Vec<_> = contents.into_iter().map(|e| e.map(AlExtent)).collect();
        let described = usize::from(slots).min(context.len());
        let transaction = Transaction {
            number,
            kind: activity_log::KIND_UPDATE,
            slots,
            context_start: 0,
            context: context[..described].to_vec(),
            updates,
        };
        let block = transaction.encode().unwrap();
        prop_assert_eq!(LogBlock::decode(&block).unwrap(), LogBlock::Transaction(transaction));
        let mut torn = block;
        torn[1000] ^= 4;
        prop_assert!(LogBlock::decode(&torn).is_err());
    }

    #[test]
    fn random_rings_never_panic(
        seed in prop::collection::vec(any::<u8>(), 8 * 64),
        valid in any::<u8>(),
        kinds in any::<[u16; 8]>(),
    ) {
        // Blocks with random headers and, where wanted, a checksum that fits.
        let mut ring = vec![0xFF; 8 * 4096];
        for (index, block) in ring.chunks_exact_mut(4096).enumerate() {
            block[..64].copy_from_slice(&seed[index * 64..(index + 1) * 64]);
            block[12..14].copy_from_slice(&(kinds[index] % 2).to_be_bytes());
            if valid & 1 << index != 0 {
                block[..4].copy_from_slice(&0x69CB_65A2_u32.to_be_bytes());
                let crc = activity_log::checksum(block).unwrap();
                block[8..12].copy_from_slice(&crc.to_be_bytes());
            }
        }
        let result = Replay::of(&ring, AlGeometry::DEFAULT);
        prop_assert_eq!(result.is_err() && valid != 0, false);
        let layout =
            Layout::new(Placement::Internal, ByteLen(1 << 28), AlGeometry::DEFAULT).unwrap();
        let mut superblock = Superblock::fresh(&layout).in_use();
        superblock.la_size = layout.data_size_max();
        superblock.flags = superblock.flags.with(Flags::PRIMARY_IND);
        if let Ok(plan) = ApplyAl::plan(&superblock, &layout, &ring) {
            let mut page = [0; 4096];
            for number in plan.pages() {
                plan.mark_page(number, &mut page);
            }
            let _ = plan.messages(1);
            let _ = plan.steps_after_bitmap(&layout);
        }
    }

    #[test]
    fn replay_yields_what_the_writer_holds(
        geometry in geometry(),
        start in any::<u32>(),
        batches in prop::collection::vec(slot_updates(67), 1..60),
    ) {
        // Numbers that would wrap are another test's.
        let first = start >> 1;
        let mut writer = LogWriter::starting_at(geometry, 67, first).unwrap();
        let mut ring = initialized_block().repeat(geometry.blocks() as usize);
        for updates in &batches {
            let before = writer.slots().to_vec();
            let pending = writer.build(updates).unwrap();
            let evicted: BTreeSet<PageNumber> = updates
                .iter()
                .filter_map(|u| before[usize::from(u.slot)])
                .map(AlExtent::page)
                .collect();
            prop_assert_eq!(&pending.evicted_pages, &evicted);
            let at = pending.block as usize * 4096;
            ring[at..at + 4096].copy_from_slice(&pending.bytes[..]);
            writer.commit(pending);
        }
        let hot: BTreeSet<AlExtent> = writer.slots().iter().flatten().copied().collect();
        let replay = Replay::of(&ring, geometry).unwrap();
        prop_assert_eq!(replay.active(), hot);
        let last = first.wrapping_add(batches.len() as u32 - 1);
        prop_assert_eq!(replay.numbers.map(|(_, newest)| newest), Some(last));
    }

    #[test]
    fn bit_functions_agree_with_a_set_of_numbers(
        ops in prop::collection::vec((any::<bool>(), 0_u64..600, 0_u64..600), 0..40),
        valid in 0_u64..600,
    ) {
        let mut bytes = [0_u8; 64];
        let mut oracle = BTreeSet::new();
        for (set, a, b) in ops {
            let (range, before) = (a.min(b)..a.max(b), oracle.len());
            let limited = range.start..range.end.min(512);
            if set {
                let changed = bitmap::set(&mut bytes, range);
                oracle.extend(limited);
                prop_assert_eq!(changed as usize, oracle.len() - before);
            } else {
                let changed = bitmap::clear(&mut bytes, range);
                oracle.retain(|bit| !limited.contains(bit));
                prop_assert_eq!(changed as usize, before - oracle.len());
            }
        }
        for bit in 0..520 {
            prop_assert_eq!(bitmap::get(&bytes, bit), oracle.contains(&bit));
        }
        prop_assert_eq!(bitmap::count(&bytes, valid), oracle.range(..valid).count() as u64);
        let listed: Vec<u64> = bitmap::ranges(&bytes, valid).flatten().collect();
        let expected: Vec<u64> = oracle.range(..valid).copied().collect();
        prop_assert_eq!(listed, expected);
        bitmap::mask_padding(&mut bytes, valid);
        prop_assert_eq!(bitmap::count(&bytes, 512), oracle.range(..valid).count() as u64);
    }

    #[test]
    fn touched_and_covered_bits_agree_with_a_walk_over_sectors(
        size in 0_u64..200,
        start in 0_u64..220,
        len in 0_u64..220,
    ) {
        let device = SectorCount(size);
        let within = |sector: u64| sector >= start && sector < start + len && sector < size;
        let bits: BTreeMap<u64, Vec<u64>> = (0..device.bits())
            .map(|bit| (bit, (bit * 8..(bit * 8 + 8).min(size)).collect()))
            .collect();
        let touched: Vec<u64> =
            bits.iter().filter(|(_, s)| s.iter().any(|x| within(*x))).map(|(b, _)| *b).collect();
        let covered: Vec<u64> =
            bits.iter().filter(|(_, s)| s.iter().all(|x| within(*x))).map(|(b, _)| *b).collect();
        let range = |f: fn(Sector, SectorCount, SectorCount) -> std::ops::Range<u64>| {
            f(Sector(start), SectorCount(len), device).collect::<Vec<u64>>()
        };
        prop_assert_eq!(range(bitmap::bits_touched), touched);
        prop_assert_eq!(range(bitmap::bits_covered), covered);
    }

    #[test]
    fn a_dump_is_parsed_back_to_the_same_values(
        sectors in 1_u64..600_000,
        words in prop::collection::vec(
            (prop_oneof![Just(0_u64), Just(u64::MAX), Just(0x5555_5555_5555_5555), any::<u64>()], 1..60_usize),
            0..40,
        ),
        uuids in any::<[u64; 4]>(),
        time in -100_000_000_000_i64..100_000_000_000,
        zone in -720..840_i32,
    ) {
        let layout =
            Layout::new(Placement::Internal, ByteLen(1 << 29), AlGeometry::DEFAULT).unwrap();
        let mut superblock = Superblock::fresh(&layout);
        superblock.la_size = SectorCount(sectors);
        superblock.uuids.history = [uuids[2], uuids[3]];
        superblock.uuids.current = uuids[0];
        superblock.uuids.bitmap = uuids[1];
        let len = bitmap::dump_len(superblock.la_size).0 as usize;
        let mut bytes: Vec<u8> = words
            .iter()
            .flat_map(|(word, count)| word.to_le_bytes().repeat(*count))
            .collect();
        bytes.resize(len, 0);
        let header = DumpHeader {
            unix_time: time,
            utc_offset_minutes: zone,
            host: "alpha",
            command: &["tandem", "dump-md"],
        };
        let text = dump_md(&header, &superblock, &layout, &bytes);
        let restore = Restore::parse(&text).unwrap();
        prop_assert_eq!(restore.superblock(&layout), superblock);
        let back: Vec<u8> = restore.words().flat_map(u64::to_le_bytes).collect();
        prop_assert!(back == bytes);
        let bits: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
        let last = format!("# bits-set {bits};\n");
        prop_assert!(text.ends_with(&last));
        prop_assert!(lines_follow_the_grammar(&text, &bytes));
    }

    #[test]
    fn random_text_never_panics_in_the_dump_parser(
        text in prop_oneof![
            any::<String>(),
            "[a-z0-9 \\-{};\"#\n]{0,200}",
            "version \"v08\"; uuid \\{ (0x0000000000000001; ){4} flags 0x00000080; \\} (la-size-sect [0-9]{1,20}; )?(bm-byte-per-bit 4096; )?[a-z0-9x;{} -]{0,80}",
        ],
    ) {
        let _ = Restore::parse(&text);
        let _ = LastKnown::parse(&text);
        let _ = text.parse::<Placement>();
    }

    #[test]
    fn a_small_text_with_large_numbers_stays_small(count in 1_u64..9_999_999_999_999_999_999) {
        let layout =
            Layout::new(Placement::Internal, ByteLen(1 << 30), AlGeometry::DEFAULT).unwrap();
        let text = format!(
            "version \"v08\"; uuid {{ 0x0000000000000001; 0x0000000000000001; 0x0000000000000001; \
             0x0000000000000001; flags 0x00000080; }} la-size-sect 9999999999999999999; \
             bm-byte-per-bit 4096; device-uuid 0x0000000000000001; la-peer-max-bio-size 4096; \
             al-stripes 1; al-stripe-size-4k 8; bm {{ {count} times 0x0000000000000001; \
             {count} times 0x0000000000000002; }}"
        );
        let restore = Restore::parse(&text).unwrap();
        let (start, len) = layout.area();
        for step in restore.steps(&layout) {
            let tandem_metadata::Step::Write(write) = step else { continue };
            prop_assert!(write.offset >= start);
            prop_assert!(write.offset.0 + write.len().0 <= start.0 + len.0);
        }
    }

    #[test]
    fn random_devices_never_panic_in_detection(
        mut head in prop::collection::vec(any::<u8>(), 0..70_000),
        device in any::<u64>(),
        mark in prop::sample::select(vec![
            (1080_usize, &b"\x53\xEF"[..]), (0, b"XFSB"), (32_768, b"JFS1"), (65_588, b"ReIsEr"),
            (65_600, b"_BHRfS_M"), (512, b"EFI PART"), (512, b"LABELONE"), (510, b"\x55\xAA"),
            (4086, b"SWAPSPACE2"), (3, b"NTFS    "),
        ]),
    ) {
        let (at, magic) = mark;
        if let Some(place) = head.get_mut(at..at + magic.len()) {
            place.copy_from_slice(magic);
        }
        let probed = [Probed { offset: ByteOffset(0), bytes: &head }];
        let found = detect::detect(ByteLen(device), &probed);
        prop_assert_eq!(found.is_some(), head.iter().any(|byte| *byte != 0));
    }
}

/// Checks the bitmap lines of a dump against section 6.2 word by word.
fn lines_follow_the_grammar(text: &str, bytes: &[u8]) -> bool {
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
        .collect();
    let mut at = 0;
    let start = text.find("bm {").unwrap();
    for line in text[start..]
        .lines()
        .skip(1)
        .take_while(|line| *line != "}")
    {
        if let Some(mark) = line.trim().strip_prefix("# at ") {
            let kib: usize = mark.trim_end_matches("kB").parse().unwrap();
            if at % 32 != 0 || kib != at * 256 {
                return false;
            }
            continue;
        }
        let first = words[at];
        let halves = |word: u64| [word as u32, (word >> 32) as u32];
        let run = words[at..]
            .iter()
            .flat_map(|word| halves(*word))
            .take_while(|half| *half == first as u32)
            .count()
            / 8
            * 4;
        let expected = if run >= 8 {
            at += run;
            format!("    {run} times 0x{first:016X};")
        } else {
            let four: String = words[at..at + 4]
                .iter()
                .map(|word| format!(" 0x{word:016X};"))
                .collect();
            at += 4;
            format!("   {four}")
        };
        if line != expected {
            return false;
        }
    }
    at == words.len()
}

#[test]
fn an_empty_device_has_nothing_and_any_byte_is_some_data() {
    let mut head = vec![0; 69_632];
    let device = ByteLen(1 << 26);
    let probes = detect::probes(device);
    // The head, the tail, and the rings of four labels of ZFS.
    assert_eq!(probes.len(), 6);
    for probe in &probes {
        assert!(probe.offset.0 + probe.len.0 <= device.0, "{probe:?}");
    }
    assert_eq!(probes[1].offset.0 + probes[1].len.0, device.0);
    assert_eq!(detect::probes(ByteLen(100)).len(), 1);
    let found = |head: &[u8]| {
        detect::detect(
            device,
            &[Probed {
                offset: ByteOffset(0),
                bytes: head,
            }],
        )
    };
    assert_eq!(found(&head), None);
    head[69_631] = 1;
    assert_eq!(found(&head).unwrap().kind, Kind::SomeData);
}
