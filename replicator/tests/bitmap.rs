//! The bitmap against a slow oracle: a vector of booleans, and a disk that keeps the pages written.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::ops::Range;

use proptest::prelude::*;
use tandem_replicator::bitmap::*;

#[derive(Clone, Debug)]
enum Op {
    Set(u64, u64, bool),
    Clear(u64, u64),
    MergeWords(u64, Vec<u64>),
    SetAll,
    ClearAll,
    Resize(u64, bool),
    StartWrite(u32),
    FinishWrite(bool),
}

const BITS_MAX_TEST: u64 = 4 * PAGE_BITS + 200;

fn position() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..BITS_MAX_TEST,
        // Around words and pages.
        (0_u64..5, 0_u64..5).prop_map(|(page, near)| (page * PAGE_BITS + near).saturating_sub(2)),
        (0_u64..2000, 0_u64..3).prop_map(|(word, near)| (word * 64 + near).saturating_sub(1)),
    ]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..4, 0_u64..200, 0..BITS_MAX_TEST, Just(PAGE_BITS)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (position(), length(), any::<bool>()).prop_map(|(at, len, lazy)| Op::Set(at, len, lazy)),
        6 => (position(), length()).prop_map(|(at, len)| Op::Clear(at, len)),
        2 => (0_u64..2100, prop::collection::vec(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 0..520))
            .prop_map(|(at, words)| Op::MergeWords(at, words)),
        1 => Just(Op::SetAll),
        1 => Just(Op::ClearAll),
        1 => (position(), any::<bool>()).prop_map(|(bits, set)| Op::Resize(bits, set)),
        3 => (0_u32..5).prop_map(Op::StartWrite),
        3 => any::<bool>().prop_map(Op::FinishWrite),
    ]
}

/// What leaves few bits set in a page, and more than few, and few again.
fn scattered() -> impl Strategy<Value = Op> {
    let near = || {
        prop_oneof![
            0_u64..300,
            (0_u64..300).prop_map(|bit| PAGE_BITS - 100 + bit)
        ]
    };
    let short = || prop_oneof![4 => Just(1_u64), 2 => 0_u64..20, 1 => 0_u64..150];
    let word = || prop_oneof![Just(0), Just(1), Just(1 << 63), Just(0xF0), any::<u64>()];
    prop_oneof![
        8 => (near(), short(), any::<bool>()).prop_map(|(at, len, lazy)| Op::Set(at, len, lazy)),
        6 => (near(), short()).prop_map(|(at, len)| Op::Clear(at, len)),
        2 => (0_u64..5, prop::collection::vec(word(), 0..4)).prop_map(|(at, words)| Op::MergeWords(at, words)),
        1 => near().prop_map(|bits| Op::Resize(bits, false)),
        1 => (0_u32..2).prop_map(Op::StartWrite),
        1 => any::<bool>().prop_map(Op::FinishWrite),
    ]
}

/// The oracle: every bit, the disk's pages, and the write in flight.
struct World {
    bitmap: Bitmap,
    bits: Vec<bool>,
    disk: Vec<Option<Vec<u8>>>,
    writes: Vec<PageWrite>,
}

fn cut(range: Range<u64>, bits: usize) -> Range<usize> {
    let end = (range.end as usize).min(bits);
    (range.start as usize).min(end)..end
}

impl World {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Set(at, len, lazy) => {
                let part = cut(at..at + len, self.bits.len());
                let newly = self.bits[part.clone()].iter().filter(|bit| !**bit).count() as u64;
                self.bits[part].fill(true);
                let urgency = if lazy {
                    Urgency::Lazy
                } else {
                    Urgency::BeforeEviction
                };
                assert_eq!(self.bitmap.set(at..at + len, urgency), newly);
            }
            Op::Clear(at, len) => {
                let part = cut(at..at + len, self.bits.len());
                let newly = self.bits[part.clone()].iter().filter(|bit| **bit).count() as u64;
                self.bits[part].fill(false);
                assert_eq!(self.bitmap.clear(at..at + len), newly);
            }
            Op::MergeWords(at, words) => self.merge(at, &words),
            Op::SetAll => {
                self.bitmap.set_all();
                self.bits.fill(true);
            }
            Op::ClearAll => {
                self.bitmap.clear_all();
                self.bits.fill(false);
            }
            Op::Resize(bits, set) => {
                self.bitmap
                    .resize(bits, if set { NewBits::Set } else { NewBits::Clear })
                    .unwrap();
                self.bits.resize(bits as usize, set);
                self.disk.resize(bits.div_ceil(PAGE_BITS) as usize, None);
                let pages = self.disk.len();
                self.writes.retain(|write| (write.page as usize) < pages);
            }
            Op::StartWrite(page) => {
                let busy = self.writes.iter().any(|write| write.page == page);
                match self.bitmap.start_write(page) {
                    Some(write) => {
                        assert!(!busy);
                        self.writes.push(write);
                    }
                    None => assert!(busy || page as usize >= self.disk.len()),
                }
            }
            Op::FinishWrite(works) => {
                if let Some(write) = self.writes.pop() {
                    let outcome = if works {
                        WriteOutcome::Written
                    } else {
                        WriteOutcome::Failed
                    };
                    self.bitmap
                        .finish_write(write.page, write.generation, outcome);
                    // A failed write may have torn the page.
                    self.disk[write.page as usize] = works.then_some(write.bytes);
                }
            }
        }
    }

    fn merge(&mut self, at: u64, words: &[u64]) {
        let answer = self
            .bitmap
            .merge_words(at, words.iter().copied(), Urgency::Lazy);
        let words_now = (self.bits.len() as u64).div_ceil(64);
        if at + words.len() as u64 > words_now {
            assert!(answer.is_err());
            return;
        }
        let mut newly = 0;
        for (index, word) in words.iter().enumerate() {
            for bit in 0..64 {
                let at = (at as usize + index) * 64 + bit;
                if at < self.bits.len() && word & 1 << bit != 0 && !self.bits[at] {
                    self.bits[at] = true;
                    newly += 1;
                }
            }
        }
        assert_eq!(answer.unwrap(), newly);
    }

    fn check(&self, probe: u64) {
        let bitmap = &self.bitmap;
        bitmap.check_invariants().unwrap();
        assert_eq!(bitmap.bits(), self.bits.len() as u64);
        assert_eq!(
            bitmap.count(),
            self.bits.iter().filter(|bit| **bit).count() as u64
        );
        let next = |wanted: bool| {
            let from = (probe as usize).min(self.bits.len());
            self.bits[from..]
                .iter()
                .position(|bit| *bit == wanted)
                .map(|at| (from + at) as u64)
        };
        assert_eq!(bitmap.next_set(probe), next(true));
        assert_eq!(bitmap.next_clear(probe), next(false));
        let part = cut(probe..probe + 5000, self.bits.len());
        let count = self.bits[part].iter().filter(|bit| **bit).count() as u64;
        assert_eq!(bitmap.count_range(probe..probe + 5000), count);
        assert_eq!(bitmap.any_set(probe..probe + 5000), count > 0);
        let total: u64 = bitmap
            .set_runs(0..u64::MAX)
            .map(|run| run.end - run.start)
            .sum();
        assert_eq!(total, bitmap.count());
        // A page without mark and without write in flight is on the disk as it is in memory.
        for page in 0..bitmap.page_count() {
            if bitmap.page_change(page) == PageChange::None {
                let mut bytes = vec![0; PAGE_BYTES];
                bitmap.page_bytes(page, &mut bytes).unwrap();
                assert_eq!(
                    self.disk[page as usize].as_ref(),
                    Some(&bytes),
                    "page {page} is not on disk"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_operation_agrees_with_single_booleans(
        bits in position(),
        set in any::<bool>(),
        ops in prop::collection::vec((op(), position()), 1..40),
    ) {
        let bitmap = Bitmap::new(bits, if set { NewBits::Set } else { NewBits::Clear }).unwrap();
        let pages = bitmap.page_count() as usize;
        let mut world =
            World { bitmap, bits: vec![set; bits as usize], disk: vec![None; pages], writes: vec![] };
        for (op, probe) in ops {
            world.apply(op);
            world.check(probe);
        }
    }

    #[test]
    fn few_bits_agree_with_single_booleans(
        bits in 1..2 * PAGE_BITS,
        ops in prop::collection::vec((scattered(), 0_u64..400), 1..120),
    ) {
        let bitmap = Bitmap::new(bits, NewBits::Clear).unwrap();
        let pages = bitmap.page_count() as usize;
        let mut world =
            World { bitmap, bits: vec![false; bits as usize], disk: vec![None; pages], writes: vec![] };
        for (op, probe) in ops {
            world.apply(op);
            world.check(probe);
        }
        let mut again = Bitmap::unread(world.bitmap.bits()).unwrap();
        for page in 0..world.bitmap.page_count() {
            let mut bytes = vec![0; PAGE_BYTES];
            world.bitmap.page_bytes(page, &mut bytes).unwrap();
            again.load_page(page, &bytes).unwrap();
        }
        again.check_invariants().unwrap();
        prop_assert!(again.set_runs(0..bits).eq(world.bitmap.set_runs(0..bits)));
    }

    #[test]
    fn pages_written_and_read_back_give_the_same_bitmap(
        bits in 1..BITS_MAX_TEST,
        ranges in prop::collection::vec((position(), length()), 0..12),
        garbage in any::<u8>(),
    ) {
        let mut bitmap = Bitmap::new(bits, NewBits::Clear).unwrap();
        for (at, len) in ranges {
            bitmap.set(at..at + len, Urgency::BeforeEviction);
        }
        let mut again = Bitmap::unread(bits).unwrap();
        prop_assert_eq!(again.unread_pages(), again.page_count());
        for page in 0..bitmap.page_count() {
            let mut bytes = vec![0; PAGE_BYTES];
            bitmap.page_bytes(page, &mut bytes).unwrap();
            // What lies past the last bit is garbage on real disks.
            for bit in bits..u64::from(page + 1) * PAGE_BITS {
                if bit / PAGE_BITS == u64::from(page) && garbage & 1 << (bit % 8) != 0 {
                    bytes[(bit % PAGE_BITS / 8) as usize] |= 1 << (bit % 8);
                }
            }
            again.load_page(page, &bytes).unwrap();
        }
        again.check_invariants().unwrap();
        prop_assert_eq!(again.unread_pages(), 0);
        prop_assert_eq!(again.changed_pages(), 0);
        prop_assert!(again.set_runs(0..bits).eq(bitmap.set_runs(0..bits)));
        prop_assert_eq!(again.count(), bitmap.count());
    }

    #[test]
    fn random_bytes_never_panic_when_loaded(
        bits in 0..BITS_MAX_TEST,
        page in 0_u32..7,
        bytes in prop::collection::vec(any::<u8>(), 0..5000),
    ) {
        let mut bitmap = Bitmap::unread(bits).unwrap();
        let _ = bitmap.load_page(page, &bytes);
        let _ = bitmap.merge_words(u64::from(page) * 400, bytes.iter().map(|byte| u64::from(*byte)), Urgency::Lazy);
        bitmap.check_invariants().unwrap();
    }

    #[test]
    fn the_runs_at_a_position_cover_the_bitmap(
        bits in 1..BITS_MAX_TEST,
        ranges in prop::collection::vec((position(), length()), 0..8),
    ) {
        let mut bitmap = Bitmap::new(bits, NewBits::Clear).unwrap();
        for (at, len) in ranges {
            bitmap.set(at..at + len, Urgency::Lazy);
        }
        let (mut at, mut set, mut last) = (0, 0, None);
        while let Some(run) = bitmap.run_at(at) {
            prop_assert_eq!(run.bits.start, at);
            prop_assert!(run.bits.end > at);
            prop_assert_ne!(last, Some(run.set));
            last = Some(run.set);
            set += if run.set { run.bits.end - at } else { 0 };
            at = run.bits.end;
        }
        prop_assert_eq!(at, bits);
        prop_assert_eq!(set, bitmap.count());
    }

    #[test]
    fn coverage_agrees_with_byte_by_byte_reasoning(device in 1_u64..40_000, offset in 0_u64..45_000, len in 0_u64..45_000) {
        let touched = bits_touched(offset, len, device);
        let covered = bits_covered(offset, len, device);
        let end = (offset + len).min(device);
        for bit in 0..bits_of_device(device) {
            let (from, to) = (bit * BIT_BYTES, ((bit + 1) * BIT_BYTES).min(device));
            let touches = offset < to && end > from && offset < end;
            let covers = touches && offset <= from && end >= to;
            prop_assert_eq!(touched.contains(&bit), touches, "bit {}", bit);
            prop_assert_eq!(covered.contains(&bit), covers, "bit {}", bit);
        }
    }
}

#[test]
fn a_change_during_a_write_keeps_the_page_marked() {
    let mut bitmap = Bitmap::new(100, NewBits::Clear).unwrap();
    let write = bitmap.start_write(0).unwrap();
    bitmap.set(5..6, Urgency::BeforeEviction);
    assert!(
        bitmap.start_write(0).is_none(),
        "two writes of a page could be swapped"
    );
    assert!(bitmap.blocks_eviction(0));
    bitmap.finish_write(0, write.generation, WriteOutcome::Written);
    assert_eq!(
        bitmap.page_change(0),
        PageChange::Changed(Urgency::BeforeEviction)
    );
    assert!(bitmap.blocks_eviction(0));
    let write = bitmap.start_write(0).unwrap();
    assert_eq!(write.bytes[0], 1 << 5);
    assert!(bitmap.blocks_eviction(0), "the write is not finished");
    bitmap.finish_write(0, write.generation, WriteOutcome::Written);
    assert!(!bitmap.blocks_eviction(0));
    bitmap.clear(5..6);
    assert!(!bitmap.blocks_eviction(0), "clearing may wait");
    assert_eq!(
        bitmap.pages_to_write(WriteSelection::Urgent, 0, 9),
        Vec::<u32>::new()
    );
    assert_eq!(
        bitmap.pages_to_write(WriteSelection::Changed, 0, 9),
        vec![0]
    );
}

#[test]
fn bits_set_before_a_page_is_read_survive_the_reading() {
    let mut bitmap = Bitmap::unread(PAGE_BITS + 10).unwrap();
    bitmap.set(3..4, Urgency::BeforeEviction);
    assert!(
        bitmap.start_write(0).is_none(),
        "the disk's bits would be lost"
    );
    let mut bytes = vec![0; PAGE_BYTES];
    bytes[1] = 1;
    bitmap.load_page(0, &bytes).unwrap();
    assert!(bitmap.get(3) && bitmap.get(8));
    assert!(bitmap.is_read(0..PAGE_BITS) && !bitmap.is_read(0..PAGE_BITS + 1));
    bitmap.load_hole(1..2);
    assert_eq!(bitmap.unread_pages(), 0);
    assert_eq!(bitmap.count(), 2);
    bitmap.clear_all();
    bitmap.load_page(0, &bytes).unwrap();
    assert_eq!(bitmap.count(), 0, "memory is newer than the disk");
}

#[test]
fn a_device_of_sixteen_tebibytes_takes_no_memory_for_equal_pages() {
    let bits = bits_of_device(16 << 40);
    let mut bitmap = Bitmap::new(bits, NewBits::Set).unwrap();
    assert!(bitmap.is_all_set());
    bitmap.clear(10..20);
    assert_eq!(bitmap.count(), bits - 10);
    assert_eq!(bitmap.next_clear(0), Some(10));
    assert_eq!(bitmap.next_set(10), Some(20));
    bitmap.clear_all();
    assert_eq!(bitmap.next_set(0), None);
    assert!(Bitmap::new(BITS_MAX + 1, NewBits::Set).is_err());
}
