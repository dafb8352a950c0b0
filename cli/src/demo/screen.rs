//! What the demo shows: plain lines, and bars where standard output is a terminal.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tandem_daemon::control::messages::ResourceReport;

use crate::output::out_line;
use crate::status::human::{bar, size};

/// Least time between two plain lines of a progress.
const LINE_INTERVAL: Duration = Duration::from_millis(700);

/// Width of a plain bar.
const BAR: usize = 40;

/// The headline of a step.
pub(crate) fn step(number: u32, text: &str) {
    out_line(&format!("\n{number}. {text}"));
}

/// A command as it is run.
pub(crate) fn command(line: &str) {
    out_line(&format!("   $ {line}"));
}

/// A remark.
pub(crate) fn note(text: &str) {
    out_line(&format!("   {text}"));
}

/// A line that changes in place on a terminal, and is repeated now and then elsewhere.
pub(crate) struct Live {
    shown: Option<ProgressBar>,
    last: Option<Instant>,
}

impl Live {
    /// A bar of `total` bytes.
    pub(crate) fn bar(total: u64) -> Live {
        let template = "   [{bar:40}] {percent:>3}%  {bytes}/{total_bytes}  {msg}";
        Live::with(ProgressBar::new(total), template, "=>.")
    }

    /// A line without a bar.
    pub(crate) fn line() -> Live {
        Live::with(ProgressBar::new_spinner(), "   {msg}", "=>.")
    }

    fn with(progress: ProgressBar, template: &str, characters: &str) -> Live {
        if !std::io::stdout().is_terminal() {
            return Live {
                shown: None,
                last: None,
            };
        }
        if let Ok(style) = ProgressStyle::with_template(template) {
            progress.set_style(style.progress_chars(characters));
        }
        progress.set_draw_target(indicatif::ProgressDrawTarget::stdout());
        Live {
            shown: Some(progress),
            last: None,
        }
    }

    /// Shows how far it is.
    pub(crate) fn progress(&mut self, done: u64, total: u64, text: &str) {
        if let Some(shown) = &self.shown {
            shown.set_length(total);
            shown.set_position(done);
            shown.set_message(text.to_owned());
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "for a percentage")]
        let percent = if total == 0 {
            100.0
        } else {
            done as f64 * 100.0 / total as f64
        };
        self.plain(&format!(
            "{} {percent:3.0}%  {} of {}  {text}",
            bar(percent, BAR),
            size(done),
            size(total)
        ));
    }

    /// Shows a text.
    pub(crate) fn text(&mut self, text: &str) {
        match &self.shown {
            Some(shown) => shown.set_message(text.to_owned()),
            None => self.plain(text),
        }
    }

    fn plain(&mut self, text: &str) {
        if self.last.is_none_or(|last| last.elapsed() > LINE_INTERVAL) {
            self.last = Some(Instant::now());
            note(text);
        }
    }

    /// Ends it with a last line that stays.
    pub(crate) fn done(self, text: &str) {
        if let Some(shown) = self.shown {
            shown.finish_and_clear();
        }
        note(text);
    }
}

/// One node in a few words: `alpha Primary UpToDate/UpToDate Connected`.
pub(crate) fn node(name: &str, report: Option<&ResourceReport>) -> String {
    match report.and_then(|report| Some((report, report.volumes.first()?))) {
        Some((report, volume)) => format!(
            "{name}: {} {}/{} {}",
            report.role, volume.disk, volume.peer_disk, report.connection
        ),
        None => format!("{name}: dead"),
    }
}

/// A number with thousands separated.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1234), "1,234");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
