//! `sim --shrink` finds a shorter history that goes wrong in the same way, and the command that it prints replays it: the program is
//! run as a person would run it, on the first history that shows a planted mistake after several faults and commands.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::process::Command;

use tandem_replicator::Protocol;
use tandem_replicator::planted::Planted;
use tandem_tests::sim::campaign::{Failure, kind};
use tandem_tests::sim::planted::SEEDS_MAX;
use tandem_tests::sim::{Spec, run};

/// Faults and commands of a history that is worth shrinking.
const ACTIONS_LEAST: usize = 3;

/// Runs the simulator: what it prints, after it has failed.
fn fails(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sim"));
    let output = command.args(args).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
    text
}

/// The first history that shows this mistake after several faults and commands.
fn first_failure(bug: Planted) -> (u64, Failure) {
    let failures = (0..SEEDS_MAX).filter_map(|seed| {
        let spec = Spec {
            planted: Some(bug),
            ..Spec::new(seed, Protocol::C)
        };
        Some((seed, run(spec).err()?))
    });
    let long = |(_, failure): &(u64, Failure)| failure.actions.len() >= ACTIONS_LEAST;
    failures.into_iter().find(long).unwrap()
}

/// What the line "seed N of protocol C: ..." says.
fn why(text: &str) -> &str {
    let line = text
        .lines()
        .find(|line| line.starts_with("seed ") && line.contains(" of protocol C: "));
    line.unwrap().split_once(" of protocol C: ").unwrap().1
}

/// The numbers of the line "shrunk in N runs: K faults and commands are left, L turns of the clients are left out of M".
fn shrunk(text: &str) -> [u64; 4] {
    let line = text.lines().find(|line| line.starts_with("shrunk in "));
    let words = line.unwrap().split_whitespace();
    let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().unwrap()
}

fn shrinks(bug: Planted) {
    let (seed, whole) = first_failure(bug);
    let (seed, plant) = (seed.to_string(), format!("{bug:?}"));
    let text = fails(&["--seed", &seed, "--plant", &plant, "--shrink"]);
    let [_, left, turns_left_out, turns] = shrunk(&text);
    assert!(left < whole.actions.len() as u64, "{whole:?}\n{text}");
    assert!(0 < turns_left_out && turns_left_out <= turns, "{text}");
    assert_eq!(kind(why(&text)), whole.kind());
    let (_, command) = text.split_once("replay: ").unwrap();
    let (_, words) = command.lines().next().unwrap().split_once(" -- ").unwrap();
    assert!(words.contains("--without-turns"), "{words}");
    let again = fails(&words.split_whitespace().collect::<Vec<_>>());
    assert_eq!(why(&again), why(&text));
}

#[test]
fn a_shrunk_history_fails_in_the_same_way_and_its_command_replays_it() {
    shrinks(Planted::FlushWithoutDisk);
    shrinks(Planted::ForgetMissedWrite);
}

#[test]
fn there_is_nothing_to_shrink_in_a_history_that_goes_right() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sim"));
    let output = command.args(["--seed", "17", "--shrink"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("nothing to shrink"), "{text}");
}
