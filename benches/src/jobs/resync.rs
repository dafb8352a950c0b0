//! Resyncs: of everything, beside a program that copies one NBD export to another, and of scattered blocks.

use std::process::Stdio;
use std::time::Duration;

use super::figures::Unit;
use super::{Bench, timed};
use crate::Failure;
use crate::contenders::nodes::{Backing, Nodes, RESOURCE, Setup, Words};
use crate::contenders::{Client, Contender, Running, Site};
use crate::load::{self, BLOCK_BYTES};
use crate::machine::is_installed;
use crate::process::bound_to_us;

/// Bytes of the device: some seconds of a resync at the default limit of 100 MiB/s.
pub(super) const DEVICE_BYTES: u64 = 1 << 30;

/// One dirty block in so many bytes.
const STRIDE_BYTES: u64 = 64 << 10;

/// A resync that takes longer has failed.
pub(super) const RESYNC_LIMIT: Duration = Duration::from_secs(300);

/// Writes of [`DEVICE_BYTES`] that take longer have failed.
const WRITE_LIMIT: Duration = Duration::from_secs(300);

/// What the resync is meant to reach beside nbdcopy.
const GOAL: f64 = 1.5;

/// The largest `resync-rate` that all versions know, without a controller that steers it or an application that holds it back.
pub(super) const UNLIMITED: &str = "c-plan-ahead 0; resync-rate 4194304; c-min-rate 0;";

/// Options that a resync is measured with.
struct Case {
    name: &'static str,
    net: &'static str,
    disk: &'static str,
}

const FREE: Case = Case {
    name: "controller off",
    net: "",
    disk: UNLIMITED,
};

const CHECKSUMS: Case = Case {
    name: "controller off, csums-alg crc32c",
    net: "csums-alg crc32c;",
    disk: UNLIMITED,
};

const DEFAULTS: Case = Case {
    name: "default options",
    net: "",
    disk: "",
};

impl Case {
    fn words(&self) -> Words {
        Words {
            net: self.net.to_owned(),
            disk: self.disk.to_owned(),
        }
    }
}

const NBDCOPY: &str = "nbdcopy";

pub(super) fn full(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let mib = DEVICE_BYTES >> 20;
    bench.doing(&format!("filling four files of {mib} MiB"))?;
    let copying = match Copying::start(bench) {
        Ok(copying) => Some(copying),
        Err(Failure::Interrupted) => return Err(Failure::Interrupted),
        Err(failure) => {
            bench.found.absent(format!("{NBDCOPY}: {failure}"));
            None
        }
    };
    let mut nodes = bench.nodes(Setup::plain(Backing::Filled(DEVICE_BYTES))?)?;
    let bytes = nodes.nodes[0].volume(RESOURCE)?.bytes;
    bench.found.note(format!(
        "{mib} MiB, filled, equal on both sides; seconds from the command until both nodes say Connected UpToDate/UpToDate"
    ));
    for case in [&FREE, &CHECKSUMS, &DEFAULTS] {
        let words = case.words().in_words();
        bench.found.note(format!("{}: {words}", case.name));
    }
    bench.found.note(
        "without csums-alg (the default) all data is sent; with it blocks are equal here and only their checksums are sent",
    );
    for round in 1..=bench.rounds {
        for case in [&FREE, &CHECKSUMS, &DEFAULTS] {
            bench.doing(&format!("round {round}, {}", case.name))?;
            nodes.change(case.words(), bench.stop)?;
            let sent = sent_kib(&nodes)?;
            let seconds = full_resync(&nodes, bench)?;
            let sent = sent_kib(&nodes)? - sent;
            let found = &mut bench.found;
            let resynced = speed(bytes, seconds);
            found.add(case.name, "resync", Unit::MbPerSecond, resynced);
            found.add(case.name, "time", Unit::Seconds, seconds);
            found.add(case.name, "sent", Unit::Kib, sent);
        }
        if let Some(copying) = &copying {
            bench.doing(&format!("round {round}, {NBDCOPY}"))?;
            match timed(|| copying.copy()) {
                Ok(seconds) => {
                    let copied = speed(DEVICE_BYTES, seconds);
                    bench.found.add(NBDCOPY, "copy", Unit::MbPerSecond, copied);
                    bench.found.add(NBDCOPY, "time", Unit::Seconds, seconds);
                }
                Err(failure) => bench.found.absent(format!("{NBDCOPY}: {failure}")),
            }
        }
    }
    if copying.is_some() {
        let copy = (NBDCOPY, "copy");
        for (case, goal) in [(&FREE, Some(GOAL)), (&CHECKSUMS, None), (&DEFAULTS, None)] {
            let name = format!("speed, {} : {NBDCOPY}", case.name);
            bench
                .found
                .compare(&name, (case.name, "resync"), copy, goal);
        }
    }
    Ok(())
}

/// Seconds from `invalidate` on the Secondary to two equal disks.
fn full_resync(nodes: &Nodes, bench: &Bench<'_>) -> Result<f64, Failure> {
    timed(|| {
        nodes.nodes[1].must(&["invalidate", RESOURCE])?;
        nodes.reached(RESOURCE, "UpToDate/UpToDate", RESYNC_LIMIT, bench.stop)
    })
}

pub(super) fn scattered(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let mib = DEVICE_BYTES >> 20;
    bench.doing(&format!("filling two files of {mib} MiB"))?;
    let mut nodes = bench.nodes(Setup::plain(Backing::Filled(DEVICE_BYTES))?)?;
    nodes.nodes[0].must(&["primary", RESOURCE])?;
    bench.found.note(format!(
        "{mib} MiB; {} KiB written in every {} KiB while disconnected. connect: from the command until the resync runs; \
         resync: from there until both nodes say Connected UpToDate/UpToDate",
        BLOCK_BYTES >> 10,
        STRIDE_BYTES >> 10
    ));
    for case in [&FREE, &DEFAULTS] {
        let words = case.words().in_words();
        bench.found.note(format!("{}: {words}", case.name));
    }
    for round in 1..=bench.rounds {
        for case in [&FREE, &DEFAULTS] {
            bench.doing(&format!("round {round}, {}", case.name))?;
            nodes.change(case.words(), bench.stop)?;
            scattered_resync(&nodes, case.name, bench)?;
        }
    }
    Ok(())
}

fn scattered_resync(nodes: &Nodes, case: &str, bench: &mut Bench<'_>) -> Result<(), Failure> {
    let [alpha, bravo] = &nodes.nodes;
    alpha.must(&["disconnect", RESOURCE])?;
    let offsets = (0..DEVICE_BYTES / STRIDE_BYTES).map(|number| number * STRIDE_BYTES);
    let endpoint = alpha.endpoint(RESOURCE);
    load::write_at(&endpoint, offsets, WRITE_LIMIT, bench.stop)?;
    let before = alpha.volume(RESOURCE)?.counters;
    let connect = timed(|| {
        alpha.must(&["connect", RESOURCE])?;
        let runs = |connection: &str| ["SyncTarget", "Connected"].contains(&connection);
        let what = "the resync";
        nodes.until(bravo, RESOURCE, RESYNC_LIMIT, what, bench.stop, |volume| {
            runs(&volume.connection)
        })
    })?;
    let resync = timed(|| nodes.reached(RESOURCE, "UpToDate/UpToDate", RESYNC_LIMIT, bench.stop))?;
    let sent = sent_kib(nodes)? - before.ns as f64;
    let found = &mut bench.found;
    found.add(case, "dirty", Unit::Kib, before.oos as f64);
    found.add(case, "sent", Unit::Kib, sent);
    found.add(case, "connect", Unit::Seconds, connect);
    found.add(case, "resync", Unit::Seconds, resync);
    let dirty = speed(before.oos << 10, resync);
    found.add(case, "dirty data", Unit::MbPerSecond, dirty);
    Ok(())
}

/// KiB that the source has sent since its volume was made.
fn sent_kib(nodes: &Nodes) -> Result<f64, Failure> {
    Ok(nodes.nodes[0].volume(RESOURCE)?.counters.ns as f64)
}

fn speed(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / 1e6 / seconds
}

/// Two qemu-nbd on files of the same size: the source by TCP, as a resync has it, the target on a Unix socket.
struct Copying {
    source: Running,
    target: Running,
}

impl Copying {
    fn start(bench: &Bench<'_>) -> Result<Copying, Failure> {
        if !is_installed(NBDCOPY) {
            return Err(Failure::Missing {
                program: NBDCOPY.to_owned(),
                package: String::from("libnbd-bin"),
            });
        }
        let on = |client| {
            let site = Site {
                client,
                ..bench.site.clone()
            };
            Contender::QemuNbd.start(&site, bench.stop)
        };
        Ok(Copying {
            source: on(Client::Tcp)?,
            target: on(Client::Unix)?,
        })
    }

    fn copy(&self) -> Result<(), Failure> {
        let mut command = bound_to_us(NBDCOPY);
        command
            .arg("--flush")
            .arg(self.source.endpoint.to_string())
            .arg(self.target.endpoint.to_string())
            .stdin(Stdio::null());
        let output = command.output().map_err(Failure::system("run nbdcopy"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Failure::Unexpected(format!("nbdcopy failed: {said}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_in_millions_of_bytes() {
        assert_eq!(speed(3_000_000, 1.5), 2.0);
    }

    #[test]
    fn every_case_says_its_options() {
        assert_eq!(DEFAULTS.words().in_words(), "net: defaults; disk: defaults");
        let words = CHECKSUMS.words().in_words();
        assert!(words.contains("csums-alg crc32c") && words.contains("c-plan-ahead 0"));
    }
}
