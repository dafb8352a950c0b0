//! How the program was called: its name, `--root` and `-c`. Every "next:" repeats them, so that it can be typed as is.

use std::path::{Path, PathBuf};

use tandem_daemon::places::Places;

/// What stays the same for the whole run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// The words that lead to `tandem`, such as `tandem` or `target/release/tandem`.
    pub(crate) tandem: String,
    /// The words that lead to the administration tool: `tandem adm`, or `drbdadm` when called by that name.
    pub(crate) adm: String,
    /// `--root`.
    pub(crate) root: Option<PathBuf>,
    /// `-c`; `-` is standard input.
    pub(crate) config_file: Option<String>,
}

impl Invocation {
    /// From the program's name as it was typed.
    pub(crate) fn of(program: &str) -> Invocation {
        let (directory, name) = match program.rsplit_once('/') {
            Some((directory, name)) => (format!("{directory}/"), name),
            None => (String::new(), program),
        };
        let adm = matches!(name, "drbdadm" | "tandemadm");
        let tandem = if name.is_empty() || adm || name == "tandemd" {
            "tandem".to_owned()
        } else {
            name.to_owned()
        };
        let tandem = quoted(&format!("{directory}{tandem}"));
        Invocation {
            adm: if adm {
                quoted(program)
            } else {
                format!("{tandem} adm")
            },
            tandem,
            root: None,
            config_file: None,
        }
    }

    /// The root of the node, `/` unless `--root` says otherwise.
    pub(crate) fn root_dir(&self) -> &Path {
        self.root.as_deref().unwrap_or(Path::new("/"))
    }

    /// Where the node's files lie.
    pub(crate) fn places(&self) -> Places {
        Places::new(self.root_dir())
    }

    /// The configuration file that is read.
    pub(crate) fn config_path(&self) -> PathBuf {
        match &self.config_file {
            Some(file) => PathBuf::from(file),
            None => self.places().etc_dir().join("drbd.conf"),
        }
    }

    /// An administration command that can be typed as is.
    pub(crate) fn adm(&self, rest: &str) -> String {
        let mut words = vec![self.adm.clone()];
        words.extend(self.root_words());
        if let Some(file) = &self.config_file {
            words.extend(["-c".to_owned(), quoted(file)]);
        }
        words.push(rest.to_owned());
        words.join(" ")
    }

    /// Another command of `tandem` (`status`, `daemon`) that can be typed as is.
    pub(crate) fn tandem(&self, rest: &str) -> String {
        let mut words = vec![self.tandem.clone(), rest.to_owned()];
        words.extend(self.root_words());
        words.join(" ")
    }

    /// A hint of the daemon, which knows neither how this program was called nor its options.
    pub(crate) fn hint(&self, hint: &str) -> String {
        // What is to be typed on the other node has that node's root, which is not known here.
        let there = hint.contains("on the peer");
        let adm = if there {
            "tandem adm ".to_owned()
        } else {
            self.adm("")
        };
        // One pass: what is put in may hold a name again.
        const MARK: char = '\u{1}';
        let mut text = hint.to_owned();
        for name in ["tandem adm ", "tandemadm ", "drbdadm "] {
            text = text.replace(name, &MARK.to_string());
        }
        let is_command = text.starts_with(MARK);
        text = text.replace("; then: ", " && ").replace(MARK, &adm);
        if is_command && let Some((command, remark)) = text.split_once(" (") {
            // Parentheses are no shell words; behind a # a remark does not hinder typing the line as is.
            return format!("{command}   # {}", remark.trim_end_matches(')'));
        }
        match text.strip_prefix("tandem ") {
            Some(rest) if !is_command => self.tandem(rest),
            _ => text,
        }
    }

    fn root_words(&self) -> Vec<String> {
        match &self.root {
            Some(root) => vec!["--root".to_owned(), quoted(&root.to_string_lossy())],
            None => Vec::new(),
        }
    }
}

/// A word as a shell takes it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_type_next_repeats_root_and_configuration() {
        let mut invocation = Invocation::of("target/release/tandem");
        assert_eq!(invocation.adm("up r0"), "target/release/tandem adm up r0");
        invocation.root = Some("/tmp/a b".into());
        invocation.config_file = Some("x.conf".to_owned());
        assert_eq!(
            invocation.hint("drbdadm primary r0"),
            "target/release/tandem adm --root '/tmp/a b' -c x.conf primary r0"
        );
        assert_eq!(
            invocation.hint("tandem adm secondary r0 (on the peer)"),
            "tandem adm secondary r0   # on the peer"
        );
        assert_eq!(
            invocation.hint("tandemadm down r0; then: tandem adm up r0"),
            "target/release/tandem adm --root '/tmp/a b' -c x.conf down r0 && target/release/tandem adm --root '/tmp/a b' -c x.conf up r0"
        );
        assert_eq!(
            invocation.hint("tandem status"),
            "target/release/tandem status --root '/tmp/a b'"
        );
    }

    #[test]
    fn called_as_drbdadm_it_says_drbdadm() {
        let invocation = Invocation::of("/usr/sbin/drbdadm");
        assert_eq!(invocation.adm("up r0"), "/usr/sbin/drbdadm up r0");
        assert_eq!(invocation.tandem("status"), "/usr/sbin/tandem status");
    }
}
