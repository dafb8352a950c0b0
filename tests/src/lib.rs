//! The simulator, end-to-end tests, interoperation with the kernel, failover.

pub mod golden;
