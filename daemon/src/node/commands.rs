//! What an administrator's calls become: commands of the engine, one volume at a time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tandem_replicator::{Command, Force, NewArea, PeerRoom, VolumeNumber};

use super::{DEVICE_IN_USE, Node, from_engine, unknown};
use crate::blackbox;
use crate::control::messages::{
    Call, CommandAnswer, Options, ResourceDefinition, StandAlone, WaitFor,
};
use crate::resource_loop::{Message, disk_options_command};

/// Pause between two attempts to demote a device that is held open.
pub(super) const DEMOTE_PAUSE: Duration = Duration::from_millis(100);

/// Pause of a `wait` after each change: counters change all the time.
const WAIT_PAUSE: Duration = Duration::from_millis(20);

impl Node {
    /// Carries out what changes something, or waits for something.
    pub(super) async fn change(
        self: &Arc<Node>,
        call: Call,
    ) -> Result<CommandAnswer, CommandAnswer> {
        if let Some((resource, volume, command)) = per_volume(&call) {
            return self.each(resource, volume, command).await;
        }
        match call {
            Call::Configure { definition } => self.configure(*definition).await,
            Call::Down { resource, force } => self.down(&resource, insist(force)).await,
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
            Call::Disconnect { resource, force } => {
                let command = Command::Disconnect {
                    force: insist(force),
                };
                self.command(&resource, command).await
            }
            Call::Secondary {
                resource,
                volume,
                wait_ms,
            } => {
                self.secondary(&resource, volume, Duration::from_millis(wait_ms))
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
                stand_alone,
            } => self.wait(&resource, volume, until, stand_alone).await,
            Call::RunHandler {
                resource,
                volume,
                handler,
            } => self.run_handler(&resource, volume, handler).await,
            Call::BlackBox { resource, file } => self.black_box(resource, file).await,
            Call::Shutdown => {
                self.stop.notify_one();
                Ok(CommandAnswer::success())
            }
            other => {
                tracing::error!(?other, "a call without a way to carry it out");
                Err(CommandAnswer::failure(
                    162,
                    "Invalid configuration request",
                    10,
                ))
            }
        }
    }

    /// One command for each volume wanted, until one is refused. The answer is the refusal, or the last success with everybody's
    /// information.
    async fn each(
        &self,
        resource: &str,
        volume: Option<u16>,
        command: impl Fn(VolumeNumber) -> Command + Send + Sync,
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
        stand_alone: StandAlone,
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
            if report.connection == "StandAlone" && stand_alone == StandAlone::Ends {
                return Err(CommandAnswer::failure(0, "StandAlone", 5)
                    .with_info(format!("resource {resource} does not try to connect"))
                    .with_hint(format!("tandem adm connect {resource}")));
            }
            // The counter of changes is never closed while the node lives.
            let _ = changes.changed().await;
            tokio::time::sleep(WAIT_PAUSE).await;
            status = self.last_status(Some(resource));
        }
    }

    /// Writes the black box of a resource, also while its loop hangs and after it failed.
    async fn black_box(
        &self,
        resource: String,
        file: Option<PathBuf>,
    ) -> Result<CommandAnswer, CommandAnswer> {
        let black_box = self.black_box_of(&resource).ok_or_else(unknown)?;
        let dir = self.crash_dir();
        let words = match &file {
            Some(file) => file.display().to_string(),
            None => format!("a file in {}", dir.display()),
        };
        let write = move || {
            let file = file.as_deref();
            blackbox::write_out(&black_box, file, &dir, &resource, "written by command")
        };
        let failed = |error: String| {
            CommandAnswer::failure(0, "Cannot write the black box", 20)
                .with_info(format!("cannot write {words}: {error}"))
                .with_hint("tandem black-box RESOURCE FILE (FILE must not exist)")
        };
        let written = tokio::task::spawn_blocking(write)
            .await
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        let mut answer = CommandAnswer::success()
            .with_info(format!(
                "{}: {} events, {} bytes, no user data, no secrets",
                written.path.display(),
                written.events,
                written.bytes
            ))
            .with_info(written.extent.to_string());
        if let Some(path) = written.recording {
            answer = answer.with_info(format!(
                "the whole history is being recorded in {}",
                path.display()
            ));
        }
        Ok(answer)
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
}

fn insist(force: bool) -> Force {
    if force { Force::Yes } else { Force::No }
}

type VolumeCommand = Box<dyn Fn(VolumeNumber) -> Command + Send + Sync>;

/// The calls that are one command of the engine for each volume.
fn per_volume(call: &Call) -> Option<(&str, Option<u16>, VolumeCommand)> {
    let (resource, volume, command): (&str, &Option<u16>, VolumeCommand) = match call {
        Call::Attach { resource, volume } => (
            resource,
            volume,
            Box::new(|volume| Command::Attach { volume }),
        ),
        Call::Detach {
            resource,
            volume,
            force,
        } => {
            let force = insist(*force);
            (
                resource,
                volume,
                Box::new(move |volume| Command::Detach { volume, force }),
            )
        }
        Call::Primary {
            resource,
            volume,
            force,
        } => {
            let force = insist(*force);
            (
                resource,
                volume,
                Box::new(move |volume| Command::Primary { volume, force }),
            )
        }
        Call::Invalidate { resource, volume } => (
            resource,
            volume,
            Box::new(|volume| Command::Invalidate { volume }),
        ),
        Call::InvalidateRemote { resource, volume } => (
            resource,
            volume,
            Box::new(|volume| Command::InvalidateRemote { volume }),
        ),
        Call::Outdate { resource, volume } => (
            resource,
            volume,
            Box::new(|volume| Command::Outdate { volume }),
        ),
        Call::NewCurrentUuid {
            resource,
            volume,
            clear_bitmap,
        } => {
            let clear_bitmap = *clear_bitmap;
            (
                resource,
                volume,
                Box::new(move |volume| Command::NewCurrentUuid {
                    volume,
                    clear_bitmap,
                }),
            )
        }
        Call::PauseSync { resource, volume } => (
            resource,
            volume,
            Box::new(|volume| Command::PauseSync { volume }),
        ),
        Call::ResumeSync { resource, volume } => (
            resource,
            volume,
            Box::new(|volume| Command::ResumeSync { volume }),
        ),
        Call::Verify {
            resource,
            volume,
            start,
            stop,
        } => {
            let (start, stop) = (*start, *stop);
            (
                resource,
                volume,
                Box::new(move |volume| Command::Verify {
                    volume,
                    start,
                    stop,
                }),
            )
        }
        Call::VerifyStop { resource, volume } => (
            resource,
            volume,
            Box::new(|volume| Command::VerifyStop { volume }),
        ),
        Call::Resize {
            resource,
            volume,
            bytes,
            assume_peer_has_space,
            assume_clean,
        } => {
            let size = *bytes;
            let room = match assume_peer_has_space {
                true => PeerRoom::Assumed,
                false => PeerRoom::Asked,
            };
            let area = match assume_clean {
                true => NewArea::AssumeClean,
                false => NewArea::Resync,
            };
            (
                resource,
                volume,
                Box::new(move |volume| Command::Resize {
                    volume,
                    size,
                    room,
                    area,
                }),
            )
        }
        Call::SuspendIo { resource, volume } => (
            resource,
            volume,
            Box::new(|volume| Command::SuspendIo { volume }),
        ),
        Call::ResumeIo { resource, volume } => (
            resource,
            volume,
            Box::new(|volume| Command::ResumeIo { volume }),
        ),
        _ => return None,
    };
    Some((resource, *volume, command))
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
