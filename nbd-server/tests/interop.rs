//! Clients that nobody here wrote: libnbd (nbdinfo, nbdcopy, nbdkit's nbd plugin), qemu, fio, and the `nbd` crate as a
//! legacy client. Each test serves on a Unix socket (or loopback) of its own; every process has a deadline.
//!
//! A client that is not installed is named on standard error and its test passes, unless
//! `TANDEM_TEST_REQUIRE_TOOLS` is set in the environment: then it fails. Debian packages: `libnbd-bin nbdkit
//! qemu-utils fio`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tandem_nbd_server::device::{Exports, FileDevice, MemoryDevice, plain_info, serve};
use tandem_nbd_server::{Access, ExportInfo};
use tempfile::TempDir;

/// Seconds that any process of a test may run.
const PROCESS_SECONDS_MAX: u64 = 60;

/// Time that any socket of a test may block.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(30);

struct Server {
    dir: TempDir,
    file: PathBuf,
}

impl Server {
    /// Serves `disk` (a file of `size` bytes), and `rom` (read-only, the same file) beside it.
    fn start(size: u64) -> Server {
        let mut rom = plain_info("rom", size, Access::ReadOnly);
        rom.description = "the disk, to look at".into();
        Server::with(plain_info("disk", size, Access::ReadWrite), Some(rom))
    }

    fn with(disk: ExportInfo, rom: Option<ExportInfo>) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk.img");
        let open = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&file)
            .unwrap();
        open.set_len(disk.size).unwrap();
        let device = Arc::new(FileDevice::new(open));
        let mut exports = Exports::default();
        exports.add(disk, device.clone());
        if let Some(rom) = rom {
            exports.add(rom, device);
        }
        let listener = UnixListener::bind(dir.path().join("nbd.sock")).unwrap();
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let exports = exports.clone();
                thread::spawn(move || serve(stream, &exports));
            }
        });
        Server { dir, file }
    }

    fn socket(&self) -> String {
        self.dir.path().join("nbd.sock").display().to_string()
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Fills the disk behind the clients' back.
    fn with_pattern(&self) {
        let length = std::fs::metadata(&self.file).unwrap().len() as usize;
        std::fs::write(&self.file, pattern(length)).unwrap();
    }

    fn contents(&self) -> Vec<u8> {
        std::fs::read(&self.file).unwrap()
    }
}

/// What a process said, and whether it succeeded.
#[derive(Debug)]
struct Outcome {
    success: bool,
    stdout: String,
    stderr: String,
}

/// Runs a client to its end, or kills it at the deadline. `None`: it is not installed.
fn run(dir: &Path, program: &str, args: &[&str]) -> Option<Outcome> {
    let (out, err) = (
        tempfile::NamedTempFile::new_in(dir),
        tempfile::NamedTempFile::new_in(dir),
    );
    let (out, err) = (out.unwrap(), err.unwrap());
    let spawned = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(out.reopen().unwrap())
        .stderr(err.reopen().unwrap())
        .spawn();
    let Ok(mut child) = spawned else {
        let required = std::env::var_os("TANDEM_TEST_REQUIRE_TOOLS").is_some();
        assert!(!required, "{program} is not installed");
        eprintln!("NOT TESTED: {program} is not installed");
        return None;
    };
    let success = wait(&mut child);
    let read = |file: &tempfile::NamedTempFile| std::fs::read_to_string(file.path()).unwrap();
    let outcome = Outcome {
        success: success == Some(true),
        stdout: read(&out),
        stderr: read(&err),
    };
    assert!(
        success.is_some(),
        "{program} {args:?} was killed at its deadline: {outcome:?}"
    );
    Some(outcome)
}

fn wait(child: &mut Child) -> Option<bool> {
    let deadline = Instant::now() + Duration::from_secs(PROCESS_SECONDS_MAX);
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.success());
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

/// As `run`, and the client must succeed.
fn succeed(dir: &Path, program: &str, args: &[&str]) -> Option<Outcome> {
    let outcome = run(dir, program, args)?;
    assert!(outcome.success, "{program} {args:?}: {outcome:?}");
    Some(outcome)
}

/// Bytes in which no two 512-byte sectors are alike.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32 / 4)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect()
}

#[test]
fn nbdinfo_sees_size_flags_and_description() {
    let server = Server::start(8 << 20);
    let dir = server.dir.path();
    let Some(info) = succeed(dir, "nbdinfo", &["--json", &server.uri("disk")]) else {
        return;
    };
    for fact in [
        "\"export-name\": \"disk\"",
        "\"export-size\": 8388608",
        "\"structured\": true",
        "\"is_read_only\": false",
        "\"can_fua\": true",
        "\"can_flush\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"can_multi_conn\": true",
        "\"can_df\": true",
        "\"can_cache\": true",
        "\"can_fast_zero\": false",
        "base:allocation",
        "\"block_size_minimum\": 512",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
    ] {
        assert!(
            info.stdout.contains(fact),
            "{fact} is not in {}",
            info.stdout
        );
    }
    let rom = succeed(dir, "nbdinfo", &["--json", &server.uri("rom")]).unwrap();
    assert!(
        rom.stdout.contains("\"is_read_only\": true"),
        "{}",
        rom.stdout
    );
    assert!(
        rom.stdout.contains("the disk, to look at"),
        "{}",
        rom.stdout
    );
}

#[test]
fn nbdinfo_lists_every_export_and_reports_an_unknown_one() {
    let server = Server::start(8 << 20);
    let dir = server.dir.path();
    let Some(list) = succeed(dir, "nbdinfo", &["--list", &server.uri("")]) else {
        return;
    };
    assert!(list.stdout.contains("export=\"disk\"") && list.stdout.contains("export=\"rom\""));
    let unknown = run(dir, "nbdinfo", &[&server.uri("nowhere")]).unwrap();
    assert!(!unknown.success);
    assert!(unknown.stderr.contains("nowhere"), "{}", unknown.stderr);
}

#[test]
fn nbdcopy_brings_every_byte_there_and_back_over_four_connections() {
    let server = Server::start(24 << 20);
    let dir = server.dir.path();
    let source = pattern(24 << 20);
    std::fs::write(server.path("source"), &source).unwrap();
    let uri = server.uri("disk");
    let args = ["--connections=4", "--flush", "source", &uri];
    let Some(_) = succeed(dir, "nbdcopy", &args) else {
        return;
    };
    assert!(server.contents() == source);
    succeed(dir, "nbdcopy", &["--connections=4", &uri, "back"]).unwrap();
    assert!(std::fs::read(server.path("back")).unwrap() == source);
}

#[test]
fn nbdcopy_writes_holes_as_zeroes() {
    let server = Server::start(16 << 20);
    let dir = server.dir.path();
    server.with_pattern();
    let sparse = File::create_new(server.path("sparse")).unwrap();
    sparse.set_len(16 << 20).unwrap();
    sparse.write_all_at(&[7; 4096], 8 << 20).unwrap();
    let Some(_) = succeed(dir, "nbdcopy", &["sparse", &server.uri("disk")]) else {
        return;
    };
    assert!(server.contents() == std::fs::read(server.path("sparse")).unwrap());
}

#[test]
fn qemu_io_writes_reads_discards_and_zeroes() {
    let server = Server::start(16 << 20);
    let commands = [
        "write -P 1 0 1M",
        "write -f -P 2 1M 64k",
        "flush",
        "read -P 1 0 1M",
        "read -P 2 1M 64k",
        "discard 2M 1M",
        "write -z 512k 256k",
        "write -zu 768k 128k",
        "write -z -f 1M 32k",
        "read -P 1 0 512k",
        "read -P 0 512k 384k",
        "read -P 0 1M 32k",
        "read -P 2 1056k 32k",
        "write -P 3 5000 1234",
        "read -P 3 5000 1234",
        "read -P 1 0 5000",
        "aio_write -P 4 4M 8M",
        "aio_write -P 5 12M 20k",
        "aio_flush",
        "read -P 4 4M 8M",
        "read -P 5 12M 20k",
    ];
    let mut args = vec!["-f", "raw"];
    commands
        .iter()
        .for_each(|command| args.extend(["-c", command]));
    let uri = server.uri("disk");
    args.push(&uri);
    let Some(outcome) = succeed(server.dir.path(), "qemu-io", &args) else {
        return;
    };
    assert!(!outcome.stdout.contains("failed"), "{}", outcome.stdout);
    let bytes = server.contents();
    assert!(bytes[4 << 20..12 << 20].iter().all(|byte| *byte == 4));
}

#[test]
fn qemu_io_gets_errors_for_writes_to_a_read_only_export() {
    let server = Server::start(1 << 20);
    let uri = server.uri("rom");
    let args = ["-f", "raw", "-c", "write 0 4k", &uri];
    let Some(outcome) = run(server.dir.path(), "qemu-io", &args) else {
        return;
    };
    assert!(!outcome.success);
    let read = ["-r", "-f", "raw", "-c", "read -P 0 0 4k", &uri];
    succeed(server.dir.path(), "qemu-io", &read).unwrap();
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let server = Server::start(16 << 20);
    let dir = server.dir.path();
    std::fs::write(server.path("source"), pattern(16 << 20)).unwrap();
    let uri = server.uri("disk");
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", "source", &uri];
    let Some(_) = succeed(dir, "qemu-img", &convert) else {
        return;
    };
    let compare = ["compare", "-f", "raw", "-F", "raw", "source", &uri];
    let same = succeed(dir, "qemu-img", &compare).unwrap();
    assert!(same.stdout.contains("identical"), "{}", same.stdout);
    let map = succeed(
        dir,
        "qemu-img",
        &["map", "--output=json", "-f", "raw", &uri],
    )
    .unwrap();
    assert!(
        map.stdout.contains("\"length\": 16777216"),
        "{}",
        map.stdout
    );
    let info = succeed(dir, "qemu-img", &["info", "-f", "raw", &uri]).unwrap();
    assert!(info.stdout.contains("16 MiB"), "{}", info.stdout);
}

#[test]
fn qemu_nbd_lists_the_exports() {
    let server = Server::start(16 << 20);
    let args = ["--list", "--socket", &server.socket()];
    let Some(list) = succeed(server.dir.path(), "qemu-nbd", &args) else {
        return;
    };
    for fact in [
        "exports available: 2",
        "export: 'disk'",
        "export: 'rom'",
        "min block: 512",
    ] {
        assert!(
            list.stdout.contains(fact),
            "{fact} is not in {}",
            list.stdout
        );
    }
}

#[test]
fn nbdkit_stands_in_between_as_a_proxy() {
    let server = Server::start(4 << 20);
    let uri = format!("uri={}", server.uri("disk"));
    let copy = "nbdcopy \"$uri\" - | sha256sum; nbdinfo --size \"$uri\"";
    server.with_pattern();
    let args = [
        "-U",
        "-",
        "--foreground",
        "nbd",
        &uri,
        "shared=true",
        "--run",
        copy,
    ];
    let Some(outcome) = succeed(server.dir.path(), "nbdkit", &args) else {
        return;
    };
    assert!(outcome.stdout.contains("4194304"), "{outcome:?}");
    let local = succeed(server.dir.path(), "sha256sum", &["disk.img"]).unwrap();
    let (theirs, ours) = (outcome.stdout.get(..64), local.stdout.get(..64));
    assert!(ours.is_some() && ours == theirs, "{outcome:?}");
}

#[test]
fn fio_verifies_what_it_wrote_at_random() {
    let server = Server::start(16 << 20);
    let uri = format!("--uri={}", server.uri("disk"));
    let args = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randrw",
        "--bssplit=4k/60:64k/30:512/10",
        "--iodepth=16",
        "--size=12m",
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
    ];
    let Some(outcome) = run(server.dir.path(), "fio", &args) else {
        return;
    };
    if outcome.stderr.contains("engine nbd not loadable") {
        eprintln!("NOT TESTED: this fio has no nbd engine");
        return;
    }
    assert!(outcome.success, "{outcome:?}");
    assert!(outcome.stdout.contains("err= 0"), "{}", outcome.stdout);
}

#[test]
fn the_nbd_crate_speaks_the_legacy_handshake_over_tcp() {
    let mut exports = Exports::default();
    let info = plain_info("disk", 1 << 20, Access::ReadWrite);
    exports.add(info, Arc::new(MemoryDevice::new(1 << 20)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        serve(stream, &exports)
    });
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOCKET_TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(SOCKET_TIMEOUT)).unwrap();
    let export = nbd::client::handshake(&mut stream, b"disk").unwrap();
    assert_eq!(export.size, 1 << 20);
    assert!(export.send_flush && export.send_trim && !export.readonly);
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    let data = pattern(300_000 / 4096 * 4096);
    client.seek(SeekFrom::Start(4096)).unwrap();
    client.write_all(&data).unwrap();
    client.flush().unwrap();
    client.seek(SeekFrom::Start(4096)).unwrap();
    let mut back = vec![0; data.len()];
    client.read_exact(&mut back).unwrap();
    assert!(back == data);
}

#[test]
fn a_stopping_server_answers_eshutdown_and_lets_the_client_disconnect() {
    let mut exports = Exports::default();
    let info = plain_info("disk", 1 << 20, Access::ReadWrite);
    exports.add(info, Arc::new(MemoryDevice::new(1 << 20)));
    exports.stop();
    let (mut client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    client.set_read_timeout(Some(SOCKET_TIMEOUT)).unwrap();
    let serving = thread::spawn(move || serve(server, &exports));
    let mut greeting = [0; 18];
    client.read_exact(&mut greeting).unwrap();
    client.write_all(&3u32.to_be_bytes()).unwrap();
    client.write_all(b"IHAVEOPT\0\0\0\x03\0\0\0\0").unwrap();
    let mut reply = [0; 20];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply[12..16], 0x8000_0007u32.to_be_bytes());
    client.write_all(b"IHAVEOPT\0\0\0\x02\0\0\0\0").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(
        serving.join().unwrap().unwrap(),
        tandem_nbd_server::End::Aborted
    );
}
