//! Every durable sequence of the engine, cut at every I/O, with choices of what a volatile cache kept (sim::crash).

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tandem_tests::sim::crash::{Depth, STORIES, search};

#[test]
fn no_crash_point_of_any_durable_sequence_loses_anything() {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(story) = STORIES.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match search(story, None, Depth::Quick) {
                        Ok(searched) => {
                            println!("{}: {searched:?}", story.name);
                            assert!(searched.points > 2, "{}: nothing is written", story.name);
                        }
                        Err((point, why)) => {
                            let text = format!("{why}\n{}: {point:?}", story.name);
                            failures.lock().unwrap().push(text);
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
