//! Transmission: requests in, replies out (spec sections 5 and 6).
//!
//! ```text
//!             ┌───────────────────────────────────────────────┐
//!             ▼                                               │
//!  Header ── READ, FLUSH, TRIM and so on ────────► Request ───┤
//!    │ ├──── refused without payload ─► error reply ──────────┤
//!    │ ├──── refused WRITE ─► Drain ─► error reply ───────────┤
//!    │ └──── WRITE ─► Payload ─────────────► Request ─────────┘
//!    │                   └► Direct ─► Supplied ┘
//!    └ DISC ─► end
//! ```

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::{BufMut, Bytes};

use crate::contexts;
use crate::error::{End, ErrorCode, Misuse, NbdError, ProtocolError};
use crate::export::{Access, ExportInfo, Unaligned};
use crate::in_flight::{InFlight, Slots};
use crate::input::Input;
use crate::output::{Output, clip};
use crate::request::{Data, Extent, Handle, PayloadWanted, Request, RequestKind};
use crate::session::{Counters, Event, Limits, Step};
use crate::wire::{self, RequestHeader, chunk, cmd, cmd_flag, command_name};

/// How replies are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyStyle {
    Simple,
    Structured,
}

/// A WRITE whose head was accepted.
#[derive(Debug, Clone, Copy)]
struct Write {
    cookie: u64,
    offset: u64,
    length: u32,
    fua: bool,
}

#[derive(Debug)]
enum State {
    Header,
    /// The payload comes through the input.
    Payload(Write),
    /// The payload is being received by the caller.
    Direct(Write),
    /// The caller has received it.
    Supplied(Write, Bytes),
    /// The payload of a refused write is skipped, then the error sent: the stream stays in step.
    Drain {
        left: u64,
        cookie: u64,
        error: NbdError,
    },
}

/// What the checks of a header led to.
enum Judged {
    Serve(RequestKind),
    /// Nothing to do (length 0, FLUSH of a read-only export): success at once.
    Nothing,
}

#[derive(Debug)]
pub(crate) struct Transmission {
    info: Box<ExportInfo>,
    /// Frozen for the session.
    size: u64,
    replies: ReplyStyle,
    /// Offsets and lengths must be multiples of this.
    alignment: u64,
    /// Metadata contexts that the client selected: places in the export's list.
    contexts: Vec<u32>,
    state: State,
    slots: Slots,
}

impl Transmission {
    pub(crate) fn new(
        info: Box<ExportInfo>,
        replies: ReplyStyle,
        asked_sizes: bool,
        contexts: Vec<u32>,
    ) -> Self {
        let bound = asked_sizes || info.unaligned == Unaligned::Refused;
        let alignment = if bound {
            u64::from(info.block_sizes.minimum())
        } else {
            1
        };
        Transmission {
            size: info.exported_size(),
            info,
            replies,
            alignment,
            contexts,
            state: State::Header,
            slots: Slots::default(),
        }
    }

    pub(crate) fn export(&self) -> &ExportInfo {
        &self.info
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// No more than completes the present message: whatever is complete and still here waits for the limits. (One
    /// header is read even then: it may be a DISC, which is never held up.)
    pub(crate) fn wants_input(&self, buffered: usize) -> bool {
        match &self.state {
            State::Direct(_) | State::Supplied(..) => false,
            State::Header => buffered < wire::REQUEST_LEN,
            State::Payload(write) => buffered < write.length as usize,
            State::Drain { left, .. } => (buffered as u64) < *left,
        }
    }

    fn is_full(&self, more: u64, limits: &Limits) -> bool {
        let in_flight = self.slots.len();
        in_flight > 0
            && (in_flight >= limits.requests_in_flight_max
                || self.slots.bytes.saturating_add(more) > limits.bytes_in_flight_max)
    }

    pub(crate) fn step(
        &mut self,
        input: &mut Input,
        output: &mut Output,
        stopping: Option<&str>,
        limits: &Limits,
        counters: &mut Counters,
    ) -> Step {
        match core::mem::replace(&mut self.state, State::Header) {
            State::Header => self.header(input, output, stopping, limits, counters),
            State::Payload(write) => match input.take(write.length as usize) {
                Some(payload) => self.write(write, payload, output, stopping, counters),
                None => {
                    let missing = u64::from(write.length) - input.len() as u64;
                    self.state = State::Payload(write);
                    Step::NeedInput {
                        inside: Some("a write payload"),
                        missing,
                    }
                }
            },
            State::Direct(write) => {
                self.state = State::Direct(write);
                let missing = u64::from(write.length);
                Step::NeedInput {
                    inside: Some("a write payload"),
                    missing,
                }
            }
            State::Supplied(write, payload) => {
                self.write(write, payload, output, stopping, counters)
            }
            State::Drain {
                mut left,
                cookie,
                error,
            } => {
                left -= input.skip(left);
                if left > 0 {
                    self.state = State::Drain {
                        left,
                        cookie,
                        error,
                    };
                    let inside = Some("the payload of a refused write");
                    return Step::NeedInput {
                        inside,
                        missing: left,
                    };
                }
                counters.refused += 1;
                self.send_error(cookie, &error, output);
                Step::Again
            }
        }
    }

    fn header(
        &mut self,
        input: &mut Input,
        output: &mut Output,
        stopping: Option<&str>,
        limits: &Limits,
        counters: &mut Counters,
    ) -> Step {
        let Some(raw) = input.peek::<{ wire::REQUEST_LEN }>() else {
            let missing = (wire::REQUEST_LEN - input.len()) as u64;
            return Step::NeedInput {
                inside: None,
                missing,
            };
        };
        let header = match RequestHeader::decode(&raw) {
            Ok(header) => header,
            Err(magic) => return Step::End(ProtocolError::RequestMagic { magic }.into()),
        };
        if header.command == cmd::DISC {
            return Step::End(End::Disconnected);
        }
        let bytes = match header.command {
            cmd::READ | cmd::WRITE => u64::from(header.length.min(crate::PAYLOAD_MAX)),
            _ => 0,
        };
        // Whoever will be refused anyway need not wait for a place.
        if stopping.is_none() && self.is_full(bytes, limits) {
            return Step::Blocked;
        }
        input.skip(wire::REQUEST_LEN as u64);
        let is_write = header.command == cmd::WRITE;
        match self.judge(&header, stopping) {
            Ok(Judged::Serve(RequestKind::Write { offset, fua, .. })) => {
                let (cookie, length) = (header.cookie, header.length);
                self.state = State::Payload(Write {
                    cookie,
                    offset,
                    length,
                    fua,
                });
                Step::Again
            }
            Ok(Judged::Serve(kind)) => self.hand_out(&header, kind, counters),
            Ok(Judged::Nothing) => {
                output.simple(0, header.cookie);
                Step::Again
            }
            Err(error) => {
                let left = if is_write {
                    u64::from(header.length)
                } else {
                    0
                };
                self.state = State::Drain {
                    left,
                    cookie: header.cookie,
                    error,
                };
                Step::Again
            }
        }
    }

    fn hand_out(
        &mut self,
        header: &RequestHeader,
        kind: RequestKind,
        counters: &mut Counters,
    ) -> Step {
        let handle = self.slots.insert(InFlight {
            cookie: header.cookie,
            command: header.command,
            offset: header.offset,
            length: header.length,
            one: header.flags & cmd_flag::REQ_ONE != 0,
        });
        counters.requests += 1;
        Step::Event(Event::Request(Request { handle, kind }))
    }

    fn write(
        &mut self,
        write: Write,
        payload: Bytes,
        output: &mut Output,
        stopping: Option<&str>,
        counters: &mut Counters,
    ) -> Step {
        let Write {
            cookie,
            offset,
            length,
            fua,
        } = write;
        if let Some(text) = stopping {
            counters.refused += 1;
            self.send_error(cookie, &shutdown_error(text), output);
            return Step::Again;
        }
        let header = RequestHeader {
            flags: 0,
            command: cmd::WRITE,
            cookie,
            offset,
            length,
        };
        self.hand_out(
            &header,
            RequestKind::Write {
                offset,
                payload,
                fua,
            },
            counters,
        )
    }

    /// Every check of spec section 6, cheapest answer first.
    fn judge(&self, header: &RequestHeader, stopping: Option<&str>) -> Result<Judged, NbdError> {
        let RequestHeader {
            flags,
            command,
            offset,
            length,
            ..
        } = *header;
        if let Some(text) = stopping {
            return Err(shutdown_error(text));
        }
        self.check_command(command)?;
        self.check_flags(command, flags)?;
        let fua = flags & cmd_flag::FUA != 0;
        if command == cmd::FLUSH {
            // Offset and length must be 0; clients that get that wrong still mean the whole export.
            return Ok(match self.info.access {
                Access::ReadWrite => Judged::Serve(RequestKind::Flush),
                Access::ReadOnly => Judged::Nothing,
            });
        }
        self.check_range(header)?;
        if length == 0 {
            return match command {
                cmd::READ | cmd::BLOCK_STATUS => {
                    let text = format!("{} of 0 bytes", command_name(command));
                    Err(NbdError::inval(text))
                }
                _ => Ok(Judged::Nothing),
            };
        }
        Ok(Judged::Serve(match command {
            cmd::READ => RequestKind::Read { offset, length },
            cmd::WRITE => RequestKind::Write {
                offset,
                payload: Bytes::new(),
                fua,
            },
            cmd::CACHE => RequestKind::Cache { offset, length },
            cmd::BLOCK_STATUS => RequestKind::BlockStatus {
                offset,
                length,
                one: flags & cmd_flag::REQ_ONE != 0,
                contexts: self.contexts.clone(),
            },
            cmd::TRIM => RequestKind::Trim {
                offset,
                length,
                fua,
            },
            _ => RequestKind::WriteZeroes {
                offset,
                length,
                fua,
                no_hole: flags & cmd_flag::NO_HOLE != 0,
                fast_zero: flags & cmd_flag::FAST_ZERO != 0,
            },
        }))
    }

    fn check_command(&self, command: u16) -> Result<(), NbdError> {
        let features = &self.info.features;
        let read_only = self.info.access == Access::ReadOnly;
        let served = match command {
            cmd::READ => true,
            cmd::FLUSH => features.flush || read_only,
            cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES if read_only => {
                let text = format!("{} on a read-only export", command_name(command));
                return Err(NbdError::new(ErrorCode::Perm, text));
            }
            cmd::WRITE => true,
            cmd::TRIM => features.trim,
            cmd::WRITE_ZEROES => features.write_zeroes,
            cmd::CACHE => features.cache,
            cmd::BLOCK_STATUS if self.contexts.is_empty() => {
                let text = "BLOCK_STATUS without a selected metadata context";
                return Err(NbdError::inval(text));
            }
            cmd::BLOCK_STATUS => true,
            _ => false,
        };
        if served {
            return Ok(());
        }
        let text = format!(
            "{} ({command}) is not served by this export",
            command_name(command)
        );
        Err(NbdError::inval(text))
    }

    fn check_flags(&self, command: u16, flags: u16) -> Result<(), NbdError> {
        let features = &self.info.features;
        // FUA means nothing where nothing is written. Where something is, it is never ignored.
        let fua = match command {
            cmd::READ | cmd::FLUSH | cmd::CACHE => cmd_flag::FUA,
            _ if features.fua => cmd_flag::FUA,
            _ => 0,
        };
        let own = match (command, self.replies) {
            (cmd::READ, ReplyStyle::Structured) => cmd_flag::DF,
            (cmd::BLOCK_STATUS, _) => cmd_flag::REQ_ONE,
            (cmd::WRITE_ZEROES, _) if features.fast_zero => cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO,
            (cmd::WRITE_ZEROES, _) => cmd_flag::NO_HOLE,
            _ => 0,
        };
        let unknown = flags & !(fua | own);
        if unknown == 0 {
            return Ok(());
        }
        let text = format!(
            "{} with unsupported flags {unknown:#06x}",
            command_name(command)
        );
        Err(NbdError::inval(text))
    }

    fn check_range(&self, header: &RequestHeader) -> Result<(), NbdError> {
        let RequestHeader {
            command,
            offset,
            length,
            ..
        } = *header;
        let name = command_name(command);
        let end = offset.checked_add(u64::from(length));
        if end.is_none_or(|end| end > self.size) {
            let code = match command {
                cmd::WRITE | cmd::WRITE_ZEROES => ErrorCode::NoSpc,
                _ => ErrorCode::Inval,
            };
            let size = self.size;
            let text = format!("{name} of {length} bytes at {offset}: the export ends at {size}");
            return Err(NbdError::new(code, text));
        }
        if offset % self.alignment != 0 || u64::from(length) % self.alignment != 0 {
            let unit = self.alignment;
            let text = format!("{name} of {length} bytes at {offset}: not multiples of {unit}");
            return Err(NbdError::inval(text));
        }
        let maximum = self.info.block_sizes.maximum();
        if matches!(command, cmd::READ | cmd::WRITE) && length > maximum {
            let code = match (command, self.replies) {
                (cmd::READ, ReplyStyle::Structured) => ErrorCode::Overflow,
                _ => ErrorCode::Inval,
            };
            let text = format!("{name} of {length} bytes: more than the maximum of {maximum}");
            return Err(NbdError::new(code, text));
        }
        Ok(())
    }

    pub(crate) fn payload_wanted(&self, buffered: usize) -> Option<PayloadWanted> {
        match &self.state {
            State::Payload(write)
                if write.length > crate::PAYLOAD_COALESCED_MAX
                    && buffered < write.length as usize =>
            {
                Some(PayloadWanted {
                    length: write.length,
                    buffered: buffered as u32,
                })
            }
            _ => None,
        }
    }

    pub(crate) fn take_payload_prefix(
        &mut self,
        input: &mut Input,
        block: &mut [u8],
    ) -> Result<usize, Misuse> {
        let got = block.len() as u64;
        let State::Payload(write) = self.state else {
            return Err(Misuse::NoPayload { wanted: 0, got });
        };
        let wanted = u64::from(write.length);
        if self.payload_wanted(input.len()).is_none() || wanted != got {
            return Err(Misuse::NoPayload { wanted, got });
        }
        self.state = State::Direct(write);
        Ok(input.move_to(block))
    }

    pub(crate) fn supply_payload(&mut self, payload: Bytes) -> Result<(), Misuse> {
        let got = payload.len() as u64;
        match self.state {
            State::Direct(write) if u64::from(write.length) == got => {
                self.state = State::Supplied(write, payload);
                Ok(())
            }
            State::Direct(write) => Err(Misuse::NoPayload {
                wanted: u64::from(write.length),
                got,
            }),
            _ => Err(Misuse::NoPayload { wanted: 0, got }),
        }
    }

    pub(crate) fn reply(
        &mut self,
        handle: Handle,
        result: Result<Data, NbdError>,
        output: &mut Output,
    ) -> Result<(), Misuse> {
        let request = self.slots.remove(handle).ok_or(Misuse::UnknownHandle)?;
        let data = match result {
            Ok(data) => data,
            Err(error) => {
                self.send_error(request.cookie, &error, output);
                return Ok(());
            }
        };
        if let Data::Status(lists) = data {
            return self.reply_status(&request, &lists, output);
        }
        if request.command == cmd::BLOCK_STATUS {
            return self.refuse_reply(&request, 1, 0, output);
        }
        let expected = if request.command == cmd::READ {
            u64::from(request.length)
        } else {
            0
        };
        let got = data.len();
        if got != expected {
            return self.refuse_reply(&request, expected, got, output);
        }
        self.send_success(&request, data, output);
        Ok(())
    }

    /// The caller's mistake: the client gets EIO.
    fn refuse_reply(
        &self,
        request: &InFlight,
        expected: u64,
        got: u64,
        output: &mut Output,
    ) -> Result<(), Misuse> {
        let error = NbdError::io("the server lost its own data");
        self.send_error(request.cookie, &error, output);
        Err(Misuse::WrongData {
            command: request.command,
            expected,
            got,
        })
    }

    /// One chunk per selected context (spec section 9).
    fn reply_status(
        &self,
        request: &InFlight,
        lists: &[Vec<Extent>],
        output: &mut Output,
    ) -> Result<(), Misuse> {
        let tidied: Vec<Vec<(u32, u32)>> = lists
            .iter()
            .map(|extents| contexts::tidy(extents, request.length, request.one))
            .collect();
        let (expected, got) = (self.contexts.len() as u64, lists.len() as u64);
        // A list that makes no progress would have the client ask for ever.
        let stuck = tidied.iter().any(Vec::is_empty);
        if request.command != cmd::BLOCK_STATUS || expected != got || stuck {
            return self.refuse_reply(request, expected, got, output);
        }
        for (at, (place, extents)) in self.contexts.iter().zip(&tidied).enumerate() {
            let last = at + 1 == tidied.len();
            let flags = if last { chunk::FLAG_DONE } else { 0 };
            contexts::send_chunk(output, flags, request.cookie, *place, extents);
        }
        Ok(())
    }

    /// A READ is one OFFSET_DATA chunk once structured replies were agreed, which serves DF too; other successes
    /// stay simple (spec section 5).
    fn send_success(&self, request: &InFlight, data: Data, output: &mut Output) {
        if request.command == cmd::READ && self.replies == ReplyStyle::Structured {
            output.last_chunk(chunk::OFFSET_DATA, request.cookie, request.length + 8);
            output.head().put_u64(request.offset);
        } else {
            output.simple(0, request.cookie);
        }
        match data {
            Data::None | Data::Status(_) => {}
            Data::Bytes(bytes) => output.payload(bytes),
            Data::Pieces(pieces) => pieces.into_iter().for_each(|piece| output.payload(piece)),
        }
    }

    /// Structured errors carry the text (spec section 5: u32 error, u16 text length, text).
    fn send_error(&self, cookie: u64, error: &NbdError, output: &mut Output) {
        let code = error.code.wire();
        if self.replies == ReplyStyle::Simple {
            return output.simple(code, cookie);
        }
        let text = clip(&error.text, crate::STRING_MAX);
        output.last_chunk(chunk::ERROR, cookie, 6 + text.len() as u32);
        let head = output.head();
        head.put_u32(code);
        head.put_u16(text.len() as u16);
        head.put_slice(text.as_bytes());
    }
}

fn shutdown_error(text: &str) -> NbdError {
    NbdError::new(ErrorCode::Shutdown, String::from(text))
}
