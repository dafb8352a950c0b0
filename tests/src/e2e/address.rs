//! Loopback addresses that no other test uses: all of 127.0.0.0/8 is ours, so that ports need not be guessed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// The port on which nodes listen.
pub const PORT: u16 = 7788;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A loopback address that is free right now and was not given out before in this process.
///
/// # Panics
/// When none is free.
pub fn fresh() -> SocketAddr {
    for _ in 0..1000 {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        // 22 bits of the process and of the counter are spread over the last three octets.
        let mixed = process
            .wrapping_mul(2_654_435_761)
            .wrapping_add(number.wrapping_mul(40_503));
        let [_, b, c, d] = (mixed ^ number).to_be_bytes();
        let ip = Ipv4Addr::new(127, b.clamp(1, 254), c, d.clamp(2, 254));
        let address = SocketAddr::new(IpAddr::V4(ip), PORT);
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free loopback address");
}
