//! The text of `/proc/drbd`, for people and for scripts that read it (docs/spec/config-and-cli.md 5.1).

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use crate::control::messages::{ResourceReport, ResyncReport, VolumeReport};

/// Least time between two writes of the file.
pub(crate) const WRITE_INTERVAL: std::time::Duration = std::time::Duration::from_millis(200);

/// Time after which the counters of idle-looking resources are looked at again.
pub(crate) const REFRESH_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// Total in 4 KiB blocks above which progress is shown in MiB: 4 GiB.
const BLOCKS_IN_MIB_ABOVE: u64 = (4 << 30) / 4096;

/// The second line.
pub(crate) const HEAD: &str = "Tandem, a replicated block device in userspace";

/// The text for these resources.
#[must_use]
pub fn text(resources: &[ResourceReport]) -> String {
    let mut text = format!(
        "version: {} (api:1/proto:{}-{})\n{HEAD}\n",
        env!("CARGO_PKG_VERSION"),
        tandem_protocol::features::PROTOCOL_MIN,
        tandem_protocol::features::PROTOCOL_MAX,
    );
    let mut volumes: Vec<(&ResourceReport, &VolumeReport)> = resources
        .iter()
        .flat_map(|resource| {
            resource
                .volumes
                .iter()
                .map(move |volume| (resource, volume))
        })
        .collect();
    volumes.sort_by_key(|(_, volume)| volume.minor);
    let mut previous = None;
    for (resource, volume) in volumes {
        if previous.is_none_or(|previous: u32| previous.checked_add(1) != Some(volume.minor)) {
            text.push('\n');
        }
        previous = Some(volume.minor);
        volume_lines(&mut text, resource, volume);
    }
    text
}

/// Writing to a `String` cannot fail.
macro_rules! put {
    ($text:expr, $($arguments:tt)*) => {
        let _ = write!($text, $($arguments)*);
    };
}

fn volume_lines(text: &mut String, resource: &ResourceReport, volume: &VolumeReport) {
    let VolumeReport {
        minor,
        connection,
        role,
        peer_role,
        disk,
        peer_disk,
        ..
    } = volume;
    if connection == "StandAlone" && disk == "Diskless" && role == "Secondary" {
        put!(text, "{minor:2}: cs:Unconfigured\n");
        return;
    }
    let protocol = resource.protocol.as_deref().unwrap_or(" ");
    put!(
        text,
        "{minor:2}: cs:{connection} ro:{role}/{peer_role} ds:{disk}/{peer_disk} {protocol} "
    );
    let suspended = volume.suspended_user || volume.suspended_no_data || volume.suspended_fencing;
    text.push(if suspended { 's' } else { 'r' });
    for (set, letter) in [
        (volume.paused_dependency, 'a'),
        (volume.paused_peer, 'p'),
        (volume.paused_user, 'u'),
        (false, 'b'),
        (volume.al_suspended, 's'),
    ] {
        text.push(if set { letter } else { '-' });
    }
    let c = &volume.counters;
    put!(
        text,
        "\n    ns:{} nr:{} dw:{} dr:{} al:{} bm:{} lo:{} pe:{} ua:{} ap:{} ep:{} wo:{} oos:{}\n",
        wrapped(c.ns),
        wrapped(c.nr),
        wrapped(c.dw),
        wrapped(c.dr),
        c.al,
        c.bm,
        c.lo,
        c.pe,
        c.ua,
        c.ap,
        c.ep,
        volume.write_order,
        c.oos
    );
    if let Some(resync) = &volume.resync
        && ["SyncSource", "SyncTarget", "VerifyS", "VerifyT"].contains(&connection.as_str())
    {
        progress_lines(text, connection, resync);
    }
}

/// The kernel counts sectors in 32 bits and shows half of them.
fn wrapped(kib: u64) -> u64 {
    (kib * 2 % (1 << 32)) / 2
}

fn progress_lines(text: &mut String, connection: &str, resync: &ResyncReport) {
    let ResyncReport { total, left, .. } = *resync;
    let permille = permille(total, left);
    let x = usize::try_from(permille / 50).unwrap_or(20).min(20);
    let label = if connection.starts_with("Verify") {
        "verified"
    } else {
        "sync'ed"
    };
    put!(
        text,
        "\t[{}>{}] ",
        "=".repeat(x.saturating_sub(1)),
        ".".repeat(20 - x)
    );
    put!(text, "{label}:{:3}.{}% ", permille / 10, permille % 10);
    if total > BLOCKS_IN_MIB_ABOVE {
        put!(text, "({}/{})M\n", left >> 8, total >> 8);
    } else {
        put!(text, "({}/{})K\n", left * 4, total * 4);
    }
    let done = total.saturating_sub(left);
    let seconds = resync.elapsed_ms / 1000;
    let average = (done * 4).checked_div(seconds.max(1)).unwrap_or(0);
    // dt * (left / (db/100 + 1)) / 100, in whole numbers; the mark is the start.
    let to_go = seconds.max(1) * (left / (done / 100 + 1)) / 100;
    put!(
        text,
        "\tfinish: {}:{:02}:{:02} speed: {} ({})",
        to_go / 3600,
        to_go / 60 % 60,
        to_go % 60,
        thousands(resync.rate_kib),
        thousands(average)
    );
    if ["SyncTarget", "VerifyS"].contains(&connection) {
        put!(text, " want: {}", thousands(resync.want_kib));
    }
    text.push_str(" K/sec\n");
}

/// Truncated, with the kernel's own rounding: 1000 - floor(L*1000/T), L and T in units of 1024 blocks.
fn permille(total: u64, left: u64) -> u64 {
    if left > total {
        return 0;
    }
    1000_u64.saturating_sub((left >> 10) * 1000 / ((total >> 10) + 1))
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Replaces the file at once, so that a reader never sees half a text.
pub(crate) fn write_file(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = std::fs::File::create(&new)?;
    file.write_all(text.as_bytes())?;
    drop(file);
    std::fs::rename(new, path)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::control::messages::CounterReport;

    pub(crate) fn volume(number: u16) -> VolumeReport {
        VolumeReport {
            number,
            minor: u32::from(number),
            device: format!("/dev/drbd{number}"),
            backing: None,
            role: "Secondary".to_owned(),
            peer_role: "Unknown".to_owned(),
            connection: "WFConnection".to_owned(),
            disk: "UpToDate".to_owned(),
            peer_disk: "DUnknown".to_owned(),
            suspended_user: false,
            suspended_no_data: false,
            suspended_fencing: false,
            paused_dependency: false,
            paused_peer: false,
            paused_user: false,
            al_suspended: false,
            bytes: 1 << 30,
            was_degraded: false,
            disk_error: None,
            uuids: None,
            write_order: 'f',
            counters: CounterReport::default(),
            resync: None,
            verified: None,
            clients: Vec::new(),
            nbd: Vec::new(),
        }
    }

    fn resource(volumes: Vec<VolumeReport>) -> ResourceReport {
        ResourceReport {
            name: "r0".to_owned(),
            failed: None,
            role: "Primary".to_owned(),
            peer_role: "Secondary".to_owned(),
            connection: "Connected".to_owned(),
            version: Some(101),
            peer_versions: Some([100, 101]),
            protocol: Some("C".to_owned()),
            last_error: None,
            outdated_net: None,
            peer: None,
            volumes,
        }
    }

    /// The text after the two lines about the version.
    fn body(resources: &[ResourceReport]) -> String {
        text(resources).split_inclusive('\n').skip(2).collect()
    }

    #[test]
    fn the_example_of_the_specification_comes_out() {
        let mut first = volume(0);
        first.role = "Primary".to_owned();
        first.peer_role = "Secondary".to_owned();
        first.connection = "Connected".to_owned();
        first.peer_disk = "UpToDate".to_owned();
        first.counters = CounterReport {
            ns: 1_048_576,
            dw: 1_048_576,
            dr: 2104,
            al: 16,
            ep: 1,
            ..CounterReport::default()
        };
        let mut second = first.clone();
        second.minor = 1;
        second.connection = "SyncSource".to_owned();
        second.peer_disk = "Inconsistent".to_owned();
        second.counters = CounterReport {
            ns: 648_576,
            dr: 649_200,
            pe: 3,
            ep: 1,
            oos: 400_000,
            ..CounterReport::default()
        };
        second.resync = Some(ResyncReport {
            total: 262_144,
            left: 100_000,
            failed: 0,
            same: 0,
            percent: 61.85,
            elapsed_ms: 54_000,
            rate_kib: 12_000,
            want_kib: 12_240,
            seconds_left: Some(33),
        });
        let mut third = volume(5);
        third.connection = "StandAlone".to_owned();
        third.disk = "Diskless".to_owned();
        let expected = "
 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----
    ns:1048576 nr:0 dw:1048576 dr:2104 al:16 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:0
 1: cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r-----
    ns:648576 nr:0 dw:0 dr:649200 al:0 bm:0 lo:0 pe:3 ua:0 ap:0 ep:1 wo:f oos:400000
\t[===========>........] sync'ed: 62.3% (400000/1048576)K
\tfinish: 0:00:32 speed: 12,000 (12,010) K/sec

 5: cs:Unconfigured
";
        assert_eq!(body(&[resource(vec![third, first, second])]), expected);
    }

    #[test]
    fn the_bar_has_its_twenty_one_characters_at_nothing_done() {
        let mut lines = String::new();
        let resync = ResyncReport {
            total: 2_621_440,
            left: 2_621_440,
            failed: 0,
            same: 0,
            percent: 0.0,
            elapsed_ms: 0,
            rate_kib: 0,
            want_kib: 12_240,
            seconds_left: None,
        };
        progress_lines(&mut lines, "SyncTarget", &resync);
        assert!(
            lines.starts_with("\t[>....................] sync'ed:  0.1% (10240/10240)M\n"),
            "{lines}"
        );
        assert!(lines.ends_with("want: 12,240 K/sec\n"), "{lines}");
    }

    #[test]
    fn extreme_numbers_do_not_panic() {
        let resync = ResyncReport {
            total: u64::MAX >> 12,
            left: u64::MAX >> 10,
            failed: 0,
            same: 0,
            percent: 0.0,
            elapsed_ms: 0,
            rate_kib: u64::MAX,
            want_kib: u64::MAX,
            seconds_left: None,
        };
        progress_lines(&mut String::new(), "VerifyT", &resync);
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(12), "12");
    }
}
