//! A link that can be cut: a TCP proxy in front of each node, which stands where the node's peer believes it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use crate::Failure;
use crate::contenders::nodes::Link;

/// How soon a thread sees that the link was cut or that it is to end.
const TICK: Duration = Duration::from_millis(3);

/// Bytes passed on at once.
const PIECE_BYTES: usize = 256 << 10;

/// What becomes of connections that are there when the link is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Both ends are told: the sockets are closed, and new ones may be made at once.
    Closed,
    /// Nobody is told: nothing passes any more, and new connections are refused until the link is healed.
    Silent,
}

#[derive(Debug, Default)]
struct Shared {
    ended: AtomicBool,
    silent: AtomicBool,
    /// Connections of an earlier count are dead.
    cuts: AtomicU64,
}

/// The link between two nodes; dropping it ends its threads.
#[derive(Debug)]
pub(super) struct Cable {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Cable {
    /// Between the nodes of `link`.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub(super) fn new(link: &Link) -> Result<Cable, Failure> {
        let mut cable = Cable {
            shared: Arc::default(),
            threads: Vec::new(),
        };
        for which in 0..2 {
            let (seen, own) = (link.seen[which], link.own[which]);
            // A node takes connections only from where it believes its peer.
            let from = link.seen[1 - which].ip();
            let doing = format!("listen on {seen}");
            let listener = TcpListener::bind(seen).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok(listener)
            });
            let listener = listener.map_err(Failure::system(doing))?;
            let shared = Arc::clone(&cable.shared);
            let accept = move || accept_all(&listener, from, own, &shared);
            cable.threads.push(std::thread::spawn(accept));
        }
        Ok(cable)
    }

    /// Cuts it.
    pub(super) fn cut(&self, cut: Cut) {
        self.shared
            .silent
            .store(cut == Cut::Silent, Ordering::SeqCst);
        self.shared.cuts.fetch_add(1, Ordering::SeqCst);
    }

    /// New connections pass again; those from before are closed.
    pub(super) fn heal(&self) {
        self.shared.silent.store(false, Ordering::SeqCst);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // A panic in it was told already.
            thread.join().ok();
        }
    }
}

fn accept_all(listener: &TcpListener, from: IpAddr, to: SocketAddr, shared: &Arc<Shared>) {
    let mut pumps: Vec<JoinHandle<()>> = Vec::new();
    while !shared.ended.load(Ordering::SeqCst) {
        let Ok((near, _)) = listener.accept() else {
            std::thread::sleep(TICK);
            continue;
        };
        // A cut from here on is one of this connection, too.
        let count = shared.cuts.load(Ordering::SeqCst);
        if shared.silent.load(Ordering::SeqCst) {
            continue;
        }
        // A node that does not listen refuses, and so does the proxy by hanging up.
        let made = dial(from, to).and_then(|far| pump_both(near, far, count, shared));
        pumps.extend(made.into_iter().flatten());
        pumps.retain(|pump| !pump.is_finished());
    }
    for pump in pumps {
        // A panic in it was told already.
        pump.join().ok();
    }
}

/// Connects from an address of its own.
fn dial(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let family = match from {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let made: OwnedFd = socket(family, SocketType::STREAM, None)?;
    bind(&made, &SocketAddr::new(from, 0))?;
    connect(&made, &to)?;
    Ok(TcpStream::from(made))
}

fn pump_both(
    near: TcpStream,
    far: TcpStream,
    count: u64,
    shared: &Arc<Shared>,
) -> io::Result<[JoinHandle<()>; 2]> {
    for stream in [&near, &far] {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(TICK))?;
    }
    let one_way = |mut from: TcpStream, mut to: TcpStream| {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // However it ends, both ends are to know.
            pump(&mut from, &mut to, count, &shared).ok();
            from.shutdown(Shutdown::Both).ok();
            to.shutdown(Shutdown::Both).ok();
        })
    };
    let there = one_way(near.try_clone()?, far.try_clone()?);
    Ok([there, one_way(far, near)])
}

/// Whether a connection made after so many cuts may go on; waits while nothing may pass.
fn passes(count: u64, shared: &Shared) -> bool {
    while !shared.ended.load(Ordering::SeqCst) {
        if shared.cuts.load(Ordering::SeqCst) == count {
            return true;
        }
        if !shared.silent.load(Ordering::SeqCst) {
            return false;
        }
        std::thread::sleep(TICK);
    }
    false
}

fn pump(from: &mut TcpStream, to: &mut TcpStream, count: u64, shared: &Shared) -> io::Result<()> {
    let is_tick = |error: &io::Error| {
        matches!(
            error.kind(),
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
        )
    };
    let mut buffer = vec![0; PIECE_BYTES];
    while passes(count, shared) {
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if is_tick(&error) => continue,
            Err(error) => return Err(error),
        };
        let mut sent = 0;
        while sent < length && passes(count, shared) {
            match to.write(&buffer[sent..length]) {
                Ok(more) => sent += more,
                Err(error) if is_tick(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proxied connection: the end that dialled, and the one that was dialled.
    fn through(link: &Link, target: &TcpListener) -> (TcpStream, TcpStream) {
        let near = dial(link.own[0].ip(), link.seen[1]).unwrap();
        let (far, from) = target.accept().unwrap();
        // The node sees its peer where it believes it.
        assert_eq!(from.ip(), link.seen[0].ip());
        for stream in [&near, &far] {
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
        }
        (near, far)
    }

    #[test]
    fn bytes_pass_both_ways_until_the_link_is_cut() {
        let link = Link::with_proxies().unwrap();
        let target = TcpListener::bind(link.own[1]).unwrap();
        let cable = Cable::new(&link).unwrap();
        let (mut near, mut far) = through(&link, &target);
        let mut byte = [0];
        near.write_all(b"a").unwrap();
        far.read_exact(&mut byte).unwrap();
        far.write_all(&byte).unwrap();
        near.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"a");
        cable.cut(Cut::Closed);
        assert_eq!(
            (
                near.read(&mut byte).unwrap_or(0),
                far.read(&mut byte).unwrap_or(0)
            ),
            (0, 0)
        );
        through(&link, &target);
    }

    #[test]
    fn nobody_is_told_of_a_silent_cut_before_it_is_healed() {
        let link = Link::with_proxies().unwrap();
        let target = TcpListener::bind(link.own[1]).unwrap();
        let cable = Cable::new(&link).unwrap();
        let (mut near, mut far) = through(&link, &target);
        cable.cut(Cut::Silent);
        near.write_all(b"a").unwrap();
        far.set_read_timeout(Some(20 * TICK)).unwrap();
        let told = far.read(&mut [0]).unwrap_err().kind();
        assert!(matches!(told, ErrorKind::WouldBlock | ErrorKind::TimedOut));
        cable.heal();
        far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // What was on its way is lost, as the connection is.
        assert_eq!(far.read(&mut [0]).unwrap_or(0), 0);
        assert_eq!(near.read(&mut [0]).unwrap_or(0), 0);
        through(&link, &target);
    }
}
