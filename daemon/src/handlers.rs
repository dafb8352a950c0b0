//! Handlers: shell commands of the configuration that the engine asks for (docs/spec/config-and-cli.md section 6).
//!
//! One thread a resource runs them in the order of the requests, one at a time, so that no handler runs in parallel with itself or
//! overtakes another. Those for which minutes count do not wait for it: each has a thread of its own. They get a clean environment, an empty standard input and a process group of their own; too slow: killed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::control::messages::{MetaDisk, ResourceDefinition};

/// Time limit of a handler where nothing else is said (`cmd-timeout-long`, config-and-cli.md 2.1).
const HANDLER_TIMEOUT: Duration = Duration::from_secs(600);

/// Exit code of a handler that was killed because it took too long.
const EXIT_TOO_SLOW: i32 = 20;

/// Handlers that wait for no other one, however long that takes: a disk has failed, a Primary has lost its data, a peer is to be fenced.
const URGENT: [&str; 3] = ["fence-peer", "local-io-error", "pri-on-incon-degr"];

/// Lines of a handler's output that are logged; the rest is dropped.
const OUTPUT_LINES_MAX: usize = 200;

/// Bytes of a line that are logged.
const OUTPUT_LINE_BYTES_MAX: u64 = 1024;

/// Whether handlers are run at all. Tests on a shared machine switch them off: a typical one halts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handlers {
    /// Run what the configuration says.
    #[default]
    Run,
    /// Only log what would have been run; its exit code counts as 0.
    LogOnly,
}

/// A handler to run.
#[derive(Debug)]
pub(crate) struct Job<T> {
    /// Comes back with the exit code.
    pub(crate) tag: T,
    pub(crate) name: String,
    /// What to run; `None`: not configured, which counts as exit 0.
    pub(crate) command: Option<String>,
    pub(crate) environment: BTreeMap<String, String>,
    /// How long it may take; `None`: for ever.
    pub(crate) limit: Option<Duration>,
}

/// How long the handlers of a resource may take.
pub(crate) fn limit(definition: &ResourceDefinition) -> Option<Duration> {
    match definition.handler_seconds {
        None => Some(HANDLER_TIMEOUT),
        Some(0) => None,
        Some(seconds) => Some(Duration::from_secs(seconds)),
    }
}

/// What runs the handlers of one resource: a queue with a thread for most of them, and one for each of [`URGENT`] from its first use on.
pub(crate) struct Runner<T> {
    resource: Arc<str>,
    mode: Handlers,
    jobs: mpsc::Sender<Job<T>>,
    urgent: BTreeMap<&'static str, mpsc::Sender<Job<T>>>,
    sender: UnboundedSender<(T, i32)>,
    results: UnboundedReceiver<(T, i32)>,
}

impl<T: Send + 'static> Runner<T> {
    /// Starts the thread.
    pub(crate) fn new(resource: Arc<str>, mode: Handlers) -> std::io::Result<Runner<T>> {
        let (sender, results) = unbounded_channel();
        Ok(Runner {
            jobs: queue(&resource, mode, &sender)?,
            urgent: BTreeMap::new(),
            resource,
            mode,
            sender,
            results,
        })
    }

    /// Runs a handler after those of its queue that were asked for before. A thread that has died counts as a handler that could not be
    /// run.
    pub(crate) fn run(&mut self, job: Job<T>) -> Result<(), T> {
        let queue = self.queue_of(&job.name);
        queue.send(job).map_err(|mpsc::SendError(job)| job.tag)
    }

    fn queue_of(&mut self, handler: &str) -> &mpsc::Sender<Job<T>> {
        let Some(name) = URGENT.into_iter().find(|name| *name == handler) else {
            return &self.jobs;
        };
        match self.urgent.entry(name) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => match queue(&self.resource, self.mode, &self.sender) {
                Ok(queue) => entry.insert(queue),
                Err(error) => {
                    tracing::error!(handler, %error, "no thread of its own; it waits for the other handlers");
                    &self.jobs
                }
            },
        }
    }

    /// The next handler that ended.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<(T, i32)> {
        match self.results.poll_recv(context) {
            Poll::Ready(Some(result)) => Poll::Ready(result),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// Starts a thread that runs what is put into its queue, until the queue is dropped.
fn queue<T: Send + 'static>(
    resource: &Arc<str>,
    mode: Handlers,
    results: &UnboundedSender<(T, i32)>,
) -> std::io::Result<mpsc::Sender<Job<T>>> {
    let (jobs, queue) = mpsc::channel::<Job<T>>();
    let (resource, results) = (Arc::clone(resource), results.clone());
    std::thread::Builder::new()
        .name("handlers".to_owned())
        .spawn(move || {
            let _span = tracing::info_span!("resource", name = %resource).entered();
            work(&queue, &results, mode);
        })?;
    Ok(jobs)
}

fn work<T>(queue: &mpsc::Receiver<Job<T>>, results: &UnboundedSender<(T, i32)>, mode: Handlers) {
    while let Ok(job) = queue.recv() {
        let Job {
            tag,
            name,
            command,
            environment,
            limit,
        } = job;
        let exit = match command {
            None => 0,
            Some(command) if mode == Handlers::LogOnly => {
                tracing::warn!(handler = %name, %command, "handlers are switched off: not run");
                0
            }
            Some(command) => run_one(&name, &command, &environment, limit),
        };
        if results.send((tag, exit)).is_err() {
            return;
        }
    }
}

/// Runs a handler to its end and returns its exit code: 0 if it could not be started (state-machine.md 2.13).
fn run_one(
    name: &str,
    command: &str,
    environment: &BTreeMap<String, String>,
    limit: Option<Duration>,
) -> i32 {
    tracing::info!(handler = name, command, "handler begins");
    let started = Instant::now();
    let child = Command::new("/bin/sh")
        .args(["-c", command])
        .env_clear()
        .envs(environment)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            tracing::error!(handler = name, %error, "handler could not be run; it counts as exit 0");
            return 0;
        }
    };
    log_lines(name, child.stdout.take());
    log_lines(name, child.stderr.take());
    let exit = wait(&mut child, limit);
    let seconds = started.elapsed().as_secs_f32();
    match exit {
        Some(exit) => tracing::info!(handler = name, exit, seconds, "handler ended"),
        None => tracing::error!(
            handler = name,
            seconds,
            "handler took too long and was killed"
        ),
    }
    exit.unwrap_or(EXIT_TOO_SLOW)
}

/// Waits for the end of a process, at most for `limit`; then its whole group is killed.
fn wait(child: &mut Child, limit: Option<Duration>) -> Option<i32> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pid.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                // A shell's convention for a process that died of a signal.
                return Some(
                    status
                        .code()
                        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
                );
            }
            Ok(None) => {}
            Err(_) => return Some(0),
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            break;
        }
        match &pidfd {
            Some(pidfd) => {
                let mut poll = [PollFd::new(pidfd, PollFlags::IN)];
                let left = left.and_then(|left| left.try_into().ok());
                let _ = rustix::event::poll(&mut poll, left.as_ref());
            }
            // Before Linux 5.3 there is no pidfd.
            None => {
                std::thread::sleep(Duration::from_millis(20).min(left.unwrap_or(Duration::MAX)))
            }
        }
    }
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
    let _ = child.wait();
    None
}

/// Logs what a handler says, on a thread of its own: something that the handler left behind may keep the pipe open for ever.
fn log_lines(name: &str, output: Option<impl Read + Send + 'static>) {
    let Some(output) = output else { return };
    let name = name.to_owned();
    let span = tracing::Span::current();
    let spawned = std::thread::Builder::new()
        .name("handler-output".to_owned())
        .spawn(move || {
            let _entered = span.enter();
            let mut reader = BufReader::new(output);
            let mut lines = 0;
            loop {
                let mut line = Vec::new();
                match reader
                    .by_ref()
                    .take(OUTPUT_LINE_BYTES_MAX)
                    .read_until(b'\n', &mut line)
                {
                    Ok(0) | Err(_) => return,
                    Ok(_) if lines < OUTPUT_LINES_MAX => {
                        let text = String::from_utf8_lossy(&line);
                        tracing::info!(handler = %name, "{}", text.trim_end());
                        lines += 1;
                    }
                    Ok(_) => {}
                }
            }
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "the output of a handler cannot be logged");
    }
}

/// The environment of a handler: both script families' variables (config-and-cli.md 6.1).
pub(crate) fn environment(
    definition: &ResourceDefinition,
    volume: Option<u16>,
    connection_state: &str,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let mut set = |name: &str, value: String| {
        env.insert(name.to_owned(), value);
    };
    set("HOME", "/".to_owned());
    set("TERM", "linux".to_owned());
    set("PATH", "/sbin:/usr/sbin:/bin:/usr/bin".to_owned());
    set("DRBD_RESOURCE", definition.name.clone());
    set(
        "DRBD_CONF",
        definition
            .config_file
            .clone()
            .unwrap_or("/etc/drbd.conf".to_owned()),
    );
    set("DRBD_CSTATE", connection_state.to_owned());
    let concerned: Vec<_> = definition
        .volumes
        .iter()
        .filter(|candidate| volume.is_none_or(|number| candidate.number == number))
        .collect();
    let words = |of: fn(&crate::control::messages::VolumeDefinition) -> String| {
        concerned
            .iter()
            .map(|volume| of(volume))
            .collect::<Vec<_>>()
            .join(" ")
    };
    set("DRBD_MINOR", words(|volume| volume.minor.to_string()));
    set("DRBD_VOLUME", words(|volume| volume.number.to_string()));
    set(
        "DRBD_LL_DISK",
        words(|volume| volume.disk.clone().unwrap_or_else(|| "none".to_owned())),
    );
    set(
        "DRBD_BACKING_DEV",
        words(|volume| volume.disk.clone().unwrap_or_else(|| "none".to_owned())),
    );
    set(
        "DRBD_META_DISK",
        words(|volume| match &volume.meta_disk {
            MetaDisk::Internal => "internal".to_owned(),
            MetaDisk::External { path } | MetaDisk::Indexed { path, .. } => path.clone(),
        }),
    );
    for volume in &definition.volumes {
        set(
            &format!("DRBD_MINOR_{}", volume.number),
            volume.minor.to_string(),
        );
        let disk = volume.disk.clone().unwrap_or_else(|| "none".to_owned());
        set(&format!("DRBD_BACKING_DEV_{}", volume.number), disk);
    }
    if let Some(connection) = &definition.connection {
        let family =
            |address: std::net::SocketAddr| if address.is_ipv4() { "ipv4" } else { "ipv6" };
        set("DRBD_PEER", connection.peer_name.clone());
        set("DRBD_PEERS", connection.peer_name.clone());
        set("DRBD_PEER_AF", family(connection.peer_address).to_owned());
        set(
            "DRBD_PEER_ADDRESS",
            connection.peer_address.ip().to_string(),
        );
        set("DRBD_MY_AF", family(connection.my_address).to_owned());
        set("DRBD_MY_ADDRESS", connection.my_address.ip().to_string());
        if let Some((mine, peer)) = connection.node_ids {
            set("DRBD_MY_NODE_ID", mine.to_string());
            set("DRBD_PEER_NODE_ID", peer.to_string());
            set(&format!("DRBD_NODE_ID_{mine}"), connection.my_name.clone());
            set(
                &format!("DRBD_NODE_ID_{peer}"),
                connection.peer_name.clone(),
            );
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const WAIT: Duration = Duration::from_secs(20);

    fn job(tag: u32, command: &str) -> Job<u32> {
        let environment = [
            (
                "PATH".to_owned(),
                "/sbin:/usr/sbin:/bin:/usr/bin".to_owned(),
            ),
            ("DRBD_RESOURCE".to_owned(), "r0".to_owned()),
        ];
        Job {
            tag,
            name: "split-brain".to_owned(),
            command: Some(command.to_owned()),
            environment: environment.into(),
            limit: Some(WAIT),
        }
    }

    fn results(jobs: Vec<Job<u32>>) -> Vec<(u32, i32)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut runner = Runner::new("r0".into(), Handlers::Run).unwrap();
            let count = jobs.len();
            for job in jobs {
                runner.run(job).unwrap();
            }
            let mut results = Vec::new();
            while results.len() < count {
                let next = poll_fn(|context| runner.poll(context));
                results.push(tokio::time::timeout(WAIT, next).await.unwrap());
            }
            results
        })
    }

    #[test]
    fn handlers_run_in_order_and_tell_their_exit_code() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let say = |word: &str, exit: u32| {
            format!(
                "sleep 0.0$((5 - {exit})); echo {word}-$DRBD_RESOURCE >> {}; exit {exit}",
                file.display()
            )
        };
        let jobs = vec![
            job(1, &say("initial", 0)),
            job(2, &say("split", 4)),
            job(3, &say("last", 1)),
        ];
        assert_eq!(results(jobs), [(1, 0), (2, 4), (3, 1)]);
        assert_eq!(
            std::fs::read_to_string(file).unwrap(),
            "initial-r0\nsplit-r0\nlast-r0\n"
        );
    }

    #[test]
    fn the_environment_of_the_daemon_does_not_leak() {
        let jobs = vec![job(1, "test -z \"$CARGO_MANIFEST_DIR\" && exit 7")];
        assert_eq!(results(jobs), [(1, 7)]);
    }

    #[test]
    fn a_handler_that_takes_too_long_is_killed_with_its_children() {
        let started = Instant::now();
        let slow = Job {
            limit: Some(Duration::from_millis(200)),
            ..job(1, "sleep 60 & sleep 60")
        };
        assert_eq!(results(vec![slow, job(2, "exit 3")]), [(1, 20), (2, 3)]);
        assert!(started.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn urgent_handlers_wait_for_nothing_but_themselves_and_the_others_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let gate = dir.path().join("gate");
        let named = |tag, name: &str, command: String| Job {
            name: name.to_owned(),
            ..job(tag, &command)
        };
        let wait = format!("while ! [ -e {} ]; do sleep 0.01; done", gate.display());
        let jobs = vec![
            // Both hang until the third local-io-error runs.
            named(1, "after-resync-target", wait.clone()),
            named(2, "fence-peer", wait),
            named(3, "before-resync-target", "exit 3".to_owned()),
            named(4, "local-io-error", "exit 4".to_owned()),
            named(5, "local-io-error", "sleep 0.1; exit 5".to_owned()),
            named(
                6,
                "local-io-error",
                format!("touch {}; exit 6", gate.display()),
            ),
            named(7, "pri-on-incon-degr", "exit 7".to_owned()),
        ];
        let ended = results(jobs);
        let at = |tag| ended.iter().position(|(found, _)| *found == tag);
        let in_order = |tags: &[u32]| tags.is_sorted_by_key(|tag| at(*tag));
        assert!(in_order(&[4, 5, 6]) && in_order(&[1, 3]), "{ended:?}");
        assert!(at(5) < at(1) && at(5) < at(2), "{ended:?}");
        let mut exits = ended.clone();
        exits.sort_unstable();
        let expected = [(1, 0), (2, 0), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7)];
        assert_eq!(exits, expected);
    }

    #[test]
    fn a_handler_without_a_limit_ends_when_it_likes() {
        let patient = Job {
            limit: None,
            ..job(1, "sleep 0.3; exit 5")
        };
        assert_eq!(results(vec![patient]), [(1, 5)]);
    }

    #[test]
    fn what_is_not_configured_counts_as_success() {
        let absent = Job {
            command: None,
            ..job(1, "")
        };
        assert_eq!(results(vec![absent]), [(1, 0)]);
    }
}
