//! Goal: `drbdmeta` of drbd-utils reads what we write, and does to it what we do.
//! Method: the same image as two files, one for each; texts and every byte of the metadata are compared.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Mutex;

use proptest::test_runner::{RngSeed, TestRunner};
use tandem_metadata::dump::{DumpHeader, dump_md};
use tandem_metadata::{
    AlExtent, AlGeometry, ApplyAl, ByteLen, Flags, Layout, LogWriter, PageNumber, Placement,
    SlotUpdate, Step, Superblock, Uuids, bitmap, create, gi,
};
use tandem_tests::golden::{golden_dir, read_xz};

/// A run of drbdmeta that takes longer than this hangs.
const RUN_SECONDS_MAX: &str = "60";

/// With `-` as minor drbdmeta keeps one record of the last known size for all devices: one run at a time.
static ONE_RUN: Mutex<()> = Mutex::new(());

struct Disk {
    path: PathBuf,
    file: File,
    layout: Layout,
    _folder: tempfile::TempDir,
}

impl Disk {
    fn new(placement: Placement, size: u64, geometry: AlGeometry) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        file.set_len(size).unwrap();
        let layout = Layout::new(placement, ByteLen(size), geometry).unwrap();
        Self {
            path,
            file,
            layout,
            _folder: folder,
        }
    }

    fn created(placement: Placement, size: u64, geometry: AlGeometry) -> Self {
        let disk = Self::new(placement, size, geometry);
        disk.apply(&create::create_md(&disk.layout, 0).unwrap());
        disk
    }

    /// A golden image: `area` was stored, all else is zero.
    fn golden(placement: Placement, size: u64, area_offset: u64, area: &[u8]) -> Self {
        let block = usize::try_from(placement.superblock_sector(ByteLen(size)).unwrap().0 * 512)
            .unwrap()
            - usize::try_from(area_offset).unwrap();
        let (_, layout) =
            Superblock::open(placement, ByteLen(size), &area[block..block + 4096]).unwrap();
        let disk = Self::new(placement, size, layout.geometry());
        assert_eq!(disk.layout, layout);
        disk.file.write_all_at(area, area_offset).unwrap();
        disk
    }

    fn copy(&self) -> Self {
        let copy = Self::new(
            self.layout.placement(),
            self.layout.device().0,
            self.layout.geometry(),
        );
        let (start, len) = self.layout.area();
        copy.file
            .write_all_at(&self.read(start.0, len.0), start.0)
            .unwrap();
        copy
    }

    fn read(&self, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn apply(&self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Flush => self.file.sync_data().unwrap(),
                Step::Write(write) => {
                    // In pieces of an odd size, so that the filling in parts is tried as well.
                    let mut buffer = vec![0; 70_000];
                    let mut at = 0;
                    loop {
                        let n = write.fill(at, &mut buffer);
                        if n == 0 {
                            break;
                        }
                        self.file
                            .write_all_at(&buffer[..n], write.offset.0 + at)
                            .unwrap();
                        at += n as u64;
                    }
                    assert_eq!(at, write.len().0);
                }
            }
        }
    }

    fn superblock(&self) -> Superblock {
        let block = self.read(self.layout.superblock_offset().0, 4096);
        let size = self.layout.device();
        let (superblock, layout) = Superblock::open(self.layout.placement(), size, &block).unwrap();
        assert_eq!(layout, self.layout);
        superblock
    }

    fn put_superblock(&self, superblock: &Superblock) {
        let at = self.layout.superblock_offset().0;
        self.file.write_all_at(&superblock.encode(), at).unwrap();
    }

    fn ring(&self) -> Vec<u8> {
        self.read(
            self.layout.activity_log_offset().0,
            self.layout.activity_log_len().0,
        )
    }

    /// Runs drbdmeta; it must end with `exit`.
    fn drbdmeta(&self, exit: i32, command: &[&str]) -> Output {
        let output = self.drbdmeta_any(command);
        assert_eq!(output.status.code(), Some(exit), "{command:?}: {output:?}");
        output
    }

    fn drbdmeta_any(&self, command: &[&str]) -> Output {
        let _one = ONE_RUN
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let path = std::env::var("PATH").unwrap_or_default();
        let output = Command::new("timeout")
            .args([
                "--kill-after=5",
                RUN_SECONDS_MAX,
                "drbdmeta",
                "--force",
                "-",
                "v08",
            ])
            .arg(&self.path)
            .arg(self.layout.placement().to_string())
            .args(command)
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .output()
            .expect("the tool timeout of coreutils");
        let missing = output.status.code() == Some(127);
        assert!(
            !missing,
            "drbdmeta is missing: install drbd-utils (scripts/test does), then repeat"
        );
        output
    }

    /// The metadata as they are on disk.
    fn area(&self) -> Vec<u8> {
        let (start, len) = self.layout.area();
        self.read(start.0, len.0)
    }

    fn dump(&self) -> String {
        let superblock = self.superblock();
        let header = DumpHeader {
            unix_time: 0,
            utc_offset_minutes: 0,
            host: "host",
            command: &["tandem", "dump-md"],
        };
        let len = bitmap::dump_len(superblock.la_size).0;
        let bytes = self.read(self.layout.bitmap_offset().0, len);
        dump_md(&header, &superblock, &self.layout, &bytes)
    }

    /// Our apply-al; returns its messages.
    fn apply_al(&self) -> Vec<String> {
        let plan = ApplyAl::plan(&self.superblock(), &self.layout, &self.ring()).unwrap();
        let mut newly_set = 0;
        for page in plan.pages() {
            let (offset, len) = self.layout.bitmap_page(page).unwrap();
            let mut bytes = self.read(offset.0, len.0);
            newly_set += plan.mark_page(page, &mut bytes);
            self.file.write_all_at(&bytes, offset.0).unwrap();
        }
        self.apply(&plan.steps_after_bitmap(&self.layout));
        plan.messages(newly_set)
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What is left of a dump without date, command and flags, which versions up to 9.32 print as zero.
fn comparable(dump: &str) -> Vec<String> {
    let lines = dump
        .lines()
        .skip(4)
        .filter(|line| !line.contains("flags 0x"));
    lines.map(str::to_owned).collect()
}

fn same_texts(disk: &Disk) {
    let theirs = stdout(&disk.drbdmeta(0, &["dump-md"]));
    assert_eq!(comparable(&disk.dump()), comparable(&theirs));
    let superblock = disk.superblock();
    let line = format!("{}\n", gi::get_gi(&superblock));
    assert_eq!(line, stdout(&disk.drbdmeta(0, &["get-gi"])));
    assert_eq!(
        gi::show_gi(&superblock),
        stdout(&disk.drbdmeta(0, &["show-gi"]))
    );
    let word = format!("{}\n", gi::dstate(&superblock));
    assert_eq!(word, stdout(&disk.drbdmeta(0, &["dstate"])));
}

/// A used disk: a crash as Primary with extents in the log.
fn used(disk: &Disk, updates: &[Vec<SlotUpdate>], flags: Flags) -> LogWriter {
    let mut superblock = disk.superblock().in_use();
    superblock.la_size = disk.layout.data_size_max();
    superblock.uuids = Uuids {
        current: 0x1122_3344_5566_7789,
        bitmap: 0x99AA_BBCC_DDEE_FF00,
        history: [0x0102_0304_0506_0708, 0x1112_1314_1516_1718],
    };
    superblock.device_uuid = 0xC0FF_EE00_DEAD_BEEF;
    superblock.la_peer_max_bio_size = 1 << 20;
    superblock.al_extents = 67;
    superblock.flags = superblock.flags.with(flags);
    disk.put_superblock(&superblock);
    let mut writer = LogWriter::new(disk.layout.geometry(), 67).unwrap();
    for update in updates {
        let pending = writer.build(update).unwrap();
        let at = disk.layout.activity_log_block(pending.block);
        disk.file.write_all_at(&pending.bytes[..], at.0).unwrap();
        writer.commit(pending);
    }
    let page = disk.layout.bitmap_page(PageNumber(0)).unwrap().0;
    disk.file.write_all_at(&[0xA5; 200], page.0 + 1000).unwrap();
    writer
}

fn update(slot: u16, extent: u32) -> SlotUpdate {
    SlotUpdate {
        slot,
        extent: Some(AlExtent(extent)),
    }
}

const CRASHED: Flags = Flags(0x53);

fn apply_both(ours: &Disk) {
    let theirs = ours.copy();
    let messages = ours.apply_al();
    let output = theirs.drbdmeta(0, &["apply-al"]);
    // Other lines speak of plain files and of where the count is left out by some versions.
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for line in &messages {
        let known = said.contains(line.as_str()) || said.contains("Marked additional 0 KB");
        assert!(known, "drbdmeta does not say {line:?} but {said:?}");
    }
    assert!(
        ours.area() == theirs.area(),
        "the metadata differ after apply-al"
    );
    same_texts(ours);
}

#[test]
fn drbdmeta_reads_the_metadata_we_create() {
    let default = AlGeometry::DEFAULT;
    let striped = AlGeometry::new(4, 8).unwrap();
    for (placement, size, geometry) in [
        (Placement::Internal, 64 << 20, default),
        (Placement::Internal, (64 << 20) + 3584, default),
        (Placement::Internal, 300 << 20, default),
        (Placement::Internal, 64 << 20, striped),
        (Placement::FlexibleExternal, 1 << 20, default),
        (Placement::FlexibleExternal, 4 << 20, striped),
        (Placement::Indexed(0), 128 << 20, default),
        (Placement::Indexed(1), 256 << 20, default),
    ] {
        let disk = Disk::created(placement, size, geometry);
        same_texts(&disk);
    }
}

#[test]
fn our_create_md_writes_the_bytes_that_drbdmeta_writes() {
    for (stripes, blocks) in [(1, 8), (4, 8), (3, 5)] {
        let geometry = AlGeometry::new(stripes, blocks).unwrap();
        let ours = Disk::created(Placement::Internal, 300 << 20, geometry);
        let theirs = Disk::new(Placement::Internal, 300 << 20, geometry);
        let stripes = stripes.to_string();
        let size = (blocks * 4).to_string();
        let options = [
            "--al-stripes",
            stripes.as_str(),
            "--al-stripe-size-kB",
            size.as_str(),
        ];
        theirs.drbdmeta(0, &[&["create-md"], &options[..]].concat());
        assert!(ours.area() == theirs.area());
    }
}

#[test]
fn apply_al_of_both_gives_the_same_bytes_after_a_crash_of_a_primary() {
    let updates = [
        vec![update(66, 3)],
        vec![update(65, 10), update(64, 11), update(63, 74)],
        vec![update(66, 31)],
    ];
    let ours = Disk::created(Placement::Internal, 300 << 20, AlGeometry::DEFAULT);
    used(&ours, &updates, CRASHED);
    let refused = ours.drbdmeta_any(&["dump-md"]);
    assert!(stdout(&refused).contains("This_is_an_unclean_meta_data_dump"));
    apply_both(&ours);
    let external = Disk::created(Placement::FlexibleExternal, 1 << 20, AlGeometry::DEFAULT);
    used(&external, &updates, CRASHED);
    apply_both(&external);
}

#[test]
fn apply_al_marks_nothing_if_the_node_was_secondary() {
    let ours = Disk::created(Placement::Internal, 64 << 20, AlGeometry::DEFAULT);
    used(&ours, &[vec![update(1, 3)]], Flags::CONSISTENT);
    apply_both(&ours);
}

#[test]
fn random_logs_with_a_torn_block_are_replayed_alike() {
    use proptest::prelude::*;
    let batch = prop::collection::btree_map(0..67_u16, 0..75_u32, 0..8).prop_map(|map| {
        map.into_iter()
            .map(|(s, e)| update(s, e))
            .collect::<Vec<_>>()
    });
    let log = (
        prop::collection::vec(batch, 2..30),
        any::<bool>(),
        0..3_usize,
    );
    // Few cases with one seed: each starts drbdmeta five times.
    let config = ProptestConfig {
        cases: 12,
        rng_seed: RngSeed::Fixed(8),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let geometries = [(1, 8), (4, 8), (3, 3)].map(|(a, b)| AlGeometry::new(a, b).unwrap());
    TestRunner::new(config)
        .run(&log, |(updates, torn, geometry)| {
            let ours = Disk::created(Placement::Internal, 300 << 20, geometries[geometry]);
            let writer = used(&ours, &updates, CRASHED);
            if torn {
                let newest = writer.next_number() - 1;
                let block = ours.layout.geometry().block_of(newest);
                let at = ours.layout.activity_log_block(block).0;
                ours.file.write_all_at(b"torn", at + 2048).unwrap();
            }
            apply_both(&ours);
            Ok(())
        })
        .unwrap();
}

#[test]
fn after_an_orderly_stop_drbdmeta_has_nothing_to_apply() {
    let disk = Disk::created(Placement::Internal, 64 << 20, AlGeometry::DEFAULT);
    used(&disk, &[], Flags::CONSISTENT.with(Flags::WAS_UP_TO_DATE));
    disk.put_superblock(&disk.superblock().released());
    let before = disk.area();
    disk.drbdmeta(0, &["apply-al"]);
    assert!(disk.area() == before);
    same_texts(&disk);
}

#[test]
fn drbdmeta_restores_our_dump() {
    let disk = Disk::created(Placement::Internal, 300 << 20, AlGeometry::DEFAULT);
    used(&disk, &[], Flags::CONSISTENT);
    disk.apply_al();
    let text = disk.path.with_extension("dump");
    std::fs::write(&text, disk.dump()).unwrap();
    let text = text.to_str().unwrap();
    disk.drbdmeta(0, &["verify-dump", text]);
    let other = Disk::created(Placement::Internal, 300 << 20, AlGeometry::DEFAULT);
    other.drbdmeta(0, &["restore-md", text]);
    let mut expected = disk.superblock();
    expected.al_extents = 257;
    assert_eq!(other.superblock(), expected);
    assert_eq!(
        comparable(&other.dump()).len(),
        comparable(&disk.dump()).len()
    );
    let bits = |disk: &Disk| disk.read(disk.layout.bitmap_offset().0, 8192);
    assert!(bits(&other) == bits(&disk));
}

/// What sets, outdates, invalidates and wipes does the same when we do it and when drbdmeta does it.
fn change_both(ours: &Disk) {
    let theirs = ours.copy();
    let values = "E1A5C0DE12345679:9D3B1F0A55AA33CC::4:1:1:1:1:0:1:1";
    ours.put_superblock(&gi::set_gi(&ours.superblock(), values).unwrap());
    theirs.drbdmeta(0, &["set-gi", values]);
    assert_eq!(ours.superblock(), theirs.superblock());
    ours.put_superblock(&gi::outdate(&ours.superblock()).unwrap());
    theirs.drbdmeta(0, &["outdate"]);
    assert_eq!(ours.superblock(), theirs.superblock());
    ours.put_superblock(&gi::invalidate(&ours.superblock()));
    theirs.drbdmeta(0, &["invalidate"]);
    assert_eq!(ours.superblock(), theirs.superblock());
    same_texts(ours);
    ours.apply(&create::wipe_md(&ours.layout));
    theirs.drbdmeta(0, &["wipe-md"]);
    assert!(ours.area() == theirs.area());
}

#[test]
fn changes_of_generations_and_flags_are_the_same() {
    change_both(&Disk::created(
        Placement::Internal,
        64 << 20,
        AlGeometry::DEFAULT,
    ));
}

/// The images that drbdmeta has made, by their manifest.
fn drbdmetas_images() -> Vec<(String, Disk)> {
    let folder = golden_dir().join("metadata");
    let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    let manifest: Vec<serde_json::Value> = serde_json::from_str(&manifest).unwrap();
    let text = |entry: &serde_json::Value, field: &str| entry[field].as_str().unwrap().to_owned();
    manifest
        .iter()
        // Its bitmap is not stored, and few filesystems have files of 16 TiB.
        .filter(|entry| entry["name"] != "09-int-16t-tail")
        .map(|entry| {
            let disk = Disk::golden(
                text(entry, "placement").parse().unwrap(),
                entry["device_size"].as_u64().unwrap(),
                entry["area_offset"].as_u64().unwrap(),
                &read_xz(&folder.join(text(entry, "file"))).unwrap(),
            );
            (text(entry, "name"), disk)
        })
        .collect()
}

/// The metadata that nodes with the kernel's driver left, each with a dump that tells where they were.
fn kernels_images() -> Vec<(String, Disk)> {
    let folder = golden_dir().join("metadata-kernel");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(".md.xz"))
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let stem = name.strip_suffix(".md.xz").unwrap();
            let dump = std::fs::read_to_string(folder.join(format!("{stem}.txt"))).unwrap();
            let line = dump
                .lines()
                .find_map(|line| line.strip_prefix("# md_offset "));
            let area = read_xz(&path).unwrap();
            let stored = area.len() as u64;
            let (placement, size) = match line.unwrap().parse::<u64>().unwrap() {
                0 => (Placement::FlexibleExternal, stored),
                superblock => (Placement::Internal, superblock + 4096),
            };
            let disk = Disk::golden(placement, size, size - stored, &area);
            (stem.to_owned(), disk)
        })
        .collect()
}

#[test]
fn every_golden_image_is_read_and_changed_alike() {
    // Goal: no metadata that drbdmeta or a kernel has written is another thing for us than for drbdmeta.
    // Method: each image is read by both, its log applied by both, then its flags changed by both, byte by byte.
    let (theirs, kernels) = (drbdmetas_images(), kernels_images());
    assert!(theirs.len() > 40 && kernels.len() > 30);
    for (name, disk) in theirs.into_iter().chain(kernels) {
        eprintln!("{name}");
        same_texts(&disk);
        match ApplyAl::plan(&disk.superblock(), &disk.layout, &disk.ring()) {
            Ok(_) => apply_both(&disk),
            Err(error) => {
                let before = disk.area();
                let refused = disk.drbdmeta_any(&["apply-al"]);
                assert!(matches!(refused.status.code(), Some(1 | 2)), "{error}");
                assert!(disk.area() == before);
            }
        }
        change_both(&disk);
    }
}
