//! NBD requests after the handshake.

use bytes::Bytes;
use tandem_nbd_server::device::plain_info;
use tandem_nbd_server::wire::{IHAVEOPT, opt};
use tandem_nbd_server::{
    Access, Answer, Data, Event, Extent, Limits, NbdError, Request, RequestKind, Session,
};

/// NBD requests after the handshake, with replies held back: the limits hold and nothing panics, also on the direct
/// way of large payloads.
///
/// The first byte says whether replies are structured, whether a metadata context is selected, and how long replies are held back; the
/// rest are requests.
pub fn nbd_transmission(input: &[u8]) {
    let Some((mode, mut stream)) = input.split_first() else {
        return;
    };
    let mut session = Session::new(LIMITS);
    session.feed(Bytes::from_static(&[0, 0, 0, 3]));
    if mode & 1 != 0 {
        session.feed(Bytes::from(option(opt::STRUCTURED_REPLY, &[])));
    }
    if mode & 4 != 0 {
        let both = b"\0\0\0\x04disk\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x03x-y";
        let one = b"\0\0\0\x04disk\0\0\0\x01\0\0\0\x0fbase:allocation";
        let data: &[u8] = if mode & 8 != 0 { both } else { one };
        session.feed(Bytes::from(option(opt::SET_META_CONTEXT, data)));
    }
    session.feed(Bytes::from(option(opt::GO, b"\0\0\0\x04disk\0\0")));
    let mut held: Vec<Request> = Vec::new();
    let mut ended = false;
    loop {
        while let Some(event) = session.next_event() {
            match event {
                Event::Query(_) => {
                    let info = plain_info("disk", 64 << 20, Access::ReadWrite);
                    session
                        .answer(Answer::Export(Ok(Box::new(info))))
                        .expect("a query waits");
                }
                Event::Request(request) => held.push(request),
                Event::Selected { .. } => {}
                Event::Ended(_) => ended = true,
            }
            assert!(session.in_flight() <= LIMITS.requests_in_flight_max);
        }
        session.take_output(&mut Vec::new());
        if held.len() > usize::from(mode >> 6) || (ended && !held.is_empty()) {
            answer(&mut session, &held.swap_remove(0));
        } else if ended {
            break;
        } else if let Some(wanted) = session.payload_wanted().filter(|_| mode & 2 != 0) {
            let mut block = vec![0; wanted.length as usize];
            let have = session
                .take_payload_prefix(&mut block)
                .expect("a payload is wanted");
            let n = stream.len().min(block.len() - have);
            block[have..have + n].copy_from_slice(&stream[..n]);
            stream = &stream[n..];
            session
                .supply_payload(Bytes::from(block))
                .expect("the block fits");
        } else if stream.is_empty() {
            session.end_of_stream();
            if held.is_empty() && session.next_event().is_none() {
                break;
            }
            held.drain(..)
                .for_each(|request| answer(&mut session, &request));
        } else {
            let (piece, rest) = stream.split_at(stream.len().min(61));
            session.feed(Bytes::copy_from_slice(piece));
            stream = rest;
        }
    }
    assert_eq!(session.in_flight(), 0);
}

const LIMITS: Limits = Limits {
    requests_in_flight_max: 4,
    bytes_in_flight_max: 1 << 20,
};

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn answer(session: &mut Session, request: &Request) {
    let result = match &request.kind {
        RequestKind::Read { length, .. } => Ok(Data::Bytes(Bytes::from(vec![1; *length as usize]))),
        RequestKind::Flush => Err(NbdError::io("flush failed")),
        RequestKind::BlockStatus {
            length, contexts, ..
        } => {
            let data = Extent {
                length: u64::from(*length),
                flags: 0,
            };
            Ok(Data::Status(vec![vec![data]; contexts.len()]))
        }
        _ => Ok(Data::None),
    };
    session
        .reply(request.handle, result)
        .expect("the request is in flight");
}
