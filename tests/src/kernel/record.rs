//! What a scenario did and how long it took, for the table that `scripts/interop` writes.
//!
//! With `TANDEM_INTEROP_RECORDS=DIR` each pair appends one line to the file `DIR/NAME OF THE TEST`: seconds, what Tandem was, what
//! the kernel was, and the kernel's version, with tabs between them. The parts are those that the kernel's own messages name.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

/// Where the records go.
const DIRECTORY: &str = "TANDEM_INTEROP_RECORDS";

/// One pair's life.
#[derive(Debug)]
pub struct Record {
    began: Instant,
}

impl Record {
    /// The life begins.
    pub fn begin() -> Record {
        Record {
            began: Instant::now(),
        }
    }

    /// The life has ended; `messages` are the kernel's about the resource, `log` is Tandem's.
    pub fn end(&self, messages: &[String], log: &str, version: &str) {
        let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
            return;
        };
        // libtest names each test's thread after the test.
        let thread = std::thread::current();
        let Some(name) = thread.name().filter(|name| *name != "main") else {
            return;
        };
        let parts = Parts::of(messages, log);
        let line = format!(
            "{:.1}\t{}\t{}\t{version}\n",
            self.began.elapsed().as_secs_f64(),
            words(&parts.tandem),
            words(&parts.kernel),
        );
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(directory.join(name));
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            eprintln!("{}: {name}: {error}", directory.display());
        }
    }
}

fn words(parts: &[&str]) -> String {
    if parts.is_empty() {
        String::from("Secondary")
    } else {
        parts.join(", ")
    }
}

/// What each node was beyond Secondary, in the order in which it became so.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parts {
    tandem: Vec<&'static str>,
    kernel: Vec<&'static str>,
}

/// In the kernel's messages: what is said, what the kernel is then, what Tandem is then.
const SIGNS: &[(&str, Option<&str>, Option<&str>)] = &[
    (
        "began resync as syncsource",
        Some("SyncSource"),
        Some("SyncTarget"),
    ),
    (
        "began resync as synctarget",
        Some("SyncTarget"),
        Some("SyncSource"),
    ),
    ("-> ahead )", Some("Ahead"), Some("Behind")),
    ("-> verifys )", Some("VerifyS"), Some("VerifyT")),
    ("-> verifyt )", Some("VerifyT"), Some("VerifyS")),
];

impl Parts {
    fn of(messages: &[String], log: &str) -> Parts {
        let mut parts = Parts::default();
        for message in messages {
            for change in message.split(") ") {
                let change = change.trim();
                if change.starts_with("role( ") && becomes_primary(change) {
                    add(&mut parts.kernel, "Primary");
                } else if change.starts_with("peer( ") && becomes_primary(change) {
                    add(&mut parts.tandem, "Primary");
                }
            }
            let said = message.to_lowercase();
            for (sign, kernel, tandem) in SIGNS {
                if said.contains(sign) {
                    kernel.iter().for_each(|part| add(&mut parts.kernel, part));
                    tandem.iter().for_each(|part| add(&mut parts.tandem, part));
                }
            }
        }
        // What it was while the kernel could not see it.
        if log.contains(PRIMARY_ALONE) {
            add(&mut parts.tandem, "Primary");
        }
        parts
    }
}

/// In Tandem's log: it became Primary.
const PRIMARY_ALONE: &str = "role( Secondary -> Primary )";

fn becomes_primary(change: &str) -> bool {
    let end = change.trim_end_matches([' ', ')']);
    end.ends_with("-> Primary")
}

fn add(parts: &mut Vec<&'static str>, part: &'static str) {
    if !parts.contains(&part) {
        parts.push(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_both_are_read_from_what_the_kernel_said() {
        let messages: Vec<String> = [
            "role( Secondary -> Primary ) disk( Inconsistent -> UpToDate ) ",
            "conn( WFBitMapS -> SyncSource ) pdsk( Consistent -> Inconsistent ) ",
            "Began resync as SyncSource (will sync 64 KB [16 bits set]).",
            "role( Primary -> Secondary ) ",
            "peer( Secondary -> Primary ) ",
        ]
        .map(String::from)
        .to_vec();
        let parts = Parts::of(&messages, "");
        assert_eq!(parts.kernel, ["Primary", "SyncSource"]);
        assert_eq!(parts.tandem, ["SyncTarget", "Primary"]);
        assert_eq!(Parts::of(&[], ""), Parts::default());
    }
}
