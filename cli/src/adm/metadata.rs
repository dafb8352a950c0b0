//! Commands on the metadata of disks that are not attached (docs/spec/metadata.md 6).

use std::io::{BufRead, IsTerminal};
use std::time::{SystemTime, UNIX_EPOCH};

use tandem_config::ResolvedVolume;
use tandem_daemon::control::messages::VolumeReport;
use tandem_metadata::dump::{DumpHeader, DumpWriter, TEXT_NOT_FOUND, TEXT_UNCLEAN};
use tandem_metadata::review::{self, Review, SanityChecks};
use tandem_metadata::{
    AlGeometry, ApplyAl, BLOCK_SIZE, Flags, Layout, Step, Superblock, Uuids, Write, create, detect,
    gi,
};
use tandem_metadata::{Content, SuperblockError};

use super::{Run, resize, state};
use crate::backend;
use crate::configuration::{Target, node_name};
use crate::device::{Access, Device, busy};
use crate::failure::{CONFIGURATION, Failure, Outcome, TIMED_OUT, USAGE};
use crate::invocation::quoted;
use crate::output::{err, out, out_line};
use crate::{daemon, failure};

/// Bytes of a bitmap read at once.
const BITMAP_CHUNK: u64 = 1 << 20;

/// The state of a volume if the daemon has it attached: then its metadata are the daemon's.
pub(super) fn attached(
    run: &Run<'_>,
    target: &Target,
    volume: &ResolvedVolume,
) -> Result<Option<VolumeReport>, Failure> {
    let Some(mut client) = daemon::running(run.invocation)? else {
        return Ok(None);
    };
    let report = state::report(run, &mut client, &target.view.name)?;
    Ok(report.and_then(|report| {
        report
            .volumes
            .into_iter()
            .find(|v| v.number == volume.number && v.disk != "Diskless")
    }))
}

/// Opens the metadata for a change, unless the volume is attached.
fn open_to_change(
    run: &Run<'_>,
    target: &Target,
    volume: &ResolvedVolume,
) -> Result<Device, Failure> {
    let next = run.invocation.adm(&format!("detach {}", target.name()));
    if attached(run, target, volume)?.is_some() {
        let (path, _) = backend::metadata_place(volume);
        return Err(busy(volume, &path).next(next));
    }
    Device::open(volume, Access::Change, run.patience())
}

/// No metadata where they should be, or metadata that cannot be used: only the first calls for new ones, and not on a disk
/// that has grown and left them where its end was.
fn unreadable(
    run: &Run<'_>,
    target: &Target,
    volume: &ResolvedVolume,
    device: &Device,
    error: &SuperblockError,
) -> Failure {
    let failure = Failure::new(USAGE, TEXT_NOT_FOUND).line(format!("{}: {error}", device.path));
    if !matches!(error, SuperblockError::NotFound { .. }) {
        return failure.line(
            "copy the metadata (internal: the last 4 KiB of the disk) before anything is changed",
        );
    }
    if let Ok(Some(former)) = resize::left_behind(run, volume, device)
        && former.movable
    {
        return failure.next(resize::next_move(run, &target.name()));
    }
    failure.next(format!(
        "{}   # only for a disk that is new to this pair",
        run.invocation.adm(&format!("create-md {}", target.name()))
    ))
}

/// Asks a question on the terminal; only the whole word `yes` confirms. `--force` answers with yes, and without a
/// terminal the answer is no.
fn confirmed(run: &Run<'_>, question: &str) -> bool {
    err(question.trim_end());
    if backend::force_given(run.arguments) {
        err("[need to type 'yes' to confirm] *** confirmation forced via --force option ***");
        return true;
    }
    if !std::io::stdin().is_terminal() {
        return false;
    }
    err("[need to type 'yes' to confirm]");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.is_ok() && answer.trim_end_matches('\n') == "yes"
}

/// A number given as an option.
fn number(run: &Run<'_>, option: &str, default: u32) -> Result<u32, Failure> {
    match run.arguments.value(option) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| {
            Failure::new(
                CONFIGURATION,
                format!("--{option}={text}: a number is expected"),
            )
        }),
    }
}

pub(super) fn create(run: &Run<'_>, target: &Target) -> Outcome {
    if run.arguments.has("max-peers") {
        err("--max-peers has no effect: metadata v08 has room for one peer");
    }
    let (geometry, peer_max_bio_size) = wanted(run)?;
    crate::slots::check(run.invocation, run.configuration, &target.view)?;
    for volume in target.volumes() {
        let device = open_to_change(run, target, volume)?;
        let layout = new_layout(&device, geometry)?;
        answer_review(run, &device, &look(run, volume, &device, &layout)?)?;
        let steps = create::create_md(&layout, peer_max_bio_size)
            .map_err(|error| Failure::new(CONFIGURATION, format!("{}: {error}", device.path)))?;
        out_line(create::TEXT_INITIALIZING_LOG);
        err(&create::text_initializing_bitmap(&layout));
        out_line(create::TEXT_WRITING);
        device.perform(&steps)?;
        out_line(create::TEXT_CREATED);
        if resize::is_internal(volume) {
            resize::remember_if_there(run, volume);
        } else {
            resize::forget(run, volume)?;
        }
    }
    Ok(())
}

/// The activity log that `create-md` is asked for, and the size of the peer's requests.
pub(super) fn wanted(run: &Run<'_>) -> Result<(AlGeometry, u32), Failure> {
    let stripes = number(run, "al-stripes", AlGeometry::DEFAULT.stripes())?;
    let stripe_kib = number(
        run,
        "al-stripe-size-kB",
        AlGeometry::DEFAULT.stripe_size_4k() * 4,
    )?;
    let geometry = AlGeometry::new(stripes, stripe_kib / 4)
        .map_err(|error| Failure::new(CONFIGURATION, error.to_string()))?;
    let peer_max_bio_size = number(run, "peer-max-bio-size", 0)?;
    if peer_max_bio_size > create::PEER_MAX_BIO_SIZE_MAX {
        return Err(Failure::new(
            CONFIGURATION,
            format!("--peer-max-bio-size={peer_max_bio_size}: at most 1048576"),
        ));
    }
    Ok((geometry, peer_max_bio_size))
}

pub(super) fn new_layout(device: &Device, geometry: AlGeometry) -> Result<Layout, Failure> {
    Layout::new(device.placement, device.size, geometry)
        .and_then(|layout| layout.check_create().map(|()| layout))
        .map_err(|error| Failure::new(CONFIGURATION, format!("{}: {error}", device.path)))
}

/// What `create-md` finds on a device.
pub(super) struct Finding {
    pub(super) review: Review,
    /// Metadata that `check-resize` moves to the end of a device that has grown.
    movable: bool,
}

/// What is on the device already.
pub(super) fn look(
    run: &Run<'_>,
    volume: &ResolvedVolume,
    device: &Device,
    layout: &Layout,
) -> Result<Finding, Failure> {
    let mut places = vec![layout.superblock_offset()];
    if device.placement == tandem_metadata::Placement::Internal {
        places.extend(review::v07_internal_offset(device.size));
    }
    let mut existing = None;
    for offset in places {
        let block = device.read(offset.0, BLOCK_SIZE)?;
        existing = existing.or_else(|| review::existing(layout, offset, &block));
    }
    let former = match existing {
        Some(_) => None,
        None => resize::left_behind(run, volume, device)?,
    };
    let (start, own) = device.own_part();
    let probed = device.probe()?;
    let mut found = detect::detect(own, &views(&probed));
    if found.is_none() && start > 0 && device.superblock_version(0)?.is_none() {
        // No slot 0: something else may have the whole device.
        found = detect::detect(device.size, &views(&device.probe_head()?));
    }
    let checks = if run.arguments.has("ignore-sanity-checks") {
        SanityChecks::Ignore
    } else {
        SanityChecks::Obey
    };
    let review = review::review(
        layout,
        &device.path,
        existing.as_ref(),
        former.as_ref(),
        found.as_ref(),
        checks,
    );
    let movable = former.is_some_and(|former| former.movable);
    Ok(Finding { review, movable })
}

fn views(probed: &[(detect::Probe, Vec<u8>)]) -> Vec<detect::Probed<'_>> {
    probed
        .iter()
        .map(|(probe, bytes)| detect::Probed {
            offset: probe.offset,
            bytes,
        })
        .collect()
}

fn answer_review(run: &Run<'_>, device: &Device, finding: &Finding) -> Outcome {
    let review = &finding.review;
    let targets = run.arguments.targets.join(" ");
    let force = run.invocation.adm(&format!("create-md --force {targets}"));
    for question in &review.questions {
        out(&question.stdout);
        if !confirmed(run, &question.stderr) {
            out(question.cancelled);
            let (lines, next) = match finding.movable {
                true => (
                    vec![format!("to give the existing meta-data up: {force}")],
                    resize::next_move(run, &targets),
                ),
                false => (Vec::new(), format!("{force}   # overwrites what was found")),
            };
            return Err(Failure {
                exit: review::EXIT_CANCELLED,
                lines,
                next: Some(next),
            });
        }
    }
    out(&review.notes);
    match &review.refusal {
        None => Ok(()),
        Some(refusal) => {
            out(&refusal.stdout);
            let lines = refusal.stderr.lines().map(str::to_owned).collect();
            Err(Failure {
                exit: refusal.exit,
                lines,
                next: (refusal.exit == review::EXIT_EXISTING_DATA).then(|| {
                    format!(
                        "wipefs {}   # lists what is there; 'wipefs -a' removes it, once nobody needs it any more",
                        quoted(&device.path)
                    )
                }),
            })
        }
    }
}

pub(super) fn dump(run: &Run<'_>, target: &Target) -> Outcome {
    for volume in target.volumes() {
        let attached = attached(run, target, volume)?.is_some();
        if attached {
            err(&format!(
                "# Minor {} is attached; what is on the disk might be stale.",
                volume.device.minor
            ));
        }
        let device = Device::open(volume, Access::Read, run.patience())?;
        let (superblock, layout) = device
            .superblock()?
            .map_err(|error| unreadable(run, target, volume, &device, &error))?;
        if superblock.needs_replay() && !backend::force_given(run.arguments) {
            let name = target.name();
            let apply = run.invocation.adm(&format!("apply-al {name}"));
            return Err(Failure::new(USAGE, TEXT_UNCLEAN).next(if attached {
                let detach = run.invocation.adm(&format!("detach {name}"));
                format!("{detach} && {apply}   # or: dump-md --force, as it is there now")
            } else {
                apply
            }));
        }
        out(&dump_text(run, &device, volume, &superblock, &layout)?);
    }
    Ok(())
}

fn dump_text(
    run: &Run<'_>,
    device: &Device,
    volume: &ResolvedVolume,
    superblock: &Superblock,
    layout: &Layout,
) -> Result<String, Failure> {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        });
    let command = backend::drbdmeta(volume, "dump-md");
    let words: Vec<&str> = command.split(' ').collect();
    let host = node_name(run.invocation);
    let header = DumpHeader {
        unix_time: seconds,
        utc_offset_minutes: 0,
        host: &host,
        command: &words,
    };
    let impossible = |_| Failure::new(failure::CANNOT_RUN, "cannot format the dump");
    let mut writer =
        DumpWriter::new(String::new(), &header, superblock, layout).map_err(impossible)?;
    let bytes = writer.words_wanted() * 8;
    let mut at = 0;
    while at < bytes {
        let len = BITMAP_CHUNK.min(bytes - at);
        // At most a megabyte.
        let chunk = device.read(
            layout.bitmap_offset().0 + at,
            usize::try_from(len).unwrap_or(0),
        )?;
        writer.words(&chunk).map_err(impossible)?;
        at += len;
    }
    writer.finish().map_err(impossible)
}

pub(super) fn wipe(run: &Run<'_>, target: &Target) -> Outcome {
    for volume in target.volumes() {
        let device = open_to_change(run, target, volume)?;
        let Ok((_, layout)) = device.superblock()? else {
            err(create::TEXT_NOTHING_TO_WIPE);
            if let Some(former) = resize::left_behind(run, volume, &device)? {
                err(&resize::text_left_behind(&device, &former));
            }
            continue;
        };
        if !confirmed(run, create::TEXT_WIPE_QUESTION) {
            out_line("Operation cancelled.");
            return Err(Failure {
                exit: USAGE,
                lines: Vec::new(),
                next: Some(
                    run.invocation
                        .adm(&format!("wipe-md --force {}", target.name())),
                ),
            });
        }
        out_line(create::TEXT_WIPING);
        device.perform(&create::wipe_md(&layout))?;
        out_line(create::TEXT_WIPED);
        resize::forget(run, volume)?;
    }
    Ok(())
}

pub(super) fn apply_al(run: &Run<'_>, target: &Target) -> Outcome {
    for volume in target.volumes() {
        let device = open_to_change(run, target, volume)?;
        apply(run, target, volume, &device)?;
    }
    Ok(())
}

/// Applies the activity log of one device.
pub(super) fn apply(
    run: &Run<'_>,
    target: &Target,
    volume: &ResolvedVolume,
    device: &Device,
) -> Outcome {
    let (superblock, layout) = device
        .superblock()?
        .map_err(|error| unreadable(run, target, volume, device, &error))?;
    let ring = device.ring(&layout)?;
    let plan = ApplyAl::plan(&superblock, &layout, &ring).map_err(|error| {
        Failure::new(USAGE, format!("{}: {error}", device.path)).next(format!(
            "{}   # a full resync from the peer, which must have good data",
            run.invocation.adm(&format!("invalidate {}", target.name()))
        ))
    })?;
    let mut newly_set = 0;
    for page in plan.pages() {
        let Some((offset, len)) = layout.bitmap_page(page) else {
            continue;
        };
        let mut bytes = device.read(offset.0, usize::try_from(len.0).unwrap_or(0))?;
        newly_set += plan.mark_page(page, &mut bytes);
        let content = Content::Bytes(bytes);
        device.perform(&[Step::Write(Write { offset, content })])?;
    }
    device.perform(&plan.steps_after_bitmap(&layout))?;
    for line in plan.messages(newly_set) {
        err(&line);
    }
    Ok(())
}

/// The superblock as it is now: of an attached volume as the daemon knows it.
fn current(run: &Run<'_>, target: &Target, volume: &ResolvedVolume) -> Result<Superblock, Failure> {
    let device = Device::open(volume, Access::Read, run.patience())?;
    let (mut superblock, _) = device
        .superblock()?
        .map_err(|error| unreadable(run, target, volume, &device, &error))?;
    if let Some(report) = attached(run, target, volume)? {
        if let Some(words) = &report.uuids {
            let parsed: Vec<u64> = words
                .iter()
                .map(|word| u64::from_str_radix(word, 16).unwrap_or(0))
                .collect();
            if let [current, bitmap, young, old] = parsed[..] {
                superblock.uuids = Uuids {
                    current,
                    bitmap,
                    history: [young, old],
                };
            }
        }
        superblock.flags = flags_now(superblock.flags, &report);
    }
    Ok(superblock)
}

/// The flags that a state stands for (docs/spec/state-machine.md 3.8). While a disk comes or goes those on it stay as they are
/// (docs/spec/metadata.md 2.4): a disk that fails is not Inconsistent for that.
fn flags_now(on_disk: Flags, report: &VolumeReport) -> Flags {
    let settled = ["Inconsistent", "Outdated", "Consistent", "UpToDate"];
    if !settled.contains(&report.disk.as_str()) {
        return on_disk;
    }
    let mut flags = on_disk;
    let mut put = |flag: Flags, on: bool| {
        flags = if on {
            flags.with(flag)
        } else {
            flags.without(flag)
        };
    };
    let consistent = matches!(report.disk.as_str(), "Outdated" | "Consistent" | "UpToDate");
    put(Flags::CONSISTENT, consistent);
    put(
        Flags::WAS_UP_TO_DATE,
        matches!(report.disk.as_str(), "Consistent" | "UpToDate"),
    );
    put(Flags::PRIMARY_IND, report.role == "Primary");
    put(
        Flags::CONNECTED_IND,
        super::show::connection_of_nine(&report.connection) == "Connected",
    );
    put(
        Flags::PEER_OUT_DATED,
        matches!(report.peer_disk.as_str(), "Outdated" | "Inconsistent"),
    );
    flags
}

pub(super) fn show_gi(run: &Run<'_>, target: &Target) -> Outcome {
    for volume in target.volumes() {
        out(&gi::show_gi(&current(run, target, volume)?));
    }
    Ok(())
}

pub(super) fn get_gi(run: &Run<'_>, target: &Target) -> Outcome {
    for volume in target.volumes() {
        out_line(&gi::get_gi(&current(run, target, volume)?));
    }
    Ok(())
}

/// `dstate` of a volume that is not configured: a word from its metadata.
pub(super) fn dstate(run: &Run<'_>, target: &Target) -> Outcome {
    for volume in target.volumes() {
        if volume.disk.is_none() {
            out_line("Diskless");
            continue;
        }
        out_line(gi::dstate(&current(run, target, volume)?));
    }
    Ok(())
}

pub(super) fn set_gi(run: &Run<'_>, target: &Target, values: Option<&str>) -> Outcome {
    let Some(values) = values else {
        return Err(
            Failure::new(USAGE, "set-gi needs the values and one volume")
                .next(run.invocation.adm(&format!("get-gi {}", target.name()))),
        );
    };
    for volume in target.volumes() {
        let device = open_to_change(run, target, volume)?;
        let (old, layout) = device
            .superblock()?
            .map_err(|error| unreadable(run, target, volume, &device, &error))?;
        let new = gi::set_gi(&old, values)
            .map_err(|error| Failure::new(CONFIGURATION, error.to_string()))?;
        out(&gi::text_set_gi(&old, &new));
        if !confirmed(run, gi::TEXT_SET_GI_QUESTION) {
            out_line("Operation canceled.");
            let words = format!("set-gi --force {} {}", quoted(values), target.name());
            return Err(Failure {
                exit: USAGE,
                lines: Vec::new(),
                next: Some(run.invocation.adm(&words)),
            });
        }
        device.perform(&superblock_steps(&new, &layout))?;
    }
    Ok(())
}

fn superblock_steps(superblock: &Superblock, layout: &Layout) -> Vec<Step> {
    let content = Content::Bytes(superblock.encode().to_vec());
    let offset = layout.superblock_offset();
    vec![Step::Write(Write { offset, content }), Step::Flush]
}

/// `outdate` of a volume that is not attached.
pub(super) fn outdate(run: &Run<'_>, target: &Target) -> Outcome {
    for volume in target.volumes() {
        let device = open_to_change(run, target, volume)?;
        let (old, layout) = device
            .superblock()?
            .map_err(|error| unreadable(run, target, volume, &device, &error))?;
        let new = gi::outdate(&old).map_err(|error| {
            Failure::new(TIMED_OUT, error.to_string()).next(format!(
                "{}   # it is worse than outdated already: only a sync from the peer makes it good",
                run.invocation.adm(&format!("up {}", target.view.name))
            ))
        })?;
        device.perform(&superblock_steps(&new, &layout))?;
    }
    Ok(())
}

/// `invalidate` of a volume that is not attached: the next attach is Inconsistent, all blocks out of sync.
pub(super) fn invalidate(run: &Run<'_>, target: &Target) -> Outcome {
    for volume in target.volumes() {
        let device = open_to_change(run, target, volume)?;
        let (old, layout) = device
            .superblock()?
            .map_err(|error| unreadable(run, target, volume, &device, &error))?;
        device.perform(&superblock_steps(&gi::invalidate(&old), &layout))?;
        err(&format!(
            "{}/{}: not attached: the metadata were marked; a full sync from the peer follows at the next connect",
            target.view.name, volume.number
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::adm::tests::volume;

    #[test]
    fn the_flags_of_a_disk_that_fails_stay_those_on_it() {
        let mut report = volume(0);
        let bare = Flags::CONSISTENT
            .with(Flags::WAS_UP_TO_DATE)
            .without(Flags::PRIMARY_IND);
        let good = |report: &VolumeReport| {
            let flags = flags_now(bare, report);
            flags.contains(Flags::CONSISTENT) && flags.contains(Flags::WAS_UP_TO_DATE)
        };
        for disk in ["Attaching", "Failed", "Negotiating", "UpToDate"] {
            report.disk = disk.to_owned();
            assert!(good(&report), "{disk}");
        }
        report.disk = "Inconsistent".to_owned();
        assert!(!good(&report));
        report.disk = "UpToDate".to_owned();
        report.role = "Primary".to_owned();
        assert!(flags_now(bare, &report).contains(Flags::PRIMARY_IND));
    }
}
