//! Goal: `create-md` refuses and asks in the words that drbdmeta's transcripts show, and recognises what is on a device.
//! Method: hand-made heads of devices, the texts compared with the golden transcripts.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{golden, layout};
use tandem_metadata::detect::{Found, Kind, Marks, Probed, detect, probes};
use tandem_metadata::relocate::{Former, LastKnown};
use tandem_metadata::review::{Existing, Review, SanityChecks, existing, review};
use tandem_metadata::{ByteLen, ByteOffset, Flags, Placement, Superblock, gi};

const SIZE: u64 = 67_108_864;

fn head(parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut head = vec![0; 69_632];
    for (at, bytes) in parts {
        head[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    head
}

fn found(parts: &[(usize, &[u8])]) -> Option<Found> {
    detect(
        ByteLen(SIZE),
        &[Probed {
            offset: ByteOffset(0),
            bytes: &head(parts),
        }],
    )
}

fn ext4(blocks: u32) -> Option<Found> {
    found(&[
        (1080, b"\x53\xEF"),
        (1028, &blocks.to_le_bytes()),
        (1048, &2_u32.to_le_bytes()),
    ])
}

fn used(kind: Kind, bytes: u64) -> Option<Found> {
    Some(Found {
        kind,
        used: Some(ByteLen(bytes)),
        marks: Marks::Start,
    })
}

/// The recorded standard output (or error) of the case whose text contains `needle`.
fn transcript(stream: &str, from: &str, to: &str) -> String {
    let text = std::fs::read_to_string(golden().join("metadata/transcripts.txt")).unwrap();
    let start = text.find(from).unwrap();
    let case = &text[start..];
    let case = &case[..case.find(to).unwrap()];
    let prefix = format!("  {stream}| ");
    case.lines()
        .filter(|line| line.starts_with(&prefix))
        .map(|line| format!("{}\n", &line[prefix.len()..]))
        .collect()
}

fn reviewed(size: u64, placement: Placement, found: Option<Found>, checks: SanityChecks) -> Review {
    review(
        &layout(placement, size, 1, 8),
        "DEV",
        None,
        None,
        found.as_ref(),
        checks,
    )
}

#[test]
fn sizes_of_known_formats_are_read() {
    assert_eq!(ext4(16_384), used(Kind::Ext, SIZE));
    let xfs = found(&[(0, b"XFSB\0\0\x10\0\0\0\0\0\0\0\x40\0")]);
    assert_eq!(xfs, used(Kind::Xfs, SIZE));
    let btrfs = found(&[(65_600, b"_BHRfS_M"), (65_536 + 0xD1, &SIZE.to_le_bytes())]);
    assert_eq!(btrfs, used(Kind::Btrfs, SIZE));
    let lvm = [
        (512, &b"LABELONE"[..]),
        (532, &32_u32.to_le_bytes()),
        (536, b"LVM2 001"),
        (576, &SIZE.to_le_bytes()),
    ];
    assert_eq!(found(&lvm), used(Kind::Lvm2, SIZE));
    let gpt = [
        (512, &b"EFI PART"[..]),
        (544, &(SIZE / 512 - 1).to_le_bytes()),
    ];
    assert_eq!(found(&gpt), used(Kind::PartitionsGpt, SIZE));
    let dos = [
        (450, &b"\x83"[..]),
        (454, &2048_u32.to_le_bytes()),
        (458, &4096_u32.to_le_bytes()),
        (510, b"\x55\xAA"),
    ];
    assert_eq!(found(&dos), used(Kind::PartitionsDos, 6144 * 512));
    assert_eq!(found(&[(4086, b"SWAPSPACE2")]).unwrap().kind, Kind::Swap);
    assert_eq!(found(&[(0, b"LUKS\xBA\xBE")]).unwrap().kind, Kind::Luks);
    let md = found(&[(4096, &0xA92B_4EFC_u32.to_le_bytes())]);
    assert_eq!(md.unwrap().kind, Kind::MdRaid);
}

#[test]
fn a_raid_member_with_its_mark_at_the_end_is_recognised() {
    let zeros = head(&[]);
    let at = (SIZE / 512 - 16) / 8 * 8 * 512;
    let mut tail = vec![0; 192 * 1024];
    let start = SIZE - tail.len() as u64;
    let mark = (at - start) as usize;
    tail[mark..mark + 4].copy_from_slice(&0xA92B_4EFC_u32.to_le_bytes());
    let probed = [
        Probed {
            offset: ByteOffset(0),
            bytes: &zeros,
        },
        Probed {
            offset: ByteOffset(start),
            bytes: &tail,
        },
    ];
    let raid = detect(ByteLen(SIZE), &probed).unwrap();
    assert_eq!((raid.kind, raid.marks), (Kind::MdRaid, Marks::End));
    let review = reviewed(SIZE, Placement::Internal, Some(raid), SanityChecks::Obey);
    let text = review.refusal.unwrap().stdout;
    assert!(
        text.contains("wipefs -a") && !text.contains("zero out"),
        "{text}"
    );
}

/// What is recognised on a device of this size that holds these bytes at this place alone.
fn found_at(device: u64, at: u64, bytes: &[u8]) -> Option<Found> {
    let mut whole = vec![0; usize::try_from(device).unwrap()];
    let start = usize::try_from(at).unwrap();
    whole[start..start + bytes.len()].copy_from_slice(bytes);
    let ranges = probes(ByteLen(device));
    let probed: Vec<Probed<'_>> = ranges
        .iter()
        .map(|probe| {
            let start = usize::try_from(probe.offset.0).unwrap();
            Probed {
                offset: probe.offset,
                bytes: &whole[start..start + usize::try_from(probe.len.0).unwrap()],
            }
        })
        .collect();
    detect(ByteLen(device), &probed)
}

#[test]
fn any_label_of_zfs_is_recognised_in_either_byte_order() {
    const LABEL: u64 = 256 * 1024;
    let magic = 0x00BA_B10C_u64;
    // The labels count from the last full one, wherever the device ends.
    for device in [SIZE, SIZE + 4096, SIZE + LABEL - 512, 4 * LABEL] {
        let last = device / LABEL * LABEL;
        for label in [0, LABEL, last - 2 * LABEL, last - LABEL] {
            for (slot, bytes) in [
                (0, magic.to_le_bytes()),
                (5 * 1024, magic.to_be_bytes()),
                (127 * 1024, magic.to_le_bytes()),
            ] {
                let at = label + LABEL / 2 + slot;
                let zfs = found_at(device, at, &bytes).unwrap_or_else(|| panic!("{device} {at}"));
                assert_eq!((zfs.kind, zfs.marks), (Kind::Zfs, Marks::BothEnds));
            }
        }
    }
    assert_eq!(
        found_at(SIZE, LABEL - 8192 + 512, &magic.to_le_bytes()),
        None
    );
    assert_eq!(found_at(2 * LABEL, 0, &[]), None);
    let zfs = found_at(SIZE, LABEL / 2, &magic.to_le_bytes());
    for placement in [Placement::Internal, Placement::FlexibleExternal] {
        let review = reviewed(SIZE, placement, zfs, SanityChecks::Obey);
        let refusal = review.refusal.unwrap();
        assert_eq!(refusal.exit, 40);
        assert!(
            refusal.stdout.contains("Found zfs pool member signature")
                && refusal.stdout.contains("wipefs -a"),
            "{refusal:?}"
        );
    }
}

#[test]
fn a_filesystem_that_fills_the_device_is_refused_in_drbdmeta_s_words() {
    let expected = transcript("out", "## ext4 filesystem", "  rc=40");
    for checks in [SanityChecks::Obey, SanityChecks::Ignore] {
        let review = reviewed(SIZE, Placement::Internal, ext4(16_384), checks);
        let refusal = review.refusal.unwrap();
        assert_eq!(
            (refusal.stdout.as_str(), refusal.exit),
            (expected.as_str(), 40)
        );
        assert!(review.questions.is_empty());
    }
}

#[test]
fn a_filesystem_that_leaves_room_needs_a_confirmation() {
    let expected = transcript("out", "md_offset 68153344", "  out| Operation canceled.");
    let grown = SIZE + (1 << 20);
    let review = reviewed(grown, Placement::Internal, ext4(16_384), SanityChecks::Obey);
    assert!(review.refusal.is_none());
    let question = &review.questions[0];
    // The transcript is cut within its first line, whose prefix is lost.
    assert_eq!(question.stdout, format!("md_offset 68153344\n{expected}"));
    assert_eq!(question.stderr, "\nDo you want to proceed?\n");
    assert_eq!(question.cancelled, "Operation canceled.\n");
}

#[test]
fn recognised_data_on_an_external_device_are_refused_unless_told_otherwise() {
    let expected = transcript("out", "## same device used as external", "  rc=40");
    let refused = reviewed(
        SIZE,
        Placement::FlexibleExternal,
        ext4(16_384),
        SanityChecks::Obey,
    );
    assert_eq!(refused.refusal.unwrap().stdout, expected);
    let ignored = reviewed(
        SIZE,
        Placement::FlexibleExternal,
        ext4(16_384),
        SanityChecks::Ignore,
    );
    assert!(ignored.refusal.is_none());
    assert!(
        ignored
            .notes
            .contains("Ignoring sanity check on user request.")
    );
}

#[test]
fn swap_and_unknown_data_are_told_apart() {
    let expected = transcript("out", "## swap signature", "  rc=40");
    let swap = Some(Found {
        kind: Kind::Swap,
        used: None,
        marks: Marks::Start,
    });
    let refused = reviewed(SIZE, Placement::Internal, swap, SanityChecks::Obey);
    assert_eq!(refused.refusal.unwrap().stdout, expected);
    let data = Some(Found {
        kind: Kind::SomeData,
        used: None,
        marks: Marks::Start,
    });
    let asked = reviewed(SIZE, Placement::Internal, data, SanityChecks::Obey);
    let text = &asked.questions[0].stdout;
    assert!(text.ends_with("Found some data\n\n ==> This might destroy existing data! <==\n"));
}

#[test]
fn existing_metadata_are_named_and_asked_about() {
    let layout = layout(Placement::Internal, SIZE, 1, 8);
    let block = Superblock::fresh(&layout).encode();
    let there = existing(&layout, layout.superblock_offset(), &block).unwrap();
    let review = review(&layout, "DEV", Some(&there), None, None, SanityChecks::Obey);
    let expected = transcript("err", "Operation cancelled.", "  err| stdin not a TTY");
    assert_eq!(review.questions[0].stderr, expected);
    assert_eq!(review.questions[0].cancelled, "Operation cancelled.\n");
    assert!(existing(&layout, layout.superblock_offset(), &[0; 4096]).is_none());
    let mut damaged = block;
    damaged[64..80].fill(0xff);
    let there = existing(&layout, layout.superblock_offset(), &damaged).unwrap();
    assert_eq!(there.geometry, None, "it does not open, and is asked about");
}

#[test]
fn metadata_that_a_grown_device_left_behind_are_asked_about() {
    let old = layout(Placement::Internal, SIZE, 1, 8);
    let grown = ByteLen(SIZE + (32 << 20));
    let new = layout(Placement::Internal, grown.0, 1, 8);
    let mut superblock = Superblock::fresh(&old);
    superblock.device_uuid = 0xA0B0;
    let known = |device_uuid| LastKnown {
        size: ByteLen(SIZE),
        device: "DEV".to_owned(),
        device_uuid,
    };
    let block = superblock.encode();
    let former = known(Some(0xA0B0)).find(grown, &block).unwrap();
    assert_eq!(former.offset, old.superblock_offset());
    assert!(former.movable);
    let text = |former: &Former| {
        let mut asked = review(&new, "DEV", None, Some(former), None, SanityChecks::Obey);
        assert!(asked.refusal.is_none() && asked.questions.len() == 1);
        asked.questions.remove(0).stderr
    };
    assert!(text(&former).contains("at the former end of DEV, at byte offset 67104768: it had"));
    assert!(text(&former).contains("check-resize moves them to the new end"));
    // What is not to be moved is asked about as well.
    let other = known(Some(1)).find(grown, &block).unwrap();
    assert!(!other.movable && text(&other).contains("those of another device"));
    let mut damaged = block;
    damaged[64..80].fill(0xff);
    assert!(!known(None).find(grown, &damaged).unwrap().movable);
    // Unclean ones are applied by check-resize, and then moved.
    superblock.flags = superblock.flags.without(Flags::AL_CLEAN);
    assert!(
        known(None)
            .find(grown, &superblock.encode())
            .unwrap()
            .movable
    );
    assert_eq!(known(None).find(grown, &[0; 4096]), None);
    assert_eq!(known(None).find(ByteLen(SIZE), &block), None);
    // Those at the new end are the ones that count.
    let there = existing(
        &new,
        new.superblock_offset(),
        &Superblock::fresh(&new).encode(),
    );
    let asked = review(
        &new,
        "DEV",
        there.as_ref(),
        Some(&former),
        None,
        SanityChecks::Obey,
    );
    assert!(asked.questions.len() == 1 && !asked.questions[0].stderr.contains("former"));
}

#[test]
fn external_metadata_are_not_asked_about_twice() {
    let itself = Found {
        kind: Kind::SomeData,
        used: None,
        marks: Marks::Start,
    };
    for (placement, size, questions) in [
        (Placement::FlexibleExternal, 4 << 20, 1),
        (Placement::Indexed(0), 256 << 20, 1),
        (Placement::Indexed(1), 256 << 20, 1),
        (Placement::Internal, SIZE, 2),
    ] {
        let layout = layout(placement, size, 1, 8);
        let block = Superblock::fresh(&layout).encode();
        let there = existing(&layout, layout.superblock_offset(), &block);
        let asked = review(
            &layout,
            "DEV",
            there.as_ref(),
            None,
            Some(&itself),
            SanityChecks::Obey,
        );
        assert_eq!(asked.questions.len(), questions, "{placement}");
    }
}

#[test]
fn other_stripes_than_those_in_place_are_refused_with_exit_30() {
    let old = layout(Placement::Internal, SIZE, 1, 8);
    let new = layout(Placement::Internal, SIZE, 4, 8);
    let block = Superblock::fresh(&old).encode();
    let there: Existing = existing(&new, new.superblock_offset(), &block).unwrap();
    let review = review(&new, "DEV", Some(&there), None, None, SanityChecks::Obey);
    let refusal = review.refusal.unwrap();
    assert_eq!(refusal.exit, 30);
    assert!(refusal.stderr.contains("wipe them first (wipe-md)"));
}

#[test]
fn the_text_of_set_gi_is_that_of_the_transcript() {
    let layout = layout(Placement::Internal, SIZE, 1, 8);
    let old = Superblock::fresh(&layout);
    let new = gi::set_gi(
        &old,
        "1122334455667788:99AABBCCDDEEFF00:0102030405060708:1112131415161718:1:1:0:0:0:0:0",
    )
    .unwrap();
    let all = transcript(
        "out",
        "  out| previously 0000000000000004",
        "  out| Operation canceled.",
    );
    assert_eq!(gi::text_set_gi(&old, &new), all);
}
