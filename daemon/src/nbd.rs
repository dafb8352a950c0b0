//! NBD clients after their handshake: requests in, replies out, on the loop's thread (docs/spec/nbd.md 5, 6, 8).
//!
//! Invariants: a client that was adopted is announced as Opened and, once, as Released; Released comes after the answer to its last
//! request; every request of the session gets exactly one reply.

mod parts;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tandem_nbd_server as nbd;
use tandem_replicator::{Event, Request, RequestError, RequestId, VolumeNumber};

use crate::disk::pool::{Block, Pool};
use crate::socket::{ReadBuffer, SendQueue, Stream};

/// Clients of one resource. Linux opens a handful of connections, qemu one; the bound keeps buffers finite.
pub(crate) const CLIENTS_MAX: usize = 64;

/// Reads of one client in one turn.
const READS_PER_TURN: usize = 8;

/// How long a client that has ended, or was let go, may take nothing of the replies that wait for it: whoever waits for the device
/// must not wait for a client that never reads. Less than a demotion waits for clients (3 s), and than the daemon's end does.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// How long it may take in all: a client that reads a byte now and then does not hold the device either.
const FAREWELL_MAX: Duration = Duration::from_secs(30);

/// Inquiries that one turn looks at: one may cost about 0.1 ms (16384 extents), and a turn must stay far below 50 ms.
const INQUIRIES_PER_TURN: usize = 64;

/// What clients may ask about ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    /// Holes of the backing file.
    Allocation,
    /// Set bits of the bitmap.
    OutOfSync,
}

/// The metadata contexts of every export, in the order of [`nbd::ExportInfo::contexts`] (nbd.md 9).
pub(crate) const CONTEXTS: [(Topic, &str); 2] = [
    (Topic::Allocation, "base:allocation"),
    (Topic::OutOfSync, "x-tandem:out-of-sync"),
];

/// A request that needs an answer from elsewhere before, or instead of, the engine's work.
#[derive(Debug)]
pub(crate) struct Inquiry {
    client: u64,
    handle: nbd::Handle,
    pub(crate) volume: VolumeNumber,
    pub(crate) kind: nbd::RequestKind,
}

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
    /// Nothing more is read from it.
    farewell: Option<Farewell>,
}

/// The end of a client, as long as replies wait for it.
#[derive(Clone, Copy, Debug)]
struct Farewell {
    begun: Instant,
    /// When it last took something, or had nothing to take.
    moved: Instant,
}

impl Farewell {
    fn new(now: Instant) -> Farewell {
        Farewell {
            begun: now,
            moved: now,
        }
    }

    /// When the client is dropped with what it has not taken.
    fn deadline(&self) -> Instant {
        (self.begun + FAREWELL_MAX).min(self.moved + SILENCE_MAX)
    }
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
    inquiries: VecDeque<Inquiry>,
    /// Inquiries that wait for a disk, by number.
    asked: BTreeMap<u64, Inquiry>,
    next_asked: u64,
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
            farewell: None,
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

    /// Lets the clients of a volume (or of all) go: nothing more is read, what is in flight is answered, then the connection ends. A
    /// client that does not take its answers is dropped ([`SILENCE_MAX`]).
    pub(crate) fn shut_down(&mut self, volume: Option<VolumeNumber>, text: &str) {
        let now = Instant::now();
        for client in self.clients.values_mut() {
            if volume.is_none_or(|volume| volume == client.volume) && client.farewell.is_none() {
                client.session.shutdown(text);
                client.farewell = Some(Farewell::new(now));
            }
        }
    }

    /// When a client has to be dropped, unless it takes its replies before.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let clients = self.clients.values();
        clients.filter_map(Client::deadline).min()
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
        self.tell(client, handle, result);
    }

    fn tell(&mut self, client: u64, handle: nbd::Handle, result: Result<nbd::Data, nbd::NbdError>) {
        let Some(client) = self.clients.get_mut(&client) else {
            return;
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
        events: &mut VecDeque<Event>,
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
        for (client, volume, nbd::Request { handle, kind }) in requests {
            let inquiry = Inquiry {
                client,
                handle,
                volume,
                kind,
            };
            match &inquiry.kind {
                nbd::RequestKind::Cache { .. }
                | nbd::RequestKind::BlockStatus { .. }
                | nbd::RequestKind::WriteZeroes {
                    fast_zero: true, ..
                } => self.inquiries.push_back(inquiry),
                _ => self.start(inquiry, events),
            }
        }
    }

    /// The next inquiries that nobody has looked at, as many as one turn bears.
    pub(crate) fn inquiries(&mut self) -> Vec<Inquiry> {
        let count = self.inquiries.len().min(INQUIRIES_PER_TURN);
        self.inquiries.drain(..count).collect()
    }

    /// Whether some are left for another turn.
    pub(crate) fn has_inquiries(&self) -> bool {
        !self.inquiries.is_empty()
    }

    /// Keeps an inquiry until what it asks for is known; the number finds it again.
    pub(crate) fn await_status(&mut self, inquiry: Inquiry) -> u64 {
        self.next_asked += 1;
        self.asked.insert(self.next_asked, inquiry);
        self.next_asked
    }

    /// The inquiry of a number, unless it was answered otherwise.
    pub(crate) fn status_inquiry(&mut self, number: u64) -> Option<Inquiry> {
        self.asked.remove(&number)
    }

    /// Kept inquiries that wait no longer: their client ends, or their volume's disk is not what clients read any more. A disk that
    /// hangs keeps neither.
    pub(crate) fn given_up(
        &mut self,
        reads_locally: impl Fn(VolumeNumber) -> bool,
    ) -> Vec<Inquiry> {
        let clients = &self.clients;
        let waits = |inquiry: &Inquiry| {
            let stays = clients
                .get(&inquiry.client)
                .is_some_and(|client| client.farewell.is_none() && !client.broken);
            stays && reads_locally(inquiry.volume)
        };
        let asked = self.asked.iter();
        let given_up: Vec<u64> = asked
            .filter(|(_, inquiry)| !waits(inquiry))
            .map(|(number, _)| *number)
            .collect();
        given_up
            .into_iter()
            .filter_map(|number| self.asked.remove(&number))
            .collect()
    }

    /// Answers an inquiry without the engine.
    pub(crate) fn answer(&mut self, inquiry: &Inquiry, result: Result<nbd::Data, nbd::NbdError>) {
        self.tell(inquiry.client, inquiry.handle, result);
    }

    /// Hands a request to the engine.
    pub(crate) fn start(&mut self, inquiry: Inquiry, events: &mut VecDeque<Event>) {
        let Inquiry {
            client,
            handle,
            volume,
            kind,
        } = inquiry;
        let mut operations = parts::cut(kind);
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
            events.push_back(Event::Request(Request {
                id,
                volume,
                operation,
            }));
        }
    }

    /// Sends replies, and lets go of clients that have ended.
    pub(crate) fn flush(&mut self, context: &mut Context<'_>, events: &mut VecDeque<Event>) {
        let pieces = &mut self.pieces;
        self.clients.retain(|_, client| {
            client.flush(context, pieces);
            let gone = (client.farewell.is_some() || client.broken)
                && client.session.in_flight() == 0
                && (client.broken || client.out.is_empty());
            if gone {
                tracing::info!(client = %client.who, volume = client.volume.0, "client detached");
                events.push_back(Event::Released {
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
            if self.farewell.is_some() || self.out.bytes() >= nbd::UNSENT_BYTES_MAX {
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
                None => buffer
                    .poll_read(&mut self.stream, context, usize::MAX)
                    .map_ok(|bytes| {
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

    fn moved(&mut self) {
        if let Some(farewell) = &mut self.farewell {
            farewell.moved = Instant::now();
        }
    }

    /// When it is dropped, if replies wait for it at its end.
    fn deadline(&self) -> Option<Instant> {
        let waits = !self.broken && !self.out.is_empty();
        self.farewell
            .filter(|_| waits)
            .map(|farewell| farewell.deadline())
    }

    fn events(&mut self, request: &mut impl FnMut(nbd::Request)) {
        while let Some(event) = self.session.next_event() {
            match event {
                nbd::Event::Request(wanted) => request(wanted),
                nbd::Event::Ended(end) => {
                    crate::exports::log_end(&self.who, &end);
                    self.farewell = Some(Farewell::new(Instant::now()));
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
        if !self.out.is_empty() {
            match self.out.flush(&self.stream, context) {
                Ok(0) => {}
                Ok(_) => self.moved(),
                Err(error) => {
                    tracing::info!(client = %self.who, %error, "a client takes no more replies");
                    self.broken = true;
                }
            }
        }
        if self.out.is_empty() {
            self.moved();
        }
        if self
            .deadline()
            .is_some_and(|deadline| deadline <= Instant::now())
        {
            tracing::warn!(
                client = %self.who,
                bytes = self.out.bytes(),
                "a client that was let go takes no replies: it is dropped with what it has not read"
            );
            self.out.clear();
            self.broken = true;
        }
        if was_full && self.out.bytes() < nbd::UNSENT_BYTES_MAX {
            // Requests that were left waiting for room are taken in another turn.
            context.waker().wake_by_ref();
        }
    }
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
