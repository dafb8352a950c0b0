//! `tandem demo`: it succeeds, leaves nothing behind, and an interrupted one leaves nothing behind either.
//! The real program, with a short crash story.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Node, PROGRAM};

/// The demo takes some 15 s on an idle machine.
const DEADLINE: Duration = Duration::from_secs(110);

#[test]
fn the_demo_compares_everything_and_leaves_nothing_behind() {
    let place = Node::new("demo");
    let directory = place.path("pair");
    let run = place.run(
        PROGRAM,
        &[
            "demo",
            "--seconds",
            "1",
            "--dir",
            directory.to_str().unwrap(),
        ],
        "",
    );
    assert_eq!(run.code, 0, "{run:?}");
    for told in [
        "alpha dies in the middle of the writes",
        "are the same on both disks, and right",
        "none was lost or changed",
        "The same by hand",
    ] {
        assert!(run.out.contains(told), "{told}: {run:?}");
    }
    assert!(!directory.exists());
}

#[test]
fn an_interrupted_demo_stops_its_daemons_and_removes_its_files() {
    let place = Node::new("demo");
    let directory = place.path("pair");
    let mut child = Command::new(PROGRAM)
        .args(["demo", "--seconds", "60", "--dir"])
        .arg(&directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let writing = std::thread::spawn(move || {
        // Keeps reading to the end, so that the demo never blocks on its output.
        let mut pids = None;
        for line in lines.map_while(Result::ok) {
            if line.contains("writes acknowledged,") && pids.is_none() {
                let pid = |node: &str| {
                    let file = directory.join(node).join("run/tandem/tandemd.pid");
                    std::fs::read_to_string(file).unwrap().trim().to_owned()
                };
                pids = Some((pid("alpha"), pid("beta"), directory.clone()));
                let demo = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap());
                rustix::process::kill_process(demo.unwrap(), rustix::process::Signal::INT).unwrap();
            }
        }
        (pids, child)
    });
    let begun = Instant::now();
    while !writing.is_finished() && begun.elapsed() < DEADLINE {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(writing.is_finished(), "the demo did not end");
    let (pids, mut child) = writing.join().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let (alpha, beta, directory) = pids.expect("it never came to writing");
    for pid in [alpha, beta] {
        assert!(!std::path::Path::new("/proc").join(pid).exists());
    }
    assert!(!directory.exists());
}
