//! The black box of a loop: what its engine was told and what it wanted, without user data and secrets. Written out when the loop
//! fails and by command, as a file that the simulator replays and, after a failure, as words for a person.
//!
//! While the loop runs only memory is touched: no formatting, no file, and the lock is held for as long as an entry is appended or
//! the ring is copied.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tandem_replicator::black_box::{BlackBoxError, Entry, Extent, Reader, Recorder};
use tandem_replicator::{Effect, Event, Operation, ResourceOptions, Time};

/// Files of one second and one resource; more failures than these are not worth a file each.
const NAMES_MAX: u32 = 100;

/// Version and, where the build was told (`TANDEM_COMMIT`), the commit.
pub(crate) fn writer() -> String {
    let version = env!("CARGO_PKG_VERSION");
    match option_env!("TANDEM_COMMIT") {
        Some(commit) => format!("tandem {version}, commit {commit}"),
        None => format!("tandem {version}"),
    }
}

/// What records one loop.
#[derive(Debug)]
pub(crate) struct BlackBox {
    pub(crate) recorder: Recorder,
    /// Where everything is written from the beginning on, if it is.
    pub(crate) recording: Option<PathBuf>,
}

/// Shared by the loop, the thread that writes a recording, and those who ask for the box.
pub(crate) type SharedBox = Arc<Mutex<BlackBox>>;

/// The box, also after a panic: it holds whole entries at any time.
pub(crate) fn lock(black_box: &SharedBox) -> MutexGuard<'_, BlackBox> {
    black_box.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BlackBox {
    /// For the loop of an engine with these options.
    pub(crate) fn new(options: &ResourceOptions) -> BlackBox {
        BlackBox {
            recorder: Recorder::new(options),
            recording: None,
        }
    }

    /// Notes an event before the engine has it.
    pub(crate) fn event(&mut self, time: Time, event: &Event) {
        self.recorder.happened(time, event);
    }

    /// Notes what came of it.
    pub(crate) fn effects(&mut self, tape: &[u8], effects: &[Effect]) {
        self.recorder.done(tape, effects);
    }

    /// Notes that the engine failed while it had it.
    pub(crate) fn failed(&mut self, tape: &[u8], text: &str) {
        self.recorder.failed(tape, text);
    }
}

/// What was written.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) path: PathBuf,
    pub(crate) bytes: usize,
    pub(crate) events: u64,
    pub(crate) extent: Extent,
    /// Where the whole history is, if it is recorded.
    pub(crate) recording: Option<PathBuf>,
}

/// Writes the box to `file`, which must not exist, or to a new file in `dir`.
pub(crate) fn write_out(
    black_box: &SharedBox,
    file: Option<&Path>,
    dir: &Path,
    resource: &str,
    why: &str,
) -> io::Result<Written> {
    let (image, events, extent, recording) = {
        let black_box = lock(black_box);
        let recorder = &black_box.recorder;
        (
            recorder.image(&writer(), why, unix_seconds()),
            recorder.events(),
            recorder.extent(),
            black_box.recording.clone(),
        )
    };
    let path = match file {
        Some(path) => {
            write_new(path, &image)?;
            path.to_owned()
        }
        None => write_named(dir, resource, "blackbox", &image)?,
    };
    Ok(Written {
        path,
        bytes: image.len(),
        events,
        extent,
        recording,
    })
}

/// After a failure: the box and, beside it, the same in words. Returns the path of the words.
pub(crate) fn write_failure(
    black_box: &SharedBox,
    dir: &Path,
    resource: &str,
    why: &str,
) -> io::Result<PathBuf> {
    let image = lock(black_box)
        .recorder
        .image(&writer(), why, unix_seconds());
    let path = write_named(dir, resource, "blackbox", &image)?;
    let text = words(&image).unwrap_or_else(|error| format!("{}: {error}\n", path.display()));
    let words = path.with_extension("txt");
    write_new(&words, text.as_bytes())?;
    Ok(words)
}

pub(crate) fn unix_seconds() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// A new file for its owner only: a box holds no user data, but names, addresses and sizes.
pub(crate) fn create_new(path: &Path) -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create_new(path)?;
    file.write_all(bytes)?;
    file.flush()
}

/// The first name for this second that is free.
pub(crate) fn free_name(
    dir: &Path,
    resource: &str,
    extension: &str,
) -> io::Result<(PathBuf, std::fs::File)> {
    std::fs::create_dir_all(dir)?;
    let seconds = unix_seconds();
    for number in 0..NAMES_MAX {
        let name = match number {
            0 => format!("{resource}-{seconds}.{extension}"),
            _ => format!("{resource}-{seconds}-{number}.{extension}"),
        };
        let path = dir.join(name);
        match create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn write_named(dir: &Path, resource: &str, extension: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    let (path, mut file) = free_name(dir, resource, extension)?;
    file.write_all(bytes)?;
    file.flush()?;
    Ok(path)
}

/// A box in words, a line for each event and each effect.
fn words(image: &[u8]) -> Result<String, BlackBoxError> {
    let mut reader = Reader::open(image)?;
    let head = reader.head();
    let mut text = format!(
        "resource {}: {}\n{}\nnanoseconds  what  first  second (tokens, sockets, offsets, lengths)\n",
        head.resource, head.why, head.extent
    );
    let mut line = |time: Time, what: &str, first: u64, second: u64| {
        text.push_str(&format!("{:>18}  {what}  {first}  {second}\n", time.0));
    };
    let mut now = Time(0);
    while let Some(entry) = reader.next()? {
        match entry {
            Entry::Happened(time, event) => {
                now = time;
                let (what, first, second) = event_words(&event);
                line(now, what, first, second);
            }
            Entry::Done { marks, .. } => {
                for mark in marks {
                    line(now, &format!("< {}", mark.kind.name()), mark.subject, 0);
                }
            }
            Entry::Failed { text, .. } => line(now, &format!("< failed: {text}"), 0, 0),
            Entry::Cut(why) => line(now, &why, 0, 0),
        }
    }
    Ok(text)
}

fn event_words(event: &Event) -> (&'static str, u64, u64) {
    match event {
        Event::Request(request) => {
            let (what, offset) = match &request.operation {
                Operation::Read { offset, .. } => ("> request read", *offset),
                Operation::Write { offset, .. } => ("> request write", *offset),
                Operation::Discard { offset, .. } => ("> request discard", *offset),
                Operation::WriteZeroes { offset, .. } => ("> request zeroes", *offset),
                Operation::Flush => ("> request flush", 0),
            };
            (what, request.id.0, offset)
        }
        Event::Opened { volume } => ("> opened", volume.0.into(), 0),
        Event::Released { volume } => ("> released", volume.0.into(), 0),
        Event::DiskDone { token, result } => ("> disk done", token.0, result.is_ok().into()),
        Event::MetaDone { token, result } => ("> meta done", token.0, result.is_ok().into()),
        Event::BackingOpened { token, result } => ("> opened", token.0, result.is_ok().into()),
        Event::BackingClosed { token } => ("> closed", token.0, 0),
        Event::Bytes { socket, bytes } => ("> bytes", socket.0, bytes.len() as u64),
        Event::Sent { socket, bytes } => ("> sent", socket.0, *bytes),
        Event::Accepted { socket } => ("> accepted", socket.0, 0),
        Event::Dialled { token, result } => ("> dialled", token.0, result.is_ok().into()),
        Event::ListenFailed { .. } => ("> listen failed", 0, 0),
        Event::Closed { socket, .. } => ("> socket closed", socket.0, 0),
        Event::Command { id, .. } => ("> command", id.0, 0),
        Event::HandlerDone { token, exit } => {
            ("> handler done", token.0, u64::from(exit.unsigned_abs()))
        }
        Event::Timer => ("> timer", 0, 0),
    }
}
