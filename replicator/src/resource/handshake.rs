//! The handshake of volumes (state-machine.md 4).
// filled in by link
