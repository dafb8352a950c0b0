//! What is kept of an effect: its kind, whom it is about, and a hash over all of it but user data and secrets. Two runs with equal
//! marks did the same.

use tandem_protocol::blanking::shown_of_frame;

use crate::command::Answer;
use crate::effect::{CloseHow, DiskOperation, Effect, MetaOperation, Notification};
use crate::event::{Fua, Unmap};

/// What is kept of an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Mark {
    /// Its kind.
    pub kind: MarkKind,
    /// Its token, socket, request, command or volume; 0 if it has none.
    pub subject: u64,
    /// Hash over the rest, without user data and secrets.
    pub hash: u32,
}

/// Kinds of effects, in their words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
#[expect(missing_docs, reason = "each is the effect of the same name")]
pub enum MarkKind {
    DiskRead,
    DiskWrite,
    DiskDiscard,
    DiskZero,
    DiskFlush,
    MetaRead,
    MetaWrite,
    MetaFlush,
    Send,
    Reply,
    Answer,
    Listen,
    Unlisten,
    Dial,
    Close,
    PauseRead,
    ResumeRead,
    PauseClients,
    ResumeClients,
    OpenBacking,
    CloseBacking,
    RunHandler,
    Log,
    StatusChanged,
    Serve,
    MeasureBacking,
}

impl MarkKind {
    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            MarkKind::DiskRead => "disk read",
            MarkKind::DiskWrite => "disk write",
            MarkKind::DiskDiscard => "disk discard",
            MarkKind::DiskZero => "disk zero",
            MarkKind::DiskFlush => "disk flush",
            MarkKind::MetaRead => "meta read",
            MarkKind::MetaWrite => "meta write",
            MarkKind::MetaFlush => "meta flush",
            MarkKind::Send => "send",
            MarkKind::Reply => "reply",
            MarkKind::Answer => "answer",
            MarkKind::Listen => "listen",
            MarkKind::Unlisten => "unlisten",
            MarkKind::Dial => "dial",
            MarkKind::Close => "close",
            MarkKind::PauseRead => "pause read",
            MarkKind::ResumeRead => "resume read",
            MarkKind::PauseClients => "pause clients",
            MarkKind::ResumeClients => "resume clients",
            MarkKind::OpenBacking => "open backing",
            MarkKind::CloseBacking => "close backing",
            MarkKind::RunHandler => "run handler",
            MarkKind::Log => "log",
            MarkKind::StatusChanged => "status changed",
            MarkKind::Serve => "serve",
            MarkKind::MeasureBacking => "measure backing",
        }
    }
}

/// A hash that is quick on small numbers; nobody is to be kept from finding collisions.
struct Hash(u64);

impl Hash {
    const fn new() -> Hash {
        Hash(0xcbf2_9ce4_8422_2325)
    }

    fn number(mut self, number: u64) -> Hash {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 29;
        self
    }

    fn fua(self, fua: Fua) -> Hash {
        self.number(u64::from(fua == Fua::Yes))
    }

    fn bytes(mut self, bytes: &[u8]) -> Hash {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self = self.number(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self = self.number(u64::from(*byte));
        }
        self.number(bytes.len() as u64)
    }

    const fn end(self) -> u32 {
        (self.0 ^ self.0 >> 32) as u32
    }
}

/// The mark of an effect.
#[must_use]
pub fn mark(effect: &Effect) -> Mark {
    let hash = Hash::new();
    let (kind, subject, hash) = match effect {
        Effect::Disk {
            token,
            volume,
            operation,
        } => {
            let (kind, hash) = disk(operation, hash.number(volume.0.into()));
            (kind, token.0, hash)
        }
        Effect::Meta {
            token,
            volume,
            operation,
        } => {
            let (kind, hash) = meta(operation, hash.number(volume.0.into()));
            (kind, token.0, hash)
        }
        Effect::Send {
            socket,
            head,
            payload,
        } => {
            let shown = shown_of_frame(head).min(head.len());
            let payload = payload.as_ref().map_or(0, |payload| payload.len() as u64);
            let hash = hash.bytes(&head[..shown]).number(head.len() as u64);
            (MarkKind::Send, socket.0, hash.number(payload))
        }
        Effect::Reply { request, result } => {
            let hash = match result {
                Ok(data) => hash.number(1).number(data.len() as u64),
                Err(error) => hash.number(2).number(*error as u64),
            };
            (MarkKind::Reply, request.0, hash)
        }
        Effect::Answer { command, answer } => {
            (MarkKind::Answer, command.0, hash_answer(answer, hash))
        }
        other => rest(other, hash),
    };
    Mark {
        kind,
        subject,
        hash: hash.end(),
    }
}

fn disk(operation: &DiskOperation, hash: Hash) -> (MarkKind, Hash) {
    match operation {
        DiskOperation::Read { offset, length } => (
            MarkKind::DiskRead,
            hash.number(*offset).number(u64::from(*length)),
        ),
        DiskOperation::Write { offset, data, fua } => (
            MarkKind::DiskWrite,
            hash.number(*offset).number(data.len() as u64).fua(*fua),
        ),
        DiskOperation::Discard {
            offset,
            length,
            fua,
        } => (
            MarkKind::DiskDiscard,
            hash.number(*offset).number(u64::from(*length)).fua(*fua),
        ),
        DiskOperation::Zero {
            offset,
            length,
            unmap,
            fua,
        } => {
            let hash = hash.number(*offset).number(u64::from(*length)).fua(*fua);
            (
                MarkKind::DiskZero,
                hash.number(u64::from(*unmap == Unmap::Allowed)),
            )
        }
        DiskOperation::Flush => (MarkKind::DiskFlush, hash),
    }
}

fn meta(operation: &MetaOperation, hash: Hash) -> (MarkKind, Hash) {
    match operation {
        MetaOperation::Read { offset, length } => (
            MarkKind::MetaRead,
            hash.number(*offset).number(u64::from(*length)),
        ),
        MetaOperation::Write { offset, data, fua } => (
            MarkKind::MetaWrite,
            hash.number(*offset).bytes(data).fua(*fua),
        ),
        MetaOperation::Flush => (MarkKind::MetaFlush, hash),
    }
}

fn hash_answer(answer: &Answer, hash: Hash) -> Hash {
    let mut hash = hash
        .number(u64::from(answer.number.unsigned_abs()))
        .number(answer.exit.into())
        .bytes(answer.text.as_bytes());
    for line in &answer.info {
        hash = hash.bytes(line.as_bytes());
    }
    hash.bytes(answer.hint.as_deref().unwrap_or_default().as_bytes())
}

/// Everything that has no contents.
fn rest(effect: &Effect, hash: Hash) -> (MarkKind, u64, Hash) {
    match effect {
        Effect::Dial { token } => (MarkKind::Dial, token.0, hash),
        Effect::Close { socket, how } => {
            let how = match how {
                CloseHow::Abort => 0,
                CloseHow::Linger => 1,
                CloseHow::LingerLast => 2,
            };
            (MarkKind::Close, socket.0, hash.number(how))
        }
        Effect::PauseRead { socket } => (MarkKind::PauseRead, socket.0, hash),
        Effect::ResumeRead { socket } => (MarkKind::ResumeRead, socket.0, hash),
        Effect::PauseClients { volume } => (MarkKind::PauseClients, volume.0.into(), hash),
        Effect::ResumeClients { volume } => (MarkKind::ResumeClients, volume.0.into(), hash),
        Effect::OpenBacking { token, volume } => {
            (MarkKind::OpenBacking, token.0, hash.number(volume.0.into()))
        }
        Effect::MeasureBacking { token, volume } => (
            MarkKind::MeasureBacking,
            token.0,
            hash.number(volume.0.into()),
        ),
        Effect::CloseBacking { token, volume } => (
            MarkKind::CloseBacking,
            token.0,
            hash.number(volume.0.into()),
        ),
        Effect::RunHandler {
            token,
            name,
            volume,
        } => {
            let volume = volume.map_or(u64::MAX, |volume| volume.0.into());
            let hash = hash.bytes(name.as_bytes()).number(volume);
            (MarkKind::RunHandler, token.0, hash)
        }
        Effect::Notify(Notification::Log {
            level,
            volume,
            text,
        }) => {
            let about = volume.map_or(0, |volume| volume.0.into());
            let hash = hash.number(*level as u64).number(about);
            (MarkKind::Log, about, hash.bytes(text.as_bytes()))
        }
        Effect::Notify(Notification::StatusChanged) => (MarkKind::StatusChanged, 0, hash),
        Effect::Notify(Notification::Serve { volume, bytes }) => {
            let hash = hash.number(bytes.unwrap_or(u64::MAX));
            (MarkKind::Serve, volume.0.into(), hash)
        }
        Effect::Unlisten => (MarkKind::Unlisten, 0, hash),
        // What `mark` has taken before.
        Effect::Listen
        | Effect::Disk { .. }
        | Effect::Meta { .. }
        | Effect::Send { .. }
        | Effect::Reply { .. }
        | Effect::Answer { .. } => (MarkKind::Listen, 0, hash),
    }
}
