//! Goal: no receive that finds nothing after a short one, and no byte, wake-up or end that is missed for it.
//! Method: both kinds of streams in one runtime, with the other end written in place or by a thread that never waits for the reader.

use std::future::poll_fn;
use std::io::Write;
use std::time::Duration;

use super::*;

const WAIT: Duration = Duration::from_secs(60);

/// A writing end, whichever its kind.
type Other = Box<dyn Write + Send>;

fn pairs() -> Vec<(Stream, Other)> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (own, _) = listener.accept().unwrap();
    own.set_nonblocking(true).unwrap();
    let tcp = Stream::Tcp(TcpStream::from_std(own).unwrap());
    let (own, unix_other) = std::os::unix::net::UnixStream::pair().unwrap();
    own.set_nonblocking(true).unwrap();
    let unix = Stream::Unix(UnixStream::from_std(own).unwrap());
    vec![(tcp, Box::new(other)), (unix, Box::new(unix_other))]
}

fn run(test: impl AsyncFn(Stream, Other)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        for (stream, other) in pairs() {
            tokio::time::timeout(WAIT, test(stream, other))
                .await
                .expect("the test ends within its limit");
        }
    });
}

async fn received(buffer: &mut ReadBuffer, stream: &mut Stream) -> Bytes {
    poll_fn(|context| buffer.poll_read(stream, context, usize::MAX))
        .await
        .unwrap()
}

/// Whether the next read would make a system call.
async fn would_receive(stream: &Stream) -> bool {
    poll_fn(|context| {
        let ready = match stream {
            Stream::Tcp(stream) => stream.poll_read_ready(context),
            Stream::Unix(stream) => stream.poll_read_ready(context),
        };
        Poll::Ready(ready.is_ready())
    })
    .await
}

#[test]
fn a_read_that_left_room_is_not_followed_by_one_that_finds_nothing() {
    run(async |mut stream, mut other| {
        let mut buffer = ReadBuffer::default();
        for _ in 0..3 {
            other.write_all(b"request").unwrap();
            assert_eq!(received(&mut buffer, &mut stream).await, "request");
            assert!(!would_receive(&stream).await);
        }
    });
}

#[test]
fn a_read_that_filled_its_room_is_followed_by_another() {
    run(async |mut stream, mut other| {
        other.write_all(b"payload!rest").unwrap();
        let mut block = [0; 8];
        let count = poll_fn(|context| stream.poll_read_slice(context, &mut block))
            .await
            .unwrap();
        assert_eq!((count, &block), (8, b"payload!"));
        assert!(would_receive(&stream).await);
        let mut buffer = ReadBuffer::default();
        assert_eq!(received(&mut buffer, &mut stream).await, "rest");
    });
}

#[test]
fn an_end_right_behind_the_last_bytes_is_seen() {
    run(async |mut stream, mut other| {
        other.write_all(b"last").unwrap();
        drop(other);
        let mut buffer = ReadBuffer::default();
        assert_eq!(received(&mut buffer, &mut stream).await, "last");
        assert_eq!(received(&mut buffer, &mut stream).await, "");
    });
}

#[test]
fn an_end_after_a_short_read_wakes_the_reader() {
    run(async |mut stream, mut other| {
        let mut buffer = ReadBuffer::default();
        other.write_all(b"last").unwrap();
        assert_eq!(received(&mut buffer, &mut stream).await, "last");
        assert!(!would_receive(&stream).await);
        drop(other);
        assert_eq!(received(&mut buffer, &mut stream).await, "");
    });
}

/// Lengths from 1 byte to 40 KiB, most of them short.
fn length(number: usize) -> usize {
    let dice = number.wrapping_mul(0x9e37_79b9) >> 7;
    1 + dice % (64 << (dice % 10)).min(40_000)
}

#[test]
fn bytes_that_come_while_the_reader_takes_a_short_read_for_the_last_are_not_missed() {
    const PIECES: usize = 20_000;
    run(async |mut stream, mut other| {
        let writer = std::thread::spawn(move || {
            let mut sent = 0usize;
            for number in 0..PIECES {
                let piece: Vec<u8> = (0..length(number)).map(|at| (sent + at) as u8).collect();
                other.write_all(&piece).unwrap();
                sent += piece.len();
            }
            sent
        });
        let mut buffer = ReadBuffer::default();
        let mut block = vec![0; 3000];
        let mut seen = 0usize;
        for number in 0usize.. {
            // In turn into the shared buffer and into a block, as payloads of clients are received.
            let bytes = if number.is_multiple_of(3) {
                let count = poll_fn(|context| stream.poll_read_slice(context, &mut block));
                let count = count.await.unwrap();
                Bytes::copy_from_slice(&block[..count])
            } else {
                received(&mut buffer, &mut stream).await
            };
            if bytes.is_empty() {
                break;
            }
            for (at, byte) in bytes.iter().enumerate() {
                assert_eq!(*byte, (seen + at) as u8, "byte {}", seen + at);
            }
            seen += bytes.len();
        }
        assert_eq!(seen, writer.join().unwrap());
    });
}
