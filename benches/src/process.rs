//! Processes that a run starts: each one is ended by its own id, also when the run is given up or dies.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::machine::is_installed;

/// How long anything that is started may take to be ready.
pub(crate) const READY_LIMIT: Duration = Duration::from_secs(30);

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(3);

/// Set by Ctrl-C; everything that waits looks at it.
pub type Stop = Arc<AtomicBool>;

/// A server that runs; dropping it ends it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// For the table: `alpha`, `far side`.
    pub role: &'static str,
}

impl Server {
    /// Starts `command`, its messages in `log`. It ends with this process whatever happens to it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: Command, role: &'static str, log: &Path) -> Result<Server, Failure> {
        let words = format!("start {:?}", command.get_program());
        let output = fs::File::create(log).map_err(Failure::system(words.clone()))?;
        let mut command = command;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            // Ctrl-C is for this process alone: it ends the servers itself, after the clients.
            .process_group(0);
        let child = command.spawn().map_err(Failure::system(words))?;
        Ok(Server { child, role })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, without a wait for its end.
    pub fn kill(&mut self) {
        self.child.kill().ok();
    }

    /// MiB of memory that it holds now (`VmRSS`); None when it has ended.
    pub fn resident_mib(&self) -> Option<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        Some(resident_kib(&status)? as f64 / 1024.0)
    }

    /// What its threads have used so far.
    pub fn usage(&self) -> Usage {
        Usage::of(self.pid())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its files are temporary: there is nothing that it would have to finish.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A program that ends when this process dies, with what Linux has for that.
pub fn bound_to_us(program: &str) -> Command {
    if !is_installed("setpriv") {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// Waits until `ready` gives a value.
///
/// # Errors
/// When it does not in time, with `what` and `explain`; when the run is given up.
pub fn wait_for<T>(
    what: &str,
    stop: &Stop,
    ready: impl FnMut() -> Option<T>,
    explain: impl Fn() -> String,
) -> Result<T, Failure> {
    wait_within(READY_LIMIT, what, stop, ready, explain)
}

/// As [`wait_for`], with a limit of its own.
///
/// # Errors
/// As [`wait_for`].
pub(crate) fn wait_within<T>(
    limit: Duration,
    what: &str,
    stop: &Stop,
    mut ready: impl FnMut() -> Option<T>,
    explain: impl Fn() -> String,
) -> Result<T, Failure> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::Interrupted);
        }
        if start.elapsed() > limit {
            let text = format!("{what} did not come within {limit:?}\n{}", explain());
            return Err(Failure::Unexpected(text));
        }
        std::thread::sleep(POLL);
    }
}

/// What a process has used up to a moment.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Nanoseconds on a CPU of each thread that lives (`/proc/PID/task/*/schedstat`).
    threads: BTreeMap<u32, u64>,
    /// User and system time in ticks, ended threads included (`/proc/PID/stat`).
    ticks: u64,
    /// Bytes that it sent to a storage device (`/proc/PID/io`).
    pub written_bytes: u64,
}

impl Usage {
    fn of(pid: u32) -> Usage {
        let mut threads = BTreeMap::new();
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for entry in tasks.into_iter().flatten().flatten() {
            let thread = entry.file_name().to_string_lossy().parse();
            let text = fs::read_to_string(entry.path().join("schedstat")).unwrap_or_default();
            let spent = text.split(' ').next().and_then(|word| word.parse().ok());
            if let (Ok(thread), Some(spent)) = (thread, spent) {
                threads.insert(thread, spent);
            }
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let written = io
            .lines()
            .find_map(|line| line.strip_prefix("write_bytes: "));
        Usage {
            threads,
            ticks: stat_ticks(&stat).unwrap_or_default(),
            written_bytes: written
                .and_then(|word| word.trim().parse().ok())
                .unwrap_or_default(),
        }
    }

    /// Microseconds of CPU since `earlier`: exact while the threads stayed the same, else in ticks of the system.
    pub fn cpu_us_since(&self, earlier: &Usage) -> f64 {
        let same = self.threads.keys().eq(earlier.threads.keys());
        if same && !self.threads.is_empty() {
            let before: u64 = earlier.threads.values().sum();
            let now: u64 = self.threads.values().sum();
            return now.saturating_sub(before) as f64 / 1000.0;
        }
        let per_second = rustix::param::clock_ticks_per_second().max(1) as f64;
        self.ticks.saturating_sub(earlier.ticks) as f64 * 1_000_000.0 / per_second
    }
}

fn resident_kib(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// utime + stime: the 14th and 15th word; the second one is a name in parentheses that may hold anything.
fn stat_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut words = rest.split(' ').skip(11);
    let user: u64 = words.next()?.parse().ok()?;
    let system: u64 = words.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_does_not_confuse_its_times() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 10 0 0 0 25 17 0 0 20 0 1 0 5 6 7";
        assert_eq!(stat_ticks(stat), Some(42));
    }

    #[test]
    fn resident_memory_is_read_from_the_status_of_a_process() {
        let status = "Name:\ta\nVmPeak:\t  99 kB\nVmRSS:\t    5120 kB\n";
        assert_eq!(resident_kib(status), Some(5120));
        assert_eq!(resident_kib("Name:\tzombie\n"), None);
    }

    #[test]
    fn cpu_time_of_this_process_grows_while_it_works() {
        let before = Usage::of(std::process::id());
        let mut sum = 0u64;
        let start = Instant::now();
        // schedstat is brought up to date at least with every tick.
        while Usage::of(std::process::id()).cpu_us_since(&before) < 1000.0 {
            sum = std::hint::black_box(sum.wrapping_add(1));
            assert!(start.elapsed() < Duration::from_secs(20));
        }
    }

    #[test]
    fn threads_that_ended_are_counted_in_ticks() {
        let usage = |threads: &[(u32, u64)], ticks| Usage {
            threads: threads.iter().copied().collect(),
            ticks,
            written_bytes: 0,
        };
        let (before, after) = (usage(&[(1, 500), (2, 900)], 3), usage(&[(1, 4500)], 5));
        let tick_us = 1_000_000.0 / rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(after.cpu_us_since(&before), 2.0 * tick_us);
        let same = usage(&[(1, 1500), (2, 1900)], 3);
        assert_eq!(same.cpu_us_since(&before), 2.0);
    }

    #[test]
    fn a_dropped_server_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = bound_to_us("sleep");
        command.arg("600");
        let server = Server::start(command, "sleeper", &dir.path().join("log")).unwrap();
        let pid = server.pid();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(server);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_wait_ends_with_the_run() {
        let stop = Stop::new(AtomicBool::new(true));
        let waited = wait_for("never", &stop, || None::<()>, String::new);
        assert!(matches!(waited, Err(Failure::Interrupted)));
    }
}
