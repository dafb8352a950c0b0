//! Whatever a client sends, the session neither panics nor hoards; however the bytes are cut, the result is the same.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use bytes::Bytes;
use common::{Client, SIZE, Seen, Table, context_data, info_data, option};
use proptest::prelude::*;
use tandem_nbd_server::wire::{RequestHeader, opt};
use tandem_nbd_server::{Data, Extent, NbdError, Request, RequestKind};

fn some_option() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just("disk".to_string()),
        Just("rom".to_string()),
        Just("secondary".to_string()),
        "\\PC{0,9}"
    ];
    prop_oneof![
        3 => (prop_oneof![Just(opt::INFO), Just(opt::GO)], name.clone(), prop::collection::vec(0u16..5, 0..4))
            .prop_map(|(number, name, kinds)| option(number, &info_data(&name, &kinds))),
        1 => (9u32..11, name.clone(), prop::collection::vec(prop_oneof![Just("base:allocation".to_string()), "[a-z:]{0,8}"], 0..3)).prop_map(
            |(number, name, queries)| {
                let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
                option(number, &context_data(&name, &queries))
            }
        ),
        2 => (0u32..14, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(number, data)| option(number, &data)),
        1 => Just(option(opt::STRUCTURED_REPLY, &[])),
        1 => Just(option(opt::LIST, &[])),
    ]
}

fn some_request() -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![0..SIZE, SIZE - 2000..SIZE + 2000, any::<u64>()];
    let length = prop_oneof![4 => 0u32..3000, 1 => 10_000u32..40_000, 1 => any::<u32>()];
    let flags = prop_oneof![3 => Just(0u16), 1 => 0u16..32];
    (flags, 0u16..10, any::<u64>(), offset, length).prop_map(
        |(flags, command, cookie, offset, length)| {
            let header = RequestHeader {
                flags,
                command,
                cookie,
                offset,
                length,
            };
            let mut bytes = header.encode().to_vec();
            if command == 1 && length < 50_000 {
                bytes.extend((0..length).map(|n| n as u8));
            }
            bytes
        },
    )
}

/// A client's whole life: mostly well formed, sometimes with garbage in it.
fn some_stream() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![9 => Just(3u32), 1 => 0u32..5];
    let go = Just(option(opt::GO, &info_data("disk", &[])));
    (
        flags,
        prop::collection::vec(some_option(), 0..4),
        go,
        prop::collection::vec(some_request(), 0..12),
        prop::collection::vec(any::<u8>(), 0..40),
    )
        .prop_map(|(flags, options, go, requests, tail)| {
            [
                flags.to_be_bytes().to_vec(),
                options.concat(),
                go,
                requests.concat(),
                tail,
            ]
            .concat()
        })
}

fn result_of(request: &Request) -> Result<Data, NbdError> {
    match &request.kind {
        RequestKind::Read { offset, .. } if offset % 7 == 0 => Err(NbdError::io("a bad sector")),
        RequestKind::Read { length, .. } => Ok(Data::Bytes(vec![0xaa; *length as usize].into())),
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
    }
}

/// Feeds the pieces, replies at once, and returns everything that the client and the caller saw (handles aside).
fn run(pieces: &[&[u8]], direct: bool) -> (Vec<u8>, Vec<String>) {
    let mut client = Client::new(Table::standard());
    let mut log = Vec::new();
    let mut rest: Vec<u8> = Vec::new();
    for piece in pieces {
        rest.extend(*piece);
        if let Some(wanted) = client.session.payload_wanted().filter(|_| direct) {
            let missing = (wanted.length - wanted.buffered) as usize;
            if rest.len() < missing {
                continue;
            }
            let mut block = vec![0; wanted.length as usize];
            let have = client.session.take_payload_prefix(&mut block).unwrap();
            block[have..].copy_from_slice(&rest[..missing]);
            rest.drain(..missing);
            client.session.supply_payload(Bytes::from(block)).unwrap();
            note(&mut client, &mut log);
        }
        client.session.feed(Bytes::from(std::mem::take(&mut rest)));
        note(&mut client, &mut log);
    }
    client.session.feed(Bytes::from(rest));
    client.session.end_of_stream();
    note(&mut client, &mut log);
    (client.output, log)
}

/// Handles one event after the other, so that the order of replies does not depend on the cuts.
fn note(client: &mut Client, log: &mut Vec<String>) {
    loop {
        let seen = client.drain_one();
        let Some(seen) = seen else { return };
        match &seen {
            Seen::Request(request) => {
                log.push(format!("{:?}", request.kind));
                client
                    .session
                    .reply(request.handle, result_of(request))
                    .unwrap();
            }
            other => log.push(format!("{other:?}")),
        }
        client.collect();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        run(&[&bytes], false);
    }

    #[test]
    fn random_bytes_in_transmission_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut client = Client::simple(Table::standard(), "disk");
        client.send(&bytes);
        client.session.end_of_stream();
        client.drain();
    }

    #[test]
    fn any_cut_gives_the_same_result(
        stream in some_stream(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        direct in any::<bool>(),
    ) {
        let whole = run(&[&stream], false);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        at.extend([0, stream.len()]);
        at.sort_unstable();
        let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
        prop_assert_eq!(whole, run(&pieces, direct));
    }

    #[test]
    fn byte_by_byte_gives_the_same_result(options in prop::collection::vec(some_option(), 0..4)) {
        let stream = [3u32.to_be_bytes().to_vec(), options.concat()].concat();
        let pieces: Vec<&[u8]> = stream.chunks(1).collect();
        prop_assert_eq!(run(&[&stream], false), run(&pieces, false));
    }

    #[test]
    fn a_changed_byte_never_panics_and_never_hands_out_a_range_beyond_the_end(
        mut stream in some_stream(),
        index in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let index = index.index(stream.len());
        stream[index] = value;
        let mut client = Client::new(Table::standard());
        client.session.feed(Bytes::from(stream));
        client.session.end_of_stream();
        while let Some(seen) = client.drain_one() {
            let Seen::Request(request) = seen else { continue };
            let (offset, length) = match &request.kind {
                RequestKind::Write { offset, payload, .. } => (*offset, payload.len() as u64),
                RequestKind::Read { offset, length }
                | RequestKind::Cache { offset, length }
                | RequestKind::BlockStatus { offset, length, .. }
                | RequestKind::Trim { offset, length, .. }
                | RequestKind::WriteZeroes { offset, length, .. } => (*offset, u64::from(*length)),
                RequestKind::Flush => (0, 1),
            };
            prop_assert!(length > 0 && offset.checked_add(length).is_some_and(|end| end <= SIZE));
            client.session.reply(request.handle, result_of(&request)).unwrap();
        }
        prop_assert_eq!(client.session.in_flight(), 0);
    }
}
