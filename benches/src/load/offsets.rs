//! What is asked for next, and where.

use super::connection::{Command, Request};
use crate::rows::{DEVICE_BYTES, EXTENT_BYTES, Fua, HOT_BYTES, Kind, Row, Span};

/// The stream of requests of a row; the same for every server.
#[derive(Debug)]
pub(super) struct Requests {
    row: Row,
    dice: u64,
    /// Requests so far.
    number: u64,
    writes_since_flush: u32,
}

impl Requests {
    pub(super) fn new(row: &Row) -> Requests {
        Requests {
            row: *row,
            dice: 0x2545_f491_4f6c_dd1d,
            number: 0,
            writes_since_flush: 0,
        }
    }

    fn command(&mut self) -> Command {
        let write = match self.row.fua {
            Fua::No => Command::Write,
            Fua::Yes => Command::WriteFua,
        };
        match self.row.kind {
            Kind::Write => write,
            Kind::Read => Command::Read,
            Kind::Mixed => {
                if self.roll() % 10 < 7 {
                    Command::Read
                } else {
                    write
                }
            }
        }
    }

    fn offset(&mut self) -> u64 {
        let block = u64::from(self.row.block_bytes);
        let number = self.number;
        match self.row.span {
            Span::Hot => self.roll() % (HOT_BYTES / block) * block,
            Span::Scattered => {
                let extent = number % (DEVICE_BYTES / EXTENT_BYTES);
                extent * EXTENT_BYTES + self.roll() % (EXTENT_BYTES / block) * block
            }
            Span::Sequential => number % (DEVICE_BYTES / block) * block,
        }
    }

    /// xorshift: enough to choose blocks.
    fn roll(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice >> 11
    }
}

/// Without end.
impl Iterator for Requests {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        if self.row.flush_every > 0 && self.writes_since_flush == self.row.flush_every {
            self.writes_since_flush = 0;
            return Some(Request {
                command: Command::Flush,
                offset: 0,
                length: 0,
            });
        }
        let command = self.command();
        if command != Command::Read {
            self.writes_since_flush += 1;
        }
        let offset = self.offset();
        self.number += 1;
        Some(Request {
            command,
            offset,
            length: self.row.block_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::ROWS;

    fn requests(name: &str, count: usize) -> Vec<Request> {
        let row = ROWS.iter().find(|row| row.name == name).unwrap();
        Requests::new(row).take(count).collect()
    }

    #[test]
    fn every_request_lies_on_the_device_and_on_its_blocks() {
        for row in ROWS {
            for request in requests(row.name, 5000) {
                let block = u64::from(row.block_bytes);
                assert_eq!(request.offset % block, 0, "{}", row.name);
                assert!(request.offset + u64::from(request.length) <= DEVICE_BYTES);
                assert!(row.span != Span::Hot || request.offset < HOT_BYTES);
            }
        }
    }

    #[test]
    fn a_flush_follows_every_eighth_write() {
        let kinds: Vec<Command> = requests("write-4k-d1-flush8", 27)
            .iter()
            .map(|request| request.command)
            .collect();
        for (at, kind) in kinds.iter().enumerate() {
            assert_eq!(*kind == Command::Flush, at % 9 == 8, "request {at}");
        }
    }

    #[test]
    fn the_mix_is_seven_reads_for_three_writes() {
        let all = requests("mixed-4k-d32", 20_000);
        let reads = all
            .iter()
            .filter(|request| request.command == Command::Read);
        let share = reads.count() as f64 / all.len() as f64;
        assert!((share - 0.7).abs() < 0.02, "{share}");
    }

    #[test]
    fn a_scattered_row_touches_no_extent_again_before_67_others() {
        let mut seen = Vec::new();
        for request in requests("write-4k-d1-cold", 500) {
            let extent = request.offset / EXTENT_BYTES;
            let recent = &seen[seen.len().saturating_sub(67)..];
            assert!(!recent.contains(&extent));
            seen.push(extent);
        }
    }
}
