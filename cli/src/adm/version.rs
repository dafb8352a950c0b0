//! `version`: who speaks which protocol. drbdadm has only `--version`, which is for scripts (docs/spec/config-and-cli.md 4.4).

use tandem_daemon::control::messages::{ResourceReport, SCHEMA, VersionReport};

use crate::daemon;
use crate::failure::Outcome;
use crate::invocation::Invocation;
use crate::output::{err, out_line};

const OWN: &str = env!("CARGO_PKG_VERSION");

/// Prints the tool's versions, those of the daemon if one runs, and those of each peer.
pub(super) fn run(invocation: &Invocation) -> Outcome {
    // The first line of the proc text is the one place where a daemon of any version tells its range.
    let own = tandem_daemon::proc::text(&[]);
    out_line(&format!("tandem {OWN}, protocol {}", range(&own)));
    let Some(mut client) = daemon::running(invocation)? else {
        out_line("tandemd is not running");
        err(&format!("next: {}", invocation.adm("up all")));
        return Ok(());
    };
    let version = client
        .version()
        .map_err(|error| daemon::failed(invocation, &error))?;
    let text = std::fs::read_to_string(invocation.places().proc_file()).unwrap_or_default();
    out_line(&of_daemon(&version, &range(&text)));
    let status = client
        .status(None)
        .map_err(|error| daemon::failed(invocation, &error))?;
    for resource in status.iter().flat_map(|report| &report.resources) {
        out_line(&of_peer(resource));
    }
    if (version.version.as_str(), version.schema) != (OWN, SCHEMA) {
        err(
            "the daemon that runs is of another version than this command: it takes a restart for it to become the same",
        );
    }
    Ok(())
}

fn of_daemon(version: &VersionReport, range: &str) -> String {
    let VersionReport {
        schema,
        version,
        pid,
        ..
    } = version;
    format!("tandemd {version} (pid {pid}), protocol {range}, control socket {schema}")
}

/// `100-101` of `version: 0.1.0 (api:1/proto:100-101)`.
fn range(proc: &str) -> String {
    let range = proc
        .lines()
        .next()
        .and_then(|line| line.split_once("proto:"));
    let range = range.and_then(|(_, rest)| rest.split_once(')'));
    range.map_or("not told", |(range, _)| range).to_owned()
}

fn of_peer(resource: &ResourceReport) -> String {
    let name = &resource.name;
    let Some(peer) = &resource.peer else {
        return format!("{name}: no peer is configured");
    };
    let peer = &peer.peer_name;
    match (resource.version, resource.peer_versions) {
        (Some(agreed), Some([min, max])) => {
            format!("{name}: protocol {agreed} agreed with {peer}, which speaks {min}-{max}")
        }
        (Some(agreed), None) => format!("{name}: protocol {agreed} agreed with {peer}"),
        (None, _) => format!("{name}: {peer} is not connected ({})", resource.connection),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::adm::tests::resource;

    #[test]
    fn the_range_stands_in_the_first_line_of_the_proc_text() {
        assert_eq!(range("version: 9.1 (api:1/proto:86-121)\nx"), "86-121");
        assert_eq!(range(&tandem_daemon::proc::text(&[])), "100-101");
        assert_eq!(range("\nproto:1-2)"), "not told");
    }

    #[test]
    fn a_peer_is_told_with_what_was_agreed_and_what_it_speaks_itself() {
        let mut report = resource();
        report.peer_versions = Some([86, 101]);
        assert_eq!(
            of_peer(&report),
            "r0: protocol 101 agreed with bravo, which speaks 86-101"
        );
        report.version = None;
        report.peer_versions = None;
        report.connection = "WFConnection".to_owned();
        assert_eq!(
            of_peer(&report),
            "r0: bravo is not connected (WFConnection)"
        );
        report.peer = None;
        assert_eq!(of_peer(&report), "r0: no peer is configured");
    }
}
