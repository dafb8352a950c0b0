//! What the logs of both daemons say about a connection and a disk: from when on a node may lack what its peer answered.

use super::ledger::Micros;

/// Names of states in which the peer is there (docs/spec/state-machine.md 1).
const CONNECTED: &[&str] = &[
    "Connected",
    "StartingSyncS",
    "StartingSyncT",
    "WFBitMapS",
    "WFBitMapT",
    "WFSyncUUID",
    "SyncSource",
    "SyncTarget",
    "VerifyS",
    "VerifyT",
    "PausedSyncS",
    "PausedSyncT",
    "Ahead",
    "Behind",
];

/// One logged change of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When.
    pub at: Micros,
    /// `conn`, `disk`, `pdsk`, `role`...
    pub field: String,
    /// The old value.
    pub old: String,
    /// The new value.
    pub new: String,
}

/// Whether a connection in this state has its peer.
pub fn is_connected(name: &str) -> bool {
    CONNECTED.contains(&name)
}

/// The changes that a log tells of.
pub fn changes(log: &str) -> Vec<Change> {
    log.lines().filter_map(line).flatten().collect()
}

fn line(line: &str) -> Option<Vec<Change>> {
    if !line.contains("( ") {
        return None;
    }
    let at = time(line.split_whitespace().next()?)?;
    let mut found = Vec::new();
    for field in ["conn", "disk", "pdsk", "role", "peer"] {
        let head = format!(" {field}( ");
        let inner = line
            .split_once(&head)
            .and_then(|(_, rest)| rest.split_once(" )"));
        if let Some((old, new)) = inner.and_then(|(inner, _)| inner.split_once(" -> ")) {
            found.push(Change {
                at,
                field: field.to_owned(),
                old: old.to_owned(),
                new: new.to_owned(),
            });
        }
    }
    Some(found)
}

/// `2026-11-22T13:06:51.123456Z` in microseconds since 1970.
pub fn time(text: &str) -> Option<Micros> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut clock = clock.split(':');
    let hour: u64 = clock.next()?.parse().ok()?;
    let minute: u64 = clock.next()?.parse().ok()?;
    let (second, fraction) = clock.next()?.split_once('.')?;
    let second: u64 = second.parse().ok()?;
    let micros: u64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    // Days since 1970 of a date of our era, counting years from March.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = u64::try_from(days).ok()? * 86_400 + hour * 3600 + minute * 60 + second;
    Some(seconds * 1_000_000 + micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_clock() {
        assert_eq!(time("1970-01-01T00:00:00.000001Z"), Some(1));
        assert_eq!(
            time("2024-02-29T12:34:56.789Z"),
            Some(1_709_210_096_789_000)
        );
        assert_eq!(
            time("2026-11-22T13:06:51.123456Z"),
            Some(1_795_352_811_123_456)
        );
        assert_eq!(time("INFO"), None);
    }

    #[test]
    fn a_line_tells_every_field_that_changed() {
        let text = "2024-02-29T12:34:56.789000Z  INFO r0: volume=0 conn( Connected -> NetworkFailure ) peer( Secondary -> Unknown ) \
                    pdsk( UpToDate -> DUnknown )\nno state here\n";
        let found = changes(text);
        let words: Vec<_> = found
            .iter()
            .map(|change| {
                (
                    change.field.as_str(),
                    change.old.as_str(),
                    change.new.as_str(),
                )
            })
            .collect();
        assert_eq!(
            words,
            vec![
                ("conn", "Connected", "NetworkFailure"),
                ("pdsk", "UpToDate", "DUnknown"),
                ("peer", "Secondary", "Unknown")
            ]
        );
        assert!(
            found
                .iter()
                .all(|change| change.at == 1_709_210_096_789_000)
        );
        assert!(is_connected("SyncTarget") && !is_connected("NetworkFailure"));
    }
}
