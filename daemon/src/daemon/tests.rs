//! Goal: the whole daemon without the engine's decisions: control socket, NBD, disks, peers, handlers, the end.
//! Method: `run_with` on a thread, a small engine behind it, and the real clients.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::control::messages::{Body, Call, Options, ResourceDefinition, StandAlone, WaitFor};
use crate::control::{ControlClient, WatchItem};
use crate::fake::FakeEngine;

const WAIT: Duration = Duration::from_secs(20);

struct Daemon {
    root: tempfile::TempDir,
    thread: Option<std::thread::JoinHandle<Result<(), DaemonError>>>,
}

impl Daemon {
    fn start(tcp: bool) -> Daemon {
        let root = tempfile::tempdir().unwrap();
        let options = DaemonOptions {
            root: root.path().to_owned(),
            log: LogTarget::Installed,
            nbd_tcp: tcp.then(|| "127.0.0.1:0".parse().unwrap()),
            ..DaemonOptions::default()
        };
        let thread = std::thread::spawn(move || {
            run_with(options, crate::resource_loop::spawn::<FakeEngine>)
        });
        let daemon = Daemon {
            root,
            thread: Some(thread),
        };
        until(|| ControlClient::connect_root(daemon.root.path()).is_ok());
        daemon
    }

    fn client(&self) -> ControlClient {
        ControlClient::connect_root(self.root.path()).unwrap()
    }

    fn places(&self) -> Places {
        Places::new(self.root.path())
    }

    fn definition(&self, name: &str, minor: u32) -> ResourceDefinition {
        let disk = self.root.path().join(format!("{name}.img"));
        std::fs::File::create(&disk)
            .unwrap()
            .set_len(8 << 20)
            .unwrap();
        serde_json::from_value(serde_json::json!({
            "name": name,
            "volumes": [{"number": 0, "minor": minor, "device": format!("/dev/drbd{minor}"), "disk": disk}],
        }))
        .unwrap()
    }

    fn ok(&self, call: Call) {
        let answer = self.client().command(call.clone(), Some(WAIT)).unwrap();
        assert!(answer.is_success(), "{call:?}: {answer:?}");
    }

    fn refused(&self, call: Call) -> crate::control::messages::CommandAnswer {
        let answer = self.client().command(call.clone(), Some(WAIT)).unwrap();
        assert!(!answer.is_success(), "{call:?}: {answer:?}");
        answer
    }

    fn up(&self, name: &str, minor: u32) {
        let definition = Box::new(self.definition(name, minor));
        self.ok(Call::Configure { definition });
        self.ok(Call::Attach {
            resource: name.to_owned(),
            volume: None,
        });
    }

    fn primary(&self, name: &str) {
        self.ok(Call::Primary {
            resource: name.to_owned(),
            volume: None,
            force: false,
        });
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if let Ok(mut client) = ControlClient::connect_root(self.root.path()) {
            let _ = client.command(Call::Shutdown, Some(WAIT));
        }
        let deadline = Instant::now() + WAIT;
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                assert!(std::thread::panicking(), "the daemon does not end");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let result = thread.join().unwrap();
        if !std::thread::panicking() {
            result.unwrap();
            assert!(!self.places().control_socket().exists());
        }
    }
}

fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn secondary(name: &str, wait_ms: u64) -> Call {
    Call::Secondary {
        resource: name.to_owned(),
        volume: None,
        wait_ms,
    }
}

/// A client that shares no code with the server: the `nbd` crate, by EXPORT_NAME.
fn nbd_client(path: &Path, export: &str) -> Result<impl Read + Write + Seek + use<>, String> {
    let mut stream = UnixStream::connect(path).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let export =
        nbd::client::handshake(&mut stream, export.as_bytes()).map_err(|e| e.to_string())?;
    Ok(nbd::client::NbdClient::new(stream, &export))
}

#[test]
fn a_primary_serves_its_volume_over_every_socket() {
    let daemon = Daemon::start(true);
    daemon.up("r0", 3);
    let volume_socket = daemon.places().nbd_volume_socket("r0", 0);
    assert!(
        nbd_client(&volume_socket, "").is_err(),
        "a Secondary must not serve"
    );
    daemon.primary("r0");
    {
        let mut disk = nbd_client(&volume_socket, "").unwrap();
        disk.write_all(&[7; 65536]).unwrap();
        disk.seek(SeekFrom::Start(4096)).unwrap();
        disk.flush().unwrap();
    }
    for export in ["r0", "r0/0", ""] {
        let mut disk = nbd_client(&daemon.places().nbd_socket(), export).unwrap();
        let mut back = [0; 65536 + 512];
        disk.read_exact(&mut back).unwrap();
        assert!(back[..65536].iter().all(|byte| *byte == 7) && back[65536..] == [0; 512]);
    }
    let uris = daemon.client().version().unwrap().nbd;
    let port = uris
        .iter()
        .find_map(|uri| uri.strip_prefix("nbd://"))
        .unwrap();
    let mut tcp = std::net::TcpStream::connect(port).unwrap();
    tcp.set_read_timeout(Some(WAIT)).unwrap();
    let export = nbd::client::handshake(&mut tcp, b"r0").unwrap();
    assert_eq!(export.size, 8 << 20);
    let proc = daemon.places().proc_file();
    until(|| {
        std::fs::read_to_string(&proc)
            .is_ok_and(|text| text.contains(" 3: cs:StandAlone ro:Primary"))
    });
}

#[test]
fn large_transfers_survive_being_cut_into_parts() {
    let daemon = Daemon::start(false);
    daemon.up("r0", 0);
    daemon.primary("r0");
    let mut disk = nbd_client(&daemon.places().nbd_socket(), "r0").unwrap();
    let pattern: Vec<u8> = (0..4 << 20_u32)
        .map(|n| (n % 251) as u8 ^ (n >> 12) as u8)
        .collect();
    disk.seek(SeekFrom::Start(512)).unwrap();
    disk.write_all(&pattern).unwrap();
    let mut back = vec![0; pattern.len()];
    disk.seek(SeekFrom::Start(512)).unwrap();
    disk.read_exact(&mut back).unwrap();
    assert!(back == pattern);
    drop(disk);
    let on_disk = std::fs::read(daemon.root.path().join("r0.img")).unwrap();
    assert!(on_disk[512..512 + pattern.len()] == pattern);
}

/// A client that asks for far more than the socket holds and reads nothing until it has asked for all.
#[test]
fn a_client_that_does_not_read_its_replies_is_served_when_it_does() {
    const COUNT: u64 = 256;
    const LENGTH: u32 = 512 << 10;
    let daemon = Daemon::start(false);
    daemon.up("r0", 0);
    daemon.primary("r0");
    let mut stream = UnixStream::connect(daemon.places().nbd_socket()).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.set_write_timeout(Some(WAIT)).unwrap();
    nbd::client::handshake(&mut stream, b"r0").unwrap();
    for cookie in 0..COUNT {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0; 4]);
        request.extend(cookie.to_be_bytes());
        request.extend((cookie % 8 * u64::from(LENGTH)).to_be_bytes());
        request.extend(LENGTH.to_be_bytes());
        stream.write_all(&request).unwrap();
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut data = vec![0; LENGTH as usize];
    while seen.len() < COUNT as usize {
        let mut head = [0; 16];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(head[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
        assert!(seen.insert(head[8..].to_vec()));
        stream.read_exact(&mut data).unwrap();
    }
}

#[test]
fn demotion_names_the_clients_that_hold_the_device_open() {
    let daemon = Daemon::start(false);
    daemon.up("r0", 0);
    daemon.primary("r0");
    let client = nbd_client(&daemon.places().nbd_socket(), "r0").unwrap();
    until(|| {
        let status = daemon.client().status(Some("r0")).unwrap().unwrap();
        !status.resources[0].volumes[0].clients.is_empty()
    });
    let refusal = daemon.refused(secondary("r0", 0));
    assert_eq!((refusal.number, refusal.exit), (-12, 11));
    let pid = format!("pid {}", std::process::id());
    assert!(
        refusal.info.iter().any(|line| line.contains(&pid)),
        "{refusal:?}"
    );
    let leaver = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(150));
        drop(client);
    });
    daemon.ok(secondary("r0", 10_000));
    leaver.join().unwrap();
    let error = nbd_client(&daemon.places().nbd_socket(), "r0").err();
    assert!(error.is_some());
}

#[test]
fn an_nbd_refusal_tells_the_state_and_what_to_type() {
    let daemon = Daemon::start(false);
    daemon.up("r0", 0);
    let mut stream = UnixStream::connect(daemon.places().nbd_socket()).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    // Fixed newstyle without zeroes; GO for r0 without wishes.
    let mut hello = 3_u32.to_be_bytes().to_vec();
    hello.extend(b"IHAVEOPT");
    hello.extend([0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0, 2]);
    hello.extend(b"r0");
    hello.extend([0, 0]);
    stream.write_all(&hello).unwrap();
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    let length = u32::from_be_bytes(head[16..].try_into().unwrap());
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains("Secondary") && text.contains("tandem adm primary r0"),
        "{text}"
    );
}

#[test]
fn configuration_is_checked_before_anything_changes() {
    let daemon = Daemon::start(false);
    daemon.up("r0", 0);
    let mut same_minor = daemon.definition("r1", 0);
    let call = |definition: &ResourceDefinition| Call::Configure {
        definition: Box::new(definition.clone()),
    };
    assert_eq!(daemon.refused(call(&same_minor)).number, 161);
    same_minor.volumes[0].minor = 1;
    same_minor.net = Options::from([("tls".to_owned(), "yes".to_owned())]);
    let refusal = daemon.refused(call(&same_minor));
    assert!(refusal.info[0].contains("tls"), "{refusal:?}");
    same_minor.net = Options::from([("tcp-cork".to_owned(), "no".to_owned())]);
    let accepted = daemon
        .client()
        .command(call(&same_minor), Some(WAIT))
        .unwrap();
    assert_eq!(accepted.info, ["net option tcp-cork no has no effect"]);
    let shown = daemon.client().definition("r1").unwrap().unwrap();
    assert_eq!(shown, same_minor);
    assert_eq!(
        daemon
            .refused(Call::Attach {
                resource: "r9".to_owned(),
                volume: None
            })
            .number,
        158
    );
    let volume = Some(7);
    assert_eq!(
        daemon
            .refused(Call::Attach {
                resource: "r0".to_owned(),
                volume
            })
            .number,
        127
    );
}

#[test]
fn down_forgets_a_resource_and_frees_its_disk() {
    let daemon = Daemon::start(false);
    for _ in 0..2 {
        daemon.up("r0", 0);
        daemon.primary("r0");
        daemon.ok(Call::Down {
            resource: "r0".to_owned(),
            force: false,
        });
        assert!(
            daemon
                .client()
                .status(None)
                .unwrap()
                .unwrap()
                .resources
                .is_empty()
        );
        assert!(!daemon.places().nbd_volume_socket("r0", 0).exists());
    }
    daemon.ok(Call::Down {
        resource: "r0".to_owned(),
        force: false,
    });
}

#[test]
fn two_nodes_connect_through_their_sockets() {
    let (one, two) = (Daemon::start(false), Daemon::start(false));
    let ports: Vec<u16> = (0..2)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
        .map(|listener| listener.local_addr().unwrap().port())
        .collect();
    for (daemon, mine, theirs) in [(&one, ports[0], ports[1]), (&two, ports[1], ports[0])] {
        let mut definition = daemon.definition("r0", 0);
        definition.connection = Some(
            serde_json::from_value(serde_json::json!({
                "my_name": "alpha",
                "peer_name": "bravo",
                "my_address": format!("127.0.0.1:{mine}"),
                "peer_address": format!("127.0.0.1:{theirs}"),
            }))
            .unwrap(),
        );
        daemon.ok(Call::Configure {
            definition: Box::new(definition),
        });
        daemon.ok(Call::Connect {
            resource: "r0".to_owned(),
            discard_my_data: false,
            tentative: false,
        });
    }
    for daemon in [&one, &two] {
        let until = WaitFor::Connected;
        daemon.ok(Call::Wait {
            resource: "r0".to_owned(),
            volume: None,
            until,
            stand_alone: StandAlone::Ends,
        });
        daemon.ok(Call::Disconnect {
            resource: "r0".to_owned(),
            force: false,
        });
    }
}

#[test]
fn a_wait_ends_at_its_deadline_with_exit_5() {
    let daemon = Daemon::start(false);
    let mut definition = daemon.definition("r0", 0);
    definition.connection = Some(
        serde_json::from_value(serde_json::json!({
            "my_name": "alpha",
            "peer_name": "bravo",
            "my_address": "127.0.0.1:0",
            "peer_address": "127.0.0.1:9",
        }))
        .unwrap(),
    );
    daemon.ok(Call::Configure {
        definition: Box::new(definition),
    });
    let wait = || Call::Wait {
        resource: "r0".to_owned(),
        volume: None,
        until: WaitFor::Connected,
        stand_alone: StandAlone::Ends,
    };
    let alone = daemon.refused(wait());
    assert_eq!((alone.exit, alone.text.as_str()), (5, "StandAlone"));
    daemon.ok(Call::Connect {
        resource: "r0".to_owned(),
        discard_my_data: false,
        tentative: false,
    });
    let answer = daemon
        .client()
        .command(wait(), Some(Duration::from_millis(100)))
        .unwrap();
    assert_eq!(answer.exit, 5);
}

#[test]
fn a_watch_tells_changes_and_handlers() {
    let daemon = Daemon::start(false);
    let mut definition = daemon.definition("r0", 0);
    definition.handlers = Options::from([("split-brain".to_owned(), "exit 3".to_owned())]);
    daemon.ok(Call::Configure {
        definition: Box::new(definition),
    });
    let mut watch = daemon.client().watch(None).unwrap();
    let mut next = |wanted: &dyn Fn(&WatchItem) -> bool| {
        let deadline = Instant::now() + WAIT;
        while Instant::now() < deadline {
            let item = watch.next(Some(WAIT)).unwrap();
            if wanted(&item) {
                return;
            }
        }
        panic!("not in time");
    };
    let disk = |item: &WatchItem, state: &str| match item {
        WatchItem::Status(status) => status
            .resources
            .iter()
            .any(|r| r.volumes.iter().any(|v| v.disk == state)),
        _ => false,
    };
    next(&|item| matches!(item, WatchItem::Status(_)));
    daemon.ok(Call::Attach {
        resource: "r0".to_owned(),
        volume: None,
    });
    next(&|item| disk(item, "UpToDate"));
    daemon.refused(Call::PauseSync {
        resource: "r0".to_owned(),
        volume: None,
    });
    next(&|item| matches!(item, WatchItem::Handler(report) if report.exit.is_none()));
    next(&|item| matches!(item, WatchItem::Handler(report) if report.exit == Some(3)));
    let manual = Call::RunHandler {
        resource: "r0".to_owned(),
        volume: None,
        handler: "split-brain".to_owned(),
    };
    assert_eq!(daemon.refused(manual).exit, 3);
}

#[test]
fn a_second_daemon_on_the_same_root_is_refused() {
    let daemon = Daemon::start(false);
    let options = DaemonOptions {
        root: daemon.root.path().to_owned(),
        log: LogTarget::Installed,
        ..DaemonOptions::default()
    };
    let error = run_with(options, crate::resource_loop::spawn::<FakeEngine>).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("pid {}", std::process::id())),
        "{error}"
    );
}

#[test]
fn the_end_lets_clients_go_and_takes_resources_down() {
    let daemon = Daemon::start(false);
    daemon.up("r0", 0);
    daemon.primary("r0");
    let mut disk = nbd_client(&daemon.places().nbd_socket(), "r0").unwrap();
    disk.write_all(&[1; 4096]).unwrap();
    let root = daemon.root.path().to_owned();
    let image = root.join("r0.img");
    daemon.ok(Call::Shutdown);
    until(|| !Places::new(&root).control_socket().exists());
    assert!(
        disk.write_all(&[2; 4096])
            .and_then(|()| disk.flush())
            .is_err()
    );
    let bytes = std::fs::read(image).unwrap();
    assert_eq!((bytes[0], bytes[4095]), (1, 1));
}

#[test]
fn only_the_owner_may_use_the_sockets() {
    use std::os::unix::fs::PermissionsExt;
    let daemon = Daemon::start(false);
    daemon.up("r0", 0);
    let places = daemon.places();
    for socket in [
        places.control_socket(),
        places.nbd_socket(),
        places.nbd_volume_socket("r0", 0),
    ] {
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", socket.display());
    }
}

#[test]
fn garbage_on_the_control_socket_is_answered_and_hurts_nobody() {
    let daemon = Daemon::start(false);
    daemon.up("r0", 0);
    let path = daemon.places().control_socket();
    let garbage = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..512),
        "[ -~]{0,200}".prop_map(String::into_bytes),
        "\\{\"id\":[0-9]{1,25},\"call\":\\{\"verb\":\"[a-z-]{1,12}\",\"resource\":\"[a-z0-9]{0,4}\"\\}\\}"
            .prop_map(String::into_bytes),
    ];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    runner
        .run(&garbage, |bytes| {
            // A sound request to end the daemon is not garbage.
            prop_assume!(!bytes.windows(8).any(|word| word == b"shutdown"));
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.set_read_timeout(Some(WAIT)).unwrap();
            // The daemon may hang up before it has read everything.
            let _ = stream
                .write_all(&bytes)
                .and_then(|()| stream.write_all(b"\n"));
            let _ = stream.shutdown(std::net::Shutdown::Write);
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let response: crate::control::messages::Response =
                    serde_json::from_str(&line).unwrap();
                prop_assert!(matches!(
                    response.body,
                    Body::Answer(_) | Body::Version(_) | Body::Status(_) | Body::Definition(_)
                ));
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(
        daemon
            .client()
            .status(None)
            .unwrap()
            .unwrap()
            .resources
            .len(),
        1
    );
}

fn last_answer(stream: UnixStream) -> String {
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_to_string(&mut answer).unwrap();
    answer
}

/// Sends a call and leaves its answer unread.
fn ask(stream: &mut UnixStream, call: &Call, deadline: Duration) {
    let deadline = u64::try_from(deadline.as_millis()).unwrap();
    let request = serde_json::json!({"id": 1, "deadline_ms": deadline, "call": call});
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
}

#[test]
fn control_connections_that_rest_make_room_for_others() {
    let daemon = Daemon::start(false);
    let socket = daemon.places().control_socket();
    // Some have asked once and stay, some have never said a word.
    let mut resting = Vec::new();
    for at in 0..64 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        if at % 2 == 0 {
            ask(&mut stream, &Call::Version, WAIT);
            BufReader::new(&stream)
                .read_line(&mut String::new())
                .unwrap();
        }
        resting.push(stream);
    }
    for _ in 0..3 {
        assert_eq!(daemon.refused(secondary("r0", 0)).number, 158);
    }
    // Those that had waited longest were told.
    assert!(last_answer(resting.remove(0)).contains("others needed the place"));
    // The others are served as before.
    let mut last = resting.pop().unwrap();
    ask(&mut last, &Call::Version, WAIT);
    let mut answer = String::new();
    BufReader::new(&last).read_line(&mut answer).unwrap();
    assert!(answer.contains("schema"), "{answer}");
}

#[test]
fn while_all_connections_are_busy_a_further_one_is_told_so() {
    let daemon = Daemon::start(false);
    daemon.up("r0", 0);
    let mut definition = daemon.definition("r1", 1);
    definition.connection = serde_json::from_value(serde_json::json!({
        "my_name": "alpha", "peer_name": "beta", "my_address": "127.0.0.1:0", "peer_address": "127.0.0.1:9",
    }))
    .unwrap();
    let definition = Box::new(definition);
    daemon.ok(Call::Configure { definition });
    daemon.ok(Call::Connect {
        resource: "r1".to_owned(),
        discard_my_data: false,
        tentative: false,
    });
    let wait = Call::Wait {
        resource: "r1".to_owned(),
        volume: None,
        until: WaitFor::Connected,
        stand_alone: StandAlone::Ends,
    };
    let socket = daemon.places().control_socket();
    let mut busy = Vec::new();
    for _ in 0..64 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        ask(&mut stream, &wait, WAIT);
        busy.push(stream);
    }
    let refused = daemon.refused(secondary("r0", 0));
    assert_eq!(refused.exit, 20);
    assert!(refused.text.contains("64 connections"), "{refused:?}");
    drop(busy.pop());
    until(|| daemon.client().version().is_ok());
}

#[test]
fn a_silent_control_connection_is_told_why_it_is_closed() {
    let daemon = Daemon::start(false);
    let silent = UnixStream::connect(daemon.places().control_socket()).unwrap();
    assert!(last_answer(silent).contains("no request within 10 s"));
}

#[test]
fn watches_leave_room_for_commands() {
    let daemon = Daemon::start(false);
    let mut watches = Vec::new();
    for _ in 0..70 {
        let mut stream = UnixStream::connect(daemon.places().control_socket()).unwrap();
        let request = serde_json::json!({"id": 1, "call": Call::Watch { resource: None }});
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(!line.contains("malformed"), "{line}");
        watches.push(stream);
    }
    assert!(daemon.client().version().is_ok());
}

#[test]
fn the_answer_to_a_malformed_request_arrives_though_more_follows() {
    let daemon = Daemon::start(false);
    let mut stream = UnixStream::connect(daemon.places().control_socket()).unwrap();
    stream.set_write_timeout(Some(WAIT)).unwrap();
    let rubbish = vec![b'x'; 1 << 20];
    stream.write_all(b"no request\n").unwrap();
    stream.write_all(&rubbish).unwrap();
    assert!(last_answer(stream).contains("malformed request"));
}

#[test]
fn silent_nbd_connections_keep_no_client_out() {
    let daemon = Daemon::start(false);
    daemon.up("r0", 3);
    daemon.primary("r0");
    let socket = daemon.places().nbd_socket();
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(UnixStream::connect(&socket).unwrap());
    }
    let begun = Instant::now();
    let mut disk = nbd_client(&socket, "r0").unwrap();
    disk.write_all(&[7; 4096]).unwrap();
    // Far less than the silent ones would be waited for.
    assert!(begun.elapsed() < Duration::from_secs(tandem_nbd_server::HANDSHAKE_SECONDS_MAX));
}

/// In transmission on `r0`, with the request head of a READ of `length` bytes sent `count` times and nothing read.
fn client_that_reads_nothing(daemon: &Daemon, count: u64, length: u32) -> UnixStream {
    let mut stream = UnixStream::connect(daemon.places().nbd_socket()).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.set_write_timeout(Some(WAIT)).unwrap();
    nbd::client::handshake(&mut stream, b"r0").unwrap();
    for cookie in 0..count {
        let header = tandem_nbd_server::wire::RequestHeader {
            flags: 0,
            command: tandem_nbd_server::wire::cmd::READ,
            cookie,
            offset: 0,
            length,
        };
        stream.write_all(&header.encode()).unwrap();
    }
    stream
}

fn say_goodbye(stream: &mut UnixStream) {
    let header = tandem_nbd_server::wire::RequestHeader {
        flags: 0,
        command: tandem_nbd_server::wire::cmd::DISC,
        cookie: 0,
        offset: 0,
        length: 0,
    };
    stream.write_all(&header.encode()).unwrap();
}

fn clients_of(daemon: &Daemon) -> usize {
    let status = daemon.client().status(Some("r0")).unwrap().unwrap();
    status.resources[0].volumes[0].clients.len()
}

#[test]
fn a_demotion_does_not_wait_for_a_client_that_left_without_reading_its_replies() {
    let daemon = Daemon::start(false);
    daemon.up("r0", 0);
    daemon.primary("r0");
    // Far more than a socket holds; it leaves politely and never reads.
    let mut greedy = client_that_reads_nothing(&daemon, 16, 1 << 20);
    say_goodbye(&mut greedy);
    let mut good = nbd_client(&daemon.places().nbd_socket(), "r0").unwrap();
    let mut other = nbd_client(&daemon.places().nbd_socket(), "r0").unwrap();
    good.write_all(&[1; 4096]).unwrap();
    other.read_exact(&mut [0; 4096]).unwrap();
    assert_eq!(clients_of(&daemon), 3);
    assert_eq!(daemon.refused(secondary("r0", 0)).number, -12);
    drop((good, other));
    until(|| clients_of(&daemon) == 1);
    let begun = Instant::now();
    daemon.ok(secondary("r0", 15_000));
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop(greedy);
}

#[test]
fn the_end_waits_for_readers_but_not_for_a_client_that_never_reads() {
    let daemon = Daemon::start(false);
    daemon.up("r0", 0);
    daemon.primary("r0");
    let deaf = client_that_reads_nothing(&daemon, 16, 1 << 20);
    let mut reader = client_that_reads_nothing(&daemon, 4, 1 << 20);
    until(|| clients_of(&daemon) == 2);
    // All of its requests are in: the first reply has begun.
    let mut head = [0; 16];
    reader.read_exact(&mut head).unwrap();
    let control = daemon.client();
    let begun = Instant::now();
    daemon.ok(Call::Shutdown);
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert!(rest.len() >= 1 << 20, "a reply that had begun is finished");
    let socket = daemon.places().control_socket();
    until(|| !socket.exists());
    assert!(begun.elapsed() < Duration::from_secs(15));
    drop((deaf, control));
}

#[test]
fn a_handshake_that_does_not_end_is_ended() {
    let daemon = Daemon::start(false);
    daemon.up("r0", 0);
    let mut stream = UnixStream::connect(daemon.places().nbd_socket()).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    // Flags, and then the beginning of an option: it is not silent, so it is not dropped for others.
    stream.write_all(&[0, 0, 0, 3]).unwrap();
    stream.write_all(b"IHAV").unwrap();
    let begun = Instant::now();
    let mut greeting = Vec::new();
    stream.read_to_end(&mut greeting).unwrap();
    assert_eq!(greeting.len(), 18);
    let seconds = begun.elapsed().as_secs_f32();
    let deadline = tandem_nbd_server::HANDSHAKE_SECONDS_MAX as f32;
    assert!(
        (deadline - 1.0..deadline + 8.0).contains(&seconds),
        "{seconds}"
    );
}

/// A client that asks for far more at once than a session takes: no request is forgotten while others are answered at once.
#[test]
fn inquiries_beyond_the_limits_of_a_session_are_all_answered() {
    const COUNT: u64 = 20_000;
    let daemon = Daemon::start(false);
    daemon.up("r0", 0);
    daemon.primary("r0");
    let mut stream = UnixStream::connect(daemon.places().nbd_socket()).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.set_write_timeout(Some(WAIT)).unwrap();
    nbd::client::handshake(&mut stream, b"r0").unwrap();
    let mut requests = Vec::new();
    for cookie in 0..COUNT {
        let header = tandem_nbd_server::wire::RequestHeader {
            flags: 0,
            command: tandem_nbd_server::wire::cmd::CACHE,
            cookie,
            offset: 0,
            length: 8 << 20,
        };
        requests.extend(header.encode());
    }
    let begun = Instant::now();
    stream.write_all(&requests).unwrap();
    let mut cookies = std::collections::BTreeSet::new();
    for _ in 0..COUNT {
        // What wakes the loop now and then for other reasons is no way to be served.
        assert!(begun.elapsed() < WAIT, "{} answers", cookies.len());
        let mut head = [0; 16];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(head[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
        cookies.insert(head[8..].to_vec());
    }
    assert_eq!(cookies.len() as u64, COUNT);
}
