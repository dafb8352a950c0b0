//! The daemon's side of the control socket.

use std::sync::Arc;
use std::time::Duration;

use tandem_protocol::control::{LineReader, to_line};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;

use super::messages::{
    Body, Call, CommandAnswer, DEADLINE_DEFAULT, DEADLINE_MAX, LINE_BYTES_MAX, Request, Response,
};
use crate::node::Node;

/// Connections served at one time; further ones wait.
const CONNECTIONS_MAX: usize = 64;

/// How long a client may take to accept an answer.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// Least time between two reports of a watch.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the socket until the task is aborted.
pub(crate) async fn serve(node: Arc<Node>, listener: UnixListener) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let node = Arc::clone(&node);
                tokio::spawn(async move {
                    if let Err(error) = (Connection { stream, node }).serve().await {
                        tracing::debug!(%error, "a control connection broke");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Connection {
    stream: UnixStream,
    node: Arc<Node>,
}

impl Connection {
    async fn serve(mut self) -> std::io::Result<()> {
        let mut reader = LineReader::new(LINE_BYTES_MAX);
        let mut buffer = [0; 16384];
        loop {
            loop {
                match reader.next_message::<Request>() {
                    Ok(None) => break,
                    Ok(Some(Request {
                        id,
                        call: Call::Watch { resource },
                        ..
                    })) => {
                        return self.watch(id, resource).await;
                    }
                    Ok(Some(request)) => {
                        let id = request.id;
                        let body = answer(&self.node, request).await;
                        self.send(id, body).await?;
                    }
                    Err(error) => {
                        let text = format!("malformed request: {error}");
                        self.send(0, Body::Answer(CommandAnswer::failure(0, text, 20)))
                            .await?;
                        return Ok(());
                    }
                }
            }
            match self.stream.read(&mut buffer).await? {
                0 => return Ok(()),
                count => reader.push(buffer.get(..count).unwrap_or_default()),
            }
        }
    }

    async fn send(&mut self, id: u64, body: Body) -> std::io::Result<()> {
        let line =
            to_line(&Response { id, body }, LINE_BYTES_MAX).map_err(std::io::Error::other)?;
        tokio::time::timeout(WRITE_PATIENCE, self.stream.write_all(&line))
            .await
            .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut)))
    }

    /// The status now and after every change, and every handler, until the client hangs up.
    async fn watch(mut self, id: u64, resource: Option<String>) -> std::io::Result<()> {
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
