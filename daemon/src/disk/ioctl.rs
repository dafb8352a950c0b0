//! The ioctls and fcntls that rustix has no words for.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;

use rustix::ioctl::{Getter, ioctl, opcode};

/// Size of a block device in bytes.
pub(crate) fn block_bytes(file: &File) -> io::Result<u64> {
    /// BLKGETSIZE64 is declared with `size_t`, but fills 64 bits.
    const BLKGETSIZE64: rustix::ioctl::Opcode = opcode::read::<usize>(0x12, 114);
    // SAFETY: BLKGETSIZE64 writes one u64 through its pointer, and `Getter` passes one.
    unsafe { Ok(ioctl(file, Getter::<BLKGETSIZE64, u64>::new())?) }
}

/// Logical block size of a block device in bytes.
pub(crate) fn logical_block(file: &File) -> io::Result<u32> {
    const BLKSSZGET: rustix::ioctl::Opcode = opcode::none(0x12, 104);
    // SAFETY: BLKSSZGET writes one int through its pointer, and `Getter` passes one.
    unsafe { Ok(ioctl(file, Getter::<BLKSSZGET, u32>::new())?) }
}

/// Locks `length` bytes from `start` for the open file description of `fd`, exclusively and without waiting.
pub(crate) fn lock_range(fd: RawFd, start: u64, length: u64) -> io::Result<()> {
    let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let lock = libc::flock {
        // The constants are small; the fields are 16 bits wide.
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: i64::try_from(start).map_err(out_of_range)?,
        l_len: i64::try_from(length).map_err(out_of_range)?,
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK reads one `struct flock` through its pointer, which lives until the call returns.
    if unsafe { libc::fcntl(fd, libc::F_OFD_SETLK, &raw const lock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
