//! A small NBD client for load: one request at a time on one connection, simple replies. It shares no code with the
//! server.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A connection to an export.
#[derive(Debug)]
pub struct Client<S = UnixStream> {
    stream: S,
    handle: u64,
    /// Size of the export in bytes.
    pub bytes: u64,
}

/// Whether a write must be durable when it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fua {
    /// Not yet.
    No,
    /// Yes.
    Yes,
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;

impl Client {
    /// Connects to `export` on a Unix socket. Every answer must come within `limit`.
    ///
    /// # Errors
    /// Those of the stream; `PermissionDenied` when the server refuses the export, with its words.
    pub fn connect(socket: &Path, export: &str, limit: Duration) -> io::Result<Client> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        Client::over(stream, export)
    }

    /// A handle with which somebody else can break this connection.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn breaker(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }
}

impl Client<TcpStream> {
    /// As [`Client::connect`], by TCP.
    ///
    /// # Errors
    /// As there.
    pub fn connect_tcp(server: SocketAddr, export: &str, limit: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&server, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Client::over(stream, export)
    }
}

impl<S: Read + Write> Client<S> {
    fn over(stream: S, export: &str) -> io::Result<Self> {
        let mut client = Client {
            stream,
            handle: 0,
            bytes: 0,
        };
        client.negotiate(export)?;
        Ok(client)
    }

    fn negotiate(&mut self, export: &str) -> io::Result<()> {
        let greeting: [u8; 18] = self.take()?;
        if greeting[..16] != *b"NBDMAGICIHAVEOPT" {
            return Err(broken("no newstyle greeting"));
        }
        self.stream.write_all(&3u32.to_be_bytes())?; // Fixed newstyle, no zeroes.
        let mut data = (export.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(export.as_bytes());
        data.extend_from_slice(&0u16.to_be_bytes());
        let mut option = b"IHAVEOPT".to_vec();
        option.extend_from_slice(&7u32.to_be_bytes()); // GO
        option.extend_from_slice(&(data.len() as u32).to_be_bytes());
        option.extend_from_slice(&data);
        self.stream.write_all(&option)?;
        loop {
            let head: [u8; 20] = self.take()?;
            let kind = u32::from_be_bytes([head[12], head[13], head[14], head[15]]);
            let length = u32::from_be_bytes([head[16], head[17], head[18], head[19]]);
            let mut body = vec![0; length.min(1 << 16) as usize];
            self.stream.read_exact(&mut body)?;
            match kind {
                1 => return Ok(()),
                3 if body.len() >= 10 && body[..2] == [0, 0] => {
                    let mut size = [0; 8];
                    size.copy_from_slice(&body[2..10]);
                    self.bytes = u64::from_be_bytes(size);
                }
                3 => {}
                error => {
                    let words = String::from_utf8_lossy(&body).into_owned();
                    let text = format!("export {export} refused ({error:#x}): {words}");
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
                }
            }
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn request(
        &mut self,
        flags: u16,
        kind: u16,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> io::Result<()> {
        self.handle += 1;
        let mut head = Vec::with_capacity(28 + data.len());
        head.extend_from_slice(&0x2560_9513u32.to_be_bytes());
        head.extend_from_slice(&flags.to_be_bytes());
        head.extend_from_slice(&kind.to_be_bytes());
        head.extend_from_slice(&self.handle.to_be_bytes());
        head.extend_from_slice(&offset.to_be_bytes());
        head.extend_from_slice(&length.to_be_bytes());
        head.extend_from_slice(data);
        self.stream.write_all(&head)?;
        if kind == DISCONNECT {
            return Ok(());
        }
        let reply: [u8; 16] = self.take()?;
        if reply[..4] != 0x6744_6698u32.to_be_bytes() {
            return Err(broken("no simple reply"));
        }
        if reply[8..] != self.handle.to_be_bytes() {
            return Err(broken("reply to another request"));
        }
        match u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]]) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error as i32)),
        }
    }

    /// Writes.
    ///
    /// # Errors
    /// The server's error, or the stream's.
    pub fn write(&mut self, offset: u64, data: &[u8], fua: Fua) -> io::Result<()> {
        let flags = u16::from(fua == Fua::Yes);
        self.request(flags, WRITE, offset, data.len() as u32, data)
    }

    /// Reads.
    ///
    /// # Errors
    /// The server's error, or the stream's.
    pub fn read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        self.request(0, READ, offset, length, &[])?;
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// Flushes.
    ///
    /// # Errors
    /// The server's error, or the stream's.
    pub fn flush(&mut self) -> io::Result<()> {
        self.request(0, FLUSH, 0, 0, &[])
    }

    /// Discards.
    ///
    /// # Errors
    /// The server's error, or the stream's.
    pub fn trim(&mut self, offset: u64, length: u32) -> io::Result<()> {
        self.request(0, TRIM, offset, length, &[])
    }

    /// Writes zeroes.
    ///
    /// # Errors
    /// The server's error, or the stream's.
    pub fn write_zeroes(&mut self, offset: u64, length: u32) -> io::Result<()> {
        self.request(0, WRITE_ZEROES, offset, length, &[])
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// The stream's.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.request(0, DISCONNECT, 0, 0, &[])
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
