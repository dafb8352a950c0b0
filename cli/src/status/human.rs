//! `tandem status`: everything a person wants to see of a node, and what to type next where something is wrong.

use std::io::IsTerminal;
use std::time::Duration;

use tandem_daemon::control::messages::{
    CommandAnswer, ResourceReport, ResyncReport, StatusReport, VerifiedReport, VolumeReport,
};
use tandem_daemon::control::{ControlError, WatchItem};

use super::explain;
use crate::arguments::Arguments;
use crate::configuration::Configuration;
use crate::daemon;
use crate::failure::{Failure, Outcome};
use crate::invocation::Invocation;
use crate::output::{err, grouped, out, out_line};

/// How often a watched screen is redrawn at least: counters and rates move without a change of state.
const REDRAW: Duration = Duration::from_secs(1);

/// Width of a progress bar.
const BAR: usize = 30;

/// What `tandem status` was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// Once, as text.
    Text,
    /// Once, as the daemon's JSON document.
    Json,
    /// Again and again.
    Watch,
}

/// Runs the command for one resource or for all.
pub(crate) fn run(invocation: &Invocation, resource: Option<&str>, view: View) -> Outcome {
    if view == View::Watch {
        return watch(invocation, resource);
    }
    let report = fetch(invocation, resource)?;
    if view == View::Json {
        let text = serde_json::to_string_pretty(&report)
            .map_err(|error| Failure::new(crate::failure::CANNOT_RUN, error.to_string()))?;
        out_line(&text);
        return Ok(());
    }
    out(&text(invocation, &report));
    Ok(())
}

fn fetch(invocation: &Invocation, resource: Option<&str>) -> Result<StatusReport, Failure> {
    let mut client = daemon::connect(invocation)?;
    client
        .status(resource)
        .map_err(|error| daemon::failed(invocation, &error))?
        .map_err(|refusal| refused(invocation, resource, refusal))
}

/// The daemon does not have the resource that was asked for.
fn refused(invocation: &Invocation, resource: Option<&str>, refusal: CommandAnswer) -> Failure {
    let Some(name) = resource else {
        return Failure::new(refusal.exit.max(1), refusal.text);
    };
    let configuration = Configuration::load(invocation, &Arguments::default()).ok();
    Configuration::not_up(invocation, configuration.as_ref(), name)
}

fn watch(invocation: &Invocation, resource: Option<&str>) -> Outcome {
    let mut stream = daemon::connect(invocation)?
        .watch(resource)
        .map_err(|error| daemon::failed(invocation, &error))?;
    loop {
        let report = match stream.next(Some(REDRAW)) {
            Ok(WatchItem::Status(report)) => report,
            Ok(WatchItem::Handler(handler)) => {
                err(&format!(
                    "{}: handler {}",
                    handler.resource, handler.handler
                ));
                continue;
            }
            Ok(WatchItem::Refused(answer)) => {
                return Err(refused(invocation, resource, answer));
            }
            Err(ControlError::Timeout { .. }) => fetch(invocation, resource)?,
            Err(error) => return Err(daemon::failed(invocation, &error)),
        };
        let clear = if std::io::stdout().is_terminal() {
            "\x1b[H\x1b[2J"
        } else {
            ""
        };
        out(&format!("{clear}{}", text(invocation, &report)));
    }
}

/// The whole view.
pub(crate) fn text(invocation: &Invocation, report: &StatusReport) -> String {
    if report.resources.is_empty() {
        return format!(
            "tandemd runs, no resource is up\nnext: {}\n",
            invocation.adm("up all")
        );
    }
    let blocks: Vec<String> = report
        .resources
        .iter()
        .map(|resource| block(invocation, resource))
        .collect();
    blocks.join("\n")
}

fn block(invocation: &Invocation, resource: &ResourceReport) -> String {
    let mut text = format!("{}: {} here", resource.name, resource.role);
    if let Some(peer) = &resource.peer {
        text.push_str(&format!(
            ", {} on {} ({})",
            resource.peer_role, peer.peer_name, peer.peer_address
        ));
    }
    text.push('\n');
    let protocol = resource
        .protocol
        .as_ref()
        .map_or_else(String::new, |letter| format!(", protocol {letter}"));
    text.push_str(&format!("  link      {}{protocol}\n", resource.connection));
    for volume in &resource.volumes {
        text.push_str(&volume_lines(volume));
    }
    for remark in explain::remarks(invocation, resource) {
        text.push_str(&format!("  ! {}\n", remark.text));
        if let Some(next) = remark.next {
            text.push_str(&format!("    next: {next}\n"));
        }
    }
    text
}

fn volume_lines(volume: &VolumeReport) -> String {
    let mut text = format!(
        "  volume {:<2} {}, {}{}\n",
        volume.number,
        volume.device,
        size(volume.bytes),
        volume
            .backing
            .as_ref()
            .map_or_else(String::new, |backing| format!(" on {backing}"))
    );
    text.push_str(&format!(
        "            disk {} here, {} there\n",
        volume.disk, volume.peer_disk
    ));
    if let Some(resync) = &volume.resync {
        text.push_str(&format!("            {}\n", progress(volume, resync)));
    } else if volume.counters.oos > 0 {
        text.push_str(&format!(
            "            {} differ from the peer\n",
            size(volume.counters.oos * 1024)
        ));
    }
    if let Some(verified) = volume.verified.filter(|_| volume.resync.is_none()) {
        text.push_str(&format!("            {}\n", last_verify(verified)));
    }
    for uri in &volume.nbd {
        text.push_str(&format!("            served at {uri}\n"));
    }
    if !volume.clients.is_empty() {
        text.push_str(&format!(
            "            open by {}\n",
            grouped(&volume.clients).join(", ")
        ));
    }
    text
}

/// One line about a resync.
pub(crate) fn progress(volume: &VolumeReport, resync: &ResyncReport) -> String {
    let what = match volume.connection.as_str() {
        "SyncSource" => "sync to the peer",
        "SyncTarget" => "sync from the peer",
        "PausedSyncS" | "PausedSyncT" => "sync paused",
        "VerifyS" | "VerifyT" => "verify",
        other => other,
    };
    let left = match resync.seconds_left {
        Some(seconds) => format!(", {seconds} s to go"),
        None => String::new(),
    };
    let found = if what == "verify" && volume.counters.oos > 0 {
        format!(", {} blocks differ so far", volume.counters.oos / 4)
    } else {
        String::new()
    };
    format!(
        "{what} {} {:5.1}%  {}/s{left}{found}",
        bar(resync.percent, BAR),
        resync.percent,
        size(resync.rate_kib * 1024)
    )
}

/// One line about the last verify.
fn last_verify(verified: VerifiedReport) -> String {
    let mut text = format!(
        "last verify: {} of {} blocks differed",
        verified.different, verified.compared
    );
    if verified.skipped > 0 {
        text.push_str(&format!(", {} could not be compared", verified.skipped));
    }
    if let Some(sector) = verified.next_sector {
        text.push_str(&format!(
            "; it stopped, the next one starts at sector {sector}"
        ));
    }
    text
}

/// A bar of `width` characters.
pub(crate) fn bar(percent: f64, width: usize) -> String {
    let part = (percent / 100.0).clamp(0.0, 1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a part from 0 to 1 of a small width"
    )]
    let full = (part * width as f64) as usize;
    let head = usize::from(full < width);
    format!(
        "[{}{}{}]",
        "=".repeat(full),
        ">".repeat(head),
        ".".repeat(width - full - head)
    )
}

/// A size as a person reads it.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut divisor = 1u64;
    while bytes / divisor >= 1024 && unit + 1 < UNITS.len() {
        divisor *= 1024;
        unit += 1;
    }
    let tenths = bytes / divisor * 10 + bytes % divisor * 10 / divisor;
    if tenths.is_multiple_of(10) {
        format!("{} {}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(64 << 20), "64 MiB");
        assert_eq!(size(u64::MAX), "16383.9 PiB");
    }

    #[test]
    fn a_bar_is_always_as_wide_as_wanted() {
        for percent in [-1.0, 0.0, 33.3, 99.9, 100.0, 200.0] {
            assert_eq!(bar(percent, 10).len(), 12);
        }
        assert_eq!(bar(50.0, 10), "[=====>....]");
    }
}
