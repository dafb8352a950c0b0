//! Goal: daemon and engine together keep what clients wrote. Method: `run` on threads, files as disks, the `nbd` crate as client.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tandem_daemon::control::ControlClient;
use tandem_daemon::control::messages::{
    Call, CommandAnswer, ResourceDefinition, StandAlone, VolumeReport, WaitFor,
};
use tandem_daemon::places::Places;
use tandem_daemon::{DaemonError, DaemonOptions, LogTarget};
use tandem_metadata::{AlGeometry, ByteLen, Layout, Placement, Step};

const WAIT: Duration = Duration::from_secs(30);
const DISK_BYTES: u64 = 64 << 20;

struct Node {
    root: PathBuf,
    thread: Option<std::thread::JoinHandle<Result<(), DaemonError>>>,
}

impl Node {
    fn start(root: &Path) -> Node {
        std::fs::create_dir_all(root).unwrap();
        let options = DaemonOptions {
            root: root.to_owned(),
            log: LogTarget::File(root.join("log")),
            log_filter: Some("debug".to_owned()),
            ..DaemonOptions::default()
        };
        let thread = std::thread::spawn(move || tandem_daemon::run(options));
        let node = Node {
            root: root.to_owned(),
            thread: Some(thread),
        };
        let deadline = Instant::now() + WAIT;
        while ControlClient::connect_root(root).is_err() {
            assert!(Instant::now() < deadline, "the daemon does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        node
    }

    fn call(&self, call: Call) -> CommandAnswer {
        let mut client = ControlClient::connect_root(&self.root).unwrap();
        client.command(call, Some(WAIT)).unwrap()
    }

    fn ok(&self, call: Call) {
        let answer = self.call(call.clone());
        assert!(answer.is_success(), "{call:?}: {answer:?}\n{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    fn disk(&self) -> PathBuf {
        self.root.join("disk.img")
    }

    fn create_md(&self) {
        let file = std::fs::File::create(self.disk()).unwrap();
        file.set_len(DISK_BYTES).unwrap();
        let layout = Layout::new(
            Placement::Internal,
            ByteLen(DISK_BYTES),
            AlGeometry::new(1, 8).unwrap(),
        )
        .unwrap();
        for step in tandem_metadata::create::create_md(&layout, 1 << 20).unwrap() {
            match step {
                Step::Write(write) => {
                    let mut bytes = vec![0; usize::try_from(write.len().0).unwrap()];
                    write.fill(0, &mut bytes);
                    file.write_all_at(&bytes, write.offset.0).unwrap();
                }
                Step::Flush => file.sync_all().unwrap(),
            }
        }
    }

    fn up(&self, link: Option<(u16, u16)>) {
        let mut definition: ResourceDefinition = serde_json::from_value(serde_json::json!({
            "name": "r0",
            "volumes": [{"number": 0, "minor": 0, "device": "/dev/drbd0", "disk": self.disk()}],
        }))
        .unwrap();
        definition.connection = link.map(|(mine, theirs)| {
            serde_json::from_value(serde_json::json!({
                "my_name": "alpha",
                "peer_name": "bravo",
                "my_address": format!("127.0.0.1:{mine}"),
                "peer_address": format!("127.0.0.1:{theirs}"),
            }))
            .unwrap()
        });
        self.ok(Call::Configure {
            definition: Box::new(definition),
        });
        self.ok(Call::Attach {
            resource: "r0".to_owned(),
            volume: None,
        });
        if link.is_some() {
            let resource = "r0".to_owned();
            self.ok(Call::Connect {
                resource,
                discard_my_data: false,
                tentative: false,
            });
        }
    }

    fn primary(&self, force: bool) {
        self.ok(Call::Primary {
            resource: "r0".to_owned(),
            volume: None,
            force,
        });
    }

    fn secondary(&self) {
        self.ok(Call::Secondary {
            resource: "r0".to_owned(),
            volume: None,
            wait_ms: 5000,
        });
    }

    fn down(&self) {
        self.ok(Call::Down {
            resource: "r0".to_owned(),
            force: false,
        });
    }

    fn volume(&self) -> VolumeReport {
        let mut client = ControlClient::connect_root(&self.root).unwrap();
        let status = client.status(Some("r0")).unwrap().unwrap();
        status.resources[0].volumes[0].clone()
    }

    fn until(&self, what: &str, condition: impl Fn(&VolumeReport) -> bool) {
        let deadline = Instant::now() + WAIT;
        loop {
            let volume = self.volume();
            if condition(&volume) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: {volume:#?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn nbd(&self) -> impl Read + Write + Seek + use<> {
        let path = Places::new(&self.root).nbd_socket();
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let export = nbd::client::handshake(&mut stream, b"r0").unwrap();
        nbd::client::NbdClient::new(stream, &export)
    }

    fn check(&self, offset: u64, expected: &[u8]) {
        let mut disk = self.nbd();
        let mut back = vec![0; expected.len()];
        disk.seek(SeekFrom::Start(offset)).unwrap();
        disk.read_exact(&mut back).unwrap();
        assert!(back == expected);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Ok(mut client) = ControlClient::connect_root(&self.root) {
            let _ = client.command(Call::Shutdown, Some(WAIT));
        }
        if let Some(thread) = self.thread.take() {
            let deadline = Instant::now() + WAIT;
            while !thread.is_finished() {
                if Instant::now() >= deadline {
                    assert!(
                        std::thread::panicking(),
                        "the daemon does not end\n{}",
                        self.log()
                    );
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            let result = thread.join();
            if !std::thread::panicking() {
                result.unwrap().unwrap();
            }
        }
    }
}

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|n| (n as u8).wrapping_mul(31) ^ (n >> 8) as u8 ^ seed)
        .collect()
}

#[test]
fn a_single_node_keeps_its_data_over_down_and_up() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(&dir.path().join("alpha"));
    node.create_md();
    node.up(None);
    node.primary(true);
    let data = pattern(1, 3 << 20);
    {
        let mut disk = node.nbd();
        disk.seek(SeekFrom::Start(4096 + 512)).unwrap();
        disk.write_all(&data).unwrap();
        disk.flush().unwrap();
    }
    node.check(4096 + 512, &data);
    node.secondary();
    node.down();
    node.up(None);
    node.primary(false);
    node.check(4096 + 512, &data);
}

fn ports() -> (u16, u16) {
    let hold = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (one, two) = (hold(), hold());
    (
        one.local_addr().unwrap().port(),
        two.local_addr().unwrap().port(),
    )
}

#[test]
fn a_pair_replicates_and_fails_over() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, bravo) = (
        Node::start(&dir.path().join("alpha")),
        Node::start(&dir.path().join("bravo")),
    );
    let (one, two) = ports();
    for (node, mine, theirs) in [(&alpha, one, two), (&bravo, two, one)] {
        node.create_md();
        node.up(Some((mine, theirs)));
    }
    for node in [&alpha, &bravo] {
        let until = WaitFor::Connected;
        let answer = node.call(Call::Wait {
            resource: "r0".to_owned(),
            volume: None,
            until,
            stand_alone: StandAlone::Ends,
        });
        assert!(
            answer.is_success(),
            "{answer:?}\n{}\n{}",
            alpha.log(),
            bravo.log()
        );
    }
    let fresh = Call::NewCurrentUuid {
        resource: "r0".to_owned(),
        volume: None,
        clear_bitmap: true,
    };
    alpha.ok(fresh);
    for node in [&alpha, &bravo] {
        node.until("both UpToDate", |v| {
            v.disk == "UpToDate" && v.peer_disk == "UpToDate"
        });
    }
    alpha.primary(false);
    let data = pattern(2, 2 << 20);
    {
        let mut disk = alpha.nbd();
        disk.write_all(&data).unwrap();
        disk.flush().unwrap();
    }
    alpha.secondary();
    bravo.until("the peer is Secondary", |v| v.peer_role == "Secondary");
    bravo.primary(false);
    bravo.check(0, &data);
    bravo.secondary();
    for node in [&alpha, &bravo] {
        node.down();
    }
    let disks = [alpha.disk(), bravo.disk()].map(|path| std::fs::read(path).unwrap());
    assert!(disks[0][..data.len()] == data && disks[1][..data.len()] == data);
}

#[test]
fn a_returning_peer_is_resynced() {
    let dir = tempfile::tempdir().unwrap();
    let (alpha, bravo) = (
        Node::start(&dir.path().join("alpha")),
        Node::start(&dir.path().join("bravo")),
    );
    let (one, two) = ports();
    for (node, mine, theirs) in [(&alpha, one, two), (&bravo, two, one)] {
        node.create_md();
        node.up(Some((mine, theirs)));
    }
    alpha.until("connected", |v| v.connection == "Connected");
    alpha.primary(true);
    let synced = |v: &VolumeReport| {
        v.connection == "Connected" && v.disk == "UpToDate" && v.peer_disk == "UpToDate"
    };
    for node in [&alpha, &bravo] {
        node.until("the first sync", synced);
    }
    bravo.down();
    alpha.until("alone", |v| v.connection == "WFConnection");
    let data = pattern(3, 5 << 20);
    {
        let mut disk = alpha.nbd();
        disk.seek(SeekFrom::Start(8 << 20)).unwrap();
        disk.write_all(&data).unwrap();
        disk.flush().unwrap();
    }
    bravo.up(Some((two, one)));
    for node in [&alpha, &bravo] {
        node.until("the second sync", synced);
    }
    alpha.secondary();
    bravo.until("the peer is Secondary", |v| v.peer_role == "Secondary");
    bravo.primary(false);
    bravo.check(8 << 20, &data);
}
