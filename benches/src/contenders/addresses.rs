//! Loopback addresses of our own: all of 127.0.0.0/8 is there, so that a port need not be guessed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Failure;

const PORT: u16 = 7790;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// An address that is free now and was not given out before by this process.
pub(super) fn fresh() -> Result<SocketAddr, Failure> {
    for _ in 0..1000 {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mixed = std::process::id()
            .wrapping_mul(2_654_435_761)
            .wrapping_add(number.wrapping_mul(40_503));
        let [_, b, c, d] = mixed.to_be_bytes();
        let ip = Ipv4Addr::new(127, b.clamp(1, 254), c, d.clamp(2, 254));
        let address = SocketAddr::new(IpAddr::V4(ip), PORT);
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    let text = String::from("no free loopback address was found in a thousand attempts");
    Err(Failure::Unexpected(text))
}
