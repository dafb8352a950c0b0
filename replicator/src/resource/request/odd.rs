//! Requests that do not start or end on a sector of the disks: disks and the link know whole sectors only.
//!
//! ```text
//!             lead │◄──── what the client wrote ────►│
//!   ├──────────────┼──────┼───────────────┼──────────┼─────┤   sectors
//!   │◄───────────── the write in the transfer log ────────►│   its interval, read at the edges and merged
//! ```
//!
//! Invariants:
//! - A write is widened before it asks for its interval, so that nothing else writes the sectors that it merges with between
//!   the reading of their old bytes and the answer.
//! - A read is widened and cut again; a discard gives back the whole sectors inside it and nothing else; zeroes are written
//!   as data where they cover a part of a sector.

use alloc::vec;
use alloc::vec::Vec;
use bytes::{Bytes, BytesMut};

use super::{Body, PART_BYTES_MAX, Stage, Write, WriteId, split};
use crate::event::{Fua, RequestError, RequestId, VolumeNumber};
use crate::planted::Planted;
use crate::resource::Resource;
use crate::resource::reads::Owner;

/// Sectors of at most this many bytes are believed in; NBD's largest minimum block.
const SECTOR_BYTES_MAX: u32 = 1 << 16;

/// A range in bytes: first byte, length.
type Span = (u64, u32);

/// What a write still has to merge with.
#[derive(Debug)]
pub(crate) struct Edges {
    /// The whole range, as it was before, where it was read.
    base: BytesMut,
    /// Bytes of a sector when the range was widened.
    sector: u32,
    /// Where the client's bytes begin in it.
    lead: usize,
    /// The client's bytes.
    data: Bytes,
    /// Reads that are not back.
    reads_left: u32,
    /// One of them failed.
    failed: Option<RequestError>,
}

/// The range of whole sectors around a range; not beyond the device's end, which is where its last sector ends.
pub(super) fn widened((offset, length): Span, sector: u64, device: u64) -> Span {
    let start = offset - offset % sector;
    let end = (offset + u64::from(length))
        .next_multiple_of(sector)
        .min(device);
    (start, (end - start) as u32)
}

/// The whole sectors inside a range; a length of 0 if there are none.
fn inside((offset, length): Span, sector: u64, device: u64) -> Span {
    let end = offset + u64::from(length);
    let start = offset.next_multiple_of(sector).min(end);
    // The last sector of a device may be cut short by its end.
    let last = if end == device {
        end
    } else {
        end - end % sector
    };
    (start, last.saturating_sub(start) as u32)
}

impl Resource {
    /// Bytes of a sector of a volume: neither disk takes less.
    pub(super) fn sector_bytes(&self, number: VolumeNumber) -> u64 {
        let sound =
            |bytes: &u32| bytes.is_power_of_two() && (512..=SECTOR_BYTES_MAX).contains(bytes);
        let largest = self.volumes.get(&number).and_then(|volume| {
            let own = volume
                .backing
                .as_ref()
                .map(|backing| backing.info.logical_block);
            let both = [own, Some(volume.peer.logical_block)];
            both.into_iter().flatten().filter(sound).max()
        });
        u64::from(largest.unwrap_or(512))
    }

    fn geometry(&self, number: VolumeNumber) -> (u64, u64) {
        let device = self.volumes.get(&number).map_or(0, |volume| volume.bytes);
        (self.sector_bytes(number), device)
    }

    /// Whether the range of a write is one of whole sectors, as they are now.
    pub(super) fn is_whole(&self, write: &Write) -> bool {
        let (sector, device) = self.geometry(write.volume);
        let span = (write.offset, write.length);
        widened(span, sector, device) == span
    }

    /// A read of any range: whole sectors are read, what was asked for is cut out of them.
    pub(super) fn admit_read_span(&mut self, id: RequestId, volume: VolumeNumber, wanted: Span) {
        let (sector, device) = self.geometry(volume);
        let wide = widened(wanted, sector, device);
        let parts = split(wide.0, wide.1, PART_BYTES_MAX);
        self.open_client(id, volume, parts.len());
        if wide != wanted
            && let Some(client) = self.requests.clients.get_mut(&id)
        {
            let lead = (wanted.0 - wide.0) as usize;
            client.window = Some(lead..lead + wanted.1 as usize);
        }
        for (part, (offset, length)) in parts.enumerate() {
            self.admit_read(id, volume, part, offset, length);
        }
    }

    /// A discard gives back whole sectors: a client that names parts of some does not mean the rest of them.
    pub(super) fn admit_discard(
        &mut self,
        id: RequestId,
        volume: VolumeNumber,
        wanted: Span,
        fua: Fua,
    ) {
        let (sector, device) = self.geometry(volume);
        let (offset, length) = inside(wanted, sector, device);
        if length == 0 {
            self.reply(id, Ok(Bytes::new()));
            return;
        }
        let parts = split(offset, length, PART_BYTES_MAX);
        self.open_client(id, volume, parts.len());
        for (at, length) in parts {
            self.admit_write(id, volume, at, length, Body::Discard, fua);
        }
    }

    /// Zeroes for the whole sectors, data for the parts of sectors at both ends.
    pub(super) fn admit_zeroes(
        &mut self,
        id: RequestId,
        volume: VolumeNumber,
        (offset, length): Span,
        body: &Body,
        fua: Fua,
    ) {
        let (sector, device) = self.geometry(volume);
        let end = offset + u64::from(length);
        let (start, whole) = inside((offset, length), sector, device);
        let last = start + u64::from(whole);
        // Without a whole sector inside, the range is in one sector or in two halves; `start` is between them.
        let mut ends: Vec<(u64, u64)> = vec![(offset, start.min(end)), (last.max(offset), end)];
        ends.retain(|(from, to)| from < to);
        let middle = split(start, whole, PART_BYTES_MAX);
        self.open_client(id, volume, middle.len() + ends.len());
        for (at, length) in middle {
            self.admit_write(id, volume, at, length, body.clone(), fua);
        }
        for (from, to) in ends {
            let zeroes = Body::Data(Bytes::from(vec![0; (to - from) as usize]));
            self.admit_write(id, volume, from, (to - from) as u32, zeroes, fua);
        }
    }

    /// What the transfer log holds for a write of this range, and what it has to merge with.
    pub(super) fn widen(
        &self,
        volume: VolumeNumber,
        wanted: Span,
        body: Body,
    ) -> (Span, Body, Option<Edges>) {
        let (sector, device) = self.geometry(volume);
        let wide = widened(wanted, sector, device);
        match body {
            Body::Data(data) if wide != wanted => {
                let edges = Edges {
                    base: BytesMut::zeroed(wide.1 as usize),
                    sector: sector as u32,
                    lead: (wanted.0 - wide.0) as usize,
                    data,
                    reads_left: 0,
                    failed: None,
                };
                // The payload is made when the edges have been read.
                (wide, Body::Data(Bytes::new()), Some(edges))
            }
            body => (wanted, body, None),
        }
    }

    /// The write has its interval: from here on nobody else changes its sectors. Reads the old bytes around it.
    pub(super) fn read_edges(&mut self, id: WriteId) {
        let Some(write) = self.requests.writes.get_mut(&id) else {
            return;
        };
        let (volume, offset, length) = (write.volume, write.offset, write.length);
        let Some(edges) = write.edges.as_mut() else {
            return;
        };
        let trail = edges.base.len() - edges.lead - edges.data.len();
        let sector = edges.sector.min(length);
        // The last sector of a device may be cut short by its end.
        let end = offset + u64::from(length);
        let tail = (end - 1) - (end - 1) % u64::from(edges.sector);
        let mut spans: Vec<Span> = Vec::with_capacity(2);
        if edges.lead > 0 && trail > 0 && length <= 2 * sector {
            spans.push((offset, length));
        } else {
            if edges.lead > 0 {
                spans.push((offset, sector));
            }
            if trail > 0 {
                spans.push((tail, (end - tail) as u32));
            }
        }
        edges.reads_left = spans.len() as u32;
        edges.failed = None;
        write.stage = Stage::Edges;
        for (offset, length) in spans {
            self.start_read(Owner::Edge(id), volume, offset, length);
        }
    }

    /// An edge was read, here or by the peer; the last one makes the payload whole.
    pub(crate) fn edge_read(
        &mut self,
        id: WriteId,
        offset: u64,
        result: Result<Bytes, RequestError>,
    ) {
        let forget = self.planted(Planted::ForgetEdge);
        // A write that was given up meanwhile has no edges any more.
        let Some(write) = self.requests.writes.get_mut(&id) else {
            return;
        };
        let Some(edges) = write.edges.as_mut() else {
            return;
        };
        let at = (offset - write.offset) as usize;
        match result {
            Err(error) => edges.failed = Some(error),
            Ok(old) => {
                if let Some(place) = edges.base.get_mut(at..at + old.len()) {
                    place.copy_from_slice(&old);
                }
            }
        }
        edges.reads_left -= 1;
        if edges.reads_left > 0 {
            return;
        }
        if let Some(error) = edges.failed {
            self.fail_or_freeze(id, error);
            return;
        }
        let end = edges.lead + edges.data.len();
        if let Some(place) = edges.base.get_mut(edges.lead..end) {
            place.copy_from_slice(&edges.data);
        }
        if forget {
            edges.base[end..].fill(0);
        }
        let whole = core::mem::take(&mut edges.base).freeze();
        write.edges = None;
        write.body = Body::Data(whole);
        self.log_write(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_grow_to_whole_sectors_and_end_with_the_device() {
        assert_eq!(widened((0, 512), 512, 8192), (0, 512));
        assert_eq!(widened((1, 1), 512, 8192), (0, 512));
        assert_eq!(widened((511, 2), 512, 8192), (0, 1024));
        assert_eq!(widened((512, 513), 512, 8192), (512, 1024));
        assert_eq!(widened((4608, 512), 4096, 6144), (4096, 2048));
    }

    #[test]
    fn ranges_shrink_to_the_whole_sectors_inside() {
        assert_eq!(inside((0, 1024), 512, 8192), (0, 1024));
        assert_eq!(inside((1, 1024), 512, 8192), (512, 512));
        assert_eq!(inside((1, 510), 512, 8192).1, 0);
        assert_eq!(inside((511, 2), 512, 8192), (512, 0));
        assert_eq!(inside((4097, 8), 4096, 6144).1, 0);
        assert_eq!(inside((4096, 2048), 4096, 6144), (4096, 2048));
    }
}
