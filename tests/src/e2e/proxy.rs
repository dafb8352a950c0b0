//! A link that can be delayed, throttled, blocked, cut (also after a certain byte) and healed: a TCP proxy in front of a node, on an
//! address of its own.
//!
//! Every socket has a short time limit, so that each thread sees within [`TICK`] that its connection was cut; none of them
//! can wait for ever.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// How soon a thread notices that it is to stop.
const TICK: Duration = Duration::from_millis(20);

/// How long an address may still be held by a process that was forked meanwhile.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// Bytes on their way in one direction before the sender is not read any more.
const ON_THE_WAY_MAX: usize = 8 << 20;

/// Whether the link is there.
const OPEN: bool = true;

#[derive(Debug)]
struct Shared {
    running: AtomicBool,
    open: AtomicBool,
    /// Counts cuts: a connection of an earlier count is dead.
    cuts: AtomicU64,
    delay_micros: AtomicU64,
    /// Of each direction of each connection, per second; 0: no limit.
    bytes_per_second: AtomicU64,
    /// Bytes of each direction do not arrive, and nobody is told.
    blocked: [AtomicBool; 2],
    /// Bytes that each direction still carries before the cut; negative: no cut is planned.
    bytes_left: [AtomicI64; 2],
    /// What arrives, if somebody wants to know.
    heard: Mutex<Option<Vec<Heard>>>,
    /// Counts connections.
    connections: AtomicU64,
}

/// Bytes that came to a proxy.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Their connection, counted from 0.
    pub connection: u64,
    /// Their direction.
    pub flow: Flow,
    /// When they came.
    pub at: Instant,
    /// They.
    pub bytes: Vec<u8>,
}

impl Shared {
    fn new() -> Shared {
        Shared {
            running: AtomicBool::new(true),
            open: AtomicBool::new(OPEN),
            cuts: AtomicU64::new(0),
            delay_micros: AtomicU64::new(0),
            bytes_per_second: AtomicU64::new(0),
            blocked: [AtomicBool::new(false), AtomicBool::new(false)],
            bytes_left: [AtomicI64::new(NO_CUT), AtomicI64::new(NO_CUT)],
            heard: Mutex::new(None),
            connections: AtomicU64::new(0),
        }
    }

    fn hear(&self, connection: u64, flow: Flow, bytes: &[u8]) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(heard) = heard.as_mut() {
            heard.push(Heard {
                connection,
                flow,
                at: Instant::now(),
                bytes: bytes.to_vec(),
            });
        }
    }

    fn cut(&self) {
        self.open.store(!OPEN, Ordering::SeqCst);
        self.cuts.fetch_add(1, Ordering::SeqCst);
    }

    /// How many of these bytes may pass before the planned cut.
    fn allowance(&self, flow: Flow, length: usize) -> Allowance {
        let left = &self.bytes_left[flow as usize];
        let length = i64::try_from(length).unwrap_or(i64::MAX);
        let before = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            (left >= 0).then(|| (left - length).max(0))
        });
        match before {
            Ok(left) if left <= length => Allowance::ThenCut(usize::try_from(left).unwrap_or(0)),
            Ok(_) | Err(_) => Allowance::All,
        }
    }
}

/// No cut is planned.
const NO_CUT: i64 = -1;

enum Allowance {
    All,
    ThenCut(usize),
}

/// A direction of every connection through a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Towards the node behind the proxy.
    In = 0,
    /// From it.
    Out = 1,
}

/// Whether bytes arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// They do.
    Free,
    /// They do not, and no end is told that they do not.
    Blocked,
}

/// The proxy. Dropping it cuts everything and ends its threads.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// Listens. A process that another test has just forked may hold the socket that tried this address ([`super::address::fresh`])
/// until it executes its program: that is waited for.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let end = Instant::now() + LISTEN_LIMIT;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

impl Proxy {
    /// Listens on `address` and passes connections on to `target`, which sees them come from `source`.
    ///
    /// # Panics
    /// When the address cannot be used.
    pub fn start(address: SocketAddr, target: SocketAddr, source: IpAddr) -> Proxy {
        let listener = listen(address).expect("the proxy's address is free");
        listener
            .set_nonblocking(true)
            .expect("a listener can be non-blocking");
        let shared = Arc::new(Shared::new());
        let acceptor = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || accept(&listener, source, target, &shared))
        };
        Proxy {
            address,
            shared,
            acceptor: Some(acceptor),
        }
    }

    /// Every byte arrives this much later.
    pub fn delay(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.shared.delay_micros.store(micros, Ordering::SeqCst);
    }

    /// Breaks every connection, forgets what is on its way, and lets nobody through until [`Proxy::heal`].
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// As [`Proxy::cut`], after this many more bytes have arrived in this direction: anywhere inside a packet.
    pub fn cut_after(&self, flow: Flow, bytes: u32) {
        self.shared.bytes_left[flow as usize].store(i64::from(bytes), Ordering::SeqCst);
    }

    /// Whether it was cut and not healed since.
    pub fn is_cut(&self) -> bool {
        self.shared.open.load(Ordering::SeqCst) != OPEN
    }

    /// No direction of a connection carries more than this; 0: no limit.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.shared
            .bytes_per_second
            .store(bytes_per_second, Ordering::SeqCst);
    }

    /// Bytes of a direction arrive, or stay on their way (also the end of a connection).
    pub fn block(&self, flow: Flow, passage: Passage) {
        let blocked = passage == Passage::Blocked;
        self.shared.blocked[flow as usize].store(blocked, Ordering::SeqCst);
    }

    /// From now on what arrives is kept.
    pub fn listen(&self) {
        let mut heard = self
            .shared
            .heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *heard = Some(Vec::new());
    }

    /// What has arrived since [`Proxy::listen`].
    pub fn heard(&self) -> Vec<Heard> {
        let heard = self
            .shared
            .heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        heard.clone().unwrap_or_default()
    }

    /// Lets connections through again; a planned cut is off.
    pub fn heal(&self) {
        for left in &self.shared.bytes_left {
            left.store(NO_CUT, Ordering::SeqCst);
        }
        self.shared.open.store(OPEN, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.running.store(false, Ordering::SeqCst);
        self.shared.cuts.fetch_add(1, Ordering::SeqCst);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().ok();
        }
    }
}

fn accept(listener: &TcpListener, ip: IpAddr, target: SocketAddr, shared: &Arc<Shared>) {
    while shared.running.load(Ordering::SeqCst) {
        // Before the connection is made: a cut meanwhile is one of this connection, too.
        let cuts = shared.cuts.load(Ordering::SeqCst);
        match listener.accept() {
            Ok((client, _)) if shared.open.load(Ordering::SeqCst) == OPEN => {
                if let Ok(node) = connect_from(ip, target) {
                    join(client, node, cuts, shared);
                }
            }
            Ok((client, _)) => drop(client),
            Err(_) => std::thread::sleep(TICK / 4),
        }
    }
}

/// Connects to `target` from `ip`, as the node expects of its peer.
///
/// # Errors
/// Those of the sockets; nobody listens.
pub fn connect_from(ip: IpAddr, target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    socket.connect_timeout(&target.into(), Duration::from_secs(1))?;
    Ok(socket.into())
}

fn join(client: TcpStream, node: TcpStream, cuts: u64, shared: &Arc<Shared>) {
    for stream in [&client, &node] {
        stream.set_nonblocking(false).ok();
        stream.set_read_timeout(Some(TICK)).ok();
        stream.set_write_timeout(Some(TICK)).ok();
        stream.set_nodelay(true).ok();
    }
    let (Ok(client_out), Ok(node_out)) = (client.try_clone(), node.try_clone()) else {
        return;
    };
    let number = shared.connections.fetch_add(1, Ordering::SeqCst);
    direction(client, node_out, (Flow::In, number), cuts, shared);
    direction(node, client_out, (Flow::Out, number), cuts, shared);
}

/// One direction of a connection.
#[derive(Default)]
struct Way {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Bytes on their way, with the time of their arrival.
#[derive(Default)]
struct Queue {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// The sender has ended.
    ended: bool,
}

fn direction(
    from: TcpStream,
    to: TcpStream,
    (flow, connection): (Flow, u64),
    cuts: u64,
    shared: &Arc<Shared>,
) {
    let way = Arc::new(Way::default());
    let reader = (Arc::clone(&way), Arc::clone(shared));
    let writer = (way, Arc::clone(shared));
    std::thread::spawn(move || pull(from, &reader.0, (flow, connection), cuts, &reader.1));
    std::thread::spawn(move || push(to, &writer.0, flow, cuts, &writer.1));
}

fn pull(
    mut from: TcpStream,
    way: &Way,
    (flow, connection): (Flow, u64),
    cuts: u64,
    shared: &Shared,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        if shared.cuts.load(Ordering::SeqCst) != cuts {
            break;
        }
        if lock(way).bytes >= ON_THE_WAY_MAX {
            std::thread::sleep(TICK / 4);
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                shared.hear(connection, flow, &buffer[..length]);
                let delay = Duration::from_micros(shared.delay_micros.load(Ordering::SeqCst));
                let mut queue = lock(way);
                queue
                    .pieces
                    .push_back((Instant::now() + delay, buffer[..length].to_vec()));
                queue.bytes += length;
                way.changed.notify_one();
            }
            Err(error) if is_timeout(error.kind()) => {}
            Err(_) => break,
        }
    }
    lock(way).ended = true;
    way.changed.notify_one();
    from.shutdown(Shutdown::Read).ok();
}

fn push(mut to: TcpStream, way: &Way, flow: Flow, cuts: u64, shared: &Shared) {
    let mut limit = Throttle::default();
    loop {
        if shared.cuts.load(Ordering::SeqCst) != cuts {
            to.shutdown(Shutdown::Both).ok();
            return;
        }
        let blocked = || shared.blocked[flow as usize].load(Ordering::SeqCst);
        if blocked() || limit.is_ahead(shared) {
            std::thread::sleep(TICK / 4);
            continue;
        }
        let Some(bytes) = next(way) else {
            if lock(way).ended && lock(way).pieces.is_empty() {
                break;
            }
            continue;
        };
        while blocked() && shared.cuts.load(Ordering::SeqCst) == cuts {
            std::thread::sleep(TICK / 4);
        }
        limit.note(bytes.len());
        let passing = match shared.allowance(flow, bytes.len()) {
            Allowance::All => &bytes[..],
            Allowance::ThenCut(length) => &bytes[..length],
        };
        let arrived = write_all(&mut to, passing, cuts, shared);
        if passing.len() < bytes.len() {
            shared.cut();
        }
        if !arrived {
            to.shutdown(Shutdown::Both).ok();
            return;
        }
    }
    to.shutdown(Shutdown::Write).ok();
}

/// Bytes that passed in the present second of a direction.
#[derive(Default)]
struct Throttle {
    since: Option<Instant>,
    bytes: u64,
}

impl Throttle {
    fn note(&mut self, bytes: usize) {
        self.since.get_or_insert_with(Instant::now);
        self.bytes += bytes as u64;
    }

    /// More has passed than the limit allows by now.
    fn is_ahead(&mut self, shared: &Shared) -> bool {
        let limit = shared.bytes_per_second.load(Ordering::SeqCst);
        let Some(since) = self.since else {
            return false;
        };
        let due = u64::try_from(since.elapsed().as_micros())
            .unwrap_or(u64::MAX)
            .saturating_mul(limit)
            / 1_000_000;
        let ahead = limit != 0 && self.bytes > due;
        if !ahead {
            *self = Throttle::default();
        }
        ahead
    }
}

/// The next bytes whose time has come; None after a while without.
fn next(way: &Way) -> Option<Vec<u8>> {
    let mut queue = lock(way);
    let now = Instant::now();
    let wait = match queue.pieces.front() {
        Some((due, _)) if *due <= now => {
            let (_, bytes) = queue.pieces.pop_front()?;
            queue.bytes -= bytes.len();
            return Some(bytes);
        }
        Some((due, _)) => (*due - now).min(TICK),
        None if queue.ended => return None,
        None => TICK,
    };
    drop(
        way.changed
            .wait_timeout(queue, wait)
            .unwrap_or_else(PoisonError::into_inner),
    );
    None
}

fn write_all(to: &mut TcpStream, mut bytes: &[u8], cuts: u64, shared: &Shared) -> bool {
    while !bytes.is_empty() {
        if shared.cuts.load(Ordering::SeqCst) != cuts {
            return false;
        }
        match to.write(bytes) {
            Ok(0) => return false,
            Ok(length) => bytes = &bytes[length..],
            Err(error) if is_timeout(error.kind()) => {}
            Err(_) => return false,
        }
    }
    true
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

fn lock(way: &Way) -> std::sync::MutexGuard<'_, Queue> {
    way.queue.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e2e::address;

    const LIMIT: Duration = Duration::from_secs(10);

    fn linked() -> (Proxy, TcpListener, TcpStream, TcpStream) {
        let node = listen(address::fresh()).unwrap();
        let source = address::fresh().ip();
        let proxy = Proxy::start(address::fresh(), node.local_addr().unwrap(), source);
        let near = TcpStream::connect(proxy.address).unwrap();
        let (far, from) = node.accept().unwrap();
        assert_eq!(from.ip(), source);
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
        }
        (proxy, node, near, far)
    }

    #[test]
    fn bytes_pass_late_and_in_order() {
        let (proxy, _node, mut near, mut far) = linked();
        proxy.delay(Duration::from_millis(50));
        let start = Instant::now();
        near.write_all(b"one").unwrap();
        near.write_all(b"two").unwrap();
        let mut got = [0; 6];
        far.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"onetwo");
        assert!(start.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn a_cut_ends_both_sides_and_forgets_what_is_on_its_way() {
        let (proxy, node, mut near, mut far) = linked();
        proxy.delay(Duration::from_secs(3600));
        near.write_all(b"never").unwrap();
        proxy.cut();
        let mut got = [0; 1];
        assert!(matches!(far.read(&mut got), Ok(0) | Err(_)));
        assert!(matches!(near.read(&mut got), Ok(0) | Err(_)));
        proxy.delay(Duration::ZERO);
        proxy.heal();
        let mut again = TcpStream::connect(proxy.address).unwrap();
        again.write_all(b"x").unwrap();
        let (mut far, _) = node.accept().unwrap();
        far.set_read_timeout(Some(LIMIT)).unwrap();
        far.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"x");
    }

    #[test]
    fn a_cut_can_fall_on_any_byte() {
        let (proxy, _node, mut near, mut far) = linked();
        proxy.cut_after(Flow::In, 5);
        near.write_all(b"abc").unwrap();
        let mut got = [0; 3];
        far.read_exact(&mut got).unwrap();
        assert!(!proxy.is_cut());
        near.write_all(b"defgh").unwrap();
        let mut rest = Vec::new();
        // The end may be a reset; what came before it counts.
        far.read_to_end(&mut rest).ok();
        assert_eq!((got, rest.as_slice()), (*b"abc", &b"de"[..]));
        assert!(proxy.is_cut());
    }

    #[test]
    fn a_blocked_direction_keeps_its_bytes_and_the_other_one_goes_on() {
        let (proxy, _node, mut near, mut far) = linked();
        proxy.block(Flow::In, Passage::Blocked);
        near.write_all(b"in").unwrap();
        far.write_all(b"out").unwrap();
        let mut out = [0; 3];
        near.read_exact(&mut out).unwrap();
        far.set_read_timeout(Some(5 * TICK)).unwrap();
        let mut got = [0; 2];
        let error = far.read(&mut got).unwrap_err();
        assert!(is_timeout(error.kind()), "{error}");
        proxy.block(Flow::In, Passage::Free);
        far.set_read_timeout(Some(LIMIT)).unwrap();
        far.read_exact(&mut got).unwrap();
        assert_eq!((&got, &out), (b"in", b"out"));
    }

    #[test]
    fn a_throttled_direction_takes_its_time() {
        let (proxy, _node, mut near, mut far) = linked();
        proxy.throttle(1 << 20);
        let start = Instant::now();
        let sender = std::thread::spawn(move || near.write_all(&[7; 256 << 10]));
        far.read_exact(&mut vec![0; 256 << 10]).unwrap();
        sender.join().unwrap().unwrap();
        // The last piece, of at most 64 KiB, need not be waited for.
        assert!(
            start.elapsed() >= Duration::from_millis(150),
            "{:?}",
            start.elapsed()
        );
    }
}
