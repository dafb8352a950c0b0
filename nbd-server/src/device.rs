//! A small blocking server around [`Session`]: one thread, one client, one request at a time. It exists for this
//! crate's tests, its example and for trying clients; a real server keeps many requests in flight.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::error::{End, ErrorCode, NbdError};
use crate::export::{Access, Directory, ExportInfo, ListedExport, Refusal};
use crate::request::{Data, Extent, Request, RequestKind};
use crate::session::{Event, Purpose, Session};

/// Bytes that one read from the socket may yield: a few small writes with their heads.
const READ_LEN: usize = 64 * 1024;

/// A device that is read and written in place. Ranges are checked before it is called.
pub trait BlockDevice: Send + Sync {
    /// Fills `block` from `offset` on.
    fn read_at(&self, offset: u64, block: &mut [u8]) -> io::Result<()>;
    /// Writes `data` at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes every completed write durable.
    fn flush(&self) -> io::Result<()>;
}

/// A device in memory.
#[derive(Debug)]
pub struct MemoryDevice {
    bytes: Mutex<Vec<u8>>,
}

impl MemoryDevice {
    /// `size` bytes of zeroes.
    pub fn new(size: usize) -> MemoryDevice {
        MemoryDevice {
            bytes: Mutex::new(vec![0; size]),
        }
    }

    fn with<T>(
        &self,
        offset: u64,
        length: usize,
        act: impl FnOnce(&mut [u8]) -> T,
    ) -> io::Result<T> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let range = start
            .checked_add(length)
            .and_then(|end| bytes.get_mut(start..end));
        range
            .map(act)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl BlockDevice for MemoryDevice {
    fn read_at(&self, offset: u64, block: &mut [u8]) -> io::Result<()> {
        self.with(offset, block.len(), |bytes| block.copy_from_slice(bytes))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(offset, data.len(), |bytes| bytes.copy_from_slice(data))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A regular file or block device.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
}

impl FileDevice {
    /// Serves `file`, which was opened for reading and, if it is exported so, for writing.
    pub fn new(file: File) -> FileDevice {
        FileDevice { file }
    }
}

impl BlockDevice for FileDevice {
    fn read_at(&self, offset: u64, block: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(block, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Exports by name. The empty name means the only export, if there is exactly one.
#[derive(Clone, Default)]
pub struct Exports {
    exports: BTreeMap<String, (ExportInfo, Arc<dyn BlockDevice>)>,
    stopping: Arc<AtomicBool>,
}

impl Exports {
    /// Adds an export under its canonical name.
    pub fn add(&mut self, info: ExportInfo, device: Arc<dyn BlockDevice>) {
        self.exports.insert(info.name.clone(), (info, device));
    }

    /// New requests on all connections get ESHUTDOWN from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }
}

impl Directory for Exports {
    fn list(&self) -> Result<Vec<ListedExport>, Refusal> {
        let line = |info: &ExportInfo| ListedExport {
            name: info.name.clone(),
            description: info.description.clone(),
        };
        Ok(self.exports.values().map(|(info, _)| line(info)).collect())
    }

    fn find(&self, name: &str, _purpose: Purpose) -> Result<ExportInfo, Refusal> {
        let found = match self.exports.values().next() {
            Some(only) if name.is_empty() && self.exports.len() == 1 => Some(only),
            _ => self.exports.get(name),
        };
        found
            .map(|(info, _)| info.clone())
            .ok_or_else(|| Refusal::unknown(format!("there is no export \"{name}\"")))
    }
}

/// Serves one client until the session ends, on a blocking stream.
pub fn serve<S: Read + Write>(mut stream: S, exports: &Exports) -> io::Result<End> {
    let mut session = Session::default();
    let mut device: Option<Arc<dyn BlockDevice>> = None;
    loop {
        if exports.stopping.load(Ordering::SeqCst) {
            session.shutdown("the server is stopping");
        }
        let mut end = None;
        while let Some(event) = session.next_event() {
            match event {
                Event::Query(query) => {
                    session
                        .answer_from(exports, &query)
                        .map_err(io::Error::other)?;
                }
                Event::Selected { export } => {
                    device = exports
                        .exports
                        .get(&export)
                        .map(|(_, device)| device.clone());
                }
                Event::Request(Request { handle, kind }) => {
                    let result = match &device {
                        Some(device) => carry_out(device.as_ref(), kind),
                        None => Err(NbdError::io("the export is gone")),
                    };
                    session.reply(handle, result).map_err(io::Error::other)?;
                }
                Event::Ended(reason) => end = Some(reason),
            }
        }
        let sent = send(&mut stream, &mut session);
        if let Some(end) = end {
            // The client may be gone already.
            return Ok(end);
        }
        sent?;
        receive(&mut stream, &mut session)?;
    }
}

fn receive<S: Read>(stream: &mut S, session: &mut Session) -> io::Result<()> {
    if let Some(wanted) = session.payload_wanted() {
        let mut block = vec![0; wanted.length as usize];
        let have = session
            .take_payload_prefix(&mut block)
            .map_err(io::Error::other)?;
        return match stream.read_exact(&mut block[have..]) {
            Ok(()) => session
                .supply_payload(Bytes::from(block))
                .map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                session.end_of_stream();
                Ok(())
            }
            Err(error) => Err(error),
        };
    }
    let mut buffer = BytesMut::zeroed(READ_LEN);
    match stream.read(&mut buffer)? {
        0 => session.end_of_stream(),
        n => {
            buffer.truncate(n);
            session.feed(buffer.freeze());
        }
    }
    Ok(())
}

/// Sends all that waits, with as few system calls as vectored writes allow.
fn send<S: Write>(stream: &mut S, session: &mut Session) -> io::Result<()> {
    let mut pieces = Vec::new();
    session.take_output(&mut pieces);
    let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match stream.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut rest, n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.flush()
}

fn carry_out(device: &dyn BlockDevice, kind: RequestKind) -> Result<Data, NbdError> {
    let flush_if = |fua: bool| if fua { device.flush() } else { Ok(()) };
    let done = match kind {
        RequestKind::Read { offset, length } => {
            let mut block = BytesMut::zeroed(length as usize);
            let read = device.read_at(offset, &mut block);
            return read
                .map(|()| Data::Bytes(block.freeze()))
                .map_err(|error| nbd_error(&error));
        }
        RequestKind::Write {
            offset,
            payload,
            fua,
        } => device
            .write_at(offset, &payload)
            .and_then(|()| flush_if(fua)),
        RequestKind::Flush => device.flush(),
        // There is nothing faster to read from.
        RequestKind::Cache { .. } => Ok(()),
        RequestKind::BlockStatus {
            length, contexts, ..
        } => {
            // All of it is data, as far as this adapter knows.
            let data = Extent {
                length: u64::from(length),
                flags: 0,
            };
            return Ok(Data::Status(vec![vec![data]; contexts.len()]));
        }
        // A hint, and this adapter has no way to discard.
        RequestKind::Trim { fua, .. } => flush_if(fua),
        RequestKind::WriteZeroes {
            fast_zero: true, ..
        } => {
            let text = "zeroes are written as data here";
            return Err(NbdError::new(ErrorCode::NotSup, text));
        }
        RequestKind::WriteZeroes {
            offset,
            length,
            fua,
            ..
        } => write_zeroes(device, offset, u64::from(length)).and_then(|()| flush_if(fua)),
    };
    done.map(|()| Data::None).map_err(|error| nbd_error(&error))
}

fn write_zeroes(device: &dyn BlockDevice, mut offset: u64, mut left: u64) -> io::Result<()> {
    let zeroes = [0; READ_LEN];
    while left > 0 {
        let here = left.min(READ_LEN as u64);
        device.write_at(offset, &zeroes[..here as usize])?;
        offset += here;
        left -= here;
    }
    Ok(())
}

fn nbd_error(error: &io::Error) -> NbdError {
    let code = error
        .raw_os_error()
        .map_or(ErrorCode::Io, ErrorCode::from_errno);
    NbdError::new(code, format!("the device failed: {error}"))
}

/// Facts of a writable or read-only export with every feature, 512-byte sectors and odd requests served.
pub fn plain_info(name: &str, size: u64, access: Access) -> ExportInfo {
    ExportInfo {
        name: name.to_owned(),
        description: String::new(),
        size,
        access,
        features: crate::Features::all(),
        block_sizes: crate::BlockSizes::SECTORS,
        unaligned: crate::Unaligned::Served,
        contexts: vec!["base:allocation".to_owned()],
    }
}
