//! Option sections: names, values, legacy spellings.

use super::{Once, Parsed, Parser};
use crate::ast::Spanned;
use crate::diagnostics::{Code, Diagnostic, Span, nearest};
use crate::lexer::{Token, TokenKind, is_plain_word};
use crate::model::{Options, Sections, Setting, Value};
use crate::options::{self, Kind, LoadWarning, OptionSpec, Section, Unit};

/// What one option section said.
#[derive(Default)]
pub(super) struct OptionBlock {
    /// Its settings; legacy ones carry the row of their new home.
    pub(super) settings: Vec<Setting>,
    /// Lines of `plugin { }`.
    pub(super) plugins: Option<Vec<String>>,
}

/// An option name with its row.
struct Named {
    spec: &'static OptionSpec,
    /// Written as `no-NAME`.
    negated: bool,
}

impl Parser<'_> {
    pub(super) fn global_body(&mut self, _opening: &Token) -> Parsed<Options> {
        let mut settings = Vec::new();
        self.block(&["an option of global", "skip"], |p, token| {
            match &token.kind {
                TokenKind::Word(word) if word == "skip" => p.skip(token.span),
                _ => p.option(Section::Global, token, &mut settings),
            }
        })?;
        Ok(self.collect(settings))
    }

    /// A section inside `common` or a resource, put where it belongs.
    pub(super) fn section_into(
        &mut self,
        section: Section,
        opening: &Token,
        into: &mut Sections,
    ) -> Parsed<()> {
        match section {
            Section::Syncer => {
                let new = "its options live in disk, net and options now; they are taken from here";
                self.warn(
                    Code::LegacySyncer,
                    opening.span,
                    format!("the syncer section is old: {new}"),
                );
            }
            Section::Proxy => self.warn(
                Code::NotSupported,
                opening.span,
                "the WAN proxy is not supported: connections are made directly",
            ),
            _ => {}
        }
        let block = self.option_block(section)?;
        if block.plugins.is_some() {
            into.proxy_plugins = block.plugins;
        }
        for setting in block.settings {
            self.put(setting, into);
        }
        Ok(())
    }

    /// Options of one kind only, for hosts, volumes and connections.
    pub(super) fn options_of(&mut self, section: Section) -> Parsed<Options> {
        let block = self.option_block(section)?;
        let (own, foreign): (Vec<_>, Vec<_>) = block
            .settings
            .into_iter()
            .partition(|s| s.spec.section == section);
        for setting in foreign {
            let name = setting.spec.name;
            let expected = [format!("an option of {}", section.keyword())];
            let home = setting.spec.section.keyword();
            self.report(
                Diagnostic::expected(Code::Place, setting.at, expected, name)
                    .hinting(format!("write it in the {home} section of the resource")),
            );
        }
        Ok(self.collect(own))
    }

    /// Puts a setting into the section of its row; the last of two wins, with a warning.
    pub(super) fn put(&mut self, setting: Setting, into: &mut Sections) {
        if setting.spec.section == Section::Syncer {
            if let (Value::Number(group), "group") = (&setting.value, setting.spec.name) {
                into.group = Some(*group);
            }
            return;
        }
        let (name, at) = (setting.spec.name, setting.at);
        let Some(options) = into.get_mut(setting.spec.section) else {
            return;
        };
        if let Some(old) = options.put(setting) {
            self.warn_twice(name, at, old.at);
        }
    }

    fn collect(&mut self, settings: Vec<Setting>) -> Options {
        let mut options = Options::default();
        for setting in settings {
            let (name, at) = (setting.spec.name, setting.at);
            if let Some(old) = options.put(setting) {
                self.warn_twice(name, at, old.at);
            }
        }
        options
    }

    fn warn_twice(&mut self, name: &str, at: Span, first: Span) {
        let message = format!("{name} is given twice: the later value counts");
        self.out
            .warnings
            .push(Diagnostic::warning(Code::DuplicateOption, at, message).relating(first));
    }

    fn option_block(&mut self, section: Section) -> Parsed<OptionBlock> {
        let mut block = OptionBlock::default();
        let mut once = Once::default();
        let what = format!("an option of {}", section.keyword());
        self.block(&[&what], |p, token| {
            if section == Section::Proxy && token.kind == TokenKind::Word("plugin".to_owned()) {
                p.once(&mut once, "plugin", token);
                block.plugins = Some(p.plugins()?);
                return Ok(());
            }
            p.option(section, token, &mut block.settings)
        })?;
        Ok(block)
    }

    /// `plugin { NAME VALUE...; }`
    fn plugins(&mut self) -> Parsed<Vec<String>> {
        let mut lines = Vec::new();
        self.block(&["plug-in name"], |p, token| {
            let mut words = vec![p.word_of(token, "plug-in name")?];
            while !p.at(';')? {
                words.push(p.value("value")?.value);
            }
            p.expect(';')?;
            lines.push(words.join(" "));
            Ok(())
        })?;
        Ok(lines)
    }

    fn word_of(&mut self, token: &Token, what: &str) -> Parsed<String> {
        match token.text() {
            Some(text) if !text.is_empty() => Ok(text.to_owned()),
            _ => Err(self.refuse(token.clone(), &[what])),
        }
    }

    /// One option statement, whose name is `token`.
    fn option(
        &mut self,
        section: Section,
        token: &Token,
        settings: &mut Vec<Setting>,
    ) -> Parsed<()> {
        let TokenKind::Word(name) = &token.kind else {
            let what = format!("an option of {}", section.keyword());
            return Err(self.refuse(token.clone(), &[&what, "}"]));
        };
        let Some(named) = find_option(section, name) else {
            return Err(unknown_option(section, name, token));
        };
        let errors = self.errors;
        let spec = named.spec;
        let setting = self.option_value(&named, token.span)?;
        self.expect(';')?;
        if self.errors > errors {
            return Ok(());
        }
        if section == Section::Handlers && name == "outdate-peer" {
            self.warn(
                Code::Renamed,
                token.span,
                "outdate-peer is called fence-peer now",
            );
        }
        if let Some(setting) = self.load_checks(spec, setting) {
            settings.push(setting);
        }
        Ok(())
    }

    /// `protocol` and `incon-degr-cmd`: statements of a resource that are options elsewhere now.
    pub(super) fn statement_option(
        &mut self,
        section: Section,
        name: &str,
        at: Span,
    ) -> Parsed<Option<Setting>> {
        let Some(named) = find_option(section, name) else {
            return Ok(None);
        };
        let errors = self.errors;
        let setting = self.option_value(&named, at)?;
        self.expect(';')?;
        if self.errors > errors {
            return Ok(None);
        }
        Ok(self.load_checks(named.spec, setting))
    }

    /// The value, checked. A wrong value is reported and reading goes on behind it.
    fn option_value(&mut self, named: &Named, at: Span) -> Parsed<Setting> {
        let spec = named.spec;
        let make = |value, text: String, value_at| Setting {
            spec,
            value,
            text,
            at,
            value_at,
        };
        if named.negated {
            return Ok(make(Value::Switch(false), "no".to_owned(), at));
        }
        if matches!(spec.kind, Kind::Switch | Kind::Flag) {
            if self.at(';')? {
                return Ok(make(Value::Switch(true), "yes".to_owned(), at));
            }
            let word = self.value("value")?;
            let on = word.value == "yes";
            if !on && word.value != "no" {
                self.report(Diagnostic::expected(
                    Code::Bool,
                    word.at,
                    ["yes", "no"],
                    &word.value,
                ));
            }
            return Ok(make(Value::Switch(on), word.value, word.at));
        }
        let word = self.value("value")?;
        if spec.kind == Kind::Names {
            let mut names = vec![word.value.clone()];
            while !self.at(';')? {
                names.push(self.name("host name")?.value);
            }
            let text = names
                .iter()
                .map(|n| quote_if_needed(n))
                .collect::<Vec<_>>()
                .join(" ");
            return Ok(make(Value::Names(names), text, word.at));
        }
        Ok(match self.checked_value(spec, &word) {
            Ok((value, text)) => make(value, text, word.at),
            Err(error) => {
                self.report(*error);
                make(Value::Switch(false), String::new(), word.at)
            }
        })
    }

    fn checked_value(
        &mut self,
        spec: &OptionSpec,
        word: &Spanned<String>,
    ) -> Parsed<(Value, String)> {
        let text = word.value.as_str();
        let choose = |words: &[&str]| {
            let error = Diagnostic::expected(Code::Enum, word.at, words.iter().copied(), text);
            Box::new(match nearest(text, words.iter().copied()) {
                Some(near) => error.hinting(format!("did you mean {near}?")),
                None => error,
            })
        };
        let same = |value: &str| (Value::Text(value.to_owned()), quote_if_needed(value));
        match spec.kind {
            Kind::Number { .. } | Kind::Clamped { .. } => self.checked_number(spec, word),
            Kind::Choice(_) if text == "panic" && spec.name == "on-io-error" => {
                self.out.marks.v07 = true;
                self.warn(
                    Code::LegacyPanic,
                    word.at,
                    "on-io-error panic is gone: call-local-io-error is used; add a handler local-io-error \
                     that stops the machine",
                );
                Ok(same("call-local-io-error"))
            }
            Kind::Choice(words) if words.contains(&text) => Ok(same(text)),
            Kind::Choice(words) => Err(choose(words)),
            Kind::Protocol => match text.to_ascii_uppercase().as_str() {
                upper @ ("A" | "B" | "C") => Ok(same(upper)),
                _ => Err(choose(&["A", "B", "C"])),
            },
            Kind::AfterSplitBrain0(words) => {
                let node = text
                    .strip_prefix("discard-node-")
                    .is_some_and(|n| !n.is_empty());
                if node || words.contains(&text) {
                    Ok(same(text))
                } else {
                    Err(choose(words))
                }
            }
            Kind::Votes => {
                let votes = text.parse::<u8>().is_ok_and(|n| (1..=32).contains(&n));
                let words = ["off", "majority", "all", "1..32"];
                if votes || words[..3].contains(&text) {
                    Ok(same(text))
                } else {
                    Err(choose(&words))
                }
            }
            Kind::Text { max } => checked_text(spec, word, max),
            Kind::Switch | Kind::Flag | Kind::Names => Ok(same(text)),
        }
    }

    fn checked_number(
        &mut self,
        spec: &OptionSpec,
        word: &Spanned<String>,
    ) -> Parsed<(Value, String)> {
        let text = word.value.as_str();
        match spec.kind {
            Kind::Number { unit, min, max } => {
                let number = number_in_unit(text, unit, word.at)?;
                if number < min || number > max {
                    return Err(out_of_range(spec, word, min, max));
                }
                Ok((Value::Number(number), text.to_owned()))
            }
            Kind::Clamped { min, max } => {
                let number = number_in_unit(text, Unit::Count, word.at)?;
                let clamped = number.clamp(min, max);
                if clamped == number {
                    return Ok((Value::Number(number), text.to_owned()));
                }
                let message = format!(
                    "{} {text} is out of range {min}..{max}: {clamped} is used",
                    spec.name
                );
                self.warn(Code::Clamped, word.at, message);
                Ok((Value::Number(clamped), clamped.to_string()))
            }
            _ => Ok((Value::Text(text.to_owned()), quote_if_needed(text))),
        }
    }

    /// Warnings and refusals that depend on the value; nothing comes back for what has no home any more.
    fn load_checks(&mut self, spec: &'static OptionSpec, setting: Setting) -> Option<Setting> {
        let marks_07 = matches!(
            (spec.section, spec.name),
            (Section::Net, "on-disconnect")
                | (Section::Syncer, "group" | "skip-sync")
                | (Section::Global, "disable-io-hints")
        );
        self.out.marks.v07 |= marks_07;
        if spec.section == Section::Syncer && spec.name == "group" {
            let message = "syncer groups are old: resources of lower groups resync first; \
                           write disk { resync-after RESOURCE; } instead";
            self.warn(Code::LegacyGroup, setting.at, message);
        }
        let (state, reason) = match spec.support {
            options::Support::Supported => ("may have no effect", "not every case of it is there"),
            options::Support::NoEffect(why) | options::Support::Refused(why) => ("is ignored", why),
        };
        let set = !spec.is_default(&setting.value);
        match spec.load_warning {
            LoadWarning::Ignored if set => {
                self.warn(
                    Code::IgnoredOption,
                    setting.at,
                    format!("{} {state}: {reason}", spec.name),
                );
            }
            LoadWarning::NotSupported if set => {
                self.warn(
                    Code::NotSupported,
                    setting.at,
                    format!("{} is not supported: {reason}", spec.name),
                );
            }
            LoadWarning::Refused if set => {
                let message = format!("{} is refused: {reason}", spec.name);
                self.report(
                    Diagnostic::expected(Code::Unsupported, setting.at, [""; 0], spec.name)
                        .saying(message)
                        .hinting("remove the line"),
                );
                return None;
            }
            _ => {}
        }
        let dead = spec.section == Section::Syncer && spec.name != "group";
        (!dead).then_some(setting)
    }
}

fn checked_text(spec: &OptionSpec, word: &Spanned<String>, max: usize) -> Parsed<(Value, String)> {
    let text = word.value.as_str();
    let len = text.chars().count();
    if len > max {
        let expected = [format!("at most {max} characters")];
        // A secret is not repeated in messages.
        let found = if spec.name == "shared-secret" {
            format!("{len} characters")
        } else {
            text.to_owned()
        };
        return Err(Box::new(Diagnostic::expected(
            Code::StringTooLong,
            word.at,
            expected,
            found,
        )));
    }
    let quoted = if spec.section == Section::Handlers {
        quote(text)
    } else {
        quote_if_needed(text)
    };
    Ok((Value::Text(text.to_owned()), quoted))
}

/// The row of an option name in a section, old spellings and `no-` included.
fn find_option(section: Section, name: &str) -> Option<Named> {
    let direct = |name: &str| match (section, name) {
        (Section::Syncer, _) => match options::syncer_home(name) {
            Some((home, new)) => options::find(home, new),
            None => options::find(section, name),
        },
        (Section::Disk, "fencing") => options::find(Section::Net, "fencing"),
        (Section::Handlers, "outdate-peer") => options::find(section, "fence-peer"),
        // Its home is the resource; 8.4 and 9 allow it in both places.
        _ => options::find(section, name),
    };
    if let Some(spec) = direct(name) {
        return Some(Named {
            spec,
            negated: false,
        });
    }
    let spec = direct(name.strip_prefix("no-")?)?;
    matches!(spec.kind, Kind::Switch | Kind::Flag).then_some(Named {
        spec,
        negated: true,
    })
}

fn unknown_option(section: Section, name: &str, token: &Token) -> Box<Diagnostic> {
    let expected = [format!("an option of {}", section.keyword())];
    let error = Diagnostic::expected(Code::UnknownOption, token.span, expected, name);
    let elsewhere = options::OPTIONS.iter().find(|s| s.name == name);
    Box::new(
        match (nearest(name, options::names_in(section)), elsewhere) {
            (_, Some(spec)) => {
                let home = spec.section.keyword();
                error.hinting(format!(
                    "{name} belongs to the {home} section: {home} {{ {name} ...; }}"
                ))
            }
            (Some(near), None) => error.hinting(format!("did you mean {near}?")),
            (None, None) => error,
        },
    )
}

fn out_of_range(spec: &OptionSpec, word: &Spanned<String>, min: u64, max: u64) -> Box<Diagnostic> {
    let expected = [format!("{min}..{max}")];
    let error = Diagnostic::expected(Code::Range, word.at, expected, &word.value);
    Box::new(match spec.kind {
        Kind::Number {
            unit: Unit::Count, ..
        } => error,
        Kind::Number { unit, .. } => {
            error.hinting(format!("{} is counted in {}", spec.name, unit.words()))
        }
        _ => error,
    })
}

/// Digits with an optional unit letter, in the option's own unit, rounded up (spec section 1.4).
fn number_in_unit(text: &str, unit: Unit, at: Span) -> Parsed<u64> {
    let bad = || {
        let expected = ["integer with optional unit k M G s"];
        Box::new(Diagnostic::expected(Code::BadNumber, at, expected, text))
    };
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], Some(1u128 << 10)),
        Some(b'm' | b'M') => (&text[..text.len() - 1], Some(1 << 20)),
        Some(b'g' | b'G') => (&text[..text.len() - 1], Some(1 << 30)),
        Some(b's') => (&text[..text.len() - 1], Some(512)),
        _ => (text, None),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    // A number too long for 64 bits is out of every range.
    let plain = u128::from(digits.parse::<u64>().unwrap_or(u64::MAX));
    let Some(factor) = factor else {
        return Ok(saturate(plain));
    };
    let bytes = plain * factor;
    Ok(saturate(match unit {
        Unit::Kibibytes => bytes.div_ceil(1024),
        Unit::Sectors => bytes.div_ceil(512),
        Unit::Bytes | Unit::Count | Unit::Seconds | Unit::Deciseconds | Unit::Milliseconds => bytes,
    }))
}

fn saturate(n: u128) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// `text` as a word, or in quotes where it must be.
pub(crate) fn quote_if_needed(text: &str) -> String {
    if is_plain_word(text) {
        text.to_owned()
    } else {
        quote(text)
    }
}

/// `text` in quotes.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_letters_are_binary_and_round_up() {
        let number = |text: &str, unit| number_in_unit(text, unit, Span::default()).unwrap();
        assert_eq!(number("10M", Unit::Kibibytes), 10240);
        assert_eq!(number("1M", Unit::Sectors), 2048);
        assert_eq!(number("1G", Unit::Sectors), 2_097_152);
        assert_eq!(number("8K", Unit::Count), 8192);
        assert_eq!(number("1s", Unit::Kibibytes), 1);
        assert_eq!(number("007", Unit::Bytes), 7);
        assert_eq!(number("99999999999999999999999", Unit::Bytes), u64::MAX);
        assert_eq!(number("18446744073709551615G", Unit::Bytes), u64::MAX);
    }

    #[test]
    fn every_option_default_lies_in_its_range() {
        for spec in options::OPTIONS {
            if let (
                Kind::Number { min, max, .. } | Kind::Clamped { min, max },
                options::DefaultValue::Number(d),
            ) = (spec.kind, spec.default)
            {
                assert!((min..=max).contains(&d), "{}", spec.name);
            }
        }
    }
}
