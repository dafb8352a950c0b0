//! `events2`: what is there, and then every change of it, a line each (docs/spec/config-and-cli.md 5.4).
//!
//! The daemon sends whole reports; the lines are the differences between one report and the next. A reader that is slow gets
//! fewer and later reports, never a wrong one; one that does not read at all is dropped, and told so.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tandem_config::Dialect;
use tandem_daemon::control::messages::{HandlerReport, ResourceReport, VolumeReport};
use tandem_daemon::control::{ControlError, Watch, WatchItem};

use super::adm::{resync_suspended, suspended, yes};
use crate::adm::{connection_of_nine, replication_of_nine};
use crate::arguments::Arguments;
use crate::configuration::Configuration;
use crate::daemon;
use crate::failure::{CANNOT_RUN, Failure, Outcome, USAGE};
use crate::invocation::Invocation;
use crate::output::{err, out};

/// How long the daemon may take for the first report.
const FIRST_PATIENCE: Duration = Duration::from_secs(30);

/// How often it looks whether anybody still reads, while nothing happens.
const READER_INTERVAL: Duration = Duration::from_millis(500);
/// How long a daemon that has closed the connection may take to end.
const ENDING: Duration = Duration::from_secs(3);

/// Largest number of replicas or volumes that a promotion score counts.
const SCORE_COUNT_MAX: usize = 99;

/// What the lines contain beside states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counters {
    Shown,
    Hidden,
}

/// How the peer is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peers {
    /// `peer-node-id:0 conn-name:peer`, as the tools of 8.4 do.
    Fixed,
    /// By node id and name.
    Named,
}

/// Whether lines begin with the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stamps {
    Printed,
    Absent,
}

/// One object and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Object {
    kind: &'static str,
    /// Its identifying keys as they are printed.
    identity: String,
    state: Vec<(&'static str, String)>,
}

impl Object {
    fn is(&self, other: &Object) -> bool {
        self.kind == other.kind && self.identity == other.identity
    }

    fn line(&self, verb: &str, state: &[(&'static str, String)]) -> String {
        let mut line = format!("{verb} {} {}", self.kind, self.identity);
        for (key, value) in state {
            line.push_str(&format!(" {key}:{value}"));
        }
        line
    }

    /// What differs from `before`.
    fn changed(&self, before: &Object) -> Vec<(&'static str, String)> {
        let same = |pair: &&(&'static str, String)| !before.state.contains(pair);
        self.state.iter().filter(same).cloned().collect()
    }
}

/// Runs the command: the exit code is 0 when the reader went, or with `--now`.
pub(crate) fn run(invocation: &Invocation, arguments: &Arguments) -> Result<u8, Failure> {
    let names: Vec<String> = arguments.targets.clone();
    if names.len() > 1 {
        return Err(Failure::new(USAGE, "events2 takes one resource, or all")
            .next(invocation.adm("events2 all")));
    }
    let one = names.into_iter().find(|name| name != "all");
    let configuration = Configuration::load(invocation, arguments);
    if let Some(name) = &one {
        match check_known(invocation, configuration.as_ref().ok(), name) {
            // What is there is told, as drbdsetup does: nothing. It is the waiting that would have no end.
            Err(refusal) if arguments.has("now") => refusal.print(),
            checked => checked?,
        }
    }
    let view = View {
        counters: match arguments.has("statistics") {
            true => Counters::Shown,
            false => Counters::Hidden,
        },
        peers: peers_of(arguments, configuration.as_ref().ok()),
        stamps: match arguments.has("timestamps") {
            true => Stamps::Printed,
            false => Stamps::Absent,
        },
    };
    let Some(client) = daemon::running(invocation)? else {
        view.say("exists -");
        if arguments.has("now") {
            return Ok(0);
        }
        return Err(ended(invocation));
    };
    let watch = client
        .watch(one.as_deref())
        .map_err(|error| daemon::failed(invocation, &error))?;
    view.follow(invocation, watch, arguments.has("now"))
}

/// A resource that neither the configuration nor the daemon knows will never be there.
fn check_known(
    invocation: &Invocation,
    configuration: Option<&Configuration>,
    name: &str,
) -> Outcome {
    let Some(Err(refusal)) = configuration.map(|known| known.resource(invocation, name)) else {
        return Ok(());
    };
    let runs = match daemon::running(invocation)? {
        Some(mut client) => client
            .status(Some(name))
            .map_err(|error| daemon::failed(invocation, &error))?
            .is_ok(),
        None => false,
    };
    if runs { Ok(()) } else { Err(refusal) }
}

/// Beside that the configuration only tells how the peer is named: a broken one must not hide the state.
fn peers_of(arguments: &Arguments, configuration: Option<&Configuration>) -> Peers {
    match (arguments.value("compat"), configuration) {
        (Some("9"), _) => Peers::Named,
        (Some(_), _) => Peers::Fixed,
        (None, Some(known)) if known.config.dialect == Dialect::V9 => Peers::Named,
        (None, _) => Peers::Fixed,
    }
}

fn ended(invocation: &Invocation) -> Failure {
    Failure::new(
        CANNOT_RUN,
        "tandemd is not running: there is nothing to follow",
    )
    .next(invocation.adm("up all"))
}

#[derive(Clone, Copy, Debug)]
struct View {
    counters: Counters,
    peers: Peers,
    stamps: Stamps,
}

impl View {
    /// Prints until the reader or the daemon goes.
    fn follow(self, invocation: &Invocation, mut watch: Watch, now: bool) -> Result<u8, Failure> {
        let mut known: Option<Vec<Object>> = None;
        let begun = Instant::now();
        let mut failed = Vec::new();
        loop {
            match watch.next(Some(READER_INTERVAL)) {
                Ok(WatchItem::Status(report)) => {
                    tell_failed(invocation, &report.resources, &mut failed);
                    let objects: Vec<Object> = report
                        .resources
                        .iter()
                        .flat_map(|resource| self.objects(resource))
                        .collect();
                    match &known {
                        None => {
                            objects
                                .iter()
                                .for_each(|object| self.say(&object.line("exists", &object.state)));
                            self.say("exists -");
                        }
                        Some(before) => self.say_all(&differences(before, &objects)),
                    }
                    if now {
                        return Ok(0);
                    }
                    known = Some(objects);
                }
                Ok(WatchItem::Handler(report)) => self.say(&helper(&report)),
                Ok(WatchItem::Refused(answer)) => {
                    return Err(Failure::new(answer.exit.max(USAGE), answer.text)
                        .next(invocation.adm("events2 --now all")));
                }
                Err(ControlError::Timeout { .. }) if reader_is_gone() => return Ok(0),
                Err(ControlError::Timeout {
                    path, pid, asked, ..
                }) => {
                    let waited = begun.elapsed();
                    if known.is_none() && waited > FIRST_PATIENCE {
                        let error = ControlError::Timeout {
                            path,
                            waited,
                            pid,
                            asked,
                        };
                        return Err(daemon::failed(invocation, &error));
                    }
                }
                Err(ControlError::HungUp { .. } | ControlError::Socket { .. }) => {
                    return self.hung_up(invocation, &known.unwrap_or_default());
                }
                Err(error) => return Err(daemon::failed(invocation, &error)),
            }
        }
    }

    /// The daemon has closed the connection: because it ended, or because nobody read what it said.
    fn hung_up(self, invocation: &Invocation, known: &[Object]) -> Result<u8, Failure> {
        // A killed daemon's sockets are closed before its lock is free.
        let closed = Instant::now();
        let mut runs = daemon::running(invocation)?.is_some();
        while runs && closed.elapsed() < ENDING {
            thread::sleep(Duration::from_millis(20));
            runs = daemon::running(invocation)?.is_some();
        }
        if runs {
            return Err(Failure::new(
                CANNOT_RUN,
                "events were lost: what reads them did not do so for too long, and tandemd does not wait for it",
            )
            .next(invocation.adm("events2 all   # what is there now, and what changes from now on")));
        }
        // With the daemon all its objects are gone.
        self.say_all(&differences(known, &[]));
        Err(ended(invocation))
    }

    fn say_all(self, lines: &[String]) {
        lines.iter().for_each(|line| self.say(line));
    }

    fn say(self, line: &str) {
        match self.stamps {
            Stamps::Absent => out(&format!("{line}\n")),
            Stamps::Printed => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                out(&format!("{} {line}\n", stamp(since.unwrap_or_default())));
            }
        }
    }

    /// A resource with its connection, devices, peer devices and path, in this order.
    fn objects(self, resource: &ResourceReport) -> Vec<Object> {
        let name = format!("name:{}", resource.name);
        let mut objects = vec![self.resource(resource, &name)];
        let peer = resource.peer.as_ref().map(|peer| match self.peers {
            Peers::Fixed => (format!("{name} peer-node-id:0 conn-name:peer"), peer),
            Peers::Named => {
                let id = peer.node_ids.map_or(0, |(_, id)| id);
                let text = format!("{name} peer-node-id:{id} conn-name:{}", peer.peer_name);
                (text, peer)
            }
        });
        if let Some((identity, _)) = &peer {
            objects.push(self.connection(resource, identity));
        }
        let volumes = resource.volumes.iter();
        objects.extend(volumes.clone().map(|volume| self.device(volume, &name)));
        if let Some((identity, peer)) = peer {
            objects.extend(volumes.map(|volume| self.peer_device(volume, &identity)));
            let family = |address: &std::net::SocketAddr| match address.is_ipv4() {
                true => format!("ipv4:{address}"),
                false => format!("ipv6:{address}"),
            };
            let (local, remote) = (family(&peer.my_address), family(&peer.peer_address));
            let established = connection_of_nine(&resource.connection) == "Connected";
            objects.push(Object {
                kind: "path",
                identity: format!("{identity} local:{local} peer:{remote}"),
                state: vec![("established", yes(established).to_owned())],
            });
        }
        objects
    }

    fn resource(self, resource: &ResourceReport, name: &str) -> Object {
        let suspended = Some(suspended(resource)).filter(|text| !text.is_empty());
        let mut state = vec![
            ("role", resource.role.clone()),
            ("suspended", suspended.unwrap_or_else(|| "no".to_owned())),
            ("force-io-failures", "no".to_owned()),
        ];
        if self.counters == Counters::Shown {
            let order = match resource.volumes.first().map(|volume| volume.write_order) {
                Some('f') => "flush",
                Some('d') => "drain",
                Some('b') => "barrier",
                _ => "none",
            };
            state.push(("write-ordering", order.to_owned()));
        }
        let score = promotion_score(resource);
        let free = resource.role != "Primary" && resource.peer_role != "Primary";
        state.push(("may_promote", yes(score > 0 && free).to_owned()));
        state.push(("promotion_score", score.to_string()));
        Object {
            kind: "resource",
            identity: name.to_owned(),
            state,
        }
    }

    fn connection(self, resource: &ResourceReport, identity: &str) -> Object {
        let connection = connection_of_nine(&resource.connection).to_owned();
        let mut state = vec![
            ("connection", connection),
            ("role", resource.peer_role.clone()),
        ];
        if self.counters == Counters::Shown {
            state.push(("congested", "no".to_owned()));
        }
        Object {
            kind: "connection",
            identity: identity.to_owned(),
            state,
        }
    }

    fn device(self, volume: &VolumeReport, name: &str) -> Object {
        let backing = volume.backing.as_deref();
        let backing = backing.filter(|_| volume.disk != "Diskless");
        let mut state = vec![
            ("backing_dev", backing.unwrap_or("none").to_owned()),
            ("disk", volume.disk.clone()),
            ("client", "no".to_owned()),
            ("open", yes(!volume.clients.is_empty()).to_owned()),
            ("quorum", "yes".to_owned()),
        ];
        if self.counters == Counters::Shown {
            let counters = &volume.counters;
            state.extend([
                ("size", (volume.bytes / 1024).to_string()),
                ("read", counters.dr.to_string()),
                ("written", counters.dw.to_string()),
                ("al-writes", counters.al.to_string()),
                ("bm-writes", counters.bm.to_string()),
                ("upper-pending", counters.ap.to_string()),
                ("lower-pending", counters.lo.to_string()),
                ("al-suspended", yes(volume.al_suspended).to_owned()),
                ("blocked", "no".to_owned()),
            ]);
        }
        Object {
            kind: "device",
            identity: format!("{name} volume:{} minor:{}", volume.number, volume.minor),
            state,
        }
    }

    fn peer_device(self, volume: &VolumeReport, identity: &str) -> Object {
        let paused = Some(resync_suspended(volume)).filter(|text| !text.is_empty());
        let mut state = vec![
            (
                "replication",
                replication_of_nine(&volume.connection).to_owned(),
            ),
            ("peer-disk", volume.peer_disk.clone()),
            ("peer-client", "no".to_owned()),
            (
                "resync-suspended",
                paused.unwrap_or_else(|| "no".to_owned()),
            ),
        ];
        if let Some(resync) = &volume.resync {
            state.push(("done", format!("{:.2}", resync.percent)));
        }
        if self.counters == Counters::Shown {
            let counters = &volume.counters;
            state.extend([
                ("received", counters.nr.to_string()),
                ("sent", counters.ns.to_string()),
                ("out-of-sync", counters.oos.to_string()),
                ("pending", counters.pe.to_string()),
                ("unacked", counters.ua.to_string()),
            ]);
        }
        Object {
            kind: "peer-device",
            identity: format!("{identity} volume:{}", volume.number),
            state,
        }
    }
}

/// How good a place this node is for a Primary; 0 where no data are good (docs/spec/config-and-cli.md 5.4).
fn promotion_score(resource: &ResourceReport) -> usize {
    let replicas = |volume: &VolumeReport| {
        [&volume.disk, &volume.peer_disk]
            .into_iter()
            .filter(|disk| *disk == "UpToDate")
            .count()
    };
    let fewest = resource.volumes.iter().map(replicas).min().unwrap_or(0);
    if fewest == 0 {
        return 0;
    }
    let has_disk = |volume: &VolumeReport| volume.disk != "Diskless";
    let local = resource.volumes.iter().all(has_disk);
    let good = resource.volumes.iter().filter(|v| v.disk == "UpToDate");
    usize::from(local) * 10_000
        + good.count().min(SCORE_COUNT_MAX) * 100
        + fewest.min(SCORE_COUNT_MAX)
}

/// The lines that lead from one set of objects to the next: first what went, the inner before the outer.
fn differences(before: &[Object], after: &[Object]) -> Vec<String> {
    let gone = before
        .iter()
        .rev()
        .filter(|old| !after.iter().any(|new| new.is(old)));
    let mut lines: Vec<String> = gone.map(|old| old.line("destroy", &[])).collect();
    for new in after {
        match before.iter().find(|old| old.is(new)) {
            None => lines.push(new.line("create", &new.state)),
            Some(old) => {
                let changed = new.changed(old);
                if !changed.is_empty() {
                    lines.push(new.line("change", &changed));
                }
            }
        }
    }
    lines
}

fn helper(report: &HandlerReport) -> String {
    let (verb, status) = match report.exit {
        None => ("call", String::new()),
        Some(exit) => ("response", format!(" status:{exit}")),
    };
    let volume = report.volume.map(|number| format!(" volume:{number}"));
    format!(
        "{verb} helper name:{}{} helper:{}{status}",
        report.resource,
        volume.unwrap_or_default(),
        report.handler
    )
}

/// No line of events tells that a resource has failed in the daemon: a person is told.
fn tell_failed(invocation: &Invocation, resources: &[ResourceReport], known: &mut Vec<String>) {
    known.retain(|name| {
        let still = |one: &ResourceReport| one.name == *name && one.failed.is_some();
        resources.iter().any(still)
    });
    for resource in resources {
        if let Some(why) = &resource.failed
            && !known.contains(&resource.name)
        {
            let name = &resource.name;
            let down = invocation.adm(&format!("down {name}"));
            let up = invocation.adm(&format!("up {name}"));
            err(&format!(
                "{name}: it has failed: {why}\nnext: {down} && {up}"
            ));
            known.push(name.clone());
        }
    }
}

/// Whether nobody can read standard output any more: the next line could be a day away.
fn reader_is_gone() -> bool {
    let stdout = std::io::stdout();
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut fds, Some(&at_once)) {
        Ok(_) => fds[0]
            .revents()
            .intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL),
        Err(error) => {
            err(&format!("cannot look whether anybody reads: {error}"));
            true
        }
    }
}

/// A time since 1970 as `2024-05-01T12:34:56.123456+00:00`.
fn stamp(since: Duration) -> String {
    let seconds = since.as_secs();
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, date) = civil(day);
    format!(
        "{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}.{:06}+00:00",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros()
    )
}

/// Year, month and day of the month of a day since 1970-01-01, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    /// From 0000-03-01, where the leap day ends a year, to 1970-01-01.
    const TO_EPOCH: u64 = 719_468;
    const PER_ERA: u64 = 146_097;
    let shifted = days + TO_EPOCH;
    let (era, of_era) = (shifted / PER_ERA, shifted % PER_ERA);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12 + 1;
    (era * 400 + year + u64::from(month <= 2), month, date)
}

#[cfg(test)]
mod tests {
    use tandem_daemon::control::messages::ResyncReport;

    use super::super::adm::tests::{resource, volume};
    use super::*;

    const PLAIN: View = View {
        counters: Counters::Hidden,
        peers: Peers::Named,
        stamps: Stamps::Absent,
    };

    fn lines(objects: &[Object]) -> Vec<String> {
        let line = |object: &Object| object.line("exists", &object.state);
        objects.iter().map(line).collect()
    }

    #[test]
    fn a_resource_is_told_as_the_tools_tell_it() {
        let mut secondary = resource();
        secondary.role = "Secondary".to_owned();
        assert_eq!(
            lines(&PLAIN.objects(&secondary)),
            [
                "exists resource name:r0 role:Secondary suspended:no force-io-failures:no may_promote:yes promotion_score:10102",
                "exists connection name:r0 peer-node-id:0 conn-name:bravo connection:Connected role:Secondary",
                "exists device name:r0 volume:0 minor:0 backing_dev:/dev/vdb disk:UpToDate client:no open:no quorum:yes",
                "exists peer-device name:r0 peer-node-id:0 conn-name:bravo volume:0 replication:Established peer-disk:UpToDate \
                 peer-client:no resync-suspended:no",
                "exists path name:r0 peer-node-id:0 conn-name:bravo local:ipv4:10.1.1.1:7788 peer:ipv4:10.1.1.2:7788 established:yes",
            ]
        );
    }

    #[test]
    fn the_tools_of_8_have_one_name_for_every_peer_and_statistics_add_counters() {
        let eight = View {
            counters: Counters::Shown,
            peers: Peers::Fixed,
            ..PLAIN
        };
        let told = lines(&eight.objects(&resource()));
        assert!(
            told[1].ends_with(
                "peer-node-id:0 conn-name:peer connection:Connected role:Secondary congested:no"
            ),
            "{told:?}"
        );
        assert!(told[0].contains(" write-ordering:flush may_promote:no "));
        assert!(told[2].ends_with("upper-pending:0 lower-pending:0 al-suspended:no blocked:no"));
        assert!(told[3].ends_with("received:0 sent:0 out-of-sync:256 pending:0 unacked:0"));
    }

    #[test]
    fn only_what_has_changed_is_told_of_what_was_there() {
        let before = resource();
        let mut after = resource();
        after.volumes[0].connection = "SyncSource".to_owned();
        after.volumes[0].peer_disk = "Inconsistent".to_owned();
        after.volumes[0].resync = Some(ResyncReport {
            total: 100,
            left: 50,
            failed: 0,
            same: 0,
            percent: 50.0,
            elapsed_ms: 1,
            rate_kib: 0,
            want_kib: 0,
            seconds_left: None,
        });
        let told = differences(&PLAIN.objects(&before), &PLAIN.objects(&after));
        assert_eq!(
            told,
            [
                "change resource name:r0 promotion_score:10101",
                "change peer-device name:r0 peer-node-id:0 conn-name:bravo volume:0 replication:SyncSource peer-disk:Inconsistent \
                 done:50.00",
            ]
        );
        assert!(differences(&PLAIN.objects(&after), &PLAIN.objects(&after)).is_empty());
    }

    #[test]
    fn what_comes_is_created_and_what_goes_is_destroyed_from_the_inside() {
        let one = PLAIN.objects(&resource());
        let kinds = |lines: Vec<String>| -> Vec<String> {
            let words = |line: String| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
            lines.into_iter().map(words).collect()
        };
        assert_eq!(
            kinds(differences(&one, &[])),
            [
                "destroy path",
                "destroy peer-device",
                "destroy device",
                "destroy connection",
                "destroy resource"
            ]
        );
        let mut two = resource();
        two.volumes.push(volume(1));
        assert_eq!(
            kinds(differences(&one, &PLAIN.objects(&two))),
            ["change resource", "create device", "create peer-device"]
        );
    }

    #[test]
    fn a_score_counts_disks_good_volumes_and_replicas_and_is_0_without_good_data() {
        let mut report = resource();
        assert_eq!(promotion_score(&report), 10_102);
        report.volumes[0].peer_disk = "DUnknown".to_owned();
        assert_eq!(promotion_score(&report), 10_101);
        report.volumes[0].disk = "Outdated".to_owned();
        assert_eq!(promotion_score(&report), 0);
        report.volumes[0].disk = "Diskless".to_owned();
        report.volumes[0].peer_disk = "UpToDate".to_owned();
        assert_eq!(promotion_score(&report), 1);
        report.volumes.clear();
        assert_eq!(promotion_score(&report), 0);
    }

    #[test]
    fn handlers_are_told_when_they_begin_and_end() {
        let mut report = HandlerReport {
            resource: "r0".to_owned(),
            volume: Some(0),
            handler: "before-resync-target".to_owned(),
            exit: None,
        };
        assert_eq!(
            helper(&report),
            "call helper name:r0 volume:0 helper:before-resync-target"
        );
        report.exit = Some(3);
        report.volume = None;
        assert_eq!(
            helper(&report),
            "response helper name:r0 helper:before-resync-target status:3"
        );
    }

    #[test]
    fn time_stamps_know_leap_years() {
        let at = |seconds| stamp(Duration::new(seconds, 123_456_000));
        assert_eq!(at(0), "1970-01-01T00:00:00.123456+00:00");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.123456+00:00");
        assert_eq!(at(1_714_566_896), "2024-05-01T12:34:56.123456+00:00");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59.123456+00:00");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.123456+00:00");
    }
}
