//! One of the two sockets of a link, as far as the engine is concerned: bytes in, frames out, and what the system has taken.

use alloc::string::String;

use bytes::{Bytes, BytesMut};
use tandem_protocol::features::Agreed;
use tandem_protocol::packet::Frame;
use tandem_protocol::{Framer, ProtocolError, Socket};

use crate::effect::{Effect, Effects};
use crate::event::SocketId;
use crate::time::Time;

/// One TCP connection to the peer.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Its name.
    pub(crate) id: SocketId,
    pub(super) framer: Framer,
    /// Where heads are put together.
    head: BytesMut,
    /// Bytes handed to the socket since it exists.
    pub(crate) queued: u64,
    /// Bytes of them that the operating system took.
    pub(crate) taken: u64,
    /// When it last took bytes, or was handed the first of those that it has not taken.
    pub(crate) progress: Time,
    /// Timeouts without progress in a row.
    pub(crate) stalled: u32,
    pub(super) paused: bool,
    /// The peer closed it, in words.
    pub(super) ended: Option<String>,
}

impl Stream {
    /// One that this node opened.
    pub(crate) fn dialled(id: SocketId, kind: Socket, now: Time) -> Stream {
        Stream::new(id, Framer::dialled(kind), now)
    }

    /// One that the peer opened.
    pub(crate) fn accepted(id: SocketId, now: Time) -> Stream {
        Stream::new(id, Framer::accepted(), now)
    }

    fn new(id: SocketId, framer: Framer, now: Time) -> Stream {
        Stream {
            id,
            framer,
            head: BytesMut::new(),
            queued: 0,
            taken: 0,
            progress: now,
            stalled: 0,
            paused: false,
            ended: None,
        }
    }

    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.framer.push(bytes);
    }

    pub(crate) fn next(&mut self) -> Result<Option<Frame>, ProtocolError> {
        self.framer.next()
    }

    pub(crate) fn buffered(&self) -> usize {
        self.framer.buffered()
    }

    pub(crate) fn set_agreed(&mut self, agreed: &Agreed) {
        self.framer.set_agreed(agreed);
    }

    /// Puts a frame on its way. A frame that cannot be encoded is a bug of ours: it is not sent, and named.
    pub(crate) fn send(
        &mut self,
        now: Time,
        frame: Frame,
        effects: &mut Effects,
    ) -> Option<ProtocolError> {
        self.head.clear();
        match frame.encode_into(frame.packet.header_kind(), &mut self.head) {
            Ok(payload) => {
                if self.queued == self.taken {
                    self.progress = now;
                    self.stalled = 0;
                }
                let length = self.head.len() + payload.as_ref().map_or(0, Bytes::len);
                self.queued += length as u64;
                effects.push(Effect::Send {
                    socket: self.id,
                    head: Bytes::copy_from_slice(&self.head),
                    payload,
                });
                None
            }
            Err(error) => Some(error),
        }
    }

    /// The operating system took bytes.
    pub(crate) fn took(&mut self, now: Time, bytes: u64) {
        self.taken = self.taken.saturating_add(bytes).min(self.queued);
        self.progress = now;
        self.stalled = 0;
    }

    /// Whether bytes wait to be taken.
    pub(crate) fn is_sending(&self) -> bool {
        self.queued > self.taken
    }
}
