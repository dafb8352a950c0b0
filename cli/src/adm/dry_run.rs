//! `--dry-run` and `--verbose`: the steps of a command, its options included, and behind `#` what is on the disk, what would be
//! asked, what would be refused, and which data would be given up.

use tandem_config::ResolvedVolume;
use tandem_daemon::control::messages::VolumeReport;
use tandem_metadata::{create, gi};

use super::{Run, adjust, metadata, options, resize, state, waiting};
use crate::configuration::Target;
use crate::device::{Access, Device};
use crate::failure::{CONFIGURATION, Failure, Outcome, USAGE};
use crate::invocation::quoted;
use crate::output::out_line;
use crate::words::Action;
use crate::{backend, daemon};

/// What is said of a volume that is attached.
const WHILE_ATTACHED: &str = "refused while it is attached: detach it first";

/// Prints the steps of all targets, with a remark where the step alone does not tell what comes of it. `values` are those of
/// `set-gi`.
///
/// What the command would refuse for its options is refused here, too.
pub(super) fn print(run: &Run<'_>, targets: &[Target], values: Option<&str>) -> Outcome {
    for target in targets {
        check(run, target)?;
        let offline = goes_to_metadata(run, target)?;
        let steps = match run.word.action {
            Action::Up | Action::Adjust | Action::NewResource => adjust::steps(run, target)?,
            // As drbdadm's fall-back does it.
            _ if offline => target
                .volumes()
                .map(|volume| backend::drbdmeta(volume, run.word.name))
                .collect(),
            _ => steps(run, target)?,
        };
        for step in steps {
            match values {
                Some(values) => out_line(&format!("{step} {}", quoted(values))),
                None => out_line(&step),
            }
        }
        if offline {
            for volume in target.volumes() {
                out_line(&format!(
                    "# {}/{}: not attached: its metadata would be marked (offline)",
                    target.view.name, volume.number
                ));
            }
        }
    }
    Ok(())
}

/// The steps of a command with the options of the command line.
pub(super) fn steps(run: &Run<'_>, target: &Target) -> Result<Vec<String>, Failure> {
    let view = options::overlaid(
        run,
        target,
        &options::given(run.arguments, run.word.action)?,
    );
    let target = Target {
        view,
        volume: target.volume,
    };
    Ok(backend::steps(run.word, &target, run.arguments))
}

/// Values of options that the command itself would refuse.
fn check(run: &Run<'_>, target: &Target) -> Outcome {
    match run.word.action {
        Action::Resize => resize::check_options(run).and(state::sectors(run, "size").map(|_| ())),
        Action::Verify => {
            state::sectors(run, "start")?;
            state::sectors(run, "stop").map(|_| ())
        }
        Action::Secondary => state::call_of(run, target).map(|_| ()),
        Action::WaitConnect | Action::WaitSync => waiting::check_options(run, target),
        _ => Ok(()),
    }
}

/// Whether `outdate` or `invalidate` finds nothing attached and marks the metadata.
fn goes_to_metadata(run: &Run<'_>, target: &Target) -> Result<bool, Failure> {
    if !matches!(run.word.action, Action::Outdate | Action::Invalidate) {
        return Ok(false);
    }
    for volume in target.volumes() {
        if metadata::attached(run, target, volume)?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a dry run of a command on metadata says beside its steps: what is on the disk, and what would be asked or refused.
pub(super) fn look(run: &Run<'_>, target: &Target, values: Option<&str>) {
    type Look = fn(&Run<'_>, &ResolvedVolume, &Device, Option<&str>) -> Result<String, Failure>;
    let look: Look = match run.word.action {
        Action::CreateMd => create,
        Action::WipeMd => wipe,
        Action::SetGi => set_gi,
        Action::ApplyAl => apply_al,
        Action::CheckResize => check_resize,
        _ => return given_up(run, target),
    };
    for volume in target.volumes() {
        let seen = one(run, target, volume, |device| {
            look(run, volume, device, values)
        });
        let text =
            seen.unwrap_or_else(|failure| format!("it would fail: {}\n", failure.lines.join("\n")));
        // The steps stay a script.
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            out_line(&format!("# {line}"));
        }
    }
}

/// Says of a command that gives data up what would be lost, by the state of now.
fn given_up(run: &Run<'_>, target: &Target) {
    let report = daemon::running(run.invocation)
        .ok()
        .flatten()
        .and_then(|mut client| state::report(run, &mut client, &target.view.name).ok())
        .flatten();
    for volume in report.iter().flat_map(|report| &report.volumes) {
        if target.volumes().any(|one| one.number == volume.number)
            && let Some(text) = loss(run, volume)
        {
            out_line(&format!("# {}/{}: {text}", target.view.name, volume.number));
        }
    }
}

fn loss(run: &Run<'_>, volume: &VolumeReport) -> Option<String> {
    let (own, peers) = (&volume.disk, &volume.peer_disk);
    let given = |option| run.arguments.has(option);
    match run.word.action {
        Action::Invalidate if own != "Diskless" => Some(format!(
            "all data on the disk of this node ({own}) would be given up, and copied again from the peer ({peers})"
        )),
        Action::InvalidateRemote => Some(format!(
            "all data on the disk of the peer ({peers}) would be given up, and copied again from this node ({own})"
        )),
        Action::Primary if backend::force_given(run.arguments) && own != "UpToDate" => {
            Some(format!(
                "the data on the disk of this node ({own}) would count as good, as they are; what the peer ({peers}) has instead \
                 would be overwritten"
            ))
        }
        Action::Connect if given("discard-my-data") => Some(
            "after a split brain what was written on this node since then would be given up".to_owned(),
        ),
        Action::NewCurrentUuid if given("clear-bitmap") => Some(
            "both disks would count as equal, as they are: what differs would never be copied".to_owned(),
        ),
        Action::Resize if given("assume-clean") => Some(
            "the new area would count as equal on both disks, as it is: what differs would never be copied"
                .to_owned(),
        ),
        _ => None,
    }
}

fn one(
    run: &Run<'_>,
    target: &Target,
    volume: &ResolvedVolume,
    look: impl FnOnce(&Device) -> Result<String, Failure>,
) -> Result<String, Failure> {
    let attached = metadata::attached(run, target, volume)?.is_some();
    let action = run.word.action;
    if action == Action::CheckResize && !resize::is_internal(volume) {
        return Ok("external metadata: nothing to move".to_owned());
    }
    if attached && action == Action::ApplyAl {
        return Ok(WHILE_ATTACHED.to_owned());
    }
    let device = Device::open(volume, Access::Read, run.patience())?;
    let text = look(&device)?;
    Ok(match (attached, action) {
        (true, Action::CheckResize) => format!("{text}\na move would be {WHILE_ATTACHED}\n"),
        (true, _) => format!("{text}\n{WHILE_ATTACHED}\n"),
        (false, _) => text,
    })
}

/// Whether `apply-al` has something to apply.
fn apply_al(
    _run: &Run<'_>,
    _volume: &ResolvedVolume,
    device: &Device,
    _values: Option<&str>,
) -> Result<String, Failure> {
    let (superblock, _) = device
        .superblock()?
        .map_err(|error| Failure::new(USAGE, format!("{}: {error}", device.path)))?;
    Ok(match superblock.needs_replay() {
        true => format!("{}: the activity log would be applied", device.path),
        false => format!("{}: clean, nothing would be applied", device.path),
    })
}

/// Whether `check-resize` has something to move.
fn check_resize(
    run: &Run<'_>,
    volume: &ResolvedVolume,
    device: &Device,
    _values: Option<&str>,
) -> Result<String, Failure> {
    let path = &device.path;
    if device.superblock()?.is_ok() {
        return Ok(format!(
            "{path}: the metadata is at its end, nothing would be moved"
        ));
    }
    Ok(match resize::left_behind(run, volume, device)? {
        Some(former) if former.movable => format!(
            "{}, which would be moved to the new end",
            resize::text_left_behind(device, &former)
        ),
        _ => format!("{path}: no metadata at its end, nor at a former one: it would fail"),
    })
}

/// Metadata at the former end of a disk that has grown, or nothing.
fn left_behind(run: &Run<'_>, volume: &ResolvedVolume, device: &Device) -> Result<String, Failure> {
    let former = resize::left_behind(run, volume, device)?;
    Ok(former.map_or_else(String::new, |former| {
        resize::text_left_behind(device, &former)
    }))
}

/// What `create-md` finds.
fn create(
    run: &Run<'_>,
    volume: &ResolvedVolume,
    device: &Device,
    _values: Option<&str>,
) -> Result<String, Failure> {
    let (geometry, _) = metadata::wanted(run)?;
    let layout = metadata::new_layout(device, geometry)?;
    let review = metadata::look(run, volume, device, &layout)?.review;
    let mut text = String::new();
    for question in &review.questions {
        text.push_str(&format!("{}{}", question.stdout, question.stderr));
        text.push_str("(it asks that; --force answers with yes)\n");
    }
    text.push_str(&review.notes);
    if let Some(refusal) = &review.refusal {
        text.push_str(&format!("{}{}", refusal.stdout, refusal.stderr));
        text.push_str(&format!("(refused with exit code {})\n", refusal.exit));
    }
    Ok(match text.is_empty() {
        true => format!(
            "{}: nothing was found, nothing would be asked\n",
            device.path
        ),
        false => text,
    })
}

/// What `wipe-md` would remove.
fn wipe(
    run: &Run<'_>,
    volume: &ResolvedVolume,
    device: &Device,
    _values: Option<&str>,
) -> Result<String, Failure> {
    Ok(match device.superblock()? {
        Ok((superblock, _)) => format!(
            "{}: metadata with the generations\n{}\n{}\n(it asks that; --force answers with yes)\n",
            device.path,
            gi::get_gi(&superblock),
            create::TEXT_WIPE_QUESTION
        ),
        Err(error) => format!(
            "{}\n{}: {error}\n{}\n",
            create::TEXT_NOTHING_TO_WIPE,
            device.path,
            left_behind(run, volume, device)?
        ),
    })
}

/// What `set-gi` would make of the generations.
fn set_gi(
    _run: &Run<'_>,
    _volume: &ResolvedVolume,
    device: &Device,
    values: Option<&str>,
) -> Result<String, Failure> {
    let (old, _) = device
        .superblock()?
        .map_err(|error| Failure::new(USAGE, format!("{}: {error}", device.path)))?;
    let Some(values) = values else {
        return Ok(format!(
            "previously {}\nset-gi needs the values and one volume\n",
            gi::get_gi(&old)
        ));
    };
    let new =
        gi::set_gi(&old, values).map_err(|error| Failure::new(CONFIGURATION, error.to_string()))?;
    Ok(format!(
        "{}{}\n(it asks that; --force answers with yes)\n",
        gi::text_set_gi(&old, &new),
        gi::TEXT_SET_GI_QUESTION
    ))
}
