//! Metadata of a disk that is not attached: opened with a lock, so that a disk that is in use is refused.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags};
use tandem_config::{MetaDisk, ResolvedVolume};
use tandem_metadata::relocate::CopyOrder;
use tandem_metadata::{
    BLOCK_SIZE, ByteLen, Layout, Placement, Step, Superblock, SuperblockError, Version, detect,
};

use crate::backend::metadata_place;
use crate::failure::{CANNOT_RUN, CONFIGURATION, Failure, USAGE};
use crate::invocation::quoted;

/// Bytes written at once: long runs of zeros go out in pieces.
const WRITE_BYTES: usize = 1 << 20;

/// Bytes of a slot of a metadata device that several volumes share (docs/spec/metadata.md 1.3).
const SLOT_BYTES: u64 = 128 << 20;

/// Largest activity log and largest bitmap of 1 PiB, in bytes: nothing is allocated by a length from a disk beyond it.
const RING_BYTES_MAX: u64 = 32 << 20;

/// What a device is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// To look; the device may be in use.
    Read,
    /// To change; nobody else may use it.
    Change,
}

/// Least time that a disk gets for one access.
const PATIENCE_MIN: Duration = Duration::from_secs(1);

/// How long a disk may take for one access, and what is to be said of it when it takes longer.
#[derive(Clone, Debug)]
struct Patience {
    limit: Duration,
    /// `PATH, which holds the metadata of volume N (minor M)`.
    what: String,
    path: String,
}

impl Patience {
    /// Does something on a thread of its own: an access to a disk that hangs has no timeout. The thread ends with the program.
    fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (sender, done) = mpsc::channel();
        std::thread::spawn(move || {
            // Nobody waits any more: nothing is lost.
            let _ = sender.send(act());
        });
        done.recv_timeout(self.limit).map_err(|_| {
            let (what, waited) = (&self.what, self.limit.as_secs());
            let line = format!("{what}, does not answer: nothing came of a read within {waited} s");
            Failure::new(CANNOT_RUN, line).next(format!(
                "timeout 5 dd if={} of=/dev/null bs=4k count=1 iflag=direct   # silent while the disk hangs; dmesg may tell why",
                quoted(&self.path)
            ))
        })
    }
}

/// The device that holds the metadata of a volume.
#[derive(Debug)]
pub(crate) struct Device {
    file: Arc<File>,
    patience: Patience,
    pub(crate) path: String,
    pub(crate) size: ByteLen,
    pub(crate) placement: Placement,
}

impl Device {
    /// Opens the metadata device of a volume, which may take `limit` for each access that reads.
    pub(crate) fn open(
        volume: &ResolvedVolume,
        access: Access,
        limit: Duration,
    ) -> Result<Device, Failure> {
        let (path, _) = metadata_place(volume);
        let placement = match &volume.meta_disk {
            MetaDisk::Internal if volume.disk.is_none() => {
                return Err(Failure::new(
                    USAGE,
                    format!(
                        "volume {} has no disk, so it has no metadata",
                        volume.number
                    ),
                ));
            }
            MetaDisk::Internal => Placement::Internal,
            MetaDisk::Flexible { .. } => Placement::FlexibleExternal,
            MetaDisk::Indexed { index, .. } => {
                let slot = u8::try_from(*index).map_err(|_| {
                    Failure::new(
                        CONFIGURATION,
                        format!("metadata slot {index} of {path} is not in 0..255"),
                    )
                })?;
                Placement::Indexed(slot)
            }
        };
        let cannot =
            |what: &str, error: &io::Error| cannot(volume, what, &path, &error.to_string());
        let patience = Patience {
            limit: limit.max(PATIENCE_MIN),
            what: format!(
                "{path}, which holds the metadata of volume {} (minor {})",
                volume.number, volume.device.minor
            ),
            path: path.clone(),
        };
        let opening = path.clone();
        let opened = patience.run(move || open_file(&opening, access, placement))?;
        let mut file = match opened {
            Ok(Some(file)) => file,
            Ok(None) => {
                let line = format!("{path} is neither a block device nor a file");
                return Err(Failure::new(CANNOT_RUN, line));
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                return Err(busy(volume, &path));
            }
            Err(error) => return Err(cannot("open", &error)),
        };
        let shared = matches!(placement, Placement::Indexed(_));
        if access == Access::Change {
            let operation = if shared {
                FlockOperation::NonBlockingLockShared
            } else {
                FlockOperation::NonBlockingLockExclusive
            };
            rustix::fs::flock(&file, operation).map_err(|_| busy(volume, &path))?;
            if let Placement::Indexed(slot) = placement {
                // The other slots may be in use; this one must not be.
                tandem_daemon::lock_slot(&file, u32::from(slot))
                    .map_err(|_| busy(volume, &path))?;
            }
        }
        let size = file
            .seek(SeekFrom::End(0))
            .map_err(|error| cannot("measure", &error))?;
        Ok(Device {
            file: Arc::new(file),
            patience,
            path,
            size: ByteLen(size),
            placement,
        })
    }

    /// Reads `len` bytes.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Failure> {
        let file = Arc::clone(&self.file);
        let read = self.patience.run(move || {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, offset).map(|()| bytes)
        })?;
        read.map_err(|error| {
            let path = &self.path;
            let line = format!("cannot read {len} bytes of {path} at byte {offset}: {error}");
            Failure::new(CONFIGURATION, line)
        })
    }

    /// Carries steps out, in order.
    pub(crate) fn perform(&self, steps: &[Step]) -> Result<(), Failure> {
        let failed = |what: String, error: &std::io::Error| {
            Failure::new(
                CONFIGURATION,
                format!("cannot {what} {}: {error}", self.path),
            )
        };
        for step in steps {
            let Step::Write(write) = step else {
                self.file
                    .sync_data()
                    .map_err(|error| failed("flush".to_owned(), &error))?;
                continue;
            };
            let mut buffer = vec![0; WRITE_BYTES];
            let mut at = 0;
            loop {
                let filled = write.fill(at, &mut buffer);
                if filled == 0 {
                    break;
                }
                let offset = write.offset.0 + at;
                self.file
                    .write_all_at(&buffer[..filled], offset)
                    .map_err(|error| failed(format!("write at byte {offset} of"), &error))?;
                at += filled as u64;
            }
        }
        Ok(())
    }

    /// Copies a range whose old and new places may overlap.
    pub(crate) fn copy(
        &self,
        from: u64,
        to: u64,
        len: u64,
        order: CopyOrder,
    ) -> Result<(), Failure> {
        let chunk = WRITE_BYTES as u64;
        let count = len.div_ceil(chunk);
        for step in 0..count {
            let at = match order {
                CopyOrder::Ascending => step,
                CopyOrder::Descending => count - 1 - step,
            } * chunk;
            // At most a megabyte.
            let bytes = self.read(from + at, usize::try_from(chunk.min(len - at)).unwrap_or(0))?;
            self.file.write_all_at(&bytes, to + at).map_err(|error| {
                let (path, offset) = (&self.path, to + at);
                let line = format!("cannot write at byte {offset} of {path}: {error}");
                Failure::new(CONFIGURATION, line)
            })?;
        }
        Ok(())
    }

    /// Reads and checks the superblock. The outer failure is the disk's, the inner one that of what stands there.
    pub(crate) fn superblock(
        &self,
    ) -> Result<Result<(Superblock, Layout), SuperblockError>, Failure> {
        let sector = match self.placement.superblock_sector(self.size) {
            Ok(sector) => sector,
            Err(error) => return Ok(Err(error.into())),
        };
        let block = self.read(sector.0 * 512, BLOCK_SIZE)?;
        Ok(Superblock::open(self.placement, self.size, &block))
    }

    /// Whether there is a superblock of some version at this byte.
    pub(crate) fn superblock_version(&self, offset: u64) -> Result<Option<Version>, Failure> {
        Ok(Version::of(&self.read(offset, BLOCK_SIZE)?))
    }

    /// The beginning of the whole device, slots or not.
    pub(crate) fn probe_head(&self) -> Result<Vec<(detect::Probe, Vec<u8>)>, Failure> {
        let head = detect::probes(self.size).into_iter().take(1);
        head.map(|probe| {
            let len = usize::try_from(probe.len.0).unwrap_or(0);
            Ok((probe, self.read(probe.offset.0, len)?))
        })
        .collect()
    }

    /// Reads the whole activity log.
    pub(crate) fn ring(&self, layout: &Layout) -> Result<Vec<u8>, Failure> {
        let len = layout.activity_log_len().0.min(RING_BYTES_MAX);
        // Below 32 MiB, so it fits.
        self.read(
            layout.activity_log_offset().0,
            usize::try_from(len).unwrap_or(0),
        )
    }

    /// What is the volume's own of it: a slot, or all. Start and length.
    pub(crate) fn own_part(&self) -> (u64, ByteLen) {
        match self.placement {
            Placement::Indexed(_) => {
                let end = self.placement.least_device();
                let start = end.0.saturating_sub(SLOT_BYTES);
                (start, ByteLen(self.size.0.min(end.0).saturating_sub(start)))
            }
            Placement::Internal | Placement::FlexibleExternal => (0, self.size),
        }
    }

    /// The parts of what is the volume's own that tell what is on it; their offsets count from its start.
    pub(crate) fn probe(&self) -> Result<Vec<(detect::Probe, Vec<u8>)>, Failure> {
        let (start, own) = self.own_part();
        detect::probes(own)
            .into_iter()
            .map(|probe| {
                let len = usize::try_from(probe.len.0).unwrap_or(0);
                Ok((probe, self.read(start + probe.offset.0, len)?))
            })
            .collect()
    }
}

/// Opens a device or file; `None`: it is neither.
fn open_file(path: &str, access: Access, placement: Placement) -> io::Result<Option<File>> {
    let kind = std::fs::metadata(path)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Ok(None);
    }
    let mut options = OpenOptions::new();
    options.read(true).write(access == Access::Change);
    let shared = matches!(placement, Placement::Indexed(_));
    if access == Access::Change && kind.is_block_device() && !shared {
        // O_EXCL claims a block device: mounted ones and those below another driver are refused.
        options.custom_flags(OFlags::EXCL.bits().cast_signed());
    }
    options.open(path).map(Some)
}

fn cannot(volume: &ResolvedVolume, what: &str, path: &str, error: &str) -> Failure {
    Failure::new(
        CANNOT_RUN,
        format!(
            "cannot {what} the metadata device {path} of volume {} (minor {}): {error}",
            volume.number, volume.device.minor
        ),
    )
    .next(format!("ls -l {path}"))
}

/// The refusal of a disk that somebody uses.
pub(crate) fn busy(volume: &ResolvedVolume, path: &str) -> Failure {
    Failure::new(
        CANNOT_RUN,
        format!("Device '{}' is configured!", volume.device.minor),
    )
    .line(format!(
        "{path} is in use: attached by tandemd, mounted, or held by another program. Nothing was changed."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_that_does_not_end_is_given_up_and_names_the_disk() {
        let patience = Patience {
            limit: Duration::from_millis(50),
            what: "/dev/sdx, which holds the metadata of volume 0 (minor 0)".to_owned(),
            path: "/dev/sdx".to_owned(),
        };
        let (ends, never) = mpsc::channel::<()>();
        let failure = patience.run(move || never.recv().is_ok()).unwrap_err();
        assert_eq!(failure.exit, CANNOT_RUN);
        assert!(failure.lines[0].starts_with("/dev/sdx, which holds"));
        assert!(failure.next.unwrap().contains("if=/dev/sdx "));
        drop(ends);
        assert_eq!(patience.run(|| 7).unwrap(), 7);
    }
}
