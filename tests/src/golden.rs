//! Reader of the golden files in `tests/golden`: compressed files, and captures of two kernel nodes.
//!
//! The captures are described in `tests/golden/wire/README.md`. Errors are sentences for whoever
//! runs the tests: they name the file.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use tandem_protocol::Socket;

/// The folder with all golden files.
#[must_use]
pub fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// The contents of an `.xz` file.
///
/// # Errors
///
/// A sentence that names the file.
pub fn read_xz(path: &Path) -> Result<Vec<u8>, String> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut bytes = Vec::new();
    lzma_rs::xz_decompress(&mut BufReader::new(file), &mut bytes)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(bytes)
}

/// Who sent a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Node a to node b.
    AToB,
    /// Node b to node a.
    BToA,
}

/// The bytes that one node sent on one socket of one connection.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Number of the TCP connection in the capture.
    pub connection: u32,
    /// Which socket it became.
    pub socket: Socket,
    /// Who sent it.
    pub direction: Direction,
    /// All bytes.
    pub bytes: Vec<u8>,
}

/// One line of the capture's listing, made by a decoder that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Seconds since the first packet of the capture, as printed.
    pub time: String,
    /// Number of the TCP connection.
    pub connection: u32,
    /// Who sent it.
    pub direction: Direction,
    /// Offset of the header in the stream.
    pub offset: usize,
    /// `h80` or `h100`.
    pub header: String,
    /// Volume; 0 under h80.
    pub volume: u16,
    /// `P_DATA` and so on.
    pub name: String,
    /// Bytes after the header.
    pub length: usize,
}

/// Names of all captures, in order.
///
/// # Errors
///
/// A sentence when the folder cannot be read.
pub fn scenarios() -> Result<Vec<String>, String> {
    let dir = golden_dir().join("wire");
    let entries = dir
        .read_dir()
        .map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut names: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

/// All streams of a capture that became a data or a meta socket, by connection and direction.
///
/// # Errors
///
/// A sentence that names the file.
pub fn streams(scenario: &str) -> Result<Vec<Stream>, String> {
    let path = golden_dir()
        .join("wire")
        .join(scenario)
        .join("streams.tar.xz");
    let mut streams = Vec::new();
    for (name, bytes) in untar(&read_xz(&path)?)? {
        if let Some((connection, socket, direction)) = stream_name(&name) {
            streams.push(Stream {
                connection,
                socket,
                direction,
                bytes,
            });
        }
    }
    streams.sort_by_key(|stream| (stream.connection, stream.direction));
    Ok(streams)
}

/// The packets of a capture as another decoder lists them; lines that are no packet are left out.
///
/// # Errors
///
/// A sentence that names the file.
pub fn listing(scenario: &str) -> Result<Vec<Listed>, String> {
    let path = golden_dir()
        .join("wire")
        .join(scenario)
        .join("packets.txt.xz");
    let text = String::from_utf8(read_xz(&path)?)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.lines().filter_map(listed).collect())
}

fn listed(line: &str) -> Option<Listed> {
    let mut words = line.split_whitespace();
    let time = words.next()?.to_owned();
    let connection = words
        .next()?
        .strip_prefix("conn")?
        .split('-')
        .next()?
        .parse()
        .ok()?;
    let direction = match words.next()? {
        "a>b" => Direction::AToB,
        "b>a" => Direction::BToA,
        _ => return None,
    };
    let offset = words.next()?.strip_prefix('@')?.parse().ok()?;
    let header = words
        .next()
        .filter(|word| word.starts_with('h'))?
        .to_owned();
    let mut word = words.next()?;
    let mut volume = 0;
    if let Some(number) = word.strip_prefix("vol=") {
        volume = number.parse().ok()?;
        word = words.next()?;
    }
    let name = word.split('(').next()?.to_owned();
    let length = words.next()?.strip_prefix("len=")?.parse().ok()?;
    Some(Listed {
        time,
        connection,
        direction,
        offset,
        header,
        volume,
        name,
        length,
    })
}

/// `streams/conn2-data.a-to-b.bin`
fn stream_name(path: &str) -> Option<(u32, Socket, Direction)> {
    let name = path
        .rsplit('/')
        .next()?
        .strip_prefix("conn")?
        .strip_suffix(".bin")?;
    let (connection, rest) = name.split_once('-')?;
    let (socket, direction) = rest.split_once('.')?;
    let socket = match socket {
        "data" => Socket::Data,
        "meta" => Socket::Meta,
        _ => return None,
    };
    let direction = match direction {
        "a-to-b" => Direction::AToB,
        "b-to-a" => Direction::BToA,
        _ => return None,
    };
    Some((connection.parse().ok()?, socket, direction))
}

/// Regular files of a tar archive: a 512-byte head (name at 0, size in octal at 124, kind at 156),
/// then the contents, filled up to 512 bytes.
fn untar(mut archive: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
    let mut files = Vec::new();
    while let Some((head, rest)) = archive.split_first_chunk::<512>() {
        if head[0] == 0 {
            return Ok(files);
        }
        let text = |range: std::ops::Range<usize>| {
            let field = &head[range];
            let end = field
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(field.len());
            String::from_utf8_lossy(&field[..end]).trim().to_owned()
        };
        let size = usize::from_str_radix(&text(124..136), 8)
            .map_err(|error| format!("tar: size of {}: {error}", text(0..100)))?;
        let padded = size.next_multiple_of(512);
        let Some(contents) = rest.get(..size).filter(|_| padded <= rest.len()) else {
            return Err(format!("tar: {} is cut", text(0..100)));
        };
        if matches!(head[156], b'0' | 0) {
            files.push((text(0..100), contents.to_vec()));
        }
        archive = &rest[padded..];
    }
    Err("tar: no end".to_owned())
}
