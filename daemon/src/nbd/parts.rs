//! Long requests become several that the engine takes.

use tandem_nbd_server as nbd;
use tandem_replicator::{Fua, Operation, Unmap};

/// Longest read or write handed to the engine: the largest payload of the replication link (nbd.md 6.1).
const DATA_BYTES_MAX: u32 = 1 << 20;

/// Longest discard or zeroing handed to the engine: below the link's 128 MiB, and few enough activity-log extents (8) that even the
/// smallest log holds several.
const RANGE_BYTES_MAX: u32 = 32 << 20;

fn fua_of(fua: bool) -> Fua {
    if fua { Fua::Yes } else { Fua::No }
}

/// Cuts a request into what the engine takes: one part, unless it is long.
pub(super) fn cut(kind: nbd::RequestKind) -> Vec<Operation> {
    match kind {
        nbd::RequestKind::Flush => vec![Operation::Flush],
        // Answered without the engine.
        nbd::RequestKind::Cache { .. } | nbd::RequestKind::BlockStatus { .. } => Vec::new(),
        nbd::RequestKind::Read { offset, length } => parts(offset, length, DATA_BYTES_MAX)
            .map(|(offset, _, length)| Operation::Read { offset, length })
            .collect(),
        nbd::RequestKind::Write {
            offset,
            payload,
            fua,
        } => {
            let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
            parts(offset, length, DATA_BYTES_MAX)
                .map(|(offset, start, length)| Operation::Write {
                    offset,
                    data: payload.slice(start as usize..(start + length) as usize),
                    fua: fua_of(fua),
                })
                .collect()
        }
        nbd::RequestKind::Trim {
            offset,
            length,
            fua,
        } => parts(offset, length, RANGE_BYTES_MAX)
            .map(|(offset, _, length)| Operation::Discard {
                offset,
                length,
                fua: fua_of(fua),
            })
            .collect(),
        nbd::RequestKind::WriteZeroes {
            offset,
            length,
            fua,
            no_hole,
            ..
        } => {
            let unmap = if no_hole { Unmap::No } else { Unmap::Allowed };
            parts(offset, length, RANGE_BYTES_MAX)
                .map(|(offset, _, length)| Operation::WriteZeroes {
                    offset,
                    length,
                    fua: fua_of(fua),
                    unmap,
                })
                .collect()
        }
    }
}

/// (offset, start within the request, length) of each part. Parts end at multiples of `limit` on the device.
fn parts(offset: u64, length: u32, limit: u32) -> impl Iterator<Item = (u64, u32, u32)> {
    let mut done = 0_u32;
    std::iter::from_fn(move || {
        let left = length - done;
        if left == 0 {
            return None;
        }
        let at = offset + u64::from(done);
        // The remainder is below `limit`, so it fits.
        let room = limit - u32::try_from(at % u64::from(limit)).unwrap_or(0);
        let part = (at, done, left.min(room));
        done += part.2;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn long_requests_are_cut_at_aligned_borders_and_lose_nothing() {
        let payload: Bytes = (0..3 << 20_u32)
            .map(|n| (n >> 9) as u8)
            .collect::<Vec<u8>>()
            .into();
        let write = nbd::RequestKind::Write {
            offset: 512,
            payload: payload.clone(),
            fua: true,
        };
        let operations = cut(write);
        let mut at = 512;
        let mut joined = Vec::new();
        for operation in &operations {
            let Operation::Write {
                offset,
                data,
                fua: Fua::Yes,
            } = operation
            else {
                panic!()
            };
            assert_eq!(*offset, at);
            assert!(data.len() <= 1 << 20);
            at += data.len() as u64;
            joined.extend_from_slice(data);
        }
        assert_eq!(joined, payload);
        assert_eq!(operations.len(), 4);
    }

    #[test]
    fn the_longest_trim_is_cut_into_bounded_parts() {
        let trim = nbd::RequestKind::Trim {
            offset: 4096,
            length: u32::MAX - 4095,
            fua: false,
        };
        let operations = cut(trim);
        assert_eq!(operations.len(), 128);
        let total: u64 = operations
            .iter()
            .map(|operation| match operation {
                Operation::Discard { length, .. } => u64::from(*length),
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(total, u64::from(u32::MAX - 4095));
    }

    #[test]
    fn a_short_request_stays_whole() {
        let read = nbd::RequestKind::Read {
            offset: 4096,
            length: 4096,
        };
        assert_eq!(cut(read).len(), 1);
    }
}
