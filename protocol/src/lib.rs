//! The packets of the replication link and the messages of the control socket, as bytes. Pure.
//!
//! What is left out: sockets, clocks, threads, and every decision. Read [`packet::Frame`] (one packet
//! and the volume it is for) and [`framing::Framer`] (a byte stream becomes frames) first; a frame
//! becomes bytes again by [`packet::Frame::encode`].
//!
//! The facts are in `docs/spec/wire-protocol.md`, cited below as "wire" with the section.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod auth;
pub mod bitmap_code;
pub mod blanking;
mod codec;
pub mod command;
pub mod control;
pub mod digest;
mod error;
pub mod features;
pub mod framing;
pub mod header;
pub mod limits;
pub mod packet;
pub mod packets;
pub mod state_word;

pub use command::{Command, Socket};
pub use error::ProtocolError;
pub use framing::Framer;
pub use header::HeaderKind;
pub use packet::{Encoded, Frame, Packet};
pub use state_word::WireState;
