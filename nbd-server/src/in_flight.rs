//! Requests that were handed out and not replied to.

use alloc::vec::Vec;

use crate::request::Handle;
use crate::wire::cmd;

/// What a reply has to know about its request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InFlight {
    pub(crate) cookie: u64,
    pub(crate) command: u16,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    /// A BLOCK_STATUS that wants one extent.
    pub(crate) one: bool,
}

/// Requests in flight, by slot; free slots are used again.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<(u32, Option<InFlight>)>,
    free: Vec<u32>,
    /// Bytes of reads and writes.
    pub(crate) bytes: u64,
}

impl Slots {
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, request: InFlight) -> Handle {
        self.bytes += request.payload();
        if let Some(slot) = self.free.pop()
            && let Some((generation, place)) = self.slots.get_mut(slot as usize)
        {
            *generation = generation.wrapping_add(1);
            *place = Some(request);
            return Handle {
                slot,
                generation: *generation,
            };
        }
        let slot = self.slots.len() as u32;
        self.slots.push((0, Some(request)));
        Handle {
            slot,
            generation: 0,
        }
    }

    pub(crate) fn remove(&mut self, handle: Handle) -> Option<InFlight> {
        let (generation, place) = self.slots.get_mut(handle.slot as usize)?;
        if *generation != handle.generation {
            return None;
        }
        let request = place.take()?;
        self.free.push(handle.slot);
        self.bytes -= request.payload();
        Some(request)
    }
}

impl InFlight {
    /// Bytes of memory that the request holds; TRIM and WRITE_ZEROES of any length hold none.
    fn payload(&self) -> u64 {
        match self.command {
            cmd::READ | cmd::WRITE => u64::from(self.length),
            _ => 0,
        }
    }
}
