//! What happened, in words: the last lines are kept cheaply and put into words only when someone wants to read them.

use std::collections::VecDeque;

use bytes::Bytes;
use tandem_protocol::Command as PacketKind;
use tandem_replicator::state::word::State;
use tandem_replicator::{
    DiskOperation, Effect, Event, MetaOperation, Notification, Operation, Time,
};

/// The names of all nodes that there may be.
pub const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Lines kept for a failure.
const LINES_KEPT: usize = 200;

/// One line.
#[derive(Clone, Debug)]
enum Line {
    Text(String),
    In(usize, Event),
    Out(usize, Effect),
    State(usize, State, State),
}

/// The story of a run.
#[derive(Debug)]
pub struct Trace {
    lines: VecDeque<(Time, Line)>,
    kept: usize,
    live: bool,
    /// Hash over all lines: equal for two runs of one seed.
    fingerprint: u64,
    count: u64,
}

impl Trace {
    /// An empty trace. `live`: print each line at once.
    #[must_use]
    pub fn new(live: bool) -> Trace {
        Trace {
            lines: VecDeque::new(),
            kept: LINES_KEPT,
            live,
            fingerprint: 0xcbf2_9ce4_8422_2325,
            count: 0,
        }
    }

    /// Keeps more lines (worked traces print everything when they fail).
    pub fn keep(&mut self, lines: usize) {
        self.kept = lines;
    }

    /// Something that the simulator did.
    pub fn text(&mut self, now: Time, text: String) {
        self.mix(text.len() as u64);
        self.push(now, Line::Text(text));
    }

    /// An event into the engine of a node.
    pub fn event(&mut self, now: Time, node: usize, event: &Event) {
        self.mix(node as u64 + 1);
        self.mix(weight_of_event(event));
        if !matches!(event, Event::Timer) || self.live {
            self.push(now, Line::In(node, event.clone()));
        }
    }

    /// An effect out of it.
    pub fn effect(&mut self, now: Time, node: usize, effect: &Effect) {
        self.mix(node as u64 + 101);
        self.mix(weight_of_effect(effect));
        if !matches!(effect, Effect::Notify(Notification::StatusChanged)) {
            self.push(now, Line::Out(node, effect.clone()));
        }
    }

    /// A changed state.
    pub fn state(&mut self, now: Time, node: usize, old: State, new: State) {
        self.push(now, Line::State(node, old, new));
    }

    fn push(&mut self, now: Time, line: Line) {
        self.mix(now.0);
        self.count += 1;
        if self.live {
            println!("{}", words(now, &line));
        }
        if self.lines.len() >= self.kept {
            self.lines.pop_front();
        }
        self.lines.push_back((now, line));
    }

    fn mix(&mut self, value: u64) {
        self.fingerprint = (self.fingerprint ^ value).wrapping_mul(0x0000_0100_0000_01b3);
        self.fingerprint ^= self.fingerprint >> 29;
    }

    /// Hash over everything that happened.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// How many lines there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The last lines in words.
    #[must_use]
    pub fn tail(&self) -> String {
        let lines: Vec<_> = self
            .lines
            .iter()
            .map(|(now, line)| words(*now, line))
            .collect();
        lines.join("\n")
    }
}

fn weight_of_event(event: &Event) -> u64 {
    match event {
        Event::Request(request) => request.id.0 << 5 | 1,
        Event::DiskDone { token, result } => token.0 << 5 | 2 | u64::from(result.is_err()) << 63,
        Event::MetaDone { token, result } => token.0 << 5 | 3 | u64::from(result.is_err()) << 63,
        Event::Bytes { socket, bytes } => socket.0 << 5 | 4 | (bytes.len() as u64) << 32,
        Event::Sent { socket, bytes } => socket.0 << 5 | 5 | *bytes << 32,
        Event::Closed { socket, .. } => socket.0 << 5 | 6,
        Event::Command { id, .. } => id.0 << 5 | 7,
        Event::HandlerDone { token, .. } => token.0 << 5 | 8,
        Event::Timer => 9,
        _ => 10,
    }
}

fn weight_of_effect(effect: &Effect) -> u64 {
    match effect {
        Effect::Disk { token, .. } => token.0 << 5 | 1,
        Effect::Meta { token, .. } => token.0 << 5 | 2,
        Effect::Send { head, payload, .. } => {
            let last: u64 = head.iter().rev().take(8).map(|byte| u64::from(*byte)).sum();
            let length = payload.as_ref().map_or(0, Bytes::len) + head.len();
            last << 32 | (length as u64) << 5 | 3
        }
        Effect::Reply { request, result } => request.0 << 5 | 4 | u64::from(result.is_err()) << 63,
        Effect::Answer { command, answer } => {
            command.0 << 5 | 5 | u64::from(answer.number.unsigned_abs()) << 40
        }
        _ => 6,
    }
}

fn words(now: Time, line: &Line) -> String {
    let at = format!(
        "{:>4}.{:06}",
        now.0 / 1_000_000_000,
        now.0 % 1_000_000_000 / 1000
    );
    match line {
        Line::Text(text) => format!("{at}    {text}"),
        Line::In(node, event) => format!("{at} {} < {}", name(*node), event_words(event)),
        Line::Out(node, effect) => format!("{at} {}   > {}", name(*node), effect_words(effect)),
        Line::State(node, old, new) => format!(
            "{at} {} == {} -> {}",
            name(*node),
            state_words(*old),
            state_words(*new)
        ),
    }
}

/// `A` and `B`, the nodes of the first pair, and so on.
#[must_use]
pub fn name(node: usize) -> &'static str {
    &LETTERS[node..=node]
}

/// A state as the worked traces write it: `Connected Pri/Sec UpToDate/UpToDate`, with suspension and pause flags.
#[must_use]
pub fn state_words(state: State) -> String {
    let role = |role: tandem_replicator::state::word::Role| role.name()[..3].to_owned();
    let mut text = format!(
        "{} {}/{} {}/{}",
        state.conn,
        role(state.role),
        role(state.peer),
        state.disk,
        state.pdsk
    );
    let flags = [
        (state.susp, " +susp"),
        (state.susp_nod, " +susp_nod"),
        (state.susp_fen, " +susp_fen"),
        (state.aftr_isp, " +aftr_isp"),
        (state.peer_isp, " +peer_isp"),
        (state.user_isp, " +user_isp"),
    ];
    for (set, flag) in flags {
        if set {
            text.push_str(flag);
        }
    }
    text
}

pub(super) fn event_words(event: &Event) -> String {
    match event {
        Event::Request(request) => {
            format!(
                "request {} {}",
                request.id.0,
                operation_words(&request.operation)
            )
        }
        Event::DiskDone { token, result } => match result {
            Ok(bytes) => format!("disk done #{} {}", token.0, bytes.len()),
            Err(error) => format!("disk done #{}: {}", token.0, error.text),
        },
        Event::MetaDone { token, result } => match result {
            Ok(bytes) => format!("meta done #{} {}", token.0, bytes.len()),
            Err(error) => format!("meta done #{}: {}", token.0, error.text),
        },
        Event::Bytes { socket, bytes } => format!("bytes s{} {}", socket.0, bytes.len()),
        Event::Command { id, command } => format!("command {} {command:?}", id.0),
        other => format!("{other:?}"),
    }
}

fn operation_words(operation: &Operation) -> String {
    match operation {
        Operation::Write { offset, data, fua } => {
            format!(
                "write sector {} +{} fua {fua:?}",
                offset / 512,
                data.len() / 512
            )
        }
        Operation::Read { offset, length } => {
            format!("read sector {} +{}", offset / 512, length / 512)
        }
        Operation::Discard { offset, length, .. } => {
            format!("discard sector {} +{}", offset / 512, length / 512)
        }
        Operation::WriteZeroes { offset, length, .. } => {
            format!("zero sector {} +{}", offset / 512, length / 512)
        }
        Operation::Flush => "flush".to_owned(),
    }
}

pub(super) fn effect_words(effect: &Effect) -> String {
    match effect {
        Effect::Disk {
            token, operation, ..
        } => format!("disk #{} {}", token.0, disk_words(operation)),
        Effect::Meta {
            token, operation, ..
        } => format!("meta #{} {}", token.0, meta_words(operation)),
        Effect::Send {
            socket,
            head,
            payload,
        } => {
            let payload = payload.as_ref().map_or(0, Bytes::len);
            format!(
                "send s{} {} +{payload}",
                socket.0,
                packet_words(head, payload)
            )
        }
        Effect::Reply { request, result } => match result {
            Ok(bytes) => format!("reply {} ok {}", request.0, bytes.len()),
            Err(error) => format!("reply {} {error:?}", request.0),
        },
        other => format!("{other:?}"),
    }
}

fn disk_words(operation: &DiskOperation) -> String {
    match operation {
        DiskOperation::Read { offset, length } => {
            format!("read sector {} +{}", offset / 512, length / 512)
        }
        DiskOperation::Write { offset, data, fua } => format!(
            "write sector {} +{} fua {fua:?}",
            offset / 512,
            data.len() / 512
        ),
        DiskOperation::Discard { offset, length, .. } => {
            format!("discard sector {} +{}", offset / 512, length / 512)
        }
        DiskOperation::Zero { offset, length, .. } => {
            format!("zero sector {} +{}", offset / 512, length / 512)
        }
        DiskOperation::Flush => "flush".to_owned(),
    }
}

fn meta_words(operation: &MetaOperation) -> String {
    match operation {
        MetaOperation::Read { offset, length } => format!("read {offset} +{length}"),
        MetaOperation::Write { offset, data, fua } => {
            format!("write {offset} +{} fua {fua:?}", data.len())
        }
        MetaOperation::Flush => "flush".to_owned(),
    }
}

/// Names of the packets that begin in these bytes (the engine may frame several into one head).
fn packet_words(head: &[u8], payload: usize) -> String {
    let mut names = Vec::new();
    let mut at = 0;
    while let Some(rest) = head.get(at..).filter(|rest| rest.len() >= 8) {
        let word = |from: usize| u16::from_be_bytes([rest[from], rest[from + 1]]);
        let long = |from: usize| (u32::from(word(from)) << 16 | u32::from(word(from + 2))) as usize;
        let (command, header, length) = match (word(0), word(2)) {
            (0x8374, 0x0267) => (word(4), 8, usize::from(word(6))),
            (0x835a, command) => (command, 8, long(4)),
            (0x8620, 0xec20) if rest.len() >= 16 => (word(6), 16, long(8)),
            _ => {
                names.push("?".to_owned());
                break;
            }
        };
        names.push(PacketKind::try_from(command).map_or_else(
            |_| format!("command {command:#x}"),
            |kind| kind.name().to_owned(),
        ));
        at += header + length;
    }
    let over = at.saturating_sub(head.len());
    if over > payload {
        names.push(format!("(cut by {})", over - payload));
    }
    names.join(" ")
}
