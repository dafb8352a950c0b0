//! Creating resources, and bringing the definition of those that are up to date.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::{DOWN_PATIENCE, Node, Running};
use crate::control::messages::{CommandAnswer, ResourceDefinition, ResourceReport};
use crate::exports::{self, Scope};
use crate::resource_loop::{Message, disk_options_command};
use crate::settings;

impl Node {
    pub(super) async fn configure(
        self: &Arc<Node>,
        definition: ResourceDefinition,
    ) -> Result<CommandAnswer, CommandAnswer> {
        let turn = self.turn(&definition.name);
        let _mine = turn.lock().await;
        let warnings = settings::check(&definition).map_err(|error| {
            CommandAnswer::failure(162, "Invalid configuration request", 10)
                .with_info(error.to_string())
        })?;
        self.check_against_others(&definition)?;
        let existing = self.definition(&definition.name).ok();
        let mut answer = match existing {
            // Its loop has ended: a new one begins as after a crash.
            Some(old) if self.has_failed(&old.name) => {
                self.remove(&old.name, DOWN_PATIENCE).await;
                self.start_beside_others(definition)?
            }
            Some(old) if same_shape(&old, &definition) => self.redefine(&old, definition).await,
            Some(old) => {
                if !self.is_idle(&old.name) {
                    return Err(CommandAnswer::failure(159, "Resource still in use", 10)
                        .with_info(
                            "its volumes have changed, and they cannot change while it is up",
                        )
                        .with_hint(format!(
                            "tandem adm down {0} && tandem adm up {0}",
                            old.name
                        )));
                }
                self.remove(&old.name, DOWN_PATIENCE).await;
                self.start_beside_others(definition)?
            }
            None => self.start_beside_others(definition)?,
        };
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        answer.info.extend(warnings);
        Ok(answer)
    }

    /// Starts a resource that has nothing that another one has. One at a time: two that want the same cannot both pass the check.
    fn start_beside_others(
        self: &Arc<Node>,
        definition: ResourceDefinition,
    ) -> Result<CommandAnswer, CommandAnswer> {
        let _alone = self.starting();
        if self.is_stopping() {
            return Err(
                CommandAnswer::failure(162, "Invalid configuration request", 10)
                    .with_info("tandemd is stopping"),
            );
        }
        self.check_against_others(&definition)?;
        self.start(definition)
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

    fn has_failed(&self, name: &str) -> bool {
        let resources = self.resources();
        resources
            .get(name)
            .is_some_and(|running| running.handle.published.borrow().report.failed.is_some())
    }

    /// What was published of a resource last.
    fn report(&self, name: &str) -> Option<ResourceReport> {
        let resources = self.resources();
        let running = resources.get(name)?;
        let report = running.handle.published.borrow().report.clone();
        Some(report)
    }

    fn is_idle(&self, name: &str) -> bool {
        let Some(report) = self.report(name) else {
            return true;
        };
        report.connection == "StandAlone"
            && report
                .volumes
                .iter()
                .all(|volume| volume.disk == "Diskless" && volume.role == "Secondary")
    }

    /// A definition with the same volumes: what the loop can take over while it runs, and what needs an attach. What needs a reconnect is in
    /// the loop's report.
    async fn redefine(&self, old: &ResourceDefinition, new: ResourceDefinition) -> CommandAnswer {
        let mut answer = CommandAnswer::success();
        let running = self.report(&old.name);
        let name = new.name.clone();
        let mut options = Vec::new();
        for (before, after) in old.volumes.iter().zip(&new.volumes) {
            let number = after.number;
            let attached = running.as_ref().is_some_and(|report| {
                let mut volumes = report.volumes.iter();
                volumes.any(|volume| volume.number == number && volume.disk != "Diskless")
            });
            if attached && (&before.disk, &before.meta_disk) != (&after.disk, &after.meta_disk) {
                answer.info.push(format!(
                    "volume {number}: the new disk is used with the next attach"
                ));
            }
            if attached && before.options.get("size") != after.options.get("size") {
                answer.info.push(format!(
                    "volume {number}: another size of the device is taken over by: tandem adm resize {name}/{number}"
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
