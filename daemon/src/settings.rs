//! From a definition (names and texts, as drbd.conf has them) to what the engine and the sockets obey.
//!
//! Whatever is not obeyed is named: refused where ignoring it could cost data or reveal it, a warning otherwise
//! (docs/spec/config-and-cli.md section 2).

use std::time::Duration;

use tandem_replicator::{DiskOptions, NetOptions, OnIoError, Protocol};

use crate::control::messages::{Options, ResourceDefinition};

/// A definition that cannot be obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingError {
    /// A value outside its type or range.
    #[error("{section} option {name}: {value:?} is not {expected}")]
    BadValue {
        /// `net`, `disk` or `options`.
        section: &'static str,
        /// The option.
        name: String,
        /// What was given.
        value: String,
        /// What would have been right.
        expected: String,
    },
    /// An option that this software must not ignore and cannot obey.
    #[error("{section} option {name} {value} is not supported: {reason}")]
    NotSupported {
        /// `net`, `disk` or `options`.
        section: &'static str,
        /// The option.
        name: String,
        /// What was given.
        value: String,
        /// Why it is not simply ignored.
        reason: &'static str,
    },
    /// No option of this name.
    #[error("there is no {section} option {name}")]
    Unknown {
        /// `net`, `disk` or `options`.
        section: &'static str,
        /// The option.
        name: String,
    },
    /// The definition contradicts itself.
    #[error("{0}")]
    Contradiction(String),
}

/// Sizes of the sockets' buffers, in bytes; 0: the system's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BufferSizes {
    pub(crate) send: u32,
    pub(crate) receive: u32,
}

/// Options that have no effect here, with their defaults: a warning if they are set to anything else. An empty default: any value warns.
const NET_WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("unplug-watermark", "128"),
    ("on-disconnect", "reconnect"),
    ("allow-two-primaries", "no"),
    ("tcp-cork", "yes"),
    ("on-congestion", "block"),
    ("congestion-fill", "0"),
    ("congestion-extents", "1237"),
    ("transport", "tcp"),
    ("allow-remote-read", "yes"),
    ("tls", "no"),
    ("tls-keyring", ""),
    ("tls-privkey", ""),
    ("tls-certificate", ""),
    ("rdma-ctrl-rcvbuf-size", "0"),
    ("rdma-ctrl-sndbuf-size", "0"),
    ("load-balance-paths", "no"),
    ("resync-without-replication", "yes"),
    ("peer-tiebreaker", "yes"),
    ("discard-my-data", "no"),
];

const DISK_WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("disk-barrier", "no"),
    ("disk-drain", "yes"),
    ("disk-timeout", "0"),
    ("resync-after", ""),
    ("discard-zeroes-if-aligned", "yes"),
    ("disable-write-same", "no"),
    ("max-bio-bvecs", "0"),
    ("read-balancing", "prefer-local"),
    ("use-bmbv", "no"),
    ("bitmap", "yes"),
    ("max-bio-size", "1048576"),
    ("block-size", "512"),
    ("discard-granularity", ""),
];

const OPTIONS_WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("cpu-mask", ""),
    ("on-no-data-accessible", "io-error"),
    ("auto-promote", "no"),
    ("auto-promote-timeout", "20"),
    ("quorum", "off"),
    ("quorum-minimum-redundancy", "off"),
    ("on-no-quorum", "suspend-io"),
    ("on-suspended-primary-outdated", "disconnect"),
    ("peer-ack-window", "4096"),
    ("peer-ack-delay", "100"),
    ("twopc-timeout", "300"),
    ("twopc-retry-timeout", "1"),
    ("max-io-depth", "8000"),
    ("drbd8-api-compatibility", "no"),
];

/// Algorithms that this build knows (dependencies.md 11).
const DIGESTS: &[&str] = &["md5", "sha1", "sha256", "sha512", "crc32c", "crc32"];

/// The options of one section, taken one by one; what is left at the end has no effect or does not exist.
struct Section<'a> {
    name: &'static str,
    left: Options,
    warnings: &'a mut Vec<String>,
}

impl<'a> Section<'a> {
    fn new(name: &'static str, options: &Options, warnings: &'a mut Vec<String>) -> Section<'a> {
        Section {
            name,
            left: options.clone(),
            warnings,
        }
    }

    fn bad(&self, name: &str, value: &str, expected: impl Into<String>) -> SettingError {
        SettingError::BadValue {
            section: self.name,
            name: name.to_owned(),
            value: value.to_owned(),
            expected: expected.into(),
        }
    }

    fn number(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
    ) -> Result<u64, SettingError> {
        let Some(text) = self.left.remove(name) else {
            return Ok(default);
        };
        match text.parse::<u64>() {
            Ok(value) if range.contains(&value) => Ok(value),
            _ => Err(self.bad(
                name,
                &text,
                format!("a number from {} to {}", range.start(), range.end()),
            )),
        }
    }

    /// A number that fits 32 bits because its range does.
    fn small(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<u32>,
        default: u32,
    ) -> Result<u32, SettingError> {
        let wide = u64::from(*range.start())..=u64::from(*range.end());
        let value = self.number(name, wide, u64::from(default))?;
        Ok(u32::try_from(value).unwrap_or(u32::MAX))
    }

    fn switch(&mut self, name: &str, default: bool) -> Result<bool, SettingError> {
        let Some(text) = self.left.remove(name) else {
            return Ok(default);
        };
        match text.as_str() {
            "yes" => Ok(true),
            "no" => Ok(false),
            other => Err(self.bad(name, other, "yes or no")),
        }
    }

    fn word<T: Copy>(
        &mut self,
        name: &str,
        choices: &[(&str, T)],
        default: T,
    ) -> Result<T, SettingError> {
        let Some(text) = self.left.remove(name) else {
            return Ok(default);
        };
        let found = choices.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            self.bad(name, &text, format!("one of {}", words.join(", ")))
        })
    }

    fn digest(&mut self, name: &str) -> Result<String, SettingError> {
        match self.left.remove(name) {
            None => Ok(String::new()),
            Some(text) if text.is_empty() || DIGESTS.contains(&text.as_str()) => Ok(text),
            Some(text) => Err(self.bad(name, &text, format!("one of {}", DIGESTS.join(", ")))),
        }
    }

    fn refuse(
        &mut self,
        name: &str,
        default: &str,
        reason: &'static str,
    ) -> Result<(), SettingError> {
        match self.left.remove(name) {
            Some(value) if value != default && !value.is_empty() => {
                Err(SettingError::NotSupported {
                    section: self.name,
                    name: name.to_owned(),
                    value,
                    reason,
                })
            }
            _ => Ok(()),
        }
    }

    fn finish(self, without_effect: &[(&str, &str)]) -> Result<(), SettingError> {
        for (name, value) in self.left {
            match without_effect.iter().find(|(known, _)| *known == name) {
                None => {
                    return Err(SettingError::Unknown {
                        section: self.name,
                        name,
                    });
                }
                Some((_, default)) if *default == value => {}
                Some(_) => self
                    .warnings
                    .push(format!("{} option {name} {value} has no effect", self.name)),
            }
        }
        Ok(())
    }
}

/// Options of the `net` section (docs/spec/config-and-cli.md 2.5).
pub(crate) fn net_options(
    options: &Options,
    warnings: &mut Vec<String>,
) -> Result<(NetOptions, BufferSizes), SettingError> {
    let mut s = Section::new("net", options, warnings);
    s.refuse("tls", "no", "the link would be in clear text")?;
    s.refuse("fencing", "dont-care", "the peer would not be fenced")?;
    let tenths = |value: u64| Duration::from_millis(value * 100);
    let net = NetOptions {
        protocol: s.word(
            "protocol",
            &[
                ("A", Protocol::A),
                ("B", Protocol::B),
                ("C", Protocol::C),
                ("a", Protocol::A),
                ("b", Protocol::B),
                ("c", Protocol::C),
            ],
            Protocol::C,
        )?,
        secret: secret(&mut s)?,
        timeout: tenths(s.number("timeout", 1..=600, 60)?),
        ping_interval: Duration::from_secs(s.number("ping-int", 1..=120, 10)?),
        ping_timeout: tenths(s.number("ping-timeout", 1..=300, 5)?),
        connect_interval: Duration::from_secs(s.number("connect-int", 1..=120, 10)?),
        socket_check_timeout: tenths(s.number("socket-check-timeout", 0..=300, 0)?),
        ko_count: s.small("ko-count", 0..=200, 7)?,
        max_buffers: s.small("max-buffers", 32..=131_072, 2048)?,
        max_epoch_size: s.small("max-epoch-size", 1..=20_000, 2048)?,
        after_sb_0pri: s.word("after-sb-0pri", AFTER_SB_0PRI, 0)?,
        after_sb_1pri: s.word("after-sb-1pri", AFTER_SB_1PRI, 0)?,
        after_sb_2pri: s.word("after-sb-2pri", AFTER_SB_2PRI, 0)?,
        rr_conflict: s.word("rr-conflict", RR_CONFLICT, 0)?,
        always_asbp: s.switch("always-asbp", false)?,
        use_rle: s.switch("use-rle", true)?,
        integrity_alg: s.digest("data-integrity-alg")?,
        verify_alg: s.digest("verify-alg")?,
        csums_alg: s.digest("csums-alg")?,
        csums_after_crash_only: s.switch("csums-after-crash-only", false)?,
    };
    let buffers = BufferSizes {
        send: s.small("sndbuf-size", 0..=134_217_728, 0)?,
        receive: s.small("rcvbuf-size", 0..=134_217_728, 0)?,
    };
    s.finish(NET_WITHOUT_EFFECT)?;
    Ok((net, buffers))
}

/// Numbers of wire-protocol.md 10.8.
const AFTER_SB_0PRI: &[(&str, u32)] = &[
    ("disconnect", 0),
    ("discard-younger-primary", 1),
    ("discard-older-primary", 2),
    ("discard-zero-changes", 3),
    ("discard-least-changes", 4),
    ("discard-local", 5),
    ("discard-remote", 6),
];
const AFTER_SB_1PRI: &[(&str, u32)] = &[
    ("disconnect", 0),
    ("consensus", 7),
    ("discard-secondary", 8),
    ("call-pri-lost-after-sb", 9),
    ("violently-as0p", 10),
];
const AFTER_SB_2PRI: &[(&str, u32)] = &[
    ("disconnect", 0),
    ("call-pri-lost-after-sb", 9),
    ("violently-as0p", 10),
];
const RR_CONFLICT: &[(&str, u32)] = &[("disconnect", 0), ("call-pri-lost", 9), ("violently", 10)];

fn secret(s: &mut Section<'_>) -> Result<Option<(Vec<u8>, String)>, SettingError> {
    let algorithm = s
        .left
        .remove("cram-hmac-alg")
        .filter(|text| !text.is_empty());
    let secret = s
        .left
        .remove("shared-secret")
        .filter(|text| !text.is_empty());
    match (algorithm, secret) {
        (None, None) => Ok(None),
        (Some(algorithm), _) if !["md5", "sha1", "sha256", "sha512"].contains(&&*algorithm) => {
            Err(s.bad(
                "cram-hmac-alg",
                &algorithm,
                "one of md5, sha1, sha256, sha512",
            ))
        }
        (Some(algorithm), Some(secret)) => Ok(Some((secret.into_bytes(), algorithm))),
        (Some(_), None) => Err(SettingError::Contradiction(
            "net option cram-hmac-alg is set, but there is no shared-secret".to_owned(),
        )),
        (None, Some(_)) => {
            s.warnings
                .push("net option shared-secret has no effect without cram-hmac-alg".to_owned());
            Ok(None)
        }
    }
}

/// Options of the `disk` section (docs/spec/config-and-cli.md 2.4).
pub(crate) fn disk_options(
    options: &Options,
    warnings: &mut Vec<String>,
) -> Result<DiskOptions, SettingError> {
    let mut s = Section::new("disk", options, warnings);
    s.refuse("fencing", "dont-care", "the peer would not be fenced")?;
    let al_extents = s.small("al-extents", 0..=u32::MAX, 1237)?.clamp(67, 65_534);
    let disk = DiskOptions {
        on_io_error: s.word(
            "on-io-error",
            &[
                ("detach", OnIoError::Detach),
                ("pass_on", OnIoError::PassOn),
                ("call-local-io-error", OnIoError::CallLocalIoError),
            ],
            OnIoError::Detach,
        )?,
        size: s.number("size", 0..=1 << 41, 0)? * 512,
        al_extents,
        al_updates: s.switch("al-updates", true)?,
        disk_flushes: s.switch("disk-flushes", true)?,
        md_flushes: s.switch("md-flushes", true)?,
        resync_rate: s.small("resync-rate", 1..=8_388_608, 250)?,
        c_plan_ahead: s.small("c-plan-ahead", 0..=300, 20)?,
        c_delay_target: s.small("c-delay-target", 1..=100, 10)?,
        c_fill_target: s.small("c-fill-target", 0..=1_048_576, 100)?,
        c_max_rate: s.small("c-max-rate", 0..=4_194_304, 102_400)?,
        c_min_rate: s.small("c-min-rate", 0..=4_194_304, 250)?,
        rs_discard_granularity: s.small("rs-discard-granularity", 0..=1_048_576, 0)?,
    };
    s.finish(DISK_WITHOUT_EFFECT)?;
    Ok(disk)
}

/// Checks a whole definition. Returns the warnings.
pub(crate) fn check(definition: &ResourceDefinition) -> Result<Vec<String>, SettingError> {
    let mut warnings = Vec::new();
    name(&definition.name)?;
    net_options(&definition.net, &mut warnings)?;
    Section::new("options", &definition.options, &mut warnings).finish(OPTIONS_WITHOUT_EFFECT)?;
    if definition.volumes.is_empty() {
        return Err(SettingError::Contradiction(format!(
            "resource {} has no volumes",
            definition.name
        )));
    }
    let mut last = None;
    for volume in &definition.volumes {
        if last.is_some_and(|last| last >= volume.number) || volume.number == u16::MAX {
            return Err(SettingError::Contradiction(format!(
                "the volumes of resource {} are not in ascending order from 0 to 65534",
                definition.name
            )));
        }
        last = Some(volume.number);
        let before = warnings.len();
        disk_options(&volume.options, &mut warnings)?;
        for warning in warnings.iter_mut().skip(before) {
            *warning = format!("volume {}: {warning}", volume.number);
        }
    }
    if let Some(connection) = &definition.connection
        && connection.my_address.is_ipv4() != connection.peer_address.is_ipv4()
    {
        return Err(SettingError::Contradiction(format!(
            "own address {} and peer address {} are not of one family",
            connection.my_address, connection.peer_address
        )));
    }
    Ok(warnings)
}

/// Names become parts of file names and of NBD export names: no separators, no surprises.
fn name(name: &str) -> Result<(), SettingError> {
    let sound = !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_graphic() && c != '/');
    if sound {
        Ok(())
    } else {
        Err(SettingError::Contradiction(format!(
            "{name:?} cannot be the name of a resource: 1 to 128 printable ASCII characters, no slash, no leading dot"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Options {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let mut warnings = Vec::new();
        let (net, buffers) = net_options(&Options::new(), &mut warnings).unwrap();
        assert_eq!(net, NetOptions::default());
        assert_eq!(buffers, BufferSizes::default());
        assert_eq!(
            disk_options(&Options::new(), &mut warnings).unwrap(),
            DiskOptions::default()
        );
        assert!(warnings.is_empty());
    }

    #[test]
    fn units_are_those_of_the_configuration_file() {
        let mut warnings = Vec::new();
        let given = options(&[("timeout", "90"), ("ping-timeout", "7"), ("protocol", "A")]);
        let (net, _) = net_options(&given, &mut warnings).unwrap();
        assert_eq!(net.timeout, Duration::from_secs(9));
        assert_eq!(net.ping_timeout, Duration::from_millis(700));
        assert_eq!(net.protocol, Protocol::A);
        let given = options(&[("data-integrity-alg", "sha256")]);
        let (net, _) = net_options(&given, &mut warnings).unwrap();
        assert_eq!(net.integrity_alg, "sha256");
        let disk = disk_options(
            &options(&[("size", "2048"), ("al-extents", "7")]),
            &mut warnings,
        );
        let disk = disk.unwrap();
        assert_eq!((disk.size, disk.al_extents), (1 << 20, 67));
    }

    #[test]
    fn what_has_no_effect_is_named_unless_it_is_the_default() {
        let mut warnings = Vec::new();
        let given = options(&[("tcp-cork", "no"), ("unplug-watermark", "128")]);
        net_options(&given, &mut warnings).unwrap();
        assert_eq!(warnings, ["net option tcp-cork no has no effect"]);
    }

    #[test]
    fn what_must_not_be_ignored_is_refused_by_name() {
        for (name, value) in [("tls", "yes"), ("fencing", "resource-only")] {
            let error = net_options(&options(&[(name, value)]), &mut Vec::new()).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn bad_values_and_unknown_options_are_refused() {
        for (name, value) in [
            ("timeout", "0"),
            ("timeout", "soon"),
            ("protocol", "D"),
            ("always-asbp", "1"),
            ("no-such-option", "yes"),
            ("verify-alg", "rot13"),
            ("data-integrity-alg", "SHA1"),
            ("cram-hmac-alg", "sha1"),
        ] {
            assert!(
                net_options(&options(&[(name, value)]), &mut Vec::new()).is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_name_cannot_leave_its_directory() {
        for bad in ["", "..", ".x", "a/b", "a b", "\u{e9}"] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert!(name("zimbra-8.4_x").is_ok());
    }
}
