//! Turns the effects of the engine into system calls and completions into events.
//!
//! Commands of an administrator speak to a running daemon through [`control::ControlClient`].

pub mod control;
mod disk;
mod handlers;
mod peer;
pub mod places;
mod process;
mod settings;
mod socket;

pub use handlers::Handlers;
pub use settings::SettingError;
