//! What a job found: figures of each round by case and kind, their medians, and how two of them compare.

use serde::Serialize;

use crate::stats::{SPREAD_PERCENT_MAX, Summary};

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
    /// Millions of bytes per second.
    #[serde(rename = "MB/s")]
    MbPerSecond,
    /// KiB.
    #[serde(rename = "KiB")]
    Kib,
    /// MiB.
    #[serde(rename = "MiB")]
    Mib,
    /// Percent of one CPU.
    #[serde(rename = "% of a CPU")]
    CpuPercent,
    /// Microseconds.
    #[serde(rename = "µs")]
    Microseconds,
    /// Blocks of 4 KiB.
    #[serde(rename = "blocks")]
    Blocks,
}

impl Unit {
    /// As the table says it.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "s",
            Unit::MbPerSecond => "MB/s",
            Unit::Kib => "KiB",
            Unit::Mib => "MiB",
            Unit::CpuPercent => "% of a CPU",
            Unit::Microseconds => "µs",
            Unit::Blocks => "blocks",
        }
    }
}

/// One figure over all rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Under which circumstances: `controller off`, `64 TiB, clean`.
    pub case: String,
    /// What was measured: `attach`.
    pub what: String,
    /// In what it counts.
    pub unit: Unit,
    /// Of each round.
    pub values: Vec<f64>,
    /// Over all rounds.
    pub summary: Option<Summary>,
    /// Spread in percent of the median.
    pub spread_percent: f64,
    /// The spread is above the limit.
    pub noisy: bool,
}

/// How two figures compare.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// In words: `resync, controller off : nbdcopy`.
    pub name: String,
    /// Of the medians; None while one is missing.
    pub value: Option<f64>,
    /// What it is meant to reach.
    pub goal: Option<f64>,
}

/// All that a job found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// In the order of their first round.
    pub figures: Vec<Figure>,
    /// Between figures.
    pub ratios: Vec<Ratio>,
    /// What a reader has to know, bounds and options above all.
    pub notes: Vec<String>,
    /// What could not be measured, and why.
    pub absent: Vec<String>,
}

impl Figures {
    /// A value of one more round.
    pub fn add(&mut self, case: &str, what: &str, unit: Unit, value: f64) {
        let same = |figure: &&mut Figure| {
            figure.case == case && figure.what == what && figure.unit == unit
        };
        if let Some(figure) = self.figures.iter_mut().find(same) {
            figure.values.push(value);
            return;
        }
        self.figures.push(Figure {
            case: case.to_owned(),
            what: what.to_owned(),
            unit,
            values: vec![value],
            summary: None,
            spread_percent: 0.0,
            noisy: false,
        });
    }

    /// What a reader has to know; said once.
    pub fn note(&mut self, text: impl Into<String>) {
        push_new(&mut self.notes, text.into());
    }

    /// What could not be measured, and why; said once.
    pub fn absent(&mut self, text: impl Into<String>) {
        push_new(&mut self.absent, text.into());
    }

    /// The median of a figure so far.
    pub fn median(&self, case: &str, what: &str) -> Option<f64> {
        let same = |figure: &&Figure| figure.case == case && figure.what == what;
        let figure = self.figures.iter().find(same)?;
        Summary::of(&figure.values).map(|summary| summary.median)
    }

    /// Compares the medians of two figures, each given as its case and what was measured.
    pub fn compare(
        &mut self,
        name: &str,
        one: (&str, &str),
        other: (&str, &str),
        goal: Option<f64>,
    ) {
        let other = self.median(other.0, other.1).filter(|value| *value > 0.0);
        let value = self.median(one.0, one.1).zip(other);
        self.ratios.push(Ratio {
            name: name.to_owned(),
            value: value.map(|(one, other)| one / other),
            goal,
        });
    }

    /// Medians and spreads, once all rounds are there.
    pub fn conclude(&mut self) {
        for figure in &mut self.figures {
            figure.summary = Summary::of(&figure.values);
            figure.spread_percent = figure
                .summary
                .map_or(0.0, |summary| summary.spread_percent());
            figure.noisy = figure.spread_percent > SPREAD_PERCENT_MAX;
        }
    }
}

fn push_new(all: &mut Vec<String>, text: String) {
    if !all.contains(&text) {
        all.push(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_the_same_figure_come_together() {
        let mut figures = Figures::default();
        for value in [100.0, 140.0, 120.0] {
            figures.add("controller off", "resync", Unit::MbPerSecond, value);
            figures.add("defaults", "resync", Unit::MbPerSecond, 50.0);
        }
        figures.conclude();
        assert_eq!(figures.figures.len(), 2);
        let first = &figures.figures[0];
        assert_eq!(first.values, [100.0, 140.0, 120.0]);
        assert_eq!(first.summary.map(|summary| summary.median), Some(120.0));
        assert!(first.noisy && !figures.figures[1].noisy);
    }

    #[test]
    fn a_ratio_is_one_of_medians_and_needs_both() {
        let mut figures = Figures::default();
        for (own, other) in [(300.0, 100.0), (320.0, 200.0), (900.0, 210.0)] {
            figures.add("own", "copy", Unit::MbPerSecond, own);
            figures.add("other", "copy", Unit::MbPerSecond, other);
        }
        figures.compare("own : other", ("own", "copy"), ("other", "copy"), Some(1.5));
        figures.compare("own : nobody", ("own", "copy"), ("nobody", "copy"), None);
        assert_eq!(figures.ratios[0].value, Some(1.6));
        assert_eq!(figures.ratios[1].value, None);
    }

    #[test]
    fn nothing_is_divided_by_zero() {
        let mut figures = Figures::default();
        figures.add("own", "copy", Unit::Seconds, 1.0);
        figures.add("other", "copy", Unit::Seconds, 0.0);
        figures.compare("x", ("own", "copy"), ("other", "copy"), None);
        assert_eq!(figures.ratios[0].value, None);
    }

    #[test]
    fn a_remark_of_every_round_is_said_once() {
        let mut figures = Figures::default();
        figures.note("one");
        figures.note(String::from("one"));
        figures.absent("two");
        figures.absent("two");
        assert_eq!((figures.notes.len(), figures.absent.len()), (1, 1));
    }
}
