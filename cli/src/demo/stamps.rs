//! Blocks that tell where they belong and how often they were written, and the record of what was acknowledged.
//!
//! A block has at most one write in flight, so after a crash it must hold its last acknowledged version, or the one that
//! was in flight; anything else is a lost or a damaged write.

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;

const MAGIC: &[u8; 16] = b"tandem demo blk\n";

/// Fills `buffer` with the content of a version of a block.
pub(crate) fn fill(buffer: &mut [u8], seed: u64, block: u64, version: u32) {
    let mut state = seed
        ^ block.wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ u64::from(version).wrapping_mul(0xC2B2_AE3D_27D4_EB4F)
        | 1;
    for chunk in buffer.chunks_mut(8) {
        // xorshift64*: enough that no two versions of any blocks are alike.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let word = state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    if let Some(head) = buffer.first_chunk_mut::<32>() {
        head[..16].copy_from_slice(MAGIC);
        head[16..24].copy_from_slice(&block.to_le_bytes());
        head[24..28].copy_from_slice(&version.to_le_bytes());
        head[28..32].copy_from_slice(&[0; 4]);
    }
}

/// What one block may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Versions {
    /// The last version whose write was acknowledged; 0 is what was there before.
    pub(crate) acknowledged: u32,
    /// The last version that was sent.
    pub(crate) sent: u32,
}

/// Everything that is known about the device's blocks.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) seed: u64,
    pub(crate) blocks: Vec<Versions>,
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Blocks looked at.
    pub(crate) compared: u64,
    /// Of them, blocks with at least one acknowledged write.
    pub(crate) written: u64,
    /// Blocks that hold a write which was in flight and never acknowledged.
    pub(crate) unacknowledged: u64,
    /// Blocks that hold something else: each with what was wrong.
    pub(crate) wrong: Vec<String>,
}

impl Findings {
    /// Adds what another part of the device gave.
    pub(crate) fn add(&mut self, other: Findings) {
        self.compared += other.compared;
        self.written += other.written;
        self.unacknowledged += other.unacknowledged;
        self.wrong.extend(other.wrong);
    }
}

impl Record {
    /// A record of `blocks` blocks that all hold version 0.
    pub(crate) fn new(seed: u64, blocks: usize) -> Record {
        Record {
            seed,
            blocks: vec![Versions::default(); blocks],
        }
    }

    /// Compares what was read from block `first` on.
    pub(crate) fn compare(&self, first: u64, data: &[u8]) -> Findings {
        let mut findings = Findings::default();
        let mut wanted = vec![0; BLOCK];
        for (index, got) in (first..).zip(data.chunks(BLOCK)) {
            let Some(versions) = usize::try_from(index).ok().and_then(|i| self.blocks.get(i))
            else {
                break;
            };
            findings.compared += 1;
            findings.written += u64::from(versions.acknowledged > 0);
            let found = (versions.acknowledged..=versions.sent).find(|version| {
                fill(&mut wanted, self.seed, index, *version);
                got == wanted
            });
            match found {
                Some(version) if version > versions.acknowledged => findings.unacknowledged += 1,
                Some(_) => {}
                None => findings.wrong.push(format!(
                    "block {index}: version {} was acknowledged, found {}",
                    versions.acknowledged,
                    describe(got)
                )),
            }
        }
        findings
    }
}

fn describe(got: &[u8]) -> String {
    if got.iter().all(|byte| *byte == 0) {
        return "zeros".to_owned();
    }
    match got.first_chunk::<32>() {
        Some(head) if head.starts_with(MAGIC) => {
            let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
            let (block, version) = (word(16), word(24) & 0xFFFF_FFFF);
            format!("version {version} of block {block}, or a damaged one")
        }
        _ => "something that was never written".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(seed: u64, index: u64, version: u32) -> Vec<u8> {
        let mut buffer = vec![0; BLOCK];
        fill(&mut buffer, seed, index, version);
        buffer
    }

    #[test]
    fn the_acknowledged_version_and_the_one_in_flight_are_right() {
        let mut record = Record::new(7, 4);
        record.blocks[2] = Versions {
            acknowledged: 3,
            sent: 4,
        };
        assert_eq!(record.compare(2, &block(7, 2, 3)).wrong.len(), 0);
        assert_eq!(record.compare(2, &block(7, 2, 4)).unacknowledged, 1);
        assert_eq!(record.compare(0, &block(7, 0, 0)).written, 0);
    }

    #[test]
    fn lost_torn_and_misplaced_writes_are_found() {
        let mut record = Record::new(7, 4);
        record.blocks[2] = Versions {
            acknowledged: 3,
            sent: 4,
        };
        let mut torn = block(7, 2, 3);
        torn[4000] ^= 1;
        for wrong in [block(7, 2, 2), block(7, 1, 3), torn, vec![0; BLOCK]] {
            assert_eq!(record.compare(2, &wrong).wrong.len(), 1);
        }
    }
}
