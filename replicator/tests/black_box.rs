//! Goal: a black box is bounded, complete and discreet. Method: recorders that are told events of every kind, read back.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use bytes::Bytes;
use tandem_replicator::black_box::{
    Entry, Extent, FORMAT_VERSION, MarkKind, RING_BYTES_MAX, Reader, Recorder, STREAM_BYTES_MAX,
    Streaming,
};
use tandem_replicator::{
    BackingInfo, Command, CommandId, DialError, DiskOperation, DiskOptions, Effect, Event, Fua,
    IoError, MetaKind, NetOptions, OpenError, Operation, Request, RequestId, ResourceOptions,
    SocketId, Time, Token, Unmap, VolumeNumber, VolumeOptions,
};

const VOLUME: VolumeNumber = VolumeNumber(0);

fn options() -> ResourceOptions {
    ResourceOptions {
        name: String::from("r0"),
        volumes: vec![VolumeOptions {
            number: VOLUME,
            minor: 3,
            disk: DiskOptions::default(),
        }],
        seed: *b"the seed is not for anybody else",
    }
}

fn request(id: u64, operation: Operation) -> Event {
    Event::Request(Request {
        id: RequestId(id),
        volume: VOLUME,
        operation,
    })
}

fn write(id: u64) -> Event {
    request(
        id,
        Operation::Write {
            offset: 8192,
            data: Bytes::from(vec![b'U'; 4096]),
            fua: Fua::Yes,
        },
    )
}

fn disk_write(token: u64) -> Effect {
    Effect::Disk {
        token: Token(token),
        volume: VOLUME,
        operation: DiskOperation::Write {
            offset: 8192,
            data: Bytes::from(vec![b'U'; 4096]),
            fua: Fua::Yes,
        },
    }
}

fn connect() -> Event {
    Event::Command {
        id: CommandId(4),
        command: Box::new(Command::Connect {
            net: NetOptions {
                secret: Some((b"a well-kept secret".to_vec(), String::from("sha256"))),
                ..NetOptions::default()
            },
            discard_my_data: true,
            tentative: false,
        }),
    }
}

/// One of each kind, with both outcomes.
fn every_event() -> Vec<Event> {
    let io_error = || IoError {
        text: String::from("no such luck"),
    };
    let (token, socket) = (Token(70_000), SocketId(300));
    let range = (4096, 65_536, Fua::No);
    let (offset, length, fua) = range;
    let text = || String::from("words");
    let info = BackingInfo {
        data_bytes: 1 << 40,
        meta_bytes: 1 << 26,
        meta_kind: MetaKind::FlexibleExternal,
        logical_block: 512,
        discard: true,
        discard_zeroes: false,
    };
    let mut superblock = vec![0; 4096];
    superblock[..4].copy_from_slice(&[1, 2, 3, 4]);
    let result = || Ok(Bytes::from(vec![b'U'; 512]));
    vec![
        write(1),
        request(2, Operation::Read { offset, length }),
        request(
            3,
            Operation::Discard {
                offset,
                length,
                fua,
            },
        ),
        request(
            4,
            Operation::WriteZeroes {
                offset,
                length,
                fua,
                unmap: Unmap::Allowed,
            },
        ),
        request(5, Operation::Flush),
        Event::Opened { volume: VOLUME },
        Event::Released { volume: VOLUME },
        Event::DiskDone {
            token,
            result: result(),
        },
        Event::DiskDone {
            token,
            result: Err(io_error()),
        },
        Event::MetaDone {
            token,
            result: Ok(Bytes::from(superblock)),
        },
        Event::MetaDone {
            token,
            result: Err(io_error()),
        },
        Event::BackingOpened {
            token,
            result: Ok(info),
        },
        Event::BackingOpened {
            token,
            result: Err(OpenError {
                number: 104,
                text: text(),
            }),
        },
        Event::BackingClosed { token },
        Event::Sent {
            socket,
            bytes: 1 << 33,
        },
        Event::Accepted { socket },
        Event::Dialled {
            token,
            result: Ok(socket),
        },
        Event::Dialled {
            token,
            result: Err(DialError::Unreachable(text())),
        },
        Event::ListenFailed { reason: text() },
        Event::Closed {
            socket,
            reason: text(),
        },
        connect(),
        Event::Command {
            id: CommandId(5),
            command: Box::new(Command::DiskOptions {
                volume: VOLUME,
                options: DiskOptions::default(),
            }),
        },
        Event::HandlerDone { token, exit: -1 },
        Event::Timer,
    ]
}

fn image_of_every_event() -> Vec<u8> {
    let mut recorder = Recorder::new(&options());
    for (at, event) in every_event().iter().enumerate() {
        recorder.happened(Time(at as u64 * 1_000_000), event);
        recorder.done(&[1, 2, 3], &[disk_write(at as u64)]);
    }
    recorder.failed(&[4], "as a bug would");
    recorder.image("a test", "to be read", 1_700_000_000)
}

fn entries(image: &[u8]) -> Vec<Entry> {
    let mut reader = Reader::open(image).unwrap();
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}

fn holds(bytes: &[u8], words: &[u8]) -> bool {
    bytes.windows(words.len()).any(|window| window == words)
}

#[test]
fn every_event_comes_back_without_data_and_secrets() {
    let image = image_of_every_event();
    for words in [&b"UUUU"[..], b"well-kept", b"the seed"] {
        assert!(!holds(&image, words));
    }
    let head = Reader::open(&image).unwrap().head().clone();
    assert_eq!((head.resource.as_str(), head.extent), ("r0", Extent::Whole));
    assert_eq!(head.volumes, options().volumes);
    let read = entries(&image);
    assert_eq!(read.len(), 2 * every_event().len() + 1);
    for (at, event) in every_event().into_iter().enumerate() {
        let Entry::Happened(time, again) = &read[2 * at] else {
            panic!("{:?}", read[2 * at]);
        };
        assert_eq!(*time, Time(at as u64 * 1_000_000));
        // What was left out is left out here, too.
        let expected = format!("{event:?}")
            .replace('U', "\\0")
            .replace("\\0nreachable", "Unreachable")
            .replace(&format!("{:?}", b"a well-kept secret"), "[]");
        assert_eq!(
            format!("{again:?}")
                .replace('U', "\\0")
                .replace("\\0nreachable", "Unreachable"),
            expected
        );
        let Entry::Done { tape, marks } = &read[2 * at + 1] else {
            panic!("{:?}", read[2 * at + 1]);
        };
        assert_eq!((tape.as_slice(), marks.len()), (&[1, 2, 3][..], 1));
        assert_eq!(
            (marks[0].kind, marks[0].subject),
            (MarkKind::DiskWrite, at as u64)
        );
    }
    let Some(Entry::Failed { tape, text }) = read.last() else {
        panic!("{:?}", read.last());
    };
    assert_eq!(
        (tape.as_slice(), text.as_str()),
        (&[4][..], "as a bug would")
    );
}

/// When this fails, events, commands or options look different in a file than before: [`FORMAT_VERSION`] has to grow, and the number
/// here with it. Otherwise old files would be misread.
#[test]
fn the_format_changes_only_together_with_its_version() {
    let image = image_of_every_event();
    let hash = image.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    assert_eq!(
        (FORMAT_VERSION, image.len(), hash),
        (3, 901, 16_255_784_858_178_436_715)
    );
}

#[test]
fn a_ring_that_is_full_says_what_it_has_lost_and_still_can_be_read() {
    let mut recorder = Recorder::new(&options());
    let mut told = 0;
    while recorder.extent() == Extent::Whole {
        recorder.happened(Time(told), &write(told));
        recorder.done(&[], &[disk_write(told)]);
        told += 1;
        assert!(told < 10_000_000);
    }
    for _ in 0..100_000 {
        recorder.happened(Time(told), &write(told));
        recorder.done(&[], &[disk_write(told)]);
        told += 1;
    }
    let image = recorder.image("a test", "", 0);
    assert!(
        image.len() <= RING_BYTES_MAX + 1024,
        "{} bytes",
        image.len()
    );
    assert!(image.len() > RING_BYTES_MAX / 2, "{} bytes", image.len());
    let Extent::Tail { lost } = Reader::open(&image).unwrap().head().extent else {
        panic!("not a tail");
    };
    let read = entries(&image);
    let events: Vec<_> = read
        .iter()
        .filter_map(|entry| match entry {
            Entry::Happened(time, _) => Some(time.0),
            _ => None,
        })
        .collect();
    let expected: Vec<_> = (lost..told).collect();
    assert_eq!(events, expected);
    assert_eq!(recorder.events(), told);
    println!("{} events fit the ring", events.len());
}

#[test]
fn a_large_event_pushes_small_ones_out_and_is_pushed_out_in_its_turn() {
    let mut recorder = Recorder::new(&options());
    let noise: Vec<u8> = (0..RING_BYTES_MAX / 2)
        .map(|at| (at * 7 % 251) as u8)
        .collect();
    let event = Event::MetaDone {
        token: Token(1),
        result: Ok(noise.clone().into()),
    };
    for number in 0..3 {
        recorder.happened(Time(number), &write(number));
        recorder.happened(Time(number), &event);
        recorder.done(&[], &[]);
        let image = recorder.image("a test", "", 0);
        assert!(image.len() <= RING_BYTES_MAX + 1024);
        let found = entries(&image).into_iter().any(|entry| {
            matches!(entry, Entry::Happened(_, Event::MetaDone { result: Ok(bytes), .. }) if bytes == noise)
        });
        assert!(found, "{number}");
    }
    assert!(matches!(recorder.extent(), Extent::Tail { .. }));
}

#[test]
fn a_stream_that_nobody_takes_stops_growing() {
    let mut recorder = Recorder::new(&options());
    recorder.start_stream();
    let mut told = 0;
    let mut taken = Vec::new();
    while recorder.stream_len() < STREAM_BYTES_MAX - 200 {
        recorder.happened(Time(told), &write(told));
        recorder.done(&[], &[disk_write(told)]);
        told += 1;
    }
    for _ in 0..100 {
        recorder.happened(Time(told), &write(told));
    }
    assert!(recorder.stream_len() <= STREAM_BYTES_MAX);
    assert_eq!(recorder.take_stream(&mut taken), Streaming::Overrun);
    let head = recorder.head(Extent::Recording, "a test", "", 0);
    let end = recorder.end_stream("nobody wrote it");
    let file = [head, taken, end].concat();
    let read = entries(&file);
    assert!(matches!(read.last(), Some(Entry::Cut(why)) if why == "nobody wrote it"));
    assert_eq!(recorder.take_stream(&mut Vec::new()), Streaming::Off);
}
