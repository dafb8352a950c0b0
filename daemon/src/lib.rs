//! Turns the effects of the engine into system calls and completions into events.
//!
//! Commands of an administrator speak to a running daemon through [`control::ControlClient`].

pub mod control;
mod disk;
pub mod places;
mod process;
