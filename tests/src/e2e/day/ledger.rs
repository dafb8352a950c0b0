//! What a client wrote to its part of a device, what it was told, and whether the device agrees.

use crate::e2e::client::{Client, Fua};
use crate::e2e::history::{BLOCK, Contents, contents, stamp};

/// One block.
#[derive(Clone, Debug, Default)]
struct Cell {
    /// The last write that was answered with success; 0: none.
    told: u64,
    /// Writes since then that were never answered: any of them may be there.
    unanswered: Vec<u64>,
}

/// The writes of one client, or of several that follow each other.
#[derive(Clone, Debug)]
pub struct Ledger {
    run: u64,
    writer: u64,
    first: u64,
    number: u64,
    cells: Vec<Cell>,
}

impl Ledger {
    /// Nothing was written to the `blocks` blocks from `first` on.
    #[must_use]
    pub fn new(run: u64, writer: u64, first: u64, blocks: u64) -> Ledger {
        Ledger {
            run,
            writer,
            first,
            number: 0,
            cells: vec![Cell::default(); blocks as usize],
        }
    }

    /// Writes that were answered.
    #[must_use]
    pub const fn writes(&self) -> u64 {
        self.number
    }

    /// Writes one block, chosen by `draw`.
    ///
    /// # Errors
    /// The client's; the block may be either then.
    pub fn write(&mut self, client: &mut Client, draw: u64) -> std::io::Result<()> {
        let index = draw % self.cells.len() as u64;
        let block = self.first + index;
        self.number += 1;
        let cell = &mut self.cells[index as usize];
        cell.unanswered.push(self.number);
        let fua = if draw >> 40 & 15 == 0 {
            Fua::Yes
        } else {
            Fua::No
        };
        let data = stamp(self.run, self.writer, self.number, block);
        client.write(block * BLOCK as u64, &data, fua)?;
        *cell = Cell {
            told: self.number,
            unanswered: Vec::new(),
        };
        Ok(())
    }

    /// Reads one block, chosen by `draw`, and compares it.
    ///
    /// # Errors
    /// The client's.
    ///
    /// # Panics
    /// When the block is not what was written.
    pub fn look(&self, client: &mut Client, draw: u64) -> std::io::Result<()> {
        let index = draw % self.cells.len() as u64;
        let block = self.first + index;
        let data = client.read(block * BLOCK as u64, BLOCK as u32)?;
        let fault = self.fault(index, &data);
        assert!(fault.is_none(), "read by a client: {fault:?}");
        Ok(())
    }

    /// What is wrong with the whole device's contents, in this part.
    #[must_use]
    pub fn faults(&self, device: &[u8]) -> Vec<String> {
        let start = self.first as usize * BLOCK;
        let blocks = device[start..]
            .chunks(BLOCK)
            .zip(0..self.cells.len() as u64);
        blocks
            .filter_map(|(data, index)| self.fault(index, data))
            .collect()
    }

    fn fault(&self, index: u64, data: &[u8]) -> Option<String> {
        let cell = &self.cells[index as usize];
        let block = self.first + index;
        let found = contents(self.run, block, data);
        let number = match found {
            Contents::Empty => 0,
            Contents::Written { writer, number } if writer == self.writer => number,
            _ => {
                return Some(format!(
                    "block {block} of writer {}: {found:?}",
                    self.writer
                ));
            }
        };
        let good = number == cell.told || cell.unanswered.contains(&number);
        (!good).then(|| {
            format!(
                "block {block} of writer {}: {number}, not {cell:?}",
                self.writer
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_a_foreign_and_a_moved_write_are_faults_and_an_unanswered_one_may_be_there() {
        let mut ledger = Ledger::new(7, 3, 1, 2);
        ledger.cells[0].told = 5;
        ledger.cells[1].unanswered = vec![6];
        let device = |a: Vec<u8>, b: Vec<u8>| [vec![9; BLOCK], a, b].concat();
        let (empty, five, six) = (vec![0; BLOCK], stamp(7, 3, 5, 1), stamp(7, 3, 6, 2));
        assert!(
            ledger
                .faults(&device(five.clone(), empty.clone()))
                .is_empty()
        );
        assert!(ledger.faults(&device(five.clone(), six.clone())).is_empty());
        assert_eq!(
            ledger.faults(&device(empty.clone(), empty.clone())).len(),
            1
        );
        assert_eq!(
            ledger
                .faults(&device(stamp(7, 3, 4, 1), empty.clone()))
                .len(),
            1
        );
        assert_eq!(
            ledger
                .faults(&device(stamp(7, 2, 5, 1), empty.clone()))
                .len(),
            1
        );
        assert_eq!(ledger.faults(&device(six, five)).len(), 2);
    }
}
