//! A gate between the two: while it is closed, what either has dialled is held, and both go through together.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::tap::{TICK, prepare, pump};

/// What a closed gate holds: the first connection of either side, with where it is to go.
#[derive(Debug, Default)]
struct Held {
    closed: bool,
    by_tandem: Option<TcpStream>,
    by_kernel: Option<TcpStream>,
    /// How often both went through together.
    together: u32,
}

/// The gate. It is open at first. Dropping it cuts its connections and ends its threads.
#[derive(Debug)]
pub struct Gate {
    /// Where Tandem dials.
    pub for_tandem: SocketAddr,
    /// Where the kernel dials.
    pub for_kernel: SocketAddr,
    held: Arc<Mutex<Held>>,
    running: Arc<AtomicBool>,
    acceptors: Vec<JoinHandle<()>>,
}

/// Who dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialler {
    Tandem,
    Kernel,
}

/// Where the nodes listen themselves.
#[derive(Clone, Copy, Debug)]
struct Nodes {
    tandem: SocketAddr,
    kernel: SocketAddr,
}

impl Gate {
    /// Listens for both; they themselves listen on `tandem` and `kernel`.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn start(tandem: SocketAddr, kernel: SocketAddr) -> Gate {
        let listen = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a gate");
            listener.set_nonblocking(true).expect("a gate");
            let address = listener.local_addr().expect("its address");
            (listener, address)
        };
        let (of_tandem, for_tandem) = listen();
        let (of_kernel, for_kernel) = listen();
        let held: Arc<Mutex<Held>> = Arc::default();
        let running = Arc::new(AtomicBool::new(true));
        let nodes = Nodes { tandem, kernel };
        let acceptors = [(of_tandem, Dialler::Tandem), (of_kernel, Dialler::Kernel)].map(
            |(listener, dialler)| {
                let (held, running) = (Arc::clone(&held), Arc::clone(&running));
                std::thread::spawn(move || accept(&listener, dialler, nodes, &held, &running))
            },
        );
        Gate {
            for_tandem,
            for_kernel,
            held,
            running,
            acceptors: acceptors.into(),
        }
    }

    /// Holds the next connection of either side until the other one has dialled too, then lets both go and stays open.
    pub fn close(&self) {
        lock(&self.held).closed = true;
    }

    /// Whether the kernel has dialled and waits for Tandem.
    pub fn holds_the_kernel(&self) -> bool {
        lock(&self.held).by_kernel.is_some()
    }

    /// How often both went through together.
    pub fn together(&self) -> u32 {
        lock(&self.held).together
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.running.store(false, Ordering::SeqCst);
        for acceptor in self.acceptors.drain(..) {
            acceptor.join().ok();
        }
    }
}

fn lock(held: &Mutex<Held>) -> std::sync::MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(
    listener: &TcpListener,
    dialler: Dialler,
    nodes: Nodes,
    held: &Mutex<Held>,
    running: &Arc<AtomicBool>,
) {
    while running.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((from, _)) => come(from, dialler, nodes, &mut lock(held), running),
            Err(_) => std::thread::sleep(TICK),
        }
    }
}

fn come(
    from: TcpStream,
    dialler: Dialler,
    nodes: Nodes,
    held: &mut Held,
    running: &Arc<AtomicBool>,
) {
    if !held.closed {
        let target = match dialler {
            Dialler::Tandem => nodes.kernel,
            Dialler::Kernel => nodes.tandem,
        };
        if let Ok(to) = TcpStream::connect(target) {
            carry(from, to, running);
        }
        return;
    }
    // Who dials twice has given the first one up.
    match dialler {
        Dialler::Tandem => held.by_tandem = Some(from),
        Dialler::Kernel => held.by_kernel = Some(from),
    }
    if held.by_tandem.is_none() || held.by_kernel.is_none() {
        return;
    }
    held.closed = false;
    let (Some(by_tandem), Some(by_kernel)) = (held.by_tandem.take(), held.by_kernel.take()) else {
        return;
    };
    // Both ways stand before the first byte goes.
    let ways = (
        TcpStream::connect(nodes.kernel),
        TcpStream::connect(nodes.tandem),
    );
    if let (Ok(to_kernel), Ok(to_tandem)) = ways {
        held.together += 1;
        carry(by_tandem, to_kernel, running);
        carry(by_kernel, to_tandem, running);
    }
}

/// Carries both directions of a connection.
fn carry(from: TcpStream, to: TcpStream, running: &Arc<AtomicBool>) {
    prepare(&from);
    prepare(&to);
    let (Ok(from_too), Ok(to_too)) = (from.try_clone(), to.try_clone()) else {
        return;
    };
    for (from, to) in [(from, to), (to_too, from_too)] {
        let running = Arc::clone(running);
        std::thread::spawn(move || pump(from, to, &running, |_| ()));
    }
}
