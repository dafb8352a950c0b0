//! What the kernel says about a resource, and whether a healthy pair says such things.
//!
//! The vocabulary is that of the golden captures in `tests/golden/wire`: two kernel nodes that nothing happened to.
//! Numbers, identifiers and names are left out of the comparison. A change of state is in order unless it
//! names a failure of the link.

use std::collections::BTreeSet;
use std::fs;
use std::sync::OnceLock;

use crate::golden::golden_dir;

/// Captures in which nothing fails.
const HEALTHY: &[&str] = &[
    "01-initial-sync",
    "02-writes-A",
    "02-writes-B",
    "02-writes-C",
    "03-bitmap-resync",
    "03-bitmap-resync-no-rle",
    "04-verify",
    "06-auth-sha1",
    "06-auth-sha256",
    "07-trim",
    "08-csums-resync",
    "09-data-integrity",
    "10-diskless-primary",
    "11-thin-resync",
    "16-flexible-external-md",
    "17-ahead-behind",
];

/// What a healthy pair may say beyond that, depending on sizes and on who comes first.
const ALSO_HEALTHY: &[&str] = &[
    "max BIO size = ",
    "Feature flags enabled on protocol level: ",
    "peer does not support discards",
    "drbd_bm_resize called with capacity == ",
    "resync bitmap: bits=",
    "detected capacity change from ",
    "size = ",
    "bitmap READ of ",
    "bitmap WRITE of ",
    "Resync done (total ",
    "Began resync as ",
    "Writing the whole bitmap",
    "recounting of set bits took additional ",
    "initial packet S crossed",
    "initial packet M crossed",
    "No resync, but ",
    "my disk(), peer disk()",
    "drbd_sync_handshake:",
    "uuid_compare()=",
    "helper command: ",
    "marked out-of-sync by on disk bit-map",
];

/// Words that no test may hear, whatever it announced.
const NEVER: &[&str] = &[
    "BUG",
    "ASSERT",
    "ASSERTION",
    "Oops",
    "unexpected cstate",
    "Bad magic",
    "bad magic",
    "Unexpected data packet",
    "Unknown packet type",
    "Wrong magic",
    "e_sync",
    "Digest integrity check FAILED",
    "Digest mismatch",
    "FIXME",
    "logic bug",
];

/// The messages about one resource: its name and the numbers of its minors.
pub fn of_resource(all: &str, name: &str, minors: std::ops::Range<u32>) -> Vec<String> {
    let mut prefixes = vec![format!("drbd {name}: ")];
    for minor in minors {
        prefixes.push(format!("block drbd{minor}: "));
        prefixes.push(format!("drbd{minor}: "));
    }
    all.lines()
        .filter_map(|line| {
            let text = line.split_once(';')?.1;
            prefixes
                .iter()
                .find_map(|prefix| text.strip_prefix(prefix.as_str()))
        })
        .map(|text| text.trim_end().to_owned())
        .collect()
}

/// What the kernel says of itself when it is in trouble, whoever caused it.
pub fn of_trouble(all: &str) -> Vec<String> {
    let signs = [
        "BUG:",
        "Oops",
        "WARNING: CPU",
        "kernel panic",
        "Kernel panic",
        "blocked for more than",
        "soft lockup",
        "Call Trace",
    ];
    all.lines()
        .filter_map(|line| line.split_once(';').map(|(_, text)| text))
        .filter(|text| signs.iter().any(|sign| text.contains(sign)))
        .map(str::to_owned)
        .collect()
}

/// Those of `messages` that a healthy kernel pair does not say and that `announced` does not have (parts of lines).
pub fn judge(messages: &[String], name: &str, announced: &[&str]) -> Vec<String> {
    let strange = |(at, message): &(usize, &String)| {
        !is_in_order(message, name, announced) && !ends_a_teardown(messages, *at)
    };
    let strange = messages.iter().enumerate().filter(strange);
    strange.map(|(_, message)| message.clone()).collect()
}

/// After an announced end the kernel's two receivers race: on a slow machine the one of the meta socket says so when it comes second.
fn ends_a_teardown(messages: &[String], at: usize) -> bool {
    let announced = |message: &String| message.contains("conn( Connected -> TearDown )");
    messages[at] == "meta connection shut down by peer."
        && messages[at.saturating_sub(3)..at].iter().any(announced)
}

fn is_in_order(message: &str, name: &str, announced: &[&str]) -> bool {
    if NEVER.iter().any(|word| message.contains(word)) {
        return announced.contains(&message);
    }
    if announced.iter().any(|part| message.contains(part)) {
        return true;
    }
    if is_change_of_state(message) {
        let failures = ["BrokenPipe", "NetworkFailure", "ProtocolError", "Timeout"];
        return !failures.iter().any(|failure| message.contains(failure));
    }
    ALSO_HEALTHY.iter().any(|part| message.contains(part))
        || vocabulary().contains(&shape(message, name))
}

/// `role( Secondary -> Primary ) disk( UpToDate -> Failed )`
fn is_change_of_state(message: &str) -> bool {
    message
        .split(") ")
        .all(|part| part.contains("( ") && part.contains(" -> "))
}

fn vocabulary() -> &'static BTreeSet<String> {
    static WORDS: OnceLock<BTreeSet<String>> = OnceLock::new();
    WORDS.get_or_init(|| {
        let mut words = BTreeSet::new();
        for capture in HEALTHY {
            let path = golden_dir().join("wire").join(capture).join("events.txt");
            let text = fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            for line in text.lines() {
                let Some((_, said)) = line.split_once("] ") else {
                    continue;
                };
                for prefix in ["drbd r0: ", "block drbd0: ", "drbd0: "] {
                    if let Some(said) = said.strip_prefix(prefix) {
                        words.insert(shape(said, "r0"));
                    }
                }
            }
        }
        words
    })
}

/// The message without what differs from run to run.
fn shape(message: &str, name: &str) -> String {
    let message = message.trim_end().replace(name, "NAME");
    let mut shape = String::with_capacity(message.len());
    let mut rest = message.as_str();
    while let Some(first) = rest.chars().next() {
        let end = rest
            .find(|letter: char| !letter.is_ascii_alphanumeric())
            .unwrap_or(rest.len());
        if end == 0 {
            shape.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(end);
        rest = after;
        if word.len() >= 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            shape.push('#');
            continue;
        }
        let mut digits = false;
        for letter in word.chars() {
            if letter.is_ascii_digit() {
                if !digits {
                    shape.push('#');
                }
                digits = true;
            } else {
                digits = false;
                shape.push(letter);
            }
        }
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_healthy_kernels_said_is_in_order_under_other_names_and_numbers() {
        let all = "6,339,5140900,-;drbd s3: Starting ack_recv thread (from drbd_r_s3 [1234])\n\
                   6,340,5140901,-;block drbd3: updated UUIDs 0EEA06DFE3B98789:0000000000000000:66B656DC9B402C57:1\n\
                   6,341,5140902,-;block drbd3: role( Secondary -> Primary ) \n\
                   6,342,5140903,-;block drbd4: not ours\n";
        let messages = of_resource(all, "s3", 3..4);
        assert_eq!(messages.len(), 3);
        assert_eq!(judge(&messages, "s3", &[]), Vec::<String>::new());
    }

    #[test]
    fn a_protocol_error_is_not_in_order_and_an_announced_loss_is() {
        let broken = vec![String::from(
            "conn( Connected -> ProtocolError ) peer( Secondary -> Unknown )",
        )];
        assert_eq!(judge(&broken, "s3", &[]), broken);
        let lost = vec![String::from("conn( Connected -> BrokenPipe )")];
        assert_eq!(judge(&lost, "s3", &[]), lost);
        assert_eq!(judge(&lost, "s3", &["BrokenPipe"]), Vec::<String>::new());
        let odd = vec![String::from("something nobody ever said")];
        assert_eq!(judge(&odd, "s3", &[]), odd);
    }
}
