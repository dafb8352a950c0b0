//! The thread of a loop: its start, and what becomes of it when it fails.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use tandem_replicator::{ResourceOptions, VolumeNumber, VolumeOptions};
use tokio::sync::{mpsc, watch};

use super::{Engine, INBOX_MAX, Message, ResourceLoop, Surroundings, panic_text};
use crate::blackbox::{self, BlackBox, SharedBox};
use crate::control::messages::ResourceDefinition;
use crate::recording::Recording;
use crate::report::Published;
use crate::settings::{self, SettingError};

/// A running loop, as the rest of the daemon holds it.
pub(crate) struct LoopHandle {
    pub(crate) inbox: mpsc::Sender<Message>,
    pub(crate) published: watch::Receiver<Arc<Published>>,
    pub(crate) thread: std::thread::JoinHandle<()>,
    /// What led to where it is; can be asked for while it hangs, and after it failed.
    pub(crate) black_box: SharedBox,
}

/// Starts the loop of a resource on a thread of its own. A panic in it ends this loop alone.
pub(crate) fn spawn<E: Engine + 'static>(
    definition: Arc<ResourceDefinition>,
    surroundings: Surroundings,
) -> Result<LoopHandle, SpawnError> {
    let options = resource_options(&definition)?;
    let (inbox, messages) = mpsc::channel(INBOX_MAX);
    let (publish, published) = watch::channel(Arc::new(Published::failed(&definition, None)));
    let black_box = Arc::new(Mutex::new(BlackBox::new(&options)));
    let noted = Arc::clone(&black_box);
    let name: String = definition.name.chars().take(15).collect();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let span = tracing::info_span!("resource", name = %definition.name);
        let _entered = span.enter();
        let failed = {
            let definition = Arc::clone(&definition);
            let publish = publish.clone();
            run::<E>(definition, surroundings, options, messages, publish, &noted).err()
        };
        if let Some(failed) = &failed {
            tracing::error!(
                "{failed}; type: tandem adm down {0}, then tandem adm up {0}",
                definition.name
            );
        }
        publish.send_replace(Arc::new(Published::failed(&definition, failed)));
    })?;
    Ok(LoopHandle {
        inbox,
        published,
        thread,
        black_box,
    })
}

/// Why a loop could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// Options that cannot be obeyed.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// No thread, or no seed.
    #[error("cannot start the loop of the resource: {0}")]
    System(#[from] std::io::Error),
}

fn resource_options(definition: &ResourceDefinition) -> Result<ResourceOptions, SpawnError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| std::io::Error::other(error.to_string()))?;
    let mut volumes = Vec::new();
    for volume in &definition.volumes {
        volumes.push(VolumeOptions {
            number: VolumeNumber(volume.number),
            minor: volume.minor,
            disk: settings::disk_options(&volume.options, &mut Vec::new())?,
        });
    }
    Ok(ResourceOptions {
        name: definition.name.clone(),
        volumes,
        seed,
    })
}

/// Runs the loop to its end. An error is words for the log.
fn run<E: Engine>(
    definition: Arc<ResourceDefinition>,
    surroundings: Surroundings,
    options: ResourceOptions,
    inbox: mpsc::Receiver<Message>,
    publish: watch::Sender<Arc<Published>>,
    black_box: &SharedBox,
) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime for the loop: {error}"))?;
    let (name, crash_dir) = (definition.name.clone(), surroundings.places.crash_dir());
    let recording = surroundings.record.as_deref().and_then(|dir| {
        let started = Recording::start(dir, &name, black_box);
        let failed = |error: &std::io::Error| {
            tracing::error!(dir = %dir.display(), %error, "this resource is not recorded");
        };
        started.inspect_err(failed).ok()
    });
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let black_box = Arc::clone(black_box);
            let mut engine = E::new(options);
            engine.record();
            let mut the_loop =
                ResourceLoop::new(engine, definition, surroundings, inbox, publish, black_box)
                    .map_err(|error| format!("the loop cannot begin: {error}"))?;
            std::future::poll_fn(|context| the_loop.turn(context)).await
        })
    }));
    let failed = match result {
        Ok(result) => result.err(),
        Err(panic) => {
            let text = panic_text(&*panic);
            Some(format!(
                "the resource failed by a bug in this program: {text}"
            ))
        }
    };
    drop(recording);
    let Some(failed) = failed else { return Ok(()) };
    match blackbox::write_failure(black_box, &crash_dir, &name, &failed) {
        Ok(path) => Err(format!("{failed} (what led to it: {})", path.display())),
        Err(error) => Err(format!(
            "{failed} (and its history cannot be written: {error})"
        )),
    }
}
