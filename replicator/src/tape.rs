//! What the engine takes from elsewhere than its events: random numbers, and verdicts about contents.
//!
//! A recording of a daemon (see [`crate::black_box`]) holds neither user data nor secrets, nor the seed, from which a node's
//! challenges could be foretold. So whatever depends on them goes through the tape: recording, it notes each number and each
//! verdict; playing, it gives back what was noted. With its events and its tape an engine repeats exactly.
//!
//! Verdicts: does a digest match (integrity, checksum-based resync, online verify), is a block all zero (thin resync), is the peer's
//! authentication right. The bytes of challenges are not on the tape: only the verdict about their answer counts.

use alloc::vec::Vec;

/// A source of numbers and verdicts, recorded or played back.
#[derive(Debug, Default)]
pub(crate) struct Tape {
    mode: Mode,
}

#[derive(Debug, Default)]
enum Mode {
    /// Everything is drawn and judged; nothing is noted.
    #[default]
    Off,
    /// Drawn, judged and noted.
    Recording(Vec<u8>),
    /// Taken from the notes.
    Playing(Playing),
}

#[derive(Debug, Default)]
struct Playing {
    notes: Vec<u8>,
    used: usize,
    /// More was wanted than there was.
    short: bool,
}

/// How the notes of an event fitted what the engine wanted while it was played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Exactly.
    Exact,
    /// The engine wanted more: it went another way than the recorded one.
    Short,
    /// The engine wanted less, by so many bytes.
    Left(usize),
}

impl Playing {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let rest = self.notes.get(self.used..).unwrap_or_default();
        let Some(bytes) = rest.first_chunk::<N>() else {
            self.short = true;
            return None;
        };
        self.used += N;
        Some(*bytes)
    }
}

impl Tape {
    /// From now on everything is noted.
    pub(crate) fn record(&mut self) {
        self.mode = Mode::Recording(Vec::new());
    }

    /// Moves what was noted since the last call to the end of `notes`.
    pub(crate) fn take(&mut self, notes: &mut Vec<u8>) {
        if let Mode::Recording(noted) = &mut self.mode {
            notes.append(noted);
        }
    }

    /// From now on these notes are played.
    pub(crate) fn play(&mut self, notes: &[u8]) {
        self.mode = Mode::Playing(Playing {
            notes: notes.to_vec(),
            ..Playing::default()
        });
    }

    /// How the notes fitted what was wanted since [`Tape::play`].
    pub(crate) fn fit(&self) -> Fit {
        match &self.mode {
            Mode::Playing(playing) if playing.short => Fit::Short,
            Mode::Playing(playing) if playing.used < playing.notes.len() => {
                Fit::Left(playing.notes.len() - playing.used)
            }
            _ => Fit::Exact,
        }
    }

    /// A random number.
    pub(crate) fn number(&mut self, draw: impl FnOnce() -> u64) -> u64 {
        match &mut self.mode {
            Mode::Off => draw(),
            Mode::Recording(notes) => {
                let number = draw();
                notes.extend_from_slice(&number.to_le_bytes());
                number
            }
            Mode::Playing(playing) => playing.take().map_or_else(draw, u64::from_le_bytes),
        }
    }

    /// A verdict about contents that a recording does not hold.
    pub(crate) fn verdict(&mut self, judge: impl FnOnce() -> u8) -> u8 {
        match &mut self.mode {
            Mode::Off => judge(),
            Mode::Recording(notes) => {
                let verdict = judge();
                notes.push(verdict);
                verdict
            }
            Mode::Playing(playing) => playing.take().map_or_else(judge, u8::from_le_bytes),
        }
    }

    /// As [`Tape::verdict`], for a question with yes and no.
    pub(crate) fn is(&mut self, judge: impl FnOnce() -> bool) -> bool {
        self.verdict(|| u8::from(judge())) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_played_in_its_order_and_a_shortage_is_told() {
        let mut tape = Tape::default();
        assert_eq!(tape.number(|| 5), 5);
        tape.record();
        assert_eq!(tape.number(|| 6), 6);
        assert!(tape.is(|| true));
        assert_eq!(tape.verdict(|| 2), 2);
        let mut notes = Vec::new();
        tape.take(&mut notes);
        assert_eq!(notes.len(), 10);
        tape.play(&notes);
        assert_eq!(tape.fit(), Fit::Left(10));
        assert_eq!(tape.number(|| 0), 6);
        assert!(tape.is(|| false));
        assert_eq!(tape.verdict(|| 0), 2);
        assert_eq!(tape.fit(), Fit::Exact);
        assert_eq!(tape.verdict(|| 9), 9);
        assert_eq!(tape.fit(), Fit::Short);
    }
}
