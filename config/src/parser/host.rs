//! Host sections, volumes, devices, addresses.

use super::{Once, Parsed, Parser, unexpected};
use crate::ast::{RawHost, RawVolume, RawVolumes, Spanned};
use crate::diagnostics::{Code, Diagnostic, Span};
use crate::lexer::{Token, TokenKind};
use crate::model::{Address, AddressFamily, Device, HostKind, MetaDisk, Options, Proxy, parse_ip};
use crate::options::Section;

/// What may stand in a host section.
const HOST: &[&str] = &[
    "device",
    "disk",
    "address",
    "meta-disk",
    "flexible-meta-disk",
    "volume",
    "node-id",
    "options",
    "proxy",
    "skip",
];

/// What may stand in a volume.
const VOLUME: &[&str] = &["device", "disk", "meta-disk", "flexible-meta-disk", "skip"];

/// Greatest volume number.
const VOLUME_MAX: u64 = 65534;
/// Greatest device minor.
const MINOR_MAX: u64 = 1_048_575;
/// Greatest node id of DRBD 9.
const NODE_ID_MAX: u64 = 31;
/// A slot number beyond this would lie past 2^60 bytes.
const META_INDEX_MAX: u64 = u32::MAX as u64;

impl Parser<'_> {
    pub(super) fn on_host(&mut self, at: Span) -> Parsed<RawHost> {
        let mut names = vec![self.name("host name")?];
        while !self.at('{')? {
            names.push(self.name("{")?);
        }
        let mut host = empty_host(HostKind::On, at, names);
        self.host_body(&mut host)?;
        Ok(host)
    }

    pub(super) fn stacked_host(&mut self, at: Span) -> Parsed<RawHost> {
        let lower = self.name("name of a defined resource")?;
        let mut host = empty_host(HostKind::Stacked, at, vec![lower]);
        self.host_body(&mut host)?;
        Ok(host)
    }

    pub(super) fn floating_host(&mut self, at: Span) -> Parsed<RawHost> {
        let mut host = empty_host(HostKind::Floating, at, Vec::new());
        host.address = Some(self.address()?);
        if !self.accept(';')? {
            self.host_body(&mut host)?;
        }
        Ok(host)
    }

    fn host_body(&mut self, host: &mut RawHost) -> Parsed<()> {
        let mut once = Once::default();
        if let Some(address) = &host.address {
            once.seen.push(("address", address.at));
        }
        self.block(HOST, |p, token| {
            let TokenKind::Word(word) = &token.kind else {
                return Err(p.refuse(token.clone(), HOST));
            };
            if p.volume_statement(word, token, &mut once, &mut host.volumes)? {
                return Ok(());
            }
            match word.as_str() {
                "address" => {
                    p.once(&mut once, "address", token);
                    host.address = Some(p.address()?);
                    p.expect(';')?;
                }
                "node-id" => {
                    p.once(&mut once, "node-id", token);
                    p.out.marks.v9 = true;
                    let id = p.integer("node id", 0, NODE_ID_MAX)?;
                    p.expect(';')?;
                    host.node_id = Some(Spanned {
                        value: u8::try_from(id.value).unwrap_or(0),
                        at: id.at,
                    });
                }
                "options" => {
                    p.once(&mut once, "options", token);
                    let options = p.options_of(Section::Options)?;
                    host.options = Some(Spanned {
                        value: options,
                        at: token.span,
                    });
                }
                "proxy" => {
                    p.once(&mut once, "proxy", token);
                    let message = "the WAN proxy is not supported: connections are made directly";
                    p.warn(Code::NotSupported, token.span, message);
                    host.proxy = Some(Spanned {
                        value: p.proxy()?,
                        at: token.span,
                    });
                }
                "skip" => p.skip(token.span)?,
                _ => return Err(unexpected(token, &with_brace(HOST))),
            }
            Ok(())
        })
    }

    /// `proxy on NAME... { inside A; outside A; [options { }] }`, behind the first word.
    fn proxy(&mut self) -> Parsed<Proxy> {
        let on = self.next()?;
        if on.kind != TokenKind::Word("on".to_owned()) {
            return Err(self.refuse(on, &["on"]));
        }
        let mut hosts = Vec::new();
        while !self.at('{')? {
            hosts.push(self.name("host name")?.value);
        }
        let opening = self.peek()?.clone();
        if hosts.is_empty() {
            return Err(unexpected(&opening, &["host name"]));
        }
        let (mut inside, mut outside, mut options) = (None, None, Options::default());
        let mut once = Once::default();
        self.block(&["inside", "outside", "options"], |p, token| {
            let word = token.text().unwrap_or("");
            match word {
                "inside" => {
                    p.once(&mut once, "inside", token);
                    inside = Some(p.address()?);
                    p.expect(';')?;
                }
                "outside" => {
                    p.once(&mut once, "outside", token);
                    outside = Some(p.address()?);
                    p.expect(';')?;
                }
                "options" => {
                    p.once(&mut once, "options", token);
                    options = p.options_of(Section::Proxy)?;
                }
                _ => return Err(unexpected(token, &["inside", "outside", "options", "}"])),
            }
            Ok(())
        })?;
        match (inside, outside) {
            (Some(inside), Some(outside)) => Ok(Proxy {
                hosts,
                inside,
                outside,
                options,
            }),
            (inside, _) => {
                let missing = if inside.is_none() {
                    "inside"
                } else {
                    "outside"
                };
                Err(Box::new(Diagnostic::expected(
                    Code::Missing,
                    on.span,
                    [missing],
                    "nothing",
                )))
            }
        }
    }

    /// `device`, `disk`, `meta-disk`, `volume` of a host or resource. `false`: it is none of them.
    pub(super) fn volume_statement(
        &mut self,
        word: &str,
        token: &Token,
        once: &mut Once,
        volumes: &mut RawVolumes,
    ) -> Parsed<bool> {
        if word == "volume" {
            let number = self.integer("volume number", 0, VOLUME_MAX)?;
            let value = u16::try_from(number.value).unwrap_or(0);
            if let Some((_, first)) = volumes.numbered.iter().find(|(n, _)| *n == value) {
                let first = first.at;
                let expected = ["unique volume number"];
                let error =
                    Diagnostic::expected(Code::Duplicate, number.at, expected, value.to_string());
                self.report(error.relating(first));
            }
            let volume = self.volume_body(token.span)?;
            volumes.numbered.push((value, volume));
            return Ok(true);
        }
        let options = word == "disk" && self.at('{')?;
        let known = self.bare_statement(word, token, once, &mut volumes.bare)?;
        if known && !options {
            volumes.bare_at.get_or_insert(token.span);
        }
        Ok(known)
    }

    fn volume_body(&mut self, at: Span) -> Parsed<RawVolume> {
        let mut volume = RawVolume {
            at,
            ..RawVolume::default()
        };
        let mut once = Once::default();
        self.block(VOLUME, |p, token| {
            let TokenKind::Word(word) = &token.kind else {
                return Err(p.refuse(token.clone(), VOLUME));
            };
            if word == "skip" {
                return p.skip(token.span);
            }
            if p.bare_statement(word, token, &mut once, &mut volume)? {
                return Ok(());
            }
            Err(unexpected(token, &with_brace(VOLUME)))
        })?;
        Ok(volume)
    }

    fn bare_statement(
        &mut self,
        word: &str,
        token: &Token,
        once: &mut Once,
        volume: &mut RawVolume,
    ) -> Parsed<bool> {
        match word {
            "device" => {
                self.once(once, "device", token);
                volume.device = Some(self.device(token.span)?);
            }
            "disk" if self.at('{')? => {
                self.once(once, "disk section", token);
                let options = self.options_of(Section::Disk)?;
                volume.disk_options = Some(Spanned {
                    value: options,
                    at: token.span,
                });
                return Ok(true);
            }
            "disk" => {
                self.once(once, "disk", token);
                let disk = self.name("path of the lower disk")?;
                let path = (disk.value != "none").then_some(disk.value);
                volume.disk = Some(Spanned {
                    value: path,
                    at: disk.at,
                });
            }
            "meta-disk" => {
                self.once(once, "meta-disk", token);
                volume.meta_disk = Some(self.meta_disk()?);
            }
            "flexible-meta-disk" => {
                self.once(once, "meta-disk", token);
                let device = self.name("path of the metadata device")?;
                let value = external(device.value);
                volume.meta_disk = Some(Spanned {
                    value,
                    at: device.at,
                });
            }
            _ => return Ok(false),
        }
        self.expect(';')?;
        Ok(true)
    }

    fn meta_disk(&mut self) -> Parsed<Spanned<MetaDisk>> {
        let device = self.name("internal or path of the metadata device")?;
        if !self.accept('[')? {
            return Ok(Spanned {
                value: external(device.value),
                at: device.at,
            });
        }
        let index = self.integer("slot number", 0, META_INDEX_MAX)?;
        self.expect(']')?;
        if device.value == "internal" {
            let error = Diagnostic::expected(Code::UnexpectedToken, index.at, [";"], "[");
            return Err(Box::new(error.hinting("internal metadata has no slots")));
        }
        let index = u32::try_from(index.value).unwrap_or(u32::MAX);
        Ok(Spanned {
            value: MetaDisk::Indexed {
                device: device.value,
                index,
            },
            at: device.at,
        })
    }

    /// `PATH [minor N] | minor N`, behind `device`.
    fn device(&mut self, at: Span) -> Parsed<Device> {
        let token = self.next()?;
        if token.kind == TokenKind::Word("minor".to_owned()) {
            let minor = self.integer("minor number", 0, MINOR_MAX)?;
            let minor = u32::try_from(minor.value).unwrap_or(0);
            return Ok(Device {
                path: format!("/dev/drbd{minor}"),
                minor,
                at,
            });
        }
        let text = match token.text() {
            Some(text) if !text.is_empty() => text.to_owned(),
            _ => return Err(self.refuse(token, &["device name", "minor"])),
        };
        let path = if text.starts_with("drbd") {
            format!("/dev/{text}")
        } else {
            text.clone()
        };
        let tail = path.strip_prefix("/dev/drbd");
        let numbered = tail.filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()));
        let named = tail.is_some_and(|t| t.len() > 1 && t.starts_with('_'));
        let wrong = || {
            let expected = ["/dev/drbdN", "drbdN", "/dev/drbd_NAME minor N"];
            Diagnostic::expected(Code::Device, token.span, expected, &text)
        };
        let written = self.minor_after_path()?;
        match (numbered, written) {
            (Some(digits), written) => {
                let minor = digits.parse::<u64>().unwrap_or(u64::MAX);
                if minor > MINOR_MAX {
                    let expected = [format!("0..{MINOR_MAX}")];
                    return Err(Box::new(Diagnostic::expected(
                        Code::Range,
                        token.span,
                        expected,
                        digits,
                    )));
                }
                if let Some(other) = written.filter(|w| w.value != minor) {
                    let expected = [format!("minor {minor}, as in {path}")];
                    let found = other.value.to_string();
                    return Err(Box::new(Diagnostic::expected(
                        Code::Device,
                        other.at,
                        expected,
                        found,
                    )));
                }
                // Leading zeros would give one device two names.
                let minor = u32::try_from(minor).unwrap_or(0);
                Ok(Device {
                    path: format!("/dev/drbd{minor}"),
                    minor,
                    at,
                })
            }
            (None, Some(minor)) if named => Ok(Device {
                path,
                minor: u32::try_from(minor.value).unwrap_or(0),
                at,
            }),
            (None, None) if named => Err(Box::new(
                wrong().hinting(format!("write: device {path} minor N;")),
            )),
            _ => Err(Box::new(wrong())),
        }
    }

    fn minor_after_path(&mut self) -> Parsed<Option<Spanned<u64>>> {
        if self.peek()?.kind != TokenKind::Word("minor".to_owned()) {
            return Ok(None);
        }
        self.next()?;
        self.integer("minor number", 0, MINOR_MAX).map(Some)
    }

    /// `[family] IP:PORT`.
    pub(super) fn address(&mut self) -> Parsed<Address> {
        let first = self.next()?;
        let family = match &first.kind {
            TokenKind::Word(word) => match word.as_str() {
                "ipv4" => Some(AddressFamily::Ipv4),
                "ipv6" => Some(AddressFamily::Ipv6),
                "ssocks" | "sci" => Some(AddressFamily::Ssocks),
                "sdp" => Some(AddressFamily::Sdp),
                _ => None,
            },
            _ => None,
        };
        if matches!(family, Some(AddressFamily::Ssocks | AddressFamily::Sdp)) {
            let message = format!(
                "{} addresses are not supported: plain TCP is used",
                first.shown()
            );
            self.warn(Code::NotSupported, first.span, message);
        }
        let ip = match family {
            Some(AddressFamily::Ipv6) => self.bracketed_ipv6()?,
            Some(_) => {
                let token = self.next()?;
                self.ipv4(token, &["IPv4 address"])?
            }
            None => {
                let token = first.clone();
                self.ipv4(token, &["IPv4 address", "ipv4", "ipv6", "ssocks", "sdp"])?
            }
        };
        self.expect(':')?;
        let port = self.integer("port number", 1, 65535)?;
        Ok(Address {
            family: family.unwrap_or(AddressFamily::Ipv4),
            ip,
            port: u16::try_from(port.value).unwrap_or(u16::MAX),
            at: first.span,
        })
    }

    fn ipv4(&mut self, token: Token, expected: &[&str]) -> Parsed<String> {
        match &token.kind {
            TokenKind::Word(text) if parse_ip(text).is_some_and(|ip| ip.is_ipv4()) => {
                Ok(text.clone())
            }
            TokenKind::Word(text) => {
                let mut error =
                    Diagnostic::expected(Code::Address, token.span, expected.iter().copied(), text);
                if self.at(':')? && text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    error = error.hinting("IPv6 is written: address ipv6 [ADDRESS]:PORT;");
                } else if text.bytes().any(|b| b.is_ascii_alphabetic()) {
                    error = error.hinting("host names are not allowed here; write the IP address");
                }
                Err(Box::new(error))
            }
            _ => Err(self.refuse(token, expected)),
        }
    }

    fn bracketed_ipv6(&mut self) -> Parsed<String> {
        self.expect('[')?;
        let token = self.lexer.ipv6()?;
        let TokenKind::Word(text) = &token.kind else {
            return Err(self.refuse(token, &["IPv6 address"]));
        };
        let text = text.clone();
        let scoped = text
            .split_once('%')
            .is_none_or(|(_, scope)| !scope.is_empty());
        if !scoped || !parse_ip(&text).is_some_and(|ip| ip.is_ipv6()) {
            let error = Diagnostic::expected(Code::Address, token.span, ["IPv6 address"], text);
            return Err(Box::new(error));
        }
        self.expect(']')?;
        Ok(text)
    }
}

fn external(device: String) -> MetaDisk {
    if device == "internal" {
        MetaDisk::Internal
    } else {
        MetaDisk::Flexible { device }
    }
}

fn empty_host(kind: HostKind, at: Span, names: Vec<Spanned<String>>) -> RawHost {
    RawHost {
        kind,
        at,
        names,
        node_id: None,
        address: None,
        volumes: RawVolumes::default(),
        options: None,
        proxy: None,
    }
}

fn with_brace(expected: &[&'static str]) -> Vec<&'static str> {
    expected.iter().copied().chain(["}"]).collect()
}
