//! The last few thousand events and effects of a loop, without user data: what is written out when the loop fails.

use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};

use tandem_replicator::{DiskOperation, Effect, Event, MetaOperation, Operation, Time};

/// Entries that are kept: some seconds under load, a day when idle. 40 bytes each.
const ENTRIES_MAX: usize = 8192;

#[derive(Clone, Copy, Debug)]
struct Entry {
    time: Time,
    what: &'static str,
    first: u64,
    second: u64,
}

/// A ring of entries.
#[derive(Debug, Default)]
pub(crate) struct BlackBox {
    entries: VecDeque<Entry>,
}

impl BlackBox {
    fn push(&mut self, time: Time, (what, first, second): (&'static str, u64, u64)) {
        if self.entries.len() == ENTRIES_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry {
            time,
            what,
            first,
            second,
        });
    }

    /// Notes an event.
    pub(crate) fn event(&mut self, time: Time, event: &Event) {
        self.push(time, event_words(event));
    }

    /// Notes an effect.
    pub(crate) fn effect(&mut self, time: Time, effect: &Effect) {
        self.push(time, effect_words(effect));
    }

    /// Writes everything to a new file in `dir` and returns its path.
    pub(crate) fn write_out(
        &self,
        dir: &Path,
        resource: &str,
        why: &str,
    ) -> std::io::Result<PathBuf> {
        std::fs::create_dir_all(dir)?;
        let seconds = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let path = dir.join(format!("{resource}-{seconds}.txt"));
        let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
        writeln!(file, "resource {resource}: {why}")?;
        writeln!(
            file,
            "nanoseconds  what  first  second (tokens, sockets, offsets, lengths)"
        )?;
        for Entry {
            time,
            what,
            first,
            second,
        } in &self.entries
        {
            writeln!(file, "{:>18}  {what}  {first}  {second}", time.0)?;
        }
        file.flush()?;
        Ok(path)
    }
}

fn event_words(event: &Event) -> (&'static str, u64, u64) {
    match event {
        Event::Request(request) => {
            let (what, offset) = match &request.operation {
                Operation::Read { offset, .. } => ("> request read", *offset),
                Operation::Write { offset, .. } => ("> request write", *offset),
                Operation::Discard { offset, .. } => ("> request discard", *offset),
                Operation::WriteZeroes { offset, .. } => ("> request zeroes", *offset),
                Operation::Flush => ("> request flush", 0),
            };
            (what, request.id.0, offset)
        }
        Event::Opened { volume } => ("> opened", volume.0.into(), 0),
        Event::Released { volume } => ("> released", volume.0.into(), 0),
        Event::DiskDone { token, result } => ("> disk done", token.0, result.is_ok().into()),
        Event::MetaDone { token, result } => ("> meta done", token.0, result.is_ok().into()),
        Event::BackingOpened { token, result } => ("> opened", token.0, result.is_ok().into()),
        Event::BackingClosed { token } => ("> closed", token.0, 0),
        Event::Bytes { socket, bytes } => ("> bytes", socket.0, bytes.len() as u64),
        Event::Sent { socket, bytes } => ("> sent", socket.0, *bytes),
        Event::Accepted { socket } => ("> accepted", socket.0, 0),
        Event::Dialled { token, result } => ("> dialled", token.0, result.is_ok().into()),
        Event::ListenFailed { .. } => ("> listen failed", 0, 0),
        Event::Closed { socket, .. } => ("> socket closed", socket.0, 0),
        Event::Command { id, .. } => ("> command", id.0, 0),
        Event::HandlerDone { token, exit } => {
            ("> handler done", token.0, u64::from(exit.unsigned_abs()))
        }
        Event::Timer => ("> timer", 0, 0),
    }
}

fn effect_words(effect: &Effect) -> (&'static str, u64, u64) {
    match effect {
        Effect::Disk {
            token, operation, ..
        } => {
            let (what, offset) = match operation {
                DiskOperation::Read { offset, .. } => ("< disk read", *offset),
                DiskOperation::Write { offset, .. } => ("< disk write", *offset),
                DiskOperation::Discard { offset, .. } => ("< disk discard", *offset),
                DiskOperation::Zero { offset, .. } => ("< disk zero", *offset),
                DiskOperation::Flush => ("< disk flush", 0),
            };
            (what, token.0, offset)
        }
        Effect::Meta {
            token, operation, ..
        } => {
            let (what, offset) = match operation {
                MetaOperation::Read { offset, .. } => ("< meta read", *offset),
                MetaOperation::Write { offset, .. } => ("< meta write", *offset),
                MetaOperation::Flush => ("< meta flush", 0),
            };
            (what, token.0, offset)
        }
        Effect::Send {
            socket,
            head,
            payload,
        } => {
            let bytes = head.len() + payload.as_ref().map_or(0, bytes::Bytes::len);
            ("< send", socket.0, bytes as u64)
        }
        Effect::Reply { request, result } => ("< reply", request.0, result.is_ok().into()),
        Effect::Answer { command, answer } => ("< answer", command.0, u64::from(answer.exit)),
        Effect::Listen => ("< listen", 0, 0),
        Effect::Unlisten => ("< unlisten", 0, 0),
        Effect::Dial { token } => ("< dial", token.0, 0),
        Effect::Close { socket, .. } => ("< close", socket.0, 0),
        Effect::PauseRead { socket } => ("< pause read", socket.0, 0),
        Effect::ResumeRead { socket } => ("< resume read", socket.0, 0),
        Effect::PauseClients { volume } => ("< pause clients", volume.0.into(), 0),
        Effect::ResumeClients { volume } => ("< resume clients", volume.0.into(), 0),
        Effect::OpenBacking { token, volume } => ("< open", token.0, volume.0.into()),
        Effect::CloseBacking { token, volume } => ("< close backing", token.0, volume.0.into()),
        Effect::RunHandler { token, .. } => ("< run handler", token.0, 0),
        Effect::Notify(_) => ("< notify", 0, 0),
    }
}
