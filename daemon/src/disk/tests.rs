//! Goal: every operation is answered once and does what it says, on a ring, on threads and in memory.
//! Method: real files, on the working filesystem and on tmpfs, driven as the loop drives them.

use std::future::poll_fn;
use std::path::Path;
use std::task::Poll;
use std::time::Duration;

use super::*;
use crate::control::messages::MetaDisk;

const WAIT: Duration = Duration::from_secs(20);
const VOLUME: VolumeNumber = VolumeNumber(0);

async fn next(disks: &mut Disks) -> Event {
    let event = poll_fn(|context| {
        disks.submit().unwrap();
        disks.poll(context);
        match disks.next_event() {
            Some(event) => Poll::Ready(event),
            None => Poll::Pending,
        }
    });
    tokio::time::timeout(WAIT, event)
        .await
        .expect("an event in time")
}

async fn data(disks: &mut Disks, operation: DiskOperation) -> Result<Bytes, IoError> {
    disks.data(Token(7), VOLUME, operation);
    match next(disks).await {
        Event::DiskDone {
            token: Token(7),
            result,
        } => result,
        other => panic!("{other:?}"),
    }
}

async fn open(disks: &mut Disks, path: &Path) -> Result<BackingInfo, OpenError> {
    let paths = BackingPaths {
        disk: path.to_str().unwrap().to_owned(),
        meta: MetaDisk::Internal,
    };
    disks.open(Token(1), VOLUME, Some(paths));
    match next(disks).await {
        Event::BackingOpened {
            token: Token(1),
            result,
        } => result,
        other => panic!("{other:?}"),
    }
}

fn file_of(dir: &Path, bytes: u64) -> std::path::PathBuf {
    let path = dir.join("disk.img");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
    path
}

/// Runs `test` on a disk file with each way of doing I/O.
fn on_every_engine<F>(test: F)
where
    F: AsyncFn(Disks, &Path),
{
    let memory = Path::new("/dev/shm");
    let places = [
        (Engine::Best, tempfile::tempdir().unwrap()),
        (Engine::Threads, tempfile::tempdir().unwrap()),
        (
            Engine::Best,
            if memory.is_dir() {
                tempfile::tempdir_in(memory).unwrap()
            } else {
                tempfile::tempdir().unwrap()
            },
        ),
    ];
    for (engine, dir) in places {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let path = file_of(dir.path(), 4 << 20);
        runtime.block_on(async { test(Disks::new("test", engine).unwrap(), &path).await });
    }
}

fn write(offset: u64, data: &[u8], fua: Fua) -> DiskOperation {
    DiskOperation::Write {
        offset,
        data: Bytes::copy_from_slice(data),
        fua,
    }
}

#[test]
fn what_is_written_is_read_back_also_from_unaligned_memory() {
    on_every_engine(async |mut disks, path| {
        let info = open(&mut disks, path).await.unwrap();
        assert_eq!((info.data_bytes, info.meta_bytes), (4 << 20, 4 << 20));
        let pattern: Vec<u8> = (0..65536_u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        let shifted = Bytes::from([vec![0], pattern.clone()].concat()).slice(1..);
        let operation = DiskOperation::Write {
            offset: 8192,
            data: shifted,
            fua: Fua::Yes,
        };
        assert_eq!(data(&mut disks, operation).await.unwrap(), Bytes::new());
        assert_eq!(
            data(&mut disks, DiskOperation::Flush).await.unwrap(),
            Bytes::new()
        );
        let read = DiskOperation::Read {
            offset: 8192,
            length: 65536,
        };
        assert_eq!(data(&mut disks, read).await.unwrap(), pattern);
        assert_eq!(disks.waiting(), 0);
    });
}

#[test]
fn a_sector_can_be_written_alone() {
    on_every_engine(async |mut disks, path| {
        open(&mut disks, path).await.unwrap();
        data(&mut disks, write(512, &[7; 512], Fua::No))
            .await
            .unwrap();
        let read = data(
            &mut disks,
            DiskOperation::Read {
                offset: 0,
                length: 1536,
            },
        )
        .await
        .unwrap();
        assert_eq!((read[511], read[512], read[1023], read[1024]), (0, 7, 7, 0));
    });
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes() {
    on_every_engine(async |mut disks, path| {
        open(&mut disks, path).await.unwrap();
        data(&mut disks, write(0, &[9; 32768], Fua::No))
            .await
            .unwrap();
        let discard = DiskOperation::Discard {
            offset: 4096,
            length: 4096,
            fua: Fua::Yes,
        };
        data(&mut disks, discard).await.unwrap();
        for (offset, unmap) in [(12288, Unmap::No), (20480, Unmap::Allowed)] {
            let zero = DiskOperation::Zero {
                offset,
                length: 4096,
                unmap,
                fua: Fua::No,
            };
            data(&mut disks, zero).await.unwrap();
        }
        let read = data(
            &mut disks,
            DiskOperation::Read {
                offset: 0,
                length: 32768,
            },
        )
        .await
        .unwrap();
        let pages: Vec<u8> = read
            .chunks(4096)
            .map(|page| page[0].max(page[4095]))
            .collect();
        assert_eq!(pages, [9, 0, 9, 0, 9, 0, 9, 9]);
    });
}

#[test]
fn many_operations_in_flight_are_each_answered_once() {
    on_every_engine(async |mut disks, path| {
        open(&mut disks, path).await.unwrap();
        for n in 0..1000_u64 {
            let operation = write((n % 1000) * 4096, &[n as u8; 4096], Fua::No);
            disks.data(Token(100 + n), VOLUME, operation);
        }
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 1000 {
            match next(&mut disks).await {
                Event::DiskDone {
                    token,
                    result: Ok(_),
                } => assert!(seen.insert(token)),
                other => panic!("{other:?}"),
            }
        }
        let last = DiskOperation::Read {
            offset: 999 * 4096,
            length: 4096,
        };
        assert_eq!(data(&mut disks, last).await.unwrap()[0], 999_u32 as u8);
    });
}

#[test]
fn an_error_names_operation_device_and_offset() {
    on_every_engine(async |mut disks, path| {
        open(&mut disks, path).await.unwrap();
        let beyond = DiskOperation::Read {
            offset: 4 << 20,
            length: 512,
        };
        let text = data(&mut disks, beyond).await.unwrap_err().text;
        assert!(
            text.contains("read of 512 bytes at offset 4194304"),
            "{text}"
        );
        // The file shrinks behind our back: the kernel says so.
        std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(4096)
            .unwrap();
        let lost = DiskOperation::Read {
            offset: 8192,
            length: 4096,
        };
        let text = data(&mut disks, lost).await.unwrap_err().text;
        assert!(text.contains("8192") && text.contains("disk.img"), "{text}");
    });
}

#[test]
fn a_second_owner_is_refused_and_told_who_the_first_is() {
    on_every_engine(async |mut disks, path| {
        open(&mut disks, path).await.unwrap();
        let mut second = Disks::new("second", Engine::Best).unwrap();
        let error = open(&mut second, path).await.unwrap_err();
        assert_eq!(error.number, 114);
        let pid = format!("pid {}", std::process::id());
        for words in [&pid, "this daemon", "taken down by force"] {
            assert!(error.text.contains(words), "{}", error.text);
        }
        disks.close(Token(2), VOLUME);
        assert!(matches!(
            next(&mut disks).await,
            Event::BackingClosed { token: Token(2) }
        ));
        open(&mut second, path).await.unwrap();
    });
}

#[test]
fn slots_of_a_shared_metadata_device_are_windows_that_do_not_overlap() {
    on_every_engine(async |mut disks, path| {
        let meta = path.with_file_name("meta.img");
        std::fs::File::create(&meta)
            .unwrap()
            .set_len(256 << 20)
            .unwrap();
        let slot = |index| {
            let meta = meta.to_str().unwrap().to_owned();
            BackingPaths {
                disk: path.to_str().unwrap().to_owned(),
                meta: MetaDisk::Indexed { path: meta, index },
            }
        };
        disks.open(Token(1), VOLUME, Some(slot(1)));
        let Event::BackingOpened {
            result: Ok(info), ..
        } = next(&mut disks).await
        else {
            panic!()
        };
        assert_eq!(
            (info.meta_bytes, info.meta_kind),
            (128 << 20, MetaKind::Indexed)
        );
        let page = Bytes::from(vec![5; 4096]);
        disks.meta(
            Token(3),
            VOLUME,
            MetaOperation::Write {
                offset: 0,
                data: page,
                fua: Fua::Yes,
            },
        );
        assert!(matches!(
            next(&mut disks).await,
            Event::MetaDone { result: Ok(_), .. }
        ));
        let bytes = std::fs::read(&meta).unwrap();
        assert_eq!((bytes[0], bytes[128 << 20]), (0, 5));
        let error = Backing::open(&BackingPaths {
            disk: meta.to_str().unwrap().to_owned(),
            ..slot(1)
        });
        assert!(error.is_err());
    });
}

use tandem_replicator::MetaKind;

#[test]
fn metadata_in_a_hole_have_no_bytes_and_all_others_have_theirs() {
    on_every_engine(async |mut disks, path| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], 2 << 20).unwrap();
        open(&mut disks, path).await.unwrap();
        let places = [(0, 0), (2 << 20, 256 << 10), ((2 << 20) - 4096, 256 << 10)];
        for (offset, expected) in places {
            let length = 256 << 10;
            disks.meta(Token(3), VOLUME, MetaOperation::Read { offset, length });
            let Event::MetaDone {
                result: Ok(bytes), ..
            } = next(&mut disks).await
            else {
                panic!()
            };
            assert_eq!(bytes.len(), expected, "at {offset}");
        }
        let data = Bytes::from(vec![0; 64 << 10]);
        let (offset, fua) = (2 << 20, Fua::No);
        disks.meta(Token(5), VOLUME, MetaOperation::Write { offset, data, fua });
        assert!(matches!(
            next(&mut disks).await,
            Event::MetaDone { result: Ok(_), .. }
        ));
        let all = layout::is_hole(&std::fs::File::open(path).unwrap(), 0, 4 << 20);
        assert!(all, "zeroes take no room");
        file.set_len(1 << 20).unwrap();
        let (offset, length) = (3 << 20, 4096);
        disks.meta(Token(4), VOLUME, MetaOperation::Read { offset, length });
        assert!(
            matches!(
                next(&mut disks).await,
                Event::MetaDone { result: Err(_), .. }
            ),
            "what was cut off is no hole"
        );
    });
}

#[test]
fn io_on_a_volume_that_is_not_open_is_refused() {
    on_every_engine(async |mut disks, _| {
        let text = data(&mut disks, DiskOperation::Flush)
            .await
            .unwrap_err()
            .text;
        assert!(text.contains("no open backing device"), "{text}");
        disks.open(Token(1), VOLUME, None);
        let Event::BackingOpened {
            result: Err(error), ..
        } = next(&mut disks).await
        else {
            panic!()
        };
        assert_eq!(error.number, 104);
    });
}

#[test]
fn dropping_the_disks_waits_for_what_is_in_flight() {
    on_every_engine(async |mut disks, path| {
        open(&mut disks, path).await.unwrap();
        for n in 0..300_u64 {
            disks.data(Token(n), VOLUME, write(n * 4096, &[1; 4096], Fua::No));
        }
        disks.submit().unwrap();
        while disks.has_more() {
            disks.submit().unwrap();
        }
        let has_ring = disks.ring.is_some();
        drop(disks);
        if has_ring {
            let bytes = std::fs::read(path).unwrap();
            assert!(bytes[..300 * 4096].iter().all(|byte| *byte == 1));
        }
    });
}
