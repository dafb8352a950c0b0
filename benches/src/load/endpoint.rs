//! Where a server listens, and the handshake with it (docs/spec/nbd.md, handshake).

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::Failure;

/// A server's socket and the name of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The socket.
    pub address: Address,
    /// The export.
    pub export: String,
}

/// A server's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// In the filesystem.
    Unix(PathBuf),
    /// On the loopback interface.
    Tcp(SocketAddr),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Unix(path) => {
                write!(f, "nbd+unix:///{}?socket={}", self.export, path.display())
            }
            Address::Tcp(address) => write!(f, "nbd://{address}/{}", self.export),
        }
    }
}

/// A connection in transmission.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    /// Bytes of the export.
    pub(super) export_bytes: u64,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix(stream) => stream.as_fd(),
            Socket::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Endpoint {
    /// On a Unix socket.
    pub fn unix(path: PathBuf, export: &str) -> Endpoint {
        Endpoint {
            address: Address::Unix(path),
            export: export.to_owned(),
        }
    }

    /// By TCP.
    pub fn tcp(address: SocketAddr, export: &str) -> Endpoint {
        Endpoint {
            address: Address::Tcp(address),
            export: export.to_owned(),
        }
    }

    /// Connects and shakes hands: whether the export is served.
    ///
    /// # Errors
    /// When it is not.
    pub fn probe(&self) -> Result<u64, Failure> {
        let stream = self.connect(Duration::from_secs(10))?;
        Ok(stream.export_bytes)
    }

    /// Connects and shakes hands; each receive ends after `limit`.
    pub(super) fn connect(&self, limit: Duration) -> Result<Stream, Failure> {
        self.try_connect(limit)
            .map_err(Failure::system(format!("connect to {self}")))
    }

    fn try_connect(&self, limit: Duration) -> io::Result<Stream> {
        match &self.address {
            Address::Unix(path) => {
                let mut stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(limit))?;
                let export_bytes = negotiate(&mut stream, &self.export)?;
                Ok(Stream {
                    socket: Socket::Unix(stream),
                    export_bytes,
                })
            }
            Address::Tcp(address) => {
                let mut stream = TcpStream::connect_timeout(address, limit)?;
                stream.set_read_timeout(Some(limit))?;
                stream.set_nodelay(true)?;
                let export_bytes = negotiate(&mut stream, &self.export)?;
                Ok(Stream {
                    socket: Socket::Tcp(stream),
                    export_bytes,
                })
            }
        }
    }
}

const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
/// No reply to an option is longer than this.
const REPLY_BYTES_MAX: usize = 64 << 10;

/// NBD_OPT_GO without structured replies; the size of the export.
fn negotiate(stream: &mut (impl Read + Write), export: &str) -> io::Result<u64> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if greeting[..16] != *b"NBDMAGICIHAVEOPT" {
        return Err(io::Error::other("the server does not speak newstyle NBD"));
    }
    // Fixed newstyle, no zeroes.
    let mut hello = 3u32.to_be_bytes().to_vec();
    let name = u32::try_from(export.len()).map_err(io::Error::other)?;
    hello.extend_from_slice(b"IHAVEOPT");
    hello.extend_from_slice(&OPTION_GO.to_be_bytes());
    hello.extend_from_slice(&(name + 6).to_be_bytes());
    hello.extend_from_slice(&name.to_be_bytes());
    hello.extend_from_slice(export.as_bytes());
    hello.extend_from_slice(&0u16.to_be_bytes());
    stream.write_all(&hello)?;
    let mut bytes = 0;
    loop {
        let mut head = [0; 20];
        stream.read_exact(&mut head)?;
        let number =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (kind, length) = (number(12), number(16) as usize);
        if length > REPLY_BYTES_MAX {
            return Err(io::Error::other("the server's reply is too long"));
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        match (kind, body.as_slice()) {
            (REPLY_ACK, _) => return Ok(bytes),
            (REPLY_INFO, [0, 0, size @ ..]) => {
                if let Some(size) = size.first_chunk() {
                    bytes = u64::from_be_bytes(*size);
                }
            }
            (REPLY_INFO, _) => {}
            (error, words) => {
                let words = String::from_utf8_lossy(words);
                let text = format!("export refused with {error:#x}: {words}");
                return Err(io::Error::other(text));
            }
        }
    }
}
