//! The engine: decides everything, does nothing. Pure.
