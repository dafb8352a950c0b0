//! The NBD side of the probe (docs/spec/nbd.md 2 to 6): fixed newstyle, structured replies where the server has them. It shares no code
//! with the server. Nothing that the server announces is believed without a bound.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use thiserror::Error;

const NBDMAGIC: &[u8; 8] = b"NBDMAGIC";
const IHAVEOPT: &[u8; 8] = b"IHAVEOPT";
const OLDSTYLE: u64 = 0x0000_4202_8186_1253;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const CHUNK: u32 = 0x668e_33ef;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

mod opt {
    pub(super) const LIST: u32 = 3;
    pub(super) const GO: u32 = 7;
    pub(super) const STRUCTURED_REPLY: u32 = 8;
    pub(super) const LIST_META_CONTEXT: u32 = 9;
}

mod rep {
    pub(super) const ACK: u32 = 1;
    pub(super) const SERVER: u32 = 2;
    pub(super) const INFO: u32 = 3;
    pub(super) const META_CONTEXT: u32 = 4;
    pub(super) const ERROR: u32 = 0x8000_0000;
    pub(super) const ERR_TLS_REQD: u32 = 0x8000_0005;
    pub(super) const ERR_UNKNOWN: u32 = 0x8000_0006;
}

mod info {
    pub(super) const EXPORT: u16 = 0;
    pub(super) const NAME: u16 = 1;
    pub(super) const DESCRIPTION: u16 = 2;
    pub(super) const BLOCK_SIZE: u16 = 3;
}

mod chunk {
    pub(super) const DONE: u16 = 1;
    pub(super) const NONE: u16 = 0;
    pub(super) const DATA: u16 = 1;
    pub(super) const HOLE: u16 = 2;
    pub(super) const ERROR: u16 = 0x8000;
}

/// The words of the transmission flags (docs/spec/nbd.md 4), from bit 1 on.
const FLAG_WORDS: &[(u16, &str)] = &[
    (1 << 2, "flush"),
    (1 << 3, "fua"),
    (1 << 4, "rotational"),
    (1 << 5, "trim"),
    (1 << 6, "write-zeroes"),
    (1 << 11, "fast-zero"),
    (1 << 7, "df"),
    (1 << 8, "multi-conn"),
    (1 << 9, "resize"),
    (1 << 10, "cache"),
];

const READ_ONLY: u16 = 1 << 1;

/// Longest reply to an option that is taken, in bytes, and how many to one option.
const REPLY_BYTES_MAX: u32 = 64 << 10;
const REPLIES_MAX: usize = 10_000;

/// Bytes that are read, unless the export is smaller or its blocks are larger.
pub(super) const READ_BYTES: u32 = 4096;

/// What the server is asked, for messages.
type Stage = &'static str;

/// What can be wrong with a server.
#[derive(Debug, Error)]
pub(super) enum Trouble {
    /// It says nothing.
    #[error(
        "the server says nothing: {stage} did not come in time; it hangs, or it is no NBD server"
    )]
    Silent {
        /// What was awaited.
        stage: Stage,
    },
    /// It closed the connection.
    #[error("the server hung up instead of sending {stage} ({error}); its log tells why")]
    HungUp {
        /// What was awaited.
        stage: Stage,
        /// What the system said.
        error: io::Error,
    },
    /// It speaks something else.
    #[error("this is no NBD server: it begins with \"{greeting}\"")]
    NotNbd {
        /// The first bytes, escaped.
        greeting: String,
    },
    /// A protocol of before 2011.
    #[error(
        "this server speaks the NBD of before 2011 only (no fixed newstyle), which cannot name exports"
    )]
    OldStyle,
    /// TLS first.
    #[error("the server wants TLS, which this program does not speak: {text}")]
    Tls {
        /// Its words.
        text: String,
    },
    /// No such export.
    #[error("the server has no export \"{export}\": {text}")]
    Unknown {
        /// What was asked for.
        export: String,
        /// Its words.
        text: String,
        /// What it has.
        others: Vec<String>,
    },
    /// Not now, or not to us.
    #[error("the server refuses the export: {text}")]
    Refused {
        /// Its words.
        text: String,
    },
    /// It breaks the rules.
    #[error("the server breaks the rules of NBD: {0}")]
    Protocol(String),
}

/// What the server told.
#[derive(Debug)]
pub(super) struct Findings {
    /// Bytes.
    pub(super) size: u64,
    /// Transmission flags.
    pub(super) flags: u16,
    /// Canonical name.
    pub(super) name: Option<String>,
    /// Text for people.
    pub(super) description: Option<String>,
    /// Minimum, preferred, maximum.
    pub(super) block_sizes: Option<[u32; 3]>,
    /// Names of metadata contexts, or why they are not known.
    pub(super) contexts: Result<Vec<String>, String>,
    /// Bytes and time of one read, or why it failed.
    pub(super) read: Result<(u32, Duration), String>,
}

impl Findings {
    /// The flags in words.
    pub(super) fn flag_words(&self) -> Vec<&'static str> {
        let access = if self.flags & READ_ONLY == 0 {
            "writable"
        } else {
            "read-only"
        };
        let set = FLAG_WORDS.iter().filter(|(bit, _)| self.flags & bit != 0);
        std::iter::once(access)
            .chain(set.map(|(_, word)| *word))
            .collect()
    }
}

/// Whether replies come in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replies {
    Simple,
    Chunks,
}

/// The end of an option that was refused.
struct Refusal {
    kind: u32,
    text: String,
}

type Replied = Result<Vec<(u32, Vec<u8>)>, Refusal>;

/// Connects to `export` over `stream`, reads once, and says goodbye.
pub(super) fn examine<S: Read + Write>(stream: S, export: &str) -> Result<Findings, Trouble> {
    let mut talk = Talk { stream };
    talk.greet()?;
    let replies = match talk.option(opt::STRUCTURED_REPLY, &[], "the answer to STRUCTURED_REPLY")? {
        Ok(_) => Replies::Chunks,
        Err(refusal) if refusal.kind == rep::ERR_TLS_REQD => {
            return Err(Trouble::Tls { text: refusal.text });
        }
        Err(_) => Replies::Simple,
    };
    let contexts = talk.contexts(export, replies)?;
    let mut findings = talk.go(export)?;
    findings.contexts = contexts;
    findings.read = talk.read(&findings, replies)?;
    // A server that is gone needs no goodbye.
    let _ = talk.say(&request(2, 0, 0));
    Ok(findings)
}

struct Talk<S> {
    stream: S,
}

impl<S: Read + Write> Talk<S> {
    fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    fn take<const N: usize>(&mut self, stage: Stage) -> Result<[u8; N], Trouble> {
        let mut bytes = [0; N];
        self.stream
            .read_exact(&mut bytes)
            .map_err(|error| failed(stage, error))?;
        Ok(bytes)
    }

    fn bytes(&mut self, length: usize, stage: Stage) -> Result<Vec<u8>, Trouble> {
        let mut bytes = vec![0; length];
        self.stream
            .read_exact(&mut bytes)
            .map_err(|error| failed(stage, error))?;
        Ok(bytes)
    }

    fn u32(&mut self, stage: Stage) -> Result<u32, Trouble> {
        Ok(u32::from_be_bytes(self.take(stage)?))
    }

    fn greet(&mut self) -> Result<(), Trouble> {
        const STAGE: Stage = "a greeting";
        let magic: [u8; 8] = self.take(STAGE)?;
        if magic != *NBDMAGIC {
            let greeting = magic.escape_ascii().to_string();
            return Err(Trouble::NotNbd { greeting });
        }
        let second: [u8; 8] = self.take(STAGE)?;
        if u64::from_be_bytes(second) == OLDSTYLE {
            return Err(Trouble::OldStyle);
        }
        if second != *IHAVEOPT {
            let greeting = [magic, second].concat().escape_ascii().to_string();
            return Err(Trouble::NotNbd { greeting });
        }
        let offered = u16::from_be_bytes(self.take(STAGE)?);
        if offered & FIXED_NEWSTYLE == 0 {
            return Err(Trouble::OldStyle);
        }
        let ours = u32::from(offered & (FIXED_NEWSTYLE | NO_ZEROES));
        self.say(&ours.to_be_bytes())
            .map_err(|error| failed("an answer to our flags", error))
    }

    /// Sends an option and takes its replies, up to the last one.
    fn option(&mut self, option: u32, data: &[u8], stage: Stage) -> Result<Replied, Trouble> {
        let mut message = IHAVEOPT.to_vec();
        message.extend(option.to_be_bytes());
        // Options of ours are short: names come from a command line.
        message.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
        message.extend(data);
        self.say(&message).map_err(|error| failed(stage, error))?;
        let mut replies = Vec::new();
        while replies.len() < REPLIES_MAX {
            let magic = u64::from_be_bytes(self.take(stage)?);
            if magic != OPTION_REPLY {
                return Err(protocol(format!(
                    "an option reply begins with {magic:016x}"
                )));
            }
            let (echo, kind, length) = (self.u32(stage)?, self.u32(stage)?, self.u32(stage)?);
            if echo != option {
                return Err(protocol(format!(
                    "option {option} was sent, {echo} is answered"
                )));
            }
            if length > REPLY_BYTES_MAX {
                return Err(protocol(format!("an option reply of {length} bytes")));
            }
            let data = self.bytes(length as usize, stage)?;
            if kind >= rep::ERROR {
                let text = String::from_utf8_lossy(&data).into_owned();
                return Ok(Err(Refusal { kind, text }));
            }
            if kind == rep::ACK {
                return Ok(Ok(replies));
            }
            replies.push((kind, data));
        }
        Err(protocol(format!(
            "more than {REPLIES_MAX} replies to one option"
        )))
    }

    fn contexts(
        &mut self,
        export: &str,
        replies: Replies,
    ) -> Result<Result<Vec<String>, String>, Trouble> {
        if replies == Replies::Simple {
            return Ok(Err("the server has no structured replies".to_owned()));
        }
        let mut data = name_of(export);
        data.extend(0_u32.to_be_bytes());
        let stage = "the list of metadata contexts";
        Ok(match self.option(opt::LIST_META_CONTEXT, &data, stage)? {
            Ok(replies) => Ok(replies
                .iter()
                .filter(|(kind, _)| *kind == rep::META_CONTEXT)
                .map(|(_, data)| text_of(data.get(4..).unwrap_or_default()))
                .collect()),
            Err(refusal) => Err(refusal.text),
        })
    }

    fn go(&mut self, export: &str) -> Result<Findings, Trouble> {
        let mut data = name_of(export);
        data.extend(3_u16.to_be_bytes());
        for kind in [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE] {
            data.extend(kind.to_be_bytes());
        }
        match self.option(opt::GO, &data, "the answer to GO")? {
            Ok(replies) => findings_of(&replies),
            Err(Refusal { kind, text }) => Err(match kind {
                rep::ERR_UNKNOWN => Trouble::Unknown {
                    export: export.to_owned(),
                    text,
                    others: self.list()?,
                },
                rep::ERR_TLS_REQD => Trouble::Tls { text },
                _ => Trouble::Refused { text },
            }),
        }
    }

    fn list(&mut self) -> Result<Vec<String>, Trouble> {
        let replies = self.option(opt::LIST, &[], "the list of exports")?;
        let names = replies
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(kind, data)| {
                let (length, rest) = data.split_first_chunk::<4>()?;
                let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
                (kind == rep::SERVER).then(|| rest.get(..length).map(text_of))?
            });
        Ok(names.collect())
    }

    /// One read from the beginning. What the server refuses is no broken protocol.
    fn read(
        &mut self,
        findings: &Findings,
        replies: Replies,
    ) -> Result<Result<(u32, Duration), String>, Trouble> {
        let minimum = findings.block_sizes.map_or(1, |sizes| sizes[0]).max(1);
        let wanted = u64::from(READ_BYTES.max(minimum)).min(findings.size);
        // At most the larger of 4096 and a block size of 32 bits.
        let length = u32::try_from(wanted - wanted % u64::from(minimum)).unwrap_or(READ_BYTES);
        let begun = Instant::now();
        if length == 0 {
            return Ok(Ok((0, begun.elapsed())));
        }
        if length > 64 << 20 {
            return Ok(Err(format!("its blocks have {length} bytes")));
        }
        self.say(&request(0, 0, length))
            .map_err(|error| failed("an answer to a read", error))?;
        let answer = match replies {
            Replies::Simple => self.simple(length)?,
            Replies::Chunks => self.chunks(length)?,
        };
        Ok(answer.map(|()| (length, begun.elapsed())))
    }

    fn simple(&mut self, length: u32) -> Result<Result<(), String>, Trouble> {
        const STAGE: Stage = "an answer to a read";
        let magic = self.u32(STAGE)?;
        let error = self.u32(STAGE)?;
        let _cookie: [u8; 8] = self.take(STAGE)?;
        if magic != SIMPLE_REPLY {
            return Err(protocol(format!("a reply begins with {magic:08x}")));
        }
        if error != 0 {
            return Ok(Err(words_of(error, "")));
        }
        self.bytes(length as usize, STAGE)?;
        Ok(Ok(()))
    }

    fn chunks(&mut self, length: u32) -> Result<Result<(), String>, Trouble> {
        const STAGE: Stage = "an answer to a read";
        let mut answer = Ok(());
        let mut covered: u64 = 0;
        loop {
            let magic = self.u32(STAGE)?;
            let flags = u16::from_be_bytes(self.take(STAGE)?);
            let kind = u16::from_be_bytes(self.take(STAGE)?);
            let _cookie: [u8; 8] = self.take(STAGE)?;
            let size = self.u32(STAGE)?;
            if magic != CHUNK || size > length + REPLY_BYTES_MAX {
                return Err(protocol(format!(
                    "a chunk begins with {magic:08x} and has {size} bytes"
                )));
            }
            let payload = self.bytes(size as usize, STAGE)?;
            covered += match kind {
                chunk::NONE => 0,
                chunk::DATA => (payload.len() as u64).saturating_sub(8),
                chunk::HOLE => u64::from(number_at(&payload, 8).unwrap_or(0)),
                kind if kind >= chunk::ERROR => {
                    let error = number_at(&payload, 0).unwrap_or(5);
                    answer = Err(words_of(
                        error,
                        &text_of(payload.get(6..).unwrap_or_default()),
                    ));
                    0
                }
                kind => return Err(protocol(format!("a chunk of type {kind}"))),
            };
            let whole = covered == u64::from(length);
            match (flags & chunk::DONE != 0, &answer) {
                (true, Ok(())) if !whole => {
                    return Err(protocol(format!("{covered} of {length} bytes were sent")));
                }
                (true, _) => return Ok(answer),
                (false, _) if covered > u64::from(length) || size == 0 => {
                    return Err(protocol("an answer without an end".to_owned()));
                }
                (false, _) => {}
            }
        }
    }
}

fn findings_of(replies: &[(u32, Vec<u8>)]) -> Result<Findings, Trouble> {
    let mut export = None;
    let mut findings = Findings {
        size: 0,
        flags: 0,
        name: None,
        description: None,
        block_sizes: None,
        contexts: Ok(Vec::new()),
        read: Err("nothing was read".to_owned()),
    };
    for (_, data) in replies.iter().filter(|(kind, _)| *kind == rep::INFO) {
        let Some((kind, rest)) = data.split_first_chunk::<2>() else {
            continue;
        };
        match u16::from_be_bytes(*kind) {
            info::EXPORT => {
                export = rest.split_first_chunk::<8>().and_then(|(size, flags)| {
                    let flags = flags.first_chunk::<2>()?;
                    Some((u64::from_be_bytes(*size), u16::from_be_bytes(*flags)))
                });
            }
            info::NAME => findings.name = Some(text_of(rest)),
            info::DESCRIPTION => findings.description = Some(text_of(rest)),
            info::BLOCK_SIZE => {
                findings.block_sizes = number_at(rest, 0)
                    .zip(number_at(rest, 4))
                    .zip(number_at(rest, 8))
                    .map(|((minimum, preferred), maximum)| [minimum, preferred, maximum]);
            }
            _ => {}
        }
    }
    let Some((size, flags)) = export else {
        return Err(protocol("GO succeeds without size and flags".to_owned()));
    };
    Ok(Findings {
        size,
        flags,
        ..findings
    })
}

fn request(kind: u16, offset: u64, length: u32) -> Vec<u8> {
    let mut head = REQUEST.to_be_bytes().to_vec();
    head.extend([0; 2]);
    head.extend(kind.to_be_bytes());
    head.extend(1_u64.to_be_bytes());
    head.extend(offset.to_be_bytes());
    head.extend(length.to_be_bytes());
    head
}

fn name_of(export: &str) -> Vec<u8> {
    // A command line has no names of 4 GiB.
    let length = u32::try_from(export.len()).unwrap_or(u32::MAX);
    let mut data = length.to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data
}

/// A text of the server, fit for a terminal.
fn text_of(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    let number = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*number))
}

/// An error of NBD in words.
fn words_of(error: u32, text: &str) -> String {
    let name = match error {
        1 => "not permitted",
        5 => "I/O error",
        12 => "out of memory",
        22 => "invalid request",
        28 => "no space",
        95 => "not supported",
        108 => "the server is stopping",
        _ => "error",
    };
    match text {
        "" => format!("{name} ({error})"),
        text => format!("{name} ({error}): {text}"),
    }
}

fn protocol(text: String) -> Trouble {
    Trouble::Protocol(text)
}

fn failed(stage: Stage, error: io::Error) -> Trouble {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Trouble::Silent { stage },
        _ => Trouble::HungUp { stage, error },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::tests::Said;

    fn said(parts: &[&[u8]]) -> Result<Findings, Trouble> {
        examine(Said::all(parts), "r0")
    }

    fn greeting() -> Vec<u8> {
        [&NBDMAGIC[..], IHAVEOPT, &[0, 3]].concat()
    }

    fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_REPLY.to_be_bytes().to_vec();
        for number in [option, kind, data.len() as u32] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(data);
        bytes
    }

    /// GO of an export of 6000 bytes with flush and FUA.
    fn gone() -> Vec<u8> {
        let export = [&[0, 0][..], &6000_u64.to_be_bytes(), &[0, 0b1101]].concat();
        [
            reply(opt::GO, rep::INFO, &export),
            reply(opt::GO, rep::ACK, &[]),
        ]
        .concat()
    }

    #[test]
    fn a_server_with_simple_replies_is_read() {
        let refused = reply(opt::STRUCTURED_REPLY, 0x8000_0001, b"no");
        let head = [&SIMPLE_REPLY.to_be_bytes()[..], &[0; 12]].concat();
        let found = said(&[&greeting(), &refused, &gone(), &head, &[7; 4096]]).unwrap();
        assert_eq!(found.size, 6000);
        assert_eq!(found.flag_words(), ["writable", "flush", "fua"]);
        assert_eq!(found.read.unwrap().0, 4096);
        assert!(found.contexts.is_err());
    }

    #[test]
    fn chunks_must_cover_what_was_read() {
        let structured = reply(opt::STRUCTURED_REPLY, rep::ACK, &[]);
        let context = [&[0, 0, 0, 0][..], b"base:allocation"].concat();
        let listed = [
            reply(opt::LIST_META_CONTEXT, rep::META_CONTEXT, &context),
            reply(opt::LIST_META_CONTEXT, rep::ACK, &[]),
        ]
        .concat();
        let chunk = |flags: u16, kind: u16, payload: &[u8]| {
            let mut bytes = CHUNK.to_be_bytes().to_vec();
            bytes.extend(flags.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend([0; 8]);
            bytes.extend((payload.len() as u32).to_be_bytes());
            bytes.extend(payload);
            bytes
        };
        let before = [greeting(), structured, listed, gone()].concat();
        let data = [&[0; 8][..], &[7; 4000]].concat();
        let hole = [&4000_u64.to_be_bytes()[..], &96_u32.to_be_bytes()].concat();
        let whole = [chunk(0, 1, &data), chunk(1, 2, &hole)].concat();
        let found = said(&[&before, &whole]).unwrap();
        assert_eq!(found.contexts.unwrap(), ["base:allocation"]);
        assert_eq!(found.read.unwrap().0, 4096);
        let half = said(&[&before, &chunk(1, 1, &data)]).unwrap_err();
        assert!(matches!(half, Trouble::Protocol(_)), "{half}");
        let error = [&5_u32.to_be_bytes()[..], &[0, 4], b"dead"].concat();
        let found = said(&[&before, &chunk(1, 0x8001, &error)]).unwrap();
        assert_eq!(found.read.unwrap_err(), "I/O error (5): dead");
    }

    #[test]
    fn every_kind_of_refusal_has_its_words() {
        let hello = b"SSH-2.0-OpenSSH_9.2p1\r\n";
        assert!(said(&[hello]).unwrap_err().to_string().contains("SSH-2.0-"));
        let old = [&NBDMAGIC[..], &OLDSTYLE.to_be_bytes()].concat();
        assert!(matches!(said(&[&old]).unwrap_err(), Trouble::OldStyle));
        assert!(matches!(said(&[]).unwrap_err(), Trouble::HungUp { .. }));
        let tls = reply(opt::STRUCTURED_REPLY, rep::ERR_TLS_REQD, b"TLS first");
        let trouble = said(&[&greeting(), &tls]).unwrap_err();
        assert!(matches!(trouble, Trouble::Tls { .. }), "{trouble}");
        let simple = reply(opt::STRUCTURED_REPLY, 0x8000_0001, b"");
        let unknown = reply(opt::GO, rep::ERR_UNKNOWN, b"no such thing");
        let listed = [
            reply(opt::LIST, rep::SERVER, b"\0\0\0\x02r1and words"),
            reply(opt::LIST, rep::ACK, &[]),
        ]
        .concat();
        let trouble = said(&[&greeting(), &simple, &unknown, &listed]).unwrap_err();
        let Trouble::Unknown { others, .. } = &trouble else {
            panic!("{trouble}")
        };
        assert_eq!(others[..], ["r1"]);
    }

    proptest! {
        #[test]
        fn no_server_makes_it_panic_or_wait_for_ever(
            pieces in prop::collection::vec(prop_oneof![
                Just(greeting()),
                Just(gone()),
                (0u32..12, prop_oneof![0u32..6, Just(0x8000_0001), Just(rep::ERR_UNKNOWN)], prop::collection::vec(any::<u8>(), 0..24))
                    .prop_map(|(option, kind, data)| reply(option, kind, &data)),
                prop::collection::vec(any::<u8>(), 0..40),
            ], 0..8),
            greeted in any::<bool>(),
        ) {
            let mut stream = if greeted { greeting() } else { Vec::new() };
            stream.extend(pieces.concat());
            // Every stream of bytes ends: so does the probe.
            if let Ok(found) = said(&[&stream]) {
                prop_assert!(found.flag_words().len() <= FLAG_WORDS.len() + 1);
            }
        }
    }
}
