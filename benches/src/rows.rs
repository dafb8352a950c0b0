//! What is measured: each row is one pattern of requests.

use serde::Serialize;

/// Bytes of every contender's device that are used: 80 extents of the activity log, more than the 67 that Tandem is given.
pub const DEVICE_BYTES: u64 = 320 << 20;

/// Bytes of the hot working set: 16 extents of the activity log.
pub const HOT_BYTES: u64 = 64 << 20;

/// Bytes of one extent of the activity log (docs/spec/metadata.md, activity log).
pub const EXTENT_BYTES: u64 = 4 << 20;

/// Extents that Tandem's activity log keeps in a comparison: the least that is allowed.
pub const AL_EXTENTS: u64 = 67;

const _: () = assert!(DEVICE_BYTES / EXTENT_BYTES > AL_EXTENTS);
const _: () = assert!(HOT_BYTES / EXTENT_BYTES < AL_EXTENTS);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Writes only.
    Write,
    /// Reads only.
    Read,
    /// Seven reads for three writes.
    Mixed,
}

/// Whether a write must be durable when it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fua {
    /// Not before a flush.
    No,
    /// Yes.
    Yes,
}

/// Where on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Span {
    /// At random in [`HOT_BYTES`].
    Hot,
    /// At random inside one extent, and the next request in the next extent: none of the least recently used 67 is hit again.
    Scattered,
    /// One block after the other over the whole device.
    Sequential,
}

/// One pattern of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its name, as `--rows` takes it.
    pub name: &'static str,
    /// What is asked for.
    pub kind: Kind,
    /// Bytes of each request.
    pub block_bytes: u32,
    /// Requests in flight on all connections together.
    pub depth: u32,
    /// NBD connections.
    pub connections: u32,
    /// Durability of each write.
    pub fua: Fua,
    /// A flush follows every so many writes, without a wait for either; 0 for none.
    pub flush_every: u32,
    /// Where.
    pub span: Span,
    /// Whether `--quick` has it.
    pub quick: bool,
}

const BASE: Row = Row {
    name: "",
    kind: Kind::Write,
    block_bytes: 4096,
    depth: 1,
    connections: 1,
    fua: Fua::No,
    flush_every: 0,
    span: Span::Hot,
    quick: false,
};

/// Of an application that waits for each read: no row of the table.
pub(crate) const READ_4K_D1: Row = Row {
    name: "read-4k-d1",
    kind: Kind::Read,
    ..BASE
};

/// Of an application that waits for each write.
pub(crate) const WRITE_4K_D1: Row = Row {
    name: "write-4k-d1",
    ..BASE
};

/// Of an application with much to write.
pub(crate) const WRITE_4K_D32: Row = Row {
    name: "write-4k-d32",
    depth: 32,
    ..BASE
};

/// All rows, in the order of the table.
pub const ROWS: &[Row] = &[
    Row {
        quick: true,
        ..WRITE_4K_D1
    },
    Row {
        quick: true,
        ..WRITE_4K_D32
    },
    Row {
        name: "write-4k-d32-c4",
        depth: 32,
        connections: 4,
        ..BASE
    },
    Row {
        name: "write-4k-d1-fua",
        fua: Fua::Yes,
        quick: true,
        ..BASE
    },
    Row {
        name: "write-4k-d32-fua",
        depth: 32,
        fua: Fua::Yes,
        ..BASE
    },
    Row {
        name: "write-4k-d1-flush8",
        flush_every: 8,
        ..BASE
    },
    Row {
        name: "write-4k-d32-flush8",
        depth: 32,
        flush_every: 8,
        ..BASE
    },
    Row {
        name: "write-4k-d1-cold",
        span: Span::Scattered,
        ..BASE
    },
    Row {
        name: "write-4k-d32-cold",
        depth: 32,
        span: Span::Scattered,
        ..BASE
    },
    Row {
        name: "write-128k-d8",
        block_bytes: 128 << 10,
        depth: 8,
        span: Span::Sequential,
        quick: true,
        ..BASE
    },
    Row {
        name: "read-4k-d32",
        kind: Kind::Read,
        depth: 32,
        quick: true,
        ..BASE
    },
    Row {
        name: "read-4k-d32-c4",
        kind: Kind::Read,
        depth: 32,
        connections: 4,
        ..BASE
    },
    Row {
        name: "read-128k-d8",
        kind: Kind::Read,
        block_bytes: 128 << 10,
        depth: 8,
        span: Span::Sequential,
        ..BASE
    },
    Row {
        name: "mixed-4k-d32",
        kind: Kind::Mixed,
        depth: 32,
        ..BASE
    },
];

impl Row {
    /// In words, for the head of its part of the table.
    pub fn words(&self) -> String {
        let size = self.block_bytes >> 10;
        let kind = match self.kind {
            Kind::Write => "write",
            Kind::Read => "read",
            Kind::Mixed => "70 % read, 30 % write",
        };
        let span = match self.span {
            Span::Hot => "random in 64 MiB",
            Span::Scattered => "each in another extent of the activity log",
            Span::Sequential => "sequential",
        };
        let mut words = format!("{size} KiB {kind}, {span}, depth {}", self.depth);
        if self.connections > 1 {
            words.push_str(&format!(" over {} connections", self.connections));
        }
        if self.fua == Fua::Yes {
            words.push_str(", FUA");
        }
        if self.flush_every > 0 {
            words.push_str(&format!(", a flush every {} writes", self.flush_every));
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_names_of_their_own_and_fit_the_device() {
        let names: std::collections::BTreeSet<_> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
        for row in ROWS {
            assert_eq!(DEVICE_BYTES % u64::from(row.block_bytes), 0, "{}", row.name);
            assert_eq!(row.depth % row.connections, 0, "{}", row.name);
        }
    }

    #[test]
    fn a_row_says_in_words_what_it_does() {
        let row = Row {
            depth: 32,
            fua: Fua::Yes,
            flush_every: 8,
            connections: 4,
            ..BASE
        };
        assert_eq!(
            row.words(),
            "4 KiB write, random in 64 MiB, depth 32 over 4 connections, FUA, a flush every 8 writes"
        );
    }
}
