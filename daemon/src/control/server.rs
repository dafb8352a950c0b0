//! The daemon's side of the control socket.

use std::sync::Arc;
use std::time::Duration;

use tandem_protocol::control::{LineReader, to_line};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::messages::{
    Body, Call, CommandAnswer, DEADLINE_DEFAULT, DEADLINE_MAX, LINE_BYTES_MAX, Request, Response,
};
use crate::node::Node;

/// Connections with commands at one time; further ones are told so and closed. Watches are counted apart.
const CONNECTIONS_MAX: usize = 64;

/// Watches at one time.
const WATCHES_MAX: usize = 256;

/// Connections at one time that are being told that there is no place.
const REFUSALS_MAX: usize = 64;

/// How long a connection may stay without a request: a silent one must not keep an administrator out.
const FIRST_REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// How long the rest of what a refused client says is read. A socket closed with unread input would discard the
/// answer that the client has not read yet.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// How many bytes of it are read.
const DRAIN_BYTES_MAX: usize = LINE_BYTES_MAX;

/// How long a client may take to accept an answer.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// Least time between two reports of a watch.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the socket until the task is aborted.
pub(crate) async fn serve(node: Arc<Node>, listener: UnixListener) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let watches = Arc::new(Semaphore::new(WATCHES_MAX));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let permit = Arc::clone(&permits).try_acquire_owned();
                let connection = Connection {
                    who: who(&stream),
                    stream,
                    node: Arc::clone(&node),
                    watches: Arc::clone(&watches),
                };
                match permit {
                    Ok(permit) => {
                        tokio::spawn(connection.run(permit));
                    }
                    Err(_) => {
                        tracing::info!(
                            client = connection.who,
                            "a control connection was refused: {CONNECTIONS_MAX} connections are open"
                        );
                        // Beyond this limit they are closed without a word.
                        if let Ok(place) = Arc::clone(&refusals).try_acquire_owned() {
                            tokio::spawn(connection.no_place(place));
                        }
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The process at the other end, for the log.
fn who(stream: &UnixStream) -> String {
    let credentials = stream.peer_cred().ok();
    credentials
        .and_then(|credentials| credentials.pid())
        .map_or_else(
            || "a client on the control socket".to_owned(),
            crate::process::name_of,
        )
}

struct Connection {
    who: String,
    stream: UnixStream,
    node: Arc<Node>,
    watches: Arc<Semaphore>,
}

impl Connection {
    async fn run(self, permit: OwnedSemaphorePermit) {
        let who = self.who.clone();
        if let Err(error) = self.serve(permit).await {
            tracing::debug!(client = who, %error, "a control connection broke");
        }
    }

    async fn no_place(self, place: OwnedSemaphorePermit) {
        let text = format!(
            "the daemon has {CONNECTIONS_MAX} connections of commands open, which is as many as it takes: end some of them \
             (a tandem status --watch, say), and try again"
        );
        // The client may be gone already.
        let _ = self.refuse(0, text).await;
        drop(place);
    }

    async fn serve(mut self, permit: OwnedSemaphorePermit) -> std::io::Result<()> {
        let mut reader = LineReader::new(LINE_BYTES_MAX);
        let mut buffer = [0; 16384];
        let mut until = Some(Instant::now() + FIRST_REQUEST_PATIENCE);
        loop {
            loop {
                match reader.next_message::<Request>() {
                    Ok(None) => break,
                    Ok(Some(Request {
                        id,
                        call: Call::Watch { resource },
                        ..
                    })) => {
                        let Ok(place) = Arc::clone(&self.watches).try_acquire_owned() else {
                            let text = format!("{WATCHES_MAX} watches are open");
                            return self.refuse(id, text).await;
                        };
                        drop(permit);
                        let ended = self.watch(id, resource).await;
                        drop(place);
                        return ended;
                    }
                    Ok(Some(request)) => {
                        until = None;
                        let id = request.id;
                        let body = answer(&self.node, request).await;
                        self.send(id, body).await?;
                    }
                    Err(error) => {
                        tracing::info!(client = self.who, %error, "a malformed request on the control socket");
                        return self.refuse(0, format!("malformed request: {error}")).await;
                    }
                }
            }
            let read = self.stream.read(&mut buffer);
            let count = match until {
                None => read.await?,
                Some(until) => match tokio::time::timeout_at(until, read).await {
                    Ok(count) => count?,
                    Err(_) => {
                        let waited = FIRST_REQUEST_PATIENCE.as_secs();
                        tracing::info!(
                            client = self.who,
                            "a control connection is closed: no request within {waited} s"
                        );
                        let text = format!("no request within {waited} s");
                        return self.refuse(0, text).await;
                    }
                },
            };
            match count {
                0 => return Ok(()),
                count => reader.push(buffer.get(..count).unwrap_or_default()),
            }
        }
    }

    /// The last answer of a connection, and its end.
    async fn refuse(mut self, id: u64, text: String) -> std::io::Result<()> {
        self.send(id, Body::Answer(CommandAnswer::failure(0, text, 20)))
            .await?;
        self.stream.shutdown().await?;
        let mut buffer = [0; 16384];
        let mut drained = 0;
        let drain = async {
            while drained < DRAIN_BYTES_MAX {
                match self.stream.read(&mut buffer).await? {
                    0 => break,
                    count => drained += count,
                }
            }
            Ok(())
        };
        tokio::time::timeout(DRAIN_PATIENCE, drain)
            .await
            .unwrap_or(Ok(()))
    }

    async fn send(&mut self, id: u64, body: Body) -> std::io::Result<()> {
        let line =
            to_line(&Response { id, body }, LINE_BYTES_MAX).map_err(std::io::Error::other)?;
        tokio::time::timeout(WRITE_PATIENCE, self.stream.write_all(&line))
            .await
            .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut)))
    }

    /// The status now and after every change, and every handler, until the client hangs up.
    async fn watch(&mut self, id: u64, resource: Option<String>) -> std::io::Result<()> {
        let mut changes = self.node.changes();
        let mut handlers = self.node.handler_reports();
        let mut last = None;
        loop {
            changes.borrow_and_update();
            let status = self.node.last_status(resource.as_deref());
            if last.as_ref() != Some(&status) {
                self.send(id, Body::Status(status.clone())).await?;
                last = Some(status);
            }
            let mut byte = [0];
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    tokio::time::sleep(WATCH_INTERVAL).await;
                }
                handler = handlers.recv() => match handler {
                    Ok(report) if resource.as_ref().is_none_or(|name| *name == report.resource) => {
                        self.send(id, Body::Handler(report)).await?;
                    }
                    // Another resource's; or so many that some were lost, which a watcher survives.
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Ok(()),
                },
                // The client says no more on this connection: whatever comes is its end.
                read = self.stream.read(&mut byte) => return read.map(|_| ()),
            }
        }
    }
}

async fn answer(node: &Arc<Node>, request: Request) -> Body {
    let waits = matches!(request.call, Call::Wait { .. });
    let deadline = match request.deadline_ms {
        Some(ms) => Some(Duration::from_millis(ms).min(DEADLINE_MAX.max(wait_max(waits)))),
        None if waits => None,
        None => Some(DEADLINE_DEFAULT),
    };
    let shutdown = matches!(request.call, Call::Shutdown);
    let work = node.execute(request.call);
    let Some(deadline) = deadline else {
        return work.await;
    };
    match tokio::time::timeout(deadline, work).await {
        Ok(body) => body,
        Err(_) => {
            // "Wait timed out" is 5, "step timed out" 20 (config-and-cli.md 4.3).
            let exit = if waits { 5 } else { 20 };
            let text = format!("no answer within {} s", deadline.as_secs_f32());
            let answer = CommandAnswer::failure(0, text, exit);
            Body::Answer(if waits || shutdown {
                answer
            } else {
                answer.with_info("it may still be carried out: look at the status")
            })
        }
    }
}

/// `wfc-timeout` goes up to 300000 s.
fn wait_max(waits: bool) -> Duration {
    Duration::from_secs(if waits { 300_000 } else { 0 })
}
