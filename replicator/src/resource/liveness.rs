//! Watching a link (state-machine.md 8.1).
// filled in by link

/// Pings and timeouts.
#[derive(Debug, Default)]
pub(crate) struct Liveness {}
