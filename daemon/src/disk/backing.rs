//! Backing devices: opened, locked, measured. Everything here may block and runs on a helper thread.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use tandem_replicator::{BackingInfo, MetaKind, OpenError};

use super::pool::Pool;
use crate::control::messages::MetaDisk;

/// Bytes of one slot of an indexed metadata device (metadata.md 1.3).
const SLOT_BYTES: u64 = 128 << 20;

/// Failure numbers of attach (state-machine.md 2.7, config-and-cli.md 4).
const OPEN_DISK_FAILED: u16 = 104;
const OPEN_META_FAILED: u16 = 105;
const META_DISK_TOO_SMALL: u16 = 112;
const DISK_BUSY: u16 = 114;
const META_DISK_BUSY: u16 = 115;

/// `f_type` of the filesystems that live in memory: there a write is a copy, and the ring would only add a worker thread.
const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// Which devices a volume uses, as its definition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BackingPaths {
    /// The data device.
    pub(crate) disk: String,
    /// Where the metadata lies.
    pub(crate) meta: MetaDisk,
}

/// Whether I/O is done at once on the loop's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    /// In memory: inline.
    Memory,
    /// On something that may take its time.
    Storage,
}

/// One open device or file.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) file: File,
    pub(crate) path: String,
    /// I/O passes the page cache by: offsets, lengths and memory must be multiples of this; 1 if buffered.
    pub(crate) align: usize,
    pub(crate) place: Where,
    pub(crate) bytes: u64,
    pub(crate) logical_block: u32,
    pub(crate) discard: bool,
    /// A file with fewer blocks than bytes: metadata that lie in a hole need not be read.
    pub(crate) sparse: bool,
    /// Holes can be made, at no cost that grows with their length.
    pub(crate) fast_zero: bool,
    /// The same file once more, without its lock: whoever looks at it never keeps it from being closed and opened again.
    pub(crate) view: Option<Arc<File>>,
}

/// The devices of an attached volume.
#[derive(Clone, Debug)]
pub(crate) struct Backing {
    pub(crate) data: Arc<Device>,
    pub(crate) meta: Arc<Device>,
    /// Bytes of the data device as last measured.
    pub(crate) data_bytes: u64,
    /// Where the metadata area begins on `meta` (not 0 only for slots).
    pub(crate) meta_base: u64,
    pub(crate) meta_bytes: u64,
    pub(crate) meta_kind: MetaKind,
}

impl Backing {
    /// Opens and locks what `paths` name.
    pub(crate) fn open(paths: &BackingPaths) -> Result<Backing, OpenError> {
        let data = Arc::new(open_device(&paths.disk, Use::Data)?);
        let (path, slot) = match &paths.meta {
            MetaDisk::Internal => {
                return Ok(Backing {
                    meta: Arc::clone(&data),
                    meta_base: 0,
                    meta_bytes: data.bytes,
                    data_bytes: data.bytes,
                    meta_kind: MetaKind::Internal,
                    data,
                });
            }
            MetaDisk::External { path } => (path, None),
            MetaDisk::Indexed { path, index } => (path, Some(*index)),
        };
        let meta = Arc::new(open_device(path, slot.map_or(Use::Meta, |_| Use::Slot))?);
        let (meta_base, meta_bytes) = match slot {
            None => (0, meta.bytes),
            Some(index) => slot_of(&meta, index)?,
        };
        Ok(Backing {
            data_bytes: data.bytes,
            data,
            meta,
            meta_base,
            meta_bytes,
            meta_kind: match slot {
                None => MetaKind::FlexibleExternal,
                Some(_) => MetaKind::Indexed,
            },
        })
    }

    /// The same devices with the sizes that they have now.
    pub(crate) fn measured(&self) -> Result<Backing, OpenError> {
        let mut now = self.clone();
        now.data_bytes = present_bytes(&self.data, Use::Data)?;
        match self.meta_kind {
            MetaKind::Internal => now.meta_bytes = now.data_bytes,
            // A slot never grows.
            MetaKind::Indexed => {}
            MetaKind::FlexibleExternal => {
                now.meta_bytes = present_bytes(&self.meta, Use::Meta)?;
            }
        }
        Ok(now)
    }

    /// What the engine is told.
    pub(crate) fn info(&self) -> BackingInfo {
        BackingInfo {
            data_bytes: self.data_bytes,
            meta_bytes: self.meta_bytes,
            meta_kind: self.meta_kind,
            logical_block: self.data.logical_block,
            discard: self.data.discard,
            // A discard is a hole punched, or zeroes written where that is refused (helper.rs): zeroes in any case.
            discard_zeroes: true,
        }
    }
}

/// Bytes of an open device now: a logical volume or a file may have grown since it was opened.
fn present_bytes(device: &Device, usage: Use) -> Result<u64, OpenError> {
    let measure = || {
        let metadata = device.file.metadata()?;
        if metadata.file_type().is_block_device() {
            super::ioctl::block_bytes(&device.file)
        } else {
            Ok(metadata.len())
        }
    };
    let bytes = measure().map_err(|error| OpenError {
        number: usage.open_failed(),
        text: format!(
            "cannot measure the {} {}: {error}",
            usage.words(),
            device.path
        ),
    })?;
    Ok(bytes - bytes % u64::from(device.logical_block))
}

fn slot_of(meta: &Device, index: u32) -> Result<(u64, u64), OpenError> {
    let base = u64::from(index) * SLOT_BYTES;
    if meta.bytes < base + SLOT_BYTES {
        return Err(OpenError {
            number: META_DISK_TOO_SMALL,
            text: format!(
                "{} has {} bytes; slot {index} ends at {}",
                meta.path,
                meta.bytes,
                base + SLOT_BYTES
            ),
        });
    }
    lock_slot(&meta.file, index).map_err(|error| OpenError {
        number: META_DISK_BUSY,
        text: format!(
            "slot {index} of {} is in use by another volume: {error}",
            meta.path
        ),
    })?;
    Ok((base, SLOT_BYTES))
}

/// What a device is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Data,
    Meta,
    /// Shared with the slots of other volumes.
    Slot,
}

impl Use {
    fn words(self) -> &'static str {
        match self {
            Use::Data => "backing device",
            Use::Meta | Use::Slot => "metadata device",
        }
    }

    fn open_failed(self) -> u16 {
        match self {
            Use::Data => OPEN_DISK_FAILED,
            Use::Meta | Use::Slot => OPEN_META_FAILED,
        }
    }

    fn busy(self) -> u16 {
        match self {
            Use::Data => DISK_BUSY,
            Use::Meta | Use::Slot => META_DISK_BUSY,
        }
    }
}

fn open_device(path: &str, usage: Use) -> Result<Device, OpenError> {
    let failed = |what: &str, error: &io::Error| OpenError {
        number: usage.open_failed(),
        text: format!("cannot {what} the {} {path}: {error}", usage.words()),
    };
    let metadata = std::fs::metadata(path).map_err(|error| failed("find", &error))?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(OpenError {
            number: usage.open_failed(),
            text: format!(
                "the {} {path} is neither a block device nor a file",
                usage.words()
            ),
        });
    }
    let is_block = kind.is_block_device();
    // O_EXCL without O_CREAT claims a block device: mount, mkfs and drbdmeta are kept away, and we see if they were first.
    let exclusive = is_block && usage != Use::Slot;
    let file = open_patiently(path, exclusive, &metadata).map_err(|error| {
        if error.raw_os_error() == Some(libc::EBUSY) {
            OpenError {
                number: usage.busy(),
                text: format!(
                    "the {} {path} is in use{}",
                    usage.words(),
                    block_holder(&metadata)
                        .map(|who| format!(" ({who})"))
                        .unwrap_or_default()
                ),
            }
        } else {
            failed("open", &error)
        }
    })?;
    // Before the first I/O: a disk that hangs and is in use is refused at once.
    lock(&file, path, usage)?;
    let place = place(&file, is_block).map_err(|error| failed("measure", &error))?;
    let align = alignment(&file, place).map_err(|error| failed("read", &error))?;
    describe(file, path, (is_block, place), align)
        .map_err(|error| failed("measure or flush", &error))
}

/// Opens; a block device that is claimed by nobody who can be named gets some time (see [`LEFTOVER_LOCK`]).
fn open_patiently(path: &str, exclusive: bool, metadata: &std::fs::Metadata) -> io::Result<File> {
    let start = Instant::now();
    loop {
        match open_direct(path, exclusive) {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY)
                    && block_holder(metadata).is_none()
                    && start.elapsed() < LEFTOVER_LOCK =>
            {
                std::thread::sleep(LOCK_POLL);
            }
            result => return result,
        }
    }
}

/// Opens with O_DIRECT where the filesystem takes it.
fn open_direct(path: &str, exclusive: bool) -> io::Result<File> {
    let claim = if exclusive {
        OFlags::EXCL
    } else {
        OFlags::empty()
    };
    let open = |flags: OFlags| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags((flags | claim | OFlags::CLOEXEC).bits().cast_signed())
            .open(path)
    };
    match open(OFlags::DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(OFlags::empty()),
        result => result,
    }
}

/// What offsets and memory of I/O on `file` are multiples of: the device's block size where O_DIRECT works with it; otherwise 1, and
/// O_DIRECT is given up. In memory there is no cache to pass by, though newer kernels take the flag: it would only cost a copy.
fn alignment(file: &File, place: Where) -> io::Result<usize> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    if !flags.contains(OFlags::DIRECT) {
        return Ok(1);
    }
    if place == Where::Memory {
        rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT)?;
        return Ok(1);
    }
    let align = logical_block(file)?;
    let metadata = file.metadata()?;
    if metadata.len() >= 2 * u64::from(align) || metadata.file_type().is_block_device() {
        let mut probe = Pool::new().block(align as usize);
        match file.read_at(probe.as_mut(), u64::from(align)) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT)?;
                return Ok(1);
            }
            // Other errors are for the first real read to report: a bad sector must not change how a disk is opened.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(align as usize)
}

/// How long a lock that no living process holds is waited for: the kernel ends the io_uring of a daemon that was killed some time after
/// the process itself, and only then drops its open files.
const LEFTOVER_LOCK: Duration = Duration::from_secs(5);

/// How long a lock of this process is waited for: a handler's process that was begun a moment ago has the files of the daemon, and with them
/// a lock that was let go meanwhile, until it runs its program. On a busy machine that takes a while.
const HANDLERS_LOCK: Duration = Duration::from_secs(1);

/// Between two attempts.
const LOCK_POLL: Duration = Duration::from_millis(20);

fn lock(file: &File, path: &str, usage: Use) -> Result<(), OpenError> {
    let operation = match usage {
        Use::Data | Use::Meta => FlockOperation::NonBlockingLockExclusive,
        Use::Slot => FlockOperation::NonBlockingLockShared,
    };
    let start = Instant::now();
    loop {
        let Err(error) = rustix::fs::flock(file, operation) else {
            return Ok(());
        };
        let holder = lock_holder(file);
        let own = holder.is_some_and(|holder| u32::try_from(holder) == Ok(std::process::id()));
        let patience = match holder {
            Some(_) if own => HANDLERS_LOCK,
            Some(holder) if crate::process::is_there(holder) => Duration::ZERO,
            _ => LEFTOVER_LOCK,
        };
        if start.elapsed() < patience {
            std::thread::sleep(LOCK_POLL);
            continue;
        }
        let mut who = holder.map_or_else(
            || format!("another program: {error}"),
            crate::process::name_of,
        );
        if own {
            who.push_str(
                ", this daemon: another resource uses it, or one that was taken down by force and whose disk has not answered yet",
            );
        }
        return Err(OpenError {
            number: usage.busy(),
            text: format!("the {} {path} is locked by {who}", usage.words()),
        });
    }
}

/// Who holds a flock on `file`, from /proc/locks: `1: FLOCK  ADVISORY  WRITE 812 fe:00:131 0 EOF`.
fn lock_holder(file: &File) -> Option<i32> {
    let metadata = file.metadata().ok()?;
    let device = metadata.dev();
    let wanted = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device),
        metadata.ino()
    );
    let table = std::fs::read_to_string("/proc/locks").ok()?;
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == wanted)?;
        words.get(at.checked_sub(1)?)?.parse::<i32>().ok()
    })
}

/// Why a block device is busy: mounted, or held by a device above it.
fn block_holder(metadata: &std::fs::Metadata) -> Option<String> {
    let (major, minor) = (
        rustix::fs::major(metadata.rdev()),
        rustix::fs::minor(metadata.rdev()),
    );
    let numbers = format!("{major}:{minor}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted = mounts.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(2) == Some(&numbers.as_str()))
            .then(|| words.get(4).map(|at| format!("mounted on {at}")))
            .flatten()
    });
    mounted.or_else(|| {
        let holders = std::fs::read_dir(format!("/sys/dev/block/{numbers}/holders")).ok()?;
        let names: Vec<String> = holders
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        (!names.is_empty()).then(|| format!("held by {}", names.join(", ")))
    })
}

fn place(file: &File, is_block: bool) -> io::Result<Where> {
    Ok(match rustix::fs::fstatfs(file)?.f_type {
        TMPFS_MAGIC | RAMFS_MAGIC if !is_block => Where::Memory,
        _ => Where::Storage,
    })
}

fn describe(
    file: File,
    path: &str,
    (is_block, place): (bool, Where),
    align: usize,
) -> io::Result<Device> {
    let metadata = file.metadata()?;
    let bytes = if is_block {
        super::ioctl::block_bytes(&file)?
    } else {
        metadata.len()
    };
    let logical_block = logical_block(&file)?;
    let fast_zero = if is_block {
        queue_attribute(metadata.rdev(), "write_zeroes_max_bytes") > 0
    } else {
        makes_holes(&file, metadata.len())
    };
    let sparse = !is_block && metadata.blocks() * 512 < metadata.len();
    if sparse && place == Where::Storage {
        // What is only in a cache is told as a hole by some versions of some filesystems.
        rustix::fs::fdatasync(&file)?;
    }
    let discard = !is_block || queue_attribute(metadata.rdev(), "discard_max_bytes") > 0;
    // Without /proc there is no such view, and nothing to be told about holes.
    let view = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
    Ok(Device {
        path: path.to_owned(),
        view: view.map(Arc::new),
        align,
        place,
        // A tail shorter than a sector cannot be addressed.
        bytes: bytes - bytes % u64::from(logical_block),
        logical_block,
        discard,
        sparse,
        fast_zero,
        file,
    })
}

/// Whether a hole can be punched into a file: tried behind its end, where it changes nothing.
fn makes_holes(file: &File, end: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, end.next_multiple_of(4096), 4096).is_ok()
}

/// Logical block size: the device's own, 512 for a file.
fn logical_block(file: &File) -> io::Result<u32> {
    if file.metadata()?.file_type().is_block_device() {
        super::ioctl::logical_block(file)
    } else {
        Ok(512)
    }
}

fn queue_attribute(device: u64, name: &str) -> u64 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let base = format!("/sys/dev/block/{major}:{minor}");
    // A partition has no queue of its own: its parent's counts.
    [
        format!("{base}/queue/{name}"),
        format!("{base}/../queue/{name}"),
    ]
    .iter()
    .find_map(|path| std::fs::read_to_string(Path::new(path)).ok())
    .and_then(|text| text.trim().parse().ok())
    .unwrap_or(0)
}

/// Locks one slot of a metadata device that several volumes share (metadata.md 1.3), for this open file: nobody else may use it.
///
/// # Errors
/// Somebody else has it, or the operating system knows no such locks.
pub fn lock_slot(file: &File, index: u32) -> io::Result<()> {
    let start = u64::from(index) * SLOT_BYTES;
    super::ioctl::lock_range(file.as_raw_fd(), start, SLOT_BYTES)
}
