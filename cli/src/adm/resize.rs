//! `resize`, and `check-resize`, which moves internal metadata to the new end of a disk that has grown
//! (docs/spec/metadata.md 6.5): where they were is on record since they were made, or attached, last.

use std::path::PathBuf;

use tandem_config::{MetaDisk, ResolvedVolume};
use tandem_daemon::control::ControlClient;
use tandem_daemon::control::messages::Call;
use tandem_metadata::relocate::{Former, LastKnown, Move, MoveStep, TEXT_NO_SUITABLE};
use tandem_metadata::{BLOCK_SIZE, Placement, Superblock};

use super::{Run, metadata, state};
use crate::configuration::Target;
use crate::device::{Access, Device, busy};
use crate::failure::{CANNOT_RUN, CONFIGURATION, Failure, Outcome, USAGE};
use crate::output::err;

/// `resize` on each volume, with the size of the command line or of the configuration.
pub(super) fn resize(run: &Run<'_>, client: &mut ControlClient, target: &Target) -> Outcome {
    check_options(run)?;
    let given = state::sectors(run, "size")?;
    for volume in target.volumes() {
        let mut one = target.clone();
        one.volume = Some(volume.number);
        let sectors = given.or(volume.disk_options.size_sectors).unwrap_or(0);
        let before = bytes_of(run, client, &one)?;
        let call = Call::Resize {
            resource: target.view.name.clone(),
            volume: one.volume,
            bytes: sectors.saturating_mul(512),
            assume_peer_has_space: run.arguments.has("assume-peer-has-space"),
            assume_clean: run.arguments.has("assume-clean"),
        };
        let answer = state::ask(run, client, call)?;
        state::judge(run, &one, answer)?;
        if bytes_of(run, client, &one)? > before {
            err(&format!(
                "{}: clients that are connected see the new size when they connect again",
                one.name()
            ));
        }
    }
    Ok(())
}

/// Refuses options of `resize` that are known and not supported.
pub(super) fn check_options(run: &Run<'_>) -> Outcome {
    let refused = ["al-stripes", "al-stripe-size-kB"];
    match refused.into_iter().find(|option| run.arguments.has(option)) {
        None => Ok(()),
        Some(option) => Err(Failure::new(
            USAGE,
            format!(
                "resize --{option} is not supported: the activity log keeps the layout that create-md gave it"
            ),
        )
        .next(run.invocation.adm(&format!("resize {}", run.arguments.targets.join(" "))))),
    }
}

fn bytes_of(run: &Run<'_>, client: &mut ControlClient, target: &Target) -> Result<u64, Failure> {
    let report = state::report(run, client, &target.view.name)?;
    let volumes = report.map(|report| report.volumes).unwrap_or_default();
    let found = volumes.iter().find(|one| Some(one.number) == target.volume);
    Ok(found.map_or(0, |volume| volume.bytes))
}

/// `check-resize`: nothing to do for external metadata.
pub(super) fn check_resize(run: &Run<'_>, target: &Target) -> Outcome {
    for volume in target.volumes().filter(|volume| is_internal(volume)) {
        let attached = metadata::attached(run, target, volume)?.is_some();
        let access = if attached {
            Access::Read
        } else {
            Access::Change
        };
        let device = Device::open(volume, access, run.patience())?;
        if device.superblock()?.is_ok() {
            remember(run, volume, &device)?;
            continue;
        }
        if attached {
            return Err(busy(volume, &device.path)
                .line("the disk has grown: its metadata is moved while it is detached")
                .next(run.invocation.adm(&format!("detach {}", target.name()))));
        }
        move_metadata(run, target, volume, device)?;
    }
    Ok(())
}

pub(super) fn is_internal(volume: &ResolvedVolume) -> bool {
    volume.disk.is_some() && volume.meta_disk == MetaDisk::Internal
}

fn record_file(run: &Run<'_>, volume: &ResolvedVolume) -> PathBuf {
    let name = LastKnown::file_name(volume.device.minor);
    run.invocation.places().state_dir().join(name)
}

fn record(run: &Run<'_>, volume: &ResolvedVolume) -> Option<LastKnown> {
    let text = std::fs::read_to_string(record_file(run, volume)).ok()?;
    LastKnown::parse(&text)
}

/// Metadata that a disk which has grown left at its former end, if that is on record.
pub(super) fn left_behind(
    run: &Run<'_>,
    volume: &ResolvedVolume,
    device: &Device,
) -> Result<Option<Former>, Failure> {
    let known = record(run, volume)
        .filter(|known| known.size < device.size)
        .filter(|_| device.placement == Placement::Internal);
    let Some(known) = known else {
        return Ok(None);
    };
    let Ok(sector) = Placement::Internal.superblock_sector(known.size) else {
        return Ok(None);
    };
    let block = device.read(sector.0 * 512, BLOCK_SIZE)?;
    Ok(known.find(device.size, &block))
}

/// Where a disk that has grown has its metadata.
pub(super) fn text_left_behind(device: &Device, former: &Former) -> String {
    let (path, offset, size) = (&device.path, former.offset.0, former.size.0);
    format!(
        "{path}: at its former end ({size} bytes), at byte offset {offset}, is a v08 meta data block"
    )
}

/// What to type when the metadata of a disk that has grown can be moved.
pub(super) fn next_move(run: &Run<'_>, targets: &str) -> String {
    format!(
        "{}   # the disk has grown: this moves its metadata to the new end",
        run.invocation.adm(&format!("check-resize {targets}"))
    )
}

/// Forgets where internal metadata was: there is none any more.
pub(super) fn forget(run: &Run<'_>, volume: &ResolvedVolume) -> Outcome {
    let file = record_file(run, volume);
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let line = format!("cannot remove {}: {error}", file.display());
            Err(Failure::new(CANNOT_RUN, line))
        }
        _ => Ok(()),
    }
}

/// Whether a disk has no metadata at its end, and some that can be moved at its former one.
pub(super) fn has_left_metadata(run: &Run<'_>, volume: &ResolvedVolume) -> bool {
    Device::open(volume, Access::Read, run.patience()).is_ok_and(|device| {
        matches!(device.superblock(), Ok(Err(_)))
            && matches!(left_behind(run, volume, &device), Ok(Some(former)) if former.movable)
    })
}

/// Notes where internal metadata is, if it is there: a disk that grows later leaves it behind.
pub(super) fn remember_if_there(run: &Run<'_>, volume: &ResolvedVolume) {
    if !is_internal(volume) {
        return;
    }
    if let Ok(device) = Device::open(volume, Access::Read, run.patience())
        && matches!(device.superblock(), Ok(Ok(_)))
        && let Err(failure) = remember(run, volume, &device)
    {
        failure.print();
    }
}

fn remember(run: &Run<'_>, volume: &ResolvedVolume, device: &Device) -> Outcome {
    let Ok((superblock, _)) = device.superblock()? else {
        return Ok(());
    };
    let known = LastKnown {
        size: device.size,
        device: device.path.clone(),
        device_uuid: Some(superblock.device_uuid).filter(|uuid| *uuid != 0),
    };
    let file = record_file(run, volume);
    if record(run, volume).as_ref() == Some(&known) {
        return Ok(());
    }
    let directory = run.invocation.places().state_dir();
    // A record that is cut off is none: the rename makes it whole or leaves the former one.
    let fresh = file.with_extension("new");
    std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(&fresh, known.to_text()))
        .and_then(|()| std::fs::rename(&fresh, &file))
        .map_err(|error| {
            let line = format!(
                "cannot note the size of {} in {}: {error}",
                device.path,
                file.display()
            );
            Failure::new(CANNOT_RUN, line)
        })
}

/// The metadata is not at the end of the disk: it is looked for at the former end.
fn move_metadata(
    run: &Run<'_>,
    target: &Target,
    volume: &ResolvedVolume,
    mut device: Device,
) -> Outcome {
    let file = record_file(run, volume);
    let Some(known) = record(run, volume).filter(|known| known.size < device.size) else {
        return Err(Failure::new(USAGE, TEXT_NO_SUITABLE)
            .line(format!(
                "{}: no metadata at its end, and {} does not tell of a smaller size that it had",
                device.path,
                file.display()
            ))
            .line("If it was just made larger: give it its former size again, check-resize, and grow it then.")
            .next(run.invocation.adm(&format!("check-resize {}   # at its former size", target.name()))));
    };
    let present = device.size;
    // As if it had not grown: what is unclean is applied where it is.
    device.size = known.size;
    let (superblock, _) = device
        .superblock()?
        .map_err(|error| nothing_there(run, target, &device, &error.to_string()))?;
    if superblock.needs_replay() {
        metadata::apply(run, target, volume, &device)?;
    }
    let sector = Placement::Internal
        .superblock_sector(known.size)
        .map_err(|error| nothing_there(run, target, &device, &error.to_string()))?;
    let block = device.read(sector.0 * 512, BLOCK_SIZE)?;
    let planned = Move::plan(&known, present, &block)
        .map_err(|error| nothing_there(run, target, &device, &error.to_string()))?;
    if let Some(planned) = planned {
        for step in planned.steps() {
            perform(&device, &step)?;
        }
    }
    device.size = present;
    let moved: Result<(Superblock, _), _> = device.superblock()?;
    moved.map_err(|error| {
        Failure::new(
            CONFIGURATION,
            format!(
                "{}: the metadata was moved and is not valid: {error}",
                device.path
            ),
        )
    })?;
    err(&format!(
        "{}/{}: the metadata was moved to the new end of {} ({} bytes, had {})",
        target.view.name, volume.number, device.path, present.0, known.size.0
    ));
    remember(run, volume, &device)
}

fn perform(device: &Device, step: &MoveStep) -> Outcome {
    match step {
        MoveStep::Do(step) => device.perform(std::slice::from_ref(step)),
        MoveStep::Copy {
            from,
            to,
            len,
            order,
        } => device.copy(from.0, to.0, len.0, *order),
    }
}

fn nothing_there(run: &Run<'_>, target: &Target, device: &Device, error: &str) -> Failure {
    Failure::new(USAGE, TEXT_NO_SUITABLE)
        .line(format!(
            "{}: at its former end ({} bytes): {error}. Nothing was changed.",
            device.path, device.size.0
        ))
        .next(format!(
            "{}   # only for a disk that is new to this pair",
            run.invocation.adm(&format!("create-md {}", target.name()))
        ))
}
