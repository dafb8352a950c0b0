//! Connections that wait for their next request: they make room for others when there is no place left.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long a connection has a claim to its place without a request: between two commands of one program far less passes.
const CLAIM: Duration = Duration::from_secs(1);

/// The connections that wait, in the order in which they began to.
#[derive(Clone, Debug, Default)]
pub(super) struct Idle {
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    connections: BTreeMap<u64, (Instant, oneshot::Sender<()>)>,
}

/// One connection that waits; it is forgotten when this is dropped.
#[derive(Debug)]
pub(super) struct Rest {
    idle: Idle,
    number: u64,
    /// Told when the place is wanted.
    pub(super) wanted: oneshot::Receiver<()>,
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection begins to wait.
    pub(super) fn rest(&self, now: Instant) -> Rest {
        let (sender, wanted) = oneshot::channel();
        let mut waiting = self.lock();
        let number = waiting.next;
        waiting.next += 1;
        waiting.connections.insert(number, (now, sender));
        Rest {
            idle: self.clone(),
            number,
            wanted,
        }
    }

    /// Tells the connection that has waited longest to leave, if it has no claim any more.
    pub(super) fn make_room(&self, now: Instant) {
        let mut waiting = self.lock();
        let Some(longest) = waiting.connections.first_entry() else {
            return;
        };
        if now.saturating_duration_since(longest.get().0) >= CLAIM {
            let (_, sender) = longest.remove();
            // It may be leaving by itself.
            let _ = sender.send(());
        }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.idle.lock().connections.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_makes_room_once_its_claim_is_over() {
        let idle = Idle::default();
        let start = Instant::now();
        let mut first = idle.rest(start);
        let mut second = idle.rest(start + CLAIM / 2);
        idle.make_room(start + CLAIM / 2);
        assert!(first.wanted.try_recv().is_err(), "it has a claim");
        idle.make_room(start + CLAIM);
        assert_eq!(first.wanted.try_recv(), Ok(()));
        idle.make_room(start + CLAIM);
        assert!(second.wanted.try_recv().is_err(), "it has a claim");
        drop(second);
        idle.make_room(start + 3 * CLAIM);
        assert!(idle.lock().connections.is_empty());
    }
}
