//! What arrives on a node's sockets without being asked for, peers that are configured otherwise, and slow or stuck links.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use tandem_tests::e2e::client::{Client, Fua};
use tandem_tests::e2e::node::{Node, STATE_LIMIT, Settings, net};
use tandem_tests::e2e::pair::{CLIENT_LIMIT, LinkKind, Pair};
use tandem_tests::e2e::proxy::connect_from;
use tandem_tests::e2e::record::{Record, pattern};
use tandem_tests::e2e::{address, wait};

/// How long a stranger waits for a node to hang up.
const STRANGER_LIMIT: Duration = Duration::from_secs(5);

/// What no peer would send first: rubbish, silence, a header that promises too much, a packet cut off, a packet of another time.
fn rubbish() -> Vec<Vec<u8>> {
    let header80 = |command: u16, length: u16| {
        let mut bytes = 0x8374_0267u32.to_be_bytes().to_vec();
        bytes.extend(command.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    };
    let header95 = |command: u16, length: u32| {
        let mut bytes = 0x835au16.to_be_bytes().to_vec();
        bytes.extend(command.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    };
    let mut truncated = header80(0xfffe, 80);
    truncated.extend([0; 11]);
    vec![
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        vec![0; 64 << 10],
        Vec::new(),
        vec![0x83],
        truncated,
        header80(0xfffe, 0xffff),
        header95(0, u32::MAX),
        header95(0, 1 << 20),
        header80(0x7777, 8),
        [header80(0xfff1, 0), vec![0xee; 4096]].concat(),
        [header80(0xfff2, 0), header80(0x00, 0x20)].concat(),
        pattern(77, 20_000),
    ]
}

/// Throws everything at `node`'s replication port, as a stranger and as somebody at the peer's address. A node that does not listen,
/// refuses or hangs up is right.
fn throw_rubbish_at(own: std::net::SocketAddr, peer: std::net::SocketAddr) {
    let stranger = address::fresh();
    let mut open = Vec::new();
    for (number, bytes) in rubbish().into_iter().enumerate() {
        let from = if number % 2 == 0 {
            peer.ip()
        } else {
            stranger.ip()
        };
        for from in [from, stranger.ip()] {
            if let Ok(mut stream) = connect_from(from, own) {
                stream.set_write_timeout(Some(STRANGER_LIMIT)).unwrap();
                // The node may hang up at any byte.
                stream.write_all(&bytes).ok();
                open.push(stream);
            }
        }
    }
    // The last ones stay open and silent for a while, the others are closed in the middle of things.
    open.truncate(4);
    std::thread::sleep(Duration::from_millis(200));
}

fn node_works(pair: &Pair, record: &mut Record, seed: u32) {
    let data = pattern(seed, 32 << 10);
    let mut client = pair.client(&pair.alpha);
    let offset = u64::from(seed) * (64 << 10);
    client.write(offset, &data, Fua::Yes).unwrap();
    record.write(offset, &data);
    assert!(
        client.read(offset, 32 << 10).unwrap() == data,
        "{}",
        pair.logs()
    );
    client.disconnect().unwrap();
}

#[test]
fn rubbish_on_the_replication_port_does_not_disturb_an_established_connection() {
    let mut pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut record = pair.record();
    let sent = pair.alpha.settled_counter(0, "ns");
    throw_rubbish_at(pair.alpha_addresses.0, pair.alpha_addresses.1);
    throw_rubbish_at(pair.bravo_addresses.0, pair.bravo_addresses.1);
    for node in [&pair.alpha, &pair.bravo] {
        assert_eq!(node.word("cstate"), "Connected", "{}", pair.logs());
    }
    node_works(&pair, &mut record, 1);
    let now = pair.alpha.settled_counter(0, "ns");
    assert!(
        now - sent <= 64,
        "the connection was lost and resynced: {sent} to {now} KiB\n{}",
        pair.logs()
    );
    assert!(
        pair.alpha.is_alive() && pair.bravo.is_alive(),
        "{}",
        pair.logs()
    );
    pair.down_and_compare(&record);
}

#[test]
fn rubbish_on_the_replication_port_does_not_keep_the_peer_away() {
    let mut pair = Pair::new(&Settings::default(), LinkKind::Direct);
    pair.alpha.must(&["up", "r0"]);
    pair.alpha.wait_word("cstate", &["WFConnection"]);
    throw_rubbish_at(pair.alpha_addresses.0, pair.alpha_addresses.1);
    assert!(pair.alpha.is_alive(), "{}", pair.logs());
    let cstate = pair.alpha.word("cstate");
    assert_ne!(
        cstate,
        "StandAlone",
        "rubbish must not stop a node\n{}",
        pair.logs()
    );
    pair.bravo.must(&["up", "r0"]);
    for node in [&pair.alpha, &pair.bravo] {
        node.wait_state("Connected", "Inconsistent/Inconsistent");
    }
    pair.alpha.must(&["primary", "--force", "r0"]);
    pair.wait_synced();
}

/// Sends bytes to a Unix socket and reads what comes until the other side hangs up or the time is over.
fn poke(socket: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    stream.write_all(bytes).ok();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length) = stream.read(&mut buffer) {
        if length == 0 {
            break;
        }
        answer.extend_from_slice(&buffer[..length]);
    }
    answer
}

#[test]
fn rubbish_on_the_nbd_sockets_does_not_disturb_other_clients() {
    let mut pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut record = pair.record();
    let mut good = pair.client(&pair.alpha);
    let option = |number: u32, length: u32| {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        bytes.extend(b"IHAVEOPT");
        bytes.extend(number.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    };
    let go = {
        let mut bytes = option(7, 10);
        bytes.extend(4u32.to_be_bytes());
        bytes.extend(b"r0/0");
        bytes.extend(0u16.to_be_bytes());
        bytes
    };
    let request = |kind: u16, offset: u64, length: u32| {
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend(0u16.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(77u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    };
    let cases = [
        vec![0xff; 10_000],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        Vec::new(),
        option(7, u32::MAX),
        option(9999, 5),
        [go.clone(), vec![0xee; 5000]].concat(),
        [go.clone(), request(1, 0, u32::MAX)].concat(),
        [go.clone(), request(1, 4096, 4096), vec![1; 100]].concat(),
        [go.clone(), request(0, u64::MAX, u32::MAX)].concat(),
        [go.clone(), request(4711, 0, 512)].concat(),
    ];
    for socket in [
        pair.alpha.socket(),
        pair.alpha.root.join("run/tandem/nbd/r0-0.sock"),
    ] {
        for case in &cases {
            poke(&socket, case);
        }
    }
    // A write that was cut off in the middle was not done.
    assert_eq!(
        good.read(4096, 4096).unwrap(),
        vec![0; 4096],
        "{}",
        pair.logs()
    );
    good.write(0, &pattern(1, 4096), Fua::Yes).unwrap();
    record.write(0, &pattern(1, 4096));
    good.disconnect().unwrap();
    assert!(pair.alpha.is_alive(), "{}", pair.logs());
    node_works(&pair, &mut record, 2);
    pair.down_and_compare(&record);
}

#[test]
fn rubbish_on_the_control_socket_is_answered_and_forgotten() {
    let mut pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let socket = pair.alpha.control_socket();
    let long = vec![b'a'; 5 << 20];
    for (bytes, wanted) in [
        (&b"hello\n"[..], true),
        (b"{}\n", true),
        (b"{\"id\":1,\"call\":{\"verb\":\"frobnicate\"}}\n", true),
        (b"{\"id\":1,\"call\":{\"verb\":\"primary\"}}\n", true),
        (b"\xff\xfe\x00\n", true),
        (b"{\"id\":2,\"call\":{\"verb\":\"pi", false),
        (b"", false),
        (&long, false),
    ] {
        let answer = String::from_utf8_lossy(&poke(&socket, bytes)).into_owned();
        let what = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        assert!(
            !wanted || answer.contains("\"answer\""),
            "{what:?} was answered {answer:?}\n{}",
            pair.logs()
        );
    }
    assert!(pair.alpha.is_alive(), "{}", pair.logs());
    assert_eq!(pair.alpha.word("cstate"), "Connected", "{}", pair.logs());
}

/// Both nodes up, each with settings of its own.
fn up_with(alpha: &Settings, bravo: &Settings) -> Pair {
    let pair = Pair::new(alpha, LinkKind::Direct);
    let (own, peer) = pair.bravo_addresses;
    pair.bravo.configure(own, peer, bravo);
    pair.alpha.must(&["up", "r0"]);
    pair.bravo.must(&["up", "r0"]);
    pair
}

#[test]
fn nodes_with_the_same_secret_connect_and_replicate() {
    for algorithm in ["sha1", "sha256"] {
        let secret = format!("cram-hmac-alg {algorithm}; shared-secret \"kangaroo court\";");
        let pair = Pair::synced(&Settings::default().with_net(&secret), LinkKind::Direct);
        let mut record = pair.record();
        node_works(&pair, &mut record, 3);
        pair.down_and_compare(&record);
    }
}

#[test]
fn nodes_with_other_secrets_do_not_connect_and_say_why() {
    let secret = |words: &str| {
        Settings::default().with_net(&format!("cram-hmac-alg sha1; shared-secret \"{words}\";"))
    };
    let pair = up_with(&secret("kangaroo"), &secret("wallaby"));
    // One of them sees the wrong answer first and stops; the other is told nothing and tries again, or stops too.
    let stopped = || {
        let words = [pair.alpha.word("cstate"), pair.bravo.word("cstate")];
        words.contains(&String::from("StandAlone")).then_some(())
    };
    wait::until("a node that stops", STATE_LIMIT, stopped, || pair.logs());
    let both = format!("{}{}", pair.alpha.whole_log(), pair.bravo.whole_log());
    assert!(
        both.to_lowercase().contains("authenticat"),
        "no word about the secret\n{}",
        pair.logs()
    );
    assert!(
        !both.contains("kangaroo") && !both.contains("wallaby"),
        "a secret is in a log\n{}",
        pair.logs()
    );
    for node in [&pair.alpha, &pair.bravo] {
        assert_ne!(node.word("cstate"), "Connected", "{}", pair.logs());
    }
}

#[test]
fn nodes_that_disagree_on_the_protocol_do_not_connect_and_say_why() {
    let a = Settings {
        net: net('A'),
        ..Settings::default()
    };
    let pair = up_with(&a, &Settings::default());
    for node in [&pair.alpha, &pair.bravo] {
        node.wait_word("cstate", &["StandAlone"]);
        assert!(
            node.whole_log().to_lowercase().contains("protocol"),
            "{}",
            pair.logs()
        );
    }
    // The way out: the same letter on both.
    let (own, peer) = pair.alpha_addresses;
    pair.alpha.configure(own, peer, &Settings::default());
    for node in [&pair.alpha, &pair.bravo] {
        node.must(&["adjust", "r0"]);
    }
    for node in [&pair.alpha, &pair.bravo] {
        node.wait_state("Connected", "Inconsistent/Inconsistent");
    }
}

/// Time of a small write on the Primary alpha.
fn write_time(pair: &Pair, record: &mut Record, offset: u64) -> Duration {
    let mut client = pair.client(&pair.alpha);
    let data = pattern(offset as u32 / 4096 + 1, 4096);
    client.write(offset, &data, Fua::No).unwrap();
    let start = Instant::now();
    client.write(offset, &data, Fua::No).unwrap();
    let time = start.elapsed();
    record.write(offset, &data);
    client.disconnect().unwrap();
    time
}

#[test]
fn over_a_slow_link_protocol_c_waits_for_the_peer_and_a_does_not() {
    const DELAY: Duration = Duration::from_millis(100);
    for (protocol, waits) in [('A', false), ('C', true)] {
        let settings = Settings {
            net: net(protocol),
            ..Settings::default()
        };
        let pair = Pair::synced(&settings, LinkKind::Proxied);
        let mut record = pair.record();
        pair.delay(DELAY);
        let time = write_time(&pair, &mut record, 1 << 20);
        assert_eq!(
            time >= DELAY * 2,
            waits,
            "protocol {protocol}: {time:?}\n{}",
            pair.logs()
        );
        pair.delay(Duration::ZERO);
        pair.down_and_compare(&record);
    }
}

#[test]
fn a_peer_that_takes_no_more_data_is_dropped_after_ko_count_timeouts() {
    let net = "timeout 10; ko-count 2; ping-int 60; ping-timeout 300;";
    let settings = Settings::default().with_net(net);
    let pair = Pair::synced(&settings, LinkKind::Proxied);
    let mut record = pair.record();
    let mut client = pair.client(&pair.alpha);
    // Bytes leave and never arrive.
    pair.delay(Duration::from_secs(3600));
    let data = pattern(1, 64 << 10);
    let start = Instant::now();
    client.write(2 << 20, &data, Fua::No).unwrap();
    let waited = start.elapsed();
    record.write(2 << 20, &data);
    assert!(
        waited > Duration::from_millis(1500) && waited < Duration::from_secs(12),
        "the write waited {waited:?}; timeout x ko-count is 2 s\n{}",
        pair.logs()
    );
    client.disconnect().unwrap();
    pair.cut();
    pair.delay(Duration::ZERO);
    pair.heal();
    pair.down_and_compare(&record);
}

#[test]
fn a_node_waits_for_its_peer_and_connects_when_it_comes() {
    let pair = Pair::new(&Settings::default(), LinkKind::Direct);
    pair.alpha.must(&["up", "r0"]);
    pair.alpha.wait_word("cstate", &["WFConnection"]);
    let ended = pair.alpha.adm(&[
        "wait-connect",
        "--wfc-timeout=1",
        "--degr-wfc-timeout=1",
        "r0",
    ]);
    assert_eq!(ended.code, Some(5), "{}\n{}", ended.all(), pair.logs());
    assert!(
        TcpStream::connect(pair.bravo_addresses.0).is_err(),
        "bravo listens before it is up"
    );
    pair.bravo.must(&["up", "r0"]);
    pair.alpha.must(&[
        "wait-connect",
        "--wfc-timeout=30",
        "--degr-wfc-timeout=30",
        "r0",
    ]);
    for node in [&pair.alpha, &pair.bravo] {
        node.wait_state("Connected", "Inconsistent/Inconsistent");
    }
}

#[test]
fn a_link_that_is_cut_again_and_again_loses_nothing() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Proxied);
    let mut record = pair.record();
    let mut client = pair.client(&pair.alpha);
    for round in 1..=5u32 {
        let offset = u64::from(round) << 20;
        let data = pattern(round, 128 << 10);
        client.write(offset, &data, Fua::No).unwrap();
        record.write(offset, &data);
        pair.cut();
        client.write(offset + (256 << 10), &data, Fua::No).unwrap();
        record.write(offset + (256 << 10), &data);
        pair.heal();
        if round % 2 == 0 {
            pair.wait_synced();
        }
    }
    client.disconnect().unwrap();
    pair.down_and_compare(&record);
}

#[test]
fn a_client_that_vanishes_lets_the_node_be_demoted() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let client = Client::connect(&pair.alpha.socket(), "r0", CLIENT_LIMIT).unwrap();
    drop(client);
    pair.alpha.must(&["secondary", "r0"]);
    assert_role(&pair.alpha, "Secondary/Secondary");
}

fn assert_role(node: &Node, role: &str) {
    assert_eq!(node.word("role"), role, "{}", node.logs());
}
