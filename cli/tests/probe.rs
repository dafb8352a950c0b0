//! `tandem probe` against real daemons and against what is none: what it prints, and its exit code.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::{Node, PROGRAM, Run, two_nodes};

fn probe(node: &Node, target: &str) -> Run {
    node.run(PROGRAM, &["probe", "--root", &node.root(), target], "")
}

fn quiet(run: &Run) {
    assert_eq!((run.code, run.out.as_str()), (0, ""), "{run:?}");
}

/// A Primary, alone.
fn primary() -> Node {
    let (alpha, _beta) = two_nodes();
    assert_eq!(alpha.adm(&["create-md", "r0"]).code, 0);
    quiet(&alpha.adm(&["up", "r0"]));
    quiet(&alpha.adm(&["primary", "--force", "r0"]));
    alpha
}

#[test]
fn a_primary_is_described_by_name_and_by_uri() {
    let alpha = primary();
    let by_name = probe(&alpha, "r0");
    let uri = format!(
        "nbd+unix:///r0/0?socket={}/run/tandem/nbd.sock",
        alpha.root()
    );
    let by_uri = alpha.run(
        PROGRAM,
        &["adm", "--root", &alpha.root(), "probe", &uri],
        "",
    );
    for run in [by_name, by_uri] {
        assert_eq!(run.code, 0, "{run:?}");
        for line in [
            "  export       r0/0\n",
            "  description  replicated volume 0 of resource r0, minor 0\n",
            "  flags        writable, flush, fua, trim, write-zeroes, fast-zero, df, multi-conn, cache\n",
            "  block sizes  minimum 1, preferred 4096, maximum 33554432\n",
            "  contexts     base:allocation, x-tandem:out-of-sync\n",
            "  read         4096 bytes at 0 in ",
            "  old clients  ",
            " bytes, 4096 of them read at 0\n",
        ] {
            assert!(run.out.contains(line), "{line}{run:?}");
        }
    }
    let wrong = probe(&alpha, "r9");
    assert_eq!((wrong.code, wrong.out.as_str()), (20, ""), "{wrong:?}");
    assert!(wrong.err.contains("no export \"r9\""), "{wrong:?}");
    assert!(wrong.err.contains("    r0/0\nnext: "), "{wrong:?}");
    quiet(&alpha.adm(&["secondary", "r0"]));
    let refused = probe(&alpha, "r0");
    assert_eq!(refused.code, 20, "{refused:?}");
    assert!(
        refused.err.contains("Secondary") && refused.err.contains("adm primary r0"),
        "{refused:?}"
    );
}

#[test]
fn what_is_wrong_elsewhere_is_said_in_words() {
    let node = Node::pair("alpha");
    let none = probe(&node, "r0");
    assert_eq!(none.code, 20);
    assert!(
        none.err
            .contains("there is no socket ROOT/run/tandem/nbd.sock"),
        "{none:?}"
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let uri = format!("nbd://{address}/r0");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n").unwrap();
    });
    let ssh = probe(&node, &uri);
    server.join().unwrap();
    assert_eq!(ssh.code, 20);
    assert!(
        ssh.err
            .contains("no NBD server: it begins with \"SSH-2.0-\""),
        "{ssh:?}"
    );
    // The listener is gone.
    let refused = probe(&node, &uri);
    assert_eq!(refused.code, 20);
    assert!(
        refused.err.contains("nobody listens on 127.0.0.1:"),
        "{refused:?}"
    );
    assert_eq!(probe(&node, "http://somewhere/").code, 1);
    assert_eq!(node.adm(&["probe"]).code, 1);
}

#[test]
fn a_server_that_says_nothing_is_given_up_after_ten_seconds() {
    let node = Node::pair("alpha");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("nbd://{}/r0", listener.local_addr().unwrap());
    let begun = Instant::now();
    let silent = probe(&node, &uri);
    assert_eq!(silent.code, 5, "{silent:?}");
    assert!(
        silent.err.contains("says nothing: a greeting did not come"),
        "{silent:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(30));
    drop(listener);
}
