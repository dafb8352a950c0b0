//! Blocks of memory aligned for O_DIRECT, kept for reuse.
//!
//! Invariants: a [`Block`] is the only owner of its memory; the memory is initialised from its allocation on (zeroed), so that reading
//! any part of it is defined; a block goes back to its pool's free list, to the depot or to the system exactly once, when it is dropped.

use std::alloc::{Layout, handle_alloc_error};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Alignment of every block in bytes: what the strictest device asks for (one page).
pub(crate) const BLOCK_ALIGN: usize = 4096;

/// Smallest block.
const CLASS_BYTES_MIN: usize = 4096;

/// Classes of powers of two: 4 KiB to 1 MiB, the largest payload of the wire. Longer blocks are not kept.
const CLASSES: usize = 9;

/// Blocks from this size on are mappings of their own; smaller ones are parts of a mapping of this size. An allocator would leave a hole as large
/// as the block before each of 4 KiB, put other things into the holes, and keep them.
const MAPPED_BYTES: usize = 64 << 10;

/// Classes of blocks that are parts of a mapping.
const PARTS: usize = 4;

const _: () = assert!(CLASS_BYTES_MIN << PARTS == MAPPED_BYTES);

/// Parts of mappings that no pool keeps, by class. Their memory has gone back to the system; only their addresses are kept.
static DEPOT: Mutex<[Vec<Raw>; PARTS]> = Mutex::new([const { Vec::new() }; PARTS]);

/// Free bytes that all pools of a process keep together, as far as the least share allows.
const FREE_BYTES_ALL: usize = 64 << 20;

/// Free bytes that a pool keeps however many there are: a full queue of 4 KiB requests, or one of the largest.
const FREE_BYTES_MIN: usize = 1 << 20;

/// Free bytes that a pool keeps at most. Enough for a full queue of 4 KiB requests and 32 of the largest.
const FREE_BYTES_MAX: usize = 32 << 20;

/// How many pools live: each keeps its share of [`FREE_BYTES_ALL`].
///
/// The share of a pool falls when others come. It lets go of what it has too much when the next block comes back to it, so that one
/// which nobody uses keeps what it had.
#[derive(Debug)]
struct Census(AtomicUsize);

/// The pools of this process.
static CENSUS: Census = Census(AtomicUsize::new(0));

impl Census {
    /// Free bytes that each pool may keep now.
    fn share(&self) -> usize {
        let pools = self.0.load(Ordering::Relaxed).max(1);
        (FREE_BYTES_ALL / pools).clamp(FREE_BYTES_MIN, FREE_BYTES_MAX)
    }
}

/// A pool of one loop. Cloning gives another handle of the same pool.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

/// What all handles of a pool have in common; counted while it lives.
#[derive(Debug)]
struct Shared {
    free: Mutex<Free>,
    census: &'static Census,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.census.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Free {
    classes: [Vec<Raw>; CLASSES],
    bytes: usize,
}

impl Free {
    /// Takes out what is over `limit`, the largest blocks first.
    fn surplus(&mut self, limit: usize) -> Vec<Raw> {
        let mut surplus = Vec::new();
        for list in self.classes.iter_mut().rev() {
            while self.bytes > limit
                && let Some(raw) = list.pop()
            {
                self.bytes -= raw.layout.size();
                surplus.push(raw);
            }
        }
        surplus
    }
}

/// Memory of one block: a pointer to `layout.size()` initialised bytes that nobody else has.
#[derive(Debug)]
struct Raw {
    pointer: NonNull<u8>,
    layout: Layout,
}

// SAFETY: `Raw` owns its memory alone (it is made from a fresh allocation and never copied), so it may move to another thread.
unsafe impl Send for Raw {}
// SAFETY: through `&Raw` the memory is only read; writing takes `&mut`.
unsafe impl Sync for Raw {}

impl Raw {
    /// Zeroes, or what a block of this class had before.
    fn allocate(bytes: usize) -> Raw {
        let Ok(layout) = Layout::from_size_align(bytes, BLOCK_ALIGN) else {
            // Only a size near isize::MAX can fail; callers ask for 32 MiB at most.
            handle_alloc_error(Layout::new::<u8>())
        };
        match part_of(bytes) {
            Some(class) => Raw::part(class, layout),
            None => Raw {
                pointer: map(bytes),
                layout,
            },
        }
    }

    /// A block from the depot, which a new mapping fills where it is empty.
    fn part(class: usize, layout: Layout) -> Raw {
        let mut depot = DEPOT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(raw) = depot.get_mut(class).and_then(Vec::pop) {
            return raw;
        }
        let first = map(MAPPED_BYTES);
        if let Some(list) = depot.get_mut(class) {
            let others = (layout.size()..MAPPED_BYTES).step_by(layout.size());
            list.extend(others.map(|offset| Raw {
                // SAFETY: the offset is inside of the mapping, and so is the whole part: its size divides that of the mapping.
                pointer: unsafe { first.add(offset) },
                layout,
            }));
        }
        Raw {
            pointer: first,
            layout,
        }
    }
}

/// The class of a block that is a part of a mapping.
fn part_of(bytes: usize) -> Option<usize> {
    class_of(bytes).filter(|class| *class < PARTS)
}

/// Zeroes at addresses that nobody else has, from the beginning of a page on; pages are no smaller than [`BLOCK_ALIGN`].
fn map(bytes: usize) -> NonNull<u8> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new private mapping at a place that the system chooses concerns no other memory.
    let mapped = unsafe { mmap_anonymous(null_mut(), bytes, protection, MapFlags::PRIVATE) };
    let pointer = mapped.ok().and_then(|mapped| NonNull::new(mapped.cast()));
    pointer.unwrap_or_else(|| {
        let layout = Layout::from_size_align(bytes, BLOCK_ALIGN);
        handle_alloc_error(layout.unwrap_or(Layout::new::<u8>()))
    })
}

impl Drop for Raw {
    fn drop(&mut self) {
        let (pointer, bytes) = (self.pointer, self.layout.size());
        let Some(class) = part_of(bytes) else {
            // SAFETY: `pointer` comes from `map` with this size, and nobody else owns the mapping.
            let unmapped = unsafe { munmap(pointer.as_ptr().cast(), bytes) };
            debug_assert!(unmapped.is_ok(), "{unmapped:?}");
            return;
        };
        // Where pages are larger than this block, the system refuses, and the memory stays.
        // SAFETY: nobody else owns these bytes, whose contents may be anything from now on; they stay mapped, and read as zeroes.
        let _ = unsafe { madvise(pointer.as_ptr().cast(), bytes, Advice::LinuxDontNeed) };
        let mut depot = DEPOT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = depot.get_mut(class) {
            // The only owner from now on: `self` ends here.
            list.push(Raw {
                pointer,
                layout: self.layout,
            });
        }
    }
}

/// An aligned block. Its length is what was asked for; its memory may be longer.
#[derive(Debug)]
pub(crate) struct Block {
    raw: Option<Raw>,
    length: usize,
    pool: Pool,
}

fn class_of(bytes: usize) -> Option<usize> {
    let class = bytes
        .max(CLASS_BYTES_MIN)
        .next_power_of_two()
        .trailing_zeros() as usize
        - 12;
    (class < CLASSES).then_some(class)
}

impl Pool {
    /// An empty pool.
    pub(crate) fn new() -> Pool {
        Pool::counted(&CENSUS)
    }

    fn counted(census: &'static Census) -> Pool {
        census.0.fetch_add(1, Ordering::Relaxed);
        Pool {
            shared: Arc::new(Shared {
                free: Mutex::default(),
                census,
            }),
        }
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.shared
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A block of `length` bytes with unspecified (but initialised) contents.
    pub(crate) fn block(&self, length: usize) -> Block {
        let class = class_of(length);
        let kept = class.and_then(|class| {
            let mut free = self.free();
            let raw = free.classes.get_mut(class)?.pop()?;
            free.bytes -= raw.layout.size();
            Some(raw)
        });
        let raw = kept.unwrap_or_else(|| {
            Raw::allocate(match class {
                Some(class) => CLASS_BYTES_MIN << class,
                None => length.next_multiple_of(BLOCK_ALIGN),
            })
        });
        Block {
            raw: Some(raw),
            length,
            pool: self.clone(),
        }
    }

    /// An aligned copy of `data`.
    pub(crate) fn copy(&self, data: &[u8]) -> Block {
        let mut block = self.block(data.len());
        block.as_mut().copy_from_slice(data);
        block
    }

    fn give_back(&self, raw: Raw) {
        let Some(class) = class_of(raw.layout.size()) else {
            return;
        };
        let limit = self.shared.census.share();
        let mut free = self.free();
        let size = raw.layout.size();
        if let Some(list) = free.classes.get_mut(class) {
            list.push(raw);
            free.bytes += size;
        }
        let surplus = if free.bytes > limit {
            free.surplus(limit)
        } else {
            Vec::new()
        };
        // The allocator takes its time without the lock.
        drop(free);
        drop(surplus);
    }
}

impl Block {
    /// The bytes, to be shared. The block returns to its pool with the last of them.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// Where the memory begins; valid for [`Block::len`] bytes as long as the block lives.
    pub(crate) fn pointer(&mut self) -> *mut u8 {
        self.as_mut().as_mut_ptr()
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.length
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        match &self.raw {
            // SAFETY: `raw` holds at least `length` initialised bytes and lives as long as `self`; nobody writes while `&self` lives.
            Some(raw) => unsafe { std::slice::from_raw_parts(raw.pointer.as_ptr(), self.length) },
            None => &[],
        }
    }
}

impl AsMut<[u8]> for Block {
    fn as_mut(&mut self) -> &mut [u8] {
        match &mut self.raw {
            // SAFETY: as above, and `&mut self` makes this the only access.
            Some(raw) => unsafe {
                std::slice::from_raw_parts_mut(raw.pointer.as_ptr(), self.length)
            },
            None => &mut [],
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            self.pool.give_back(raw);
        }
    }
}

/// Whether `data` begins at a multiple of `align`.
pub(crate) fn is_aligned(data: &[u8], align: usize) -> bool {
    (data.as_ptr() as usize).is_multiple_of(align)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A count of its own for each test: they run side by side.
    fn nobody_else() -> &'static Census {
        Box::leak(Box::new(Census(AtomicUsize::new(0))))
    }

    #[test]
    fn blocks_are_aligned_and_return_to_the_pool() {
        let pool = Pool::counted(nobody_else());
        for length in [1, 512, 4096, 4097, 1 << 20, (1 << 20) + 1] {
            let block = pool.block(length);
            assert_eq!(block.len(), length);
            assert!(is_aligned(block.as_ref(), BLOCK_ALIGN));
        }
        assert_eq!(pool.free().bytes, 4096 + 8192 + (1 << 20));
    }

    #[test]
    fn blocks_share_no_memory_and_are_used_again() {
        for length in [4096, 8192, 32 << 10, 64 << 10, 3 << 20] {
            for round in 0..2_u8 {
                let pool = Pool::counted(nobody_else());
                let mut blocks: Vec<Block> = (0..40).map(|_| pool.block(length)).collect();
                for (number, block) in (0..).zip(&mut blocks) {
                    assert!(is_aligned(block.as_ref(), BLOCK_ALIGN));
                    block.as_mut().fill(2 * number + round);
                }
                let whole = |(number, block): (u8, &Block)| {
                    block
                        .as_ref()
                        .iter()
                        .all(|byte| *byte == 2 * number + round)
                };
                assert!((0..).zip(&blocks).all(whole), "{length} {round}");
                // What the pool keeps goes with it, to the depot or to the system.
            }
        }
    }

    #[test]
    fn shared_bytes_keep_the_block_until_the_last_is_dropped() {
        let pool = Pool::counted(nobody_else());
        let bytes = pool.copy(b"0123456789").freeze();
        let slice = bytes.slice(2..4);
        drop(bytes);
        assert_eq!(pool.free().bytes, 0);
        assert_eq!(&slice[..], b"23");
        drop(slice);
        assert_eq!(pool.free().bytes, 4096);
    }

    #[test]
    fn the_pool_keeps_a_bounded_number_of_bytes() {
        let pool = Pool::counted(nobody_else());
        let blocks: Vec<Block> = (0..64).map(|_| pool.block(1 << 20)).collect();
        drop(blocks);
        assert_eq!(pool.free().bytes, FREE_BYTES_MAX);
    }

    #[test]
    fn pools_share_what_the_process_keeps_and_clones_count_once() {
        let census = nobody_else();
        let pool = Pool::counted(census);
        let clone = pool.clone();
        assert_eq!(census.share(), FREE_BYTES_MAX);
        let others: Vec<Pool> = (1..4).map(|_| Pool::counted(census)).collect();
        assert_eq!(census.share(), FREE_BYTES_ALL / 4);
        let crowd: Vec<Pool> = (0..996).map(|_| Pool::counted(census)).collect();
        assert_eq!(census.share(), FREE_BYTES_MIN);
        drop((others, crowd, pool));
        assert_eq!(census.0.load(Ordering::Relaxed), 1);
        drop(clone);
        assert_eq!(census.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_block_on_its_way_counts_its_pool() {
        let census = nobody_else();
        let bytes = Pool::counted(census).copy(b"0123456789").freeze();
        assert_eq!(census.0.load(Ordering::Relaxed), 1);
        drop(bytes);
        assert_eq!(census.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_rich_pool_lets_its_largest_blocks_go_when_others_have_come() {
        let census = nobody_else();
        let pool = Pool::counted(census);
        let large: Vec<Block> = (0..31).map(|_| pool.block(1 << 20)).collect();
        let small: Vec<Block> = (0..200).map(|_| pool.block(4096)).collect();
        drop((large, small));
        let rich = (31 << 20) + 200 * 4096;
        assert_eq!(pool.free().bytes, rich);
        let crowd: Vec<Pool> = (0..64).map(|_| Pool::counted(census)).collect();
        assert_eq!(pool.free().bytes, rich, "nothing has come back yet");
        drop(pool.block(4096));
        assert_eq!(pool.free().bytes, 200 * 4096);
        drop(crowd);
        // Alone again, it may keep more.
        drop(pool.block(1 << 20));
        assert_eq!(pool.free().bytes, (1 << 20) + 200 * 4096);
    }
}
