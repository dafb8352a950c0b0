//! What the table says about figures that are known.

use super::*;
use crate::contenders::FarSide;
use crate::rows::ROWS;

fn figures(per_second: f64, p99_us: f64, cpu_us: f64) -> Round {
    Round {
        per_second,
        mb_per_second: per_second * 4096.0 / 1e6,
        p50_us: p99_us / 2.0,
        p99_us,
        p999_us: p99_us * 2.0,
        cpu_us,
        cpu_us_of_each: vec![(String::from("alpha"), cpu_us)],
        load_cpu_us: 1.0,
        loopback_bytes: 4200.0,
        written_bytes: 0.0,
        metadata_writes: 0.0,
        flushes: 0,
    }
}

pub(crate) fn line(contender: Contender, rounds: &[(f64, f64, f64)]) -> Line {
    let mut line = Line::new(ROWS[0], contender, Vec::new());
    let rounds = rounds
        .iter()
        .map(|(speed, p99, cpu)| figures(*speed, *p99, *cpu));
    line.rounds = rounds.collect();
    line
}

pub(crate) fn stage(lines: Vec<Line>) -> Stage {
    let mut stage = Stage {
        medium: Medium::Tmpfs,
        filesystem: String::from("tmpfs on tmpfs"),
        placement: Placement::Free,
        client: Client::Unix,
        floors: Vec::new(),
        lines,
        absent: vec![String::from("mirror+nbdkit: nbdkit is not installed")],
    };
    stage.conclude();
    stage
}

pub(crate) fn report(stage: Stage) -> Report {
    Report {
        schema: 1,
        machine: Machine::here(),
        rounds: 2,
        seconds_per_row: 0.1,
        stages: vec![stage],
        load_average_at_end: String::from("0 0 0"),
    }
}

const QUORUM: Contender = Contender::Quorum(FarSide::Nbdkit);
const STALLING: Contender = Contender::Quorum(FarSide::QemuNbd);

#[test]
fn tandem_is_compared_with_the_best_replicating_peer_only() {
    let stage = stage(vec![
        line(Contender::QemuNbd, &[(9000.0, 300.0, 5.0)]),
        line(QUORUM, &[(1000.0, 300.0, 40.0)]),
        line(Contender::Mirror(FarSide::Nbdkit), &[(500.0, 300.0, 20.0)]),
        line(
            Contender::Tandem('C'),
            &[(3000.0, 300.0, 10.0), (3200.0, 300.0, 10.0)],
        ),
    ]);
    let summary = stage.lines[3].summary.unwrap();
    assert_eq!(summary.speed_to_best_peer, Some(3.1));
    assert_eq!(summary.cpu_to_best_peer, Some(0.5));
    assert_eq!(stage.lines[1].summary.unwrap().speed_to_best_peer, None);
}

#[test]
fn a_peer_that_waits_for_a_timer_of_tcp_is_marked_and_nothing_is_compared_with_it() {
    let stage = stage(vec![
        line(Contender::QemuNbd, &[(9000.0, 900.0, 5.0)]),
        line(STALLING, &[(700.0, 44_000.0, 50.0)]),
        line(Contender::Tandem('C'), &[(3000.0, 300.0, 10.0)]),
    ]);
    assert!(stage.lines[1].stalled && !stage.lines[2].stalled);
    assert_eq!(stage.lines[2].summary.unwrap().speed_to_best_peer, None);
    assert!(report(stage).words().contains("STALLED"));
}

#[test]
fn a_slow_medium_is_no_stall() {
    let stage = stage(vec![
        line(Contender::QemuNbd, &[(90.0, 60_000.0, 5.0)]),
        line(QUORUM, &[(70.0, 80_000.0, 50.0)]),
    ]);
    assert!(!stage.lines[1].stalled);
}

#[test]
fn a_noisy_run_is_called_noisy_in_words() {
    let quiet = [(1000.0, 300.0, 10.0), (1100.0, 300.0, 10.0)];
    let noisy = [(1000.0, 300.0, 10.0), (1900.0, 300.0, 10.0)];
    let words = |rounds| report(stage(vec![line(Contender::Tandem('C'), rounds)])).words();
    assert!(
        words(&noisy).contains("NOISY: 1 of 1 lines"),
        "{}",
        words(&noisy)
    );
    assert!(!words(&quiet).contains("NOISY"), "{}", words(&quiet));
}

#[test]
fn what_is_missing_and_what_failed_is_said() {
    let mut failed = line(Contender::Tandem('C'), &[]);
    failed.failure = Some(String::from("no answer within 20s"));
    let words = report(stage(vec![failed])).words();
    assert!(words.contains("not compared: mirror+nbdkit: nbdkit is not installed"));
    assert!(words.contains("tandem-C failed in write-4k-d1: no answer within 20s"));
}

#[test]
fn the_document_has_a_schema_and_every_round() {
    let rounds = [(1000.0, 300.0, 10.0), (1100.0, 300.0, 10.0)];
    let report = report(stage(vec![line(Contender::Tandem('B'), &rounds)]));
    let value: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
    assert_eq!(value["schema"], 1);
    let line = &value["stages"][0]["lines"][0];
    assert_eq!(line["contender"], "tandem-B");
    assert_eq!(line["rounds"].as_array().unwrap().len(), 2);
    assert_eq!(line["summary"]["per_second"]["median"], 1050.0);
}
