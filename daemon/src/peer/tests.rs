//! Goal: order, counting, and exactly one Closed for each stream.
//! Method: two ends in one runtime on loopback, or one end against a raw socket that stops reading.

use std::future::poll_fn;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const WAIT: Duration = Duration::from_secs(20);

fn settings(my: &str, peer: SocketAddr) -> LinkSettings {
    LinkSettings {
        my_address: my.parse().unwrap(),
        peer_address: peer,
        buffers: BufferSizes {
            send: 16384,
            receive: 0,
        },
        connect_timeout: Duration::from_secs(5),
    }
}

struct End {
    peer: Peer,
    buffer: ReadBuffer,
    pool: Pool,
    /// What every stream is said to be in the middle of.
    pending: Option<PendingPayload>,
    events: std::collections::VecDeque<Event>,
}

impl End {
    fn new(settings: LinkSettings) -> End {
        let mut peer = Peer::default();
        peer.configure(Some(settings));
        End {
            peer,
            buffer: ReadBuffer::default(),
            pool: Pool::new(),
            pending: None,
            events: Default::default(),
        }
    }

    fn turn(&mut self, context: &mut Context<'_>) {
        self.peer.flush(context, &mut self.events);
        let into = (&mut self.buffer, &self.pool);
        let pending = |_| self.pending;
        self.peer.poll(context, into, pending, &mut self.events);
        self.peer.flush(context, &mut self.events);
    }

    async fn next(&mut self) -> Event {
        let next = poll_fn(|context| {
            self.turn(context);
            self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
        });
        tokio::time::timeout(WAIT, next)
            .await
            .expect("an event in time")
    }
}

async fn dialled(end: &mut End) -> SocketId {
    end.peer.dial(Token(1));
    match end.next().await {
        Event::Dialled {
            token: Token(1),
            result: Ok(socket),
        } => socket,
        other => panic!("{other:?}"),
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limit = std::time::Duration::from_secs(60);
    runtime
        .block_on(async { tokio::time::timeout(limit, test).await })
        .expect("the test ends within its limit");
}

async fn raw_server() -> (tokio::net::TcpListener, SocketAddr) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn a_stream_carries_bytes_both_ways_and_closes_once() {
    run(async {
        let (listener, address) = raw_server().await;
        let mut end = End::new(settings("127.0.0.1:0", address));
        let socket = dialled(&mut end).await;
        let (mut other, from) = listener.accept().await.unwrap();
        assert_eq!(from.ip(), address.ip());
        end.peer.send(
            socket,
            Bytes::from_static(b"head"),
            Some(Bytes::from_static(b"+data")),
        );
        assert!(matches!(end.next().await, Event::Sent { bytes: 9, .. }));
        let mut got = [0; 9];
        tokio::time::timeout(WAIT, other.read_exact(&mut got))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&got, b"head+data");
        other.write_all(b"answer").await.unwrap();
        assert!(matches!(end.next().await, Event::Bytes { bytes, .. } if bytes == "answer"));
        drop(other);
        assert!(matches!(end.next().await, Event::Closed { socket: s, .. } if s == socket));
        assert!(end.peer.close(socket, CloseHow::Abort).is_none());
        assert!(end.peer.close(socket, CloseHow::Linger).is_none());
        end.peer.send(socket, Bytes::from_static(b"late"), None);
        let late = tokio::time::timeout(Duration::from_millis(50), end.next()).await;
        assert!(late.is_err(), "{late:?}");
    });
}

#[test]
fn partial_writes_are_counted_and_keep_their_order() {
    run(async {
        let (listener, address) = raw_server().await;
        let mut end = End::new(settings("127.0.0.1:0", address));
        let socket = dialled(&mut end).await;
        let (mut other, _) = listener.accept().await.unwrap();
        let total = 2 << 20_usize;
        let pattern: Bytes = (0..total)
            .map(|n| (n / 7) as u8)
            .collect::<Vec<u8>>()
            .into();
        for start in (0..total).step_by(1 << 16) {
            let head = pattern.slice(start..start + 10);
            let payload = pattern.slice(start + 10..start + (1 << 16));
            end.peer.send(socket, head, Some(payload));
        }
        let reader = tokio::task::spawn_blocking(move || {
            tokio::runtime::Handle::current().block_on(async {
                let mut got = vec![0; total];
                other.read_exact(&mut got).await.map(|_| got)
            })
        });
        let mut sent = 0;
        while sent < total as u64 {
            match end.next().await {
                Event::Sent { bytes, .. } => {
                    assert!(bytes > 0);
                    sent += bytes;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(sent, total as u64);
        let got = tokio::time::timeout(WAIT, reader)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert!(got == pattern);
    });
}

#[test]
fn a_lingering_close_delivers_what_was_sent() {
    run(async {
        let (listener, address) = raw_server().await;
        let mut end = End::new(settings("127.0.0.1:0", address));
        let socket = dialled(&mut end).await;
        let (mut other, _) = listener.accept().await.unwrap();
        let data = Bytes::from(vec![3; 100_000]);
        end.peer.send(socket, data.clone(), None);
        assert!(end.peer.close(socket, CloseHow::Linger).is_none());
        let reader = async {
            let mut got = Vec::new();
            other.read_to_end(&mut got).await.unwrap();
            drop(other);
            got
        };
        let (got, closed) = tokio::join!(reader, end.next());
        assert_eq!(got, data);
        assert!(matches!(closed, Event::Closed { socket: s, .. } if s == socket));
    });
}

#[test]
fn a_socket_that_is_closed_last_ends_after_the_peers_end_or_a_while() {
    run(async {
        let (listener, address) = raw_server().await;
        let mut end = End::new(settings("127.0.0.1:0", address));
        let socket = dialled(&mut end).await;
        let (mut other, _) = listener.accept().await.unwrap();
        end.peer.close(socket, CloseHow::LingerLast);
        let early = tokio::time::timeout(LAST / 4, end.next()).await;
        assert!(early.is_err(), "{early:?}");
        let mut byte = [0];
        let silent = tokio::time::timeout(Duration::from_millis(10), other.read(&mut byte)).await;
        assert!(silent.is_err(), "our end came at once");
        let (got, closed) = tokio::join!(
            async {
                let got = tokio::time::timeout(WAIT, other.read(&mut byte)).await;
                drop(other);
                got.unwrap().unwrap()
            },
            end.next()
        );
        assert_eq!(got, 0);
        assert!(matches!(closed, Event::Closed { socket: s, .. } if s == socket));
    });
}

#[test]
fn a_lingering_close_does_not_wait_for_ever() {
    run(async {
        let (listener, address) = raw_server().await;
        let mut end = End::new(settings("127.0.0.1:0", address));
        let socket = dialled(&mut end).await;
        let (_held, _) = listener.accept().await.unwrap();
        end.peer.close(socket, CloseHow::Linger);
        let closed = end.next().await;
        assert!(matches!(closed, Event::Closed { ref reason, .. } if reason.contains("in time")));
    });
}

#[test]
fn a_paused_stream_is_not_read() {
    run(async {
        let (listener, address) = raw_server().await;
        let mut end = End::new(settings("127.0.0.1:0", address));
        let socket = dialled(&mut end).await;
        let (mut other, _) = listener.accept().await.unwrap();
        end.peer.pause(socket, true);
        other.write_all(b"later").await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), end.next()).await;
        assert!(early.is_err(), "{early:?}");
        end.peer.pause(socket, false);
        assert!(matches!(end.next().await, Event::Bytes { bytes, .. } if bytes == "later"));
    });
}

#[test]
fn only_the_peer_is_accepted() {
    run(async {
        let stranger = "127.0.0.9:1".parse().unwrap();
        let mut end = End::new(settings("127.0.0.1:0", stranger));
        assert!(end.peer.listen().is_none());
        let address = end.peer.listening_on().unwrap();
        let refused = std::net::TcpStream::connect(address).unwrap();
        refused.set_read_timeout(Some(WAIT)).unwrap();
        let closed =
            tokio::task::spawn_blocking(move || std::io::Read::read(&mut &refused, &mut [0]));
        let none = tokio::time::timeout(Duration::from_millis(100), end.next()).await;
        assert!(none.is_err(), "{none:?}");
        assert!(matches!(closed.await.unwrap(), Ok(0) | Err(_)));
        let wanted = TcpSocket::new_v4().unwrap();
        wanted.bind("127.0.0.9:0".parse().unwrap()).unwrap();
        let (stream, event) = tokio::join!(wanted.connect(address), end.next());
        assert!(stream.is_ok());
        assert!(matches!(event, Event::Accepted { .. }));
        end.peer.unlisten();
        assert!(std::net::TcpStream::connect(address).is_err());
    });
}

#[test]
fn an_address_that_is_not_ours_is_told_apart_from_an_absent_peer() {
    run(async {
        let (listener, address) = raw_server().await;
        drop(listener);
        let mut end = End::new(settings("127.0.0.1:0", address));
        end.peer.dial(Token(2));
        let event = end.next().await;
        assert!(matches!(
            event,
            Event::Dialled {
                result: Err(DialError::Unreachable(_)),
                ..
            }
        ));
        let mut end = End::new(settings("192.0.2.1:0", address));
        end.peer.dial(Token(3));
        let event = end.next().await;
        assert!(matches!(
            event,
            Event::Dialled {
                result: Err(DialError::LocalAddress(_)),
                ..
            }
        ));
        assert!(matches!(
            end.peer.listen(),
            Some(Event::ListenFailed { .. })
        ));
    });
}

/// What comes between two payloads.
const HEAD: usize = 40;

const LENGTH: usize = 128 << 10;

const PACKETS: usize = 60;

/// A stream into `end` and the socket that feeds it.
async fn fed() -> (End, SocketId, tokio::net::TcpStream) {
    let (listener, address) = raw_server().await;
    let mut end = End::new(settings("127.0.0.1:0", address));
    let socket = dialled(&mut end).await;
    let (other, _) = listener.accept().await.unwrap();
    (end, socket, other)
}

/// What the next turn that brings something brings: pieces, without those that only say that something came.
async fn pieces(end: &mut End) -> Vec<Bytes> {
    let mut events = vec![end.next().await];
    events.extend(end.events.drain(..));
    let bytes = events.into_iter().map(|event| match event {
        Event::Bytes { bytes, .. } => bytes,
        other => panic!("{other:?}"),
    });
    bytes.filter(|bytes| !bytes.is_empty()).collect()
}

fn in_payload(buffered: usize) -> Option<PendingPayload> {
    Some(PendingPayload {
        length: LENGTH,
        buffered,
        head: HEAD,
    })
}

#[test]
fn payloads_that_follow_one_another_arrive_each_in_one_aligned_piece() {
    run(async {
        let (mut end, _, mut other) = fed().await;
        let packet: Vec<u8> = (0..HEAD + LENGTH)
            .map(|at| at as u8 ^ (at >> 8) as u8)
            .collect();
        let stream = packet.repeat(PACKETS);
        let all = stream.clone();
        let feeder = tokio::spawn(async move {
            other.write_all(&all).await.unwrap();
            other
        });
        let (mut seen, mut whole) = (Vec::new(), 0);
        while seen.len() < stream.len() {
            // What the engine says when it has all of that.
            end.pending = (seen.len() % packet.len())
                .checked_sub(HEAD)
                .and_then(in_payload);
            for piece in pieces(&mut end).await {
                let aligned = crate::disk::pool::is_aligned(&piece, 4096);
                let begins = seen.len() % packet.len() == HEAD;
                whole += usize::from(piece.len() == LENGTH && aligned && begins);
                seen.extend_from_slice(&piece);
            }
        }
        assert!(seen == stream);
        drop(feeder.await);
        // Those that were there when nothing was known yet are met in the middle: eight reads of 256 KiB.
        assert!(whole >= PACKETS - 20, "{whole}");
    });
}

#[test]
fn a_part_of_a_payload_shows_that_the_peer_is_alive_and_is_dropped_with_the_stream() {
    run(async {
        let (mut end, socket, mut other) = fed().await;
        end.pending = in_payload(0);
        other.write_all(&[7; 1000]).await.unwrap();
        let alive = |event| matches!(event, Event::Bytes { bytes, .. } if bytes.is_empty());
        assert!(alive(end.next().await));
        other.write_all(&[7; 1000]).await.unwrap();
        assert!(alive(end.next().await));
        drop(other);
        assert!(
            matches!(end.next().await, Event::Closed { socket: closed, .. } if closed == socket)
        );
    });
}
