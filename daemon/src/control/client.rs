//! The client's side of the control socket: blocking, with a timeout on every wait, for command-line programs.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::messages::{
    Body, Call, CommandAnswer, DEADLINE_DEFAULT, HandlerReport, LINE_BYTES_MAX, Request,
    ResourceDefinition, Response, StatusReport, VersionReport,
};

/// Time that the daemon gets beyond the deadline of a request before it counts as hung.
const GRACE: Duration = Duration::from_secs(5);

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Nobody listens on the control socket.
    #[error("tandemd is not running (no daemon listens on {}); start it with: tandem daemon", path.display())]
    NotRunning {
        /// The control socket.
        path: PathBuf,
    },
    /// The control socket cannot be used.
    #[error("cannot use the control socket {}: {source}", path.display())]
    Socket {
        /// The control socket.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The daemon did not answer in time.
    #[error("tandemd{} did not answer within {} s on {}", named(*pid), waited.as_millis().div_ceil(1000), path.display())]
    Timeout {
        /// The control socket.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
        /// The daemon's process, if the socket tells it.
        pid: Option<i32>,
        /// What has no answer.
        asked: Asked,
    },
    /// The daemon hung up without an answer.
    #[error("tandemd closed {} without an answer; its log tells why", path.display())]
    HungUp {
        /// The control socket.
        path: PathBuf,
    },
    /// The daemon's answer cannot be understood: the versions differ.
    #[error(
        "cannot understand the answer of tandemd ({problem}); daemon and command differ in version?"
    )]
    Malformed {
        /// What is wrong with it.
        problem: String,
    },
}

/// What the daemon was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// How things are: nothing comes of it any more.
    Question,
    /// To change something: it may still do so when it goes on.
    Change,
}

impl Asked {
    fn of(call: &Call) -> Asked {
        match call {
            Call::Ping
            | Call::Version
            | Call::Show { .. }
            | Call::Status { .. }
            | Call::Watch { .. }
            | Call::Wait { .. } => Asked::Question,
            _ => Asked::Change,
        }
    }
}

fn named(pid: Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

/// One connection to the daemon. A call is one request and its answer; a watch takes the connection for itself.
#[derive(Debug)]
pub struct ControlClient {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    next_id: u64,
    /// A line that has come in part when a timeout struck.
    partial: Vec<u8>,
    asked: Asked,
    /// No answer is awaited beyond it.
    until: Option<Instant>,
}

impl ControlClient {
    /// Connects to the daemon whose files lie under `root` (`/` on a real node).
    pub fn connect_root(root: &Path) -> Result<ControlClient, ControlError> {
        ControlClient::connect(&crate::places::Places::new(root).control_socket())
    }

    /// Connects to the control socket at `path`.
    pub fn connect(path: &Path) -> Result<ControlClient, ControlError> {
        let stream = UnixStream::connect(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                ControlError::NotRunning {
                    path: path.to_owned(),
                }
            }
            _ => ControlError::Socket {
                path: path.to_owned(),
                source,
            },
        })?;
        Ok(ControlClient {
            path: path.to_owned(),
            stream: BufReader::new(stream),
            next_id: 1,
            partial: Vec::new(),
            asked: Asked::Question,
            until: None,
        })
    }

    /// From now on no call waits longer than until this moment, whatever its deadline; `None`: as its deadline says.
    pub fn give_up_at(&mut self, until: Option<Instant>) {
        self.until = until;
    }

    /// Sends `call` and waits for its answer; `deadline` is how long the daemon may work on it
    /// (`None`: the default; for [`Call::Wait`]: for ever).
    pub fn call(&mut self, call: Call, deadline: Option<Duration>) -> Result<Body, ControlError> {
        let forever = deadline.is_none() && matches!(call, Call::Wait { .. });
        let wait = (!forever).then(|| deadline.unwrap_or(DEADLINE_DEFAULT) + GRACE);
        let id = self.send(call, deadline)?;
        loop {
            let response = self.receive(wait)?;
            if response.id == id || response.id == 0 {
                return Ok(response.body);
            }
        }
    }

    /// A call whose answer is a [`CommandAnswer`]: all commands that change something.
    pub fn command(
        &mut self,
        call: Call,
        deadline: Option<Duration>,
    ) -> Result<CommandAnswer, ControlError> {
        match self.call(call, deadline)? {
            Body::Answer(answer) => Ok(answer),
            other => Err(unexpected("an answer", &other)),
        }
    }

    /// Versions and places of the daemon.
    pub fn version(&mut self) -> Result<VersionReport, ControlError> {
        match self.call(Call::Version, None)? {
            Body::Version(report) => Ok(report),
            other => Err(unexpected("a version", &other)),
        }
    }

    /// The status of one resource or of all. A resource that is not known gives `Ok(Err(answer))` with number 158.
    pub fn status(
        &mut self,
        resource: Option<&str>,
    ) -> Result<Result<StatusReport, CommandAnswer>, ControlError> {
        match self.call(
            Call::Status {
                resource: resource.map(str::to_owned),
            },
            None,
        )? {
            Body::Status(report) => Ok(Ok(report)),
            Body::Answer(answer) => Ok(Err(answer)),
            other => Err(unexpected("a status", &other)),
        }
    }

    /// The definition in force, or `Err(answer)` with number 158.
    pub fn definition(
        &mut self,
        resource: &str,
    ) -> Result<Result<ResourceDefinition, CommandAnswer>, ControlError> {
        match self.call(
            Call::Show {
                resource: resource.to_owned(),
            },
            None,
        )? {
            Body::Definition(definition) => Ok(Ok(*definition)),
            Body::Answer(answer) => Ok(Err(answer)),
            other => Err(unexpected("a definition", &other)),
        }
    }

    /// Turns the connection into a stream of status reports.
    pub fn watch(mut self, resource: Option<&str>) -> Result<Watch, ControlError> {
        let id = self.send(
            Call::Watch {
                resource: resource.map(str::to_owned),
            },
            None,
        )?;
        Ok(Watch { client: self, id })
    }

    fn send(&mut self, call: Call, deadline: Option<Duration>) -> Result<u64, ControlError> {
        let id = self.next_id;
        self.next_id += 1;
        self.asked = Asked::of(&call);
        let deadline_ms =
            deadline.map(|length| u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
        let mut line = serde_json::to_string(&Request {
            id,
            deadline_ms,
            call,
        })
        .map_err(|error| ControlError::Malformed {
            problem: error.to_string(),
        })?;
        line.push('\n');
        let stream = self.stream.get_mut();
        let sent = stream
            .set_write_timeout(Some(GRACE))
            .and_then(|()| stream.write_all(line.as_bytes()));
        sent.map_err(|source| self.failed(source, GRACE))?;
        Ok(id)
    }

    fn receive(&mut self, wait: Option<Duration>) -> Result<Response, ControlError> {
        let left = self
            .until
            .map(|until| until.saturating_duration_since(Instant::now()));
        // A socket takes no timeout of zero.
        let left = left.map(|left| left.max(Duration::from_millis(1)));
        let wait = match (wait, left) {
            (Some(wait), Some(left)) => Some(wait.min(left)),
            (wait, left) => wait.or(left),
        };
        let waited = wait.unwrap_or(Duration::ZERO);
        let limit = (LINE_BYTES_MAX as u64 + 1).saturating_sub(self.partial.len() as u64);
        let read = self.stream.get_ref().set_read_timeout(wait).and_then(|()| {
            self.stream
                .by_ref()
                .take(limit)
                .read_until(b'\n', &mut self.partial)
        });
        match read {
            Err(source) => Err(self.failed(source, waited)),
            Ok(_)
                if self.partial.last() != Some(&b'\n') && self.partial.len() <= LINE_BYTES_MAX =>
            {
                Err(ControlError::HungUp {
                    path: self.path.clone(),
                })
            }
            Ok(_) => serde_json::from_slice(&std::mem::take(&mut self.partial)).map_err(|error| {
                ControlError::Malformed {
                    problem: error.to_string(),
                }
            }),
        }
    }

    /// The process that listens.
    fn pid(&self) -> Option<i32> {
        let credentials = rustix::net::sockopt::socket_peercred(self.stream.get_ref()).ok()?;
        Some(credentials.pid.as_raw_nonzero().get())
    }

    fn failed(&self, source: std::io::Error, waited: Duration) -> ControlError {
        let path = self.path.clone();
        match source.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                ControlError::Timeout {
                    path,
                    waited,
                    pid: self.pid(),
                    asked: self.asked,
                }
            }
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => {
                ControlError::HungUp { path }
            }
            _ => ControlError::Socket { path, source },
        }
    }
}

fn unexpected(wanted: &str, got: &Body) -> ControlError {
    let got = match got {
        Body::Answer(answer) => format!("the answer {} {}", answer.number, answer.text),
        Body::Version(_) => "a version".to_owned(),
        Body::Definition(_) => "a definition".to_owned(),
        Body::Status(_) => "a status".to_owned(),
        Body::Handler(_) => "a handler".to_owned(),
    };
    ControlError::Malformed {
        problem: format!("expected {wanted}, got {got}"),
    }
}

/// One item of a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchItem {
    /// The status as it is now.
    Status(StatusReport),
    /// A handler begins or ended.
    Handler(HandlerReport),
    /// The watch was refused (such as 158, unknown resource).
    Refused(CommandAnswer),
}

/// A stream of status reports: the status now, then after every change.
#[derive(Debug)]
pub struct Watch {
    client: ControlClient,
    id: u64,
}

impl Watch {
    /// The next item; [`ControlError::Timeout`] if nothing changed for `wait` (the watch can go on).
    pub fn next(&mut self, wait: Option<Duration>) -> Result<WatchItem, ControlError> {
        loop {
            let response = self.client.receive(wait)?;
            if response.id != self.id && response.id != 0 {
                continue;
            }
            match response.body {
                Body::Status(report) => return Ok(WatchItem::Status(report)),
                Body::Handler(report) => return Ok(WatchItem::Handler(report)),
                Body::Answer(answer) => return Ok(WatchItem::Refused(answer)),
                Body::Version(_) | Body::Definition(_) => {}
            }
        }
    }
}
