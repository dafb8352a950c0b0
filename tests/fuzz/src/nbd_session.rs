//! A whole NBD session.

use bytes::Bytes;
use tandem_nbd_server::device::plain_info;
use tandem_nbd_server::{
    Access, Data, Directory, Event, ExportInfo, Extent, ListedExport, NbdError, Purpose, Refusal,
    Request, RequestKind, Session,
};

/// A whole NBD session: no bytes, cut anywhere, make it panic, hoard, or hand out a range beyond the export's end.
///
/// The first byte says how the input is cut into pieces, the rest is what the client sends.
pub fn nbd_session(input: &[u8]) {
    let Some((cut, stream)) = input.split_first() else {
        return;
    };
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(*cut).max(1)).collect();
    assert_eq!(run(&[stream]), run(&pieces));
}

const SIZE: u64 = 1 << 20;

struct Table;

impl Directory for Table {
    fn list(&self) -> Result<Vec<ListedExport>, Refusal> {
        Ok(vec![ListedExport {
            name: "disk".into(),
            description: "a disk".into(),
        }])
    }

    fn find(&self, name: &str, _purpose: Purpose) -> Result<ExportInfo, Refusal> {
        match name {
            "" | "disk" => {
                let mut info = plain_info("disk", SIZE, Access::ReadWrite);
                info.features.fast_zero = true;
                info.contexts.push("x-tandem:out-of-sync".into());
                Ok(info)
            }
            "rom" => Ok(plain_info("rom", SIZE, Access::ReadOnly)),
            _ => Err(Refusal::unknown("no such export")),
        }
    }
}

fn answer(request: &Request) -> Result<Data, NbdError> {
    let (offset, length) = match &request.kind {
        RequestKind::Read { offset, length } => {
            assert!(offset + u64::from(*length) <= SIZE);
            return Ok(Data::Bytes(Bytes::from(vec![0; *length as usize])));
        }
        RequestKind::Write {
            offset, payload, ..
        } => (*offset, payload.len() as u64),
        RequestKind::BlockStatus {
            offset,
            length,
            contexts,
            ..
        } => {
            assert!(*length > 0 && offset + u64::from(*length) <= SIZE);
            assert!(!contexts.is_empty() && contexts.iter().all(|place| *place < 2));
            return Ok(Data::Status(vec![halves(*length); contexts.len()]));
        }
        RequestKind::Cache { offset, length }
        | RequestKind::Trim { offset, length, .. }
        | RequestKind::WriteZeroes { offset, length, .. } => (*offset, u64::from(*length)),
        RequestKind::Flush => return Err(NbdError::io("flush failed")),
    };
    assert!(length > 0 && offset + length <= SIZE);
    Ok(Data::None)
}

/// A hole and data, as much of both as there is.
fn halves(length: u32) -> Vec<Extent> {
    let half = u64::from(length / 2);
    let extent = |length, flags| Extent { length, flags };
    vec![extent(half, 3), extent(u64::from(length) - half, 0)]
}

/// Replies to everything and returns the bytes for the client.
fn drain(session: &mut Session) -> usize {
    while let Some(event) = session.next_event() {
        match event {
            Event::Query(query) => session.answer_from(&Table, &query).expect("a query waits"),
            Event::Request(request) => {
                let result = answer(&request);
                session
                    .reply(request.handle, result)
                    .expect("the request is in flight");
            }
            Event::Selected { .. } | Event::Ended(_) => {}
        }
    }
    let mut out = Vec::new();
    session.take_output(&mut out);
    out.iter().map(Bytes::len).sum()
}

fn run(pieces: &[&[u8]]) -> usize {
    let mut session = Session::default();
    let mut sent = drain(&mut session);
    for piece in pieces {
        session.feed(Bytes::copy_from_slice(piece));
        sent += drain(&mut session);
    }
    session.end_of_stream();
    sent += drain(&mut session);
    assert_eq!(session.in_flight(), 0);
    sent
}
