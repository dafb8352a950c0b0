//! A small NBD client of the demo's own: fixed newstyle, simple replies, several writes in flight
//! (docs/spec/nbd.md 2 to 5). It shares no code with the server that it tests.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use thiserror::Error;

use crate::place::Place;

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 0x8000_0000;
const INFO_EXPORT: u16 = 0;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;

/// Longest option reply that is accepted, in bytes.
const REPLY_BYTES_MAX: u32 = 64 << 10;

/// A server that says nothing for so long is hung.
const PATIENCE: Duration = Duration::from_secs(30);

/// What can go wrong.
#[derive(Debug, Error)]
pub(crate) enum NbdError {
    /// The URI is of no kind that is understood.
    #[error("cannot understand the NBD URI {0}")]
    Uri(String),
    /// The connection broke.
    #[error("NBD connection: {0}")]
    Io(#[from] io::Error),
    /// The server refused the export.
    #[error("the NBD server refuses the export: {0}")]
    Refused(String),
    /// The server broke the protocol.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(String),
    /// A request failed.
    #[error("NBD request failed with error {0}")]
    Request(u32),
}

/// The answer to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// As given with the request.
    pub(crate) handle: u64,
    /// 0 is success, else an errno.
    pub(crate) error: u32,
}

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.read(buffer),
            Socket::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.write(bytes),
            Socket::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One connection.
pub(crate) struct NbdClient {
    socket: Socket,
    size: u64,
}

impl NbdClient {
    /// Connects to an export.
    pub(crate) fn connect(uri: &str) -> Result<NbdClient, NbdError> {
        let place = Place::parse(uri).ok_or_else(|| NbdError::Uri(uri.to_owned()))?;
        let socket = match &place.unix {
            Some(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Socket::Unix(stream)
            }
            None => {
                let stream = TcpStream::connect(&place.address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Socket::Tcp(stream)
            }
        };
        let mut client = NbdClient { socket, size: 0 };
        client.handshake(&place.export)?;
        Ok(client)
    }

    /// Size of the export in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    fn handshake(&mut self, export: &str) -> Result<(), NbdError> {
        let magic = self.u64()?;
        let kind = self.u64()?;
        if (magic, kind) != (NBDMAGIC, IHAVEOPT) {
            return Err(NbdError::Protocol(format!(
                "greeting {magic:016x} {kind:016x}"
            )));
        }
        let _flags = self.u16()?;
        let name = export.as_bytes();
        // A name comes from an URI of the daemon: far below 4 GiB.
        let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
        let mut hello = FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes().to_vec();
        hello.extend(IHAVEOPT.to_be_bytes());
        hello.extend(OPT_GO.to_be_bytes());
        hello.extend((length + 6).to_be_bytes());
        hello.extend(length.to_be_bytes());
        hello.extend(name);
        hello.extend(0u16.to_be_bytes());
        self.socket.write_all(&hello)?;
        loop {
            if self.option_reply()? {
                return Ok(());
            }
        }
    }

    /// One reply to GO; true when transmission begins.
    fn option_reply(&mut self) -> Result<bool, NbdError> {
        let magic = self.u64()?;
        if magic != OPTION_REPLY {
            return Err(NbdError::Protocol(format!("option reply {magic:016x}")));
        }
        let _option = self.u32()?;
        let kind = self.u32()?;
        let length = self.u32()?;
        if length > REPLY_BYTES_MAX {
            return Err(NbdError::Protocol(format!("{length} bytes of reply")));
        }
        let mut data = vec![0; usize::try_from(length).unwrap_or(0)];
        self.socket.read_exact(&mut data)?;
        if kind >= REP_ERROR {
            return Err(NbdError::Refused(
                String::from_utf8_lossy(&data).into_owned(),
            ));
        }
        if kind == REP_INFO
            && let Some(([first, second], rest)) = data.split_first_chunk::<2>()
            && u16::from_be_bytes([*first, *second]) == INFO_EXPORT
            && let Some((size, _)) = rest.split_first_chunk::<8>()
        {
            self.size = u64::from_be_bytes(*size);
        }
        Ok(kind == REP_ACK)
    }

    fn u16(&mut self) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.socket.read_exact(&mut bytes)?;
        Ok(u16::from_be_bytes(bytes))
    }

    fn u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.socket.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.socket.read_exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }

    fn request(&mut self, kind: u16, handle: u64, offset: u64, length: u32) -> [u8; 28] {
        let mut head = [0; 28];
        head[0..4].copy_from_slice(&REQUEST.to_be_bytes());
        head[6..8].copy_from_slice(&kind.to_be_bytes());
        head[8..16].copy_from_slice(&handle.to_be_bytes());
        head[16..24].copy_from_slice(&offset.to_be_bytes());
        head[24..28].copy_from_slice(&length.to_be_bytes());
        head
    }

    /// Sends a write; its answer comes by [`NbdClient::answer`].
    pub(crate) fn send_write(
        &mut self,
        handle: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<(), NbdError> {
        let length = u32::try_from(data.len()).map_err(|_| NbdError::Request(22))?;
        let mut packet = self.request(WRITE, handle, offset, length).to_vec();
        packet.extend_from_slice(data);
        self.socket.write_all(&packet)?;
        Ok(())
    }

    /// The next answer to a write.
    pub(crate) fn answer(&mut self) -> Result<Answer, NbdError> {
        let magic = self.u32()?;
        if magic != SIMPLE_REPLY {
            return Err(NbdError::Protocol(format!("reply {magic:08x}")));
        }
        let error = self.u32()?;
        let handle = self.u64()?;
        Ok(Answer { handle, error })
    }

    fn whole(&mut self, kind: u16, offset: u64, length: u32) -> Result<(), NbdError> {
        const HANDLE: u64 = u64::MAX;
        let head = self.request(kind, HANDLE, offset, length);
        self.socket.write_all(&head)?;
        let answer = self.answer()?;
        if answer.handle != HANDLE {
            let got = answer.handle;
            return Err(NbdError::Protocol(format!("answer to request {got}")));
        }
        match answer.error {
            0 => Ok(()),
            error => Err(NbdError::Request(error)),
        }
    }

    /// Reads; nothing else may be in flight.
    pub(crate) fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), NbdError> {
        let length = u32::try_from(buffer.len()).map_err(|_| NbdError::Request(22))?;
        self.whole(READ, offset, length)?;
        self.socket.read_exact(buffer)?;
        Ok(())
    }

    /// Makes everything that was answered durable; nothing else may be in flight.
    pub(crate) fn flush(&mut self) -> Result<(), NbdError> {
        self.whole(FLUSH, 0, 0)
    }

    /// Says good-bye.
    pub(crate) fn disconnect(mut self) {
        let head = self.request(DISCONNECT, 0, 0, 0);
        // A server that is gone needs no good-bye.
        let _ = self.socket.write_all(&head);
    }
}
