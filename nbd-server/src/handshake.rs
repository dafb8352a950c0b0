//! Fixed newstyle handshake and option haggling (spec section 3).
//!
//! ```text
//!  ClientFlags ──► Option ◄──────────────┐
//!                   │  │ too long ► Drain┤
//!                   │  └ refused, acked ─┤
//!                   ▼                    │
//!                 Waiting (query) ── INFO, LIST, contexts, refusals
//!                   │ GO, EXPORT_NAME          │ EXPORT_NAME refused
//!                   ▼                          ▼
//!                 Chosen ──► transmission    Failed ──► end
//! ```

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use bytes::{Buf, BufMut, Bytes};

use crate::contexts::{ContextRequest, Selected, id_of};
use crate::error::{End, Misuse, ProtocolError};
use crate::export::{ExportInfo, ListedExport, Refusal, RefusalKind};
use crate::input::Input;
use crate::output::{Output, clip};
use crate::session::{Answer, Counters, Event, Purpose, Query, Step};
use crate::transmission::{ReplyStyle, Transmission};
use crate::wire::{self, info, opt, option_name, rep};

/// Exports in one answer to LIST; the rest is cut off, so that an answer stays far below the send bounds.
const LIST_MAX: usize = 10_000;

#[derive(Debug)]
pub(crate) struct Handshake {
    state: State,
    /// The client set FIXED_NEWSTYLE: it understands option replies.
    fixed: bool,
    /// The client set NO_ZEROES.
    no_zeroes: bool,
    replies: ReplyStyle,
    options: u32,
    /// Facts of the last successful INFO, until another option comes: GO must tell the same (spec 3.3).
    told: Option<(String, Box<ExportInfo>)>,
    /// Metadata contexts of the last SET_META_CONTEXT.
    selected: Option<Selected>,
}

#[derive(Debug)]
enum State {
    ClientFlags,
    Option,
    Drain {
        option: u32,
        left: u64,
    },
    Waiting(Pending),
    Chosen {
        info: Box<ExportInfo>,
        asked_block_sizes: bool,
    },
    Failed(End),
}

/// What the answer to a query will be used for.
#[derive(Debug)]
enum Pending {
    List,
    Info(InfoRequest),
    ExportName,
    MetaContext(ContextRequest),
}

/// Decoded data of INFO and GO.
#[derive(Debug, PartialEq, Eq)]
struct InfoRequest {
    option: u32,
    name: String,
    wants_name: bool,
    wants_description: bool,
    wants_block_size: bool,
}

impl Default for Handshake {
    fn default() -> Handshake {
        Handshake {
            state: State::ClientFlags,
            fixed: false,
            no_zeroes: false,
            replies: ReplyStyle::Simple,
            options: 0,
            told: None,
            selected: None,
        }
    }
}

impl Handshake {
    /// One option of the largest size at a time, and nothing while an answer is due.
    pub(crate) fn wants_input(&self, buffered: usize) -> bool {
        match &self.state {
            State::Waiting(_) | State::Chosen { .. } | State::Failed(_) => false,
            State::Drain { left, .. } => (buffered as u64) < *left,
            State::ClientFlags | State::Option => {
                buffered < wire::OPTION_HEADER_LEN + crate::OPTION_DATA_MAX as usize
            }
        }
    }

    pub(crate) fn step(
        &mut self,
        input: &mut Input,
        output: &mut Output,
        stopping: Option<&str>,
        counters: &mut Counters,
    ) -> Step {
        match &mut self.state {
            State::ClientFlags => self.client_flags(input),
            State::Option => self.option_head(input, output, stopping, counters),
            State::Drain { option, left } => {
                *left -= input.skip(*left);
                if *left > 0 {
                    let inside = Some("the data of an option");
                    return Step::NeedInput {
                        inside,
                        missing: *left,
                    };
                }
                let text = format!("more than {} bytes of data", crate::OPTION_DATA_MAX);
                output.option_reply(*option, rep::ERR_TOO_BIG, &[text.as_bytes()]);
                self.state = State::Option;
                Step::Again
            }
            State::Waiting(_) => Step::Blocked,
            State::Chosen { .. } | State::Failed(_) => self.finish(),
        }
    }

    fn finish(&mut self) -> Step {
        match core::mem::replace(&mut self.state, State::Option) {
            State::Chosen {
                info,
                asked_block_sizes,
            } => {
                // Contexts hold for the export that they were selected for, and for no other.
                let contexts = match self.selected.take() {
                    Some(selected) if selected.export == info.name => selected.contexts,
                    _ => Vec::new(),
                };
                let transmission =
                    Transmission::new(info, self.replies, asked_block_sizes, contexts);
                Step::Select(Box::new(transmission))
            }
            State::Failed(end) => Step::End(end),
            other => {
                self.state = other;
                Step::Again
            }
        }
    }

    fn client_flags(&mut self, input: &mut Input) -> Step {
        let Some(raw) = input.peek::<4>() else {
            let missing = 4 - input.len() as u64;
            return Step::NeedInput {
                inside: None,
                missing,
            };
        };
        input.skip(4);
        let flags = u32::from_be_bytes(raw);
        if flags & !u32::from(wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES) != 0 {
            return Step::End(ProtocolError::ClientFlags { flags }.into());
        }
        self.fixed = flags & u32::from(wire::FLAG_FIXED_NEWSTYLE) != 0;
        self.no_zeroes = flags & u32::from(wire::FLAG_NO_ZEROES) != 0;
        self.state = State::Option;
        Step::Again
    }

    /// Judges an option by its head before its data is looked at.
    fn option_head(
        &mut self,
        input: &mut Input,
        output: &mut Output,
        stopping: Option<&str>,
        counters: &mut Counters,
    ) -> Step {
        let Some(raw) = input.peek::<{ wire::OPTION_HEADER_LEN }>() else {
            let missing = (wire::OPTION_HEADER_LEN - input.len()) as u64;
            return Step::NeedInput {
                inside: None,
                missing,
            };
        };
        let mut rest = &raw[..];
        let magic = rest.get_u64();
        let option = rest.get_u32();
        let length = rest.get_u32();
        if magic != wire::IHAVEOPT {
            return Step::End(ProtocolError::OptionMagic { magic }.into());
        }
        if self.options >= crate::OPTIONS_MAX {
            return Step::End(ProtocolError::TooManyOptions.into());
        }
        if !self.fixed && option != opt::EXPORT_NAME {
            return Step::End(ProtocolError::NotFixedNewstyle { option }.into());
        }
        if length > crate::OPTION_DRAIN_MAX {
            return Step::End(ProtocolError::OptionTooLong { option, length }.into());
        }
        if option == opt::EXPORT_NAME && length as usize > crate::STRING_MAX {
            let text = format!("{length} bytes, at most {} are allowed", crate::STRING_MAX);
            return Step::End(ProtocolError::ExportName { text }.into());
        }
        let whole = wire::OPTION_HEADER_LEN + length as usize;
        if length <= crate::OPTION_DATA_MAX && input.len() < whole {
            let missing = (whole - input.len()) as u64;
            return Step::NeedInput {
                inside: Some("an option"),
                missing,
            };
        }
        self.options += 1;
        counters.options += 1;
        input.skip(wire::OPTION_HEADER_LEN as u64);
        if option == opt::SET_META_CONTEXT {
            // It replaces an earlier one, also when it fails (spec 3.3).
            self.selected = None;
        }
        if length > crate::OPTION_DATA_MAX {
            self.told = None;
            self.state = State::Drain {
                option,
                left: u64::from(length),
            };
            return Step::Again;
        }
        let data = input.take(length as usize).unwrap_or_default();
        self.option(option, data, output, stopping)
    }

    fn option(
        &mut self,
        option: u32,
        data: Bytes,
        output: &mut Output,
        stopping: Option<&str>,
    ) -> Step {
        if option != opt::GO {
            self.told = None;
        }
        if option == opt::ABORT {
            output.option_reply(option, rep::ACK, &[]);
            return Step::End(End::Aborted);
        }
        if let Some(text) = stopping {
            if option == opt::EXPORT_NAME {
                return Step::End(
                    ProtocolError::ExportName {
                        text: text.to_string(),
                    }
                    .into(),
                );
            }
            return refuse(output, option, rep::ERR_SHUTDOWN, text);
        }
        match option {
            opt::EXPORT_NAME => match name_from(&data) {
                Ok(name) => self.ask_export(name, Purpose::ExportName, Pending::ExportName),
                Err(text) => Step::End(ProtocolError::ExportName { text }.into()),
            },
            opt::LIST | opt::STARTTLS | opt::STRUCTURED_REPLY if !data.is_empty() => {
                let text = format!("{} takes no data", option_name(option));
                refuse(output, option, rep::ERR_INVALID, &text)
            }
            opt::LIST => {
                self.state = State::Waiting(Pending::List);
                Step::Event(Event::Query(Query::List))
            }
            opt::STARTTLS => refuse(
                output,
                option,
                rep::ERR_UNSUP,
                "TLS is not supported by this server",
            ),
            opt::STRUCTURED_REPLY => {
                self.replies = ReplyStyle::Structured;
                output.option_reply(option, rep::ACK, &[]);
                Step::Again
            }
            opt::INFO | opt::GO => self.info(option, data, output),
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => {
                self.meta_context(option, data, output)
            }
            opt::EXTENDED_HEADERS | opt::PEEK_EXPORT => {
                let text = format!("{} is not supported by this server", option_name(option));
                refuse(output, option, rep::ERR_UNSUP, &text)
            }
            _ => {
                let text = format!("option {option} is not known to this server");
                refuse(output, option, rep::ERR_UNSUP, &text)
            }
        }
    }

    fn ask_export(&mut self, name: String, purpose: Purpose, pending: Pending) -> Step {
        self.state = State::Waiting(pending);
        Step::Event(Event::Query(Query::Export { name, purpose }))
    }

    fn info(&mut self, option: u32, data: Bytes, output: &mut Output) -> Step {
        match InfoRequest::decode(option, data) {
            Ok(request) => {
                let purpose = if option == opt::GO {
                    Purpose::Go
                } else {
                    Purpose::Info
                };
                self.ask_export(request.name.clone(), purpose, Pending::Info(request))
            }
            Err(text) => {
                self.told = None;
                refuse(output, option, rep::ERR_INVALID, &text)
            }
        }
    }

    /// LIST and SET of metadata contexts (spec 3.3, section 9).
    fn meta_context(&mut self, option: u32, data: Bytes, output: &mut Output) -> Step {
        if self.replies == ReplyStyle::Simple {
            let text = "metadata contexts need STRUCTURED_REPLY first";
            return refuse(output, option, rep::ERR_INVALID, text);
        }
        match ContextRequest::decode(option, data) {
            Ok(request) => self.ask_export(
                request.name.clone(),
                Purpose::MetaContext,
                Pending::MetaContext(request),
            ),
            Err(text) => refuse(output, option, rep::ERR_INVALID, &text),
        }
    }

    pub(crate) fn answer(
        &mut self,
        answer: Answer,
        output: &mut Output,
        stopping: Option<&str>,
    ) -> Result<(), Misuse> {
        let stopped = stopping.map(|text| Refusal::new(RefusalKind::Shutdown, text));
        let pending = match core::mem::replace(&mut self.state, State::Option) {
            State::Waiting(pending) => pending,
            other => {
                self.state = other;
                return Err(Misuse::NoQuery);
            }
        };
        match (pending, answer) {
            (Pending::List, Answer::List(list)) => match refuse_when(stopped, list) {
                Ok(list) => send_list(output, &list),
                Err(refusal) => send_refusal(output, opt::LIST, &refusal),
            },
            (Pending::Info(request), Answer::Export(found)) => {
                self.answer_info(request, refuse_when(stopped, found), output);
            }
            (Pending::ExportName, Answer::Export(found)) => {
                self.answer_export_name(refuse_when(stopped, found), output);
            }
            (Pending::MetaContext(request), Answer::Export(found)) => {
                match refuse_when(stopped, found) {
                    Ok(info) => self.answer_contexts(&request, &info, output),
                    Err(refusal) => send_refusal(output, request.option, &refusal),
                }
            }
            (pending, _) => {
                self.state = State::Waiting(pending);
                return Err(Misuse::NoQuery);
            }
        }
        Ok(())
    }

    fn answer_info(
        &mut self,
        request: InfoRequest,
        found: Result<Box<ExportInfo>, Refusal>,
        output: &mut Output,
    ) {
        let told = self.told.take();
        let info = match found {
            Ok(info) => info,
            Err(refusal) => return send_refusal(output, request.option, &refusal),
        };
        if let Some((name, before)) = told
            && name == request.name
            && before != info
        {
            let text = "the export changed since it was asked about; ask again";
            return send_refusal(output, request.option, &Refusal::policy(text));
        }
        self.send_info(&request, &info, output);
        output.option_reply(request.option, rep::ACK, &[]);
        if request.option == opt::GO {
            self.state = State::Chosen {
                info,
                asked_block_sizes: request.wants_block_size,
            };
        } else {
            self.told = Some((request.name, info));
        }
    }

    /// EXPORT always, BLOCK_SIZE always (unasked is allowed), NAME when asked or when an alias was used, DESCRIPTION
    /// when asked (spec 3.4).
    fn send_info(&self, request: &InfoRequest, info: &ExportInfo, output: &mut Output) {
        let option = request.option;
        let flags = info.flags(self.replies == ReplyStyle::Structured);
        output.option_reply(
            option,
            rep::INFO,
            &[
                &info::EXPORT.to_be_bytes(),
                &info.exported_size().to_be_bytes(),
                &flags.to_be_bytes(),
            ],
        );
        let sizes = info.block_sizes;
        output.option_reply(
            option,
            rep::INFO,
            &[
                &info::BLOCK_SIZE.to_be_bytes(),
                &sizes.minimum().to_be_bytes(),
                &sizes.preferred().to_be_bytes(),
                &sizes.maximum().to_be_bytes(),
            ],
        );
        if request.wants_name || info.name != request.name {
            let name = clip(&info.name, crate::STRING_MAX);
            output.option_reply(
                option,
                rep::INFO,
                &[&info::NAME.to_be_bytes(), name.as_bytes()],
            );
        }
        if request.wants_description {
            let text = clip(&info.description, crate::STRING_MAX);
            let kind = info::DESCRIPTION.to_be_bytes();
            output.option_reply(option, rep::INFO, &[&kind, text.as_bytes()]);
        }
    }

    /// One META_CONTEXT reply per context, with its id for SET and 0 for LIST, then the ACK.
    fn answer_contexts(
        &mut self,
        request: &ContextRequest,
        info: &ExportInfo,
        output: &mut Output,
    ) {
        let set = request.option == opt::SET_META_CONTEXT;
        let contexts = request.choose(&info.contexts);
        for place in &contexts {
            let Some(name) = info.contexts.get(*place as usize) else {
                continue;
            };
            let id = if set { id_of(*place) } else { 0 };
            let parts = [&id.to_be_bytes()[..], name.as_bytes()];
            output.option_reply(request.option, rep::META_CONTEXT, &parts);
        }
        output.option_reply(request.option, rep::ACK, &[]);
        if set {
            self.selected = Some(Selected {
                export: info.name.clone(),
                contexts,
            });
        }
    }

    fn answer_export_name(&mut self, found: Result<Box<ExportInfo>, Refusal>, output: &mut Output) {
        match found {
            Ok(info) => {
                let head = output.head();
                head.put_u64(info.exported_size());
                head.put_u16(info.flags(self.replies == ReplyStyle::Structured));
                if !self.no_zeroes {
                    head.put_bytes(0, wire::EXPORT_NAME_ZEROES);
                }
                self.state = State::Chosen {
                    info,
                    asked_block_sizes: false,
                };
            }
            Err(refusal) => {
                let error = ProtocolError::ExportName { text: refusal.text };
                self.state = State::Failed(error.into());
            }
        }
    }
}

impl InfoRequest {
    /// u32 name length, name, u16 count, count x u16 information type; unknown types are ignored (spec 3.3).
    fn decode(option: u32, mut data: Bytes) -> Result<InfoRequest, String> {
        let name = string_with_length(&mut data)?;
        let count = data.try_get_u16().map_err(|_| short())?;
        if data.remaining() != usize::from(count) * 2 {
            return Err(format!(
                "{count} information requests announced, {} bytes follow",
                data.remaining()
            ));
        }
        let mut request = InfoRequest {
            option,
            name,
            wants_name: false,
            wants_description: false,
            wants_block_size: false,
        };
        while let Ok(kind) = data.try_get_u16() {
            match kind {
                info::NAME => request.wants_name = true,
                info::DESCRIPTION => request.wants_description = true,
                info::BLOCK_SIZE => request.wants_block_size = true,
                _ => {}
            }
        }
        Ok(request)
    }
}

pub(crate) fn string_with_length(data: &mut Bytes) -> Result<String, String> {
    let length = data.try_get_u32().map_err(|_| short())? as usize;
    if length > data.remaining() {
        return Err(format!(
            "a string of {length} bytes in {} bytes",
            data.remaining()
        ));
    }
    name_from(&data.split_to(length))
}

/// Strings are UTF-8 without NUL, at most 4096 bytes (spec, head of the document).
fn name_from(raw: &[u8]) -> Result<String, String> {
    if raw.len() > crate::STRING_MAX {
        return Err(format!(
            "{} bytes, at most {} are allowed",
            raw.len(),
            crate::STRING_MAX
        ));
    }
    match core::str::from_utf8(raw) {
        Ok(name) if !name.contains('\0') => Ok(name.to_string()),
        _ => Err("not UTF-8 without NUL".to_string()),
    }
}

pub(crate) fn short() -> String {
    "the option's data is too short".to_string()
}

fn refuse_when<T>(stopped: Option<Refusal>, found: Result<T, Refusal>) -> Result<T, Refusal> {
    match stopped {
        Some(refusal) => Err(refusal),
        None => found,
    }
}

fn refuse(output: &mut Output, option: u32, reply: u32, text: &str) -> Step {
    output.option_reply(option, reply, &[clip(text, crate::STRING_MAX).as_bytes()]);
    Step::Again
}

fn send_refusal(output: &mut Output, option: u32, refusal: &Refusal) {
    let reply = match refusal.kind {
        RefusalKind::Unknown => rep::ERR_UNKNOWN,
        RefusalKind::Policy => rep::ERR_POLICY,
        RefusalKind::Shutdown => rep::ERR_SHUTDOWN,
        RefusalKind::Platform => rep::ERR_PLATFORM,
    };
    refuse(output, option, reply, &refusal.text);
}

fn send_list(output: &mut Output, list: &[ListedExport]) {
    let fits = |export: &&ListedExport| export.name.len() <= crate::STRING_MAX;
    for export in list.iter().filter(fits).take(LIST_MAX) {
        let length = export.name.len() as u32;
        let text = clip(&export.description, crate::STRING_MAX);
        output.option_reply(
            opt::LIST,
            rep::SERVER,
            &[
                &length.to_be_bytes(),
                export.name.as_bytes(),
                text.as_bytes(),
            ],
        );
    }
    output.option_reply(opt::LIST, rep::ACK, &[]);
}
