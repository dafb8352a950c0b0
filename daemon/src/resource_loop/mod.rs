//! One loop per resource: the engine, client sockets, peer sockets, disks and timers on one thread.
//!
//! A turn collects everything that has happened, lets the engine handle it, writes once to each client and to each of the peer's
//! sockets, and hands all disk operations to the kernel with one call. Nothing in a turn waits.

mod engine;
mod inquiries;
mod reports;
mod spawn;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tandem_replicator::{
    Answer, Command, CommandId, Effect, Effects, Event, Level, NetOptions, Notification, Time,
    Token, VolumeNumber,
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::blackbox::{self, SharedBox};
use crate::control::messages::{HandlerReport, Options, ResourceDefinition};
use crate::disk::backing::BackingPaths;
use crate::disk::{self, Disks};
use crate::handlers::{self, Handlers};
use crate::nbd::{Clients, NewClient};
use crate::peer::{LinkSettings, Peer};
use crate::places::Places;
use crate::report::Published;
use crate::settings::{self, SettingError};
use crate::socket::ReadBuffer;

pub(crate) use engine::Engine;
pub(crate) use spawn::{LoopHandle, SpawnError, spawn};

/// Messages waiting for a loop; beyond, the sender waits.
pub(crate) const INBOX_MAX: usize = 256;

/// Messages taken in one turn.
const MESSAGES_PER_TURN: usize = 64;

/// Rounds of collect, handle, submit in one turn before the runtime looks at its timers and sockets again.
const ROUNDS_PER_TURN: usize = 16;

/// What the control side asks of a loop.
pub(crate) enum Message {
    /// A command for the engine.
    Command {
        command: Box<Command>,
        answer: oneshot::Sender<Answer>,
    },
    /// Connect with the options of the definition.
    Connect {
        discard_my_data: bool,
        tentative: bool,
        answer: oneshot::Sender<Answer>,
    },
    /// A new definition with the same volumes.
    Define(Arc<ResourceDefinition>),
    /// A client that has finished its handshake.
    Client(Box<NewClient>),
    /// Run a handler for the administrator.
    RunHandler {
        name: String,
        volume: Option<u16>,
        exit: oneshot::Sender<i32>,
    },
    /// Publish a fresh report, and say when that is done.
    Report(oneshot::Sender<()>),
    /// Let all clients go, and say when they are gone.
    ReleaseClients {
        text: String,
        done: oneshot::Sender<()>,
    },
    /// End the loop. The engine has been taken down.
    Quit,
    /// Fail as a bug would.
    #[cfg(test)]
    Panic,
}

/// What a loop needs from the rest of the daemon.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) places: Places,
    pub(crate) handlers: Handlers,
    /// Handler calls, for watchers.
    pub(crate) handler_reports: broadcast::Sender<HandlerReport>,
    /// NBD servers that serve every export, as URIs up to the export name: `nbd://host:port/`.
    pub(crate) nbd_tcp: Option<std::net::SocketAddr>,
    /// The clock that all loops share.
    pub(crate) epoch: Instant,
    /// Directory of full recordings, if they are made.
    pub(crate) record: Option<std::path::PathBuf>,
}

impl Surroundings {
    fn now(&self) -> Time {
        Time(u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn uris(&self, resource: &str, volume: u16) -> Vec<String> {
        let unix = |socket: std::path::PathBuf, export: &str| {
            format!("nbd+unix:///{export}?socket={}", socket.display())
        };
        let export = format!("{resource}/{volume}");
        let mut uris = vec![
            unix(self.places.nbd_volume_socket(resource, volume), ""),
            unix(self.places.nbd_socket(), &export),
        ];
        uris.extend(
            self.nbd_tcp
                .map(|address| format!("nbd://{address}/{export}")),
        );
        uris
    }
}

/// What a round looks at before the engine goes on. Nothing is found by asking a socket twice in one turn: the runtime learns of new
/// readiness between turns, and whatever said "not now" wakes the loop. So the first round of a turn looks at everything, and a later one
/// only where the effects before it made a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Look {
    /// Completions of disks: with io_uring they are there as soon as they are submitted.
    Disks,
    /// Clients, too: an answer makes room for requests that wait in their sessions.
    Clients,
    /// Messages, the peer's streams, handlers and the time, too.
    Everything,
}

/// Who asked for a handler.
enum HandlerTag {
    Engine(Token),
    Administrator(oneshot::Sender<i32>),
}

/// A handler that was started, for the report of its end.
struct HandlerCall {
    tag: HandlerTag,
    report: HandlerReport,
}

struct ResourceLoop<E> {
    engine: E,
    effects: Effects,
    definition: Arc<ResourceDefinition>,
    /// The definition that the connection, or the attempt at one, goes by.
    connects_by: Option<Arc<ResourceDefinition>>,
    surroundings: Surroundings,
    peer: Peer,
    clients: Clients,
    runner: handlers::Runner<HandlerCall>,
    buffer: ReadBuffer,
    inbox: mpsc::Receiver<Message>,
    commands: BTreeMap<CommandId, oneshot::Sender<Answer>>,
    /// Answers on their way to those who asked.
    answers: Vec<(oneshot::Sender<Answer>, Answer)>,
    next_command: u64,
    /// Events on their way to the engine.
    queue: VecDeque<Event>,
    /// What the next round looks at.
    look: Look,
    serving: BTreeMap<VolumeNumber, u64>,
    releasing: Vec<oneshot::Sender<()>>,
    publish: watch::Sender<Arc<Published>>,
    changed: bool,
    published_at: Option<Instant>,
    moving: bool,
    timer: Pin<Box<tokio::time::Sleep>>,
    /// What the timer is set to, at the latest; long ago once it has rung.
    timer_at: Time,
    quitting: bool,
    black_box: SharedBox,
    /// What the engine noted for its black box, reused by every event.
    tape: Vec<u8>,
    /// The last to be dropped: a disk that hangs keeps it, and nobody else, waiting.
    disks: Disks,
}

impl<E: Engine> ResourceLoop<E> {
    fn new(
        engine: E,
        definition: Arc<ResourceDefinition>,
        surroundings: Surroundings,
        inbox: mpsc::Receiver<Message>,
        publish: watch::Sender<Arc<Published>>,
        black_box: SharedBox,
    ) -> std::io::Result<ResourceLoop<E>> {
        let disks = Disks::new(&definition.name, disk::Engine::Best)?;
        let name: Arc<str> = definition.name.as_str().into();
        let runner = handlers::Runner::new(name, surroundings.handlers)?;
        Ok(ResourceLoop {
            engine,
            effects: Effects::new(),
            disks,
            runner,
            definition,
            connects_by: None,
            surroundings,
            inbox,
            publish,
            black_box,
            tape: Vec::new(),
            peer: Peer::default(),
            clients: Clients::default(),
            buffer: ReadBuffer::default(),
            commands: BTreeMap::new(),
            answers: Vec::new(),
            next_command: 0,
            queue: VecDeque::new(),
            look: Look::Everything,
            serving: BTreeMap::new(),
            releasing: Vec::new(),
            changed: true,
            published_at: None,
            moving: false,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            timer_at: Time::NEVER,
            quitting: false,
        })
    }

    /// One turn. Ready when the loop has ended.
    fn turn(&mut self, context: &mut Context<'_>) -> Poll<Result<(), String>> {
        self.look = Look::Everything;
        for _ in 0..ROUNDS_PER_TURN {
            self.collect(context);
            let busy = !self.queue.is_empty();
            self.handle_all();
            // Before all else: clients that have their answers go on, and no CPU is taken from them by a peer that was woken first.
            self.send_to_clients(context);
            // Before the own disk's work: the peer is awake, and its disk at work, meanwhile.
            self.peer.flush(context, &mut self.queue);
            if let Err(error) = self.disks.submit() {
                return Poll::Ready(Err(format!("io_uring refuses the submission: {error}")));
            }
            if self.quitting {
                return Poll::Ready(Ok(()));
            }
            if !busy && self.queue.is_empty() && self.disks_are_quiet() {
                self.report_if_due();
                self.set_timer(context);
                return Poll::Pending;
            }
        }
        self.report_if_due();
        self.set_timer(context);
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn disks_are_quiet(&mut self) -> bool {
        match self.disks.next_event() {
            Some(event) => {
                self.queue.push_back(event);
                false
            }
            None => !self.disks.has_more(),
        }
    }

    /// What has happened becomes events in the queue; registers for wake-ups.
    fn collect(&mut self, context: &mut Context<'_>) {
        let look = std::mem::replace(&mut self.look, Look::Disks);
        if look == Look::Everything {
            self.take_messages(context);
            let engine = &self.engine;
            let pending = |socket| engine.pending_payload(socket);
            let into = (&mut self.buffer, self.disks.pool());
            self.peer.poll(context, into, pending, &mut self.queue);
        }
        if look >= Look::Clients {
            self.clients.poll(
                context,
                &mut self.buffer,
                self.disks.pool(),
                &mut self.queue,
            );
        }
        self.disks.poll(context);
        if (look >= Look::Clients || self.disks.has_layouts()) && self.inquire() {
            context.waker().wake_by_ref();
        }
        while let Some(event) = self.disks.next_event() {
            self.queue.push_back(event);
        }
        if look < Look::Everything {
            return;
        }
        while let Poll::Ready((call, exit)) = self.runner.poll(context) {
            self.handler_ended(call, exit);
        }
        // The timer never waits beyond the next deadline, which costs more to ask for.
        let now = self.surroundings.now();
        if now >= self.timer_at {
            self.timer_at = Time::NEVER;
            if now >= self.engine.next_deadline() {
                self.queue.push_back(Event::Timer);
            }
        }
    }

    fn take_messages(&mut self, context: &mut Context<'_>) {
        for _ in 0..MESSAGES_PER_TURN {
            match self.inbox.poll_recv(context) {
                Poll::Pending => return,
                Poll::Ready(Some(message)) => self.take(message),
                // Nobody can ask for anything any more: the daemon is gone.
                Poll::Ready(None) => {
                    self.quitting = true;
                    return;
                }
            }
        }
        context.waker().wake_by_ref();
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Command { command, answer } => self.command(command, answer),
            Message::Connect {
                discard_my_data,
                tentative,
                answer,
            } => match self.network() {
                Ok((net, link)) => {
                    self.peer.configure(link);
                    self.connects_by = Some(Arc::clone(&self.definition));
                    let command = Command::Connect {
                        net,
                        discard_my_data,
                        tentative,
                    };
                    self.command(Box::new(command), answer);
                }
                Err(error) => {
                    let refusal = refusal(162, "Invalid configuration request", error.to_string());
                    let _ = answer.send(refusal);
                }
            },
            Message::Define(definition) => {
                self.definition = definition;
                self.changed = true;
            }
            Message::Client(client) => self.client(*client),
            Message::RunHandler { name, volume, exit } => {
                self.handler(HandlerTag::Administrator(exit), name, volume);
            }
            Message::Report(done) => {
                self.publish();
                let _ = done.send(());
            }
            Message::ReleaseClients { text, done } => {
                self.clients.shut_down(None, &text);
                self.releasing.push(done);
            }
            Message::Quit => self.quitting = true,
            #[cfg(test)]
            Message::Panic => panic!("as asked"),
        }
    }

    fn command(&mut self, command: Box<Command>, answer: oneshot::Sender<Answer>) {
        self.next_command += 1;
        let id = CommandId(self.next_command);
        self.commands.insert(id, answer);
        self.queue.push_back(Event::Command { id, command });
    }

    fn network(&self) -> Result<(NetOptions, Option<LinkSettings>), SettingError> {
        let (net, buffers) = settings::net_options(&self.definition.net, &mut Vec::new())?;
        let link = self
            .definition
            .connection
            .as_ref()
            .map(|connection| LinkSettings {
                my_address: connection.my_address,
                peer_address: connection.peer_address,
                buffers,
                connect_timeout: net.connect_interval,
            });
        if link.is_none() {
            return Err(SettingError::Contradiction(format!(
                "resource {} has no peer in the configuration",
                self.definition.name
            )));
        }
        Ok((net, link))
    }

    fn client(&mut self, client: NewClient) {
        let (volume, who) = (client.volume, client.who.clone());
        if !self.serving.contains_key(&volume) {
            tracing::info!(client = %who, volume = volume.0, "refused: not Primary any more");
            return;
        }
        match self.clients.adopt(client) {
            Ok(event) => {
                self.queue.push_back(event);
                self.changed = true;
            }
            Err(error) => tracing::warn!(client = %who, volume = volume.0, %error, "refused"),
        }
    }

    fn handle_all(&mut self) {
        if self.queue.is_empty() {
            return self.send_answers();
        }
        let mut effects = std::mem::take(&mut self.effects);
        let now = self.surroundings.now();
        while let Some(event) = self.queue.pop_front() {
            if matches!(event, Event::Released { .. }) {
                self.changed = true;
            }
            self.handle(now, event, &mut effects);
            for effect in effects.drain(..) {
                self.carry_out(effect);
            }
        }
        self.effects = effects;
        self.send_answers();
    }

    /// Lets the engine handle an event, and notes both in the black box. A failure of the engine is noted and goes on.
    fn handle(&mut self, now: Time, event: Event, effects: &mut Effects) {
        blackbox::lock(&self.black_box).event(now, &event);
        let engine = &mut self.engine;
        let outcome = catch_unwind(AssertUnwindSafe(|| engine.handle(now, event, effects)));
        self.tape.clear();
        engine.take_tape(&mut self.tape);
        match outcome {
            Ok(()) => blackbox::lock(&self.black_box).effects(&self.tape, effects),
            Err(panic) => {
                let text = panic_text(&*panic);
                blackbox::lock(&self.black_box).failed(&self.tape, text);
                resume_unwind(panic);
            }
        }
    }

    /// Whoever has an answer sees its consequences in the status: it is published first.
    fn send_answers(&mut self) {
        if self.changed && !self.answers.is_empty() {
            self.publish();
        }
        for (sender, answer) in self.answers.drain(..) {
            // Whoever asked may have given up waiting.
            drop(sender.send(answer));
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        self.look = self.look.max(made_stir(&effect));
        match effect {
            Effect::Disk {
                token,
                volume,
                operation,
            } => self.disks.data(token, volume, operation),
            Effect::Meta {
                token,
                volume,
                operation,
            } => self.disks.meta(token, volume, operation),
            Effect::Send {
                socket,
                head,
                payload,
            } => self.peer.send(socket, head, payload),
            Effect::Reply { request, result } => self.clients.reply(request, result),
            Effect::Answer { command, answer } => self.answer(command, answer),
            Effect::Listen => self.queue.extend(self.peer.listen()),
            Effect::Unlisten => self.peer.unlisten(),
            Effect::Dial { token } => self.peer.dial(token),
            Effect::Close { socket, how } => self.queue.extend(self.peer.close(socket, how)),
            Effect::PauseRead { socket } => self.peer.pause(socket, true),
            Effect::ResumeRead { socket } => self.peer.pause(socket, false),
            Effect::PauseClients { volume } => self.clients.pause(volume, true),
            Effect::ResumeClients { volume } => self.clients.pause(volume, false),
            Effect::OpenBacking { token, volume } => {
                let paths = self.backing_paths(volume);
                self.disks.open(token, volume, paths);
            }
            Effect::MeasureBacking { token, volume } => self.disks.measure(token, volume),
            Effect::CloseBacking { token, volume } => self.disks.close(token, volume),
            Effect::RunHandler {
                token,
                name,
                volume,
            } => {
                let volume = volume.map(|volume| volume.0);
                self.handler(HandlerTag::Engine(token), name.to_owned(), volume);
            }
            Effect::Notify(notification) => self.notify(notification),
        }
    }

    fn backing_paths(&self, volume: VolumeNumber) -> Option<BackingPaths> {
        let volume = self
            .definition
            .volumes
            .iter()
            .find(|candidate| candidate.number == volume.0)?;
        let disk = volume.disk.clone()?;
        Some(BackingPaths {
            disk,
            meta: volume.meta_disk.clone(),
        })
    }

    fn answer(&mut self, command: CommandId, mut answer: Answer) {
        /// "Device is held open by someone" (state-machine.md 2.7).
        const DEVICE_IN_USE: i32 = -12;
        if answer.number == DEVICE_IN_USE {
            for volume in &self.definition.volumes {
                for who in self.clients.holders(VolumeNumber(volume.number)) {
                    answer
                        .info
                        .push(format!("volume {} is held open by {who}", volume.number));
                }
            }
        }
        match self.commands.remove(&command) {
            Some(sender) => self.answers.push((sender, answer)),
            None => tracing::error!(
                command = command.0,
                "the engine answered an unknown command"
            ),
        }
    }

    fn handler(&mut self, tag: HandlerTag, name: String, volume: Option<u16>) {
        let report = HandlerReport {
            resource: self.definition.name.clone(),
            volume,
            handler: name.clone(),
            exit: None,
        };
        let command = self
            .definition
            .handlers
            .get(&name)
            .filter(|text| !text.is_empty())
            .cloned();
        if command.is_some() {
            // Nobody may be watching.
            let _ = self.surroundings.handler_reports.send(report.clone());
        }
        let connection = self.engine.status().connection;
        let environment = handlers::environment(&self.definition, volume, connection.name());
        let job = handlers::Job {
            tag: HandlerCall { tag, report },
            name,
            command,
            environment,
            limit: handlers::limit(&self.definition),
        };
        if let Err(call) = self.runner.run(job) {
            tracing::error!(handler = %call.report.handler, "the thread that runs handlers has died");
            self.handler_ended(call, 0);
        }
    }

    fn handler_ended(&mut self, call: HandlerCall, exit: i32) {
        let HandlerCall { tag, mut report } = call;
        if self.definition.handlers.contains_key(&report.handler) {
            report.exit = Some(exit);
            let _ = self.surroundings.handler_reports.send(report);
        }
        match tag {
            HandlerTag::Engine(token) => self.queue.push_back(Event::HandlerDone { token, exit }),
            HandlerTag::Administrator(sender) => drop(sender.send(exit)),
        }
    }

    fn notify(&mut self, notification: Notification) {
        match notification {
            Notification::Log {
                level,
                volume,
                text,
            } => log(level, volume, &text),
            Notification::StatusChanged => self.changed = true,
            Notification::Serve { volume, bytes } => {
                match bytes {
                    Some(bytes) => {
                        self.serving.insert(volume, bytes);
                    }
                    None => {
                        self.serving.remove(&volume);
                        self.clients
                            .shut_down(Some(volume), "this node is not Primary any more");
                    }
                }
                // Clients that come right after the answer to `primary` must find the export.
                self.publish();
            }
        }
    }

    fn send_to_clients(&mut self, context: &mut Context<'_>) {
        self.clients.flush(context, &mut self.queue);
        if self.clients.is_empty() {
            for done in self.releasing.drain(..) {
                let _ = done.send(());
            }
        }
    }
}

/// What has to be looked at after an effect.
fn made_stir(effect: &Effect) -> Look {
    use Notification::{Log, Serve, StatusChanged};
    match effect {
        Effect::Disk { .. }
        | Effect::Meta { .. }
        | Effect::Send { .. }
        | Effect::Notify(Log { .. } | StatusChanged) => Look::Disks,
        Effect::Reply { .. } => Look::Clients,
        Effect::Answer { .. }
        | Effect::Listen
        | Effect::Unlisten
        | Effect::Dial { .. }
        | Effect::Close { .. }
        | Effect::PauseRead { .. }
        | Effect::ResumeRead { .. }
        | Effect::PauseClients { .. }
        | Effect::ResumeClients { .. }
        | Effect::OpenBacking { .. }
        | Effect::MeasureBacking { .. }
        | Effect::CloseBacking { .. }
        | Effect::RunHandler { .. }
        | Effect::Notify(Serve { .. }) => Look::Everything,
    }
}

/// The message of a panic.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

fn refusal(number: i32, text: &str, info: String) -> Answer {
    Answer {
        number,
        text: text.to_owned(),
        info: vec![info],
        hint: None,
        exit: 10,
    }
}

fn log(level: Level, volume: Option<VolumeNumber>, text: &str) {
    macro_rules! line {
        ($level:ident) => {
            match volume {
                Some(volume) => tracing::$level!(volume = volume.0, "{text}"),
                None => tracing::$level!("{text}"),
            }
        };
    }
    match level {
        Level::Error => line!(error),
        Level::Warn => line!(warn),
        Level::Info => line!(info),
        Level::Debug => line!(debug),
        Level::Trace => line!(trace),
    }
}

/// New disk options as a command.
pub(crate) fn disk_options_command(
    volume: u16,
    options: &Options,
) -> Result<(Command, Vec<String>), SettingError> {
    let mut warnings = Vec::new();
    let options = settings::disk_options(options, &mut warnings)?;
    Ok((
        Command::DiskOptions {
            volume: VolumeNumber(volume),
            options,
        },
        warnings,
    ))
}

#[cfg(test)]
mod tests;
