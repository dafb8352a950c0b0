//! The resources of this node, and what an administrator can do to them.

mod commands;
mod configure;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandem_replicator::{Answer, Command, Force};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::blackbox::SharedBox;
use crate::control::messages::{
    Body, Call, CommandAnswer, HandlerReport, ResourceDefinition, SCHEMA, StatusReport,
    VersionReport,
};
use crate::report::Published;
use crate::resource_loop::{LoopHandle, Message, SpawnError, Surroundings};

/// How a loop is started; tests put their own engine behind it.
pub(crate) type Spawner =
    fn(Arc<ResourceDefinition>, Surroundings) -> Result<LoopHandle, SpawnError>;

/// How long a loop may take for a report before the last one is shown instead.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);

/// How long clients get to be let go when the daemon ends.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a resource gets to go down when the daemon ends, or when force is used.
const DOWN_PATIENCE: Duration = Duration::from_secs(10);

/// How long the loop of a resource that is given up may take to end: no disk is waited for.
const FORCED_PATIENCE: Duration = Duration::from_secs(1);

/// "Device is held open by someone" (state-machine.md 2.7).
const DEVICE_IN_USE: i32 = -12;

/// How long `down` waits for clients to leave: a program that has just ended, or a file system that was just unmounted, needs a
/// moment to let go of the device.
const CLIENTS_PATIENCE: Duration = Duration::from_secs(2);

/// Whether the loop of a resource has ended. If not, a disk keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Yes,
    No,
}

/// A resource that is up.
struct Running {
    definition: Arc<ResourceDefinition>,
    handle: LoopHandle,
    /// Listeners of its NBD sockets and the task that passes its changes on.
    tasks: Vec<JoinHandle<()>>,
}

/// All resources of this node.
pub(crate) struct Node {
    surroundings: Surroundings,
    spawner: Spawner,
    resources: Mutex<BTreeMap<String, Running>>,
    /// Commands that add a resource or take it down come one at a time for each resource: what hangs in one keeps no other one waiting.
    turns: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Held while a new resource is compared with the others and started.
    starting: Mutex<()>,
    changes: watch::Sender<u64>,
    stopping: AtomicBool,
    stop: Notify,
}

impl Node {
    /// A node without resources.
    pub(crate) fn new(surroundings: Surroundings, spawner: Spawner) -> Arc<Node> {
        Arc::new(Node {
            surroundings,
            spawner,
            resources: Mutex::default(),
            turns: Mutex::default(),
            starting: Mutex::default(),
            changes: watch::Sender::new(0),
            stopping: AtomicBool::new(false),
            stop: Notify::new(),
        })
    }

    fn resources(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.resources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn starting(&self) -> MutexGuard<'_, ()> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose turn it is to add or take down a resource of this name.
    fn turn(&self, resource: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(resource.to_owned()).or_default())
    }

    /// Whether the daemon is on its way down.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Waits until somebody has asked the daemon to end.
    pub(crate) async fn stop_wanted(&self) {
        self.stop.notified().await;
    }

    /// What every loop has made public, by name.
    pub(crate) fn published(&self) -> Vec<Arc<Published>> {
        self.resources()
            .values()
            .map(|running| running.handle.published.borrow().clone())
            .collect()
    }

    /// Told after every change of any resource.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Told when handlers begin and end.
    pub(crate) fn handler_reports(&self) -> broadcast::Receiver<HandlerReport> {
        self.surroundings.handler_reports.subscribe()
    }

    /// Where messages for a resource go.
    pub(crate) fn inbox(&self, resource: &str) -> Option<mpsc::Sender<Message>> {
        self.resources()
            .get(resource)
            .map(|running| running.handle.inbox.clone())
    }

    fn black_box_of(&self, resource: &str) -> Option<SharedBox> {
        let resources = self.resources();
        resources
            .get(resource)
            .map(|running| Arc::clone(&running.handle.black_box))
    }

    fn crash_dir(&self) -> std::path::PathBuf {
        self.surroundings.places.crash_dir()
    }

    fn definition(&self, resource: &str) -> Result<Arc<ResourceDefinition>, CommandAnswer> {
        let resources = self.resources();
        resources
            .get(resource)
            .map(|running| Arc::clone(&running.definition))
            .ok_or_else(unknown)
    }

    /// Carries out everything but `watch`.
    pub(crate) async fn execute(self: &Arc<Node>, call: Call) -> Body {
        match call {
            Call::Ping | Call::Version => Body::Version(self.version()),
            Call::Show { resource } => match self.definition(&resource) {
                Ok(definition) => {
                    Body::Definition(Box::new(ResourceDefinition::clone(&definition)))
                }
                Err(answer) => Body::Answer(answer),
            },
            Call::Status { resource } => match self.status(resource.as_deref()).await {
                Ok(report) => Body::Status(report),
                Err(answer) => Body::Answer(answer),
            },
            other => Body::Answer(self.change(other).await.unwrap_or_else(|refusal| refusal)),
        }
    }

    fn version(&self) -> VersionReport {
        let places = &self.surroundings.places;
        let mut nbd = vec![format!(
            "nbd+unix:///?socket={}",
            places.nbd_socket().display()
        )];
        nbd.extend(
            self.surroundings
                .nbd_tcp
                .map(|address| format!("nbd://{address}")),
        );
        VersionReport {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            run_dir: places.run_dir().display().to_string(),
            nbd,
        }
    }

    /// The status as it is now, or as it was published last by a loop that does not answer at once.
    pub(crate) async fn status(
        &self,
        resource: Option<&str>,
    ) -> Result<StatusReport, CommandAnswer> {
        let inboxes: Vec<mpsc::Sender<Message>> = {
            let resources = self.resources();
            if resource.is_some_and(|name| !resources.contains_key(name)) {
                return Err(unknown());
            }
            let wanted = resources
                .iter()
                .filter(|(name, _)| resource.is_none_or(|one| one == *name));
            wanted
                .map(|(_, running)| running.handle.inbox.clone())
                .collect()
        };
        let asked = inboxes.into_iter().map(|inbox| async move {
            let (done, published) = oneshot::channel();
            if inbox.send(Message::Report(done)).await.is_ok() {
                let _ = published.await;
            }
        });
        let all = async {
            for asking in asked {
                asking.await;
            }
        };
        let _ = tokio::time::timeout(REPORT_PATIENCE, all).await;
        Ok(self.last_status(resource))
    }

    /// The status as it was published last.
    pub(crate) fn last_status(&self, resource: Option<&str>) -> StatusReport {
        let published = self.published();
        let wanted = published
            .iter()
            .filter(|one| resource.is_none_or(|name| name == one.report.name));
        StatusReport {
            schema: SCHEMA,
            resources: wanted.map(|published| published.report.clone()).collect(),
        }
    }

    async fn down(&self, resource: &str, force: Force) -> Result<CommandAnswer, CommandAnswer> {
        let turn = self.turn(resource);
        if force == Force::No {
            let _mine = turn.lock().await;
            return Ok(self.take_down(resource, force).await);
        }
        // What went before may hang for the reason for which force is used.
        let _mine = tokio::time::timeout(DOWN_PATIENCE, turn.lock()).await;
        match tokio::time::timeout(DOWN_PATIENCE, self.take_down(resource, force)).await {
            Ok(answer) if answer.is_success() => Ok(answer),
            Ok(_) | Err(_) => Ok(self.give_up(resource).await),
        }
    }

    /// Forgets a resource that cannot be taken down, as if its node had crashed.
    async fn give_up(&self, resource: &str) -> CommandAnswer {
        tracing::warn!(resource, "given up by force: as after a crash");
        let ended = self.remove(resource, FORCED_PATIENCE).await;
        let answer = CommandAnswer::success().with_info(
            "it did not go down in order: its metadata are those of a crash, and the next `up` treats them so",
        );
        match ended {
            Ended::Yes => answer,
            Ended::No => answer.with_info(
                "its disk does not answer; it stays locked, and what was under way may still reach it, until it does",
            ),
        }
    }

    async fn take_down(&self, resource: &str, force: Force) -> CommandAnswer {
        if self.definition(resource).is_err() {
            return CommandAnswer::success();
        }
        let deadline = tokio::time::Instant::now() + CLIENTS_PATIENCE;
        let answer = loop {
            let asked = self.ask(resource, |answer| Message::Command {
                command: Box::new(Command::Down { force }),
                answer,
            });
            let answer = match asked.await {
                Ok(answer) => from_engine(answer),
                // Its loop has failed: nothing is left that could be taken down.
                Err(_) => CommandAnswer::success(),
            };
            if answer.number != DEVICE_IN_USE || tokio::time::Instant::now() >= deadline {
                break answer;
            }
            tokio::time::sleep(commands::DEMOTE_PAUSE).await;
        };
        if answer.is_success() {
            self.remove(resource, DOWN_PATIENCE).await;
        }
        answer
    }

    /// Ends the loop of a resource, and forgets it even if that takes longer than one can wait.
    async fn remove(&self, name: &str, patience: Duration) -> Ended {
        let Some(running) = self.resources().remove(name) else {
            return Ended::Yes;
        };
        for task in &running.tasks {
            task.abort();
        }
        for volume in &running.definition.volumes {
            let path = self
                .surroundings
                .places
                .nbd_volume_socket(name, volume.number);
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::debug!(path = %path.display(), %error, "cannot remove a socket");
            }
        }
        let _ = running.handle.inbox.send(Message::Quit).await;
        let thread = running.handle.thread;
        let ended = tokio::task::spawn_blocking(move || thread.join().is_ok());
        let ended = match tokio::time::timeout(patience, ended).await {
            Ok(_) => Ended::Yes,
            Err(_) => {
                tracing::error!(
                    resource = name,
                    "its loop does not end: a disk does not answer"
                );
                Ended::No
            }
        };
        self.changes.send_modify(|count| *count += 1);
        tracing::info!(resource = name, "resource is down");
        ended
    }

    /// Asks a loop and waits for its answer.
    async fn ask<T>(
        &self,
        resource: &str,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Result<T, CommandAnswer> {
        let inbox = self.inbox(resource).ok_or_else(unknown)?;
        let (sender, answer) = oneshot::channel();
        let sent = inbox.send(message(sender)).await.is_ok();
        match answer.await {
            Ok(answer) if sent => Ok(answer),
            _ => Err(self.loop_ended(resource)),
        }
    }

    fn loop_ended(&self, resource: &str) -> CommandAnswer {
        let failed = self
            .resources()
            .get(resource)
            .and_then(|running| running.handle.published.borrow().report.failed.clone());
        CommandAnswer::failure(0, "The resource has failed", 20)
            .with_info(failed.unwrap_or_else(|| "its loop has ended".to_owned()))
            .with_hint(format!(
                "tandem adm down {resource} && tandem adm up {resource}"
            ))
    }

    async fn command(
        &self,
        resource: &str,
        command: Command,
    ) -> Result<CommandAnswer, CommandAnswer> {
        let command = Box::new(command);
        self.ask(resource, |answer| Message::Command { command, answer })
            .await
            .map(from_engine)
    }

    /// Ends everything in order: clients are let go, resources are taken down. None waits for another: each may have a disk or a client
    /// that hangs.
    pub(crate) async fn stop_everything(self: &Arc<Self>) {
        let names: Vec<String> = {
            let _none_starts = self.starting();
            self.stopping.store(true, Ordering::Release);
            self.resources().keys().cloned().collect()
        };
        let mut ends = tokio::task::JoinSet::new();
        for name in names {
            let node = Arc::clone(self);
            ends.spawn(async move { node.stop(&name).await });
        }
        while ends.join_next().await.is_some() {}
    }

    async fn stop(&self, name: &str) {
        let text = "tandemd is stopping".to_owned();
        let released = self.ask(name, |done| Message::ReleaseClients { text, done });
        if tokio::time::timeout(RELEASE_PATIENCE, released)
            .await
            .is_err()
        {
            tracing::warn!(resource = %name, "clients with unanswered requests are cut off");
        }
        match tokio::time::timeout(DOWN_PATIENCE, self.take_down(name, Force::Yes)).await {
            Ok(answer) if answer.is_success() => {}
            Ok(answer) => {
                tracing::warn!(resource = %name, number = answer.number, "not taken down: {}", answer.text);
            }
            Err(_) => {
                tracing::warn!(resource = %name, "not taken down within {DOWN_PATIENCE:?}");
            }
        }
    }
}

fn unknown() -> CommandAnswer {
    CommandAnswer::failure(158, "Unknown resource", 10).with_info("unknown resource")
}

fn from_engine(answer: Answer) -> CommandAnswer {
    let Answer {
        number,
        text,
        info,
        hint,
        exit,
    } = answer;
    CommandAnswer {
        number,
        text,
        info,
        hint,
        exit,
        volume: None,
    }
}
