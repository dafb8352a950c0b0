//! A shorter history that goes wrong in the same way: faults, commands and turns of the clients are left out as long as the same
//! rule is still broken. What is left does what it did in the whole history, as far as dice go; its consequences may differ.

use std::collections::BTreeSet;
use std::ops::Range;

use super::campaign::{Cuts, Failure, Spec, run, run_cut};

/// Pieces that the turns of the clients are cut into at most.
const PIECES_MAX: u64 = 64;

/// A shorter history.
#[derive(Debug)]
pub struct Shrunk {
    /// What is left out.
    pub cuts: Cuts,
    /// How it ends.
    pub failure: Failure,
    /// Runs that it took.
    pub runs: u32,
}

/// Shortens a history that goes wrong. `None`: it goes right.
#[must_use]
pub fn shrink(spec: Spec) -> Option<Shrunk> {
    let failure = run(spec).err()?;
    let all: Vec<u32> = failure.actions.iter().map(|(place, _)| *place).collect();
    let turns = failure.turns;
    let mut best = Shrunk {
        cuts: Cuts::default(),
        failure,
        runs: 1,
    };
    let mut actions = all;
    while let Some(left) = drop_one_action(spec, &mut best, &actions) {
        actions = left;
    }
    let mut length = turns.div_ceil(4).max(1);
    loop {
        drop_turns(spec, &mut best, turns, length);
        if length <= turns.div_ceil(PIECES_MAX) {
            break;
        }
        length = length.div_ceil(2);
    }
    best.cuts.turns = joined(&best.cuts.turns);
    Some(best)
}

/// Tries a history with more left out; keeps it if it goes wrong in the same way.
fn keeps_failing(spec: Spec, best: &mut Shrunk, cuts: Cuts) -> bool {
    best.runs += 1;
    match run_cut(spec, &cuts) {
        Ok(_) => false,
        Err(failure) if failure.kind() != best.failure.kind() => false,
        Err(failure) => {
            best.cuts = cuts;
            best.failure = failure;
            true
        }
    }
}

fn drop_one_action(spec: Spec, best: &mut Shrunk, actions: &[u32]) -> Option<Vec<u32>> {
    for place in actions.iter().rev() {
        let mut cuts = best.cuts.clone();
        cuts.actions.insert(*place);
        if keeps_failing(spec, best, cuts) {
            let left = actions.iter().filter(|at| *at != place);
            return Some(left.copied().collect());
        }
    }
    None
}

fn drop_turns(spec: Spec, best: &mut Shrunk, turns: u64, length: u64) {
    let mut start = 0;
    while start < turns {
        let piece = start..(start + length).min(turns + 1);
        start = piece.end;
        let gone = best.cuts.turns.iter();
        if gone.clone().any(|gone| gone.contains(&piece.start)) {
            continue;
        }
        let mut cuts = best.cuts.clone();
        cuts.turns.push(piece);
        keeps_failing(spec, best, cuts);
    }
}

fn joined(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let sorted: BTreeSet<(u64, u64)> = ranges.iter().map(|at| (at.start, at.end)).collect();
    let mut joined: Vec<Range<u64>> = Vec::new();
    for (start, end) in sorted {
        match joined.last_mut() {
            Some(last) if last.end >= start => last.end = last.end.max(end),
            _ => joined.push(start..end),
        }
    }
    joined
}
