//! A wire that keeps what Tandem says: a relay between it and the kernel.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How soon a thread notices that it is to stop.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// Everything that each connection carried in one direction, oldest connection first.
type Kept = Arc<Mutex<Vec<Vec<u8>>>>;

/// A bit of a payload on its way to the kernel.
#[derive(Debug, Default)]
struct Damage {
    /// What to look for, and whether it was found.
    wanted: Mutex<Option<Vec<u8>>>,
    done: AtomicBool,
}

/// The relay. Dropping it cuts its connections and ends its threads.
#[derive(Debug)]
pub struct Tap {
    /// Where Tandem dials.
    pub address: SocketAddr,
    sent: Kept,
    heard: Kept,
    damage: Arc<Damage>,
    running: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Tap {
    /// Listens; what comes is passed on to `target`.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn start(target: SocketAddr) -> Tap {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a relay");
        let address = listener.local_addr().expect("its address");
        listener.set_nonblocking(true).expect("a relay");
        let mut tap = Tap {
            address,
            sent: Kept::default(),
            heard: Kept::default(),
            damage: Arc::default(),
            running: Arc::new(AtomicBool::new(true)),
            acceptor: None,
        };
        let (sent, heard) = (Arc::clone(&tap.sent), Arc::clone(&tap.heard));
        let (running, damage) = (Arc::clone(&tap.running), Arc::clone(&tap.damage));
        tap.acceptor = Some(std::thread::spawn(move || {
            while running.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((from, _)) => {
                        relay(from, target, [&sent, &heard], &running, &damage);
                    }
                    Err(_) => std::thread::sleep(TICK),
                }
            }
        }));
        tap
    }

    /// What Tandem sent, a stream for each connection that it made.
    pub fn sent(&self) -> Vec<Vec<u8>> {
        self.sent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What the kernel sent on the same connections.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// One bit of the next such bytes that Tandem sends arrives as another one.
    pub fn damage_next(&self, bytes: &[u8]) {
        self.damage.done.store(false, Ordering::SeqCst);
        let mut wanted = self
            .damage
            .wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *wanted = Some(bytes.to_vec());
    }

    /// Whether the damage was done.
    pub fn is_damage_done(&self) -> bool {
        self.damage.done.load(Ordering::SeqCst)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.running.store(false, Ordering::SeqCst);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().ok();
        }
    }
}

impl Damage {
    /// Does what is wanted; a needle that is cut in two by the reads is not found, and the test says so.
    fn apply(&self, bytes: &mut [u8]) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(needle) = wanted.as_ref() else {
            return;
        };
        let at = bytes.windows(needle.len()).position(|part| part == needle);
        if let Some(at) = at {
            bytes[at] ^= 0x10;
            self.done.store(true, Ordering::SeqCst);
            *wanted = None;
        }
    }
}

fn relay(
    from: TcpStream,
    target: SocketAddr,
    kept: [&Kept; 2],
    running: &Arc<AtomicBool>,
    damage: &Arc<Damage>,
) {
    let Ok(to) = TcpStream::connect(target) else {
        return;
    };
    for stream in [&from, &to] {
        prepare(stream);
    }
    let (Ok(from_too), Ok(to_too)) = (from.try_clone(), to.try_clone()) else {
        return;
    };
    let slots = kept.map(|kept| {
        let mut all = kept.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Vec::new());
        all.len() - 1
    });
    let [sent, heard] = kept.map(Arc::clone);
    let [here, there] = [Arc::clone(running), Arc::clone(running)];
    let damage = Arc::clone(damage);
    std::thread::spawn(move || {
        pump(from, to, &here, |bytes| {
            keep(&sent, slots[0], bytes);
            damage.apply(bytes);
        });
    });
    std::thread::spawn(move || {
        pump(to_too, from_too, &there, |bytes| {
            keep(&heard, slots[1], bytes);
        });
    });
}

fn keep(kept: &Kept, slot: usize, bytes: &[u8]) {
    kept.lock().unwrap_or_else(PoisonError::into_inner)[slot].extend_from_slice(bytes);
}

/// Both ends of a relayed connection: small packets go at once, and a reader looks up now and then.
pub(super) fn prepare(stream: &TcpStream) {
    stream.set_nonblocking(false).ok();
    stream.set_nodelay(true).ok();
    stream.set_read_timeout(Some(TICK)).ok();
}

/// Carries one direction of one connection until either end is gone.
pub(super) fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    running: &AtomicBool,
    mut on_the_way: impl FnMut(&mut [u8]),
) {
    let mut buffer = vec![0; 64 << 10];
    while running.load(Ordering::SeqCst) {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                on_the_way(&mut buffer[..length]);
                if to.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}
