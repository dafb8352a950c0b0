//! Plots of reports that are made up.

use super::*;
use crate::contenders::Contender;
use crate::report::tests::{line, report, stage};
use crate::rows::ROWS;

/// Two rows of every contender in two rounds; the last one of them spreads.
fn full() -> Report {
    let mut lines = Vec::new();
    for row in &ROWS[..2] {
        for (number, contender) in CONTENDERS.iter().enumerate() {
            let speed = 1000.0 * (number + 1) as f64;
            let mut line = line(*contender, &[(speed, 300.0, 20.0), (speed, 310.0, 20.0)]);
            line.row = *row;
            lines.push(line);
        }
    }
    let mut stage = stage(lines);
    let last = stage.lines.last_mut().unwrap();
    last.rounds[1].per_second *= 3.0;
    report(stage)
}

fn names(drawn: &Drawn) -> Vec<String> {
    let name = |file: &PathBuf| file.file_name().unwrap().to_string_lossy().into_owned();
    drawn.files.iter().map(name).collect()
}

#[test]
fn every_plot_has_every_row_and_contender_and_a_bar_for_each() {
    let dir = tempfile::tempdir().unwrap();
    let drawn = draw(&full(), &dir.path().join("plots")).unwrap();
    assert_eq!(
        names(&drawn),
        [
            "tmpfs-operations-per-second.svg",
            "tmpfs-p50.svg",
            "tmpfs-cpu-per-operation.svg"
        ]
    );
    for file in &drawn.files {
        let text = fs::read_to_string(file).unwrap();
        for row in &ROWS[..2] {
            assert!(text.contains(row.name), "{} in {text}", row.name);
        }
        for (contender, colour) in CONTENDERS.iter().zip(COLOURS) {
            assert!(text.contains(&contender.name()), "{}", contender.name());
            let fill = format!("fill=\"#{:02X}{:02X}{:02X}\"", colour.0, colour.1, colour.2);
            // Two bars, and the patch of the legend.
            assert_eq!(text.matches(&fill).count(), 3, "{}", contender.name());
        }
        assert!(text.trim_end().ends_with("</svg>"));
    }
    assert!(drawn.words().contains("drawn: "), "{}", drawn.words());
}

#[test]
fn a_bar_that_spreads_has_a_whisker_and_a_mark() {
    let report = full();
    let noisy: Vec<Bar> = bars(&report.stages[0], &KINDS[0]);
    let marks: Vec<&str> = noisy.iter().map(|bar| bar.mark).collect();
    assert_eq!(marks.iter().filter(|mark| **mark == "~").count(), 1);
    assert_eq!(marks.last(), Some(&"~"));
    let text = svg(&report.stages[0], &KINDS[0], 2).unwrap().unwrap();
    // A whisker is three lines.
    assert_eq!(text.matches("stroke=\"#000000\"").count(), 3, "{text}");
}

#[test]
fn more_is_higher_and_nothing_leaves_the_plot() {
    let report = full();
    for kind in &KINDS {
        let bars = bars(&report.stages[0], kind);
        let page = Page::of(&bars);
        for bar in &bars {
            let (low, high) = (page.y(bar.value.min), page.y(bar.value.max));
            assert!(high >= TOP && low <= TOP + PLOT_HEIGHT && high <= low);
            let x = page.bar_x(bar);
            assert!(x >= LEFT && x + page.bar_width <= page.width);
        }
    }
}

#[test]
fn a_report_without_figures_gives_words_and_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("plots");
    let empty = report(stage(vec![line(Contender::Tandem('C'), &[])]));
    let drawn = draw(&empty, &place).unwrap();
    assert!(drawn.files.is_empty() && !place.exists());
    assert_eq!(drawn.empty.len(), KINDS.len());
    assert!(
        drawn.words().contains("not drawn: tmpfs, median latency"),
        "{}",
        drawn.words()
    );
    let mut none = empty;
    none.stages.clear();
    let drawn = draw(&none, &place).unwrap();
    assert_eq!(drawn.words(), "nothing drawn: the report has no figures\n");
}
