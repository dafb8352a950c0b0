//! NBD as a state machine: bytes in, requests and reply pieces out. Pure.
