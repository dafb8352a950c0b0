//! What the jobs found: in words for a person, as JSON for a program.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::figures::{Figure, Figures, Ratio};
use crate::contenders::Medium;
use crate::machine::Machine;
use crate::report::round;
use crate::stats::SPREAD_PERCENT_MAX;

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of this document.
    pub schema: u32,
    /// Where it was made.
    pub machine: Machine,
    /// Where the backing files lay.
    pub medium: Medium,
    /// Its filesystem.
    pub filesystem: String,
    /// Rounds.
    pub rounds: u32,
    /// In the order of the list.
    pub jobs: Vec<Done>,
    /// The load when the run ended; its own included.
    pub load_average_at_end: String,
}

/// One job.
#[derive(Clone, Debug, Serialize)]
pub struct Done {
    /// As `--only` takes it.
    pub name: &'static str,
    /// In words.
    pub words: &'static str,
    /// What it found.
    #[serde(flatten)]
    pub found: Figures,
    /// Why it ended before its end.
    pub failure: Option<String>,
    /// How long it took in all, in seconds.
    pub seconds: f64,
}

impl Report {
    /// For a person.
    pub fn words(&self) -> String {
        let rounds = match self.rounds {
            1 => String::from("1 round"),
            rounds => format!("{rounds} rounds; medians over the rounds"),
        };
        let mut text = format!(
            "{}\nfiles on {:?} ({}); {rounds}\n",
            self.machine.words(),
            self.medium,
            self.filesystem
        );
        for job in &self.jobs {
            text.push_str(&job.in_words());
        }
        // Writing to a string does not fail.
        let _ = write!(text, "\nload at the end: {}\n", self.load_average_at_end);
        let figures = || self.jobs.iter().flat_map(|job| &job.found.figures);
        let noisy = figures().filter(|figure| figure.noisy).count();
        let _ = match (noisy, self.rounds) {
            (_, 1) => writeln!(
                text,
                "One round has no spread: these figures are indications only."
            ),
            (0, _) => writeln!(
                text,
                "No figure spread by more than {SPREAD_PERCENT_MAX} %."
            ),
            (noisy, _) => writeln!(
                text,
                "NOISY: {noisy} of {} figures spread by more than {SPREAD_PERCENT_MAX} % over the rounds (marked ~): they are \
                 indications only.\nnext: repeat it on an idle machine, with more --rounds.",
                figures().count()
            ),
        };
        let failed = self.jobs.iter().filter(|job| job.failure.is_some());
        let names: Vec<&str> = failed.map(|job| job.name).collect();
        if !names.is_empty() {
            let _ = writeln!(text, "FAILED: {}", names.join(", "));
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

impl Done {
    fn in_words(&self) -> String {
        let mut text = format!("\n## {}: {}\n\n", self.name, self.words);
        if !self.found.figures.is_empty() {
            let _ = writeln!(text, "{}\n", self.table());
        }
        for ratio in &self.found.ratios {
            let _ = writeln!(text, "{}", in_words(ratio));
        }
        for note in &self.found.notes {
            let _ = writeln!(text, "note: {note}");
        }
        for absent in &self.found.absent {
            let _ = writeln!(text, "absent: {absent}");
        }
        if let Some(failure) = &self.failure {
            let _ = writeln!(text, "FAILED: {failure}");
        }
        let _ = writeln!(text, "took {} s in all", round(self.seconds));
        text
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "case", "what", "median", "min", "max", "unit", "spread %", "",
        ]);
        for figure in &self.found.figures {
            table.add_row(cells(figure));
        }
        for column in [2, 3, 4, 6] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

fn cells(figure: &Figure) -> Vec<String> {
    let mut cells = vec![figure.case.clone(), figure.what.clone()];
    let Some(summary) = figure.summary else {
        return cells;
    };
    cells.extend([summary.median, summary.min, summary.max].map(exact));
    cells.push(figure.unit.name().to_owned());
    cells.push(match figure.values.len() {
        1 => String::new(),
        _ => format!("{:.0}", figure.spread_percent),
    });
    cells.push(if figure.noisy { "~" } else { "" }.to_owned());
    cells
}

/// Three digits that matter; thousandths where it is less than one.
fn exact(figure: f64) -> String {
    if figure == 0.0 {
        String::from("0")
    } else if figure < 1.0 {
        format!("{figure:.3}")
    } else {
        round(figure)
    }
}

fn in_words(ratio: &Ratio) -> String {
    let Some(value) = ratio.value else {
        return format!("{}: no figures to compare", ratio.name);
    };
    let goal = ratio.goal.map_or_else(String::new, |goal| {
        let reached = if value >= goal {
            "reached"
        } else {
            "NOT reached"
        };
        format!(" (goal {goal}: {reached})")
    });
    format!("{} = {value:.2}{goal}", ratio.name)
}

#[cfg(test)]
mod tests {
    use super::super::figures::Unit;
    use super::*;

    fn report(values: &[f64]) -> Report {
        let mut found = Figures::default();
        for value in values {
            found.add("controller off", "resync", Unit::MbPerSecond, *value);
            found.add("nbdcopy", "copy", Unit::MbPerSecond, 100.0);
        }
        let (own, other) = (("controller off", "resync"), ("nbdcopy", "copy"));
        found.compare("resync : nbdcopy", own, other, Some(1.5));
        found.note("the device has 1024 MiB");
        found.absent("64 TiB: the filesystem knows no such files");
        found.conclude();
        Report {
            schema: 1,
            machine: Machine::here(),
            medium: Medium::Tmpfs,
            filesystem: String::from("tmpfs on tmpfs"),
            rounds: u32::try_from(values.len()).unwrap(),
            jobs: vec![Done {
                name: "resync-full",
                words: "a full resync",
                found,
                failure: None,
                seconds: 2.0,
            }],
            load_average_at_end: String::from("0 0 0"),
        }
    }

    #[test]
    fn the_words_have_figures_ratios_remarks_and_what_is_absent() {
        let words = report(&[160.0, 170.0, 165.0]).words();
        for part in [
            "## resync-full: a full resync",
            "| controller off | resync |    165 | 160 | 170 | MB/s |",
            "resync : nbdcopy = 1.65 (goal 1.5: reached)",
            "note: the device has 1024 MiB",
            "absent: 64 TiB: the filesystem knows no such files",
            "load at the end: 0 0 0",
            "No figure spread by more than 20 %.",
        ] {
            assert!(words.contains(part), "{part:?} is not in\n{words}");
        }
    }

    #[test]
    fn a_noisy_run_a_single_round_and_a_missed_goal_are_said() {
        let noisy = report(&[100.0, 130.0]).words();
        assert!(noisy.contains("NOISY: 1 of 2 figures"), "{noisy}");
        assert!(noisy.contains("(goal 1.5: NOT reached)"), "{noisy}");
        assert!(report(&[100.0]).words().contains("One round has no spread"));
    }

    #[test]
    fn a_job_that_failed_says_why_and_keeps_its_figures() {
        let mut report = report(&[160.0]);
        report.jobs[0].failure = Some(String::from("no answer within 20s"));
        let words = report.words();
        assert!(words.contains("FAILED: no answer within 20s"), "{words}");
        assert!(words.contains("FAILED: resync-full"), "{words}");
        assert!(words.contains("| controller off |"), "{words}");
    }

    #[test]
    fn the_document_has_a_schema_and_every_round() {
        let report = report(&[160.0, 170.0]);
        let value: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(value["schema"], 1);
        let figure = &value["jobs"][0]["figures"][0];
        assert_eq!(figure["values"], serde_json::json!([160.0, 170.0]));
        assert_eq!(figure["unit"], "MB/s");
        assert_eq!(value["jobs"][0]["ratios"][0]["goal"], 1.5);
    }
}
