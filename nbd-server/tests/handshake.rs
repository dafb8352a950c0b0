//! The handshake, option by option (spec section 3): what is answered, what is refused by name, what ends the session.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use bytes::Buf;
use common::{Client, SIZE, Seen, Table, context_data, info_data, option};
use tandem_nbd_server::device::plain_info;
use tandem_nbd_server::wire::{export_flag as flag, info, opt, rep};
use tandem_nbd_server::{
    Access, Answer, BlockSizes, End, Event, Misuse, OPTION_DATA_MAX, OPTION_DRAIN_MAX, OPTIONS_MAX,
    Phase, ProtocolError, Purpose, Query, Session,
};

fn protocol_error(seen: &[Seen]) -> ProtocolError {
    match seen {
        [Seen::Ended(End::Protocol(error))] => error.clone(),
        other => panic!("expected a protocol error, got {other:?}"),
    }
}

fn text(data: &[u8]) -> &str {
    std::str::from_utf8(data).unwrap()
}

#[test]
fn go_tells_size_flags_and_block_sizes_and_enters_transmission_without_padding() {
    let mut client = Client::greeted();
    let seen = client.send(&option(opt::GO, &info_data("disk", &[])));
    assert_eq!(seen, [Seen::Selected("disk".into())]);
    let (_, kind, mut data) = client.option_reply();
    assert_eq!((kind, data.len()), (rep::INFO, 12));
    assert_eq!((data.get_u16(), data.get_u64()), (info::EXPORT, SIZE));
    let flags = flag::HAS_FLAGS
        | flag::SEND_FLUSH
        | flag::SEND_FUA
        | flag::SEND_TRIM
        | flag::SEND_WRITE_ZEROES
        | flag::SEND_CACHE
        | flag::CAN_MULTI_CONN;
    assert_eq!(data.get_u16(), flags);
    let (_, kind, mut data) = client.option_reply();
    assert_eq!((kind, data.len()), (rep::INFO, 14));
    assert_eq!(data.get_u16(), info::BLOCK_SIZE);
    assert_eq!(
        (data.get_u32(), data.get_u32(), data.get_u32()),
        (512, 4096, 32 << 20)
    );
    assert_eq!(client.only_option_reply(), (opt::GO, rep::ACK, "".into()));
    assert_eq!(client.session.phase(), Phase::Transmission);
    let asked = Query::Export {
        name: "disk".into(),
        purpose: Purpose::Go,
    };
    assert_eq!(client.queries, [asked]);
}

#[test]
fn info_answers_name_and_description_when_asked_and_stays_in_the_handshake() {
    let mut client = Client::greeted();
    let kinds = [info::NAME, info::DESCRIPTION, 999];
    assert_eq!(
        client.send(&option(opt::INFO, &info_data("disk", &kinds))),
        []
    );
    client.option_reply();
    client.option_reply();
    assert_eq!(&client.option_reply().2[..], b"\0\x01disk");
    assert_eq!(&client.option_reply().2[..], b"\0\x02a disk");
    assert_eq!(client.only_option_reply().1, rep::ACK);
    assert_eq!(client.session.phase(), Phase::Handshake);
}

#[test]
fn an_alias_is_answered_with_the_canonical_name() {
    let mut client = Client::greeted();
    let seen = client.send(&option(opt::GO, &info_data("alias", &[])));
    assert_eq!(seen, [Seen::Selected("disk".into())]);
    client.option_reply();
    client.option_reply();
    assert_eq!(&client.option_reply().2[..], b"\0\x01disk");
}

#[test]
fn an_unknown_export_is_refused_with_a_text_and_the_client_may_go_on() {
    let mut client = Client::greeted();
    assert_eq!(
        client.send(&option(opt::GO, &info_data("nowhere", &[]))),
        []
    );
    let (_, kind, data) = client.only_option_reply();
    assert_eq!(
        (kind, text(&data)),
        (rep::ERR_UNKNOWN, "no export \"nowhere\"")
    );
    client.send(&option(opt::GO, &info_data("secondary", &[])));
    let (_, kind, data) = client.only_option_reply();
    assert_eq!(
        (kind, text(&data)),
        (rep::ERR_POLICY, "this node does not serve it; ask alpha")
    );
    let seen = client.send(&option(opt::GO, &info_data("disk", &[])));
    assert_eq!(seen, [Seen::Selected("disk".into())]);
}

#[test]
fn go_after_info_is_refused_when_the_facts_changed_in_between() {
    let mut client = Client::greeted();
    client.send(&option(opt::INFO, &info_data("disk", &[])));
    client.output.clear();
    client.table.0[0].size /= 2;
    assert_eq!(client.send(&option(opt::GO, &info_data("disk", &[]))), []);
    assert_eq!(client.only_option_reply().1, rep::ERR_POLICY);
    let seen = client.send(&option(opt::GO, &info_data("disk", &[])));
    assert_eq!(seen, [Seen::Selected("disk".into())]);
}

#[test]
fn malformed_info_and_go_are_invalid_and_the_stream_stays_in_step() {
    let good = info_data("disk", &[3]);
    let bad: Vec<Vec<u8>> = vec![
        vec![],
        good[..5].to_vec(),
        good[..good.len() - 1].to_vec(),
        [&good[..], &[0]].concat(),
        [&u32::MAX.to_be_bytes()[..], &good[4..]].concat(),
        info_data("nul\0", &[]),
        [&[0, 0, 0, 1, 0xff][..], &[0, 0]].concat(),
        info_data(&"x".repeat(4097), &[]),
    ];
    for data in bad {
        for number in [opt::INFO, opt::GO] {
            let mut client = Client::greeted();
            assert_eq!(client.send(&option(number, &data)), []);
            let (echo, kind, why) = client.only_option_reply();
            assert_eq!((echo, kind), (number, rep::ERR_INVALID), "{data:?}");
            assert!(!why.is_empty());
            client.send(&option(opt::GO, &good));
            assert_eq!(client.session.phase(), Phase::Transmission);
        }
    }
}

#[test]
fn export_name_gets_124_zeroes_unless_both_sides_agreed_to_omit_them() {
    for (client_flags, zeroes) in [(0u32, 124), (1, 124), (2, 0), (3, 0)] {
        let mut client = Client::new(Table::standard());
        client.send(&client_flags.to_be_bytes());
        let seen = client.send(&option(opt::EXPORT_NAME, b"disk"));
        assert_eq!(seen, [Seen::Selected("disk".into())]);
        let mut data = client.take(10 + zeroes);
        assert_eq!(data.get_u64(), SIZE);
        assert_ne!(data.get_u16() & flag::HAS_FLAGS, 0);
        assert!(data.iter().all(|byte| *byte == 0));
        assert!(client.output.is_empty());
    }
}

#[test]
fn export_name_of_an_unknown_export_closes_and_says_why() {
    let mut client = Client::greeted();
    let seen = client.send(&option(opt::EXPORT_NAME, b"nowhere"));
    let text = "no export \"nowhere\"".to_string();
    assert_eq!(protocol_error(&seen), ProtocolError::ExportName { text });
    assert!(client.output.is_empty());
    let seen = Client::greeted().send(&option(opt::EXPORT_NAME, &[b'x'; 4097]));
    assert!(matches!(
        protocol_error(&seen),
        ProtocolError::ExportName { .. }
    ));
    let seen = Client::greeted().send(&option(opt::EXPORT_NAME, &[0xff]));
    assert!(matches!(
        protocol_error(&seen),
        ProtocolError::ExportName { .. }
    ));
}

#[test]
fn list_names_every_export_with_its_length_and_text() {
    let mut client = Client::greeted();
    client.send(&option(opt::LIST, &[]));
    assert_eq!(
        client.option_reply(),
        (opt::LIST, rep::SERVER, "\0\0\0\x04diska disk".into())
    );
    assert_eq!(
        client.option_reply(),
        (opt::LIST, rep::SERVER, "\0\0\0\x03rom".into())
    );
    assert_eq!(client.only_option_reply(), (opt::LIST, rep::ACK, "".into()));
    client.send(&option(opt::LIST, b"x"));
    assert_eq!(client.only_option_reply().1, rep::ERR_INVALID);
}

#[test]
fn abort_is_acknowledged_and_ends_the_session() {
    let mut client = Client::greeted();
    let seen = client.send(&option(opt::ABORT, b"any data"));
    assert_eq!(seen, [Seen::Ended(End::Aborted)]);
    assert_eq!(
        client.only_option_reply(),
        (opt::ABORT, rep::ACK, "".into())
    );
    assert_eq!(client.session.phase(), Phase::Ended);
    assert_eq!(client.send(&option(opt::LIST, &[])), []);
    assert!(client.output.is_empty());
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let mut client = Client::greeted();
    for number in [
        opt::STARTTLS,
        opt::EXTENDED_HEADERS,
        opt::PEEK_EXPORT,
        12,
        0,
        u32::MAX,
    ] {
        assert_eq!(client.send(&option(number, &[])), []);
        let (echo, kind, why) = client.only_option_reply();
        assert_eq!((echo, kind), (number, rep::ERR_UNSUP));
        assert!(!why.is_empty());
    }
}

#[test]
fn structured_replies_set_df_and_are_accepted_twice() {
    let mut client = Client::greeted();
    for _ in 0..2 {
        client.send(&option(opt::STRUCTURED_REPLY, &[]));
        assert_eq!(client.only_option_reply().1, rep::ACK);
    }
    client.send(&option(opt::STRUCTURED_REPLY, b"x"));
    assert_eq!(client.only_option_reply().1, rep::ERR_INVALID);
    client.send(&option(opt::GO, &info_data("disk", &[])));
    let (_, _, data) = client.option_reply();
    assert_ne!(u16::from_be_bytes([data[10], data[11]]) & flag::SEND_DF, 0);
}

#[test]
fn a_read_only_export_promises_nothing_about_writes() {
    let mut client = Client::greeted();
    client.send(&option(opt::GO, &info_data("rom", &[])));
    let (_, _, data) = client.option_reply();
    let flags = u16::from_be_bytes([data[10], data[11]]);
    assert_eq!(
        flags,
        flag::HAS_FLAGS | flag::READ_ONLY | flag::CAN_MULTI_CONN | flag::SEND_CACHE
    );
}

#[test]
fn metadata_contexts_need_structured_replies_and_sound_data() {
    let mut client = Client::greeted();
    for number in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
        client.send(&option(number, &context_data("disk", &["base:allocation"])));
        assert_eq!(client.only_option_reply().1, rep::ERR_INVALID);
    }
    client.send(&option(opt::STRUCTURED_REPLY, &[]));
    client.output.clear();
    let long = [&context_data("disk", &["base:"])[..], b"x"].concat();
    let huge_count = [&context_data("disk", &[])[..8], &u32::MAX.to_be_bytes()].concat();
    for number in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
        for (data, expected) in [
            (
                context_data("disk", &["base:other", "x-other:thing"]),
                rep::ACK,
            ),
            (
                context_data("nowhere", &["base:allocation"]),
                rep::ERR_UNKNOWN,
            ),
            (context_data("disk", &["no namespace"]), rep::ERR_INVALID),
            (long.clone(), rep::ERR_INVALID),
            (huge_count.clone(), rep::ERR_INVALID),
            (vec![], rep::ERR_INVALID),
        ] {
            client.send(&option(number, &data));
            assert_eq!(client.only_option_reply().1, expected, "{data:?}");
        }
    }
}

#[test]
fn client_flags_that_were_not_offered_close_the_connection() {
    let mut client = Client::new(Table::standard());
    let seen = client.send(&4u32.to_be_bytes());
    assert_eq!(
        protocol_error(&seen),
        ProtocolError::ClientFlags { flags: 4 }
    );
}

#[test]
fn a_client_without_fixed_newstyle_may_only_send_export_name() {
    let mut client = Client::new(Table::standard());
    client.send(&0u32.to_be_bytes());
    let seen = client.send(&option(opt::LIST, &[]));
    assert_eq!(
        protocol_error(&seen),
        ProtocolError::NotFixedNewstyle { option: opt::LIST }
    );
}

#[test]
fn garbage_instead_of_an_option_closes_with_the_magic_in_the_message() {
    let seen = Client::greeted().send(b"GET / HTTP/1.1\r\n\r\n");
    let error = protocol_error(&seen);
    assert_eq!(
        error.to_string(),
        "expected an NBD option, got magic 0x474554202f204854"
    );
}

#[test]
fn long_option_data_is_skipped_and_answered_too_big() {
    let mut client = Client::greeted();
    let head = option(opt::GO, &vec![0; OPTION_DATA_MAX as usize + 1]);
    for piece in head.chunks(1000) {
        assert!(client.session.wants_input());
        assert_eq!(client.send(piece), []);
    }
    assert_eq!(client.only_option_reply().1, rep::ERR_TOO_BIG);
    client.send(&option(opt::GO, &info_data("disk", &[])));
    assert_eq!(client.session.phase(), Phase::Transmission);
}

#[test]
fn option_data_beyond_what_can_be_skipped_closes() {
    let mut client = Client::greeted();
    let mut head = option(77, &[]);
    head[12..].copy_from_slice(&(OPTION_DRAIN_MAX + 1).to_be_bytes());
    let error = protocol_error(&client.send(&head));
    assert_eq!(
        error,
        ProtocolError::OptionTooLong {
            option: 77,
            length: OPTION_DRAIN_MAX + 1
        }
    );
}

#[test]
fn a_client_that_haggles_without_end_is_closed() {
    let mut client = Client::greeted();
    for _ in 0..OPTIONS_MAX {
        assert_eq!(client.send(&option(99, &[])), []);
    }
    let error = protocol_error(&client.send(&option(99, &[])));
    assert_eq!(error, ProtocolError::TooManyOptions);
}

#[test]
fn options_after_shutdown_are_told_so() {
    let mut client = Client::greeted();
    client.session.shutdown("going down for maintenance");
    for number in [opt::LIST, opt::GO, opt::STRUCTURED_REPLY, 99] {
        client.send(&option(number, &[]));
        let (_, kind, data) = client.only_option_reply();
        assert_eq!(
            (kind, text(&data)),
            (rep::ERR_SHUTDOWN, "going down for maintenance")
        );
    }
    let seen = client.send(&option(opt::EXPORT_NAME, b"disk"));
    assert!(matches!(
        protocol_error(&seen),
        ProtocolError::ExportName { .. }
    ));
}

#[test]
fn a_shutdown_while_a_query_waits_refuses_the_export() {
    let table = Table::standard();
    let mut session = Session::default();
    session.feed(
        [
            &3u32.to_be_bytes()[..],
            &option(opt::GO, &info_data("disk", &[])),
        ]
        .concat()
        .into(),
    );
    let Some(Event::Query(query)) = session.next_event() else {
        panic!("no query")
    };
    session.shutdown("stopping");
    session.answer_from(&table, &query).unwrap();
    assert_eq!(session.next_event(), None);
    assert_eq!(session.phase(), Phase::Handshake);
}

#[test]
fn a_session_rests_until_its_query_is_answered_and_takes_no_other_answer() {
    let mut session = Session::default();
    let go = option(opt::GO, &info_data("disk", &[]));
    session.feed([&3u32.to_be_bytes()[..], &go].concat().into());
    assert!(matches!(session.next_event(), Some(Event::Query(_))));
    assert_eq!(session.next_event(), None);
    assert!(!session.wants_input());
    assert_eq!(
        session.answer(Answer::List(Ok(vec![]))),
        Err(Misuse::NoQuery)
    );
    let info = Box::new(plain_info("disk", 4096, Access::ReadWrite));
    session.answer(Answer::Export(Ok(info.clone()))).unwrap();
    assert_eq!(
        session.answer(Answer::Export(Ok(info))),
        Err(Misuse::NoQuery)
    );
    assert_eq!(
        session.next_event(),
        Some(Event::Selected {
            export: "disk".into()
        })
    );
}

#[test]
fn bytes_after_go_move_with_the_session_to_the_owner_of_the_export() {
    fn movable<T: Send + 'static>(value: T) -> T {
        value
    }
    let mut session = Session::default();
    let read = common::request(tandem_nbd_server::wire::cmd::READ, 0, 0, 512);
    let go = option(opt::GO, &info_data("disk", &[]));
    session.feed(
        [&3u32.to_be_bytes()[..], &go, &read.encode()]
            .concat()
            .into(),
    );
    let Some(Event::Query(query)) = session.next_event() else {
        panic!("no query")
    };
    let mut session = movable(session);
    session.answer_from(&Table::standard(), &query).unwrap();
    assert!(matches!(session.next_event(), Some(Event::Selected { .. })));
    assert!(matches!(session.next_event(), Some(Event::Request(_))));
}

#[test]
fn a_connection_that_ends_in_the_handshake_is_told_apart_from_one_that_is_cut() {
    let mut client = Client::greeted();
    client.session.end_of_stream();
    assert_eq!(client.drain(), [Seen::Ended(End::Closed)]);
    let mut client = Client::greeted();
    client.send(&option(opt::LIST, &[])[..9]);
    client.session.end_of_stream();
    let error = protocol_error(&client.drain());
    assert!(matches!(error, ProtocolError::Truncated { missing: 7, .. }));
}

#[test]
fn a_size_that_is_not_whole_blocks_is_exported_rounded_down() {
    let mut info = plain_info("odd", 4096 + 700, Access::ReadWrite);
    let mut client = Client::new(Table::of(info.clone()));
    client.send(&3u32.to_be_bytes());
    client.send(&option(opt::EXPORT_NAME, b"odd"));
    assert_eq!(client.take(10).get_u64(), 4096 + 512);
    info.block_sizes = BlockSizes::new(4096, 4096, 1 << 20).unwrap();
    assert_eq!(info.exported_size(), 4096);
}

#[test]
fn block_sizes_that_break_the_rules_cannot_be_made() {
    for (minimum, preferred, maximum) in [
        (0, 4096, 1 << 20),
        (513, 4096, 1 << 20),
        (1 << 17, 1 << 17, 1 << 20),
        (4096, 512, 1 << 20),
        (1, 256, 1 << 20),
        (512, 4096, 4096),
        (512, 4096, (32 << 20) + 512),
    ] {
        assert!(BlockSizes::new(minimum, preferred, maximum).is_err());
    }
    assert_eq!(
        BlockSizes::new(512, 4096, 32 << 20),
        Ok(BlockSizes::SECTORS)
    );
    assert!(BlockSizes::new(1, 512, 1 << 20).is_ok());
}
