//! The resources of this node, and what an administrator can do to them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandem_replicator::{Answer, Command, Force, VolumeNumber};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::control::messages::{
    Body, Call, CommandAnswer, HandlerReport, Options, ResourceDefinition, SCHEMA, StatusReport,
    VersionReport, WaitFor,
};
use crate::exports::{self, Scope};
use crate::report::Published;
use crate::resource_loop::{LoopHandle, Message, SpawnError, Surroundings, disk_options_command};
use crate::settings;

/// How a loop is started; tests put their own engine behind it.
pub(crate) type Spawner =
    fn(Arc<ResourceDefinition>, Surroundings) -> Result<LoopHandle, SpawnError>;

/// How long a loop may take for a report before the last one is shown instead.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);

/// How long clients get to be let go when the daemon ends.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a resource gets to go down when the daemon ends.
const DOWN_PATIENCE: Duration = Duration::from_secs(10);

/// Pause between two attempts to demote a device that is held open.
const DEMOTE_PAUSE: Duration = Duration::from_millis(100);

/// Pause of a `wait` after each change: counters change all the time.
const WAIT_PAUSE: Duration = Duration::from_millis(20);

/// "Device is held open by someone" (state-machine.md 2.7).
const DEVICE_IN_USE: i32 = -12;

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
    /// Commands that add or remove resources come one at a time.
    changing: tokio::sync::Mutex<()>,
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
            changing: tokio::sync::Mutex::default(),
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

    async fn change(self: &Arc<Node>, call: Call) -> Result<CommandAnswer, CommandAnswer> {
        let force = |force: bool| if force { Force::Yes } else { Force::No };
        match call {
            Call::Configure { definition } => self.configure(*definition).await,
            Call::Down {
                resource,
                force: insist,
            } => self.down(&resource, force(insist)).await,
            Call::Connect {
                resource,
                discard_my_data,
                tentative,
            } => {
                let connect = |answer| Message::Connect {
                    discard_my_data,
                    tentative,
                    answer,
                };
                self.ask(&resource, connect).await.map(from_engine)
            }
            Call::Disconnect {
                resource,
                force: insist,
            } => {
                let command = Command::Disconnect {
                    force: force(insist),
                };
                self.command(&resource, command).await
            }
            Call::Attach { resource, volume } => {
                self.each(&resource, volume, |volume| Command::Attach { volume })
                    .await
            }
            Call::Detach {
                resource,
                volume,
                force: insist,
            } => {
                let command = |volume| Command::Detach {
                    volume,
                    force: force(insist),
                };
                self.each(&resource, volume, command).await
            }
            Call::Primary {
                resource,
                volume,
                force: insist,
            } => {
                let command = |volume| Command::Primary {
                    volume,
                    force: force(insist),
                };
                self.each(&resource, volume, command).await
            }
            Call::Secondary {
                resource,
                volume,
                wait_ms,
            } => {
                self.secondary(&resource, volume, Duration::from_millis(wait_ms))
                    .await
            }
            Call::Invalidate { resource, volume } => {
                self.each(&resource, volume, |volume| Command::Invalidate { volume })
                    .await
            }
            Call::InvalidateRemote { resource, volume } => {
                self.each(&resource, volume, |volume| Command::InvalidateRemote {
                    volume,
                })
                .await
            }
            Call::Outdate { resource, volume } => {
                self.each(&resource, volume, |volume| Command::Outdate { volume })
                    .await
            }
            Call::NewCurrentUuid {
                resource,
                volume,
                clear_bitmap,
            } => {
                let command = |volume| Command::NewCurrentUuid {
                    volume,
                    clear_bitmap,
                };
                self.each(&resource, volume, command).await
            }
            Call::PauseSync { resource, volume } => {
                self.each(&resource, volume, |volume| Command::PauseSync { volume })
                    .await
            }
            Call::ResumeSync { resource, volume } => {
                self.each(&resource, volume, |volume| Command::ResumeSync { volume })
                    .await
            }
            Call::SuspendIo { resource, volume } => {
                self.each(&resource, volume, |volume| Command::SuspendIo { volume })
                    .await
            }
            Call::ResumeIo { resource, volume } => {
                self.each(&resource, volume, |volume| Command::ResumeIo { volume })
                    .await
            }
            Call::DiskOptions {
                resource,
                volume,
                options,
            } => self.disk_options(&resource, volume, &options).await,
            Call::Wait {
                resource,
                volume,
                until,
            } => self.wait(&resource, volume, until).await,
            Call::RunHandler {
                resource,
                volume,
                handler,
            } => self.run_handler(&resource, volume, handler).await,
            Call::Shutdown => {
                self.stop.notify_one();
                Ok(CommandAnswer::success())
            }
            // Answered by `execute` and by the server.
            Call::Ping
            | Call::Version
            | Call::Show { .. }
            | Call::Status { .. }
            | Call::Watch { .. } => Err(CommandAnswer::failure(
                162,
                "Invalid configuration request",
                10,
            )),
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

    async fn configure(
        self: &Arc<Node>,
        definition: ResourceDefinition,
    ) -> Result<CommandAnswer, CommandAnswer> {
        let _changing = self.changing.lock().await;
        if self.is_stopping() {
            return Err(
                CommandAnswer::failure(162, "Invalid configuration request", 10)
                    .with_info("tandemd is stopping"),
            );
        }
        let warnings = settings::check(&definition).map_err(|error| {
            CommandAnswer::failure(162, "Invalid configuration request", 10)
                .with_info(error.to_string())
        })?;
        self.check_against_others(&definition)?;
        let existing = self.definition(&definition.name).ok();
        let mut answer = match existing {
            Some(old) if same_shape(&old, &definition) => self.redefine(&old, definition).await,
            Some(old) => {
                if !self.is_idle(&old.name) {
                    return Err(CommandAnswer::failure(159, "Resource still in use", 10)
                        .with_info(
                            "its volumes have changed, and they cannot change while it is up",
                        )
                        .with_hint(format!("tandemadm down {0} && tandemadm up {0}", old.name)));
                }
                self.remove(&old.name).await;
                self.start(definition)?
            }
            None => self.start(definition)?,
        };
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        answer.info.extend(warnings);
        Ok(answer)
    }

    fn check_against_others(&self, definition: &ResourceDefinition) -> Result<(), CommandAnswer> {
        for (name, other) in self
            .resources()
            .iter()
            .filter(|(name, _)| **name != definition.name)
        {
            for volume in &definition.volumes {
                if other
                    .definition
                    .volumes
                    .iter()
                    .any(|theirs| theirs.minor == volume.minor)
                {
                    return Err(
                        CommandAnswer::failure(161, "Minor or volume exists already", 10)
                            .with_info(format!(
                                "minor {} belongs to resource {name}",
                                volume.minor
                            )),
                    );
                }
            }
            if let (Some(mine), Some(theirs)) =
                (&definition.connection, &other.definition.connection)
                && mine.my_address == theirs.my_address
            {
                return Err(
                    CommandAnswer::failure(102, "Local address(port) already in use.", 10)
                        .with_info(format!("{} belongs to resource {name}", mine.my_address)),
                );
            }
        }
        if self.surroundings.places.root() == std::path::Path::new("/") {
            kernel_owns(definition)?;
        }
        Ok(())
    }

    fn is_idle(&self, name: &str) -> bool {
        let resources = self.resources();
        let Some(running) = resources.get(name) else {
            return true;
        };
        let report = running.handle.published.borrow().report.clone();
        report.connection == "StandAlone"
            && report
                .volumes
                .iter()
                .all(|volume| volume.disk == "Diskless" && volume.role == "Secondary")
    }

    /// A definition with the same volumes: what the loop can take over while it runs, and what needs a reconnect or attach.
    async fn redefine(&self, old: &ResourceDefinition, new: ResourceDefinition) -> CommandAnswer {
        let mut answer = CommandAnswer::success();
        if old.net != new.net || old.connection != new.connection {
            answer
                .info
                .push("new net options take effect with the next connect".to_owned());
        }
        let name = new.name.clone();
        let mut options = Vec::new();
        for (before, after) in old.volumes.iter().zip(&new.volumes) {
            if (&before.disk, &before.meta_disk) != (&after.disk, &after.meta_disk) {
                let number = after.number;
                answer.info.push(format!(
                    "volume {number}: the new disk is used with the next attach"
                ));
            }
            if before.options != after.options {
                options.push((after.number, after.options.clone()));
            }
        }
        let definition = Arc::new(new);
        let inbox = {
            let mut resources = self.resources();
            resources.get_mut(&name).map(|running| {
                running.definition = Arc::clone(&definition);
                running.handle.inbox.clone()
            })
        };
        if let Some(inbox) = inbox {
            // A loop that has ended says so with the next command.
            let _ = inbox.send(Message::Define(definition)).await;
        }
        for (volume, options) in options {
            let command = disk_options_command(volume, &options);
            if let Ok((command, _)) = command
                && let Ok(refused) | Err(refused) = self.command(&name, command).await
                && !refused.is_success()
            {
                answer.info.push(format!(
                    "volume {volume}: new disk options: {}",
                    refused.text
                ));
            }
        }
        answer
    }

    fn start(
        self: &Arc<Node>,
        definition: ResourceDefinition,
    ) -> Result<CommandAnswer, CommandAnswer> {
        let failed = |what: String| {
            CommandAnswer::failure(122, "Can not start the resource", 20).with_info(what)
        };
        let definition = Arc::new(definition);
        let name = definition.name.clone();
        let mut listeners = Vec::new();
        for volume in &definition.volumes {
            let path = self
                .surroundings
                .places
                .nbd_volume_socket(&name, volume.number);
            let listener = exports::listen_unix(&path)
                .map_err(|error| failed(format!("cannot listen on {}: {error}", path.display())))?;
            listeners.push((volume.number, listener));
        }
        let handle = (self.spawner)(Arc::clone(&definition), self.surroundings.clone())
            .map_err(|error| failed(error.to_string()))?;
        let mut tasks: Vec<JoinHandle<()>> = listeners
            .into_iter()
            .map(|(volume, listener)| {
                let scope = Scope::One {
                    resource: name.clone(),
                    volume,
                };
                tokio::spawn(exports::serve_unix(Arc::clone(self), listener, scope))
            })
            .collect();
        let (changes, mut published) = (self.changes.clone(), handle.published.clone());
        tasks.push(tokio::spawn(async move {
            while published.changed().await.is_ok() {
                changes.send_modify(|count| *count += 1);
            }
        }));
        self.resources().insert(
            name.clone(),
            Running {
                definition,
                handle,
                tasks,
            },
        );
        tracing::info!(resource = %name, "resource is up");
        Ok(CommandAnswer::success())
    }

    async fn down(&self, resource: &str, force: Force) -> Result<CommandAnswer, CommandAnswer> {
        let _changing = self.changing.lock().await;
        if self.definition(resource).is_err() {
            return Ok(CommandAnswer::success());
        }
        let answer = match self
            .ask(resource, |answer| Message::Command {
                command: Command::Down { force },
                answer,
            })
            .await
        {
            Ok(answer) => from_engine(answer),
            // Its loop has failed: nothing is left that could be taken down.
            Err(_) => CommandAnswer::success(),
        };
        if answer.is_success() {
            self.remove(resource).await;
        }
        Ok(answer)
    }

    /// Ends the loop of a resource that is down and forgets it.
    async fn remove(&self, name: &str) {
        let Some(running) = self.resources().remove(name) else {
            return;
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
        if tokio::time::timeout(DOWN_PATIENCE, ended).await.is_err() {
            tracing::error!(
                resource = name,
                "its loop does not end: a disk does not answer"
            );
        }
        self.changes.send_modify(|count| *count += 1);
        tracing::info!(resource = name, "resource is down");
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
                "tandemadm down {resource} && tandemadm up {resource}"
            ))
    }

    async fn command(
        &self,
        resource: &str,
        command: Command,
    ) -> Result<CommandAnswer, CommandAnswer> {
        self.ask(resource, |answer| Message::Command { command, answer })
            .await
            .map(from_engine)
    }

    /// One command for each volume wanted, until one is refused. The answer is the refusal, or the last success with everybody's
    /// information.
    async fn each(
        &self,
        resource: &str,
        volume: Option<u16>,
        command: impl Fn(VolumeNumber) -> Command,
    ) -> Result<CommandAnswer, CommandAnswer> {
        let mut info = Vec::new();
        let mut last = CommandAnswer::success();
        for number in self.volumes(resource, volume)? {
            let mut answer = self
                .command(resource, command(VolumeNumber(number)))
                .await?;
            answer.volume = Some(number);
            if !answer.is_success() {
                return Ok(answer);
            }
            info.append(&mut answer.info);
            last = answer;
        }
        last.info = info;
        Ok(last)
    }

    fn volumes(&self, resource: &str, volume: Option<u16>) -> Result<Vec<u16>, CommandAnswer> {
        let definition = self.definition(resource)?;
        let all = definition.volumes.iter().map(|volume| volume.number);
        let wanted: Vec<u16> = all
            .filter(|number| volume.is_none_or(|volume| volume == *number))
            .collect();
        if wanted.is_empty() {
            return Err(
                CommandAnswer::failure(127, "Device minor not allocated", 10)
                    .with_info(format!("resource {resource} has no such volume")),
            );
        }
        Ok(wanted)
    }

    async fn secondary(
        &self,
        resource: &str,
        volume: Option<u16>,
        patience: Duration,
    ) -> Result<CommandAnswer, CommandAnswer> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let answer = self
                .each(resource, volume, |volume| Command::Secondary { volume })
                .await?;
            if answer.number != DEVICE_IN_USE || tokio::time::Instant::now() >= deadline {
                return Ok(answer);
            }
            tokio::time::sleep(DEMOTE_PAUSE).await;
        }
    }

    async fn disk_options(
        &self,
        resource: &str,
        volume: Option<u16>,
        options: &Options,
    ) -> Result<CommandAnswer, CommandAnswer> {
        let mut answer = CommandAnswer::success();
        for number in self.volumes(resource, volume)? {
            let (command, warnings) = disk_options_command(number, options).map_err(|error| {
                CommandAnswer::failure(162, "Invalid configuration request", 10)
                    .with_info(error.to_string())
            })?;
            answer = self.command(resource, command).await?;
            answer.volume = Some(number);
            if !answer.is_success() {
                return Ok(answer);
            }
            answer.info.extend(warnings);
            if let Some(running) = self.resources().get_mut(resource) {
                let mut definition = ResourceDefinition::clone(&running.definition);
                for volume in definition
                    .volumes
                    .iter_mut()
                    .filter(|volume| volume.number == number)
                {
                    volume.options = options.clone();
                }
                running.definition = Arc::new(definition);
            }
        }
        Ok(answer)
    }

    async fn wait(
        &self,
        resource: &str,
        volume: Option<u16>,
        until: WaitFor,
    ) -> Result<CommandAnswer, CommandAnswer> {
        let wanted = self.volumes(resource, volume)?;
        let mut changes = self.changes();
        let mut status = self.status(Some(resource)).await?;
        loop {
            changes.borrow_and_update();
            let Some(report) = status.resources.first() else {
                return Err(unknown());
            };
            if report.failed.is_some() {
                return Err(self.loop_ended(resource));
            }
            let states: Vec<&str> = report
                .volumes
                .iter()
                .filter(|volume| wanted.contains(&volume.number))
                .map(|volume| volume.connection.as_str())
                .collect();
            if states.iter().all(|state| holds(until, state)) {
                return Ok(CommandAnswer::success());
            }
            if report.connection == "StandAlone" {
                return Err(CommandAnswer::failure(0, "StandAlone", 5)
                    .with_info(format!("resource {resource} does not try to connect"))
                    .with_hint(format!("tandemadm connect {resource}")));
            }
            // The counter of changes is never closed while the node lives.
            let _ = changes.changed().await;
            tokio::time::sleep(WAIT_PAUSE).await;
            status = self.last_status(Some(resource));
        }
    }

    async fn run_handler(
        &self,
        resource: &str,
        volume: Option<u16>,
        name: String,
    ) -> Result<CommandAnswer, CommandAnswer> {
        let exit = self
            .ask(resource, |exit| Message::RunHandler { name, volume, exit })
            .await?;
        let mut answer = CommandAnswer::success();
        answer.exit = u8::try_from(exit).unwrap_or(20);
        Ok(answer)
    }

    /// Ends everything in order: clients are let go, resources are taken down.
    pub(crate) async fn stop_everything(&self) {
        self.stopping.store(true, Ordering::Release);
        let names: Vec<String> = self.resources().keys().cloned().collect();
        for name in &names {
            let text = "tandemd is stopping".to_owned();
            let released = self.ask(name, |done| Message::ReleaseClients { text, done });
            if tokio::time::timeout(RELEASE_PATIENCE, released)
                .await
                .is_err()
            {
                tracing::warn!(resource = %name, "clients with unanswered requests are cut off");
            }
        }
        for name in &names {
            match tokio::time::timeout(DOWN_PATIENCE, self.down(name, Force::Yes)).await {
                Ok(Ok(answer)) if answer.is_success() => {}
                Ok(Ok(answer) | Err(answer)) => {
                    tracing::warn!(resource = %name, number = answer.number, "not taken down: {}", answer.text);
                }
                Err(_) => {
                    tracing::warn!(resource = %name, "not taken down within {DOWN_PATIENCE:?}")
                }
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

/// Whether the loop of `old` can take `new` over: the volumes and their minors are the same.
fn same_shape(old: &ResourceDefinition, new: &ResourceDefinition) -> bool {
    let shape = |definition: &ResourceDefinition| -> Vec<(u16, u32)> {
        definition
            .volumes
            .iter()
            .map(|volume| (volume.number, volume.minor))
            .collect()
    };
    shape(old) == shape(new)
}

fn holds(until: WaitFor, connection: &str) -> bool {
    let not_connected = [
        "StandAlone",
        "Disconnecting",
        "Unconnected",
        "Timeout",
        "BrokenPipe",
        "NetworkFailure",
        "ProtocolError",
        "TearDown",
        "WFConnection",
        "WFReportParams",
    ];
    match until {
        WaitFor::Connected => !not_connected.contains(&connection),
        WaitFor::Synced => connection == "Connected",
    }
}

/// A kernel that has a minor configured writes to its disk: two writers would destroy the data.
fn kernel_owns(definition: &ResourceDefinition) -> Result<(), CommandAnswer> {
    let text = std::fs::read_to_string("/proc/drbd").unwrap_or_default();
    for volume in &definition.volumes {
        let owned = text.lines().any(|line| {
            line.trim_start()
                .strip_prefix(&format!("{}: cs:", volume.minor))
                .is_some_and(|state| state != "Unconfigured")
        });
        if owned {
            return Err(
                CommandAnswer::failure(161, "Minor or volume exists already", 10)
                    .with_info(format!(
                        "the kernel module drbd has configured minor {}",
                        volume.minor
                    ))
                    .with_hint(format!("drbdsetup down {}", definition.name)),
            );
        }
    }
    Ok(())
}
