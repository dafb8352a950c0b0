//! The figures of a run: as a table for a person, as JSON for a program.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::compare::replicates;
use crate::contenders::{Class, Client, Contender, Medium};
use crate::floor::Floor;
use crate::machine::Machine;
use crate::options::Placement;
use crate::rows::Row;
use crate::stats::{SPREAD_PERCENT_MAX, Summary};

/// A replicating peer whose 99th percentile is above this, while a server without replication is far below, waits for a timer of TCP:
/// the delayed acknowledgement of Linux takes 40 ms.
const STALL_US: f64 = 35_000.0;

const LEGEND: &str = "
CPU: of all servers of a line together, user and system; load: of the generator itself, which is not in the former. Loopback: what the
loopback interface carried meanwhile, that of other programs included. Meta: blocks that Tandem's two nodes wrote to activity log and
bitmap. Best peer: of quorum and mirror, the fastest for the speed, the most frugal for the CPU. Plain servers replicate nothing.
";

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of this document.
    pub schema: u32,
    /// Where it was made.
    pub machine: Machine,
    /// Rounds.
    pub rounds: u32,
    /// Measured seconds of each row in each round.
    pub seconds_per_row: f64,
    /// One for each medium.
    pub stages: Vec<Stage>,
    /// The load when the run ended; its own included.
    pub load_average_at_end: String,
}

/// All rows on one medium.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// Where the backing files lay.
    pub medium: Medium,
    /// Its filesystem.
    pub filesystem: String,
    /// On which CPUs everything ran.
    pub placement: Placement,
    /// How the load connected.
    pub client: Client,
    /// The machine itself.
    pub floors: Vec<Floor>,
    /// Row by row, contender by contender.
    pub lines: Vec<Line>,
    /// What could not be compared, and why.
    pub absent: Vec<String>,
}

/// One row of one contender.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// What was asked for.
    pub row: Row,
    /// Of whom.
    pub contender: String,
    /// What it is compared as.
    pub class: Class,
    /// The figures of each round.
    pub rounds: Vec<Round>,
    /// What a reader has to know.
    pub notes: Vec<String>,
    /// Why there are no figures (of later rounds).
    pub failure: Option<String>,
    /// The figures over all rounds.
    pub summary: Option<LineSummary>,
    /// It waits for a timer: no figure to compare anything with.
    pub stalled: bool,
    #[serde(skip)]
    replicates: bool,
}

/// The figures of a round; those with "each" are of one read or write.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Reads and writes per second.
    pub per_second: f64,
    /// Millions of bytes per second.
    pub mb_per_second: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of the latency in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile of the latency in microseconds.
    pub p999_us: f64,
    /// CPU microseconds of all servers for each.
    pub cpu_us: f64,
    /// The same for every server.
    pub cpu_us_of_each: Vec<(String, f64)>,
    /// CPU microseconds of the load generator for each.
    pub load_cpu_us: f64,
    /// Bytes that the loopback interface carried for each, those of other programs on the machine included.
    pub loopback_bytes: f64,
    /// Bytes that the servers sent to a storage device for each.
    pub written_bytes: f64,
    /// Blocks of metadata that Tandem's nodes wrote for each.
    pub metadata_writes: f64,
    /// Flushes answered.
    pub flushes: u64,
}

/// Medians over the rounds, and what they mean.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LineSummary {
    /// Reads and writes per second.
    pub per_second: Summary,
    /// Spread of the former, in percent of its median.
    pub spread_percent: f64,
    /// The spread is above the limit.
    pub noisy: bool,
    /// Median of the median latencies.
    pub p50_us: f64,
    /// Median of the 99th percentiles.
    pub p99_us: f64,
    /// Median of the 99.9th percentiles.
    pub p999_us: f64,
    /// Median of the servers' CPU microseconds.
    pub cpu_us: f64,
    /// Reads and writes per second as a multiple of the best replicating peer's.
    pub speed_to_best_peer: Option<f64>,
    /// CPU microseconds as a multiple of the most frugal replicating peer's.
    pub cpu_to_best_peer: Option<f64>,
}

impl Line {
    /// Without figures yet.
    pub fn new(row: Row, contender: Contender, notes: Vec<String>) -> Line {
        Line {
            row,
            contender: contender.name(),
            class: contender.class(),
            rounds: Vec::new(),
            notes,
            failure: None,
            summary: None,
            stalled: false,
            replicates: replicates(contender),
        }
    }

    /// The median over the rounds of one figure; 0 without rounds.
    fn median(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        let values: Vec<f64> = self.rounds.iter().map(figure).collect();
        Summary::of(&values).map_or(0.0, |summary| summary.median)
    }

    fn summarise(&mut self) {
        let values: Vec<f64> = self.rounds.iter().map(|round| round.per_second).collect();
        self.summary = Summary::of(&values).map(|per_second| LineSummary {
            per_second,
            spread_percent: per_second.spread_percent(),
            noisy: per_second.spread_percent() > SPREAD_PERCENT_MAX,
            p50_us: self.median(|round| round.p50_us),
            p99_us: self.median(|round| round.p99_us),
            p999_us: self.median(|round| round.p999_us),
            cpu_us: self.median(|round| round.cpu_us),
            speed_to_best_peer: None,
            cpu_to_best_peer: None,
        });
    }
}

impl Stage {
    /// Medians, stalls and ratios, once all rounds are there.
    pub fn conclude(&mut self) {
        for line in &mut self.lines {
            line.summarise();
        }
        let names: Vec<&'static str> = self.lines.iter().map(|line| line.row.name).collect();
        for name in names {
            self.conclude_row(name);
        }
    }

    fn conclude_row(&mut self, name: &str) {
        let of_row = |line: &&mut Line| line.row.name == name;
        let plain_p99 = self
            .lines
            .iter()
            .filter(|line| line.row.name == name && line.class == Class::Plain)
            .filter_map(|line| line.summary.map(|summary| summary.p99_us))
            .fold(f64::INFINITY, f64::min);
        for line in self.lines.iter_mut().filter(of_row) {
            line.stalled = line.replicates
                && line
                    .summary
                    .is_some_and(|summary| summary.p99_us > STALL_US && plain_p99 < STALL_US / 2.0);
        }
        let peers = || {
            self.lines
                .iter()
                .filter(|line| line.row.name == name && line.replicates && !line.stalled)
                .filter_map(|line| line.summary)
        };
        let fastest = peers().map(|peer| peer.per_second.median).reduce(f64::max);
        let frugal = peers().map(|peer| peer.cpu_us).reduce(f64::min);
        for line in self.lines.iter_mut().filter(of_row) {
            if let (Class::Tandem, Some(summary)) = (line.class, &mut line.summary) {
                let ratio = |own: f64, best: Option<f64>| {
                    best.filter(|best| *best > 0.0).map(|best| own / best)
                };
                summary.speed_to_best_peer = ratio(summary.per_second.median, fastest);
                summary.cpu_to_best_peer = ratio(summary.cpu_us, frugal);
            }
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "row",
            "contender",
            "op/s",
            "best round",
            "MB/s",
            "p50 µs",
            "p99 µs",
            "p99.9 µs",
            "CPU µs/op",
            "load µs/op",
            "loopback B/op",
            "meta/op",
            "spread %",
            "speed : best peer",
            "CPU : best peer",
            "",
        ]);
        for line in &self.lines {
            table.add_row(cells(line));
        }
        for column in table.column_iter_mut().skip(2).take(13) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn words(&self) -> String {
        let mut text = format!(
            "\n## {:?} ({}), placement {:?}, clients over {:?}\n\n",
            self.medium, self.filesystem, self.placement, self.client
        );
        text.push_str("The machine itself:\n\n");
        let mut floors = Table::new();
        floors.load_style(presets::ASCII_MARKDOWN);
        floors.set_header(["what", "op/s", "MB/s", "p50 µs", "p99 µs"]);
        for floor in &self.floors {
            let latency = |figure: f64| {
                if figure > 0.0 {
                    round(figure)
                } else {
                    String::new()
                }
            };
            floors.add_row([
                floor.name.clone(),
                round(floor.per_second),
                round(floor.mb_per_second),
                latency(floor.p50_us),
                latency(floor.p99_us),
            ]);
        }
        // Writing to a string does not fail.
        let _ = writeln!(text, "{floors}\n\n{}", self.table());
        for absent in &self.absent {
            let _ = writeln!(text, "not compared: {absent}");
        }
        for line in self.lines.iter().filter(|line| line.failure.is_some()) {
            let failure = line.failure.as_deref().unwrap_or_default();
            let _ = writeln!(
                text,
                "{} failed in {}: {failure}",
                line.contender, line.row.name
            );
        }
        let mut notes: Vec<String> = self
            .lines
            .iter()
            .flat_map(|line| {
                line.notes
                    .iter()
                    .map(|note| format!("{}: {note}", line.contender))
            })
            .collect();
        notes.sort();
        notes.dedup();
        for note in notes {
            let _ = writeln!(text, "{note}");
        }
        text
    }
}

impl Report {
    /// For a person.
    pub fn words(&self) -> String {
        let mut text = format!(
            "{}\n{} rounds in turn, {} s of each row in each; medians over the rounds\n",
            self.machine.words(),
            self.rounds,
            self.seconds_per_row
        );
        for stage in &self.stages {
            text.push_str(&stage.words());
        }
        let lines = || self.stages.iter().flat_map(|stage| &stage.lines);
        let noisy = lines().filter(|line| line.summary.is_some_and(|summary| summary.noisy));
        let (noisy, all) = (noisy.count(), lines().count());
        text.push_str(LEGEND);
        let _ = match (noisy, self.rounds) {
            (_, 1) => writeln!(
                text,
                "One round has no spread: these figures are indications only."
            ),
            (0, _) => writeln!(text, "No row spread by more than {SPREAD_PERCENT_MAX} %."),
            (noisy, _) => writeln!(
                text,
                "NOISY: {noisy} of {all} lines spread by more than {SPREAD_PERCENT_MAX} % over the rounds (marked ~): \
                 their figures are indications only.\nnext: repeat it on an idle machine, with more --rounds."
            ),
        };
        if lines().any(|line| line.stalled) {
            let _ = writeln!(
                text,
                "STALLED: the connection to the far side of lines marked so waits for a timer of TCP (40 ms): no figures of \
                 the program, and nothing is compared with them."
            );
        }
        text
    }

    /// For a program.
    ///
    /// # Errors
    /// None that is known.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }
}

fn cells(line: &Line) -> Vec<String> {
    let mut cells = vec![line.row.name.to_owned(), line.contender.clone()];
    let Some(summary) = &line.summary else {
        cells.push(String::from("failed"));
        return cells;
    };
    let ratio = |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
    let metadata = line.median(|round| round.metadata_writes);
    cells.extend([
        round(summary.per_second.median),
        round(summary.per_second.max),
        round(line.median(|round| round.mb_per_second)),
        round(summary.p50_us),
        round(summary.p99_us),
        round(summary.p999_us),
        round(summary.cpu_us),
        round(line.median(|round| round.load_cpu_us)),
        round(line.median(|round| round.loopback_bytes)),
        if line.class == Class::Tandem {
            format!("{metadata:.2}")
        } else {
            String::new()
        },
        format!("{:.0}", summary.spread_percent),
        ratio(summary.speed_to_best_peer),
        ratio(summary.cpu_to_best_peer),
    ]);
    let mut mark = String::new();
    if summary.noisy {
        mark.push('~');
    }
    if line.stalled {
        mark.push_str(" STALLED");
    }
    if line.failure.is_some() {
        mark.push_str(" FAILED LATER");
    }
    cells.push(mark);
    cells
}

/// Three digits that matter.
pub(crate) fn round(figure: f64) -> String {
    if figure >= 100.0 {
        format!("{figure:.0}")
    } else if figure >= 10.0 {
        format!("{figure:.1}")
    } else {
        format!("{figure:.2}")
    }
}

#[cfg(test)]
pub(crate) mod tests;
