//! A link that can be delayed, cut and healed: a TCP proxy in front of a node, on an address of its own.
//!
//! Every socket has a short time limit, so that each thread sees within [`TICK`] that its connection was cut; none of them
//! can wait for ever.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// How soon a thread notices that it is to stop.
const TICK: Duration = Duration::from_millis(20);

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
}

/// The proxy. Dropping it cuts everything and ends its threads.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on `address` and passes connections on to `target`, which sees them come from `source`.
    ///
    /// # Panics
    /// When the address cannot be used.
    pub fn start(address: SocketAddr, target: SocketAddr, source: IpAddr) -> Proxy {
        let listener = TcpListener::bind(address).expect("the proxy's address is free");
        listener
            .set_nonblocking(true)
            .expect("a listener can be non-blocking");
        let shared = Arc::new(Shared {
            running: AtomicBool::new(true),
            open: AtomicBool::new(OPEN),
            cuts: AtomicU64::new(0),
            delay_micros: AtomicU64::new(0),
        });
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
        self.shared.open.store(!OPEN, Ordering::SeqCst);
        self.shared.cuts.fetch_add(1, Ordering::SeqCst);
    }

    /// Lets connections through again.
    pub fn heal(&self) {
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
        match listener.accept() {
            Ok((client, _)) if shared.open.load(Ordering::SeqCst) == OPEN => {
                if let Ok(node) = connect_from(ip, target) {
                    join(client, node, shared);
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

fn join(client: TcpStream, node: TcpStream, shared: &Arc<Shared>) {
    let cuts = shared.cuts.load(Ordering::SeqCst);
    for stream in [&client, &node] {
        stream.set_nonblocking(false).ok();
        stream.set_read_timeout(Some(TICK)).ok();
        stream.set_write_timeout(Some(TICK)).ok();
        stream.set_nodelay(true).ok();
    }
    let (Ok(client_out), Ok(node_out)) = (client.try_clone(), node.try_clone()) else {
        return;
    };
    direction(client, node_out, cuts, shared);
    direction(node, client_out, cuts, shared);
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

fn direction(from: TcpStream, to: TcpStream, cuts: u64, shared: &Arc<Shared>) {
    let way = Arc::new(Way::default());
    let reader = (Arc::clone(&way), Arc::clone(shared));
    let writer = (way, Arc::clone(shared));
    std::thread::spawn(move || pull(from, &reader.0, cuts, &reader.1));
    std::thread::spawn(move || push(to, &writer.0, cuts, &writer.1));
}

fn pull(mut from: TcpStream, way: &Way, cuts: u64, shared: &Shared) {
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

fn push(mut to: TcpStream, way: &Way, cuts: u64, shared: &Shared) {
    loop {
        if shared.cuts.load(Ordering::SeqCst) != cuts {
            to.shutdown(Shutdown::Both).ok();
            return;
        }
        let Some(bytes) = next(way) else {
            if lock(way).ended && lock(way).pieces.is_empty() {
                break;
            }
            continue;
        };
        if !write_all(&mut to, &bytes, cuts, shared) {
            to.shutdown(Shutdown::Both).ok();
            return;
        }
    }
    to.shutdown(Shutdown::Write).ok();
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
        let node = TcpListener::bind(address::fresh()).unwrap();
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
}
