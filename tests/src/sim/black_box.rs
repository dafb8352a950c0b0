//! Black boxes: those of daemons are played again, and simulated nodes write their own, so that random histories prove that a box
//! holds all that a replay needs.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tandem_replicator::black_box::{
    BlackBoxError, Entry, Extent, Mark, Reader, Recorder, Streaming, mark,
};
use tandem_replicator::planted::Plant;
use tandem_replicator::{Effect, Effects, Event, Fit, Resource, ResourceOptions, Time};

use super::trace::{Trace, effect_words, event_words};

/// How a replay came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every event had the effects that were recorded.
    Same,
    /// Only the end of the history is there: nothing could be compared.
    TailOnly,
    /// The engine does something else than the recorded one.
    Differs {
        /// The event, counted from 1.
        event: u64,
        /// What is different.
        what: String,
    },
    /// The engine says that an invariant of its own is broken.
    Invariant {
        /// The event, counted from 1.
        event: u64,
        /// Which one.
        text: String,
    },
    /// The engine fails by an assertion, where the recorded one did.
    FailsAsRecorded {
        /// The event, counted from 1.
        event: u64,
        /// The message.
        text: String,
    },
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Same => f.write_str("same effects as the daemon"),
            Verdict::TailOnly => f.write_str(
                "not replayed: the box has lost the beginning of the history; `tandem daemon --record DIR` records all of it",
            ),
            Verdict::Differs { event, what } => {
                write!(f, "the first difference is at event {event}: {what}")
            }
            Verdict::Invariant { event, text } => {
                write!(f, "an invariant is broken after event {event}: {text}")
            }
            Verdict::FailsAsRecorded { event, text } => write!(
                f,
                "the engine fails at event {event}, as the daemon's did: {text}"
            ),
        }
    }
}

/// A box that was read and, where possible, replayed.
#[derive(Debug)]
pub struct Replayed {
    /// What the box says of itself, in lines.
    pub about: String,
    /// Events that were played (of a tail: read).
    pub events: u64,
    /// Effects that were compared.
    pub effects: u64,
    /// How it came out.
    pub verdict: Verdict,
    /// Why the box ends where it does, if not because it was written then.
    pub end: Option<String>,
    /// The last events and effects in words.
    pub story: String,
}

/// What remains to be done after an entry.
type Step = Result<(), Verdict>;

struct Replay {
    engine: Resource,
    effects: Effects,
    trace: Trace,
    /// An event whose effects are still to come.
    waiting: Option<(Time, Event)>,
    events: u64,
    compared: u64,
    extent: Extent,
}

/// Reads a box, and replays it if it holds the whole history. `live`: prints everything while it happens.
///
/// # Errors
/// It is not a black box, or is damaged.
pub fn replay(bytes: &[u8], plant: Plant, live: bool) -> Result<Replayed, BlackBoxError> {
    let mut reader = Reader::open(bytes)?;
    let head = reader.head().clone();
    let about = format!(
        "resource {}, {}\nwritten by {}: {}",
        head.resource,
        head.extent,
        reader.writer(),
        head.why
    );
    let mut engine = Resource::new(ResourceOptions {
        name: head.resource,
        volumes: head.volumes,
        seed: [0; 32],
    });
    engine.plant(plant);
    let mut replay = Replay {
        engine,
        effects: Effects::new(),
        trace: Trace::new(live),
        waiting: None,
        events: 0,
        compared: 0,
        extent: head.extent,
    };
    let mut end = None;
    let verdict = loop {
        match reader.next() {
            Ok(Some(Entry::Cut(why))) => {
                end = Some(why);
                break replay.all_is_well();
            }
            Ok(Some(entry)) => {
                if let Err(verdict) = replay.entry(entry) {
                    break verdict;
                }
            }
            Ok(None) => break replay.all_is_well(),
            Err(error @ BlackBoxError::EndsEarly { .. }) => {
                end = Some(error.to_string());
                break replay.all_is_well();
            }
            Err(error) => return Err(error),
        }
    };
    Ok(Replayed {
        about,
        events: replay.events,
        effects: replay.compared,
        verdict,
        end,
        story: replay.trace.tail(),
    })
}

impl Replay {
    fn all_is_well(&self) -> Verdict {
        match self.extent {
            Extent::Tail { .. } => Verdict::TailOnly,
            Extent::Whole | Extent::Recording => Verdict::Same,
        }
    }

    fn entry(&mut self, entry: Entry) -> Step {
        let tail = matches!(self.extent, Extent::Tail { .. });
        match entry {
            Entry::Happened(now, event) => {
                self.events += 1;
                self.trace.event(now, 0, &event);
                self.waiting = Some((now, event));
                Ok(())
            }
            Entry::Done { marks, .. } if tail => {
                let now = self.waiting.take().map_or(Time(0), |(now, _)| now);
                for mark in marks {
                    let text = format!("A   > {} {}", mark.kind.name(), mark.subject);
                    self.trace.text(now, text);
                }
                Ok(())
            }
            Entry::Failed { text, .. } if tail => {
                self.trace
                    .text(Time(0), format!("the engine failed: {text}"));
                Ok(())
            }
            Entry::Done { tape, marks } => self.play(&tape, &marks, None),
            Entry::Failed { tape, text } => self.play(&tape, &[], Some(&text)),
            // Taken by the caller.
            Entry::Cut(_) => Ok(()),
        }
    }

    /// Plays the event that waits. `failure`: what the recorded engine said when it failed.
    fn play(&mut self, tape: &[u8], marks: &[Mark], failure: Option<&str>) -> Step {
        let Some((now, event)) = self.waiting.take() else {
            return Ok(());
        };
        self.effects.clear();
        self.engine.play_tape(tape);
        let (engine, effects) = (&mut self.engine, &mut self.effects);
        let words = event_words(&event);
        let outcome = catch_unwind(AssertUnwindSafe(|| engine.handle(now, event, effects)));
        for effect in &self.effects {
            self.trace.effect(now, 0, effect);
        }
        let event = self.events;
        let differs = |what: String| Verdict::Differs {
            event,
            what: format!("{words}: {what}"),
        };
        match (outcome, failure) {
            (Ok(()), None) => {}
            (Ok(()), Some(text)) => {
                return Err(differs(format!(
                    "the daemon failed here ({text}), this engine does not"
                )));
            }
            (Err(panic), None) => {
                return Err(differs(format!(
                    "this engine fails: {}",
                    panic_text(&*panic)
                )));
            }
            (Err(panic), Some(recorded)) => {
                let text = panic_text(&*panic);
                return Err(if text == recorded {
                    Verdict::FailsAsRecorded { event, text }
                } else {
                    differs(format!(
                        "this engine fails with {text:?}, the daemon's with {recorded:?}"
                    ))
                });
            }
        }
        self.compared += marks.len() as u64;
        if let Some(what) = difference(&self.effects, marks) {
            return Err(differs(what));
        }
        match self.engine.tape_fit() {
            Fit::Exact => {}
            Fit::Short => {
                return Err(differs(
                    "the engine wanted more random numbers or verdicts".to_owned(),
                ));
            }
            Fit::Left(_) => {
                return Err(differs(
                    "the engine wanted fewer random numbers or verdicts".to_owned(),
                ));
            }
        }
        self.engine
            .check_invariants()
            .map_err(|text| Verdict::Invariant { event, text })
    }
}

/// The first effect that is not the recorded one, in words.
fn difference(effects: &[Effect], marks: &[Mark]) -> Option<String> {
    let recorded = |mark: &Mark| format!("{} {}", mark.kind.name(), mark.subject);
    let longest = effects.len().max(marks.len());
    (0..longest).find_map(|at| {
        let place = at + 1;
        match (effects.get(at), marks.get(at)) {
            (Some(effect), Some(was)) if mark(effect) == *was => None,
            (Some(effect), Some(was)) => Some(format!(
                "effect {place} of the daemon was \"{}\" (hash {:08x}), here it is \"{}\" (hash {:08x})",
                recorded(was),
                was.hash,
                effect_words(effect),
                mark(effect).hash
            )),
            (Some(effect), None) => Some(format!(
                "effect {place} was none of the daemon's: \"{}\"",
                effect_words(effect)
            )),
            (None, Some(was)) => Some(format!(
                "effect {place} of the daemon, \"{}\", is missing here",
                recorded(was)
            )),
            (None, None) => None,
        }
    })
}

/// The message of a panic.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}

/// What the boxes of simulated nodes say of who wrote them.
const WRITER: &str = "the simulator";

/// Records the processes of a simulated node, one box each.
#[derive(Debug, Default)]
pub struct Boxes {
    running: Option<(Recorder, Vec<u8>)>,
    finished: Vec<Vec<u8>>,
    tape: Vec<u8>,
}

impl Boxes {
    /// A process begins.
    pub fn begin(&mut self, options: &ResourceOptions, engine: &mut Resource) {
        self.end();
        engine.record();
        let mut recorder = Recorder::new(options);
        recorder.start_stream();
        let head = recorder.head(Extent::Recording, WRITER, "a history", 0);
        self.running = Some((recorder, head));
    }

    /// An event comes to it.
    pub fn happened(&mut self, now: Time, event: &Event) {
        if let Some((recorder, _)) = &mut self.running {
            recorder.happened(now, event);
        }
    }

    /// The event was handled; `failure`: its engine failed.
    pub fn done(&mut self, engine: &mut Resource, effects: &[Effect], failure: Option<&str>) {
        let Some((recorder, out)) = &mut self.running else {
            return;
        };
        self.tape.clear();
        engine.take_tape(&mut self.tape);
        match failure {
            None => recorder.done(&self.tape, effects),
            Some(text) => recorder.failed(&self.tape, text),
        }
        let mut entries = Vec::new();
        assert_eq!(recorder.take_stream(&mut entries), Streaming::On);
        out.append(&mut entries);
    }

    /// The process ends.
    pub fn end(&mut self) {
        self.finished
            .extend(self.running.take().map(|(_, out)| out));
    }

    /// The boxes of all processes so far.
    pub fn take(&mut self) -> Vec<Vec<u8>> {
        self.end();
        std::mem::take(&mut self.finished)
    }
}
