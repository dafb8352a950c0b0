//! Events as they are recorded: [`Event`] without user data and secrets.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;

use tandem_protocol::blanking::{Blanker, Shown};

use super::CONTENTS_BYTES_MAX;
use super::contents::{pack, pack_run, unpack};
use crate::command::Command;
use crate::event::{
    BackingInfo, CommandId, DialError, Event, Fua, IoError, OpenError, Operation, Request,
    RequestId, SocketId, Token, Unmap, VolumeNumber,
};

/// Memory that is kept for the contents of the next event.
const SPARE_BYTES_MAX: usize = 16 << 10;

/// An event of the past. Contents are packed; of data only the length is left.
#[derive(Clone, Debug, bincode::Encode, bincode::Decode)]
pub(super) enum Past {
    Request(RequestId, VolumeNumber, Asked),
    Opened(VolumeNumber),
    Released(VolumeNumber),
    DiskDone(Token, Result<u32, IoError>),
    MetaDone(Token, Result<Vec<u8>, IoError>),
    BackingOpened(Token, Result<BackingInfo, OpenError>),
    BackingClosed(Token),
    Bytes(SocketId, Vec<u8>),
    Sent(SocketId, u64),
    Accepted(SocketId),
    Dialled(Token, Result<SocketId, DialError>),
    ListenFailed(String),
    Closed(SocketId, String),
    Command(CommandId, Box<Command>),
    HandlerDone(Token, i32),
    Timer,
}

/// What a client asked for, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(super) enum Asked {
    Read(u64, u32),
    Write(u64, u32, Fua),
    Discard(u64, u32, Fua),
    WriteZeroes(u64, u32, Fua, Unmap),
    Flush,
}

impl Asked {
    fn of(operation: &Operation) -> Asked {
        match operation {
            Operation::Read { offset, length } => Asked::Read(*offset, *length),
            Operation::Write { offset, data, fua } => Asked::Write(*offset, length_of(data), *fua),
            Operation::Discard {
                offset,
                length,
                fua,
            } => Asked::Discard(*offset, *length, *fua),
            Operation::WriteZeroes {
                offset,
                length,
                fua,
                unmap,
            } => Asked::WriteZeroes(*offset, *length, *fua, *unmap),
            Operation::Flush => Asked::Flush,
        }
    }

    fn again(self) -> Option<Operation> {
        Some(match self {
            Asked::Read(offset, length) => Operation::Read { offset, length },
            Asked::Write(offset, length, fua) => Operation::Write {
                offset,
                data: zeroes(length)?,
                fua,
            },
            Asked::Discard(offset, length, fua) => Operation::Discard {
                offset,
                length,
                fua,
            },
            Asked::WriteZeroes(offset, length, fua, unmap) => Operation::WriteZeroes {
                offset,
                length,
                fua,
                unmap,
            },
            Asked::Flush => Operation::Flush,
        })
    }
}

impl Past {
    /// What may be kept of an event. `streams` follow what comes from the peer; contents are packed into `spare`, whose memory
    /// [`Past::into_spare`] gives back.
    pub(super) fn of(
        event: &Event,
        streams: &mut BTreeMap<SocketId, Blanker>,
        spare: &mut Vec<u8>,
    ) -> Past {
        match event {
            Event::Request(Request {
                id,
                volume,
                operation,
            }) => Past::Request(*id, *volume, Asked::of(operation)),
            Event::Opened { volume } => Past::Opened(*volume),
            Event::Released { volume } => Past::Released(*volume),
            Event::DiskDone { token, result } => {
                Past::DiskDone(*token, result.as_ref().map(length_of).map_err(Clone::clone))
            }
            Event::MetaDone { token, result } => {
                let packed = |bytes: &Bytes| {
                    let mut packed = core::mem::take(spare);
                    pack(&mut packed, bytes);
                    packed
                };
                Past::MetaDone(*token, result.as_ref().map(packed).map_err(Clone::clone))
            }
            Event::BackingOpened { token, result } => Past::BackingOpened(*token, result.clone()),
            Event::BackingClosed { token } => Past::BackingClosed(*token),
            Event::Bytes { socket, bytes } => {
                let mut packed = core::mem::take(spare);
                let stream = streams.entry(*socket).or_default();
                stream.follow(bytes, |shown, bytes| match shown {
                    Shown::Kept => pack(&mut packed, bytes),
                    Shown::Blanked => pack_run(&mut packed, 0, bytes.len()),
                });
                Past::Bytes(*socket, packed)
            }
            Event::Sent { socket, bytes } => Past::Sent(*socket, *bytes),
            Event::Accepted { socket } => Past::Accepted(*socket),
            Event::Dialled { token, result } => Past::Dialled(*token, result.clone()),
            Event::ListenFailed { reason } => Past::ListenFailed(reason.clone()),
            Event::Closed { socket, reason } => {
                streams.remove(socket);
                Past::Closed(*socket, reason.clone())
            }
            Event::Command { id, command } => Past::Command(*id, Box::new(without_secret(command))),
            Event::HandlerDone { token, exit } => Past::HandlerDone(*token, *exit),
            Event::Timer => Past::Timer,
        }
    }

    /// An empty vector with the memory of its contents, unless they were large.
    pub(super) fn into_spare(self) -> Vec<u8> {
        match self {
            Past::Bytes(_, mut packed) | Past::MetaDone(_, Ok(mut packed))
                if packed.capacity() <= SPARE_BYTES_MAX =>
            {
                packed.clear();
                packed
            }
            _ => Vec::new(),
        }
    }

    /// The event for a replay; `None` if its contents cannot have been recorded.
    pub(super) fn again(self) -> Option<Event> {
        Some(match self {
            Past::Request(id, volume, asked) => Event::Request(Request {
                id,
                volume,
                operation: asked.again()?,
            }),
            Past::Opened(volume) => Event::Opened { volume },
            Past::Released(volume) => Event::Released { volume },
            Past::DiskDone(token, result) => Event::DiskDone {
                token,
                result: match result {
                    Ok(length) => Ok(zeroes(length)?),
                    Err(error) => Err(error),
                },
            },
            Past::MetaDone(token, result) => Event::MetaDone {
                token,
                result: match result {
                    Ok(packed) => Ok(unpack(&packed)?.into()),
                    Err(error) => Err(error),
                },
            },
            Past::BackingOpened(token, result) => Event::BackingOpened { token, result },
            Past::BackingClosed(token) => Event::BackingClosed { token },
            Past::Bytes(socket, packed) => Event::Bytes {
                socket,
                bytes: unpack(&packed)?.into(),
            },
            Past::Sent(socket, bytes) => Event::Sent { socket, bytes },
            Past::Accepted(socket) => Event::Accepted { socket },
            Past::Dialled(token, result) => Event::Dialled { token, result },
            Past::ListenFailed(reason) => Event::ListenFailed { reason },
            Past::Closed(socket, reason) => Event::Closed { socket, reason },
            Past::Command(id, command) => Event::Command { id, command },
            Past::HandlerDone(token, exit) => Event::HandlerDone { token, exit },
            Past::Timer => Event::Timer,
        })
    }
}

/// That there is a secret counts for the handshake; the secret itself does not.
fn without_secret(command: &Command) -> Command {
    let mut command = command.clone();
    if let Command::Connect { net, .. } = &mut command
        && let Some((secret, _)) = &mut net.secret
    {
        *secret = Vec::new();
    }
    command
}

fn length_of(data: &Bytes) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

fn zeroes(length: u32) -> Option<Bytes> {
    let length = usize::try_from(length).ok()?;
    (length <= CONTENTS_BYTES_MAX).then(|| alloc::vec![0; length].into())
}
