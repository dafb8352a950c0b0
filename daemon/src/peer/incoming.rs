//! How a stream is received: small packets as they come, large payloads straight into the blocks that go to the disk.
//!
//! While large payloads follow one another, as in a resync, what stands between two of them is read by itself, so that the next one begins
//! a read of its own. However it is read, the engine gets every byte in its order; it only finds no seam in a payload, and copies nothing.

use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use tandem_protocol::framing::PendingPayload;

use crate::disk::pool::{Block, Pool};
use crate::socket::{ReadBuffer, Stream};

/// Least payload in bytes that is received by itself: copying a shorter one costs no more than the reads and the turn that this takes.
const PAYLOAD_BYTES_MIN: usize = 64 << 10;

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// The next bytes of the stream.
    Bytes(Bytes),
    /// A part of a payload, and nothing more is there now.
    Part,
    /// The end of the stream. A payload that was not complete is dropped.
    End,
}

#[derive(Debug)]
enum Next {
    /// The engine must say first.
    Unknown,
    /// What is there, at most so many bytes; [`usize::MAX`]: a buffer full.
    Pieces(usize),
    /// A payload, of which so many bytes are there.
    Payload(Block, usize),
}

/// The receiving half of a stream.
#[derive(Debug)]
pub(super) struct Incoming {
    next: Next,
    /// Bytes that were between the last large payload and the one before it; 0 if none has come.
    between: usize,
}

impl Incoming {
    pub(super) fn new() -> Incoming {
        Incoming {
            next: Next::Unknown,
            between: 0,
        }
    }

    /// Says what the stream is in the middle of, when the engine has everything that was read.
    pub(super) fn expect(&mut self, pending: Option<PendingPayload>, pool: &Pool) {
        if matches!(self.next, Next::Payload(..)) {
            return;
        }
        let large = |payload: &PendingPayload| {
            payload.length >= PAYLOAD_BYTES_MIN && payload.buffered < payload.length
        };
        self.next = match pending.filter(large) {
            Some(payload) => {
                self.between = payload.head;
                match payload.buffered {
                    0 => Next::Payload(pool.block(payload.length), 0),
                    buffered => Next::Pieces(payload.length - buffered),
                }
            }
            None => self.after_payload().unwrap_or(Next::Pieces(usize::MAX)),
        };
    }

    fn after_payload(&mut self) -> Option<Next> {
        let between = std::mem::take(&mut self.between);
        (between > 0).then_some(Next::Pieces(between))
    }

    /// Whether [`Incoming::expect`] has to be called before the next read.
    pub(super) fn asks(&self) -> bool {
        matches!(self.next, Next::Unknown)
    }

    /// Reads what is there. Registers for a wake-up when nothing (more) is, also with [`Received::Part`].
    pub(super) fn poll_read(
        &mut self,
        stream: &mut Stream,
        context: &mut Context<'_>,
        buffer: &mut ReadBuffer,
    ) -> Poll<io::Result<Received>> {
        let most = match &mut self.next {
            Next::Payload(block, done) => {
                let before = *done;
                let read = fill(block, done, stream, context);
                let grown = *done > before;
                return match read {
                    Poll::Pending if grown => Poll::Ready(Ok(Received::Part)),
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Ok(true)) => Poll::Ready(Ok(self.payload_complete())),
                    Poll::Ready(Ok(false)) => Poll::Ready(Ok(Received::End)),
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                };
            }
            Next::Pieces(most) => *most,
            Next::Unknown => usize::MAX,
        };
        buffer.poll_read(stream, context, most).map_ok(|bytes| {
            if most != usize::MAX {
                self.next = Next::Unknown;
            }
            if bytes.is_empty() {
                Received::End
            } else {
                Received::Bytes(bytes)
            }
        })
    }

    fn payload_complete(&mut self) -> Received {
        let next = self.after_payload().unwrap_or(Next::Unknown);
        match std::mem::replace(&mut self.next, next) {
            Next::Payload(block, _) => Received::Bytes(block.freeze()),
            Next::Pieces(_) | Next::Unknown => Received::Bytes(Bytes::new()),
        }
    }
}

/// Reads until the block is full (true), the stream ends (false), or nothing more is there.
fn fill(
    block: &mut Block,
    done: &mut usize,
    stream: &mut Stream,
    context: &mut Context<'_>,
) -> Poll<io::Result<bool>> {
    loop {
        let rest = block.as_mut().get_mut(*done..).unwrap_or_default();
        if rest.is_empty() {
            return Poll::Ready(Ok(true));
        }
        match stream.poll_read_slice(context, rest) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) => return Poll::Ready(Ok(false)),
            Poll::Ready(Ok(count)) => *done += count,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
        }
    }
}
