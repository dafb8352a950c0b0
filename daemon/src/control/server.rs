//! The daemon's side of the control socket.

use std::sync::Arc;
use std::time::Duration;

use tandem_protocol::control::{LineReader, to_line};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::idle::Idle;
use super::messages::{
    Body, Call, CommandAnswer, DEADLINE_DEFAULT, DEADLINE_MAX, LINE_BYTES_MAX, Request, Response,
};
use crate::node::Node;

/// Connections with commands at one time. A further one takes the place of one that waits for its next request, or waits for a
/// place. Watches are counted apart.
const CONNECTIONS_MAX: usize = 64;

/// Watches at one time.
const WATCHES_MAX: usize = 256;

/// Connections at one time that wait for a place, or are being told that there is none.
const QUEUE_MAX: usize = 64;

/// How long a connection waits for a place while all others are busy.
const PLACE_PATIENCE: Duration = Duration::from_secs(3);

/// Pause between two looks for a connection that makes room.
const PLACE_PAUSE: Duration = Duration::from_millis(100);

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
    let queue = Arc::new(Semaphore::new(QUEUE_MAX));
    let idle = Idle::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let permit = Arc::clone(&permits).try_acquire_owned();
                let connection = Connection {
                    who: who(&stream),
                    stream,
                    node: Arc::clone(&node),
                    watches: Arc::clone(&watches),
                    idle: idle.clone(),
                };
                match permit {
                    Ok(permit) => {
                        tokio::spawn(connection.run(permit));
                    }
                    Err(_) => {
                        // Beyond this limit they are closed without a word.
                        if let Ok(queued) = Arc::clone(&queue).try_acquire_owned() {
                            tokio::spawn(connection.wait_for_place(Arc::clone(&permits), queued));
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

/// What ends the wait of a connection.
enum Next {
    /// So many bytes; none is the end.
    Input(usize),
    /// It is closed, for this reason.
    Leave(String),
}

struct Connection {
    who: String,
    stream: UnixStream,
    node: Arc<Node>,
    watches: Arc<Semaphore>,
    idle: Idle,
}

impl Connection {
    async fn run(self, permit: OwnedSemaphorePermit) {
        let who = self.who.clone();
        if let Err(error) = self.serve(permit).await {
            tracing::debug!(client = who, %error, "a control connection broke");
        }
    }

    /// Takes the first place that another connection leaves.
    async fn wait_for_place(self, places: Arc<Semaphore>, queued: OwnedSemaphorePermit) {
        let deadline = Instant::now() + PLACE_PATIENCE;
        while Instant::now() < deadline {
            self.idle.make_room(Instant::now());
            let place = Arc::clone(&places).acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(PLACE_PAUSE, place).await {
                drop(queued);
                return self.run(permit).await;
            }
        }
        tracing::info!(
            client = self.who,
            "a control connection was refused: {CONNECTIONS_MAX} connections are busy"
        );
        self.no_place(queued).await;
    }

    async fn no_place(self, queued: OwnedSemaphorePermit) {
        let text = format!(
            "the daemon works on the commands of {CONNECTIONS_MAX} connections, which is as many as it takes: end some of them \
             (a tandem adm wait-connect, say), and try again"
        );
        // The client may be gone already.
        let _ = self.refuse(0, text).await;
        drop(queued);
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
                        if ended
                            .as_ref()
                            .is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
                        {
                            let waited = WRITE_PATIENCE.as_secs();
                            tracing::info!(
                                client = self.who,
                                "dropped: it has not read its events for {waited} s"
                            );
                        }
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
            match self.more(until, &mut buffer).await? {
                Next::Input(0) => return Ok(()),
                Next::Input(count) => reader.push(buffer.get(..count).unwrap_or_default()),
                Next::Leave(text) => {
                    tracing::info!(client = self.who, "a control connection is closed: {text}");
                    drop(permit);
                    return self.refuse(0, text).await;
                }
            }
        }
    }

    /// Waits for the next request, as long as nobody else needs the place.
    async fn more(&mut self, until: Option<Instant>, buffer: &mut [u8]) -> std::io::Result<Next> {
        let mut rest = self.idle.rest(Instant::now());
        let patience = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // What has been asked already is answered.
            biased;
            read = self.stream.read(buffer) => Ok(Next::Input(read?)),
            _ = &mut rest.wanted => Ok(Next::Leave(
                "others needed the place, and this connection had asked for nothing: connect again".to_owned(),
            )),
            () = patience => {
                let waited = FIRST_REQUEST_PATIENCE.as_secs();
                Ok(Next::Leave(format!("no request within {waited} s")))
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
