//! What a day brings to two daemons with many resources: clients that come, go and vanish, links that are cut, silent, half open or
//! slow, switch-overs, resyncs, verifies; and at the end SIGTERM. From time to time everything is at rest, and what the daemons hold is
//! compared with what they held before.

pub mod fleet;
pub mod gauge;
pub mod ledger;
pub mod person;

mod ending;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use ending::Ending;
use fleet::{Fleet, Side};
use gauge::Held;
use person::{Person, Tally, Tenancy, Ward};

/// How long all persons may take until everything is at rest.
const REST_LIMIT: Duration = Duration::from_secs(300);

/// Descriptors that have been the same for so long are at rest, at the first look.
const DESCRIPTORS_REST: Duration = Duration::from_millis(500);

/// How long another number of descriptors than at the first look may stay the same before it counts.
const DESCRIPTORS_LIMIT: Duration = Duration::from_secs(30);

/// What a day is like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Resources in each daemon.
    pub resources: usize,
    /// How long it is.
    pub length: Duration,
    /// Looks at what the daemons hold, besides the one before the first deed.
    pub looks: u32,
    /// Losses of a link and returns of it that it takes at least.
    pub connects: u64,
    /// Between two deeds of a person.
    pub pause: Duration,
    /// Chooses the deeds.
    pub seed: u64,
    /// Where the files lie.
    pub base: PathBuf,
}

/// Persons; each has every fourth resource.
const PERSONS: usize = 4;

/// Of each person's resources, the first ones have a client that stays.
const RESIDENTS: usize = 2;

/// Everything at rest, at some time of the day.
#[derive(Clone, Debug)]
pub struct Look {
    /// Since the first deed.
    pub at: Duration,
    /// What alpha and bravo hold.
    pub held: [Held; 2],
    /// What was done so far.
    pub tally: Tally,
}

/// What came of a day.
#[derive(Clone, Debug)]
pub struct Day {
    /// Looks.
    pub looks: Vec<Look>,
    /// What was done how often.
    pub tally: Tally,
    /// Writes that were answered.
    pub writes: u64,
    /// How the daemons ended.
    pub ending: Ending,
    /// Runs of the handlers before-resync-target and after-resync-target.
    pub handlers: [usize; 2],
    /// What should not be. Nothing, if all is well.
    pub faults: Vec<Fault>,
}

/// What a day is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matter {
    /// Contents of the disks.
    Disks,
    /// Memory of the daemons.
    Memory,
    /// Their file descriptors.
    Descriptors,
    /// Their ends.
    Ends,
    /// Losses of a link and returns of it.
    Links,
    /// What the daemons, and the clients, were told.
    Trouble,
}

/// Something that should not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What it concerns.
    pub matter: Matter,
    /// What it is.
    pub words: String,
}

impl Matter {
    /// All of them.
    pub const ALL: [Matter; 6] = [
        Matter::Disks,
        Matter::Memory,
        Matter::Descriptors,
        Matter::Ends,
        Matter::Links,
        Matter::Trouble,
    ];

    /// The rule that is kept if there is no fault.
    #[must_use]
    pub fn rule(self, plan: &Plan) -> String {
        match self {
            Matter::Disks => {
                "both disks of each resource are equal and hold every answered write".to_owned()
            }
            Matter::Memory => format!(
                "resident memory at rest, without the black boxes: the most in the second half is at most {} % above the most in the second quarter",
                gauge::GROWTH_PERCENT
            ),
            Matter::Descriptors => {
                "open descriptors at rest: as many as before the first deed".to_owned()
            }
            Matter::Ends => format!(
                "SIGTERM: exit code 0 in at most {} s, all metadata in order; clients of the other daemon go on",
                ending::END_LIMIT.as_secs()
            ),
            Matter::Links => format!("at least {} links lost and back", plan.connects),
            Matter::Trouble => {
                "no error in a log, no split brain, no failed disk, no error for a client"
                    .to_owned()
            }
        }
    }

    /// A fault.
    pub(crate) fn fault(self, words: impl Into<String>) -> Fault {
        Fault {
            matter: self,
            words: words.into(),
        }
    }
}

impl Look {
    /// The heading of the lines.
    pub const HEADING: &'static str = "  min | links lost and back | NBD clients | alpha RSS, black boxes, rest KiB | fds | threads | CPU s | bravo RSS, black boxes, rest KiB | fds | threads | CPU s";

    /// A line of the table.
    #[must_use]
    pub fn line(&self) -> String {
        let node = |held: &Held| {
            format!(
                "{}, {}, {} | {} | {} | {:.0}",
                held.rss,
                held.boxes,
                held.working(),
                held.descriptors,
                held.threads,
                held.cpu.as_secs_f64()
            )
        };
        format!(
            "{:5.1} | {} | {} | {} | {}",
            self.at.as_secs_f64() / 60.0,
            connects(&self.tally),
            self.tally.get("clients that came and went").unwrap_or(&0),
            node(&self.held[0]),
            node(&self.held[1])
        )
    }
}

/// Losses of a link that was there again afterwards.
#[must_use]
pub fn connects(tally: &Tally) -> u64 {
    let kinds = [
        "disconnect and connect",
        "links cut",
        "silent peers",
        "half-open links",
    ];
    kinds.iter().filter_map(|kind| tally.get(kind)).sum()
}

/// Lives a day; `tell` hears of each look.
///
/// # Panics
/// When a step fails; what is judged at the end is in the result.
pub fn run(plan: &Plan, mut tell: impl FnMut(&Look)) -> Day {
    // One link of each person can be disturbed; it is not among those whose client stays.
    let disturbed: Vec<usize> = (0..PERSONS)
        .map(|person| person + PERSONS * RESIDENTS)
        .collect();
    let mut fleet = Fleet::configured(&plan.base, plan.resources, &disturbed);
    fleet.bring_up();
    let (looks, mut wards, tally) = live(plan, &fleet, &mut tell);
    let mut faults = judge(plan, &looks, &tally);
    for ward in &mut wards {
        ward.open(&fleet);
    }
    let ending = ending::end(&mut fleet, &mut wards, &mut faults);
    for handler in [
        "split-brain",
        "pri-on-incon-degr",
        "local-io-error",
        "out-of-sync",
    ] {
        let calls = fleet.calls(handler);
        if calls > 0 {
            faults.push(Matter::Trouble.fault(format!("{handler} was called {calls} times")));
        }
    }
    Day {
        looks,
        tally,
        writes: wards.iter().map(Ward::writes).sum(),
        ending,
        handlers: ["before-resync-target", "after-resync-target"].map(|name| fleet.calls(name)),
        faults,
    }
}

fn judge(plan: &Plan, looks: &[Look], tally: &Tally) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (index, side) in [Side::Alpha, Side::Bravo].into_iter().enumerate() {
        let held: Vec<Held> = looks.iter().map(|look| look.held[index]).collect();
        let of = |matter: Matter, words| matter.fault(format!("{side:?}: {words}"));
        let grown = gauge::growth(&held).into_iter();
        faults.extend(grown.map(|words| of(Matter::Memory, words)));
        let open = gauge::descriptors(&held).into_iter();
        faults.extend(open.map(|words| of(Matter::Descriptors, words)));
    }
    if connects(tally) < plan.connects {
        let done = connects(tally);
        faults.push(Matter::Links.fault(format!("only {done}")));
    }
    faults
}

/// What a person tells.
enum Word {
    /// Everything of this person is at rest.
    Rest(Tally),
    /// The day is over, or it ended in a panic.
    Gone,
}

/// Tells that a person is gone, however that comes.
struct Farewell(Sender<Word>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.send(Word::Gone).ok();
    }
}

/// What all persons see.
struct Bell {
    rest: AtomicBool,
    over: AtomicBool,
}

fn live(plan: &Plan, fleet: &Fleet, tell: &mut impl FnMut(&Look)) -> (Vec<Look>, Vec<Ward>, Tally) {
    let bell = Bell {
        rest: AtomicBool::new(false),
        over: AtomicBool::new(false),
    };
    let (words, heard) = channel();
    std::thread::scope(|scope| {
        let mut waves = Vec::new();
        let mut persons = Vec::new();
        for number in 0..PERSONS {
            let (wave, waved) = channel();
            waves.push(wave);
            let (bell, words) = (&bell, words.clone());
            let wards: Vec<Ward> = (number..plan.resources)
                .step_by(PERSONS)
                .enumerate()
                .map(ward)
                .collect();
            let person = Person::new(fleet, wards, plan.seed + number as u64);
            persons.push(scope.spawn(move || work(person, plan.pause, bell, &words, &waved)));
        }
        drop(words);
        let looks = watch(plan, fleet, &bell, &heard, &waves, tell);
        bell.over.store(true, Ordering::SeqCst);
        drop(waves);
        let (mut wards, mut tally) = (Vec::new(), Tally::new());
        for person in persons {
            let (cared, done) = person.join().expect("a person's day ends well");
            wards.extend(cared);
            add(&mut tally, &done);
        }
        (looks, wards, tally)
    })
}

fn ward((place, number): (usize, usize)) -> Ward {
    let tenancy = if place < RESIDENTS {
        Tenancy::Let
    } else {
        Tenancy::Empty
    };
    Ward::new(number, tenancy)
}

fn add(sum: &mut Tally, more: &Tally) {
    for (deed, count) in more {
        *sum.entry(deed).or_default() += count;
    }
}

/// A person's day.
fn work(
    mut person: Person<'_>,
    pause: Duration,
    bell: &Bell,
    words: &Sender<Word>,
    waved: &Receiver<()>,
) -> (Vec<Ward>, Tally) {
    let _farewell = Farewell(words.clone());
    while !bell.over.load(Ordering::SeqCst) {
        if bell.rest.load(Ordering::SeqCst) {
            person.close();
            words.send(Word::Rest(person.tally().clone())).ok();
            if waved.recv().is_err() {
                break;
            }
            person.open();
        }
        person.act();
        // The clients that stay are not all that a machine has to do.
        std::thread::sleep(pause);
    }
    person.close();
    person.leave()
}

/// Looks at what the daemons hold, from time to time; returns early when a person is gone.
fn watch(
    plan: &Plan,
    fleet: &Fleet,
    bell: &Bell,
    heard: &Receiver<Word>,
    waves: &[Sender<()>],
    tell: &mut impl FnMut(&Look),
) -> Vec<Look> {
    let start = Instant::now();
    let mut looks = Vec::new();
    for number in 0..=plan.looks {
        let due = plan.length * number / plan.looks.max(1);
        match heard.recv_timeout(due.saturating_sub(start.elapsed())) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return looks,
        }
        bell.rest.store(true, Ordering::SeqCst);
        let mut tally = Tally::new();
        for _ in waves {
            match heard.recv_timeout(REST_LIMIT) {
                Ok(Word::Rest(done)) => add(&mut tally, &done),
                _ => return looks,
            }
        }
        let look = Look {
            at: start.elapsed(),
            held: [(Side::Alpha, 0), (Side::Bravo, 1)].map(|(side, index)| {
                let first = looks
                    .first()
                    .map(|look: &Look| look.held[index].descriptors);
                let held = held(fleet, side, first);
                // Asking for them takes a while, and only a judge needs them.
                let judged = plan.looks as usize + 1 >= gauge::LOOKS_MIN;
                let boxes = if judged { fleet.boxes_kib(side) } else { 0 };
                Held { boxes, ..held }
            }),
            tally,
        };
        tell(&look);
        looks.push(look);
        bell.rest.store(false, Ordering::SeqCst);
        for wave in waves {
            wave.send(()).ok();
        }
    }
    looks
}

/// What a daemon holds once its descriptors are those of the first look, or have been the same for a while: a connection that was cut
/// on the way may take a timeout to be noticed.
fn held(fleet: &Fleet, side: Side, first: Option<u64>) -> Held {
    let pid = fleet.node(side).pid().expect("the daemon runs");
    let mut last = (Held::by(pid), Instant::now());
    let done = |held: &Held, since: Instant| match first {
        Some(first) => held.descriptors == first || since.elapsed() > DESCRIPTORS_LIMIT,
        None => since.elapsed() > DESCRIPTORS_REST,
    };
    while !done(&last.0, last.1) {
        std::thread::sleep(DESCRIPTORS_REST / 10);
        let now = Held::by(pid);
        let same = now.descriptors == last.0.descriptors;
        last = (now, if same { last.1 } else { Instant::now() });
    }
    last.0
}
