//! How a campaign ended, and the command that runs it again.

use std::collections::BTreeSet;

use super::{Campaign, Cuts, Spec};
use crate::sim::network::MS;
use crate::sim::pair::ONLY_PAIR;
use crate::sim::trace::{name, state_words};
use crate::sim::world::Seen;

/// How a run ended well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Hash of the whole trace.
    pub fingerprint: u64,
    /// How often the bits of two nodes that were apart were compared with their disks.
    pub looks_at_bits: u32,
    /// Requests answered with success, with an error, never.
    pub requests: (u64, u64, u64),
    /// Faults and commands of the safety phase.
    pub actions: u32,
    /// Split brains that a person decided.
    pub split_brains: u32,
    /// Times that a person had to disconnect and connect to get a resync going.
    pub nudges: u32,
    /// Virtual seconds.
    pub seconds: u64,
    /// Lines of the trace.
    pub lines: u64,
    /// What happened, by name.
    pub kinds: Vec<&'static str>,
    /// Commands that were typed ([`crate::sim::typed::FORMS`]).
    pub commands: BTreeSet<&'static str>,
    /// What happened beside that.
    pub seen: Seen,
}

/// How a run went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What is wrong, in one line.
    pub why: String,
    /// Everything that helps: the end of the story, the states, the command that replays it.
    pub story: String,
    /// Faults and commands that were carried out before, by their place in the campaign.
    pub actions: Vec<(u32, &'static str)>,
    /// Turns of the clients before.
    pub turns: u64,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.story)
    }
}

impl Failure {
    /// In which way it went wrong, without its numbers, nodes, states and contents: two failures of one kind break one rule.
    #[must_use]
    pub fn kind(&self) -> String {
        kind(&self.why)
    }
}

/// As [`Failure::kind`], of what it says.
#[must_use]
pub fn kind(why: &str) -> String {
    let details = ["{", "(", "[", "sector ", "write "];
    let end = details.iter().filter_map(|word| why.find(word)).min();
    let text: String = why[..end.unwrap_or(why.len())]
        .chars()
        .filter(|letter| !letter.is_ascii_digit())
        .collect();
    let words = text.split_whitespace().map(|word| match word {
        "A" | "B" => "a node",
        "A:" | "B:" => "a node:",
        word => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

impl Campaign {
    pub(super) fn states(&self) -> String {
        let words: Vec<_> = (0..2)
            .map(|node| {
                let state = self.world.nodes[node].state();
                let status = &self.world.nodes[node].status;
                let oos = status
                    .as_ref()
                    .map_or(0, |status| status.counters.out_of_sync_kib);
                let commands: Vec<_> = self.world.nodes[node].open_commands.values().collect();
                format!(
                    "{}: {} oos {oos} KiB, open commands {commands:?}, {} requests",
                    name(node),
                    state.map_or("down".to_owned(), state_words),
                    self.world.clients.in_flight(node)
                )
            })
            .collect();
        words.join("; ")
    }

    pub(super) fn finish(&mut self) -> Report {
        let counts = self.world.clients.counts;
        self.report.fingerprint = self.world.trace.fingerprint();
        self.report.requests = (counts.done, counts.failed, counts.lost);
        self.report.split_brains = self.person.decided;
        self.report.seconds = self.world.now / 1000 / MS;
        self.report.lines = self.world.trace.count();
        self.report.commands = self.world.pairs[ONLY_PAIR].typed.clone();
        self.report.seen = self.world.seen;
        self.report.clone()
    }

    pub(super) fn explain(&mut self, spec: Spec, why: &str) -> Failure {
        let why = self.world.failure().unwrap_or(why).to_owned();
        let story = format!(
            "{}\n\nseed {} of protocol {:?}: {why}\n{}  actions: {}\n  commit: {}\n  replay: {}",
            self.world.trace.tail(),
            spec.seed,
            spec.protocol,
            self.ends(),
            self.report.kinds.join(", "),
            commit(),
            replay(spec, &self.cuts),
        );
        Failure {
            why,
            story,
            actions: self.done.clone(),
            turns: self.world.clients.turns,
        }
    }

    /// Where both nodes ended, one line each.
    fn ends(&mut self) -> String {
        let mut text = String::new();
        for node in 0..2 {
            let state = self.world.nodes[node].state();
            let live = self.world.nodes[node].status.as_ref();
            let oos = live.map_or(0, |status| status.counters.out_of_sync_kib);
            let uuids = live.and_then(|status| status.uuids);
            let uuids = uuids.or_else(|| self.world.nodes[node].uuids_on_disk());
            let commands: Vec<_> = self.world.nodes[node].open_commands.values().collect();
            let line = format!(
                "  {}: {} {:016x?}, {oos} KiB out of sync, open commands {commands:?}, {} requests\n",
                name(node),
                state.map_or("down".to_owned(), state_words),
                uuids.unwrap_or_default(),
                self.world.clients.in_flight(node)
            );
            text.push_str(&line);
        }
        text
    }
}

/// The command that runs the same again.
#[must_use]
pub fn replay(spec: Spec, cuts: &Cuts) -> String {
    let mut words = format!(
        "cargo run -p tandem-tests --bin sim -- --seed {} --protocol {:?}",
        spec.seed, spec.protocol
    );
    if let Some(bug) = spec.planted {
        words.push_str(&format!(" --plant {bug:?}"));
    }
    if !cuts.actions.is_empty() {
        let places: Vec<_> = cuts.actions.iter().map(u32::to_string).collect();
        words.push_str(&format!(" --without-actions {}", places.join(",")));
    }
    if !cuts.turns.is_empty() {
        let turns: Vec<_> = cuts
            .turns
            .iter()
            .map(|turns| format!("{turns:?}"))
            .collect();
        words.push_str(&format!(" --without-turns {}", turns.join(",")));
    }
    words.push_str(" --trace");
    words
}

/// The commit of the sources; "unknown" where there is none.
#[must_use]
pub fn commit() -> String {
    let mut git = std::process::Command::new("git");
    git.args(["rev-parse", "HEAD"]);
    git.current_dir(env!("CARGO_MANIFEST_DIR"));
    let text = git.output().ok().filter(|output| output.status.success());
    let text = text.and_then(|output| String::from_utf8(output.stdout).ok());
    text.map_or("unknown".to_owned(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::kind;

    #[test]
    fn failures_of_one_rule_are_of_one_kind_whatever_their_numbers() {
        let [one, other] = [
            "A was promoted alone: sector 57 holds zeroes (write 0 of sectors 0+0), which was overwritten by write 16",
            "B was promoted alone: sector 3 holds write 9, which was never written there in this history (2)",
        ];
        assert_eq!(kind(one), kind(other));
        let reordered = "A was promoted alone: reordered: write 7 of sectors 1+2 is there, but sector 4 lacks write 5";
        assert_ne!(kind(one), kind(reordered));
        let [one, other] = [
            "node A: invariant: volume 0: a Primary alone has started no generation: { cs:WFConnection }",
            "node B: invariant: volume 0: a bit of a page is counted twice: { cs:Connected }",
        ];
        assert_ne!(kind(one), kind(other));
    }
}
