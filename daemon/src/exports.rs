//! NBD listeners and the handshake; afterwards the connection belongs to its resource's loop (docs/spec/nbd.md 1, 3, 10).

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tandem_nbd_server::{
    Access, Answer, BlockSizes, End, Event, ExportInfo, Features, HANDSHAKE_SECONDS_MAX, Limits,
    ListedExport, Purpose, Query, Refusal, RefusalKind, Session, Unaligned,
};
use tandem_replicator::VolumeNumber;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use crate::control::messages::VolumeReport;
use crate::nbd::{CLIENTS_MAX, NewClient, NewStream};
use crate::node::Node;
use crate::report::{ExportFacts, Published};
use crate::resource_loop::Message;

/// Handshakes at one time. One more takes the place of the oldest that has sent nothing, or waits.
const HANDSHAKES_MAX: usize = 128;

/// Least time between two log lines about silent connections.
const SILENCE_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Pause after an accept that failed, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a listener offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Every export of this node, by name.
    All,
    /// One volume, under the empty name too.
    One { resource: String, volume: u16 },
}

/// Binds a Unix socket that only its owner may use.
pub(crate) fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The mode of a socket is fixed when it is bound: no moment in which others may connect.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener
}

/// The handshakes of one listener.
struct Handshakes {
    permits: Arc<Semaphore>,
    /// Those that may have sent nothing yet, oldest first.
    silent: VecDeque<(AbortHandle, Arc<AtomicBool>)>,
    logged: Option<Instant>,
}

impl Handshakes {
    fn new() -> Handshakes {
        Handshakes {
            permits: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            silent: VecDeque::new(),
            logged: None,
        }
    }

    fn forget_others(&mut self) {
        self.silent
            .retain(|(task, heard)| !heard.load(Ordering::Relaxed) && !task.is_finished());
    }

    /// A place for a connection that was accepted: silent ones must not keep clients out (docs/spec/nbd.md 13).
    async fn place(&mut self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Some(permit);
        }
        self.forget_others();
        if let Some((oldest, _)) = self.silent.pop_front() {
            oldest.abort();
            let quiet = self
                .logged
                .is_some_and(|at| at.elapsed() < SILENCE_LOG_INTERVAL);
            if !quiet {
                self.logged = Some(Instant::now());
                tracing::warn!(
                    "{HANDSHAKES_MAX} NBD handshakes are open: the oldest connections that sent nothing are dropped"
                );
            }
        }
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }

    fn begun(&mut self, task: AbortHandle, heard: Arc<AtomicBool>) {
        self.forget_others();
        self.silent.push_back((task, heard));
    }
}

/// Serves a Unix socket until the task is aborted.
pub(crate) async fn serve_unix(node: Arc<Node>, listener: UnixListener, scope: Scope) {
    let mut handshakes = Handshakes::new();
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let Some(permit) = handshakes.place().await else {
                    return;
                };
                let who = match stream
                    .peer_cred()
                    .ok()
                    .and_then(|credentials| credentials.pid())
                {
                    Some(pid) => crate::process::name_of(pid),
                    None => "a client on the Unix socket".to_owned(),
                };
                let (node, scope) = (Arc::clone(&node), scope.clone());
                let heard = Arc::new(AtomicBool::new(false));
                let hears = Arc::clone(&heard);
                let task = tokio::spawn(async move {
                    if let Some((session, target)) =
                        handshake(&mut stream, &node, &scope, &who, &hears).await
                        && let Ok(stream) = stream.into_std()
                    {
                        hand_over(&node, NewStream::Unix(stream), session, target, who).await;
                    }
                    drop(permit);
                });
                handshakes.begun(task.abort_handle(), heard);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an NBD client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a TCP port until the task is aborted.
pub(crate) async fn serve_tcp(node: Arc<Node>, listener: TcpListener) {
    let mut handshakes = Handshakes::new();
    loop {
        match listener.accept().await {
            Ok((mut stream, from)) => {
                let Some(permit) = handshakes.place().await else {
                    return;
                };
                let node = Arc::clone(&node);
                let heard = Arc::new(AtomicBool::new(false));
                let hears = Arc::clone(&heard);
                let task = tokio::spawn(async move {
                    let who = from.to_string();
                    if prepare(&stream, from)
                        && let Some((session, target)) =
                            handshake(&mut stream, &node, &Scope::All, &who, &hears).await
                        && let Ok(stream) = stream.into_std()
                    {
                        hand_over(&node, NewStream::Tcp(stream), session, target, who).await;
                    }
                    drop(permit);
                });
                handshakes.begun(task.abort_handle(), heard);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an NBD client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// An abandoned connection would hold its export open for hours without keepalive (nbd.md 13).
fn prepare(stream: &tokio::net::TcpStream, from: SocketAddr) -> bool {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10));
    let prepared = stream
        .set_nodelay(true)
        .and_then(|()| socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive));
    if let Err(error) = &prepared {
        tracing::info!(%from, %error, "an NBD connection cannot be used");
    }
    prepared.is_ok()
}

type Target = (String, u16);

/// The option phase, within its deadline. `None`: the client left or was refused.
async fn handshake(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    node: &Node,
    scope: &Scope,
    who: &str,
    heard: &AtomicBool,
) -> Option<(Box<Session>, Target)> {
    let deadline = Duration::from_secs(HANDSHAKE_SECONDS_MAX);
    match tokio::time::timeout(deadline, haggle(stream, node, scope, who, heard)).await {
        Ok(Ok(selected)) => selected,
        Ok(Err(error)) => {
            tracing::debug!(client = who, %error, "NBD handshake ended");
            None
        }
        Err(_) => {
            tracing::info!(client = who, "NBD handshake took longer than {deadline:?}");
            None
        }
    }
}

async fn haggle(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    node: &Node,
    scope: &Scope,
    who: &str,
    heard: &AtomicBool,
) -> io::Result<Option<(Box<Session>, Target)>> {
    let mut session = Box::new(Session::new(Limits::default()));
    let mut buffer = BytesMut::new();
    let mut pieces: Vec<Bytes> = Vec::new();
    loop {
        let mut selected = None;
        let mut ended = false;
        while selected.is_none()
            && !ended
            && let Some(event) = session.next_event()
        {
            match event {
                Event::Query(query) => {
                    session
                        .answer(answer(node, scope, query))
                        .map_err(io::Error::other)?;
                }
                Event::Selected { export } => selected = Some(export),
                Event::Ended(end) => {
                    log_end(who, &end);
                    ended = true;
                }
                // Requests come after Selected only, and then the loop below has been left.
                Event::Request(_) => ended = true,
            }
        }
        session.take_output(&mut pieces);
        for piece in pieces.drain(..) {
            stream.write_all(&piece).await?;
        }
        stream.flush().await?;
        if ended {
            return Ok(None);
        }
        if let Some(export) = selected {
            return Ok(target_of(&export).map(|target| (session, target)));
        }
        buffer.reserve(4096);
        if stream.read_buf(&mut buffer).await? == 0 {
            session.end_of_stream();
        } else {
            heard.store(true, Ordering::Relaxed);
            session.feed(buffer.split().freeze());
        }
    }
}

/// Why a session ended: a client that broke the protocol is worth a line, one that left is not.
pub(crate) fn log_end(who: &str, end: &End) {
    match end {
        End::Protocol(error) => {
            tracing::info!(client = who, %error, "an NBD client broke the protocol");
        }
        End::Disconnected | End::Aborted | End::Closed => tracing::debug!(client = who, "{end}"),
    }
}

/// Canonical names are `RESOURCE/VOLUME`.
fn target_of(export: &str) -> Option<Target> {
    let (resource, volume) = export.rsplit_once('/')?;
    Some((resource.to_owned(), volume.parse().ok()?))
}

fn answer(node: &Node, scope: &Scope, query: Query) -> Answer {
    match query {
        Query::List => Answer::List(Ok(list(node, scope))),
        Query::Export { name, purpose } => {
            Answer::Export(find(node, scope, &name, purpose).map(Box::new))
        }
    }
}

fn list(node: &Node, scope: &Scope) -> Vec<ListedExport> {
    let mut listed = Vec::new();
    for published in node.published() {
        for volume in published.exports.keys() {
            let name = format!("{}/{volume}", published.report.name);
            let wanted = match scope {
                Scope::All => true,
                Scope::One {
                    resource,
                    volume: one,
                } => *resource == published.report.name && one == volume,
            };
            if wanted {
                listed.push(ListedExport {
                    description: describe(&published, *volume),
                    name,
                });
            }
        }
    }
    listed
}

fn describe(published: &Published, volume: u16) -> String {
    let minor = volume_of(published, volume).map_or(0, |volume| volume.minor);
    format!(
        "replicated volume {volume} of resource {}, minor {minor}",
        published.report.name
    )
}

fn volume_of(published: &Published, volume: u16) -> Option<&VolumeReport> {
    published
        .report
        .volumes
        .iter()
        .find(|candidate| candidate.number == volume)
}

fn find(node: &Node, scope: &Scope, name: &str, purpose: Purpose) -> Result<ExportInfo, Refusal> {
    if node.is_stopping() {
        return Err(Refusal::new(RefusalKind::Shutdown, "tandemd is stopping"));
    }
    let all = node.published();
    let (resource, volume) = meaning(&all, scope, name)?;
    let published = all
        .iter()
        .find(|published| published.report.name == resource);
    let Some(published) = published else {
        return Err(Refusal::unknown(format!(
            "no resource {resource} is up on this node"
        )));
    };
    let Some(facts) = published.exports.get(&volume) else {
        return Err(why_not(published, volume));
    };
    if matches!(purpose, Purpose::Go | Purpose::ExportName) {
        has_room(published)?;
    }
    Ok(export_info(published, volume, *facts))
}

/// Whether one more client can be attached. Of several at the same moment the last may still be cut off after this.
fn has_room(published: &Published) -> Result<(), Refusal> {
    let volumes = published.report.volumes.iter();
    let clients: usize = volumes.map(|volume| volume.clients.len()).sum();
    if clients < CLIENTS_MAX {
        return Ok(());
    }
    let text = format!(
        "{CLIENTS_MAX} clients are attached to resource {}, and no more are taken; who they are: tandem status",
        published.report.name
    );
    Err(Refusal::new(RefusalKind::Policy, text))
}

/// Which volume a client means.
fn meaning(all: &[Arc<Published>], scope: &Scope, name: &str) -> Result<Target, Refusal> {
    let named = match name.rsplit_once('/') {
        _ if name.is_empty() => None,
        Some((resource, volume)) => match volume.parse() {
            Ok(volume) => Some((resource.to_owned(), volume)),
            Err(_) => {
                return Err(Refusal::unknown(format!(
                    "{name} is not RESOURCE or RESOURCE/VOLUME"
                )));
            }
        },
        None => Some((name.to_owned(), only_volume(all, name)?)),
    };
    match (named, scope) {
        (None, Scope::One { resource, volume }) => Ok((resource.clone(), *volume)),
        (Some(target), Scope::All) => Ok(target),
        (Some(target), Scope::One { resource, volume }) => {
            if target == (resource.clone(), *volume) {
                Ok(target)
            } else {
                let text = format!("this socket serves {resource}/{volume} only, not {name}");
                Err(Refusal::unknown(text))
            }
        }
        (None, Scope::All) => {
            let mut every = all.iter().flat_map(|published| {
                let volumes = published.report.volumes.iter();
                volumes.map(|volume| (published.report.name.clone(), volume.number))
            });
            match (every.next(), every.next()) {
                (Some(only), None) => Ok(only),
                (None, _) => Err(Refusal::unknown("no resource is up on this node")),
                (Some(_), Some(_)) => Err(Refusal::unknown(
                    "there are several exports: name one, as RESOURCE/VOLUME",
                )),
            }
        }
    }
}

/// The name of a resource alone names its volume, when it has only one (docs/spec/nbd.md 1).
fn only_volume(all: &[Arc<Published>], resource: &str) -> Result<u16, Refusal> {
    let published = all
        .iter()
        .find(|published| published.report.name == resource);
    match published.map(|published| published.report.volumes.as_slice()) {
        Some([only]) => Ok(only.number),
        Some([]) | None => Ok(0),
        Some(several) => Err(Refusal::unknown(format!(
            "{resource} has {} volumes: name one, such as {resource}/{}",
            several.len(),
            several[0].number
        ))),
    }
}

fn export_info(published: &Published, volume: u16, facts: ExportFacts) -> ExportInfo {
    // Any byte may be read and written: the engine merges parts of sectors. What is left of a sector at the end is not served.
    let sector = u64::from(facts.logical_block.max(1));
    let preferred = facts.logical_block.max(4096);
    let sizes = BlockSizes::new(1, preferred, tandem_nbd_server::PAYLOAD_MAX);
    ExportInfo {
        name: format!("{}/{volume}", published.report.name),
        description: describe(published, volume),
        size: facts.bytes - facts.bytes % sector,
        access: Access::ReadWrite,
        features: Features {
            trim: facts.discard,
            fast_zero: true,
            ..Features::all()
        },
        block_sizes: sizes.unwrap_or(BlockSizes::SECTORS),
        unaligned: Unaligned::Served,
        contexts: crate::nbd::CONTEXTS
            .map(|(_, name)| name.to_owned())
            .to_vec(),
    }
}

/// What the person at the client reads: the state, and what to type.
fn why_not(published: &Published, number: u16) -> Refusal {
    let report = &published.report;
    let resource = &report.name;
    if let Some(failed) = &report.failed {
        return Refusal::policy(format!(
            "resource {resource} has failed on this node: {failed}"
        ));
    }
    let Some(volume) = volume_of(published, number) else {
        return Refusal::unknown(format!("resource {resource} has no volume {number}"));
    };
    let VolumeReport {
        role,
        disk,
        connection,
        peer_role,
        ..
    } = volume;
    let advice = if peer_role == "Primary" {
        let peer = report
            .peer
            .as_ref()
            .map_or("the peer", |peer| &peer.peer_name);
        format!(
            "use it on {peer}, or type there: tandem adm secondary {resource}, then here: tandem adm primary {resource}"
        )
    } else {
        format!("to use it here, type: tandem adm primary {resource}")
    };
    Refusal::policy(format!(
        "resource {resource} is {role} on this node (disk {disk}, connection {connection}); {advice}"
    ))
}

async fn hand_over(
    node: &Node,
    stream: NewStream,
    session: Box<Session>,
    (resource, volume): Target,
    who: String,
) {
    let client = NewClient {
        stream,
        session,
        volume: VolumeNumber(volume),
        who,
    };
    let sent = match node.inbox(&resource) {
        Some(inbox) => inbox.send(Message::Client(Box::new(client))).await.is_ok(),
        None => false,
    };
    if !sent {
        tracing::info!(
            resource,
            "an NBD client came too late: the resource is gone"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::messages::ResourceDefinition;

    fn published(name: &str, volumes: &[u16]) -> Arc<Published> {
        let definition: ResourceDefinition =
            serde_json::from_str(&format!(r#"{{"name":"{name}","volumes":[]}}"#)).unwrap();
        let mut published = Published::failed(&definition, None);
        for number in volumes {
            let volume = crate::proc::tests::volume(*number);
            published.report.volumes.push(volume);
        }
        Arc::new(published)
    }

    #[test]
    fn names_mean_what_the_documentation_says() {
        let one = [published("r0", &[0])];
        let two = [published("r0", &[0, 1])];
        let fixed = Scope::One {
            resource: "r0".to_owned(),
            volume: 1,
        };
        let r0 = |volume| ("r0".to_owned(), volume);
        assert_eq!(meaning(&one, &Scope::All, "").unwrap(), r0(0));
        assert!(meaning(&two, &Scope::All, "").is_err());
        assert!(meaning(&[], &Scope::All, "").is_err());
        assert!(meaning(&two, &Scope::All, "r0").is_err());
        assert_eq!(meaning(&one, &Scope::All, "r0").unwrap(), r0(0));
        assert_eq!(meaning(&two, &Scope::All, "r0/1").unwrap(), r0(1));
        assert_eq!(meaning(&two, &fixed, "").unwrap(), r0(1));
        assert_eq!(meaning(&two, &fixed, "r0/1").unwrap(), r0(1));
        assert!(meaning(&two, &fixed, "r0").is_err());
        assert!(meaning(&two, &Scope::All, "r0/x").is_err());
    }

    #[test]
    fn a_refusal_names_the_state_and_what_to_type() {
        let refusal = why_not(&published("r0", &[0]), 0);
        assert!(refusal.text.contains("Secondary"), "{}", refusal.text);
        assert!(
            refusal.text.contains("tandem adm primary r0"),
            "{}",
            refusal.text
        );
        assert_eq!(
            why_not(&published("r0", &[0]), 7).kind,
            RefusalKind::Unknown
        );
    }
}
