//! `common` and `resource`.

use super::{Once, Parsed, Parser, unexpected};
use crate::ast::{RawResource, RawVolumes};
use crate::diagnostics::{Code, Diagnostic, Span};
use crate::lexer::{Token, TokenKind};
use crate::model::Sections;
use crate::options::Section;

/// What may stand in a resource, in the order messages name it.
const RESOURCE: &[&str] = &[
    "protocol",
    "on",
    "disk",
    "net",
    "syncer",
    "startup",
    "handlers",
    "options",
    "volume",
    "device",
    "meta-disk",
    "flexible-meta-disk",
    "floating",
    "stacked-on-top-of",
    "connection",
    "connection-mesh",
    "proxy",
    "template-file",
    "skip",
];

/// What may stand in `common`.
const COMMON: &[&str] = &[
    "protocol", "disk", "net", "syncer", "startup", "handlers", "options", "proxy", "skip",
];

/// `expected` and the closing brace.
fn with_brace(expected: &[&'static str]) -> Vec<&'static str> {
    expected.iter().copied().chain(["}"]).collect()
}

/// The section that a keyword opens in `common` and in resources.
fn section_of(word: &str) -> Option<Section> {
    Some(match word {
        "net" => Section::Net,
        "disk" => Section::Disk,
        "startup" => Section::Startup,
        "handlers" => Section::Handlers,
        "options" => Section::Options,
        "syncer" => Section::Syncer,
        "proxy" => Section::Proxy,
        _ => return None,
    })
}

impl Parser<'_> {
    pub(super) fn common_body(&mut self) -> Parsed<Sections> {
        let mut sections = Sections::default();
        let mut once = Once::default();
        self.block(COMMON, |p, token| {
            let word = match &token.kind {
                TokenKind::Word(word) => word.as_str(),
                _ => return Err(unexpected(token, &with_brace(COMMON))),
            };
            if p.shared_statement(word, token, &mut once, &mut sections)? {
                return Ok(());
            }
            if RESOURCE.contains(&word) || word == "include" {
                let expected = ["options for all resources"];
                let error = Diagnostic::expected(Code::Place, token.span, expected, word);
                return Err(Box::new(error.hinting(format!(
                    "{word} may not stand in common: write it in a resource"
                ))));
            }
            Err(unexpected(token, &with_brace(COMMON)))
        })?;
        Ok(sections)
    }

    /// Statements of both `common` and resources. `false`: it is none of them.
    fn shared_statement(
        &mut self,
        word: &str,
        token: &Token,
        once: &mut Once,
        sections: &mut Sections,
    ) -> Parsed<bool> {
        match word {
            "protocol" => {
                self.once(once, "protocol", token);
                if let Some(setting) =
                    self.statement_option(Section::Net, "protocol", token.span)?
                {
                    self.put(setting, sections);
                }
            }
            "skip" => self.skip(token.span)?,
            _ => {
                let Some(section) = section_of(word) else {
                    return Ok(false);
                };
                self.once(once, section.keyword(), token);
                self.section_into(section, token, sections)?;
            }
        }
        Ok(true)
    }

    /// `resource NAME { ... }`, behind the word.
    pub(super) fn resource(&mut self, at: Span) -> Parsed<RawResource> {
        let name = self.name("resource name")?;
        let mut raw = RawResource {
            name,
            at,
            sections: Sections::default(),
            volumes: RawVolumes::default(),
            hosts: Vec::new(),
            connections: Vec::new(),
            template: None,
            ignore_on: Vec::new(),
        };
        let mut once = Once::default();
        let mut volume_once = Once::default();
        self.block(RESOURCE, |p, token| {
            let word = match &token.kind {
                TokenKind::Word(word) => word.as_str(),
                _ => return Err(unexpected(token, &with_brace(RESOURCE))),
            };
            // `disk PATH;` is a volume statement, `disk { }` a section.
            if (word != "disk" || p.at('{')?)
                && p.shared_statement(word, token, &mut once, &mut raw.sections)?
            {
                return Ok(());
            }
            if p.volume_statement(word, token, &mut volume_once, &mut raw.volumes)? {
                return Ok(());
            }
            p.resource_statement(word, token, &mut once, &mut raw)
        })?;
        Ok(raw)
    }

    fn resource_statement(
        &mut self,
        word: &str,
        token: &Token,
        once: &mut Once,
        raw: &mut RawResource,
    ) -> Parsed<()> {
        match word {
            "incon-degr-cmd" => {
                self.once(once, "incon-degr-cmd", token);
                self.out.marks.v07 = true;
                let message =
                    "incon-degr-cmd is old: it is taken as handlers { pri-on-incon-degr ...; }";
                self.warn(Code::LegacyInconDegrCmd, token.span, message);
                let setting =
                    self.statement_option(Section::Handlers, "pri-on-incon-degr", token.span)?;
                if let Some(setting) = setting {
                    self.put(setting, &mut raw.sections);
                }
            }
            "on" => raw.hosts.push(self.on_host(token.span)?),
            "floating" => raw.hosts.push(self.floating_host(token.span)?),
            "stacked-on-top-of" => raw.hosts.push(self.stacked_host(token.span)?),
            "connection" => raw.connections.push(self.connection(token.span)?),
            "connection-mesh" => raw.connections.push(self.mesh(token.span)?),
            "template-file" => {
                self.once(once, "template-file", token);
                self.out.marks.v9 = true;
                raw.template = Some(self.name("file name")?);
                self.expect(';')?;
            }
            "ignore-on" => {
                let host = self.name("host name")?;
                self.expect(';')?;
                let message = format!(
                    "ignore-on is ignored: remove the section of {} instead",
                    host.value
                );
                self.warn(Code::IgnoredOption, token.span, message);
                raw.ignore_on.push(host.value);
            }
            "include" => {
                let error =
                    Diagnostic::expected(Code::Place, token.span, with_brace(RESOURCE), word);
                return Err(Box::new(
                    error.hinting("include may stand at top level only"),
                ));
            }
            "global" | "common" | "resource" => {
                let error = unexpected(token, &with_brace(RESOURCE));
                return Err(Box::new(
                    error.hinting(format!("a }} is missing before this {word}")),
                ));
            }
            _ => return Err(unexpected(token, &with_brace(RESOURCE))),
        }
        Ok(())
    }
}
