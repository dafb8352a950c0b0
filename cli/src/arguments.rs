//! drbdadm's command line: options anywhere, unique abbreviations, old-style backend options after `--`
//! (docs/spec/config-and-cli.md 4.1). Written by hand, since no parser of options knows this syntax.

use tandem_config::Section;
use tandem_config::options::Kind;
use thiserror::Error;

/// Whether an option takes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Nothing, or `=yes` and `=no`.
    Nothing,
    /// A value: `--opt=V` or `--opt V`.
    Value,
    /// A value only in the form `--opt=V`.
    OptionalValue,
}

/// General options: they may stand with any command.
pub(crate) const GENERAL: &[&str] = &[
    "config-file",
    "config-to-test",
    "config-to-exclude",
    "dry-run",
    "verbose",
    "stacked",
    "sh-varname",
    "peer",
    "setup-option",
    "version",
    "help",
    "root",
    "compat",
    "drbdsetup",
    "drbdmeta",
    "drbd-proxy-ctl",
];

/// Every long option that any command knows; abbreviations must be unique among all of them.
pub(crate) const LONG: &[(&str, Takes)] = &[
    ("config-file", Takes::Value),
    ("config-to-test", Takes::Value),
    ("config-to-exclude", Takes::Value),
    ("dry-run", Takes::Nothing),
    ("verbose", Takes::Nothing),
    ("stacked", Takes::Nothing),
    ("sh-varname", Takes::Value),
    ("peer", Takes::Value),
    ("setup-option", Takes::Value),
    ("version", Takes::Nothing),
    ("help", Takes::Nothing),
    ("root", Takes::Value),
    ("compat", Takes::Value),
    ("drbdsetup", Takes::Value),
    ("drbdmeta", Takes::Value),
    ("drbd-proxy-ctl", Takes::Value),
    ("force", Takes::Nothing),
    ("overwrite-data-of-peer", Takes::Nothing),
    ("do-what-I-say", Takes::Nothing),
    ("human", Takes::Nothing),
    ("timeout-expired", Takes::Nothing),
    ("discard-my-data", Takes::Nothing),
    ("tentative", Takes::Nothing),
    ("skip-disk", Takes::Nothing),
    ("skip-net", Takes::Nothing),
    ("max-peers", Takes::Value),
    ("peer-max-bio-size", Takes::Value),
    ("al-stripes", Takes::Value),
    ("al-stripe-size-kB", Takes::Value),
    ("ignore-sanity-checks", Takes::Nothing),
    ("json", Takes::Nothing),
    ("statistics", Takes::Nothing),
    ("color", Takes::OptionalValue),
    ("now", Takes::Nothing),
    ("timestamps", Takes::Nothing),
    ("wfc-timeout", Takes::Value),
    ("degr-wfc-timeout", Takes::Value),
    ("outdated-wfc-timeout", Takes::Value),
    ("wait-after-sb", Takes::Nothing),
    ("clear-bitmap", Takes::Nothing),
    ("start", Takes::Value),
    ("stop", Takes::Value),
    ("size", Takes::Value),
    ("assume-peer-has-space", Takes::Nothing),
    ("assume-clean", Takes::Nothing),
];

/// Sections of drbd.conf whose options commands take.
const SECTIONS: &[Section] = &[Section::Disk, Section::Net, Section::Options];

const SHORT: &[(char, &str)] = &[
    ('c', "config-file"),
    ('d', "dry-run"),
    ('v', "verbose"),
    ('S', "stacked"),
    ('s', "drbdsetup"),
    ('m', "drbdmeta"),
    ('p', "drbd-proxy-ctl"),
    ('f', "force"),
    ('t', "config-to-test"),
    ('E', "config-to-exclude"),
    ('n', "sh-varname"),
    ('P', "peer"),
    ('W', "setup-option"),
    ('V', "version"),
    ('h', "help"),
];

/// A command line that cannot be understood (exit 1).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum ArgumentError {
    /// No option of this name, or not with this command.
    #[error("unrecognized option '{option}'")]
    Unrecognized {
        /// As written.
        option: String,
        /// The option that was probably meant.
        meant: Option<&'static str>,
    },
    /// An abbreviation of several options.
    #[error("option '{option}' is ambiguous; possibilities: {}", possibilities.join(", "))]
    Ambiguous {
        /// As written.
        option: String,
        /// With their dashes.
        possibilities: Vec<String>,
    },
    /// The value is missing.
    #[error("option '{option}' requires an argument")]
    ValueMissing {
        /// As written.
        option: String,
    },
    /// A value where there is none to give.
    #[error("option '--{option}' takes no value but yes or no, got '{value}'")]
    ValueUnwanted {
        /// Its name.
        option: &'static str,
        /// What was given.
        value: String,
    },
}

/// An option that was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) name: &'static str,
    pub(crate) value: Option<String>,
}

/// A command line, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) command: Option<String>,
    pub(crate) targets: Vec<String>,
    /// Long and short options, general or not, in order.
    pub(crate) options: Vec<Given>,
    /// Words for the backend: those between `--` and the command, and those of `-W`.
    pub(crate) backend: Vec<String>,
}

impl Arguments {
    /// Takes apart what follows the program's name.
    ///
    /// # Errors
    /// [`ArgumentError`]
    pub(crate) fn parse(words: &[String]) -> Result<Arguments, ArgumentError> {
        let mut parsed = Arguments::default();
        let mut rest = words.iter();
        let mut targets_only = false;
        while let Some(word) = rest.next() {
            if targets_only {
                parsed.plain(word);
            } else if word == "--" {
                if parsed.command.is_some() {
                    targets_only = true;
                } else {
                    parsed.backend_words(&mut rest);
                }
            } else if let Some(option) = word.strip_prefix("--") {
                parsed.long(word, option, &mut rest)?;
            } else if let Some(letters) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) {
                parsed.short(letters, &mut rest)?;
            } else {
                parsed.plain(word);
            }
        }
        Ok(parsed)
    }

    /// Whether a flag was given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.options.iter().any(|given| given.name == name)
    }

    /// The last value given.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let last = self.options.iter().rev().find(|given| given.name == name)?;
        last.value.as_deref()
    }

    fn plain(&mut self, word: &str) {
        if self.command.is_none() {
            self.command = Some(word.to_owned());
        } else {
            self.targets.push(word.to_owned());
        }
    }

    /// Words after `--` up to the command are the backend's.
    fn backend_words<'a>(&mut self, rest: &mut impl Iterator<Item = &'a String>) {
        for word in rest {
            let known = crate::words::find(word).is_some();
            // A bare word that is no command may be the value of the option before it.
            if known || (!word.starts_with('-') && self.backend.is_empty()) {
                self.command = Some(word.clone());
                return;
            }
            self.backend.push(word.clone());
        }
        // No command among them: the last bare word was meant to be one.
        if let Some(at) = self.backend.iter().position(|word| !word.starts_with('-')) {
            let mut words = self.backend.split_off(at).into_iter();
            self.command = words.next();
            self.targets.extend(words);
        }
    }

    fn long<'a>(
        &mut self,
        word: &str,
        option: &str,
        rest: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), ArgumentError> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (option, None),
        };
        let found = find_long(name)?;
        self.give(word, found, value, rest)
    }

    fn short<'a>(
        &mut self,
        letters: &str,
        rest: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), ArgumentError> {
        for (at, letter) in letters.char_indices() {
            let word = format!("-{letter}");
            let Some((_, name)) = SHORT.iter().find(|(short, _)| *short == letter) else {
                return Err(ArgumentError::Unrecognized {
                    option: word,
                    meant: None,
                });
            };
            let found = find_long(name)?;
            let behind = &letters[at + letter.len_utf8()..];
            if found.1 == Takes::Value && !behind.is_empty() {
                let value = behind.strip_prefix('=').unwrap_or(behind);
                return self.give(&word, found, Some(value.to_owned()), rest);
            }
            self.give(&word, found, None, rest)?;
        }
        Ok(())
    }

    fn give<'a>(
        &mut self,
        word: &str,
        (name, takes): (&'static str, Takes),
        value: Option<String>,
        rest: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), ArgumentError> {
        let value = match (takes, value) {
            (Takes::Nothing, None) => None,
            (Takes::Nothing, Some(value)) if value == "yes" => None,
            (Takes::Nothing, Some(value)) if value == "no" => {
                self.options.retain(|given| given.name != name);
                return Ok(());
            }
            (Takes::Nothing, Some(value)) => {
                return Err(ArgumentError::ValueUnwanted {
                    option: name,
                    value,
                });
            }
            (Takes::OptionalValue, value) => value,
            (Takes::Value, Some(value)) => Some(value),
            (Takes::Value, None) => match rest.next() {
                Some(value) => Some(value.clone()),
                None => {
                    return Err(ArgumentError::ValueMissing {
                        option: word.to_owned(),
                    });
                }
            },
        };
        if name == "setup-option" {
            self.backend.extend(value);
        } else {
            self.options.push(Given { name, value });
        }
        Ok(())
    }
}

/// The option of this name, or the only one that it abbreviates.
fn find_long(name: &str) -> Result<(&'static str, Takes), ArgumentError> {
    if let Some(exact) = LONG.iter().find(|(long, _)| *long == name) {
        return Ok(*exact);
    }
    // Options of drbd.conf have no abbreviations: those of the commands stay as short as they are.
    if let Some(spec) = SECTIONS
        .iter()
        .find_map(|section| tandem_config::options::find(*section, name))
    {
        let takes = match spec.kind {
            Kind::Switch | Kind::Flag => Takes::OptionalValue,
            _ => Takes::Value,
        };
        return Ok((spec.name, takes));
    }
    let matching: Vec<_> = LONG
        .iter()
        .filter(|(long, _)| !name.is_empty() && long.starts_with(name))
        .collect();
    match matching.as_slice() {
        [one] => Ok(**one),
        [] => Err(ArgumentError::Unrecognized {
            option: format!("--{name}"),
            meant: tandem_config::diagnostics::nearest(name, LONG.iter().map(|(long, _)| *long)),
        }),
        several => Err(ArgumentError::Ambiguous {
            option: format!("--{name}"),
            possibilities: several
                .iter()
                .map(|(long, _)| format!("--{long}"))
                .collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, ArgumentError> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Arguments::parse(&words)
    }

    fn taken(line: &str) -> Arguments {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn options_may_stand_anywhere() {
        for line in [
            "--discard-my-data connect r0",
            "connect --discard-my-data r0",
            "connect r0 --discard-my-data",
            "--disc connect r0",
            "--discard-my-data=yes connect r0",
        ] {
            let arguments = taken(line);
            assert_eq!(arguments.command.as_deref(), Some("connect"), "{line}");
            assert_eq!(arguments.targets, ["r0"], "{line}");
            assert!(arguments.has("discard-my-data"), "{line}");
        }
        assert!(!taken("connect --discard-my-data=no r0").has("discard-my-data"));
    }

    #[test]
    fn words_between_the_dashes_and_the_command_are_for_the_backend() {
        let arguments = taken("-- --overwrite-data-of-peer primary r0 r1");
        assert_eq!(arguments.backend, ["--overwrite-data-of-peer"]);
        assert_eq!(arguments.command.as_deref(), Some("primary"));
        assert_eq!(arguments.targets, ["r0", "r1"]);
        let arguments = taken("-c x.conf -- --size 10G resize r0");
        assert_eq!(arguments.backend, ["--size", "10G"]);
        assert_eq!(arguments.command.as_deref(), Some("resize"));
    }

    #[test]
    fn dashes_after_the_command_end_the_options() {
        assert_eq!(taken("up -- --odd-name").targets, ["--odd-name"]);
    }

    #[test]
    fn short_options_may_share_a_dash_and_carry_values() {
        let arguments = taken("-dvcfile dump r0");
        assert!(arguments.has("dry-run") && arguments.has("verbose"));
        assert_eq!(arguments.value("config-file"), Some("file"));
        assert_eq!(taken("-c a -c b dump").value("config-file"), Some("b"));
        assert_eq!(taken("-c - dump").value("config-file"), Some("-"));
    }

    #[test]
    fn abbreviations_must_be_unique() {
        assert!(taken("primary --forc r0").has("force"));
        assert!(matches!(
            parse("primary --s r0"),
            Err(ArgumentError::Ambiguous { .. })
        ));
        assert!(matches!(
            parse("primary --frce r0"),
            Err(ArgumentError::Unrecognized {
                meant: Some("force"),
                ..
            })
        ));
        assert!(matches!(
            parse("dump -c"),
            Err(ArgumentError::ValueMissing { .. })
        ));
        assert!(matches!(
            parse("primary --force=maybe r0"),
            Err(ArgumentError::ValueUnwanted { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_command_line_makes_it_panic(words in proptest::collection::vec("(-{0,3}[a-zA-Z=/]{0,8}|\\PC{0,6})", 0..8)) {
            let _ = Arguments::parse(&words);
        }
    }
}
