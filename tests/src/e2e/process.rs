//! Processes with a time limit.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long an ended process' outputs may stay open without a word: its own last words arrive at once, also on a busy machine.
const OUTPUT_LIMIT: Duration = Duration::from_secs(2);

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
    /// Whether either output contains `words`.
    pub fn says(&self, words: &str) -> bool {
        self.stdout.contains(words) || self.stderr.contains(words)
    }

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
        while let Ok(piece) = output.recv_timeout(OUTPUT_LIMIT) {
            text.push_str(&piece);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn outputs_and_exit_code_are_those_of_the_process() {
        let ended = run(
            &mut shell("echo out; echo err >&2; exit 3"),
            Duration::from_secs(10),
        );
        assert_eq!(
            (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
            (Some(3), "out\n", "err\n")
        );
        assert!(ended.says("out") && ended.says("err") && !ended.says("exit"));
    }

    #[test]
    #[should_panic(expected = "did not end within")]
    fn a_process_that_does_not_end_is_killed() {
        run(&mut shell("exec sleep 600"), Duration::from_millis(50));
    }
}
