//! Checks that need more than one statement, and facts derived from a whole resource.

use crate::model::Resource;

/// See [`Resource::implicit_node_ids`].
pub(crate) fn implicit_node_ids(resource: &Resource) -> Option<[u8; 2]> {
    let [a, b] = resource.hosts.as_slice() else {
        return None;
    };
    let written = resource
        .connections
        .iter()
        .any(|c| c.source != crate::ConnectionSource::Implicit);
    if written || a.node_id.is_some() || b.node_id.is_some() {
        return None;
    }
    let sum = |text: &str| address_checksum(text.as_bytes());
    let (a, b) = (sum(&a.address.as_ref()?.ip), sum(&b.address.as_ref()?.ip));
    match a.cmp(&b) {
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some([0, 1]),
        std::cmp::Ordering::Less => Some([1, 0]),
    }
}

/// CRC-32C of an address text, as the signed number that decides over node ids (spec section 1.7).
fn address_checksum(text: &[u8]) -> i32 {
    const START: u32 = 0x1a65_6f21;
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = START;
    for &byte in text {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ POLYNOMIAL
            } else {
                crc >> 1
            };
        }
    }
    crc.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_signed_checksum_gets_id_zero() {
        let first = [
            ("192.168.180.20", "192.168.180.10", false),
            ("172.17.18.191", "172.17.18.192", true),
            ("10.1.1.1", "10.1.1.2", false),
            ("10.0.0.3", "10.0.0.4", true),
            ("fd00:1::abcd", "fd00:2::9", false),
        ];
        for (a, b, a_is_zero) in first {
            assert_eq!(
                address_checksum(a.as_bytes()) > address_checksum(b.as_bytes()),
                a_is_zero,
                "{a} {b}"
            );
        }
    }
}
