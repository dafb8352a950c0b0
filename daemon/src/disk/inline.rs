//! Plain system calls that do one I/O from end to end: for memory filesystems on the loop's own thread, for everything else on a
//! helper thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;
use tandem_replicator::{Fua, Unmap};

use super::backing::Device;
use super::pool::{Block, Pool, is_aligned};

/// Bytes of zeroes written by one system call where a device cannot zero by itself.
const ZERO_CHUNK: usize = 1 << 20;

/// Reads exactly `length` bytes.
pub(crate) fn read(device: &Device, pool: &Pool, offset: u64, length: usize) -> io::Result<Block> {
    let mut block = pool.block(length);
    device.file.read_exact_at(block.as_mut(), offset)?;
    Ok(block)
}

/// Writes all of `data`; durable when this returns, if `fua` says so.
pub(crate) fn write(
    device: &Device,
    pool: &Pool,
    offset: u64,
    data: &[u8],
    fua: Fua,
) -> io::Result<()> {
    if is_aligned(data, device.align) {
        device.file.write_all_at(data, offset)?;
    } else {
        device.file.write_all_at(pool.copy(data).as_ref(), offset)?;
    }
    durable(&device.file, fua)
}

/// Makes every completed write durable.
pub(crate) fn flush(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fdatasync(file)?)
}

fn durable(file: &File, fua: Fua) -> io::Result<()> {
    match fua {
        Fua::Yes => flush(file),
        Fua::No => Ok(()),
    }
}

/// Zeroes a range, giving the blocks back if `unmap` allows it and the device can.
pub(crate) fn zero(
    device: &Device,
    pool: &Pool,
    (offset, length): (u64, u64),
    unmap: Unmap,
    fua: Fua,
) -> io::Result<()> {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let range = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    let modes: &[FallocateFlags] = match unmap {
        Unmap::Allowed => &[punch, range],
        Unmap::No => &[range],
    };
    for mode in modes {
        match rustix::fs::fallocate(&device.file, *mode, offset, length) {
            Ok(()) => return durable(&device.file, fua),
            // Not this way on this device: the next one.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    write_zeroes(device, pool, offset, length)?;
    durable(&device.file, fua)
}

fn write_zeroes(device: &Device, pool: &Pool, mut offset: u64, mut length: u64) -> io::Result<()> {
    let mut zeroes = pool.block(ZERO_CHUNK);
    zeroes.as_mut().fill(0);
    while length > 0 {
        let chunk = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(ZERO_CHUNK);
        let part = zeroes.as_ref().get(..chunk).unwrap_or_default();
        device.file.write_all_at(part, offset)?;
        offset += chunk as u64;
        length -= chunk as u64;
    }
    Ok(())
}
