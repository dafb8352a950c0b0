//! The worked traces of docs/spec/state-machine.md section 11, read from the specification itself: what a test plays is compared
//! with its text, so that a row cannot be copied wrongly.

const SPEC: &str = include_str!("../../../docs/spec/state-machine.md");

/// One row of a trace.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its number.
    pub number: u32,
    /// What happens.
    pub event: String,
    /// Node A and node B.
    pub cells: [Cell; 2],
}

/// One cell: `conn role/peer disk/pdsk [current, bitmap, h1, h2] oos=n`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// All before the generations.
    pub state: String,
    /// The generations by name.
    pub uuids: Vec<String>,
    /// Set bits; `None`: not said.
    pub oos: Option<u64>,
}

impl Cell {
    /// Reads a cell of the specification or of a test.
    ///
    /// # Errors
    /// The text is no cell.
    pub fn parse(text: &str) -> Result<Cell, String> {
        let text = text.replace("<br>", " ").replace("on disk [", "[");
        let cell = || {
            let (state, rest) = text.split_once(" [")?;
            let (uuids, rest) = rest.split_once(']')?;
            let uuids: Vec<String> = uuids.split(", ").map(str::to_owned).collect();
            let oos = rest
                .split([' ', ','])
                .find_map(|word| word.strip_prefix("oos="));
            (uuids.len() == 4).then(|| Cell {
                state: state.to_owned(),
                uuids,
                oos: oos.and_then(|oos| oos.parse().ok()),
            })
        };
        cell().ok_or_else(|| format!("no cell: {text}"))
    }

    /// Whether the cell of a test says what this one of the specification says. A log of activity holds whole extents, which are all
    /// `blocks` of a small device, where the specification shows single blocks.
    #[must_use]
    pub fn covers(&self, of_test: &Cell, blocks: u64) -> bool {
        let bits = match (self.oos, of_test.oos) {
            (Some(spec), Some(test)) => spec == test || (spec > 0 && test == blocks),
            _ => true,
        };
        self.state == of_test.state && self.uuids == of_test.uuids && bits
    }
}

impl Row {
    /// The comparison that each node logs, where the row names it: `uuid_compare()=1 by rule 70`.
    #[must_use]
    pub fn comparisons(&self) -> Option<[String; 2]> {
        let (_, rest) = self.event.split_once("(A: hg=")?;
        let (a, rest) = rest.split_once("; B: hg=")?;
        let (b, _) = rest.split_once(')')?;
        let words = |text: &str| {
            let (hg, rule) = text.split_once(" rule ")?;
            Some(format!("uuid_compare()={hg} by rule {rule}"))
        };
        Some([words(a)?, words(b)?])
    }
}

/// The rows of a trace (`T26`) that have two cells.
#[must_use]
pub fn rows(trace: &str) -> Vec<Row> {
    let heading = format!("### {trace}: ");
    let lines = SPEC.lines().skip_while(|line| !line.starts_with(&heading));
    lines
        .skip(1)
        .take_while(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let columns: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
            let [number, event, a, b, ..] = columns[..] else {
                return None;
            };
            Some(Row {
                number: number.parse().ok()?,
                event: event.to_owned(),
                cells: [Cell::parse(a).ok()?, Cell::parse(b).ok()?],
            })
        })
        .collect()
}

/// Numbers and titles of all traces.
#[must_use]
pub fn titles() -> Vec<(u32, &'static str)> {
    SPEC.lines()
        .filter_map(|line| line.strip_prefix("### T")?.split_once(": "))
        .filter_map(|(number, title)| Some((number.parse().ok()?, title)))
        .collect()
}
