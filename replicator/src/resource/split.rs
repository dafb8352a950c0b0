//! Split brain (state-machine.md 5).
// filled in by link
