//! Digests of payloads on the wire: `data-integrity-alg` (wire-protocol.md 3.6, 4.5).
//!
//! The digest covers the payload alone. What this node sends carries one by its own option; what arrives is judged by the
//! algorithm that the peer named last. A payload whose digest does not match is never used: the connection is dropped, and
//! made again, since nothing that follows on a stream that lies can be trusted. Whatever was on its way counts as missed.
//!
//! Payloads are hashed when their packet is handled: at most what the data socket may buffer (2 MiB) in one go.

use alloc::format;
use alloc::string::String;

use bytes::Bytes;
use tandem_protocol::digest::DigestAlgorithm;
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::{Data, Protocol};

use super::Resource;
use crate::options::NetOptions;

/// The first of the algorithms of the `net` section that this build does not have: the option and its value.
pub(super) fn unknown_algorithm(net: &NetOptions) -> Option<(&'static str, &str)> {
    [
        ("data-integrity-alg", &net.integrity_alg),
        ("csums-alg", &net.csums_alg),
        ("verify-alg", &net.verify_alg),
    ]
    .into_iter()
    .map(|(option, name)| (option, name.as_str()))
    .find(|(_, name)| !name.is_empty() && DigestAlgorithm::from_name(name).is_none())
}

impl Resource {
    /// The algorithm of what this node sends.
    pub(super) fn own_integrity(&self) -> Option<DigestAlgorithm> {
        let net = self.connection.net.as_ref()?;
        DigestAlgorithm::from_name(&net.integrity_alg)
    }

    /// What goes between the head of a data packet and its payload; empty without an algorithm.
    pub(super) fn integrity_digest(&self, payload: &[u8]) -> Bytes {
        self.own_integrity()
            .map_or_else(Bytes::new, |algorithm| algorithm.digest(payload).into())
    }

    /// The peer named the algorithm of what it sends from now on. The framer reads the same packet for the length.
    pub(super) fn follow_peer_integrity(&mut self, peer: &Protocol) -> Result<(), String> {
        let name = peer.integrity_alg.as_str();
        let algorithm = DigestAlgorithm::from_name(name);
        if algorithm.is_none() && !name.is_empty() {
            return Err(format!("data-integrity-alg {name} is not known here"));
        }
        if let Some(link) = self.connection.link.as_mut() {
            link.peer_integrity = algorithm;
        }
        Ok(())
    }

    /// Judges the payload of a packet that arrived. The error is a protocol error, in words.
    pub(super) fn check_integrity(&mut self, packet: &Packet) -> Result<(), String> {
        let link = self.connection.link.as_ref();
        let Some(algorithm) = link.and_then(|link| link.peer_integrity) else {
            return Ok(());
        };
        let (sector, digest, payload) = match packet {
            Packet::Data(data) | Packet::DataReply(data) | Packet::RsDataReply(data) => {
                let Data {
                    sector,
                    digest,
                    payload,
                    ..
                } = data;
                (*sector, digest, payload)
            }
            Packet::Wsame(same) => (same.range.sector, &same.digest, &same.payload),
            _ => return Ok(()),
        };
        if self.tape.is(|| algorithm.matches(payload, digest)) {
            return Ok(());
        }
        Err(format!(
            "digest integrity check FAILED: {} bytes at sector {sector} are not what the peer hashed (data-integrity-alg {algorithm})",
            payload.len()
        ))
    }
}
