//! Every image of a recording, judged by itself and by an engine that attaches it alone; then by two engines, and by two daemons.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use super::cuts::{self, Counts, Image, Script, Thoroughness};
use super::engine::{self, Promise};
use super::judge::{Facts, Judge, differing};
use super::ledger::{Floor, GuestRole, Mark, Pace};
use super::log::SECTOR;
use super::stage::{CELL, Recording};
use crate::e2e::node::Settings;
use crate::e2e::pair::{LinkKind, Pair};
use crate::sim::dice::Dice;
use crate::sim::disk::Disk;
use crate::sim::stamp::Stamper;

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Which images.
    pub cuts: Thoroughness,
    /// One of so many images that have a moment of the peer goes to two engines.
    pub engine_of: u64,
    /// So many go to two daemons.
    pub daemons: usize,
}

/// What was tried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Of the log, and all images.
    pub counts: Counts,
    /// Images that two engines attached and brought together.
    pub engines: usize,
    /// Of these, images of a Primary.
    pub primaries: usize,
    /// Of these, images that did not call themselves UpToDate.
    pub not_up_to_date: usize,
    /// Images that two daemons attached and brought together.
    pub daemons: usize,
}

/// A pair of disks for two daemons.
struct Sample {
    name: String,
    disk: Disk,
    mark: usize,
    facts: Facts,
    issued: u64,
}

/// Judges everything.
///
/// # Errors
/// The first that is wrong, with its place in the log.
pub fn run(recording: &Recording, effort: Effort) -> Result<Report, String> {
    let Recording {
        scene, log, ledger, ..
    } = recording;
    let judge = Judge::new(ledger)?;
    let issued: Vec<u64> = ledger.marks.iter().map(|mark| mark.issued).collect();
    let mut script = Script {
        log,
        disk_bytes: scene.disk_bytes,
        stamper: Stamper::new(scene.seed),
        issued: &issued,
        thoroughness: effort.cuts,
        dice: Dice::new(scene.seed, "cuts"),
    };
    let mut choice = Dice::new(scene.seed, "engines");
    let mut report = Report::default();
    let mut samples: Vec<Sample> = Vec::new();
    let mut eligible = 0;
    let (counts, end) = cuts::replay(&mut script, |image| {
        let facts = judge.judge(image)?;
        engine::attach_alone(scene.seed, image.disk, &facts)?;
        let Some(issued) = moment(&ledger.marks, image) else {
            return Ok(());
        };
        let mark = &ledger.marks[image.mark];
        if choice.chance(1, effort.engine_of) {
            let promise = Promise {
                floor: floor(mark, &facts),
                issued,
            };
            engine::reunite(
                scene.seed,
                [image.disk, &mark.peer],
                facts.data_sectors,
                ledger,
                promise,
            )?;
            report.engines += 1;
            report.primaries += usize::from(facts.is_primary());
            report.not_up_to_date += usize::from(!facts.is_up_to_date());
        }
        // A sample of all of them, each as likely as any other.
        eligible += 1;
        let place = choice.below(eligible) as usize;
        if place < effort.daemons {
            let name = format!(
                "cut {:?} after {} entries, after mark {}",
                image.cut, image.entries, image.mark
            );
            let sample = Sample {
                name,
                disk: image.disk.clone(),
                mark: image.mark,
                facts,
                issued,
            };
            if samples.len() < effort.daemons {
                samples.push(sample);
            } else {
                samples[place] = sample;
            }
        }
        Ok(())
    })
    .map_err(|why| with_name(&ledger.marks, &why))?;
    report.counts = counts;
    let wrong = differing(&end, &recording.end, scene.disk_bytes / SECTOR);
    if !wrong.is_empty() {
        return Err(format!(
            "the replayed log and the disk itself differ at its end, blocks {wrong:?}"
        ));
    }
    for sample in &samples {
        reunite_daemons(recording, sample)
            .map_err(|why| format!("{}, two daemons: {why}", sample.name))?;
        report.daemons += 1;
    }
    Ok(report)
}

/// Whether the peer's disk at the last mark is one that this image could have met, and the youngest write issued by then.
fn moment(marks: &[Mark], image: &Image<'_>) -> Option<u64> {
    let mark = &marks[image.mark];
    if image.at_mark {
        return Some(mark.issued);
    }
    let next = marks.get(image.mark + 1)?;
    let primary = mark.role == GuestRole::Primary && next.role == GuestRole::Primary;
    (next.pace == Pace::Steady && primary).then_some(next.issued)
}

/// A crashed Primary may put what it had not flushed back to what it was; nobody else may lose an answered write.
fn floor<'a>(mark: &'a Mark, facts: &Facts) -> &'a Floor {
    if facts.is_primary() {
        &mark.durable
    } else {
        &mark.acknowledged
    }
}

fn with_name(marks: &[Mark], why: &str) -> String {
    let names: Vec<&str> = marks.iter().map(|mark| mark.name.as_str()).collect();
    format!("{why}\n  marks: {}", names.join(", "))
}

/// Two daemons attach the disks, one after the other, and come together.
fn reunite_daemons(recording: &Recording, sample: &Sample) -> Result<(), String> {
    let Recording { scene, ledger, .. } = recording;
    let mark = &ledger.marks[sample.mark];
    let settings = Settings {
        disk_bytes: scene.disk_bytes,
        disk: String::from("c-plan-ahead 0; resync-rate 400M; al-extents 67;"),
        ..Settings::default()
    };
    let mut pair = Pair::configured(&settings, LinkKind::Direct, &std::env::temp_dir());
    for (node, disk) in [
        (&mut pair.alpha, &sample.disk),
        (&mut pair.bravo, &mark.peer),
    ] {
        put(disk, &node.disk(0))?;
        node.start();
    }
    pair.alpha.must(&["up", "r0"]);
    let own = pair.alpha.word("dstate");
    let own = own.split('/').next().unwrap_or_default();
    let expected: &[&str] = match (sample.facts.is_up_to_date(), sample.facts.is_consistent()) {
        (true, _) => &["UpToDate", "Consistent"],
        (false, true) => &["Outdated"],
        (false, false) => &["Inconsistent"],
    };
    if !expected.contains(&own) {
        return Err(format!("attached as {own}, the disk says {expected:?}"));
    }
    pair.bravo.must(&["up", "r0"]);
    pair.wait_synced();
    for node in [&pair.alpha, &pair.bravo] {
        node.must(&["down", "r0"]);
    }
    let [a, b] = [&pair.alpha, &pair.bravo].map(|node| get(recording, &node.disk(0)));
    let blocks: BTreeSet<u64> = differing(&a, &b, sample.facts.data_sectors);
    if !blocks.is_empty() {
        return Err(format!(
            "in sync, and these blocks differ: {blocks:?}\n{}",
            pair.alpha.logs()
        ));
    }
    let promise = Promise {
        floor: floor(mark, &sample.facts),
        issued: sample.issued,
    };
    engine::check(&a, sample.facts.data_sectors, ledger, promise)
}

fn put(disk: &Disk, path: &std::path::Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("write {}: {error}", path.display());
    let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    for sector in disk.used(disk.bytes() / 512) {
        file.write_all_at(&disk.read(sector * 512, 512), sector * 512)
            .map_err(failed)?;
    }
    Ok(())
}

/// What clients may have written, as it is in a file.
fn get(recording: &Recording, path: &std::path::Path) -> Disk {
    let scene = &recording.scene;
    let file = fs::File::open(path).expect("a disk of the pair");
    let mut disk = Disk::new(Stamper::new(scene.seed), scene.disk_bytes);
    for cell in &scene.cells {
        let mut data = vec![0; (CELL * 512) as usize];
        file.read_exact_at(&mut data, cell * 512)
            .expect("read a disk of the pair");
        disk.write(cell * 512, &data, true);
    }
    disk
}
