//! NBD clients after their handshake: requests in, replies out, on the loop's thread (docs/spec/nbd.md 5, 6, 8).
//!
//! Invariants: a client that was adopted is announced as Opened and, once, as Released; Released comes after the answer to its last
//! request; every request of the session gets exactly one reply.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use tandem_nbd_server as nbd;
use tandem_replicator::{
    Event, Fua, Operation, Request, RequestError, RequestId, Unmap, VolumeNumber,
};

use crate::disk::pool::{Block, Pool};
use crate::socket::{ReadBuffer, SendQueue, Stream};

/// Clients of one resource. Linux opens a handful of connections, qemu one; the bound keeps buffers finite.
pub(crate) const CLIENTS_MAX: usize = 64;

/// Longest read or write handed to the engine: the largest payload of the replication link (nbd.md 6.1).
const DATA_BYTES_MAX: u32 = 1 << 20;

/// Longest discard or zeroing handed to the engine: below the link's 128 MiB, and few enough activity-log extents (8) that even the
/// smallest log holds several.
const RANGE_BYTES_MAX: u32 = 32 << 20;

/// Reads of one client in one turn.
const READS_PER_TURN: usize = 8;

/// A client that has finished its handshake, on its way to the loop.
#[derive(Debug)]
pub(crate) struct NewClient {
    pub(crate) stream: NewStream,
    pub(crate) session: Box<nbd::Session>,
    pub(crate) volume: VolumeNumber,
    /// `pid 812 (qemu-img)` or an address.
    pub(crate) who: String,
}

/// A socket between two runtimes.
#[derive(Debug)]
pub(crate) enum NewStream {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

struct Client {
    stream: Stream,
    session: Box<nbd::Session>,
    out: SendQueue,
    volume: VolumeNumber,
    who: String,
    /// A large payload that is being received straight into its block.
    direct: Option<(Block, usize)>,
    /// The socket is of no more use; only answers of the engine are awaited.
    broken: bool,
    ended: bool,
}

/// A request that the engine works on.
enum Waiting {
    Whole {
        client: u64,
        handle: nbd::Handle,
    },
    Part {
        client: u64,
        handle: nbd::Handle,
        index: usize,
    },
}

/// A request that was cut into parts.
struct Parent {
    left: usize,
    error: Option<RequestError>,
    data: Vec<Bytes>,
}

/// The clients of one resource.
#[derive(Default)]
pub(crate) struct Clients {
    clients: BTreeMap<u64, Client>,
    waiting: BTreeMap<RequestId, Waiting>,
    parents: HashMap<(u64, nbd::Handle), Parent>,
    paused: BTreeSet<VolumeNumber>,
    next_client: u64,
    next_request: u64,
    pieces: Vec<Bytes>,
}

impl Clients {
    /// Takes a client over.
    ///
    /// # Errors
    /// The bound is reached, or the socket cannot be used here: the connection is closed.
    pub(crate) fn adopt(&mut self, new: NewClient) -> io::Result<Event> {
        if self.clients.len() >= CLIENTS_MAX {
            return Err(io::Error::other(format!(
                "{CLIENTS_MAX} clients are attached already"
            )));
        }
        let stream = match new.stream {
            NewStream::Tcp(stream) => Stream::Tcp(tokio::net::TcpStream::from_std(stream)?),
            NewStream::Unix(stream) => Stream::Unix(tokio::net::UnixStream::from_std(stream)?),
        };
        let client = Client {
            stream,
            session: new.session,
            out: SendQueue::default(),
            volume: new.volume,
            who: new.who,
            direct: None,
            broken: false,
            ended: false,
        };
        tracing::info!(client = %client.who, volume = client.volume.0, "client attached");
        let volume = client.volume;
        self.next_client += 1;
        self.clients.insert(self.next_client, client);
        Ok(Event::Opened { volume })
    }

    /// Who holds a volume open.
    pub(crate) fn holders(&self, volume: VolumeNumber) -> Vec<String> {
        self.clients
            .values()
            .filter(|client| client.volume == volume)
            .map(|client| client.who.clone())
            .collect()
    }

    /// Whether nobody is attached.
    pub(crate) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Stops or resumes taking requests.
    pub(crate) fn pause(&mut self, volume: VolumeNumber, paused: bool) {
        if paused {
            self.paused.insert(volume);
        } else {
            self.paused.remove(&volume);
        }
    }

    /// Lets the clients of a volume (or of all) go: nothing more is read, what is in flight is answered, then the connection ends.
    pub(crate) fn shut_down(&mut self, volume: Option<VolumeNumber>, text: &str) {
        for client in self.clients.values_mut() {
            if volume.is_none_or(|volume| volume == client.volume) && !client.ended {
                client.session.shutdown(text);
                client.ended = true;
            }
        }
    }

    /// Answers a request of the engine.
    pub(crate) fn reply(&mut self, request: RequestId, result: Result<Bytes, RequestError>) {
        match self.waiting.remove(&request) {
            Some(Waiting::Whole { client, handle }) => {
                let result = result.map(|bytes| {
                    if bytes.is_empty() {
                        vec![]
                    } else {
                        vec![bytes]
                    }
                });
                self.finish(client, handle, result);
            }
            Some(Waiting::Part {
                client,
                handle,
                index,
            }) => {
                let Some(parent) = self.parents.get_mut(&(client, handle)) else {
                    return;
                };
                match result {
                    Ok(bytes) => {
                        if let Some(place) = parent.data.get_mut(index) {
                            *place = bytes;
                        }
                    }
                    Err(error) => parent.error = Some(error),
                }
                parent.left -= 1;
                if parent.left == 0
                    && let Some(parent) = self.parents.remove(&(client, handle))
                {
                    let data = parent
                        .data
                        .into_iter()
                        .filter(|piece| !piece.is_empty())
                        .collect();
                    self.finish(client, handle, parent.error.map_or(Ok(data), Err));
                }
            }
            None => tracing::error!(
                request = request.0,
                "the engine answered an unknown request"
            ),
        }
    }

    fn finish(
        &mut self,
        client: u64,
        handle: nbd::Handle,
        result: Result<Vec<Bytes>, RequestError>,
    ) {
        let Some(client) = self.clients.get_mut(&client) else {
            return;
        };
        let result = match result {
            Ok(mut pieces) => Ok(match pieces.pop() {
                None => nbd::Data::None,
                Some(piece) if pieces.is_empty() => nbd::Data::Bytes(piece),
                Some(piece) => {
                    pieces.push(piece);
                    nbd::Data::Pieces(pieces)
                }
            }),
            Err(error) => Err(nbd_error(error)),
        };
        if let Err(misuse) = client.session.reply(handle, result) {
            tracing::error!(client = %client.who, %misuse, "a reply did not fit its request");
        }
    }

    /// Reads from the clients and turns what they want into events. Registers for wake-ups.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuffer,
        pool: &Pool,
        events: &mut Vec<Event>,
    ) {
        let mut requests = Vec::new();
        for (number, client) in &mut self.clients {
            if client.broken || self.paused.contains(&client.volume) {
                continue;
            }
            let volume = client.volume;
            client.poll(context, buffer, pool, |request| {
                requests.push((*number, volume, request));
            });
        }
        for (client, volume, request) in requests {
            self.start(client, volume, request, events);
        }
    }

    fn start(
        &mut self,
        client: u64,
        volume: VolumeNumber,
        request: nbd::Request,
        events: &mut Vec<Event>,
    ) {
        let handle = request.handle;
        let mut operations = cut(request.kind);
        let whole = operations.len() == 1;
        if !whole {
            let parent = Parent {
                left: operations.len(),
                error: None,
                data: vec![Bytes::new(); operations.len()],
            };
            self.parents.insert((client, handle), parent);
        }
        for (index, operation) in operations.drain(..).enumerate() {
            self.next_request += 1;
            let id = RequestId(self.next_request);
            let waiting = if whole {
                Waiting::Whole { client, handle }
            } else {
                Waiting::Part {
                    client,
                    handle,
                    index,
                }
            };
            self.waiting.insert(id, waiting);
            events.push(Event::Request(Request {
                id,
                volume,
                operation,
            }));
        }
    }

    /// Sends replies, and lets go of clients that have ended.
    pub(crate) fn flush(&mut self, context: &mut Context<'_>, events: &mut Vec<Event>) {
        let pieces = &mut self.pieces;
        self.clients.retain(|_, client| {
            client.flush(context, pieces);
            let gone = (client.ended || client.broken)
                && client.session.in_flight() == 0
                && (client.broken || client.out.is_empty());
            if gone {
                tracing::info!(client = %client.who, volume = client.volume.0, "client detached");
                events.push(Event::Released {
                    volume: client.volume,
                });
            }
            !gone
        });
    }
}

impl Client {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuffer,
        pool: &Pool,
        mut request: impl FnMut(nbd::Request),
    ) {
        for _ in 0..READS_PER_TURN {
            self.events(&mut request);
            if self.ended || self.out.bytes() >= nbd::UNSENT_BYTES_MAX {
                return;
            }
            self.begin_direct(pool);
            let read = match &mut self.direct {
                Some((block, filled)) => {
                    let rest = block.as_mut().get_mut(*filled..).unwrap_or_default();
                    self.stream.poll_read_slice(context, rest).map_ok(|count| {
                        *filled += count;
                        count == 0
                    })
                }
                None if !self.session.wants_input() => return,
                None => buffer.poll_read(&self.stream, context).map_ok(|bytes| {
                    let end = bytes.is_empty();
                    self.session.feed(bytes);
                    end
                }),
            };
            match read {
                Poll::Pending => return,
                Poll::Ready(Ok(false)) => self.finish_direct(),
                Poll::Ready(Ok(true)) => {
                    self.direct = None;
                    self.session.end_of_stream();
                }
                Poll::Ready(Err(error)) => {
                    tracing::info!(client = %self.who, %error, "the connection of a client broke");
                    self.direct = None;
                    self.broken = true;
                    return;
                }
            }
        }
        // More may be there: come back after the others.
        context.waker().wake_by_ref();
    }

    fn events(&mut self, request: &mut impl FnMut(nbd::Request)) {
        while let Some(event) = self.session.next_event() {
            match event {
                nbd::Event::Request(wanted) => request(wanted),
                nbd::Event::Ended(end) => {
                    crate::exports::log_end(&self.who, &end);
                    self.ended = true;
                }
                // Both belong to the handshake, which is over.
                nbd::Event::Query(_) | nbd::Event::Selected { .. } => {}
            }
        }
    }

    fn begin_direct(&mut self, pool: &Pool) {
        if self.direct.is_none()
            && let Some(wanted) = self.session.payload_wanted()
        {
            let mut block = pool.block(wanted.length as usize);
            if let Ok(filled) = self.session.take_payload_prefix(block.as_mut()) {
                self.direct = Some((block, filled));
            }
        }
    }

    fn finish_direct(&mut self) {
        if self
            .direct
            .as_ref()
            .is_some_and(|(block, filled)| *filled == block.len())
            && let Some((block, _)) = self.direct.take()
            && let Err(misuse) = self.session.supply_payload(block.freeze())
        {
            tracing::error!(client = %self.who, %misuse, "a payload did not fit its request");
            self.broken = true;
        }
    }

    fn flush(&mut self, context: &mut Context<'_>, pieces: &mut Vec<Bytes>) {
        if self.session.has_output() {
            self.session.take_output(pieces);
            for piece in pieces.drain(..) {
                self.out.push(piece);
            }
        }
        if self.broken {
            self.out.clear();
            return;
        }
        let was_full = self.out.bytes() >= nbd::UNSENT_BYTES_MAX;
        if !self.out.is_empty()
            && let Err(error) = self.out.flush(&self.stream, context)
        {
            tracing::info!(client = %self.who, %error, "a client takes no more replies");
            self.broken = true;
        }
        if was_full && self.out.bytes() < nbd::UNSENT_BYTES_MAX {
            // Requests that were left waiting for room are taken in another turn.
            context.waker().wake_by_ref();
        }
    }
}

fn fua_of(fua: bool) -> Fua {
    if fua { Fua::Yes } else { Fua::No }
}

/// Cuts a request into what the engine takes: one part, unless it is long.
fn cut(kind: nbd::RequestKind) -> Vec<Operation> {
    match kind {
        nbd::RequestKind::Flush => vec![Operation::Flush],
        nbd::RequestKind::Read { offset, length } => parts(offset, length, DATA_BYTES_MAX)
            .map(|(offset, _, length)| Operation::Read { offset, length })
            .collect(),
        nbd::RequestKind::Write {
            offset,
            payload,
            fua,
        } => {
            let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
            parts(offset, length, DATA_BYTES_MAX)
                .map(|(offset, start, length)| Operation::Write {
                    offset,
                    data: payload.slice(start as usize..(start + length) as usize),
                    fua: fua_of(fua),
                })
                .collect()
        }
        nbd::RequestKind::Trim {
            offset,
            length,
            fua,
        } => parts(offset, length, RANGE_BYTES_MAX)
            .map(|(offset, _, length)| Operation::Discard {
                offset,
                length,
                fua: fua_of(fua),
            })
            .collect(),
        nbd::RequestKind::WriteZeroes {
            offset,
            length,
            fua,
            no_hole,
            ..
        } => {
            let unmap = if no_hole { Unmap::No } else { Unmap::Allowed };
            parts(offset, length, RANGE_BYTES_MAX)
                .map(|(offset, _, length)| Operation::WriteZeroes {
                    offset,
                    length,
                    fua: fua_of(fua),
                    unmap,
                })
                .collect()
        }
    }
}

/// (offset, start within the request, length) of each part. Parts end at multiples of `limit` on the device.
fn parts(offset: u64, length: u32, limit: u32) -> impl Iterator<Item = (u64, u32, u32)> {
    let mut done = 0_u32;
    std::iter::from_fn(move || {
        let left = length - done;
        if left == 0 {
            return None;
        }
        let at = offset + u64::from(done);
        // The remainder is below `limit`, so it fits.
        let room = limit - u32::try_from(at % u64::from(limit)).unwrap_or(0);
        let part = (at, done, left.min(room));
        done += part.2;
        Some(part)
    })
}

fn nbd_error(error: RequestError) -> nbd::NbdError {
    use nbd::ErrorCode;
    let (code, text) = match error {
        RequestError::Io => (
            ErrorCode::Io,
            "no accessible up-to-date data; the server's log tells why",
        ),
        RequestError::NotPrimary => (ErrorCode::Perm, "this node is not Primary any more"),
        RequestError::Invalid => (ErrorCode::Inval, "outside the device, or empty"),
        RequestError::ShuttingDown => (ErrorCode::Shutdown, "the resource is going down"),
    };
    nbd::NbdError::new(code, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_requests_are_cut_at_aligned_borders_and_lose_nothing() {
        let payload: Bytes = (0..3 << 20_u32)
            .map(|n| (n >> 9) as u8)
            .collect::<Vec<u8>>()
            .into();
        let write = nbd::RequestKind::Write {
            offset: 512,
            payload: payload.clone(),
            fua: true,
        };
        let operations = cut(write);
        let mut at = 512;
        let mut joined = Vec::new();
        for operation in &operations {
            let Operation::Write {
                offset,
                data,
                fua: Fua::Yes,
            } = operation
            else {
                panic!()
            };
            assert_eq!(*offset, at);
            assert!(data.len() <= 1 << 20);
            at += data.len() as u64;
            joined.extend_from_slice(data);
        }
        assert_eq!(joined, payload);
        assert_eq!(operations.len(), 4);
    }

    #[test]
    fn the_longest_trim_is_cut_into_bounded_parts() {
        let trim = nbd::RequestKind::Trim {
            offset: 4096,
            length: u32::MAX - 4095,
            fua: false,
        };
        let operations = cut(trim);
        assert_eq!(operations.len(), 128);
        let total: u64 = operations
            .iter()
            .map(|operation| match operation {
                Operation::Discard { length, .. } => u64::from(*length),
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(total, u64::from(u32::MAX - 4095));
    }

    #[test]
    fn a_short_request_stays_whole() {
        let read = nbd::RequestKind::Read {
            offset: 4096,
            length: 4096,
        };
        assert_eq!(cut(read).len(), 1);
    }
}
