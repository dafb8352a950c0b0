//! A connection that goes by an older definition than the last one.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::messages::ResourceDefinition;

/// Options of the section `net` about which the two nodes have to agree: with different ones they do not connect, or part
/// (docs/spec/wire-protocol.md, P_PROTOCOL and P_SYNC_PARAM89).
const OF_BOTH: [&str; 11] = [
    "protocol",
    "after-sb-0pri",
    "after-sb-1pri",
    "after-sb-2pri",
    "allow-two-primaries",
    "always-asbp",
    "cram-hmac-alg",
    "shared-secret",
    "data-integrity-alg",
    "verify-alg",
    "csums-alg",
];

/// How a connection differs from its definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutdatedNet {
    /// What has changed: options of the section `net`, and `address`.
    pub changed: Vec<String>,
    /// Some of them have to be the same on both nodes: they do not connect while only one of them goes by the new definition.
    pub concerns_both: bool,
}

impl OutdatedNet {
    /// How a connection that was begun by one definition differs from another one; `None` if it does not.
    #[must_use]
    pub fn between(begun_by: &ResourceDefinition, now: &ResourceDefinition) -> Option<OutdatedNet> {
        let names: BTreeSet<&String> = begun_by.net.keys().chain(now.net.keys()).collect();
        let mut changed: Vec<String> = names
            .into_iter()
            .filter(|name| begun_by.net.get(*name) != now.net.get(*name))
            .cloned()
            .collect();
        let concerns_both = changed.iter().any(|name| OF_BOTH.contains(&name.as_str()));
        if begun_by.connection != now.connection {
            changed.push(String::from("address"));
        }
        (!changed.is_empty()).then_some(OutdatedNet {
            changed,
            concerns_both,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(net: &[(&str, &str)], port: u16) -> ResourceDefinition {
        let net: serde_json::Map<String, serde_json::Value> = net
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).into()))
            .collect();
        let text = serde_json::json!({
            "name": "r0", "volumes": [], "net": net,
            "connection": {
                "my_name": "alpha", "peer_name": "bravo", "node_ids": null,
                "my_address": "10.0.0.1:7788", "peer_address": format!("10.0.0.2:{port}"),
            },
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn what_has_changed_is_named_and_whom_it_concerns() {
        let before = definition(&[("protocol", "C"), ("ping-int", "10")], 7788);
        assert_eq!(OutdatedNet::between(&before, &before), None);
        let quicker = definition(
            &[("protocol", "C"), ("ping-int", "2"), ("timeout", "20")],
            7788,
        );
        let outdated = OutdatedNet::between(&before, &quicker).unwrap();
        assert_eq!(outdated.changed, ["ping-int", "timeout"]);
        assert!(!outdated.concerns_both);
        let moved = OutdatedNet::between(&before, &definition(&[("protocol", "A")], 7789)).unwrap();
        assert_eq!(moved.changed, ["ping-int", "protocol", "address"]);
        assert!(moved.concerns_both);
    }
}
