//! Black boxes: whatever happens in a random history, the box of a process replays to the same effects, and holds neither data nor
//! secrets; whatever is in a file, its reader says what is wrong with it.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use proptest::prelude::*;
use tandem_replicator::Protocol;
use tandem_replicator::black_box::{BlackBoxError, Entry, Reader};
use tandem_replicator::planted::{Plant, Planted};
use tandem_tests::sim::Spec;
use tandem_tests::sim::black_box::{Verdict, replay};
use tandem_tests::sim::campaign::run_recorded;

/// Histories of each protocol.
const HISTORIES: u64 = 12;

fn boxes(seed: u64, protocol: Protocol) -> Vec<Vec<u8>> {
    let (outcome, boxes) = run_recorded(Spec::new(seed, protocol));
    if let Err(why) = outcome {
        panic!("{why}");
    }
    assert!(boxes.len() >= 2, "each node had a process");
    boxes
}

/// Histories with authentication, data-integrity-alg, csums-alg, crashes, split brains and detaches are among them. The secret that
/// some pairs share would be seen in a box.
#[test]
fn every_process_of_a_random_history_replays_to_the_same_effects_and_keeps_the_secret() {
    let protocols = [Protocol::A, Protocol::B, Protocol::C];
    let threads = protocols.map(|protocol| std::thread::spawn(move || histories(protocol)));
    let found = threads.map(|thread| thread.join().unwrap());
    let events: u64 = found.iter().map(|(events, _)| events).sum();
    assert!(events > 100_000, "only {events} events");
    let authenticated = found.iter().any(|(_, authenticated)| *authenticated);
    assert!(authenticated, "no history had a secret");
}

/// Events that were replayed, and whether a pair had a secret.
fn histories(protocol: Protocol) -> (u64, bool) {
    let (mut events, mut authenticated) = (0, false);
    for seed in 0..HISTORIES {
        for (number, bytes) in boxes(seed, protocol).iter().enumerate() {
            let replayed = replay(bytes, Plant::default(), false).unwrap();
            assert_eq!(
                replayed.verdict,
                Verdict::Same,
                "seed {seed} of {protocol:?}, process {number}: {}\n{}",
                replayed.verdict,
                replayed.story
            );
            assert_eq!(replayed.end, None);
            events += replayed.events;
            let holds = |words: &[u8; 6]| bytes.windows(6).any(|window| window == words);
            assert!(!holds(b"secret"), "seed {seed} of {protocol:?}");
            authenticated |= holds(b"sha256");
        }
    }
    (events, authenticated)
}

#[test]
fn an_engine_with_a_mistake_is_told_apart_at_its_first_other_effect() {
    let differs = (0..20).any(|seed| {
        boxes(seed, Protocol::C).iter().any(|bytes| {
            let plant = Plant::of(Some(Planted::AnswerBeforePeer));
            let replayed = replay(bytes, plant, false).unwrap();
            matches!(&replayed.verdict, Verdict::Differs { what, .. } if what.contains("reply"))
        })
    });
    assert!(differs, "no history shows an answer that came early");
}

#[test]
fn a_box_that_was_cut_off_replays_up_to_its_end() {
    let bytes = boxes(3, Protocol::C).remove(0);
    for part in [3, 5, 7] {
        let cut = &bytes[..bytes.len() * part / 8];
        let replayed = replay(cut, Plant::default(), false).unwrap();
        assert_eq!(replayed.verdict, Verdict::Same);
        assert!(replayed.events > 0);
    }
}

fn read_all(bytes: &[u8]) -> Result<u64, BlackBoxError> {
    let mut reader = Reader::open(bytes)?;
    let mut events = 0;
    while let Some(entry) = reader.next()? {
        events += u64::from(matches!(entry, Entry::Happened(..)));
    }
    Ok(events)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_damaged_box_is_read_or_refused_in_words(
        at in 0.0f64..1.0,
        byte in any::<u8>(),
        keep in 0.0f64..1.0,
    ) {
        static BOX: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let whole = BOX.get_or_init(|| {
            let mut bytes = boxes(5, Protocol::C).remove(1);
            bytes.truncate(40_000);
            bytes
        });
        let mut bytes = whole.clone();
        bytes.truncate((bytes.len() as f64 * keep) as usize);
        // Half of the damage is in the head.
        let place = if byte & 1 == 0 { at * 300.0 } else { at * bytes.len() as f64 } as usize;
        if let Some(at) = bytes.get_mut(place) {
            *at = byte;
        }
        match read_all(&bytes) {
            Ok(events) => prop_assert!(events <= 40_000),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn anything_else_is_no_black_box(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(read_all(&bytes), Err(BlackBoxError::NotABlackBox));
        let mut marked = b"tandembb\x01\x00".to_vec();
        marked.extend_from_slice(&bytes);
        // A head of random bytes is almost never one; if it is, nothing bad comes of it.
        let _ = read_all(&marked);
    }
}
