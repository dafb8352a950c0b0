//! The daemon as a whole: directories, lock, sockets, signals, the end.

use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::FlockOperation;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast;

use crate::control::server;
use crate::exports::{self, Scope};
use crate::handlers::Handlers;
use crate::node::{Node, Spawner};
use crate::places::Places;
use crate::proc;
use crate::resource_loop::Surroundings;
use crate::systemd;

/// Handler reports that a slow watcher may be behind before it loses some.
const HANDLER_REPORTS_MAX: usize = 64;

/// How the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonOptions {
    /// `/` on a real node; two nodes on one host have two roots.
    pub root: PathBuf,
    /// Where log lines go.
    pub log: LogTarget,
    /// Which log lines, in the words of `RUST_LOG`; `None`: that variable, or `info`.
    pub log_filter: Option<String>,
    /// Serve NBD on this TCP address too (usually port 10809). Anybody who can reach it can read and write.
    pub nbd_tcp: Option<SocketAddr>,
    /// Whether handlers are run.
    pub handlers: Handlers,
    /// Directory for full recordings of every resource, from its creation on.
    pub record: Option<PathBuf>,
}

impl Default for DaemonOptions {
    fn default() -> DaemonOptions {
        DaemonOptions {
            root: PathBuf::from("/"),
            log: LogTarget::Stderr,
            log_filter: None,
            nbd_tcp: None,
            handlers: Handlers::Run,
            record: None,
        }
    }
}

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard error, coloured on a terminal.
    Stderr,
    /// The end of a file.
    File(PathBuf),
    /// Nowhere: the caller has installed a subscriber of its own.
    Installed,
}

/// Why the daemon could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// A directory, file or socket of the daemon cannot be used.
    #[error("cannot {what} {}: {source}", path.display())]
    Place {
        /// What was tried: `create`, `open`, `listen on`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another daemon has this root.
    #[error("another tandemd runs already with this root ({holder}); it holds {}", path.display())]
    AlreadyRunning {
        /// The lock file.
        path: PathBuf,
        /// Its process.
        holder: String,
    },
    /// The TCP port for NBD clients cannot be used.
    #[error("cannot listen on {address} for NBD clients: {source}")]
    Port {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The filter of log lines cannot be understood.
    #[error("cannot understand the log filter {filter:?}: {problem}")]
    LogFilter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The operating system refuses something that every program needs.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// Runs the daemon until SIGTERM, SIGINT or a `shutdown` on its control socket; everything is in order then.
///
/// # Errors
/// It could not start: nothing has been changed then.
pub fn run(options: DaemonOptions) -> Result<(), DaemonError> {
    start_log(&options)?;
    crate::memory::few_arenas();
    run_with(
        options,
        crate::resource_loop::spawn::<tandem_replicator::Resource>,
    )
}

/// As [`run`], with the engine behind `spawner` and without touching the log.
pub(crate) fn run_with(options: DaemonOptions, spawner: Spawner) -> Result<(), DaemonError> {
    let places = Places::new(&options.root);
    prepare_directories(&places, options.record.as_deref())?;
    let lock = Lock::take(&places.lock_file())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(&options, places.clone(), spawner));
    for path in [
        places.control_socket(),
        places.nbd_socket(),
        places.proc_file(),
    ] {
        // What was never made cannot be removed; nothing depends on it.
        let _ = std::fs::remove_file(path);
    }
    // A thread that hangs in a disk must not keep the process.
    runtime.shutdown_background();
    drop(lock);
    result
}

async fn serve(
    options: &DaemonOptions,
    places: Places,
    spawner: Spawner,
) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listen = |path: PathBuf| {
        exports::listen_unix(&path).map_err(|source| DaemonError::Place {
            what: "listen on",
            path,
            source,
        })
    };
    let control = listen(places.control_socket())?;
    let nbd = listen(places.nbd_socket())?;
    let (tcp, nbd_tcp) = match options.nbd_tcp {
        Some(address) => {
            let failed = |source| DaemonError::Port { address, source };
            let listener = tokio::net::TcpListener::bind(address)
                .await
                .map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            (Some(listener), Some(address))
        }
        None => (None, None),
    };
    let surroundings = Surroundings {
        places: places.clone(),
        handlers: options.handlers,
        handler_reports: broadcast::Sender::new(HANDLER_REPORTS_MAX),
        nbd_tcp,
        epoch: Instant::now(),
        record: options.record.clone(),
    };
    let node = Node::new(surroundings, spawner);
    tokio::spawn(exports::serve_unix(Arc::clone(&node), nbd, Scope::All));
    if let Some(listener) = tcp {
        tokio::spawn(exports::serve_tcp(Arc::clone(&node), listener));
    }
    tokio::spawn(server::serve(Arc::clone(&node), control));
    tokio::spawn(keep_proc_file(Arc::clone(&node), places.proc_file()));
    tracing::info!(root = %places.root().display(), pid = std::process::id(), "tandemd is ready");
    systemd::notify("READY=1");
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: going down"),
        _ = interrupt.recv() => tracing::info!("SIGINT: going down"),
        () = node.stop_wanted() => tracing::info!("asked to go down"),
    }
    systemd::notify("STOPPING=1");
    tokio::select! {
        () = node.stop_everything() => tracing::info!("everything is down"),
        _ = terminate.recv() => tracing::warn!("second signal: going at once"),
        _ = interrupt.recv() => tracing::warn!("second signal: going at once"),
    }
    Ok(())
}

/// Rewrites the proc text after changes, and once a second if counters have moved.
async fn keep_proc_file(node: Arc<Node>, path: PathBuf) {
    let mut changes = node.changes();
    let mut last = String::new();
    loop {
        changes.borrow_and_update();
        // A daemon that was killed leaves the file: its process tells whether it is still true.
        let head = format!("{} (process {})\n", proc::HEAD, std::process::id());
        let text = proc::text(&node.last_status(None).resources).replacen(
            &format!("{}\n", proc::HEAD),
            &head,
            1,
        );
        if text != last {
            match proc::write_file(&path, &text) {
                Ok(()) => last = text,
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot write the proc text");
                }
            }
        }
        tokio::time::sleep(proc::WRITE_INTERVAL).await;
        if tokio::time::timeout(proc::REFRESH_INTERVAL, changes.changed())
            .await
            .is_err()
        {
            // Every loop publishes its counters; what has changed wakes the next round.
            let _ = node.status(None).await;
        }
    }
}

fn prepare_directories(places: &Places, record: Option<&Path>) -> Result<(), DaemonError> {
    let mut directories = vec![
        (places.run_dir(), 0o755),
        (places.nbd_dir(), 0o755),
        (places.state_dir(), 0o700),
    ];
    directories.extend(record.map(|dir| (dir.to_owned(), 0o700)));
    for (path, mode) in directories {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&path)
            .map_err(|source| DaemonError::Place {
                what: "create",
                path,
                source,
            })?;
    }
    Ok(())
}

/// The single-instance lock: a locked file with the process id in it.
struct Lock {
    file: std::fs::File,
}

impl Lock {
    fn take(path: &Path) -> Result<Lock, DaemonError> {
        let failed = |source: io::Error| DaemonError::Place {
            what: "open",
            path: path.to_owned(),
            source,
        };
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut text = String::new();
            let holder = match file
                .read_to_string(&mut text)
                .ok()
                .and_then(|_| text.trim().parse().ok())
            {
                Some(pid) => crate::process::name_of(pid),
                None => "its process is not known".to_owned(),
            };
            return Err(DaemonError::AlreadyRunning {
                path: path.to_owned(),
                holder,
            });
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        Ok(Lock { file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Empty, not removed: removing it would let a third daemon lock another file of the same name.
        let _ = self.file.set_len(0);
    }
}

fn start_log(options: &DaemonOptions) -> Result<(), DaemonError> {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = match &options.log_filter {
        Some(filter) => EnvFilter::try_new(filter).map_err(|error| DaemonError::LogFilter {
            filter: filter.clone(),
            problem: error.to_string(),
        })?,
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    let started = match &options.log {
        LogTarget::Installed => return Ok(()),
        LogTarget::Stderr => {
            let colours = io::IsTerminal::is_terminal(&io::stderr());
            fmt()
                .with_env_filter(filter)
                .with_ansi(colours)
                .with_writer(io::stderr)
                .try_init()
        }
        LogTarget::File(path) => {
            let file = std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .map_err(|source| DaemonError::Place {
                    what: "open",
                    path: path.clone(),
                    source,
                })?;
            fmt()
                .with_env_filter(filter)
                .with_ansi(false)
                .with_writer(Arc::new(file))
                .try_init()
        }
    };
    if started.is_err() {
        tracing::debug!("a log subscriber is installed already: it stays");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
