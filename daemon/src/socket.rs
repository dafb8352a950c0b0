//! What streams to peers and to clients have in common: a queue of pieces that leaves with vectored writes, and reads into a shared
//! buffer.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::{TcpStream, UnixStream};

/// Pieces handed to the system in one call; Linux takes 1024.
const PIECES_MAX: usize = 256;

/// Size of the buffer that all reads of a loop share. A piece cut out of it keeps it alive.
const READ_BUFFER_BYTES: usize = 256 << 10;

/// The least room worth a read.
const READ_ROOM_MIN: usize = 16 << 10;

/// A connected stream of either kind.
#[derive(Debug)]
pub(crate) enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Stream {
    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_read_ready(context),
            Stream::Unix(stream) => stream.poll_read_ready(context),
        }
    }

    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_write_ready(context),
            Stream::Unix(stream) => stream.poll_write_ready(context),
        }
    }

    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.try_write_vectored(pieces),
            Stream::Unix(stream) => stream.try_write_vectored(pieces),
        }
    }

    fn try_read_buf(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.try_read_buf(buffer),
            Stream::Unix(stream) => stream.try_read_buf(buffer),
        }
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.try_read(buffer),
            Stream::Unix(stream) => stream.try_read(buffer),
        }
    }

    /// Reads into `buffer` as `read` does it, registering for a wake-up if nothing is there. `Ok(0)` is the end of the stream.
    fn poll_io<R>(
        &self,
        context: &mut Context<'_>,
        mut read: impl FnMut(&Stream) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            match self.poll_read_ready(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => match read(self) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => return Poll::Ready(other),
                },
            }
        }
    }

    /// Reads what is there into a slice.
    pub(crate) fn poll_read_slice(
        &self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_io(context, |stream| stream.try_read(buffer))
    }
}

/// The buffer that all streams of a loop read into.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffer {
    buffer: BytesMut,
}

impl ReadBuffer {
    /// Reads what is there; empty bytes are the end of the stream.
    pub(crate) fn poll_read(
        &mut self,
        stream: &Stream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Bytes>> {
        if self.buffer.capacity() - self.buffer.len() < READ_ROOM_MIN {
            self.buffer.reserve(READ_BUFFER_BYTES);
        }
        let buffer = &mut self.buffer;
        match stream.poll_io(context, |stream| stream.try_read_buf(buffer)) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(_)) => Poll::Ready(Ok(self.buffer.split().freeze())),
        }
    }
}

/// Pieces on their way out, in order.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl SendQueue {
    /// Adds a piece.
    pub(crate) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Bytes that the system has not taken.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether everything was taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Drops what was not taken.
    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.bytes = 0;
    }

    /// Hands as much as possible to the system and returns how many bytes it took; registers for a wake-up if some are left.
    pub(crate) fn flush(&mut self, stream: &Stream, context: &mut Context<'_>) -> io::Result<u64> {
        let mut taken = 0;
        while !self.pieces.is_empty() {
            match stream.poll_write_ready(context) {
                Poll::Pending => break,
                Poll::Ready(ready) => ready?,
            }
            match self.write_once(stream) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(count) => taken += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    fn write_once(&mut self, stream: &Stream) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); PIECES_MAX];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        let taken = stream.try_write_vectored(slices.get(..count).unwrap_or_default())?;
        self.advance(taken);
        Ok(taken)
    }

    fn advance(&mut self, mut taken: usize) {
        self.bytes -= taken;
        while taken > 0 {
            let Some(first) = self.pieces.front_mut() else {
                return;
            };
            if taken < first.len() {
                first.advance(taken);
                return;
            }
            taken -= first.len();
            self.pieces.pop_front();
        }
    }
}
