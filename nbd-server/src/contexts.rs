//! Metadata contexts: which a client selects in the handshake, and the extents that it is told (spec 3.3, section 9).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::{Buf, BufMut, Bytes};

use crate::handshake::{short, string_with_length};
use crate::output::{Output, clip};
use crate::request::Extent;
use crate::wire::{chunk, opt};

/// Extents in one chunk (spec section 9): about 128 KiB, far below what clients accept.
pub(crate) const EXTENTS_MAX: usize = 16_384;

/// Decoded data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ContextRequest {
    pub(crate) option: u32,
    pub(crate) name: String,
    queries: Vec<String>,
}

/// What SET_META_CONTEXT agreed upon, until GO.
#[derive(Debug)]
pub(crate) struct Selected {
    /// Canonical name of the export that it was for.
    pub(crate) export: String,
    /// Places in the export's list of contexts.
    pub(crate) contexts: Vec<u32>,
}

impl ContextRequest {
    /// u32 name length, name, u32 count, count x (u32 length, query): every length is checked against what is there.
    pub(crate) fn decode(option: u32, mut data: Bytes) -> Result<ContextRequest, String> {
        let name = string_with_length(&mut data)?;
        let count = data.try_get_u32().map_err(|_| short())?;
        let mut queries = Vec::new();
        for _ in 0..count {
            let query = string_with_length(&mut data)?;
            if !query.contains(':') {
                let query = clip(&query, 80);
                return Err(format!(
                    "metadata context query \"{query}\" has no namespace"
                ));
            }
            queries.push(query);
        }
        if data.has_remaining() {
            return Err(format!("{} bytes after the last query", data.remaining()));
        }
        Ok(ContextRequest {
            option,
            name,
            queries,
        })
    }

    /// Places of the contexts that the queries mean, each once, in the order of the export's list. Without a query LIST
    /// means all; a namespace alone means all of it for LIST, nothing for SET.
    pub(crate) fn choose(&self, offered: &[String]) -> Vec<u32> {
        let list = self.option == opt::LIST_META_CONTEXT;
        let wanted = |context: &str| {
            (list && self.queries.is_empty())
                || self.queries.iter().any(|query| {
                    query == context || (list && query.ends_with(':') && context.starts_with(query))
                })
        };
        let places = offered.iter().zip(0u32..);
        places
            .filter(|(context, _)| wanted(context))
            .map(|(_, place)| place)
            .collect()
    }
}

/// The number that a client knows a context by.
pub(crate) fn id_of(place: u32) -> u32 {
    place + 1
}

/// Extents as they go to the client: none empty, neighbours that differ, inside of the request, bounded in number; the
/// first alone if the client asked for one.
pub(crate) fn tidy(extents: &[Extent], length: u32, one: bool) -> Vec<(u32, u32)> {
    let mut left = length;
    let most = if one { 1 } else { EXTENTS_MAX };
    let mut tidied: Vec<(u32, u32)> = Vec::new();
    for extent in extents {
        let here = u32::try_from(extent.length).unwrap_or(u32::MAX).min(left);
        if here == 0 {
            continue;
        }
        let full = tidied.len() >= most;
        match tidied.last_mut() {
            Some((before, flags)) if *flags == extent.flags => *before += here,
            _ if full => break,
            _ => tidied.push((here, extent.flags)),
        }
        left -= here;
    }
    tidied
}

/// One BLOCK_STATUS chunk: u32 context id, n x {u32 length, u32 flags}.
pub(crate) fn send_chunk(
    output: &mut Output,
    flags: u16,
    cookie: u64,
    place: u32,
    extents: &[(u32, u32)],
) {
    let length = 4 + 8 * extents.len() as u32;
    output.chunk(flags, chunk::BLOCK_STATUS, cookie, length);
    let head = output.head();
    head.reserve(length as usize);
    head.put_u32(id_of(place));
    for (length, flags) in extents {
        head.put_u32(*length);
        head.put_u32(*flags);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn extent(length: u64, flags: u32) -> Extent {
        Extent { length, flags }
    }

    #[test]
    fn neighbours_are_joined_and_nothing_leaves_the_request() {
        let given = [
            extent(0, 7),
            extent(512, 0),
            extent(512, 0),
            extent(1024, 3),
            extent(u64::MAX, 0),
        ];
        assert_eq!(
            tidy(&given, 4096, false),
            vec![(1024, 0), (1024, 3), (2048, 0)]
        );
        assert_eq!(tidy(&given, 4096, true), vec![(1024, 0)]);
        assert_eq!(tidy(&given, 100, false), vec![(100, 0)]);
        assert_eq!(tidy(&given[4..], u32::MAX, false), vec![(u32::MAX, 0)]);
    }

    #[test]
    fn more_extents_than_a_chunk_holds_are_left_for_the_next_request() {
        let many: Vec<Extent> = (0..40_000).map(|n| extent(512, n % 2)).collect();
        assert_eq!(tidy(&many, u32::MAX, false).len(), EXTENTS_MAX);
    }
}
