//! What streams to peers and to clients have in common: a queue of pieces that leaves with vectored writes, and reads into a shared
//! buffer.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// Pieces handed to the system in one call; Linux takes 1024.
const PIECES_MAX: usize = 256;

/// Most calls have no more: a packet or two. Room for all of them would be written with every call.
const FEW_PIECES: usize = 8;

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

    /// Reads what is there into a slice; `Ok(0)` is the end of the stream. Registers for a wake-up if nothing is there.
    pub(crate) fn poll_read_slice(
        &mut self,
        context: &mut Context<'_>,
        slice: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        pin!(self.read(slice)).poll(context)
    }
}

/// A read that leaves room has emptied the socket: tokio then waits for the next edge of readiness, and no system call is spent on
/// finding nothing. The edge is counted from before the read, so what comes meanwhile is not missed.
impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        loop {
            let read = match stream {
                Stream::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
                Stream::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            };
            match read {
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

/// The buffer that all streams of a loop read into.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffer {
    buffer: BytesMut,
}

impl ReadBuffer {
    /// Reads what is there, at most `most` bytes; empty bytes are the end of the stream.
    pub(crate) fn poll_read(
        &mut self,
        stream: &mut Stream,
        context: &mut Context<'_>,
        most: usize,
    ) -> Poll<io::Result<Bytes>> {
        if self.buffer.capacity() - self.buffer.len() < READ_ROOM_MIN {
            self.buffer.reserve(READ_BUFFER_BYTES);
        }
        let mut room = (&mut self.buffer).limit(most);
        let read = pin!(stream.read_buf(&mut room)).poll(context);
        match read {
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
            let written = if self.pieces.len() <= FEW_PIECES {
                self.write_once::<FEW_PIECES>(stream)
            } else {
                self.write_once::<PIECES_MAX>(stream)
            };
            match written {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(count) => taken += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    fn write_once<const PIECES: usize>(&mut self, stream: &Stream) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); PIECES];
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

#[cfg(test)]
mod tests;
