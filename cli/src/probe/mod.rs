//! `tandem probe`: what a client meets at an export, in words.

mod haggle;
mod second;

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use haggle::{Findings, Trouble};
use second::Opinion;

use crate::failure::{CANNOT_RUN, Failure, Outcome, TIMED_OUT, USAGE};
use crate::invocation::{Invocation, quoted};
use crate::output::out_line;
use crate::place::Place;

/// What the whole probe may take: a server that answers a byte now and then is hung, too.
const DEADLINE: Duration = Duration::from_secs(10);

/// Exports that are named when the one that was asked for is not there.
const NAMED_MAX: usize = 20;

/// Probes an export: an URI, or the name of a resource or volume of this node.
pub(crate) fn run(invocation: &Invocation, target: &str) -> Outcome {
    let uri = if target.contains("://") {
        target.to_owned()
    } else {
        let socket = invocation.places().nbd_socket();
        format!("nbd+unix:///{target}?socket={}", socket.display())
    };
    let place = understand(&uri)?;
    let deadline = Instant::now() + DEADLINE;
    let mut socket = connect(&place, deadline)
        .map_err(|error| not_connected(invocation, &place, &uri, &error))?;
    match haggle::examine(&mut socket, &place.export) {
        Ok(findings) => {
            drop(socket);
            let second =
                connect(&place, deadline).and_then(|socket| second::ask(socket, &place.export));
            out_line(&describe(&uri, &findings, &second));
            let wrong = match (&findings.read, &second) {
                (Err(text), _) => {
                    format!("the export is there, but cannot be read: {text}")
                }
                (Ok(_), Ok(opinion)) if opinion.size != findings.size => format!(
                    "the server tells old clients another size than new ones: {} and {} bytes",
                    opinion.size, findings.size
                ),
                _ => return Ok(()),
            };
            let failure = Failure::new(CANNOT_RUN, format!("{uri}: {wrong}"));
            Err(failure.next(invocation.tandem("status")))
        }
        Err(trouble) => Err(in_words(invocation, &place, &uri, &trouble)),
    }
}

fn understand(uri: &str) -> Result<Place, Failure> {
    if uri.starts_with("nbds") {
        let text = format!("{uri}: TLS is not supported here; nbdinfo speaks it");
        return Err(Failure::new(USAGE, text).next(format!("nbdinfo {}", quoted(uri))));
    }
    Place::parse(uri).ok_or_else(|| {
        Failure::new(USAGE, format!("cannot understand {uri}")).line(
            "An export is named as nbd://HOST[:PORT]/EXPORT, as nbd+unix:///EXPORT?socket=PATH, or as RESOURCE[/VOLUME].",
        )
    })
}

/// A connection whose every wait ends at one deadline.
struct Socket {
    stream: Stream,
    deadline: Instant,
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = Some(self.left()?);
        match &mut self.stream {
            Stream::Unix(stream) => {
                stream.set_read_timeout(left)?;
                stream.read(buffer)
            }
            Stream::Tcp(stream) => {
                stream.set_read_timeout(left)?;
                stream.read(buffer)
            }
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = Some(self.left()?);
        match &mut self.stream {
            Stream::Unix(stream) => {
                stream.set_write_timeout(left)?;
                stream.write(bytes)
            }
            Stream::Tcp(stream) => {
                stream.set_write_timeout(left)?;
                stream.write(bytes)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects on a thread of its own: neither a name server nor a socket with a full queue has a timeout. The thread ends with the
/// program.
fn connect(place: &Place, deadline: Instant) -> io::Result<Socket> {
    let (sender, connected) = mpsc::channel();
    let wanted = place.clone();
    std::thread::spawn(move || {
        // Nobody waits any more: nothing is lost.
        let _ = sender.send(dial(&wanted));
    });
    let left = deadline.saturating_duration_since(Instant::now());
    let stream = connected
        .recv_timeout(left)
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok(Socket { stream, deadline })
}

fn dial(place: &Place) -> io::Result<Stream> {
    if let Some(path) = &place.unix {
        return UnixStream::connect(path).map(Stream::Unix);
    }
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in place.address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, DEADLINE) {
            Ok(stream) => return Ok(Stream::Tcp(stream)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn not_connected(invocation: &Invocation, place: &Place, uri: &str, error: &io::Error) -> Failure {
    let there = place.unix.as_deref().unwrap_or(&place.address);
    if error.kind() == io::ErrorKind::TimedOut {
        let text = format!(
            "{uri}: no connection to {there} within {} s: the machine is down, a firewall drops what is sent, or the server hangs",
            DEADLINE.as_secs()
        );
        return Failure::new(TIMED_OUT, text);
    }
    let text = match (error.kind(), &place.unix) {
        (io::ErrorKind::NotFound, Some(_)) => {
            format!("there is no socket {there}: no daemon serves there")
        }
        (io::ErrorKind::ConnectionRefused, _) => {
            format!("nobody listens on {there}: no daemon serves there")
        }
        (io::ErrorKind::PermissionDenied, Some(_)) => {
            format!("{there} may be used by its owner only")
        }
        _ => format!("cannot connect to {there}: {error}"),
    };
    let failure = Failure::new(CANNOT_RUN, format!("{uri}: {text}"));
    match &place.unix {
        Some(_) => failure.next(invocation.tandem("status")),
        // It is the other node's daemon that has to be looked at.
        None => failure.next(format!(
            "tandem daemon --nbd-tcp {}   # on the node that serves",
            quoted(&place.address)
        )),
    }
}

fn in_words(invocation: &Invocation, place: &Place, uri: &str, trouble: &Trouble) -> Failure {
    let exit = match trouble {
        Trouble::Silent { .. } => TIMED_OUT,
        _ => CANNOT_RUN,
    };
    let failure = Failure::new(exit, format!("{uri}: {trouble}"));
    match trouble {
        Trouble::Unknown { others, .. } => {
            let mut failure = failure;
            if others.is_empty() {
                return failure
                    .line("The server lists no exports: nothing is Primary there.")
                    .next(invocation.tandem("status"));
            }
            failure = failure.line("The server has these:");
            for name in others.iter().take(NAMED_MAX) {
                failure = failure.line(format!("    {name}"));
            }
            match others.first().filter(|name| **name != place.export) {
                Some(name) => failure
                    .next(invocation.tandem(&format!("probe {}", quoted(&uri_of(place, name))))),
                None => failure,
            }
        }
        // The server's own words say what to type.
        Trouble::Refused { .. } => failure,
        Trouble::Silent { .. } | Trouble::HungUp { .. } => {
            failure.next(invocation.tandem("status"))
        }
        _ => failure,
    }
}

/// The URI of another export of the same server.
fn uri_of(place: &Place, export: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,=".contains(c);
    let encoded = |text: &str| {
        let mut out = String::new();
        for c in text.chars() {
            if plain(c) {
                out.push(c);
            } else {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    out.push_str(&format!("%{byte:02X}"));
                }
            }
        }
        out
    };
    match &place.unix {
        Some(socket) => format!("nbd+unix:///{}?socket={}", encoded(export), encoded(socket)),
        None => format!("nbd://{}/{}", place.address, encoded(export)),
    }
}

fn describe(uri: &str, findings: &Findings, second: &io::Result<Opinion>) -> String {
    let mut lines = vec![uri.to_owned()];
    let mut line = |what: &str, text: String| lines.push(format!("  {what:<12} {text}"));
    if let Some(name) = &findings.name {
        line("export", name.clone());
    }
    if let Some(text) = &findings.description {
        line("description", text.clone());
    }
    line(
        "size",
        format!("{} bytes ({})", findings.size, human(findings.size)),
    );
    line("flags", findings.flag_words().join(", "));
    match findings.block_sizes {
        Some([minimum, preferred, maximum]) => line(
            "block sizes",
            format!("minimum {minimum}, preferred {preferred}, maximum {maximum}"),
        ),
        None => line("block sizes", "not told".to_owned()),
    }
    line(
        "contexts",
        match &findings.contexts {
            Ok(names) if names.is_empty() => "none".to_owned(),
            Ok(names) => names.join(", "),
            Err(text) => format!("not told: {text}"),
        },
    );
    if let Ok((bytes, took)) = findings.read {
        line(
            "read",
            match bytes {
                0 => "nothing: the export is empty".to_owned(),
                _ => format!(
                    "{bytes} bytes at 0 in {:.1} ms",
                    took.as_secs_f64() * 1000.0
                ),
            },
        );
    }
    line(
        "old clients",
        match second {
            Ok(Opinion { size, read }) => format!("{size} bytes, {read} of them read at 0"),
            Err(error) => format!("not served: {error}"),
        },
    );
    lines.join("\n")
}

fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS.get(unit).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that has said everything in advance.
    pub(super) struct Said(io::Cursor<Vec<u8>>);

    impl Said {
        pub(super) fn all(parts: &[&[u8]]) -> Said {
            Said(io::Cursor::new(parts.concat()))
        }
    }

    impl Read for Said {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Said {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_uri_of_another_export_is_understood_again() {
        for uri in [
            "nbd://[::1]:1234/r0",
            "nbd+unix:///r0/0?socket=/run/a%20b/nbd.sock",
        ] {
            let place = understand(uri).unwrap();
            let other = understand(&uri_of(&place, "a b?ä/0")).unwrap();
            assert_eq!(other.export, "a b?ä/0");
            assert_eq!((&other.unix, &other.address), (&place.unix, &place.address));
        }
    }

    #[test]
    fn what_is_no_uri_is_said_to_be_none() {
        assert_eq!(understand("http://x/").unwrap_err().exit, USAGE);
        assert!(understand("nbds://x/").unwrap_err().lines[0].contains("TLS"));
    }
}
