//! Making a link (wire-protocol.md 1.2).
// filled in by link

/// Attempts under way.
#[derive(Debug, Default)]
pub(crate) struct Dialling {}
