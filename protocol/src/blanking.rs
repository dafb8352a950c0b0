//! Which bytes of a stream may be shown to others: headers and fixed parts, never what users stored, nor anything that the
//! shared secret was mixed into. For recordings of what a node received.
//!
//! | packet | kept | blanked |
//! | --- | --- | --- |
//! | P_DATA, P_DATA_REPLY, P_RS_DATA_REPLY, P_WSAME | header, fixed part | digest, payload |
//! | P_CSUM_RS_REQUEST, P_OV_REPLY | header, fixed part | digest of the block |
//! | P_AUTH_CHALLENGE, P_AUTH_RESPONSE | header | everything else |
//! | all others that are in order | everything | nothing |
//!
//! A stream that stops being DRBD's protocol keeps the four bytes that say so (a log line has them as well); all that follows is
//! blanked, since nobody knows what it is. Layouts: wire 2.1, 3 and 4.

use crate::codec::Fixed;
use crate::command::Command;
use crate::header::{Header, HeaderKind};
use crate::limits::DIGEST_BYTES_MAX;
use crate::packet::length_bounds;
use crate::packets::{BlockRequest, DataFixed, Trim};

/// Bytes of the longest header.
const HEADER_BYTES_MAX: usize = 16;

/// Bytes of a header's start that tell which header it is.
const MAGIC_BYTES: usize = 4;

/// Whether bytes may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// They are kept as they are.
    Kept,
    /// Only their number is known afterwards.
    Blanked,
}

#[derive(Debug, Clone)]
enum Stage {
    Header {
        bytes: [u8; HEADER_BYTES_MAX],
        have: usize,
    },
    Body {
        kept: usize,
        blanked: usize,
    },
    /// Not DRBD's protocol any more.
    Lost,
}

impl Stage {
    const START: Self = Self::Header {
        bytes: [0; HEADER_BYTES_MAX],
        have: 0,
    };
}

/// Follows one direction of one socket. Never allocates.
#[derive(Debug, Clone)]
pub struct Blanker {
    stage: Stage,
}

impl Default for Blanker {
    fn default() -> Self {
        Self::new()
    }
}

impl Blanker {
    /// For a stream from its first byte.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            stage: Stage::START,
        }
    }

    /// Tells `span` what is what in the bytes that came next, in order and without a gap.
    pub fn follow(&mut self, mut bytes: &[u8], mut span: impl FnMut(Shown, &[u8])) {
        while !bytes.is_empty() {
            let (shown, count) = self.step(bytes);
            let (now, rest) = bytes.split_at(count);
            span(shown, now);
            bytes = rest;
        }
    }

    /// What the next bytes are, and how many of them; at least one.
    fn step(&mut self, input: &[u8]) -> (Shown, usize) {
        match &mut self.stage {
            Stage::Lost => (Shown::Blanked, input.len()),
            Stage::Body { kept, blanked } => {
                let (shown, left) = if *kept > 0 {
                    (Shown::Kept, &mut *kept)
                } else {
                    (Shown::Blanked, &mut *blanked)
                };
                let count = input.len().min(*left);
                *left -= count;
                if *kept == 0 && *blanked == 0 {
                    self.stage = Stage::START;
                }
                (shown, count)
            }
            Stage::Header { bytes, have } => {
                let wanted = if *have < MAGIC_BYTES {
                    MAGIC_BYTES
                } else {
                    kind_of(bytes).map_or(MAGIC_BYTES, HeaderKind::len)
                };
                let count = input.len().min(wanted - *have);
                bytes[*have..*have + count].copy_from_slice(&input[..count]);
                *have += count;
                let (bytes, have) = (*bytes, *have);
                if let Some(stage) = after_header(&bytes, have) {
                    self.stage = stage;
                }
                (Shown::Kept, count)
            }
        }
    }
}

/// How many bytes at the start of one encoded frame without its payload may be shown.
#[must_use]
pub fn shown_of_frame(head: &[u8]) -> usize {
    let mut shown = 0;
    Blanker::new().follow(head, |kind, bytes| {
        if kind == Shown::Kept {
            shown += bytes.len();
        }
    });
    shown
}

fn kind_of(bytes: &[u8; HEADER_BYTES_MAX]) -> Option<HeaderKind> {
    [HeaderKind::H80, HeaderKind::H95, HeaderKind::H100]
        .into_iter()
        .find(|kind| Header::decode(&bytes[..MAGIC_BYTES], *kind).is_ok())
}

/// None: the header is not complete.
fn after_header(bytes: &[u8; HEADER_BYTES_MAX], have: usize) -> Option<Stage> {
    if have < MAGIC_BYTES {
        return None;
    }
    let Some(kind) = kind_of(bytes) else {
        return Some(Stage::Lost);
    };
    if have < kind.len() {
        return None;
    }
    let Ok(Some(header)) = Header::decode(&bytes[..have], kind) else {
        return Some(Stage::Lost);
    };
    Some(body(&header).unwrap_or(Stage::Lost))
}

/// None: no packet of the protocol.
fn body(header: &Header) -> Option<Stage> {
    let command = Command::try_from(header.command).ok()?;
    let (_, most) = length_bounds(command, DIGEST_BYTES_MAX);
    if u64::from(header.length) > most {
        return None;
    }
    let length = header.length as usize;
    let shown = match command {
        Command::Data | Command::DataReply | Command::RsDataReply => DataFixed::LEN,
        Command::Wsame => Trim::LEN,
        Command::CsumRsRequest | Command::OvReply => BlockRequest::LEN,
        Command::AuthChallenge | Command::AuthResponse => 0,
        _ => length,
    };
    let kept = shown.min(length);
    let blanked = length - kept;
    Some(if length == 0 {
        Stage::START
    } else {
        Stage::Body { kept, blanked }
    })
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use bytes::Bytes;

    use super::*;
    use crate::packet::{Frame, Packet};
    use crate::packets::{Data, DpFlags, HashedRequest};

    /// The stream as a reader of the recording sees it, in pieces of `piece` bytes.
    fn seen(stream: &[u8], piece: usize) -> Vec<u8> {
        let (mut blanker, mut out) = (Blanker::new(), Vec::new());
        for bytes in stream.chunks(piece) {
            blanker.follow(bytes, |shown, bytes| match shown {
                Shown::Kept => out.extend_from_slice(bytes),
                Shown::Blanked => out.resize(out.len() + bytes.len(), 0),
            });
        }
        out
    }

    fn bytes_of(packet: Packet) -> Vec<u8> {
        let kind = packet.header_kind();
        let frame = Frame { volume: 3, packet };
        let encoded = frame.encode(kind).unwrap();
        let mut bytes = encoded.head.to_vec();
        bytes.extend_from_slice(encoded.payload.as_deref().unwrap_or_default());
        bytes
    }

    fn block() -> Packet {
        Packet::Data(Data {
            sector: 8,
            block_id: *b"block-id",
            seq_num: 1,
            dp_flags: DpFlags::NONE,
            digest: Bytes::from_static(b"DIGEST!!DIGEST!!"),
            payload: Bytes::from(vec![b'U'; 1024]),
        })
    }

    #[test]
    fn payloads_digests_and_authentication_are_blanked_wherever_the_stream_is_cut() {
        let hashed = Packet::CsumRsRequest(HashedRequest {
            request: BlockRequest {
                sector: 16,
                block_id: *b"block-id",
                blksize: 4096,
                pad: 0,
            },
            digest: Bytes::from_static(b"DIGEST!!"),
        });
        let mut stream = bytes_of(Packet::AuthResponse(Bytes::from(vec![b'S'; 20])));
        stream.extend(bytes_of(Packet::AuthChallenge(Bytes::from(vec![b'S'; 64]))));
        for packet in [block(), Packet::Ping, hashed, Packet::Ping] {
            stream.extend(bytes_of(packet));
        }
        for piece in [1, 3, 16, 17, 100, stream.len()] {
            let seen = seen(&stream, piece);
            assert_eq!(seen.len(), stream.len());
            let again: Vec<u8> = stream.iter().zip(&seen).map(|(a, b)| a ^ b).collect();
            let hidden: Vec<u8> = again.into_iter().filter(|byte| *byte != 0).collect();
            let expected = [
                vec![b'S'; 84],
                b"DIGEST!!DIGEST!!".to_vec(),
                vec![b'U'; 1024],
                b"DIGEST!!".to_vec(),
            ];
            assert_eq!(hidden, expected.concat(), "in pieces of {piece}");
        }
    }

    #[test]
    fn packets_without_user_data_stay_whole() {
        let mut stream = bytes_of(Packet::Ping);
        stream.extend(bytes_of(Packet::Bitmap(Bytes::from(vec![7; 64]))));
        assert_eq!(seen(&stream, 5), stream);
        assert_eq!(shown_of_frame(&stream), stream.len());
    }

    #[test]
    fn what_is_not_the_protocol_keeps_four_bytes_and_no_more() {
        let mut stream = bytes_of(Packet::Ping);
        let sound = stream.len();
        stream.extend_from_slice(&[b'U'; 100]);
        let seen = seen(&stream, 7);
        assert_eq!(seen[sound..sound + 4], [b'U'; 4]);
        assert!(seen[sound + 4..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_length_beyond_the_packets_own_is_not_believed() {
        let mut stream = bytes_of(Packet::Ping);
        stream[8..12].copy_from_slice(&100u32.to_be_bytes());
        let sound = stream.len();
        stream.extend_from_slice(&[b'U'; 100]);
        assert!(seen(&stream, 9)[sound..].iter().all(|byte| *byte == 0));
    }
}
