//! Connections that do not come from the peer: each address is named in the log once in a while, and a scan of ports
//! does not fill it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Wait until an address is named again.
const PAUSE: Duration = Duration::from_secs(3600);

/// Addresses that are remembered; beyond them nobody is named until some are forgotten.
const ADDRESSES_MAX: usize = 32;

/// Who was named, and when.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    named: BTreeMap<IpAddr, Instant>,
}

impl Strangers {
    /// Names `from` in the log unless it was named lately.
    pub(crate) fn refused(&mut self, from: SocketAddr, my: SocketAddr, peer: SocketAddr) {
        if self.is_news(from.ip().to_canonical(), Instant::now()) {
            tracing::warn!(
                "refused a connection from {from} to {my}: the configured peer is {peer}. If it is the peer, correct its \
                 address in the configuration of both nodes, then type there and here: tandem adm adjust all. More from \
                 this address are not named for an hour"
            );
        } else {
            tracing::debug!(%from, "refused a connection: it does not come from the peer");
        }
    }

    fn is_news(&mut self, from: IpAddr, now: Instant) -> bool {
        self.named
            .retain(|_, named| now.saturating_duration_since(*named) < PAUSE);
        if self.named.contains_key(&from) || self.named.len() >= ADDRESSES_MAX {
            return false;
        }
        self.named.insert(from, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_named_once_an_hour_and_a_scan_only_so_often() {
        let mut strangers = Strangers::default();
        let start = Instant::now();
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        assert!(strangers.is_news(address(1), start));
        assert!(!strangers.is_news(address(1), start + Duration::from_secs(3599)));
        assert!(strangers.is_news(address(2), start));
        assert!(strangers.is_news(address(1), start + Duration::from_secs(3600)));
        let later = start + Duration::from_secs(10_000);
        let named = (0..=255).filter(|last| strangers.is_news(address(*last), later));
        assert_eq!(named.count(), ADDRESSES_MAX);
        assert_eq!(strangers.named.len(), ADDRESSES_MAX);
    }
}
