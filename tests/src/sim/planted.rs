//! Deliberate mistakes of the engine, each of which the simulator must find: what it cannot find there it would not find in
//! honest code either.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tandem_replicator::Protocol;
use tandem_replicator::planted::Planted;

use super::campaign::{FIRST_DIGEST_SEED, Failure, Spec, run};
use super::crash::{self, Depth, Point, STORIES};

/// Histories within which a planted mistake must show.
pub const SEEDS_MAX: u64 = 300;

/// What found a planted mistake, and what the oracle said.
#[derive(Debug)]
pub enum By {
    /// A history from a seed.
    Seed(u64, Failure),
    /// A crash point of a story.
    Crash(&'static str, Point, String),
}

/// Where to look first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Histories from this seed on.
    Seed(u64),
    /// The crash points of this story.
    Story(&'static str),
}

/// How the search for a planted mistake ended.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub name: &'static str,
    /// What is wrong.
    pub text: &'static str,
    /// The protocol of the histories.
    pub protocol: Protocol,
    /// Histories that were run.
    pub runs: u64,
    /// What found it.
    pub by: Option<By>,
}

/// The protocol under which a mistake matters.
#[must_use]
pub fn protocol_of(bug: Planted) -> Protocol {
    match bug {
        Planted::EpochStaysOpen
        | Planted::OverlapEpochs
        | Planted::IgnorePeerOverlap
        | Planted::CrashedIsTarget
        | Planted::TrustTargetsFlush
        | Planted::DemoteBeforeConfirmed
        | Planted::AnswerOnItsWay => Protocol::A,
        _ => Protocol::C,
    }
}

/// Where a mistake shows at once: what the last complete search found. Where it no longer does, the search goes on.
#[must_use]
pub fn hint(bug: Planted) -> Hint {
    match bug {
        Planted::IgnorePeerOverlap => Hint::Seed(26),
        Planted::MergeWithoutLock | Planted::ForgetEdge => Hint::Seed(2000),
        Planted::AcceptSplitBrain => Hint::Seed(57),
        Planted::LogInCache => Hint::Seed(8),
        Planted::FlushWithoutDisk => Hint::Seed(14),
        Planted::ReadStaleBlock => Hint::Seed(17),
        Planted::BarrierAckWithoutFlush | Planted::ForgetUnconfirmedWrite => Hint::Seed(33),
        Planted::ForgetMissedWrite => Hint::Seed(2),
        Planted::AnswerWhileSuspended => Hint::Seed(5),
        Planted::ForgetOutdated => Hint::Seed(13),
        Planted::ClearPartOfBlock => Hint::Seed(1),
        Planted::SuperblockInCache => Hint::Seed(3),
        Planted::ClearBitmapEarly => Hint::Seed(41),
        Planted::UpToDateWithoutFlush => Hint::Seed(12),
        Planted::SourceReadsDuringWrite => Hint::Seed(136),
        Planted::TargetOverwritesNewer => Hint::Seed(15),
        Planted::StartBeforeLog => Hint::Story("the first writes of a Primary"),
        Planted::BarrierAckTooEarly | Planted::AckBeforeDisk | Planted::FlushWithoutPeer => {
            Hint::Story("the writes of a peer")
        }
        Planted::DemoteWithoutFlush | Planted::ReleaseMarkBeforeBits => {
            Hint::Story("a switchover, the old Primary")
        }
        Planted::NoFuaWhileDiskless => Hint::Story("writes without a disk, the peer"),
        Planted::BitmapInCache => Hint::Story("an attach after a crash"),
        Planted::NoFlushAtAttach => Hint::Story("an attach after a process was killed alone"),
        Planted::TargetNotMarked | Planted::ClearBitsBeforeData => {
            Hint::Story("a decided split brain, the target")
        }
        Planted::EvictBeforeBits => Hint::Story("an eviction from the activity log"),
        Planted::EpochStaysOpen | Planted::OverlapEpochs => {
            Hint::Story("the writes of a peer, protocol A")
        }
        Planted::CrashedIsTarget => Hint::Story("the last writes of a Primary, protocol A"),
        Planted::DemoteBeforeConfirmed => {
            Hint::Story("a demotion without a disk, protocol A, the peer")
        }
        Planted::AnswerOnItsWay => Hint::Seed(5),
        Planted::TrustTargetsFlush => Hint::Seed(17),
        Planted::AnswerBeforeGeneration => Hint::Story("a lost link, the Primary"),
        Planted::NoFlushAtLinkLoss => Hint::Story("a lost link, the Secondary"),
        Planted::CountStaleCopy => Hint::Story("a Primary is the target of a resync, the source"),
        Planted::ForgetLostFlush => Hint::Story("a disk and its peer are lost"),
        Planted::ForgetPeersOnlyCopy => Hint::Story("writes without a disk, elsewhere"),
        Planted::IgnoreExposedGeneration => Hint::Story("writes without a disk, the peer"),
        Planted::PromoteWithoutMark => Hint::Story("a promotion, its superblock is slow"),
        Planted::TakeAnyDigestForEqual | Planted::VerifyMarksNothing => {
            Hint::Seed(FIRST_DIGEST_SEED)
        }
        Planted::VerifyDuringWrite => Hint::Seed(FIRST_DIGEST_SEED + 7),
        _ => Hint::Seed(0),
    }
}

/// Mistakes with digests show in the histories that have them.
fn first_seed(bug: Planted) -> u64 {
    match bug {
        Planted::TakeAnyDigestForEqual
        | Planted::VerifyDuringWrite
        | Planted::VerifyMarksNothing => FIRST_DIGEST_SEED,
        _ => 0,
    }
}

/// Looks where the hint says, then at the crash points of all stories, then at histories from seed 0 on.
#[must_use]
pub fn search(
    bug: Planted,
    name: &'static str,
    text: &'static str,
    hint: Hint,
    seeds: u64,
) -> Found {
    let mut found = Found {
        name,
        text: text.trim(),
        protocol: protocol_of(bug),
        runs: 0,
        by: None,
    };
    match hint {
        Hint::Seed(seed) => found.run(bug, seed..seed + 1),
        Hint::Story(name) => found.cut(bug, |story| story == name),
    }
    if found.by.is_none() {
        found.cut(bug, |_| true);
    }
    if found.by.is_none() {
        let first = first_seed(bug);
        found.run(bug, first..first + seeds);
    }
    found
}

impl Found {
    fn run(&mut self, bug: Planted, seeds: Range<u64>) {
        for seed in seeds {
            self.runs += 1;
            let spec = Spec {
                planted: Some(bug),
                ..Spec::new(seed, self.protocol)
            };
            if let Err(failure) = run(spec) {
                self.by = Some(By::Seed(seed, failure));
                return;
            }
        }
    }

    fn cut(&mut self, bug: Planted, which: impl Fn(&str) -> bool) {
        let protocol = self.protocol;
        let stories = STORIES.iter().filter(|story| story.protocol() == protocol);
        for story in stories.filter(|story| which(story.name)) {
            if let Err((point, why)) = crash::search(story, Some(bug), Depth::Quick) {
                let why = why.lines().last().unwrap_or_default().to_owned();
                self.by = Some(By::Crash(story.name, point, why));
                return;
            }
        }
    }
}

/// Searches for all of them on some threads, in the order of [`Planted::ALL`].
#[must_use]
pub fn search_all(
    threads: usize,
    seeds: u64,
    wanted: impl Fn(Planted) -> bool + Sync,
    hint: impl Fn(Planted) -> Hint + Sync,
) -> Vec<Found> {
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some((bug, name, text)) =
                    Planted::ALL.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    if !wanted(*bug) {
                        continue;
                    }
                    let found = search(*bug, name, text, hint(*bug), seeds);
                    if let Ok(mut all) = all.lock() {
                        all.push(found);
                    }
                }
            });
        }
    });
    let mut all = all
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let place = |name: &str| Planted::ALL.iter().position(|(_, other, _)| *other == name);
    all.sort_by_key(|found| place(found.name));
    all
}
