//! Where an NBD export is, as an URI names it.

/// An export as an URI names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The path of a Unix socket; none for TCP.
    pub(crate) unix: Option<String>,
    /// `HOST:PORT`; empty for a Unix socket.
    pub(crate) address: String,
    /// The name of the export, perhaps empty.
    pub(crate) export: String,
}

impl Place {
    /// Understands `nbd+unix:///EXPORT?socket=PATH` and `nbd://HOST[:PORT]/EXPORT`.
    pub(crate) fn parse(uri: &str) -> Option<Place> {
        if let Some(rest) = uri.strip_prefix("nbd+unix://") {
            let (path, query) = rest.split_once('?')?;
            let socket = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("socket="))?;
            return Some(Place {
                unix: Some(decoded(socket)?),
                address: String::new(),
                export: decoded(path.trim_start_matches('/'))?,
            });
        }
        let rest = uri.strip_prefix("nbd://")?;
        let (address, export) = rest.split_once('/').unwrap_or((rest, ""));
        let with_port = address.rsplit_once(':').is_some_and(|(_, port)| {
            !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
        });
        Some(Place {
            unix: None,
            address: if with_port {
                address.to_owned()
            } else {
                format!("{address}:10809")
            },
            export: decoded(export)?,
        })
    }
}

/// Undoes the percent signs of an URI.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_kinds_of_uris_are_understood() {
        let unix = Place::parse("nbd+unix:///r0/0?socket=/run/a%20b/nbd.sock");
        let unix = unix.unwrap_or_else(|| panic!("not understood"));
        assert_eq!(unix.unix.as_deref(), Some("/run/a b/nbd.sock"));
        assert_eq!(unix.export, "r0/0");
        let tcp = Place::parse("nbd://[::1]:1234/r0");
        let tcp = tcp.unwrap_or_else(|| panic!("not understood"));
        assert_eq!(
            (tcp.address.as_str(), tcp.export.as_str()),
            ("[::1]:1234", "r0")
        );
        let port = Place::parse("nbd://host/x").map(|place| place.address);
        assert_eq!(port.as_deref(), Some("host:10809"));
        assert_eq!(Place::parse("http://host/"), None);
    }

    proptest! {
        #[test]
        fn no_uri_makes_it_panic(text in "(nbd(\\+unix)?://)?\\PC{0,40}") {
            let _ = Place::parse(&text);
        }
    }
}
