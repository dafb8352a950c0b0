//! Requests and replies (spec sections 5 to 8): what is handed out, what is refused and how, limits, shutdown.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use bytes::{Buf, Bytes};
use common::{Client, SIZE, Seen, Table, info_data, option, request};
use tandem_nbd_server::device::plain_info;
use tandem_nbd_server::wire::{RequestHeader, chunk, cmd, cmd_flag, info, opt};
use tandem_nbd_server::{
    Access, Data, End, ErrorCode, Event, Features, Limits, Misuse, NbdError, PAYLOAD_MAX,
    PayloadWanted, Phase, ProtocolError, RequestKind, Session, Unaligned,
};

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ESHUTDOWN: u32 = 108;

fn disk() -> Client {
    Client::simple(Table::standard(), "disk")
}

fn disk_with(change: impl FnOnce(&mut tandem_nbd_server::ExportInfo)) -> Client {
    let mut info = plain_info("disk", SIZE, Access::ReadWrite);
    change(&mut info);
    Client::simple(Table::of(info), "disk")
}

#[test]
fn a_read_is_answered_with_exactly_its_data_and_cookie() {
    let mut client = disk();
    let asked = client.accepted(request(cmd::READ, 0, 1024, 512), &[]);
    assert_eq!(
        asked.kind,
        RequestKind::Read {
            offset: 1024,
            length: 512
        }
    );
    assert_eq!(client.session.in_flight(), 1);
    let pieces = vec![Bytes::from(vec![1; 300]), Bytes::from(vec![2; 212])];
    client
        .session
        .reply(asked.handle, Ok(Data::Pieces(pieces)))
        .unwrap();
    client.collect();
    assert_eq!(client.simple_reply(), (0, 0xfeed_0000_0000_0001));
    let data = client.take(512);
    assert!(data[..300].iter().all(|b| *b == 1) && data[300..].iter().all(|b| *b == 2));
    assert_eq!(client.session.in_flight(), 0);
}

#[test]
fn a_structured_read_is_one_final_chunk_with_its_offset_also_with_df() {
    let mut client = Client::structured(Table::standard(), "disk");
    for flags in [0, cmd_flag::DF, cmd_flag::FUA] {
        let asked = client.accepted(request(cmd::READ, flags, 4096, 512), &[]);
        client
            .session
            .reply(asked.handle, Ok(Data::Bytes(vec![9; 512].into())))
            .unwrap();
        client.collect();
        let (flags, kind, cookie, mut payload) = client.chunk();
        assert_eq!((flags, kind), (chunk::FLAG_DONE, chunk::OFFSET_DATA));
        assert_eq!(cookie, 0xfeed_0000_0000_0001);
        assert_eq!((payload.get_u64(), payload.len()), (4096, 512));
    }
}

#[test]
fn read_payloads_are_sent_without_a_copy() {
    let mut client = Client::structured(Table::standard(), "disk");
    let asked = client.accepted(request(cmd::READ, 0, 0, 65536), &[]);
    let data = Bytes::from(vec![5; 65536]);
    client
        .session
        .reply(asked.handle, Ok(Data::Bytes(data.clone())))
        .unwrap();
    let mut pieces = Vec::new();
    client.session.take_output(&mut pieces);
    assert_eq!(pieces[1].as_ptr(), data.as_ptr());
}

#[test]
fn writes_carry_their_payload_and_fua() {
    let mut client = disk();
    for (flags, fua) in [(0, false), (cmd_flag::FUA, true)] {
        let asked = client.accepted(request(cmd::WRITE, flags, 512, 4), b"data");
        let payload = Bytes::from_static(b"data");
        assert_eq!(
            asked.kind,
            RequestKind::Write {
                offset: 512,
                payload,
                fua
            }
        );
        client.session.reply(asked.handle, Ok(Data::None)).unwrap();
        client.collect();
        assert_eq!(client.simple_reply().0, 0);
    }
}

#[test]
fn flush_trim_and_write_zeroes_are_handed_out_with_their_flags() {
    let mut client = disk_with(|info| info.features.fast_zero = true);
    let big = 3 << 24;
    let flush = client.accepted(request(cmd::FLUSH, 0, 0, 0), &[]);
    assert_eq!(flush.kind, RequestKind::Flush);
    let odd_flush = client.accepted(request(cmd::FLUSH, cmd_flag::FUA, u64::MAX, 7), &[]);
    assert_eq!(odd_flush.kind, RequestKind::Flush);
    let trim = client.accepted(request(cmd::TRIM, cmd_flag::FUA, 512, big), &[]);
    assert_eq!(
        trim.kind,
        RequestKind::Trim {
            offset: 512,
            length: big,
            fua: true
        }
    );
    let flags = cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO;
    let zeroes = client.accepted(request(cmd::WRITE_ZEROES, flags, 0, big), &[]);
    let expected = RequestKind::WriteZeroes {
        offset: 0,
        length: big,
        fua: false,
        no_hole: true,
        fast_zero: true,
    };
    assert_eq!(zeroes.kind, expected);
    let error = NbdError::new(ErrorCode::NotSup, "slow");
    client.session.reply(zeroes.handle, Err(error)).unwrap();
    client.collect();
    assert_eq!(client.simple_reply().0, 95);
}

#[test]
fn replies_may_come_in_any_order_even_when_a_client_uses_one_cookie_twice() {
    let mut client = disk();
    let first = client.accepted(request(cmd::READ, 0, 0, 512), &[]);
    let second = client.accepted(request(cmd::WRITE, 0, 0, 1), b"x");
    assert_ne!(first.handle, second.handle);
    client.session.reply(second.handle, Ok(Data::None)).unwrap();
    client
        .session
        .reply(first.handle, Ok(Data::Bytes(vec![0; 512].into())))
        .unwrap();
    client.collect();
    assert_eq!(client.output.len(), 16 + 16 + 512);
}

#[test]
fn ranges_beyond_the_end_get_the_error_of_their_command() {
    let mut client = disk();
    for (offset, length) in [
        (SIZE, 512),
        (SIZE - 512, 1024),
        (u64::MAX, 512),
        (u64::MAX - 511, 512),
    ] {
        assert_eq!(
            client.refused(request(cmd::READ, 0, offset, length), &[]),
            EINVAL
        );
        assert_eq!(
            client.refused(request(cmd::TRIM, 0, offset, length), &[]),
            EINVAL
        );
        assert_eq!(
            client.refused(request(cmd::WRITE_ZEROES, 0, offset, length), &[]),
            ENOSPC
        );
        let payload = vec![0; length as usize];
        assert_eq!(
            client.refused(request(cmd::WRITE, 0, offset, length), &payload),
            ENOSPC
        );
    }
    assert_eq!(
        client.refused(request(cmd::READ, 0, SIZE + 1, 0), &[]),
        EINVAL
    );
    client.accepted(request(cmd::READ, 0, SIZE - 512, 512), &[]);
}

#[test]
fn requests_of_length_zero_are_no_ops_except_reads() {
    let mut client = disk();
    assert_eq!(client.refused(request(cmd::READ, 0, 0, 0), &[]), EINVAL);
    for command in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES] {
        assert_eq!(client.refused(request(command, 0, SIZE, 0), &[]), 0);
    }
}

#[test]
fn a_read_only_export_refuses_every_write_and_keeps_the_stream_in_step() {
    let mut client = Client::simple(Table::standard(), "rom");
    assert_eq!(client.refused(request(cmd::WRITE, 0, 0, 4), b"data"), EPERM);
    assert_eq!(client.refused(request(cmd::TRIM, 0, 0, 512), &[]), EPERM);
    assert_eq!(
        client.refused(request(cmd::WRITE_ZEROES, 0, 0, 512), &[]),
        EPERM
    );
    assert_eq!(client.refused(request(cmd::FLUSH, 0, 0, 0), &[]), 0);
    client.accepted(request(cmd::READ, 0, 0, 512), &[]);
}

#[test]
fn commands_that_are_not_served_are_invalid() {
    let mut client = disk();
    for command in [cmd::BLOCK_STATUS, cmd::RESIZE, 9, u16::MAX] {
        assert_eq!(client.refused(request(command, 0, 0, 512), &[]), EINVAL);
    }
    let mut bare = disk_with(|info| info.features = Features::default());
    for command in [cmd::FLUSH, cmd::TRIM, cmd::WRITE_ZEROES, cmd::CACHE] {
        assert_eq!(bare.refused(request(command, 0, 0, 512), &[]), EINVAL);
    }
    let fua = request(cmd::WRITE, cmd_flag::FUA, 0, 1);
    assert_eq!(
        bare.refused(fua, b"x"),
        EINVAL,
        "durability is never promised in vain"
    );
}

#[test]
fn flags_that_do_not_belong_to_a_command_are_invalid() {
    let mut client = disk();
    for (command, flags) in [
        (cmd::READ, cmd_flag::DF),
        (cmd::READ, cmd_flag::NO_HOLE),
        (cmd::TRIM, cmd_flag::FAST_ZERO),
        (cmd::WRITE_ZEROES, cmd_flag::FAST_ZERO),
        (cmd::WRITE_ZEROES, 1 << 5),
        (cmd::FLUSH, 1 << 15),
    ] {
        assert_eq!(client.refused(request(command, flags, 0, 512), &[]), EINVAL);
    }
    let odd = request(cmd::WRITE, cmd_flag::NO_HOLE, 0, 4);
    assert_eq!(client.refused(odd, b"data"), EINVAL);
}

#[test]
fn a_client_that_asked_for_block_sizes_must_keep_them_and_others_need_not() {
    let mut client = disk();
    client.accepted(request(cmd::READ, 0, 1, 1), &[]);
    let mut client = disk_with(|info| info.unaligned = Unaligned::Refused);
    assert_eq!(client.refused(request(cmd::READ, 0, 1, 512), &[]), EINVAL);
    let mut client = Client::greeted();
    client.send(&option(opt::GO, &info_data("disk", &[info::BLOCK_SIZE])));
    client.output.clear();
    assert_eq!(client.refused(request(cmd::READ, 0, 0, 511), &[]), EINVAL);
    assert_eq!(
        client.refused(request(cmd::WRITE, 0, 1, 4), b"data"),
        EINVAL
    );
    client.accepted(request(cmd::READ, 0, 512, 512), &[]);
}

#[test]
fn payloads_above_the_maximum_are_refused_and_skipped() {
    let size = 1 << 40;
    let table = Table::of(plain_info("disk", size, Access::ReadWrite));
    let long = PAYLOAD_MAX + 512;
    let mut client = Client::simple(table.clone(), "disk");
    assert_eq!(client.refused(request(cmd::READ, 0, 0, long), &[]), EINVAL);
    assert_eq!(client.request(request(cmd::WRITE, 0, 0, long), &[]), []);
    assert_eq!(
        client.session.payload_wanted(),
        None,
        "a refused payload wants no block"
    );
    let mut left = long as usize;
    while left > 0 {
        let piece = vec![0; left.min(1 << 20)];
        left -= piece.len();
        assert_eq!(client.send(&piece), []);
    }
    assert_eq!(client.simple_reply().0, EINVAL);
    client.accepted(request(cmd::READ, 0, 0, PAYLOAD_MAX), &[]);
    let mut client = Client::structured(table, "disk");
    client.request(request(cmd::READ, 0, 0, long), &[]);
    assert_eq!(client.error_chunk().0, EOVERFLOW);
}

#[test]
fn structured_errors_carry_their_text() {
    let mut client = Client::structured(Table::standard(), "disk");
    client.request(request(cmd::READ, 0, SIZE, 512), &[]);
    let (code, text) = client.error_chunk();
    assert_eq!(code, EINVAL);
    assert_eq!(
        text,
        "READ of 512 bytes at 67108864: the export ends at 67108864"
    );
    let asked = client.accepted(request(cmd::WRITE, 0, 0, 1), b"x");
    client
        .session
        .reply(asked.handle, Err(NbdError::io("ä".repeat(4000))))
        .unwrap();
    client.collect();
    let (code, text) = client.error_chunk();
    assert_eq!((code, text.len()), (5, 4096));
    assert_eq!(client.session.counters().refused, 1);
}

#[test]
fn garbage_instead_of_a_request_ends_the_session_and_in_flight_requests_are_still_answered() {
    let mut client = disk();
    let asked = client.accepted(request(cmd::WRITE, 0, 0, 1), b"x");
    let seen = client.send(&[0x55; 28]);
    let error = ProtocolError::RequestMagic { magic: 0x5555_5555 };
    assert_eq!(seen, [Seen::Ended(End::Protocol(error))]);
    assert_eq!(client.session.in_flight(), 1);
    client.session.reply(asked.handle, Ok(Data::None)).unwrap();
    client.collect();
    assert_eq!(client.simple_reply().0, 0);
}

#[test]
fn nothing_is_served_after_a_disconnect() {
    let mut client = disk();
    let both = [
        request(cmd::DISC, 0, 0, 0).encode(),
        request(cmd::READ, 0, 0, 512).encode(),
    ];
    assert_eq!(
        client.send(&both.concat()),
        [Seen::Ended(End::Disconnected)]
    );
    assert_eq!(client.send(&request(cmd::READ, 0, 0, 512).encode()), []);
    assert_eq!(client.session.phase(), Phase::Ended);
    assert!(client.output.is_empty() && !client.session.wants_input());
}

#[test]
fn a_client_that_hangs_up_is_told_apart_from_one_that_is_cut() {
    let mut client = disk();
    client.session.end_of_stream();
    assert_eq!(client.drain(), [Seen::Ended(End::Closed)]);
    let mut client = disk();
    client.request(request(cmd::WRITE, 0, 0, 10), b"half");
    client.session.end_of_stream();
    let error = ProtocolError::Truncated {
        inside: "a write payload",
        missing: 6,
    };
    assert_eq!(client.drain(), [Seen::Ended(End::Protocol(error))]);
}

#[test]
fn a_complete_write_before_the_end_of_the_stream_is_still_handed_out() {
    let mut client = disk();
    client.session.feed(Bytes::from(
        [&request(cmd::WRITE, 0, 0, 1).encode()[..], b"x"].concat(),
    ));
    client.session.end_of_stream();
    let seen = client.drain();
    assert!(matches!(
        seen[..],
        [Seen::Request(_), Seen::Ended(End::Closed)]
    ));
}

#[test]
fn requests_after_shutdown_get_eshutdown_and_in_flight_ones_their_own_answer() {
    let mut client = disk();
    let asked = client.accepted(request(cmd::WRITE, 0, 0, 1), b"x");
    assert_eq!(client.request(request(cmd::WRITE, 0, 0, 4), b"da"), []);
    client.session.shutdown("demoted");
    assert_eq!(
        client.send(b"ta"),
        [],
        "a write whose payload was under way is refused too"
    );
    assert_eq!(client.simple_reply().0, ESHUTDOWN);
    assert_eq!(
        client.refused(request(cmd::READ, 0, 0, 512), &[]),
        ESHUTDOWN
    );
    assert_eq!(
        client.refused(request(cmd::WRITE, 0, 0, 4), b"data"),
        ESHUTDOWN
    );
    assert_eq!(client.refused(request(cmd::FLUSH, 0, 0, 0), &[]), ESHUTDOWN);
    client.session.reply(asked.handle, Ok(Data::None)).unwrap();
    client.collect();
    assert_eq!(client.simple_reply().0, 0);
    let seen = client.send(&request(cmd::DISC, 0, 0, 0).encode());
    assert_eq!(seen, [Seen::Ended(End::Disconnected)]);
}

#[test]
fn each_handle_is_answered_exactly_once() {
    let mut client = disk();
    let asked = client.accepted(request(cmd::WRITE, 0, 0, 1), b"x");
    client.session.reply(asked.handle, Ok(Data::None)).unwrap();
    assert_eq!(
        client.session.reply(asked.handle, Ok(Data::None)),
        Err(Misuse::UnknownHandle)
    );
    let again = client.accepted(request(cmd::WRITE, 0, 0, 1), b"y");
    assert_ne!(again.handle, asked.handle);
    assert_eq!(
        client.session.reply(asked.handle, Ok(Data::None)),
        Err(Misuse::UnknownHandle)
    );
    assert_eq!(client.session.in_flight(), 1);
}

#[test]
fn data_of_the_wrong_length_becomes_an_error_and_never_a_broken_stream() {
    let mut client = disk();
    for data in [
        Data::None,
        Data::Bytes(vec![0; 511].into()),
        Data::Bytes(vec![0; 513].into()),
    ] {
        let asked = client.accepted(request(cmd::READ, 0, 0, 512), &[]);
        let result = client.session.reply(asked.handle, Ok(data));
        assert!(matches!(
            result,
            Err(Misuse::WrongData { expected: 512, .. })
        ));
        client.collect();
        assert_eq!(client.simple_reply().0, 5);
        assert!(client.output.is_empty());
    }
}

fn limited(requests_in_flight_max: usize, bytes_in_flight_max: u64) -> Client {
    let mut client = disk();
    let limits = Limits {
        requests_in_flight_max,
        bytes_in_flight_max,
    };
    client.session = Session::new(limits);
    client.drain();
    client.send(&3u32.to_be_bytes());
    client.send(&option(opt::GO, &info_data("disk", &[])));
    client.output.clear();
    client
}

#[test]
fn at_its_limits_a_session_stops_reading_and_goes_on_after_replies() {
    for (requests, bytes) in [(2, u64::MAX), (99, 1024)] {
        let mut client = limited(requests, bytes);
        let read = request(cmd::READ, 0, 0, 512).encode();
        let seen = client.send(&read.repeat(3));
        assert_eq!(seen.len(), 2);
        assert!(!client.session.wants_input());
        let Seen::Request(first) = &seen[0] else {
            panic!("no request")
        };
        client
            .session
            .reply(first.handle, Ok(Data::Bytes(vec![0; 512].into())))
            .unwrap();
        assert_eq!(client.drain().len(), 1);
        assert!(
            client.session.wants_input(),
            "one more head is read: it may be a DISC"
        );
    }
}

#[test]
fn one_request_above_the_byte_limit_is_admitted_alone() {
    let mut client = limited(9, 1024);
    client.accepted(request(cmd::READ, 0, 0, 4096), &[]);
    assert_eq!(client.request(request(cmd::READ, 0, 0, 512), &[]), []);
    assert!(!client.session.wants_input());
}

#[test]
fn at_its_limits_a_stopping_session_refuses_at_once() {
    let mut client = limited(1, u64::MAX);
    client.accepted(request(cmd::READ, 0, 0, 512), &[]);
    client.session.shutdown("stopping");
    assert_eq!(
        client.refused(request(cmd::READ, 0, 0, 512), &[]),
        ESHUTDOWN
    );
}

#[test]
fn a_disconnect_is_seen_even_at_the_limits() {
    let mut client = limited(1, u64::MAX);
    client.accepted(request(cmd::READ, 0, 0, 512), &[]);
    assert!(client.session.wants_input());
    let seen = client.send(&request(cmd::DISC, 0, 0, 0).encode());
    assert_eq!(seen, [Seen::Ended(End::Disconnected)]);
}

#[test]
fn a_large_payload_is_received_straight_into_the_callers_block() {
    let mut client = disk();
    let length = 100_000u32;
    let payload: Vec<u8> = (0..length).map(|n| n as u8).collect();
    let head = request(cmd::WRITE, cmd_flag::FUA, 4096, length);
    assert_eq!(client.request(head, &payload[..1000]), []);
    let wanted = PayloadWanted {
        length,
        buffered: 1000,
    };
    assert_eq!(client.session.payload_wanted(), Some(wanted));
    let mut block = vec![0; length as usize];
    assert!(client.session.take_payload_prefix(&mut block[1..]).is_err());
    assert_eq!(client.session.take_payload_prefix(&mut block), Ok(1000));
    assert!(!client.session.wants_input());
    assert_eq!(client.session.next_event(), None);
    block[1000..].copy_from_slice(&payload[1000..]);
    let block = Bytes::from(block);
    assert!(client.session.supply_payload(block.slice(1..)).is_err());
    client.session.supply_payload(block.clone()).unwrap();
    let Some(Event::Request(asked)) = client.session.next_event() else {
        panic!("no write")
    };
    let RequestKind::Write {
        offset: 4096,
        payload: got,
        fua: true,
    } = asked.kind
    else {
        panic!("another request")
    };
    assert_eq!((got.as_ptr(), &got[..]), (block.as_ptr(), &payload[..]));
    client.accepted(request(cmd::READ, 0, 0, 512), &[]);
}

#[test]
fn a_large_payload_may_also_be_fed() {
    let mut client = disk();
    let length = 100_000u32;
    assert_eq!(
        client.request(request(cmd::WRITE, 0, 0, length), &[1; 50_000]),
        []
    );
    assert!(client.session.wants_input());
    let seen = client.send(&[1; 50_000]);
    assert!(matches!(seen[..], [Seen::Request(_)]));
    assert_eq!(client.session.payload_wanted(), None);
}

#[test]
fn no_payload_is_wanted_for_small_writes_or_outside_of_writes() {
    let mut client = disk();
    assert_eq!(client.session.payload_wanted(), None);
    assert!(client.session.take_payload_prefix(&mut [0; 9]).is_err());
    assert!(
        client
            .session
            .supply_payload(Bytes::from_static(b"x"))
            .is_err()
    );
    client.request(request(cmd::WRITE, 0, 0, 16 * 1024), b"start");
    assert_eq!(client.session.payload_wanted(), None);
}

#[test]
fn a_stream_that_ends_inside_a_direct_payload_is_truncated() {
    let mut client = disk();
    client.request(request(cmd::WRITE, 0, 0, 20_000), &[]);
    client
        .session
        .take_payload_prefix(&mut vec![0; 20_000])
        .unwrap();
    client.session.end_of_stream();
    let seen = client.drain();
    assert!(matches!(
        seen[..],
        [Seen::Ended(End::Protocol(ProtocolError::Truncated { .. }))]
    ));
    assert!(
        client
            .session
            .supply_payload(Bytes::from(vec![0; 20_000]))
            .is_ok()
    );
    assert_eq!(client.session.next_event(), None, "the end is final");
}

#[test]
fn errno_values_are_mapped_to_the_closed_list() {
    for (errno, code) in [
        (30, 1),
        (13, 1),
        (28, 28),
        (122, 28),
        (27, 28),
        (5, 5),
        (12, 5),
        (95, 95),
    ] {
        assert_eq!(ErrorCode::from_errno(errno).wire(), code);
    }
}

#[test]
fn headers_survive_encoding_and_decoding() {
    let header = RequestHeader {
        flags: 1,
        command: 6,
        cookie: 7,
        offset: 8,
        length: 9,
    };
    assert_eq!(RequestHeader::decode(&header.encode()), Ok(header));
}
