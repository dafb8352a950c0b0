//! `events2`, as cluster managers read it: what is there, every change, and the end; a slow reader holds nobody back.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tandem_tests::e2e::node::{Node, STATE_LIMIT, Settings, binary};
use tandem_tests::e2e::pair::{LinkKind, Pair};
use tandem_tests::e2e::wait;

/// A running `events2` and the lines that it has printed.
struct Follower {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

fn spawn(node: &Node, args: &[&str]) -> (Child, ChildStdout) {
    let mut command = Command::new(binary());
    command.arg("adm").arg("--root").arg(&node.root).args(args);
    command.env("__DRBD_NODE__", &node.name);
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    (child, stdout)
}

impl Follower {
    fn start(node: &Node, args: &[&str]) -> Follower {
        let (child, stdout) = spawn(node, args);
        let lines = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                collected.lock().unwrap().push(line);
            }
        });
        Follower { child, lines }
    }

    fn text(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// Waits for a line with all these words.
    fn wait_for(&self, words: &[&str]) {
        let found = || {
            let lines = self.lines.lock().unwrap();
            let has = |line: &&String| words.iter().all(|word| line.contains(word));
            lines.iter().find(has).map(|_| ())
        };
        wait::until(&format!("{words:?}"), STATE_LIMIT, found, || self.text());
    }

    /// Its exit code and what it said to a person.
    fn end(&mut self) -> (Option<i32>, String) {
        let lines = Arc::clone(&self.lines);
        let told = || lines.lock().unwrap().join("\n");
        let ended = || self.child.try_wait().unwrap();
        let status = wait::until("events2 ends", STATE_LIMIT, ended, told);
        let mut words = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut words).unwrap();
        (status.code(), words)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn what_is_there_and_what_changes_is_told_until_the_daemon_ends() {
    let mut pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let mut events = Follower::start(&pair.alpha, &["events2", "r0"]);
    events.wait_for(&["exists -"]);
    let text = events.text();
    let kinds: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    assert_eq!(
        kinds,
        [
            "resource",
            "connection",
            "device",
            "peer-device",
            "path",
            "-"
        ],
        "{text}"
    );
    assert!(
        text.starts_with(
            "exists resource name:r0 role:Primary suspended:no force-io-failures:no may_promote:no promotion_score:10102\n"
        ),
        "{text}"
    );
    pair.alpha.must(&["secondary", "r0"]);
    events.wait_for(&[
        "change resource name:r0",
        "role:Secondary",
        "may_promote:yes",
    ]);
    pair.bravo.must(&["primary", "r0"]);
    events.wait_for(&["change connection name:r0 peer-node-id:0 conn-name:peer role:Primary"]);
    pair.bravo.kill();
    events.wait_for(&["change connection", "connection:", "role:Unknown"]);
    events.wait_for(&["change path", "established:no"]);
    pair.alpha.must(&["down", "r0"]);
    events.wait_for(&["destroy peer-device name:r0"]);
    events.wait_for(&["destroy resource name:r0"]);
    pair.alpha.must(&["up", "r0"]);
    events.wait_for(&["create resource name:r0"]);
    events.wait_for(&["create device name:r0 volume:0"]);
    pair.alpha.kill();
    let (code, words) = events.end();
    assert_eq!(code, Some(20), "{words}");
    assert!(
        words.contains("next:") && words.contains("up all"),
        "{words}"
    );
    let text = events.text();
    assert!(text.ends_with("destroy resource name:r0"), "{text}");
}

#[test]
fn now_tells_what_is_there_and_ends_also_for_a_resource_and_a_daemon_that_are_not() {
    let mut pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let text = pair
        .alpha
        .must(&["events2", "--now", "--statistics", "--compat=9", "all"]);
    assert!(text.ends_with("\nexists -\n"), "{text}");
    assert!(text.contains("conn-name:bravo connection:Connected role:Secondary congested:no"));
    assert!(
        text.contains(" al-writes:") && text.contains(" out-of-sync:0 "),
        "{text}"
    );
    assert_eq!(
        pair.alpha.must(&["events2", "--now", "nobody"]),
        "exists -\n"
    );
    pair.alpha
        .refused(&["events2", "r0", "r1"], 1, &["one resource", "next:"]);
    pair.alpha.kill();
    assert_eq!(pair.alpha.must(&["events2", "--now"]), "exists -\n");
    pair.alpha
        .refused(&["events2"], 20, &["tandemd is not running", "up all"]);
}

#[test]
fn it_ends_when_its_reader_goes() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let (child, stdout) = spawn(&pair.alpha, &["events2"]);
    let mut first = String::new();
    let mut reader = BufReader::new(stdout);
    reader.read_line(&mut first).unwrap();
    assert!(first.starts_with("exists resource"), "{first}");
    drop(reader);
    let mut follower = Follower {
        child,
        lines: Arc::default(),
    };
    let (code, words) = follower.end();
    assert_eq!((code, words.as_str()), (Some(0), ""));
}

#[test]
fn a_reader_that_stands_still_holds_nobody_back_and_gets_the_state_of_now_afterwards() {
    let pair = Pair::synced(&Settings::default(), LinkKind::Direct);
    let events = Follower::start(&pair.alpha, &["events2", "r0"]);
    events.wait_for(&["exists -"]);
    let pid = events.child.id().to_string();
    let signal = |name: &str| {
        let sent = Command::new("kill").arg(name).arg(&pid).status().unwrap();
        assert!(sent.success());
    };
    signal("-STOP");
    for _ in 0..10 {
        pair.alpha.must(&["suspend-io", "r0"]);
        pair.alpha.must(&["resume-io", "r0"]);
    }
    pair.alpha.must(&["secondary", "r0"]);
    signal("-CONT");
    events.wait_for(&["change resource name:r0", "role:Secondary"]);
}

#[test]
fn a_reader_that_was_dropped_is_told_that_it_has_missed_something() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::bare(dir.path(), "alpha");
    let socket = node.control_socket();
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    // A daemon that loses patience with this reader, and lives on.
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut request = String::new();
        BufReader::new(&stream).read_line(&mut request).unwrap();
        let line = "{\"id\":1,\"body\":{\"kind\":\"status\",\"schema\":1,\"resources\":[]}}\n{\"id\":1,\"bo";
        stream.write_all(line.as_bytes()).unwrap();
        drop(stream);
        while !ends.load(Ordering::SeqCst) {
            listener.accept().unwrap();
        }
    });
    let ended = node.adm(&["events2"]);
    assert_eq!(ended.code, Some(20), "{}", ended.all());
    assert_eq!(ended.stdout, "exists -\n");
    assert!(ended.stderr.contains("events were lost"), "{}", ended.all());
    assert!(ended.stderr.contains("next:"), "{}", ended.all());
    over.store(true, Ordering::SeqCst);
    UnixStream::connect(&socket).unwrap();
    daemon.join().unwrap();
}
