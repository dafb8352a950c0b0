//! A full recording: everything that a loop's black box notes goes to a file from the creation of the resource on.
//!
//! A thread of its own writes it, ten times a second. A disk that does not keep up, or a file that has grown to its bound, ends the
//! recording and not the resource; the last entry of the file says so.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tandem_replicator::black_box::{Extent, Streaming};

use crate::blackbox::{self, SharedBox};

/// Time between two writes: what a killed daemon loses of its recording.
const INTERVAL: Duration = Duration::from_millis(100);

/// Bytes of one recording, in MiB: minutes of a resource that writes all the time, weeks of an idle one.
pub(crate) const RECORDING_MIB_MAX: u64 = 1024;

/// A running recording. It ends, with everything written, when it is dropped.
#[derive(Debug)]
pub(crate) struct Recording {
    ends: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Recording {
    /// Begins one in a new file in `dir`, before the engine's first event.
    pub(crate) fn start(
        dir: &Path,
        resource: &str,
        black_box: &SharedBox,
    ) -> io::Result<Recording> {
        let (path, mut file) = blackbox::free_name(dir, resource, "blackbox")?;
        {
            let mut black_box = blackbox::lock(black_box);
            let head = black_box.recorder.head(
                Extent::Recording,
                &blackbox::writer(),
                "recorded from the beginning",
                blackbox::unix_seconds(),
            );
            black_box.recorder.start_stream();
            black_box.recording = Some(path.clone());
            drop(black_box);
            file.write_all(&head)?;
        }
        tracing::info!(path = %path.display(), "everything that happens is recorded, without user data and secrets; at most {RECORDING_MIB_MAX} MiB");
        let ends = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            black_box: Arc::clone(black_box),
            ends: Arc::clone(&ends),
            file,
            path,
            written: 0,
        };
        let thread = std::thread::Builder::new()
            .name("recording".to_owned())
            .spawn(move || writer.run())?;
        Ok(Recording {
            ends,
            thread: Some(thread),
        })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the thread of the recording has failed");
            }
        }
    }
}

struct Writer {
    black_box: SharedBox,
    ends: Arc<AtomicBool>,
    file: File,
    path: PathBuf,
    written: u64,
}

impl Writer {
    fn run(mut self) {
        let mut buffer = Vec::new();
        loop {
            let last = self.ends.load(Ordering::Acquire);
            let more = blackbox::lock(&self.black_box)
                .recorder
                .take_stream(&mut buffer);
            if let Err(error) = self.file.write_all(&buffer) {
                tracing::error!(path = %self.path.display(), %error, "the recording ends: its file cannot be written");
                self.end("its file could not be written");
                return;
            }
            self.written += buffer.len() as u64;
            let why = match more {
                Streaming::Overrun => Some("the disk of the recording did not keep up"),
                _ if self.written >= RECORDING_MIB_MAX << 20 => {
                    Some("the file has reached its bound")
                }
                Streaming::On | Streaming::Off => None,
            };
            if let Some(why) = why {
                tracing::warn!(path = %self.path.display(), "the recording ends: {why}");
                self.end(why);
                return;
            }
            if last {
                return;
            }
            std::thread::park_timeout(INTERVAL);
        }
    }

    /// The last entry says why there is no more.
    fn end(&mut self, why: &str) {
        let entry = {
            let mut black_box = blackbox::lock(&self.black_box);
            black_box.recording = None;
            black_box.recorder.end_stream(why)
        };
        if let Err(error) = self.file.write_all(&entry) {
            tracing::warn!(path = %self.path.display(), %error, "the recording has no end");
        }
    }
}
