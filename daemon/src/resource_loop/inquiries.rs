//! Requests that change nothing, or may not be worth it: what is known of a range, reading ahead, zeroes only if fast.

use tandem_nbd_server as nbd;
use tandem_nbd_server::wire::allocation;
use tandem_replicator::VolumeNumber;

use super::{Engine, ResourceLoop};
use crate::disk::layout::Piece;
use crate::nbd::{CONTEXTS, Inquiry, Topic};

/// Extents of one context in one answer (docs/spec/nbd.md 9).
const EXTENTS_MAX: usize = 16_384;

impl<E: Engine> ResourceLoop<E> {
    /// Answers what can be answered now, and has the rest found out. Whether another turn is due: answers make room for requests that
    /// wait in their sessions, and there may be more than one turn bears.
    pub(super) fn inquire(&mut self) -> bool {
        let new = self.clients.inquiries();
        let mut due = !new.is_empty();
        for inquiry in new {
            self.inquiry(inquiry);
        }
        // Before the results: what was found out about a disk that has been given up since is not told.
        let engine = &self.engine;
        for inquiry in self.clients.given_up(|volume| engine.reads_locally(volume)) {
            self.tell_all_data(&inquiry);
            due = true;
        }
        for (asker, pieces) in self.disks.layouts() {
            if let Some(inquiry) = self.clients.status_inquiry(asker) {
                self.tell_status(&inquiry, &pieces);
                due = true;
            }
        }
        due || self.clients.has_inquiries()
    }

    fn inquiry(&mut self, inquiry: Inquiry) {
        let volume = inquiry.volume;
        match &inquiry.kind {
            nbd::RequestKind::Cache { offset, length } => {
                if self.engine.reads_locally(volume) {
                    self.disks.read_ahead(volume, *offset, u64::from(*length));
                }
                self.clients.answer(&inquiry, Ok(nbd::Data::None));
            }
            nbd::RequestKind::BlockStatus {
                offset,
                length,
                one,
                contexts,
            } => {
                let range = (*offset, u64::from(*length));
                let limit = if *one { 1 } else { EXTENTS_MAX };
                if wants(contexts, Topic::Allocation) && self.engine.reads_locally(volume) {
                    let asker = self.clients.await_status(inquiry);
                    self.disks.layout(asker, volume, range, limit);
                } else {
                    // The peer's holes are not known here.
                    self.tell_all_data(&inquiry);
                }
            }
            nbd::RequestKind::WriteZeroes { no_hole, .. } => {
                // Without a disk here only the link counts.
                let fast = self.disks.fast_zero(volume).unwrap_or(true)
                    && self.engine.zeroes_are_short(volume);
                if *no_hole || !fast {
                    let text = "zeroes would be written as data here or on the peer";
                    let error = nbd::NbdError::new(nbd::ErrorCode::NotSup, text);
                    self.clients.answer(&inquiry, Err(error));
                } else {
                    self.clients.start(inquiry, &mut self.queue);
                }
            }
            _ => self.clients.start(inquiry, &mut self.queue),
        }
    }

    fn tell_all_data(&mut self, inquiry: &Inquiry) {
        let nbd::RequestKind::BlockStatus { length, .. } = &inquiry.kind else {
            return;
        };
        let all = Piece {
            length: u64::from(*length),
            hole: false,
        };
        self.tell_status(inquiry, &[all]);
    }

    fn tell_status(&mut self, inquiry: &Inquiry, pieces: &[Piece]) {
        let nbd::RequestKind::BlockStatus {
            offset,
            length,
            one,
            contexts,
        } = &inquiry.kind
        else {
            return;
        };
        let range = *offset..*offset + u64::from(*length);
        let limit = if *one { 1 } else { EXTENTS_MAX };
        let mut lists = Vec::new();
        for place in contexts {
            let context = CONTEXTS.get(*place as usize).map(|(context, _)| context);
            lists.push(match context {
                Some(Topic::Allocation) => pieces.iter().map(allocated).collect(),
                Some(Topic::OutOfSync) => self.out_of_sync(inquiry.volume, range.clone(), limit),
                None => Vec::new(),
            });
        }
        self.clients.answer(inquiry, Ok(nbd::Data::Status(lists)));
    }

    fn out_of_sync(
        &self,
        volume: VolumeNumber,
        range: std::ops::Range<u64>,
        limit: usize,
    ) -> Vec<nbd::Extent> {
        self.engine
            .sync_extents(volume, range, limit)
            .into_iter()
            .map(|extent| nbd::Extent {
                length: extent.length,
                flags: u32::from(extent.out_of_sync),
            })
            .collect()
    }
}

fn wants(contexts: &[u32], wanted: Topic) -> bool {
    contexts.iter().any(|place| {
        CONTEXTS
            .get(*place as usize)
            .is_some_and(|(context, _)| *context == wanted)
    })
}

fn allocated(piece: &Piece) -> nbd::Extent {
    nbd::Extent {
        length: piece.length,
        flags: if piece.hole {
            allocation::HOLE | allocation::ZERO
        } else {
            0
        },
    }
}
