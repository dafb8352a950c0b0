//! One client's connection, from the greeting to its end.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;

use crate::error::{End, Misuse, NbdError, ProtocolError};
use crate::export::{Directory, ExportInfo, ListedExport, Refusal};
use crate::handshake::Handshake;
use crate::input::Input;
use crate::output::Output;
use crate::request::{Data, Handle, PayloadWanted, Request};
use crate::transmission::Transmission;

/// What a client wants to know about an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Facts only; the client stays in the handshake.
    Info,
    /// Facts, then transmission: the moment to check roles and to count the client as one that holds the export open.
    Go,
    /// As `Go`, by the legacy option that cannot report a refusal.
    ExportName,
    /// Only whether the export exists: metadata contexts are being negotiated.
    MetaContext,
}

/// A question to the caller; the session waits for [`Session::answer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// Which exports may be listed?
    List,
    /// What is behind this name?
    Export {
        /// As the client wrote it: may be empty (the default export), valid UTF-8, at most
        /// [`crate::STRING_MAX`] bytes, without NUL.
        name: String,
        /// What the client wants with it.
        purpose: Purpose,
    },
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To [`Query::List`].
    List(Result<Vec<ListedExport>, Refusal>),
    /// To [`Query::Export`].
    Export(Result<Box<ExportInfo>, Refusal>),
}

/// What a session tells its caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A question; the session rests until [`Session::answer`].
    Query(Query),
    /// The handshake is over: the session may move to the owner of this export (canonical name), together with the
    /// socket. Bytes that were fed and not parsed move with it.
    Selected {
        /// Canonical name, as the answer to the query had it.
        export: String,
    },
    /// A request to carry out; [`Session::reply`] is due exactly once.
    Request(Request),
    /// The last event. What is in flight must still be carried out and answered, and the output sent, before the
    /// connection is closed.
    Ended(End),
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No export was chosen yet; subject to [`crate::HANDSHAKE_SECONDS_MAX`].
    Handshake,
    /// Requests flow: the client holds its export open.
    Transmission,
    /// No more input is taken.
    Ended,
}

/// Bounds of one session; reaching one stops the reading of requests until replies were given (back pressure).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests in flight.
    pub requests_in_flight_max: usize,
    /// Bytes of reads and writes in flight. One request alone is always admitted.
    pub bytes_in_flight_max: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            requests_in_flight_max: crate::REQUESTS_IN_FLIGHT_MAX,
            bytes_in_flight_max: crate::BYTES_IN_FLIGHT_MAX,
        }
    }
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Options received in the handshake.
    pub options: u64,
    /// Requests handed to the caller.
    pub requests: u64,
    /// Requests that the session itself answered with an error.
    pub refused: u64,
}

/// What a step of a phase led to.
pub(crate) enum Step {
    /// Something was consumed; go on.
    Again,
    /// A message is incomplete: where in the stream, and how many more bytes are certainly needed.
    /// `inside: None` means between two messages.
    NeedInput {
        inside: Option<&'static str>,
        missing: u64,
    },
    /// The caller has to do something first: answer a query, reply to requests.
    Blocked,
    /// Tell the caller.
    Event(Event),
    /// The handshake is over.
    Select(Box<Transmission>),
    /// The session is over.
    End(End),
}

#[derive(Debug)]
enum Inner {
    Handshake(Handshake),
    Transmission(Box<Transmission>),
}

#[derive(Debug)]
enum Ending {
    Running,
    Due(End),
    Told,
}

/// One client's connection as a state machine. It never blocks, reads a clock or touches a socket.
///
/// Call in this order, as often as there is something to do:
///
/// 1. [`feed`](Session::feed) what was received, while [`wants_input`](Session::wants_input);
///    [`end_of_stream`](Session::end_of_stream) when the client closed.
/// 2. [`next_event`](Session::next_event) until it is `None`, and carry the events out;
///    [`answer`](Session::answer) each query, [`reply`](Session::reply) to each request, now or later, in any order.
/// 3. [`payload_wanted`](Session::payload_wanted): if a large payload is due, either go on feeding, or receive it
///    straight into a block with [`take_payload_prefix`](Session::take_payload_prefix) and
///    [`supply_payload`](Session::supply_payload).
/// 4. [`take_output`](Session::take_output) and send it. Stop at step 2 while more than
///    [`crate::UNSENT_BYTES_MAX`] wait to be sent.
///
/// After [`Event::Selected`] (or already to answer a [`Purpose::Go`] query) the session can move to another thread.
#[derive(Debug)]
pub struct Session {
    input: Input,
    output: Output,
    inner: Inner,
    ending: Ending,
    /// Set by `shutdown`: the text for clients.
    stopping: Option<String>,
    stream_ended: bool,
    limits: Limits,
    counters: Counters,
}

impl Default for Session {
    fn default() -> Session {
        Session::new(Limits::default())
    }
}

impl Session {
    /// A session for a client that has just connected; the greeting is in the output.
    pub fn new(limits: Limits) -> Session {
        let mut output = Output::default();
        output.greeting();
        Session {
            input: Input::default(),
            output,
            inner: Inner::Handshake(Handshake::default()),
            ending: Ending::Running,
            stopping: None,
            stream_ended: false,
            limits,
            counters: Counters::default(),
        }
    }

    /// Takes bytes from the client; they are kept, not copied. After the end they are dropped.
    pub fn feed(&mut self, bytes: Bytes) {
        if matches!(self.ending, Ending::Running) {
            self.input.push(bytes);
        }
    }

    /// The client closed its side: whatever is complete is still served, then the session ends.
    pub fn end_of_stream(&mut self) {
        self.stream_ended = true;
    }

    /// Whether more bytes are needed for the next event. `false` is back pressure: a complete message is here already
    /// (see [`next_event`](Session::next_event)) and a query, a reply or the limits come first; or the next bytes
    /// belong into the caller's own block. Feeding as much as one read yields is fine.
    pub fn wants_input(&self) -> bool {
        if self.stream_ended || !matches!(self.ending, Ending::Running) {
            return false;
        }
        match &self.inner {
            Inner::Handshake(handshake) => handshake.wants_input(self.input.len()),
            Inner::Transmission(transmission) => transmission.wants_input(self.input.len()),
        }
    }

    /// The next thing to do, or `None` until there is more input, an answer or a reply.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            match core::mem::replace(&mut self.ending, Ending::Told) {
                Ending::Running => self.ending = Ending::Running,
                Ending::Due(end) => return Some(Event::Ended(end)),
                Ending::Told => return None,
            }
            match self.step() {
                Step::Again => {}
                Step::Blocked => return None,
                Step::Event(event) => return Some(event),
                Step::Select(transmission) => {
                    let export = transmission.export().name.clone();
                    self.inner = Inner::Transmission(transmission);
                    return Some(Event::Selected { export });
                }
                Step::End(end) => self.end(end),
                Step::NeedInput { .. } if !self.stream_ended => return None,
                Step::NeedInput { inside: None, .. } if self.input.len() == 0 => {
                    self.end(End::Closed);
                }
                Step::NeedInput { inside, missing } => {
                    let inside = inside.unwrap_or("a message");
                    self.end(End::Protocol(ProtocolError::Truncated { inside, missing }));
                }
            }
        }
    }

    fn step(&mut self) -> Step {
        let stopping = self.stopping.as_deref();
        let (input, output) = (&mut self.input, &mut self.output);
        match &mut self.inner {
            Inner::Handshake(handshake) => {
                handshake.step(input, output, stopping, &mut self.counters)
            }
            Inner::Transmission(transmission) => {
                transmission.step(input, output, stopping, &self.limits, &mut self.counters)
            }
        }
    }

    fn end(&mut self, end: End) {
        self.ending = Ending::Due(end);
        self.input.clear();
    }

    /// Answers the [`Query`] that the session waits for.
    pub fn answer(&mut self, answer: Answer) -> Result<(), Misuse> {
        match &mut self.inner {
            Inner::Handshake(handshake) => {
                handshake.answer(answer, &mut self.output, self.stopping.as_deref())
            }
            Inner::Transmission(_) => Err(Misuse::NoQuery),
        }
    }

    /// Answers `query` from a directory at hand.
    pub fn answer_from(&mut self, directory: &dyn Directory, query: &Query) -> Result<(), Misuse> {
        self.answer(match query {
            Query::List => Answer::List(directory.list()),
            Query::Export { name, purpose } => {
                Answer::Export(directory.find(name, *purpose).map(Box::new))
            }
        })
    }

    /// Answers a request. The data of a READ is passed on without a copy; every other success is [`Data::None`].
    ///
    /// A client that ended the session in between still gets its reply if the caller can send it.
    pub fn reply(&mut self, handle: Handle, result: Result<Data, NbdError>) -> Result<(), Misuse> {
        match &mut self.inner {
            Inner::Handshake(_) => Err(Misuse::UnknownHandle),
            Inner::Transmission(transmission) => {
                transmission.reply(handle, result, &mut self.output)
            }
        }
    }

    /// The large write payload that is due next, if any (more than [`crate::PAYLOAD_COALESCED_MAX`] bytes and not
    /// complete in what was fed).
    pub fn payload_wanted(&self) -> Option<PayloadWanted> {
        match &self.inner {
            Inner::Transmission(transmission) if matches!(self.ending, Ending::Running) => {
                transmission.payload_wanted(self.input.len())
            }
            _ => None,
        }
    }

    /// Starts the direct way for the payload that [`payload_wanted`](Session::payload_wanted) announced: moves the part
    /// that was fed already to the front of `block` and says how many bytes that were. `block` is as long as the
    /// payload. The rest is received into it by the caller, who then calls
    /// [`supply_payload`](Session::supply_payload) and feeds nothing in between.
    pub fn take_payload_prefix(&mut self, block: &mut [u8]) -> Result<usize, Misuse> {
        match &mut self.inner {
            Inner::Transmission(transmission) => {
                transmission.take_payload_prefix(&mut self.input, block)
            }
            Inner::Handshake(_) => Err(Misuse::NoPayload {
                wanted: 0,
                got: block.len() as u64,
            }),
        }
    }

    /// Ends the direct way: the whole payload, from its first byte. The write comes out of
    /// [`next_event`](Session::next_event) with exactly these bytes.
    pub fn supply_payload(&mut self, payload: Bytes) -> Result<(), Misuse> {
        match &mut self.inner {
            Inner::Transmission(transmission) => transmission.supply_payload(payload),
            Inner::Handshake(_) => Err(Misuse::NoPayload {
                wanted: 0,
                got: payload.len() as u64,
            }),
        }
    }

    /// The server stops, or the export goes away: from now on options get ERR_SHUTDOWN and requests ESHUTDOWN
    /// with this text. What is in flight is still answered as usual; close when [`in_flight`](Session::in_flight)
    /// is 0, or at a deadline.
    pub fn shutdown(&mut self, text: impl Into<String>) {
        self.stopping = Some(text.into());
    }

    /// Moves all bytes for the client to the end of `out`, in order.
    pub fn take_output(&mut self, out: &mut Vec<Bytes>) {
        self.output.take(out);
    }

    /// Whether there is something to send.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Requests that were handed out and not replied to.
    pub fn in_flight(&self) -> usize {
        match &self.inner {
            Inner::Handshake(_) => 0,
            Inner::Transmission(transmission) => transmission.in_flight(),
        }
    }

    /// Where the session stands.
    pub fn phase(&self) -> Phase {
        match (&self.ending, &self.inner) {
            (Ending::Running, Inner::Handshake(_)) => Phase::Handshake,
            (Ending::Running, Inner::Transmission(_)) => Phase::Transmission,
            _ => Phase::Ended,
        }
    }

    /// The export that was selected, with the facts that this client was told.
    pub fn export(&self) -> Option<&ExportInfo> {
        match &self.inner {
            Inner::Handshake(_) => None,
            Inner::Transmission(transmission) => Some(transmission.export()),
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}
