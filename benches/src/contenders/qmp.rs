//! The few words that qemu-storage-daemon has to be told while it runs: JSON lines over a Unix socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Failure;

const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A monitor that is ready for commands.
#[derive(Debug)]
pub(super) struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    pub(super) fn connect(socket: &Path) -> Result<Monitor, Failure> {
        let failed = || Failure::system(format!("connect to the monitor {}", socket.display()));
        let stream = UnixStream::connect(socket).map_err(failed())?;
        stream
            .set_read_timeout(Some(ANSWER_LIMIT))
            .map_err(failed())?;
        let mut monitor = Monitor {
            stream: BufReader::new(stream),
        };
        monitor.line()?;
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Executes a command; what it returns.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Failure> {
        let text = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        let sent = self.stream.get_mut().write_all(text.as_bytes());
        sent.map_err(Failure::system(format!("send {command} to a monitor")))?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                let text = format!("the monitor refused {command}: {error}");
                return Err(Failure::Unexpected(text));
            }
            // Events come in between.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn line(&mut self) -> Result<Value, Failure> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        read.map_err(Failure::system("read from a monitor"))?;
        serde_json::from_str(&line)
            .map_err(|error| Failure::Unexpected(format!("the monitor said {line:?}: {error}")))
    }
}
