//! Writes to a disk as values, and those of `create-md` and `wipe-md`: `docs/spec/metadata.md` sections 6.1 and 6.5.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::apply::ring_write;
use crate::error::PlacementError;
use crate::gi::pretty_kib;
use crate::placement::Layout;
use crate::superblock::Superblock;
use crate::units::{BLOCK_SIZE, Block, ByteLen, ByteOffset};

/// Largest `--peer-max-bio-size` (1 MiB).
pub const PEER_MAX_BIO_SIZE_MAX: u32 = 1 << 20;

/// What a write puts on the disk; long contents are described, not allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Zeros.
    Zeroes(ByteLen),
    /// One block again and again.
    Repeated {
        /// The block.
        block: Box<Block>,
        /// How often.
        count: u32,
    },
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where.
    pub offset: ByteOffset,
    /// What.
    pub content: Content,
}

impl Write {
    /// Length of the write.
    pub fn len(&self) -> ByteLen {
        ByteLen(match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Zeroes(len) => len.0,
            Content::Repeated { count, .. } => u64::from(*count) * BLOCK_SIZE as u64,
        })
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.len().0 == 0
    }

    /// Copies the content from position `at` on into `buffer`; returns how many bytes were left to copy and fitted.
    /// A caller with a buffer of its own liking calls this until it returns 0.
    pub fn fill(&self, at: u64, buffer: &mut [u8]) -> usize {
        let left = self.len().0.saturating_sub(at);
        let n = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let buffer = &mut buffer[..n];
        match &self.content {
            Content::Bytes(bytes) => {
                // `at` is within the bytes whenever n is not 0.
                let start = (at as usize).min(bytes.len());
                buffer.copy_from_slice(&bytes[start..start + n]);
            }
            Content::Zeroes(_) => buffer.fill(0),
            Content::Repeated { block, .. } => {
                let mut done = 0;
                while done < n {
                    let within = ((at + done as u64) % BLOCK_SIZE as u64) as usize;
                    let take = (BLOCK_SIZE - within).min(n - done);
                    buffer[done..done + take].copy_from_slice(&block[within..within + take]);
                    done += take;
                }
            }
        }
        n
    }
}

/// One step of a durable sequence: steps are carried out in order, and a flush ends only when all writes before it
/// are on stable storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write.
    Write(Write),
    /// Flush the device's cache.
    Flush,
}

/// The steps of `create-md`: activity log, bitmap, superblock. The superblock comes last and after a flush, so that
/// metadata are valid only when they are complete.
///
/// # Errors
/// [`PlacementError::Misaligned`] for an external device that is not a multiple of 4096 bytes.
pub fn create_md(layout: &Layout, peer_max_bio_size: u32) -> Result<Vec<Step>, PlacementError> {
    layout.check_create()?;
    let mut superblock = Superblock::fresh(layout);
    superblock.la_peer_max_bio_size = peer_max_bio_size;
    let bitmap = Write {
        offset: layout.bitmap_offset(),
        content: Content::Zeroes(layout.bitmap_len()),
    };
    let block = Write {
        offset: layout.superblock_offset(),
        content: Content::Bytes(superblock.encode().to_vec()),
    };
    Ok(vec![
        Step::Write(ring_write(layout)),
        Step::Write(bitmap),
        Step::Flush,
        Step::Write(block),
        Step::Flush,
    ])
}

/// The steps of `wipe-md`: the superblock only.
pub fn wipe_md(layout: &Layout) -> Vec<Step> {
    let content = Content::Zeroes(ByteLen(BLOCK_SIZE as u64));
    vec![
        Step::Write(Write {
            offset: layout.superblock_offset(),
            content,
        }),
        Step::Flush,
    ]
}

/// First line of `create-md` on standard output.
pub const TEXT_INITIALIZING_LOG: &str = "initializing activity log";
/// Second line of `create-md` on standard output.
pub const TEXT_WRITING: &str = "Writing meta data...";
/// Last line of `create-md` on standard output.
pub const TEXT_CREATED: &str = "New drbd meta data block successfully created.";
/// Question of `wipe-md`, on standard error after an empty line.
pub const TEXT_WIPE_QUESTION: &str = "Do you really want to wipe out the DRBD meta data?";
/// `wipe-md`, standard output, before.
pub const TEXT_WIPING: &str = "Wiping meta data...";
/// `wipe-md`, standard output, after.
pub const TEXT_WIPED: &str = "DRBD meta data block successfully wiped out.";
/// `wipe-md` without metadata: standard error, exit 0.
pub const TEXT_NOTHING_TO_WIPE: &str = "There appears to be no drbd meta data to wipe out?";

/// The line about the bitmap on standard error.
pub fn text_initializing_bitmap(layout: &Layout) -> String {
    format!(
        "initializing bitmap ({}) to all zero",
        pretty_kib(layout.bitmap_len().0.div_ceil(1024))
    )
}
