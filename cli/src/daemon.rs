//! Speaking to the daemon, and starting one.

use std::fs::OpenOptions;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tandem_daemon::control::{Asked, ControlClient, ControlError};

use crate::failure::{CANNOT_RUN, Failure};
use crate::invocation::Invocation;

/// Time that a fresh daemon gets until its control socket answers.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// Pause between two looks at the socket.
const START_POLL: Duration = Duration::from_millis(20);

/// The connection to the running daemon; `None` if none runs.
pub(crate) fn running(invocation: &Invocation) -> Result<Option<ControlClient>, Failure> {
    match ControlClient::connect_root(invocation.root_dir()) {
        Ok(client) => Ok(Some(client)),
        Err(ControlError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(failed(invocation, &error)),
    }
}

/// The connection to the daemon, which must run.
pub(crate) fn connect(invocation: &Invocation) -> Result<ControlClient, Failure> {
    ControlClient::connect_root(invocation.root_dir()).map_err(|error| failed(invocation, &error))
}

/// A failed call.
pub(crate) fn failed(invocation: &Invocation, error: &ControlError) -> Failure {
    match error {
        ControlError::NotRunning { path } => Failure::new(
            CANNOT_RUN,
            format!(
                "tandemd is not running: nobody listens on {}",
                path.display()
            ),
        )
        .next(invocation.adm("up all")),
        ControlError::Timeout { pid, asked, .. } => {
            let failure = Failure::new(CANNOT_RUN, error.to_string());
            let failure = match asked {
                Asked::Question => failure,
                Asked::Change => failure.line(
                    "What was asked of it may still be carried out, as soon as it goes on. Other commands will hang the same way.",
                ),
            };
            match pid {
                Some(pid) => failure.next(format!(
                    "ps -o pid,stat,wchan:24,etime,args -p {pid}   # T: it was stopped, kill -CONT {pid} lets it go on; D: it hangs in the kernel"
                )),
                None => failure,
            }
        }
        _ => Failure::new(CANNOT_RUN, error.to_string()),
    }
}

/// The connection to the daemon; one is started if none runs.
pub(crate) fn start(invocation: &Invocation) -> Result<ControlClient, Failure> {
    if let Some(client) = running(invocation)? {
        return Ok(client);
    }
    let mut child = spawn(invocation, &["--detached"])?;
    let waited = wait_until_it_answers(invocation, &mut child);
    // It lives on by itself: nobody waits for it.
    drop(child);
    waited
}

/// Where the output of a daemon in the background goes.
pub(crate) fn log_file(invocation: &Invocation) -> std::path::PathBuf {
    invocation.places().state_dir().join("tandemd.log")
}

/// Starts `tandem daemon` with these further options; its output goes to the log file.
pub(crate) fn spawn(invocation: &Invocation, options: &[&str]) -> Result<Child, Failure> {
    let log = log_file(invocation);
    let cannot = |what: String, error: &std::io::Error| {
        Failure::new(CANNOT_RUN, format!("cannot {what}: {error}"))
    };
    let directory = invocation.places().state_dir();
    std::fs::create_dir_all(&directory)
        .map_err(|error| cannot(format!("create {}", directory.display()), &error))?;
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .map_err(|error| cannot(format!("open the log {}", log.display()), &error))?;
    let errors = output
        .try_clone()
        .map_err(|error| cannot(format!("open the log {}", log.display()), &error))?;
    let program = std::env::current_exe()
        .map_err(|error| cannot("find the own program".to_owned(), &error))?;
    // It may outlive this working directory.
    let root = std::path::absolute(invocation.root_dir())
        .map_err(|error| cannot("find the root".to_owned(), &error))?;
    Command::new(program)
        .arg("daemon")
        .arg("--root")
        .arg(root)
        .args(options)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(|error| cannot("start tandemd".to_owned(), &error))
}

/// Waits until a daemon that was just started answers.
pub(crate) fn wait_until_it_answers(
    invocation: &Invocation,
    child: &mut Child,
) -> Result<ControlClient, Failure> {
    let log = log_file(invocation);
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        if let Some(mut client) = running(invocation)?
            && client.version().is_ok()
        {
            return Ok(client);
        }
        if let Ok(Some(status)) = child.try_wait() {
            let mut failure = Failure::new(CANNOT_RUN, format!("tandemd ended at once: {status}"));
            for line in last_lines(&log) {
                failure = failure.line(line);
            }
            return Err(failure.next(format!("tail {}", log.display())));
        }
        if Instant::now() > deadline {
            let line = format!(
                "tandemd does not answer after {} s",
                START_DEADLINE.as_secs()
            );
            return Err(Failure::new(CANNOT_RUN, line).next(format!("tail {}", log.display())));
        }
        std::thread::sleep(START_POLL);
    }
}

/// The end of the log: what a daemon said before it gave up.
fn last_lines(log: &std::path::Path) -> Vec<String> {
    const LINES: usize = 3;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect()
}
