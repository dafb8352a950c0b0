//! The simulator, end-to-end tests, interoperation with the kernel, failover.

#![allow(clippy::unwrap_used, clippy::expect_used)] // Test support: a failed step is a failed test.

pub mod e2e;
pub mod golden;
pub mod kernel;
pub mod logwrites;
pub mod sim;
