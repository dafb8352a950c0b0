//! Metadata contexts, BLOCK_STATUS and CACHE (spec 3.3, sections 6 and 9).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use bytes::{Buf, Bytes};
use common::{Client, SIZE, Table, context_data, info_data, option, request};
use proptest::prelude::*;
use tandem_nbd_server::device::plain_info;
use tandem_nbd_server::wire::{chunk, cmd, cmd_flag, opt, rep};
use tandem_nbd_server::{Access, Data, Extent, Misuse, RequestKind};

const EINVAL: u32 = 22;
const EIO: u32 = 5;
const BOTH: [&str; 2] = ["base:allocation", "x-tandem:out-of-sync"];

fn table() -> Table {
    let mut info = plain_info("disk", SIZE, Access::ReadWrite);
    info.contexts = BOTH.map(String::from).to_vec();
    Table(vec![info, plain_info("rom", SIZE, Access::ReadOnly)])
}

fn haggling() -> Client {
    let mut client = Client::new(table());
    client.send(&3u32.to_be_bytes());
    client.send(&option(opt::STRUCTURED_REPLY, &[]));
    client.output.clear();
    client
}

/// Ids and names of the contexts that an option is answered with.
fn contexts(client: &mut Client, number: u32, name: &str, queries: &[&str]) -> Vec<(u32, String)> {
    client.send(&option(number, &context_data(name, queries)));
    let mut found = Vec::new();
    loop {
        let (echo, kind, mut data) = client.option_reply();
        assert_eq!(echo, number);
        if kind == rep::ACK {
            assert!(client.output.is_empty() && data.is_empty());
            return found;
        }
        assert_eq!(kind, rep::META_CONTEXT);
        let id = data.get_u32();
        found.push((id, String::from_utf8(data.to_vec()).unwrap()));
    }
}

fn go(client: &mut Client, name: &str) {
    client.send(&option(opt::GO, &info_data(name, &[])));
    assert!(client.session.export().is_some());
    client.output.clear();
}

/// In transmission with these contexts.
fn selected(queries: &[&str]) -> Client {
    let mut client = haggling();
    assert_eq!(
        contexts(&mut client, opt::SET_META_CONTEXT, "disk", queries).len(),
        queries.len()
    );
    go(&mut client, "disk");
    client
}

fn extent(length: u64, flags: u32) -> Extent {
    Extent { length, flags }
}

fn error_of(client: &mut Client, flags: u16, length: u32) -> u32 {
    client.request(request(cmd::BLOCK_STATUS, flags, 0, length), &[]);
    client.error_chunk().0
}

/// Context id and extents of a chunk, and whether it was the last.
fn status_chunk(client: &mut Client) -> (u32, Vec<(u32, u32)>, bool) {
    let (flags, kind, _, mut payload) = client.chunk();
    assert_eq!(kind, chunk::BLOCK_STATUS);
    let id = payload.get_u32();
    let extents = std::iter::from_fn(|| {
        payload
            .has_remaining()
            .then(|| (payload.get_u32(), payload.get_u32()))
    });
    (id, extents.collect(), flags == chunk::FLAG_DONE)
}

#[test]
fn list_tells_what_the_queries_mean_and_set_selects_exact_names() {
    let mut client = haggling();
    let names = |found: Vec<(u32, String)>| -> Vec<String> {
        found.into_iter().map(|(_, name)| name).collect()
    };
    let list = opt::LIST_META_CONTEXT;
    for (queries, expected) in [
        (&[][..], &BOTH[..]),
        (&["base:"][..], &BOTH[..1]),
        (
            &["x-tandem:", "base:allocation", "x-tandem:out-of-sync"][..],
            &BOTH[..],
        ),
        (
            &["x-other:", "base:other", "x-tandem:out-of-sync:no"][..],
            &[][..],
        ),
    ] {
        let found = contexts(&mut client, list, "disk", queries);
        assert!(found.iter().all(|(id, _)| *id == 0));
        assert_eq!(names(found), expected, "{queries:?}");
    }
    let set = opt::SET_META_CONTEXT;
    for queries in [&[][..], &["base:"], &["x-other:thing"]] {
        assert!(contexts(&mut client, set, "disk", queries).is_empty());
    }
    let both = contexts(&mut client, set, "disk", &BOTH);
    assert_ne!(both[0].0, both[1].0, "ids differ");
    assert_eq!(names(both), BOTH);
}

#[test]
fn block_status_needs_a_context_that_was_selected_for_this_export() {
    let mut without = haggling();
    go(&mut without, "disk");
    assert_eq!(error_of(&mut without, 0, 4096), EINVAL);
    let mut other = haggling();
    contexts(
        &mut other,
        opt::SET_META_CONTEXT,
        "rom",
        &["base:allocation"],
    );
    go(&mut other, "disk");
    assert_eq!(error_of(&mut other, 0, 4096), EINVAL);
    // A SET that fails takes back what was selected before.
    let mut failed = haggling();
    contexts(&mut failed, opt::SET_META_CONTEXT, "disk", &BOTH);
    failed.send(&option(
        opt::SET_META_CONTEXT,
        &context_data("nowhere", &BOTH),
    ));
    assert_eq!(failed.only_option_reply().1, rep::ERR_UNKNOWN);
    go(&mut failed, "disk");
    assert_eq!(error_of(&mut failed, 0, 4096), EINVAL);
    let mut skipped = haggling();
    contexts(&mut skipped, opt::SET_META_CONTEXT, "disk", &BOTH);
    skipped.send(&option(opt::SET_META_CONTEXT, &vec![0; 70_000]));
    assert_eq!(skipped.only_option_reply().1, rep::ERR_TOO_BIG);
    go(&mut skipped, "disk");
    assert_eq!(error_of(&mut skipped, 0, 4096), EINVAL);
    // An alias means the same export.
    let mut alias = haggling();
    contexts(&mut alias, opt::SET_META_CONTEXT, "alias", &BOTH);
    go(&mut alias, "disk");
    alias.accepted(request(cmd::BLOCK_STATUS, 0, 0, 4096), &[]);
}

#[test]
fn each_selected_context_gets_a_chunk_and_the_last_one_ends_the_reply() {
    let mut client = selected(&BOTH);
    let asked = client.accepted(request(cmd::BLOCK_STATUS, 0, 4096, 8192), &[]);
    assert_eq!(
        asked.kind,
        RequestKind::BlockStatus {
            offset: 4096,
            length: 8192,
            one: false,
            contexts: vec![0, 1],
        }
    );
    let lists = vec![
        vec![extent(4096, 3), extent(1 << 40, 0)],
        vec![extent(4096, 1), extent(4096, 1)],
    ];
    client
        .session
        .reply(asked.handle, Ok(Data::Status(lists)))
        .unwrap();
    client.collect();
    let first = status_chunk(&mut client);
    let second = status_chunk(&mut client);
    assert_ne!(first.0, second.0);
    assert_eq!((first.1, first.2), (vec![(4096, 3), (4096, 0)], false));
    assert_eq!((second.1, second.2), (vec![(8192, 1)], true));
    assert!(client.output.is_empty());
}

#[test]
fn a_client_that_wants_one_extent_gets_one() {
    let mut client = selected(&BOTH[1..]);
    let asked = client.accepted(request(cmd::BLOCK_STATUS, cmd_flag::REQ_ONE, 0, 8192), &[]);
    let RequestKind::BlockStatus { one, contexts, .. } = &asked.kind else {
        panic!("{asked:?}")
    };
    assert_eq!((*one, &contexts[..]), (true, &[1][..]));
    let lists = vec![vec![extent(512, 0), extent(512, 1)]];
    client
        .session
        .reply(asked.handle, Ok(Data::Status(lists)))
        .unwrap();
    client.collect();
    assert_eq!(status_chunk(&mut client).1, [(512, 0)]);
}

#[test]
fn block_status_is_checked_like_a_read() {
    let mut client = selected(&BOTH);
    assert_eq!(error_of(&mut client, 0, 0), EINVAL);
    assert_eq!(error_of(&mut client, cmd_flag::DF, 512), EINVAL);
    client.request(request(cmd::BLOCK_STATUS, 0, SIZE, 512), &[]);
    assert_eq!(client.error_chunk().0, EINVAL);
}

#[test]
fn an_answer_without_progress_or_for_other_contexts_becomes_eio() {
    let mut client = selected(&BOTH);
    for answer in [
        Data::None,
        Data::Status(vec![]),
        Data::Status(vec![vec![extent(512, 0)]]),
        Data::Status(vec![vec![extent(512, 0)], vec![]]),
        Data::Status(vec![vec![extent(0, 0)], vec![extent(512, 0)]]),
    ] {
        let asked = client.accepted(request(cmd::BLOCK_STATUS, 0, 0, 4096), &[]);
        let result = client.session.reply(asked.handle, Ok(answer));
        assert!(matches!(result, Err(Misuse::WrongData { .. })));
        client.collect();
        assert_eq!(client.error_chunk().0, EIO);
    }
    let read = client.accepted(request(cmd::READ, 0, 0, 512), &[]);
    let wrong = Data::Status(vec![vec![extent(512, 0)]; 2]);
    assert!(client.session.reply(read.handle, Ok(wrong)).is_err());
    client.collect();
    assert_eq!(client.error_chunk().0, EIO);
}

#[test]
fn cache_is_handed_out_as_a_hint() {
    let mut client = Client::simple(table(), "disk");
    let asked = client.accepted(request(cmd::CACHE, cmd_flag::FUA, 512, 100 << 10), &[]);
    assert_eq!(
        asked.kind,
        RequestKind::Cache {
            offset: 512,
            length: 100 << 10
        }
    );
    client.session.reply(asked.handle, Ok(Data::None)).unwrap();
    client.collect();
    assert_eq!(client.simple_reply().0, 0);
    assert_eq!(client.refused(request(cmd::CACHE, 0, 0, 0), &[]), 0);
    assert_eq!(client.refused(request(cmd::CACHE, 0, SIZE, 1), &[]), EINVAL);
    assert_eq!(
        client.refused(request(cmd::CACHE, cmd_flag::NO_HOLE, 0, 1), &[]),
        EINVAL
    );
}

proptest! {
    #[test]
    fn any_data_of_a_context_option_is_answered_and_never_panics(
        number in 9u32..11,
        data in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut client = haggling();
        client.send(&option(number, &data));
        let mut last = 0;
        while !client.output.is_empty() {
            last = client.option_reply().1;
        }
        prop_assert!(last == rep::ACK || last >= rep::ERR_UNSUP, "{last:#x}");
        // The session goes on.
        client.send(&option(opt::ABORT, &[]));
        prop_assert_eq!(client.only_option_reply().1, rep::ACK);
    }

    #[test]
    fn whatever_extents_are_given_the_client_is_told_of_its_own_range(
        given in prop::collection::vec((0u64..1 << 34, 0u32..4), 0..20),
        length in 1u32..1 << 20,
        one in any::<bool>(),
    ) {
        let mut client = selected(&BOTH[..1]);
        let flags = if one { cmd_flag::REQ_ONE } else { 0 };
        let asked = client.accepted(request(cmd::BLOCK_STATUS, flags, 0, length), &[]);
        let extents: Vec<Extent> = given.iter().map(|(length, flags)| extent(*length, *flags)).collect();
        let covered = extents.iter().any(|extent| extent.length > 0);
        let result = client.session.reply(asked.handle, Ok(Data::Status(vec![extents])));
        client.collect();
        if !covered {
            prop_assert!(result.is_err());
            return Ok(());
        }
        let (_, told, last) = status_chunk(&mut client);
        prop_assert!(last && !told.is_empty() && (!one || told.len() == 1));
        prop_assert!(told.iter().all(|(length, _)| *length > 0));
        prop_assert!(told.windows(2).all(|pair| pair[0].1 != pair[1].1));
        prop_assert!(told.iter().map(|(length, _)| u64::from(*length)).sum::<u64>() <= u64::from(length));
    }
}

#[test]
fn the_data_of_a_chunk_of_many_extents_is_complete() {
    let mut client = selected(&BOTH[..1]);
    let asked = client.accepted(request(cmd::BLOCK_STATUS, 0, 0, SIZE as u32), &[]);
    let many: Vec<Extent> = (0..5000).map(|n| extent(512, n % 2)).collect();
    client
        .session
        .reply(asked.handle, Ok(Data::Status(vec![many])))
        .unwrap();
    let mut pieces: Vec<Bytes> = Vec::new();
    client.session.take_output(&mut pieces);
    client.output.extend(pieces.concat());
    assert_eq!(status_chunk(&mut client).1.len(), 5000);
    assert!(client.output.is_empty());
}
