//! The streams between this node and its peer: listening, dialling, sending, receiving, closing.
//!
//! Invariants: a stream that was announced (Accepted, Dialled) gets exactly one Closed, after which no event names it; bytes of one
//! stream arrive and leave in order; every dial is answered once.

mod incoming;

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tandem_protocol::framing::PendingPayload;
use tandem_replicator::{CloseHow, DialError, Event, SocketId, Token};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::disk::pool::Pool;
use crate::settings::BufferSizes;
use crate::socket::{ReadBuffer, SendQueue, Stream};
use crate::strangers::Strangers;

use incoming::{Incoming, Received};

/// How long a lingering close waits for the peer to take what was sent and to end its side.
const LINGER: Duration = Duration::from_secs(4);

/// How long the end of a socket that is closed last waits for the peer's end, in which a busy kernel handles what it
/// has read from the other one.
const LAST: Duration = Duration::from_secs(3);

/// Reads of one stream in one turn: then the others get their turn, so that a ping is answered in time.
const READS_PER_TURN: usize = 8;

/// Waiting connections; two are expected (wire-protocol.md 1.2).
const BACKLOG: u32 = 5;

/// Idle seconds before TCP itself looks after a silent peer: a net below the pings of the engine.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Where the two ends are, and how their sockets are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkSettings {
    pub(crate) my_address: SocketAddr,
    pub(crate) peer_address: SocketAddr,
    pub(crate) buffers: BufferSizes,
    /// `connect-int`: how long a dial may take.
    pub(crate) connect_timeout: Duration,
}

type Dialling = Pin<Box<dyn Future<Output = Result<TcpStream, DialError>>>>;

#[derive(Debug)]
enum Phase {
    Open,
    /// Closed by us: what is queued goes out, then (not before `earliest`) our side is shut, then the peer's end is
    /// awaited.
    Lingering {
        earliest: Instant,
        deadline: Instant,
        shut: bool,
    },
}

#[derive(Debug)]
struct Link {
    stream: Stream,
    incoming: Incoming,
    queue: SendQueue,
    paused: bool,
    phase: Phase,
}

/// All streams of one resource.
#[derive(Default)]
pub(crate) struct Peer {
    settings: Option<LinkSettings>,
    listener: Option<TcpListener>,
    dials: Vec<(Token, Dialling)>,
    links: BTreeMap<SocketId, Link>,
    next_id: u64,
    strangers: Strangers,
    linger_timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Peer {
    /// Uses these addresses from now on; open streams stay.
    pub(crate) fn configure(&mut self, settings: Option<LinkSettings>) {
        self.settings = settings;
    }

    /// Accepts the peer's streams from now on; an event only if that cannot be.
    pub(crate) fn listen(&mut self) -> Option<Event> {
        if self.listener.is_some() {
            return None;
        }
        let Some(settings) = &self.settings else {
            let reason = "no addresses are configured for this resource".to_owned();
            return Some(Event::ListenFailed { reason });
        };
        match listen(settings) {
            Ok(listener) => {
                self.listener = Some(listener);
                None
            }
            Err(error) => Some(Event::ListenFailed {
                reason: format!("cannot listen on {}: {error}", settings.my_address),
            }),
        }
    }

    /// The address that is listened on (tests use port 0).
    #[cfg(test)]
    pub(crate) fn listening_on(&self) -> Option<SocketAddr> {
        self.listener
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
    }

    /// Accepts no more.
    pub(crate) fn unlisten(&mut self) {
        self.listener = None;
    }

    /// Opens a stream to the peer.
    pub(crate) fn dial(&mut self, token: Token) {
        let settings = self.settings.clone();
        self.dials.push((token, Box::pin(dial(settings))));
    }

    /// Queues bytes. What is sent on a stream that has ended is dropped: its Closed is on its way.
    pub(crate) fn send(&mut self, socket: SocketId, head: Bytes, payload: Option<Bytes>) {
        if let Some(link) = self.links.get_mut(&socket)
            && matches!(link.phase, Phase::Open)
        {
            link.queue.push(head);
            if let Some(payload) = payload {
                link.queue.push(payload);
            }
        }
    }

    /// Ends a stream.
    pub(crate) fn close(&mut self, socket: SocketId, how: CloseHow) -> Option<Event> {
        match how {
            CloseHow::Abort => {
                self.links.remove(&socket)?;
                Some(Event::Closed {
                    socket,
                    reason: "closed by this node".to_owned(),
                })
            }
            CloseHow::Linger | CloseHow::LingerLast => {
                let link = self.links.get_mut(&socket)?;
                if matches!(link.phase, Phase::Open) {
                    let now = Instant::now();
                    let last = how == CloseHow::LingerLast;
                    link.phase = Phase::Lingering {
                        earliest: if last { now + LAST } else { now },
                        deadline: now + LINGER,
                        shut: false,
                    };
                }
                None
            }
        }
    }

    /// Stops or resumes reading.
    pub(crate) fn pause(&mut self, socket: SocketId, paused: bool) {
        if let Some(link) = self.links.get_mut(&socket) {
            link.paused = paused;
        }
    }

    /// Collects what has happened: new streams, bytes, ends. Registers for wake-ups. `pending` says what payload a stream is in the
    /// middle of; the engine must have all bytes that were read before.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
        (buffer, pool): (&mut ReadBuffer, &Pool),
        pending: impl Fn(SocketId) -> Option<PendingPayload>,
        events: &mut VecDeque<Event>,
    ) {
        self.poll_accept(context, events);
        self.poll_dials(context, events);
        let mut ended = Vec::new();
        for (socket, link) in &mut self.links {
            link.incoming.expect(pending(*socket), pool);
            if let Some(reason) = poll_link(*socket, link, context, buffer, events) {
                ended.push((*socket, reason));
            }
        }
        self.end(ended, events);
        // The timer only wakes; the deadlines themselves are checked in `flush`.
        if let Some(timer) = &mut self.linger_timer
            && timer.as_mut().poll(context).is_ready()
        {
            self.linger_timer = None;
        }
    }

    fn poll_accept(&mut self, context: &mut Context<'_>, events: &mut VecDeque<Event>) {
        while let (Some(listener), Some(settings)) = (&self.listener, &self.settings) {
            let Poll::Ready(accepted) = listener.poll_accept(context) else {
                return;
            };
            match accepted {
                Ok((stream, from)) if same_host(from.ip(), settings.peer_address.ip()) => {
                    if let Err(error) = prepare(&stream) {
                        tracing::info!(%from, %error, "an accepted connection cannot be used");
                        continue;
                    }
                    let socket = self.adopt(stream);
                    events.push_back(Event::Accepted { socket });
                }
                Ok((_, from)) => {
                    let (my, peer) = (settings.my_address, settings.peer_address);
                    self.strangers.refused(from, my, peer);
                }
                // Out of descriptors or the like: the next one may do better, but not in this turn.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    return;
                }
            }
        }
    }

    fn poll_dials(&mut self, context: &mut Context<'_>, events: &mut VecDeque<Event>) {
        let mut index = 0;
        while let Some((token, dialling)) = self.dials.get_mut(index) {
            let Poll::Ready(result) = dialling.as_mut().poll(context) else {
                index += 1;
                continue;
            };
            let token = *token;
            drop(self.dials.swap_remove(index));
            let result = result.map(|stream| self.adopt(stream));
            events.push_back(Event::Dialled { token, result });
        }
    }

    fn adopt(&mut self, stream: TcpStream) -> SocketId {
        self.next_id += 1;
        let socket = SocketId(self.next_id);
        let link = Link {
            stream: Stream::Tcp(stream),
            incoming: Incoming::new(),
            queue: SendQueue::default(),
            paused: false,
            phase: Phase::Open,
        };
        self.links.insert(socket, link);
        socket
    }

    /// Sends what is queued, one vectored write a stream if the system takes it.
    pub(crate) fn flush(&mut self, context: &mut Context<'_>, events: &mut VecDeque<Event>) {
        let mut ended = Vec::new();
        for (socket, link) in &mut self.links {
            match link.queue.flush(&link.stream, context) {
                Ok(0) => {}
                Ok(bytes) if matches!(link.phase, Phase::Open) => {
                    events.push_back(Event::Sent {
                        socket: *socket,
                        bytes,
                    });
                }
                Ok(_) => {}
                Err(error) => {
                    ended.push((*socket, format!("cannot send: {error}")));
                    continue;
                }
            }
            if let Some(reason) = link.linger() {
                ended.push((*socket, reason));
            }
        }
        self.end(ended, events);
        self.arm(context);
    }

    /// Wakes at the next moment of a lingering close.
    fn arm(&mut self, context: &mut Context<'_>) {
        let next = self.links.values().filter_map(Link::next_moment).min();
        self.linger_timer = next.map(|at| {
            let mut timer = Box::pin(tokio::time::sleep_until(at));
            if timer.as_mut().poll(context).is_ready() {
                context.waker().wake_by_ref();
            }
            timer
        });
    }

    fn end(&mut self, ended: Vec<(SocketId, String)>, events: &mut VecDeque<Event>) {
        for (socket, reason) in ended {
            if self.links.remove(&socket).is_some() {
                events.push_back(Event::Closed { socket, reason });
            }
        }
    }
}

impl Link {
    /// When a lingering close goes on by itself.
    fn next_moment(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open => None,
            Phase::Lingering {
                shut: true,
                deadline,
                ..
            } => Some(deadline),
            // Past `earliest` only the peer's reading is awaited, up to the deadline.
            Phase::Lingering {
                earliest, deadline, ..
            } if earliest <= Instant::now() => Some(deadline),
            Phase::Lingering { earliest, .. } => Some(earliest),
        }
    }

    /// Goes on with a lingering close; the reason when it is over.
    fn linger(&mut self) -> Option<String> {
        let Phase::Lingering {
            earliest,
            deadline,
            shut,
        } = &mut self.phase
        else {
            return None;
        };
        let now = Instant::now();
        if now >= *deadline {
            return Some("closed by this node; the peer did not end its side in time".to_owned());
        }
        if !*shut && now >= *earliest && self.queue.is_empty() {
            *shut = true;
            if let Stream::Tcp(stream) = &self.stream {
                let shutdown = socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write);
                if let Err(error) = shutdown {
                    return Some(format!("closed by this node: {error}"));
                }
            }
        }
        None
    }
}

/// Reads what is there; the reason when the stream has ended.
fn poll_link(
    socket: SocketId,
    link: &mut Link,
    context: &mut Context<'_>,
    buffer: &mut ReadBuffer,
    events: &mut VecDeque<Event>,
) -> Option<String> {
    let lingering = matches!(link.phase, Phase::Lingering { .. });
    if link.paused && !lingering {
        return None;
    }
    for _ in 0..READS_PER_TURN {
        match link.incoming.poll_read(&mut link.stream, context, buffer) {
            Poll::Pending => return None,
            Poll::Ready(Ok(Received::Part)) if lingering => return None,
            Poll::Ready(Ok(Received::Part)) => {
                // The peer is alive: what came is told with the rest.
                let bytes = Bytes::new();
                events.push_back(Event::Bytes { socket, bytes });
                return None;
            }
            Poll::Ready(Ok(Received::End)) => {
                return Some(match link.phase {
                    Phase::Open => "the peer closed the connection".to_owned(),
                    Phase::Lingering { .. } => "closed by both nodes".to_owned(),
                });
            }
            // We have closed it: nobody waits for these bytes any more.
            Poll::Ready(Ok(Received::Bytes(_))) if lingering => {}
            Poll::Ready(Ok(Received::Bytes(bytes))) => {
                events.push_back(Event::Bytes { socket, bytes })
            }
            Poll::Ready(Err(error)) => return Some(format!("cannot receive: {error}")),
        }
        if link.incoming.asks() {
            break;
        }
    }
    // More may be there: come back after the others.
    context.waker().wake_by_ref();
    None
}

/// Addresses of one host, whether written as IPv4 or as IPv4 in IPv6.
fn same_host(one: IpAddr, other: IpAddr) -> bool {
    one.to_canonical() == other.to_canonical()
}

fn socket_for(settings: &LinkSettings) -> io::Result<TcpSocket> {
    let socket = match settings.my_address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    if settings.buffers.send > 0 {
        socket.set_send_buffer_size(settings.buffers.send)?;
    }
    if settings.buffers.receive > 0 {
        socket.set_recv_buffer_size(settings.buffers.receive)?;
    }
    Ok(socket)
}

fn listen(settings: &LinkSettings) -> io::Result<TcpListener> {
    let socket = socket_for(settings)?;
    socket.bind(settings.my_address)?;
    socket.listen(BACKLOG)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

async fn dial(settings: Option<LinkSettings>) -> Result<TcpStream, DialError> {
    let Some(settings) = settings else {
        return Err(DialError::LocalAddress(
            "no addresses are configured".to_owned(),
        ));
    };
    let (mut source, peer) = (settings.my_address, settings.peer_address);
    source.set_port(0);
    let local = |error: io::Error| {
        DialError::LocalAddress(format!("cannot dial from {}: {error}", source.ip()))
    };
    let socket = socket_for(&settings).map_err(local)?;
    socket.bind(source).map_err(local)?;
    let unreachable = |why: String| DialError::Unreachable(format!("cannot reach {peer}: {why}"));
    match tokio::time::timeout(settings.connect_timeout, socket.connect(peer)).await {
        Err(_) => Err(unreachable(format!(
            "no answer within {} s",
            settings.connect_timeout.as_secs()
        ))),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Ok(Ok(stream)) => {
            prepare(&stream).map_err(|error| unreachable(error.to_string()))?;
            Ok(stream)
        }
    }
}

#[cfg(test)]
mod tests;
