//! `connection` and `connection-mesh` of dialect 9.

use super::{Once, Parsed, Parser, unexpected};
use crate::ast::{RawConnection, RawEnd, Spanned};
use crate::diagnostics::{Code, Span};
use crate::lexer::{Token, TokenKind};
use crate::model::Options;
use crate::options::Section;

const CONNECTION: &[&str] = &["host", "path", "net", "disk", "volume", "skip"];
const MESH: &[&str] = &["hosts", "net", "skip"];

impl Parser<'_> {
    pub(super) fn connection(&mut self, at: Span) -> Parsed<RawConnection> {
        self.out.marks.v9 = true;
        if !self.at('{')? {
            let name = self.name("{")?;
            let message = format!("connections have no names: {} is ignored", name.value);
            self.warn(Code::ConnectionName, name.at, message);
        }
        let mut raw = empty(false, at);
        let mut once = Once::default();
        self.block(CONNECTION, |p, token| {
            match token.text().unwrap_or("") {
                "host" => raw.ends.push(p.end()?),
                "path" => {
                    let mut ends = Vec::new();
                    p.block(&["host"], |p, token| match token.text() {
                        Some("host") => {
                            ends.push(p.end()?);
                            Ok(())
                        }
                        _ => Err(unexpected(token, &["host", "}"])),
                    })?;
                    raw.paths.push((token.span, ends));
                }
                "net" => {
                    p.once(&mut once, "net", token);
                    raw.net = Some(p.spanned_options(Section::Net, token)?);
                }
                "disk" => {
                    p.once(&mut once, "disk", token);
                    raw.disk = Some(p.spanned_options(Section::Disk, token)?);
                }
                "volume" => raw.volumes.push(p.connection_volume()?),
                "skip" => p.skip(token.span)?,
                _ => {
                    return Err(unexpected(
                        token,
                        &["host", "path", "net", "disk", "volume", "skip", "}"],
                    ));
                }
            }
            Ok(())
        })?;
        Ok(raw)
    }

    pub(super) fn mesh(&mut self, at: Span) -> Parsed<RawConnection> {
        self.out.marks.v9 = true;
        let mut raw = empty(true, at);
        let mut once = Once::default();
        self.block(MESH, |p, token| {
            match token.text().unwrap_or("") {
                "hosts" => {
                    p.once(&mut once, "hosts", token);
                    while !p.at(';')? {
                        raw.mesh_hosts.push(p.name("host name")?);
                    }
                    p.expect(';')?;
                }
                "net" => {
                    p.once(&mut once, "net", token);
                    raw.net = Some(p.spanned_options(Section::Net, token)?);
                }
                "skip" => p.skip(token.span)?,
                _ => return Err(unexpected(token, &["hosts", "net", "skip", "}"])),
            }
            Ok(())
        })?;
        Ok(raw)
    }

    fn spanned_options(&mut self, section: Section, token: &Token) -> Parsed<Spanned<Options>> {
        Ok(Spanned {
            value: self.options_of(section)?,
            at: token.span,
        })
    }

    /// `volume N { disk { } }`
    fn connection_volume(&mut self) -> Parsed<(u16, Options)> {
        let number = self.integer("volume number", 0, 65534)?;
        let mut options = Options::default();
        let mut once = Once::default();
        self.block(&["disk"], |p, token| {
            if token.text() != Some("disk") {
                return Err(unexpected(token, &["disk", "}"]));
            }
            p.once(&mut once, "disk", token);
            options = p.options_of(Section::Disk)?;
            Ok(())
        })?;
        Ok((u16::try_from(number.value).unwrap_or(0), options))
    }

    /// `NAME { address A | port N } [via ...] ;`, behind `host`.
    fn end(&mut self) -> Parsed<RawEnd> {
        let mut end = RawEnd {
            name: self.name("host name")?,
            address: None,
            port: None,
        };
        loop {
            let token = self.next()?;
            if token.is(';') {
                return Ok(end);
            }
            let TokenKind::Word(word) = &token.kind else {
                return Err(self.refuse(token, &["address", "port", ";"]));
            };
            match word.as_str() {
                "address" if end.address.is_none() => end.address = Some(self.address()?),
                "port" if end.port.is_none() => {
                    let port = self.integer("port number", 1, 65535)?;
                    end.port = u16::try_from(port.value).ok();
                }
                "via" => self.via(&token)?,
                _ => return Err(self.refuse(token, &["address", "port", "via", ";"])),
            }
        }
    }

    /// `via proxy on NAME { ... }` or `via outside-address A`: read past, with a warning.
    fn via(&mut self, token: &Token) -> Parsed<()> {
        let message = "the WAN proxy is not supported: connections are made directly";
        self.warn(Code::NotSupported, token.span, message);
        let kind = self.next()?;
        match kind.text() {
            Some("outside-address") => self.address().map(|_| ()),
            Some("proxy") => self.skip(kind.span),
            _ => Err(self.refuse(kind, &["proxy", "outside-address"])),
        }
    }
}

fn empty(mesh: bool, at: Span) -> RawConnection {
    RawConnection {
        mesh,
        at,
        mesh_hosts: Vec::new(),
        ends: Vec::new(),
        paths: Vec::new(),
        net: None,
        disk: None,
        volumes: Vec::new(),
    }
}
