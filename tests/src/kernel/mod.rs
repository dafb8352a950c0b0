//! Interoperation with the DRBD 8.4 of a Linux kernel, which runs in a virtual machine of `tests/lab`.
//!
//! One machine serves all tests of a process: each test has a resource of its own in it, with a minor, a port and a
//! slice of the disk. Tests that crash a machine or pull its cable
//! take turns at a second one ([`Machine::breakable`]). Both machines end with the process. After each test the kernel's messages about its resource are judged ([`messages`]): what
//! two healthy kernel nodes never said in the golden captures is a failure, unless the test announced it.

pub mod couple;
pub mod gate;
pub mod machine;
pub mod messages;
pub mod node;
pub mod record;
pub mod tap;

pub use couple::{Couple, Dial, Setup, Wire};
pub use machine::Machine;
pub use node::{Health, KernelNode};

/// Bytes that differ from block to block and from seed to seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
