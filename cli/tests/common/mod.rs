//! A node below a temporary root, and the program run on it with a time limit.
#![allow(dead_code, unreachable_pub)]

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_tandem");

/// Longest run of one command.
const DEADLINE: Duration = Duration::from_secs(120);

/// Size of a node's disk.
const DISK_BYTES: u64 = 64 << 20;

/// What a command did. In its texts the root is `ROOT` and the program `TANDEM`.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// A node.
pub struct Node {
    directory: tempfile::TempDir,
    name: String,
}

/// A resource r0 of alpha and beta, both with a disk below `root`.
pub fn configuration(root: &str) -> String {
    configuration_of([root, root], [7788, 7789])
}

/// A resource r0 of alpha and beta with these roots and ports.
pub fn configuration_of(roots: [&str; 2], ports: [u16; 2]) -> String {
    let host = |name: &str, root: &str, port: u16| {
        format!(
            "    on {name} {{\n        device /dev/drbd0;\n        disk \"{root}/disk\";\n        meta-disk internal;\n        \
             address 127.0.0.1:{port};\n    }}\n"
        )
    };
    format!(
        "resource r0 {{\n    net {{ protocol C; }}\n    disk {{ c-plan-ahead 0; resync-rate 100M; }}\n{}{}}}\n",
        host("alpha", roots[0], ports[0]),
        host("beta", roots[1], ports[1])
    )
}

/// Two nodes that can reach each other, with empty disks.
pub fn two_nodes() -> (Node, Node) {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (one, other) = (free(), free());
    let ports = [
        one.local_addr().unwrap().port(),
        other.local_addr().unwrap().port(),
    ];
    let (alpha, beta) = (Node::pair("alpha"), Node::pair("beta"));
    let text = configuration_of([&alpha.root(), &beta.root()], ports).replace(
        "protocol C;",
        "protocol C; connect-int 1; timeout 9; ping-int 2;",
    );
    alpha.write("etc/drbd.conf", &text);
    beta.write("etc/drbd.conf", &text);
    (alpha, beta)
}

impl Drop for Node {
    /// No daemon survives its test.
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.path("run/tandem/tandemd.pid"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Node {
    /// A node of this name without a configuration.
    pub fn new(name: &str) -> Node {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("etc")).unwrap();
        Node {
            directory,
            name: name.to_owned(),
        }
    }

    /// A node of this name with [`configuration`] and an empty disk.
    pub fn pair(name: &str) -> Node {
        let node = Node::new(name);
        node.write("etc/drbd.conf", configuration(&node.root()));
        let disk = std::fs::File::create(node.path("disk")).unwrap();
        disk.set_len(DISK_BYTES).unwrap();
        node
    }

    pub fn root(&self) -> String {
        self.directory.path().to_str().unwrap().to_owned()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// `tandem adm --root ROOT WORDS`.
    pub fn adm(&self, words: &[&str]) -> Run {
        self.adm_with_input(words, "")
    }

    pub fn adm_with_input(&self, words: &[&str], input: &str) -> Run {
        let root = self.root();
        let mut all = vec!["adm", "--root", &root];
        all.extend(words);
        self.run(PROGRAM, &all, input)
    }

    /// Any program as this node.
    pub fn run(&self, program: &str, words: &[&str], input: &str) -> Run {
        let mut child = Command::new(program)
            .args(words)
            .env("__DRBD_NODE__", &self.name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that does not read its input has closed it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let reader = |mut stream: Box<dyn Read + Send>| {
            std::thread::spawn(move || {
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                text
            })
        };
        let out = reader(Box::new(child.stdout.take().unwrap()));
        let err = reader(Box::new(child.stderr.take().unwrap()));
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{program} {words:?} did not end within {DEADLINE:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let plain = |text: String| {
            text.replace(&self.root(), "ROOT")
                .replace(PROGRAM, "TANDEM")
        };
        Run {
            code: status.code().unwrap_or(-1),
            out: plain(out.join().unwrap()),
            err: plain(err.join().unwrap()),
        }
    }
}

/// A state that does not come within this time does not come.
const STATE_DEADLINE: Duration = Duration::from_secs(60);

/// A command that succeeds and has nothing to say.
pub fn quiet(run: &Run) {
    assert_eq!((run.code, run.out.as_str()), (0, ""), "{run:?}");
}

/// Repeats a question until it is answered as wanted.
pub fn until(node: &Node, words: &[&str], wanted: &str) {
    let deadline = Instant::now() + STATE_DEADLINE;
    loop {
        let run = node.adm(words);
        if run.out == wanted {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{words:?} never said {wanted:?}, but {run:?}\n{}",
            node.adm(&["proc"]).out
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A synced pair, the first node Primary.
pub fn synced_pair() -> (Node, Node) {
    let (alpha, beta) = two_nodes();
    synced(alpha, beta)
}

/// Two fresh nodes become a synced pair, the first one Primary.
pub fn synced(alpha: Node, beta: Node) -> (Node, Node) {
    for node in [&alpha, &beta] {
        assert_eq!(node.adm(&["create-md", "r0"]).code, 0);
        quiet(&node.adm(&["up", "r0"]));
    }
    quiet(&alpha.adm(&["wait-connect", "--wfc-timeout=60", "r0"]));
    quiet(&alpha.adm(&["primary", "--force", "r0"]));
    until(&alpha, &["dstate", "r0"], "UpToDate/UpToDate\n");
    (alpha, beta)
}
