//! Plots of a comparison: one SVG file for each medium and figure, bars grouped by row, one colour for each contender.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Failure;
use crate::contenders::{CONTENDERS, Medium};
use crate::report::{Line, Report, Round, Stage};
use crate::stats::{SPREAD_PERCENT_MAX, Summary};

/// What became of the plots of a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Plots without a figure: no file.
    pub empty: Vec<String>,
}

impl Drawn {
    /// For a person.
    pub fn words(&self) -> String {
        let mut text = String::new();
        for file in &self.files {
            // Writing to a string does not fail.
            let _ = writeln!(text, "drawn: {}", file.display());
        }
        for empty in &self.empty {
            let _ = writeln!(text, "not drawn: {empty}: there are no figures");
        }
        if self.files.is_empty() && self.empty.is_empty() {
            text.push_str("nothing drawn: the report has no figures\n");
        }
        text
    }
}

/// One kind of figure.
struct Kind {
    /// Part of the file's name.
    name: &'static str,
    title: &'static str,
    of_round: fn(&Round) -> f64,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "operations-per-second",
        title: "operations per second (more is better)",
        of_round: |round| round.per_second,
    },
    Kind {
        name: "p50",
        title: "median latency in µs (less is better)",
        of_round: |round| round.p50_us,
    },
    Kind {
        name: "cpu-per-operation",
        title: "CPU µs of all servers for an operation (less is better)",
        of_round: |round| round.cpu_us,
    },
];

/// One for each of [`CONTENDERS`]: the colours of Okabe and Ito, which nearly everybody can tell apart, and grey and brown for those that
/// replicate nothing.
const COLOURS: [RGBColor; 9] = [
    RGBColor(153, 153, 153),
    RGBColor(140, 86, 75),
    RGBColor(230, 159, 0),
    RGBColor(240, 228, 66),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(0, 114, 178),
];

const _: () = assert!(COLOURS.len() == CONTENDERS.len());

/// A bar: the median over the rounds with the smallest and the largest round.
#[derive(Clone, Debug)]
struct Bar {
    row: &'static str,
    contender: String,
    value: Summary,
    mark: &'static str,
}

/// Draws all plots of `report` into `dir`, which is made if need be.
///
/// # Errors
/// When a file cannot be written.
pub fn draw(report: &Report, dir: &Path) -> Result<Drawn, Failure> {
    let mut drawn = Drawn::default();
    for stage in &report.stages {
        for kind in &KINDS {
            let medium = match stage.medium {
                Medium::Tmpfs => "tmpfs",
                Medium::Disk => "disk",
            };
            let Some(text) = svg(stage, kind, report.rounds)? else {
                drawn.empty.push(format!("{medium}, {}", kind.title));
                continue;
            };
            let doing = format!("make {}", dir.display());
            fs::create_dir_all(dir).map_err(Failure::system(doing))?;
            let file = dir.join(format!("{medium}-{}.svg", kind.name));
            let doing = format!("write {}", file.display());
            fs::write(&file, text).map_err(Failure::system(doing))?;
            drawn.files.push(file);
        }
    }
    Ok(drawn)
}

fn bars(stage: &Stage, kind: &Kind) -> Vec<Bar> {
    let bar = |line: &Line| {
        let values: Vec<f64> = line.rounds.iter().map(kind.of_round).collect();
        // A logarithm needs a figure above zero.
        let value = Summary::of(&values).filter(|value| value.min > 0.0)?;
        let noisy = value.spread_percent() > SPREAD_PERCENT_MAX;
        Some(Bar {
            row: line.row.name,
            contender: line.contender.clone(),
            value,
            mark: match (line.stalled, noisy) {
                (true, _) => "!",
                (false, true) => "~",
                (false, false) => "",
            },
        })
    };
    stage.lines.iter().filter_map(bar).collect()
}

/// Sizes of letters in the library's units: a pixel is 1.24 of them.
const TITLE_SIZE: f64 = 22.0;
const WORDS_SIZE: f64 = 15.0;
const MARK_SIZE: f64 = 18.0;
const MARGIN: i32 = 20;
/// For the figures at the axis.
const LEFT: i32 = 80;
/// For the title and the words below it, in height.
const TOP: i32 = 64;
const PLOT_HEIGHT: i32 = 400;
/// For the names of the rows, turned by a quarter.
const ROW_NAMES_HEIGHT: i32 = 150;
const LEGEND_LINE: i32 = 20;
const LEGEND_WIDTH: i32 = 160;
const BAR_WIDTH_MIN: i32 = 12;
const BAR_WIDTH_MAX: i32 = 40;
/// Of a patch of the legend.
const PATCH: i32 = 12;
/// Between two rows.
const GAP: i32 = 20;
/// For the same in width.
const PLOT_WIDTH_MIN: i32 = 900;

/// Where things are on the page.
struct Page {
    rows: Vec<&'static str>,
    contenders: Vec<String>,
    width: i32,
    height: i32,
    bar_width: i32,
    /// Powers of ten at both ends of the axis.
    powers: (i32, i32),
}

impl Page {
    fn of(bars: &[Bar]) -> Page {
        let (mut rows, mut contenders) = (Vec::new(), Vec::new());
        for bar in bars {
            if !rows.contains(&bar.row) {
                rows.push(bar.row);
            }
            if !contenders.contains(&bar.contender) {
                contenders.push(bar.contender.clone());
            }
        }
        let least = bars.iter().map(|bar| bar.value.min);
        let most = bars.iter().map(|bar| bar.value.max);
        let lowest = least.fold(f64::INFINITY, f64::min).log10().floor() as i32;
        let highest = most.fold(0.0, f64::max).log10().ceil() as i32;
        let (rows_there, bars_there) = (rows.len() as i32, contenders.len() as i32);
        // Few bars are wide ones.
        let bar_width =
            ((PLOT_WIDTH_MIN / rows_there - GAP) / bars_there).clamp(BAR_WIDTH_MIN, BAR_WIDTH_MAX);
        let plot_width = ((bars_there * bar_width + GAP) * rows_there).max(PLOT_WIDTH_MIN);
        let mut page = Page {
            rows,
            contenders,
            width: LEFT + plot_width + MARGIN,
            height: 0,
            bar_width,
            powers: (lowest, highest.max(lowest + 1)),
        };
        let lines = (page.contenders.len() as i32 - 1) / page.legend_columns() + 1;
        page.height = page.legend_top() + lines * LEGEND_LINE + MARGIN;
        page
    }

    fn legend_columns(&self) -> i32 {
        ((self.width - LEFT) / LEGEND_WIDTH).max(1)
    }

    fn legend_top(&self) -> i32 {
        TOP + PLOT_HEIGHT + ROW_NAMES_HEIGHT
    }

    fn y(&self, figure: f64) -> i32 {
        let (low, high) = (f64::from(self.powers.0), f64::from(self.powers.1));
        let share = (figure.log10() - low) / (high - low);
        TOP + PLOT_HEIGHT - (share * f64::from(PLOT_HEIGHT)).round() as i32
    }

    /// The left edge of a row's bars.
    fn row_x(&self, row: usize) -> i32 {
        let group = self.contenders.len() as i32 * self.bar_width + GAP;
        LEFT + GAP / 2 + row as i32 * group
    }

    fn bar_x(&self, bar: &Bar) -> i32 {
        let place = |found: Option<usize>| found.unwrap_or_default();
        let row = place(self.rows.iter().position(|row| *row == bar.row));
        let contender = self
            .contenders
            .iter()
            .position(|name| *name == bar.contender);
        self.row_x(row) + place(contender) as i32 * self.bar_width
    }
}

fn colour(contender: &str) -> RGBColor {
    let place = CONTENDERS
        .iter()
        .position(|known| known.name() == contender);
    COLOURS[place.unwrap_or_default()]
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// The text of a plot; None when it has no figures.
fn svg(stage: &Stage, kind: &Kind, rounds: u32) -> Result<Option<String>, Failure> {
    let bars = bars(stage, kind);
    if bars.is_empty() {
        return Ok(None);
    }
    let page = Page::of(&bars);
    let mut text = String::new();
    {
        let size = (page.width.unsigned_abs(), page.height.unsigned_abs());
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        let heads = heads(stage, kind, rounds);
        let painted = paint(&area, &page, &bars, &heads);
        painted.map_err(|error| Failure::Unexpected(format!("draw {}: {error}", kind.name)))?;
    }
    Ok(Some(text))
}

/// The title, and how the figures came about.
fn heads(stage: &Stage, kind: &Kind, rounds: u32) -> [String; 2] {
    let spread = match rounds {
        1 => String::from("one round: no spread"),
        rounds => format!("medians of {rounds} rounds, whiskers: smallest and largest round"),
    };
    [
        format!("{:?}: {}", stage.medium, kind.title),
        format!(
            "logarithmic; {spread}; ~ noisy (spread above {SPREAD_PERCENT_MAX} %), ! stalled (waits for a timer of TCP)"
        ),
    ]
}

fn paint(
    area: &Area<'_>,
    page: &Page,
    bars: &[Bar],
    heads: &[String; 2],
) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    area.draw(&words(&heads[0], (LEFT, 12), TITLE_SIZE, HPos::Left))?;
    area.draw(&words(&heads[1], (LEFT, 38), WORDS_SIZE, HPos::Left))?;
    for power in page.powers.0..=page.powers.1 {
        let figure = 10f64.powi(power);
        let y = page.y(figure);
        let line = vec![(LEFT, y), (page.width - MARGIN, y)];
        area.draw(&PathElement::new(line, RGBColor(220, 220, 220)))?;
        area.draw(&words(
            &figure.to_string(),
            (LEFT - 6, y - 6),
            WORDS_SIZE,
            HPos::Right,
        ))?;
    }
    for (number, row) in page.rows.iter().enumerate() {
        let middle = page.contenders.len() as i32 * page.bar_width / 2;
        let place = (page.row_x(number) + middle - 6, TOP + PLOT_HEIGHT + 8);
        let style = style(WORDS_SIZE, HPos::Left).transform(FontTransform::Rotate90);
        area.draw(&Text::new((*row).to_owned(), place, style))?;
    }
    for bar in bars {
        paint_bar(area, page, bar)?;
    }
    for (number, contender) in page.contenders.iter().enumerate() {
        let (column, line) = (
            number as i32 % page.legend_columns(),
            number as i32 / page.legend_columns(),
        );
        let (x, y) = (
            LEFT + column * LEGEND_WIDTH,
            page.legend_top() + line * LEGEND_LINE,
        );
        let patch = [(x, y), (x + PATCH, y + PATCH)];
        area.draw(&Rectangle::new(patch, colour(contender).filled()))?;
        let place = (x + PATCH + 6, y);
        area.draw(&words(contender, place, WORDS_SIZE, HPos::Left))?;
    }
    area.present()?;
    Ok(())
}

fn paint_bar(area: &Area<'_>, page: &Page, bar: &Bar) -> Result<(), Box<dyn std::error::Error>> {
    let (x, floor) = (page.bar_x(bar), TOP + PLOT_HEIGHT);
    let (top, low, high) = (
        page.y(bar.value.median),
        page.y(bar.value.min),
        page.y(bar.value.max),
    );
    let body = [(x + 1, top), (x + page.bar_width - 1, floor)];
    area.draw(&Rectangle::new(body, colour(&bar.contender).filled()))?;
    let middle = x + page.bar_width / 2;
    if high < low {
        for line in [
            vec![(middle, low), (middle, high)],
            vec![(middle - 3, low), (middle + 3, low)],
            vec![(middle - 3, high), (middle + 3, high)],
        ] {
            area.draw(&PathElement::new(line, BLACK))?;
        }
    }
    if !bar.mark.is_empty() {
        area.draw(&words(
            bar.mark,
            (middle, high - 16),
            MARK_SIZE,
            HPos::Center,
        ))?;
    }
    Ok(())
}

fn style(size: f64, horizontal: HPos) -> TextStyle<'static> {
    ("sans-serif", size)
        .into_font()
        .color(&BLACK)
        .pos(Pos::new(horizontal, VPos::Top))
}

fn words(
    text: &str,
    place: (i32, i32),
    size: f64,
    horizontal: HPos,
) -> Text<'static, (i32, i32), String> {
    Text::new(text.to_owned(), place, style(size, horizontal))
}

#[cfg(test)]
mod tests;
