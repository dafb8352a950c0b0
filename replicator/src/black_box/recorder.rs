//! [`Recorder`]: a bounded memory of the last events, and on demand a stream of all of them.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use bincode::enc::write::Writer;
use tandem_protocol::blanking::Blanker;

use super::marks::{Mark, mark};
use super::past::Past;
use super::{
    CUT, DONE, ENTRY_BYTES_MAX, Extent, FAILED, FORM, FORMAT_VERSION, HAPPENED, Head, MAGIC,
    RING_BYTES_MAX, STREAM_BYTES_MAX, put_length,
};
use crate::effect::Effect;
use crate::event::{Event, SocketId};
use crate::options::{ResourceOptions, VolumeOptions};
use crate::time::Time;

/// Bytes of one piece of the ring: the oldest piece goes as a whole.
const CHUNK_BYTES: usize = 64 << 10;

/// What becomes of entries besides the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streaming {
    /// Nothing.
    Off,
    /// They wait for [`Recorder::take_stream`].
    On,
    /// More than [`STREAM_BYTES_MAX`] waited: the rest is left out.
    Overrun,
}

#[derive(Debug)]
struct Chunk {
    bytes: Vec<u8>,
    events: u64,
}

/// Records one engine.
#[derive(Debug)]
pub struct Recorder {
    resource: String,
    volumes: Vec<VolumeOptions>,
    streams: BTreeMap<SocketId, Blanker>,
    chunks: VecDeque<Chunk>,
    bytes: usize,
    events: u64,
    lost: u64,
    scratch: Vec<u8>,
    spare: Vec<u8>,
    marks: Vec<Mark>,
    stream: Vec<u8>,
    streaming: Streaming,
}

struct Sink<'a>(&'a mut Vec<u8>);

impl Writer for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Appends a value. A vector takes everything: there is nothing that could go wrong.
fn put(out: &mut Vec<u8>, value: impl bincode::Encode) {
    let written = bincode::encode_into_writer(value, Sink(out), FORM);
    debug_assert!(written.is_ok(), "a vector takes everything");
}

impl Recorder {
    /// For an engine that is made with these options, before its first event.
    #[must_use]
    pub fn new(options: &ResourceOptions) -> Recorder {
        Recorder {
            resource: options.name.clone(),
            volumes: options.volumes.clone(),
            streams: BTreeMap::new(),
            chunks: VecDeque::new(),
            bytes: 0,
            events: 0,
            lost: 0,
            scratch: Vec::new(),
            spare: Vec::new(),
            marks: Vec::new(),
            stream: Vec::new(),
            streaming: Streaming::Off,
        }
    }

    /// Before the first event: every entry is kept for [`Recorder::take_stream`], too.
    pub fn start_stream(&mut self) {
        self.streaming = Streaming::On;
    }

    /// Events recorded so far.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// How much of the history the ring still holds.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        match self.lost {
            0 => Extent::Whole,
            lost => Extent::Tail { lost },
        }
    }

    /// Notes an event before the engine handles it.
    pub fn happened(&mut self, now: Time, event: &Event) {
        let past = Past::of(event, &mut self.streams, &mut self.spare);
        self.begin(HAPPENED);
        put(&mut self.scratch, (now, &past));
        self.end(1);
        if self.spare.capacity() == 0 {
            self.spare = past.into_spare();
        }
    }

    /// Notes what the engine wanted because of the event noted last, and its tape.
    pub fn done(&mut self, tape: &[u8], effects: &[Effect]) {
        let mut marks = core::mem::take(&mut self.marks);
        marks.extend(effects.iter().map(mark));
        self.begin(DONE);
        put(&mut self.scratch, (tape, marks.as_slice()));
        self.end(0);
        marks.clear();
        self.marks = marks;
    }

    /// Notes that the engine failed by an assertion while it handled the event noted last.
    pub fn failed(&mut self, tape: &[u8], text: &str) {
        self.begin(FAILED);
        put(&mut self.scratch, (tape, text));
        self.end(0);
    }

    fn begin(&mut self, kind: u8) {
        self.scratch.clear();
        self.scratch.push(kind);
    }

    fn end(&mut self, events: u64) {
        let length = self.scratch.len();
        if length > ENTRY_BYTES_MAX {
            // No event is as large: what is lost here ends the replay, and says so.
            self.scratch.clear();
            self.scratch.push(CUT);
            put(&mut self.scratch, "an event was too large to be recorded");
        }
        self.events += events;
        self.room();
        if let Some(chunk) = self.chunks.back_mut() {
            let before = chunk.bytes.len();
            put_length(&mut chunk.bytes, self.scratch.len());
            chunk.bytes.extend_from_slice(&self.scratch);
            chunk.events += events;
            self.bytes += chunk.bytes.len() - before;
        }
        if self.streaming == Streaming::On {
            if self.stream.len() + length > STREAM_BYTES_MAX {
                self.streaming = Streaming::Overrun;
            } else {
                put_length(&mut self.stream, self.scratch.len());
                self.stream.extend_from_slice(&self.scratch);
            }
        }
    }

    /// The last chunk has room afterwards; old ones go where there are too many.
    fn room(&mut self) {
        let length = self.scratch.len();
        let fits = |chunk: &Chunk| chunk.bytes.len() + length + 5 <= CHUNK_BYTES;
        if self.chunks.back().is_some_and(fits) {
            return;
        }
        let mut spare = None;
        // The new chunk as it will be when it is full.
        let room = CHUNK_BYTES.max(length + 5);
        while self.bytes + room > RING_BYTES_MAX {
            let Some(oldest) = self.chunks.pop_front() else {
                break;
            };
            self.bytes -= oldest.bytes.len();
            self.lost += oldest.events;
            spare = Some(oldest.bytes);
        }
        // A chunk that one large event has grown is not kept for small ones.
        let mut bytes = spare
            .filter(|bytes| bytes.capacity() <= 2 * CHUNK_BYTES)
            .unwrap_or_default();
        bytes.clear();
        // The first one grows with a short history; later ones are sure to be filled, and are given their room at once.
        let room = if self.chunks.is_empty() {
            length + 5
        } else {
            room
        };
        bytes.reserve_exact(room);
        self.chunks.push_back(Chunk { bytes, events: 0 });
    }

    /// What a file begins with. `writer` names the program and its version.
    #[must_use]
    pub fn head(&self, extent: Extent, writer: &str, why: &str, unix_seconds: u64) -> Vec<u8> {
        let head = Head {
            resource: self.resource.clone(),
            volumes: self.volumes.clone(),
            extent,
            why: why.into(),
            unix_seconds,
        };
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        let writer = writer.as_bytes();
        let length = writer.len().min(usize::from(u16::MAX));
        out.extend_from_slice(&(length as u16).to_le_bytes());
        out.extend_from_slice(&writer[..length]);
        let mut body = Vec::new();
        put(&mut body, head);
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&body);
        out
    }

    /// The ring as a file.
    #[must_use]
    pub fn image(&self, writer: &str, why: &str, unix_seconds: u64) -> Vec<u8> {
        let mut out = self.head(self.extent(), writer, why, unix_seconds);
        out.reserve(self.bytes);
        for chunk in &self.chunks {
            out.extend_from_slice(&chunk.bytes);
        }
        out
    }

    /// Bytes that wait for [`Recorder::take_stream`].
    #[must_use]
    pub const fn stream_len(&self) -> usize {
        self.stream.len()
    }

    /// Exchanges the entries that wait for an empty vector, and says whether more may come.
    pub fn take_stream(&mut self, into: &mut Vec<u8>) -> Streaming {
        into.clear();
        core::mem::swap(&mut self.stream, into);
        self.streaming
    }

    /// Nothing is kept for [`Recorder::take_stream`] any more. Returns the entry that ends a stream, with its reason.
    pub fn end_stream(&mut self, why: &str) -> Vec<u8> {
        self.streaming = Streaming::Off;
        self.stream = Vec::new();
        let mut entry = alloc::vec![CUT];
        put(&mut entry, why);
        let mut out = Vec::new();
        put_length(&mut out, entry.len());
        out.append(&mut entry);
        out
    }
}
