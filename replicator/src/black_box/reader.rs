//! [`Reader`]: a file becomes entries again. Whatever is in it, no allocation is larger than an entry may be.

use alloc::string::String;
use alloc::vec::Vec;

use super::marks::Mark;
use super::past::Past;
use super::{
    CUT, DONE, ENTRY_BYTES_MAX, FAILED, FORM, FORMAT_VERSION, HAPPENED, Head, MAGIC, take_length,
};
use crate::event::Event;
use crate::time::Time;

/// Why a file is not a black box that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlackBoxError {
    /// It begins otherwise.
    #[error("not a black box: it does not begin with \"tandembb\"")]
    NotABlackBox,
    /// Another format.
    #[error(
        "the black box has format {found}, and this program reads format {FORMAT_VERSION}; it was written by {writer}: use the simulator of that version"
    )]
    Version {
        /// Its format.
        found: u16,
        /// Who wrote it.
        writer: String,
    },
    /// Its head ends early or makes no sense.
    #[error("the head of the black box is damaged")]
    Head,
    /// The file ends in the middle of an entry: the daemon was killed while it wrote.
    #[error("the file ends in the middle of an entry at byte {at}")]
    EndsEarly {
        /// Where the entry begins.
        at: usize,
    },
    /// An entry makes no sense.
    #[error("the entry at byte {at} is damaged: {what}")]
    Entry {
        /// Where it begins.
        at: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// One entry.
#[derive(Clone, Debug)]
pub enum Entry {
    /// The engine was told this.
    Happened(Time, Event),
    /// The engine wanted this, with this tape.
    Done {
        /// For [`crate::Resource::play_tape`].
        tape: Vec<u8>,
        /// What it wanted.
        marks: Vec<Mark>,
    },
    /// The engine failed with this message, and this tape until then.
    Failed {
        /// For [`crate::Resource::play_tape`].
        tape: Vec<u8>,
        /// The message.
        text: String,
    },
    /// The recording ends here, before the engine did, for this reason.
    Cut(String),
}

/// Reads a black box.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    writer: String,
    head: Head,
    bytes: &'a [u8],
    at: usize,
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn take_u16(bytes: &mut &[u8]) -> Option<u16> {
    let taken = take(bytes, 2)?;
    taken.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let taken = take(bytes, 4)?;
    taken.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

impl<'a> Reader<'a> {
    /// Reads the head of a file.
    ///
    /// # Errors
    /// [`BlackBoxError`]
    pub fn open(bytes: &'a [u8]) -> Result<Reader<'a>, BlackBoxError> {
        let mut rest = bytes
            .strip_prefix(&MAGIC)
            .ok_or(BlackBoxError::NotABlackBox)?;
        let found = take_u16(&mut rest).ok_or(BlackBoxError::Head)?;
        let length = take_u16(&mut rest).ok_or(BlackBoxError::Head)?;
        let writer = take(&mut rest, length.into()).ok_or(BlackBoxError::Head)?;
        let writer = String::from_utf8_lossy(writer).into_owned();
        if found != FORMAT_VERSION {
            return Err(BlackBoxError::Version { found, writer });
        }
        let length = take_u32(&mut rest).ok_or(BlackBoxError::Head)?;
        let body = take(&mut rest, length as usize).ok_or(BlackBoxError::Head)?;
        let (head, used): (Head, usize) =
            bincode::decode_from_slice(body, FORM).map_err(|_| BlackBoxError::Head)?;
        if used != body.len() {
            return Err(BlackBoxError::Head);
        }
        Ok(Reader {
            writer,
            head,
            bytes,
            at: bytes.len() - rest.len(),
        })
    }

    /// Program and version that wrote it.
    #[must_use]
    pub fn writer(&self) -> &str {
        &self.writer
    }

    /// What it says of itself.
    #[must_use]
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// The next entry; `None` at the end. An error is the last word.
    ///
    /// # Errors
    /// [`BlackBoxError::EndsEarly`], [`BlackBoxError::Entry`]
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator of results would hide that an error ends it"
    )]
    pub fn next(&mut self) -> Result<Option<Entry>, BlackBoxError> {
        let at = self.at;
        let mut rest = self.bytes.get(at..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        let damaged = |what| BlackBoxError::Entry { at, what };
        let Some(length) = take_length(&mut rest) else {
            return Err(if rest.is_empty() {
                BlackBoxError::EndsEarly { at }
            } else {
                damaged("its length")
            });
        };
        if length == 0 || length > ENTRY_BYTES_MAX {
            return Err(damaged("its length"));
        }
        let entry = take(&mut rest, length).ok_or(BlackBoxError::EndsEarly { at })?;
        self.at = self.bytes.len() - rest.len();
        read(entry).map(Some).map_err(damaged)
    }
}

fn read(entry: &[u8]) -> Result<Entry, &'static str> {
    let (kind, body) = entry.split_first().ok_or("it is empty")?;
    match *kind {
        HAPPENED => {
            let (time, past): (Time, Past) = whole(body)?;
            let event = past.again().ok_or("the contents of its event")?;
            Ok(Entry::Happened(time, event))
        }
        DONE => {
            let (tape, marks) = whole(body)?;
            Ok(Entry::Done { tape, marks })
        }
        FAILED => {
            let (tape, text) = whole(body)?;
            Ok(Entry::Failed { tape, text })
        }
        CUT => whole(body).map(Entry::Cut),
        _ => Err("its kind"),
    }
}

fn whole<T: bincode::Decode<()>>(body: &[u8]) -> Result<T, &'static str> {
    match bincode::decode_from_slice(body, FORM) {
        Ok((value, used)) if used == body.len() => Ok(value),
        Ok(_) => Err("something follows it"),
        Err(_) => Err("its fields"),
    }
}
