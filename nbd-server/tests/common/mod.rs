//! A client for `Session` without sockets: builds messages, answers queries from a table, decodes replies.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use bytes::{Buf, Bytes};
use tandem_nbd_server::device::plain_info;
use tandem_nbd_server::wire::{self, RequestHeader, opt};
use tandem_nbd_server::{
    Access, Directory, End, Event, ExportInfo, ListedExport, Purpose, Query, Refusal, Request,
    Session,
};

pub const SIZE: u64 = 64 << 20;

/// A table of exports.
#[derive(Default, Clone)]
pub struct Table(pub Vec<ExportInfo>);

impl Table {
    pub fn standard() -> Table {
        let mut described = plain_info("disk", SIZE, Access::ReadWrite);
        described.description = "a disk".into();
        Table(vec![described, plain_info("rom", SIZE, Access::ReadOnly)])
    }

    pub fn of(info: ExportInfo) -> Table {
        Table(vec![info])
    }
}

impl Directory for Table {
    fn list(&self) -> Result<Vec<ListedExport>, Refusal> {
        let line = |info: &ExportInfo| ListedExport {
            name: info.name.clone(),
            description: info.description.clone(),
        };
        Ok(self.0.iter().map(line).collect())
    }

    fn find(&self, name: &str, _purpose: Purpose) -> Result<ExportInfo, Refusal> {
        let alias = if name == "alias" { "disk" } else { name };
        let found = self.0.iter().find(|info| info.name == alias);
        found.cloned().ok_or_else(|| match name {
            "secondary" => Refusal::policy("this node does not serve it; ask alpha"),
            _ => Refusal::unknown(format!("no export \"{name}\"")),
        })
    }
}

/// What the session wanted of its caller, except queries, which the table answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Selected(String),
    Request(Request),
    Ended(End),
}

pub struct Client {
    pub session: Session,
    pub table: Table,
    pub output: Vec<u8>,
    pub queries: Vec<Query>,
}

impl Client {
    pub fn new(table: Table) -> Client {
        let mut client = Client {
            session: Session::default(),
            table,
            output: Vec::new(),
            queries: Vec::new(),
        };
        client.drain();
        let mut greeting = client.take(18);
        assert_eq!(greeting.get_u64(), wire::NBDMAGIC);
        assert_eq!(greeting.get_u64(), wire::IHAVEOPT);
        assert_eq!(greeting.get_u16(), 3);
        client
    }

    /// A client that greeted with FIXED_NEWSTYLE and NO_ZEROES.
    pub fn greeted() -> Client {
        let mut client = Client::new(Table::standard());
        assert_eq!(client.send(&3u32.to_be_bytes()), []);
        client
    }

    /// In transmission on `name` with simple replies.
    pub fn simple(table: Table, name: &str) -> Client {
        let mut client = Client::new(table);
        client.send(&3u32.to_be_bytes());
        let seen = client.send(&option(opt::GO, &info_data(name, &[])));
        assert_eq!(
            seen,
            [Seen::Selected(
                client.session.export().unwrap().name.clone()
            )]
        );
        client.output.clear();
        client
    }

    /// In transmission on `name` with structured replies.
    pub fn structured(table: Table, name: &str) -> Client {
        let mut client = Client::new(table);
        client.send(&3u32.to_be_bytes());
        client.send(&option(opt::STRUCTURED_REPLY, &[]));
        client.send(&option(opt::GO, &info_data(name, &[])));
        assert!(client.session.export().is_some());
        client.output.clear();
        client
    }

    pub fn send(&mut self, bytes: &[u8]) -> Vec<Seen> {
        self.session.feed(Bytes::copy_from_slice(bytes));
        self.drain()
    }

    pub fn request(&mut self, header: RequestHeader, payload: &[u8]) -> Vec<Seen> {
        self.send(&[&header.encode()[..], payload].concat())
    }

    /// Sends a request that is refused or done by the session itself.
    pub fn refused(&mut self, header: RequestHeader, payload: &[u8]) -> u32 {
        assert_eq!(self.request(header, payload), []);
        let (error, cookie) = self.simple_reply();
        assert_eq!(cookie, header.cookie);
        assert!(self.output.is_empty());
        error
    }

    /// Sends a request that the session hands out.
    pub fn accepted(&mut self, header: RequestHeader, payload: &[u8]) -> Request {
        match &self.request(header, payload)[..] {
            [Seen::Request(request)] => request.clone(),
            other => panic!("expected one request, got {other:?}"),
        }
    }

    pub fn drain(&mut self) -> Vec<Seen> {
        std::iter::from_fn(|| self.drain_one()).collect()
    }

    /// The next event that is not a query.
    pub fn drain_one(&mut self) -> Option<Seen> {
        let event = loop {
            match self.session.next_event() {
                Some(Event::Query(query)) => {
                    self.session.answer_from(&self.table, &query).unwrap();
                    self.queries.push(query);
                }
                other => break other,
            }
        };
        self.collect();
        Some(match event? {
            Event::Query(_) => unreachable!("answered above"),
            Event::Selected { export } => Seen::Selected(export),
            Event::Request(request) => Seen::Request(request),
            Event::Ended(end) => Seen::Ended(end),
        })
    }

    pub fn collect(&mut self) {
        let mut pieces = Vec::new();
        self.session.take_output(&mut pieces);
        self.output.extend(pieces.concat());
    }

    pub fn take(&mut self, n: usize) -> Bytes {
        assert!(
            self.output.len() >= n,
            "{} bytes of output, wanted {n}",
            self.output.len()
        );
        Bytes::from(self.output.drain(..n).collect::<Vec<_>>())
    }

    /// The next option reply: option, type, data.
    pub fn option_reply(&mut self) -> (u32, u32, Bytes) {
        let mut head = self.take(20);
        assert_eq!(head.get_u64(), wire::OPTION_REPLY_MAGIC);
        let (option, kind) = (head.get_u32(), head.get_u32());
        let length = head.get_u32() as usize;
        (option, kind, self.take(length))
    }

    /// The only option reply in the output.
    pub fn only_option_reply(&mut self) -> (u32, u32, Bytes) {
        let reply = self.option_reply();
        assert!(self.output.is_empty());
        reply
    }

    /// Error and cookie of a simple reply.
    pub fn simple_reply(&mut self) -> (u32, u64) {
        let mut head = self.take(16);
        assert_eq!(head.get_u32(), wire::SIMPLE_REPLY_MAGIC);
        (head.get_u32(), head.get_u64())
    }

    /// Flags, type, cookie and payload of a chunk.
    pub fn chunk(&mut self) -> (u16, u16, u64, Bytes) {
        let mut head = self.take(20);
        assert_eq!(head.get_u32(), wire::STRUCTURED_REPLY_MAGIC);
        let (flags, kind, cookie) = (head.get_u16(), head.get_u16(), head.get_u64());
        let length = head.get_u32() as usize;
        (flags, kind, cookie, self.take(length))
    }

    /// Code and text of an error chunk.
    pub fn error_chunk(&mut self) -> (u32, String) {
        let (flags, kind, _, mut payload) = self.chunk();
        assert_eq!((flags, kind), (wire::chunk::FLAG_DONE, wire::chunk::ERROR));
        let (code, length) = (payload.get_u32(), payload.get_u16() as usize);
        assert_eq!(payload.len(), length);
        (code, String::from_utf8(payload.to_vec()).unwrap())
    }
}

pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = wire::IHAVEOPT.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

pub fn info_data(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((kinds.len() as u16).to_be_bytes());
    kinds
        .iter()
        .for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

pub fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

pub fn request(command: u16, flags: u16, offset: u64, length: u32) -> RequestHeader {
    RequestHeader {
        flags,
        command,
        cookie: 0xfeed_0000_0000_0001,
        offset,
        length,
    }
}
