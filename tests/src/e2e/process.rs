//! Processes with a time limit.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How a process ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Exit code; None when a signal (or the time limit) ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// Both outputs, for messages.
    pub fn all(&self) -> String {
        format!("exit {:?}\n{}{}", self.code, self.stdout, self.stderr)
    }
}

/// Runs `command` to its end.
///
/// # Panics
/// When it cannot be started or does not end within `limit` (it is killed then).
pub fn run(command: &mut Command, limit: Duration) -> Ended {
    let words = format!("{command:?}");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("start {words}: {error}"));
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            break status;
        }
        if start.elapsed() > limit {
            child.kill().ok();
            child.wait().ok();
            panic!("{words} did not end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // A background process that the command left behind may hold its outputs open: what has arrived is enough.
    Ended {
        code: status.code(),
        stdout: collect(stdout),
        stderr: collect(stderr),
    }
}

type Output = std::sync::mpsc::Receiver<String>;

fn drain(mut pipe: impl Read + Send + 'static) -> Output {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = pipe.read(&mut buffer) {
            if length == 0
                || send
                    .send(String::from_utf8_lossy(&buffer[..length]).into_owned())
                    .is_err()
            {
                break;
            }
        }
    });
    receive
}

fn collect(output: Option<Output>) -> String {
    let mut text = String::new();
    if let Some(output) = output {
        while let Ok(piece) = output.recv_timeout(Duration::from_millis(200)) {
            text.push_str(&piece);
        }
    }
    text
}
