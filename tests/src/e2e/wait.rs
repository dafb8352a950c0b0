//! Waiting for a condition, with a deadline and words.

use std::time::{Duration, Instant};

/// Pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks at `condition` until it yields something.
///
/// # Panics
/// After `limit`, saying what was waited for and what `explain` tells about the state of things.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
    explain: impl Fn() -> String,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            start.elapsed() < limit,
            "waited {limit:?} in vain for {what}\n{}",
            explain()
        );
        std::thread::sleep(PAUSE);
    }
}
