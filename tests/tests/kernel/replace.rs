//! Goal: docs/compatibility.md's way from a pair of two kernels to one with a Tandem node, and back, works as it is written.
//! Method: the commands are read from the document, line by line, and run; what it shows as their answer is waited for.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tandem_tests::e2e::client::{Client, Fua};
use tandem_tests::e2e::node::{COMMAND_LIMIT, Meta, Node, Settings};
use tandem_tests::e2e::wait;
use tandem_tests::kernel::record::Record;
use tandem_tests::kernel::{KernelNode, Machine, noise};
use tempfile::TempDir;

const DISK: u64 = 8 << 20;
const NET: &str = "protocol C; connect-int 1; ping-timeout 30; socket-check-timeout 3;";
const RATE: &str = "c-plan-ahead 0; resync-rate 400M;";
/// How long an answer that the document shows may take to come.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A line of the document: where it is typed, and what it answers in the end.
#[derive(Debug)]
struct Step {
    node: String,
    command: String,
    answer: Option<String>,
}

/// The commands below a heading of the document.
fn steps(heading: &str) -> Vec<Step> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compatibility.md");
    let text = fs::read_to_string(path).unwrap();
    let section = text
        .split("\n### ")
        .find(|section| section.starts_with(heading))
        .unwrap_or_else(|| panic!("no section {heading}"));
    let mut steps: Vec<Step> = Vec::new();
    for line in section.split("```").skip(1).step_by(2).flat_map(str::lines) {
        if let Some((node, command)) = line.split_once("# ") {
            let command = command.split("  #").next().unwrap().trim().to_owned();
            steps.push(Step {
                node: node.to_owned(),
                command,
                answer: None,
            });
        } else if !line.trim().is_empty() {
            let step = steps.last_mut().expect("an answer has its command");
            assert_eq!(step.answer, None, "one line of answer: {line}");
            step.answer = Some(line.trim().to_owned());
        }
    }
    assert!(!steps.is_empty(), "no commands in {heading}");
    steps
}

/// What runs on the node `two`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Kernel,
    Tandem,
}

/// Two nodes: `one` is a kernel, `two` is a kernel or Tandem on the same disk under the same address.
struct Stage {
    machine: &'static Machine,
    one: KernelNode<'static>,
    two: KernelNode<'static>,
    tandem: Node,
    kind: Kind,
    /// Ports of this host: where `one` and where `two` is found.
    ports: [u16; 2],
    record: Record,
    /// Messages of `one` while `two` was a kernel from the beginning on: the record leaves them out.
    before: usize,
    _dir: TempDir,
}

impl Stage {
    /// Two kernels, in sync, `one` is Primary.
    fn of_two_kernels() -> Stage {
        let machine = Machine::shared();
        let record = Record::begin();
        let one = KernelNode::create(machine, DISK, 1, Meta::Internal);
        let two = KernelNode::create(machine, DISK, 1, Meta::Internal);
        let ports = [&one, &two].map(|node| machine.forward(node.guest_port()));
        one.configure(ports[1], NET, RATE);
        two.configure(ports[0], NET, RATE);
        let dir = TempDir::with_prefix("tandem-test-").unwrap();
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let settings = Settings {
            disk_bytes: DISK,
            net: String::from(NET),
            disk: String::from(RATE),
            ..Settings::default()
        };
        let tandem = Node::create(
            dir.path(),
            "alpha",
            local(ports[1]),
            local(ports[0]),
            &settings,
        );
        for node in [&one, &two] {
            node.must("create-md --force");
            node.must("up");
        }
        one.wait_for("cs:Connected ");
        one.must("primary --force");
        let mut stage = Stage {
            machine,
            one,
            two,
            tandem,
            kind: Kind::Kernel,
            ports,
            record,
            before: 0,
            _dir: dir,
        };
        stage.one.wait_state("Connected", "Primary/Secondary", BOTH);
        stage.before = stage.one.messages().len();
        stage
    }

    fn follow(&mut self, heading: &str) {
        for step in steps(heading) {
            println!("{heading}: {step:?}");
            if step.node == "two" {
                self.two_becomes(&step.command);
            }
            match &step.answer {
                None => drop(self.run(&step, Strict::Yes)),
                Some(answer) => {
                    let given = || (self.run(&step, Strict::No) == *answer).then_some(());
                    wait::until(&format!("{step:?}"), ANSWER_LIMIT, given, || {
                        format!("{}{}", self.tandem.log(), self.one.log())
                    });
                }
            }
        }
    }

    /// The disk and the address go to whom the command belongs: on one real machine they are where they were.
    fn two_becomes(&mut self, command: &str) {
        let only_looks = ["tandem adm dump ", "tandem adm --dry-run "];
        if only_looks.iter().any(|start| command.starts_with(start)) {
            return;
        }
        let disk = self.tandem.disk(0);
        if command.starts_with("tandem ") && self.kind == Kind::Kernel {
            self.machine.unforward(self.ports[1]);
            fs::write(disk, self.two.disk(0, DISK)).unwrap();
            self.kind = Kind::Tandem;
        } else if command.starts_with("drbdadm ") && self.kind == Kind::Tandem {
            self.tandem.kill();
            self.two.shell("echo 3 >/proc/sys/vm/drop_caches");
            self.two.fill(0, &fs::read(disk).unwrap());
            self.machine
                .forward_from(self.ports[1], self.two.guest_port());
            self.kind = Kind::Kernel;
        }
    }

    fn run(&self, step: &Step, strict: Strict) -> String {
        let words: Vec<&str> = step.command.split_whitespace().collect();
        let ended = match (step.node.as_str(), words.as_slice()) {
            ("two", ["tandem", "adm", words @ ..]) => self.tandem.adm(words),
            ("one" | "two", ["drbdadm", words @ .., "r0"]) => {
                let node = if step.node == "one" {
                    &self.one
                } else {
                    &self.two
                };
                if strict == Strict::Yes {
                    return node.must(&words.join(" "));
                }
                node.adm(&words.join(" "))
            }
            _ => panic!("nobody knows how to run {step:?}"),
        };
        if strict == Strict::Yes {
            let log = self.tandem.log();
            assert_eq!(ended.code, Some(0), "{step:?}: {}\n{log}", ended.all());
        }
        ended.stdout.trim().to_owned()
    }

    fn tandem_writes(&self, offset: u64, data: &[u8]) {
        let socket = self.tandem.socket();
        let mut client = Client::connect(&socket, "r0/0", COMMAND_LIMIT).unwrap();
        client.write(offset, data, Fua::No).unwrap();
        client.flush().unwrap();
        client.disconnect().unwrap();
    }

    fn end(mut self) {
        let bytes = self.one.device_bytes();
        let disks = [&self.one, &self.two].map(|node| node.must("down"));
        drop(disks);
        assert!(
            self.one.disk(0, bytes) == self.two.disk(0, bytes),
            "the disks differ"
        );
        self.tandem.kill();
        self.one.judge_messages(&[]);
        self.two.judge_messages(&[]);
        for port in self.ports {
            self.machine.unforward(port);
        }
        let messages = self.one.messages().split_off(self.before);
        let log = self.tandem.whole_log();
        self.record.end(&messages, &log, self.machine.version());
    }
}

/// Whether a command must succeed at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strict {
    Yes,
    No,
}

const BOTH: &str = "UpToDate/UpToDate";

#[test]
fn the_document_leads_from_two_kernels_to_tandem_and_back() {
    let mut stage = Stage::of_two_kernels();
    stage.one.write(0, &noise(1, 1 << 20));
    stage.follow("Replace");
    // The application went on all the time.
    stage.one.write(1 << 20, &noise(2, 65_536));
    stage.follow("Let Tandem have the application");
    stage.tandem_writes(2 << 20, &noise(3, 65_536));
    stage.follow("Go back");
    assert_eq!(stage.two.disk(2 << 20, 65_536), noise(3, 65_536));
    stage.end();
}

#[test]
fn the_document_leads_from_two_kernels_to_tandem_on_a_new_disk() {
    let mut stage = Stage::of_two_kernels();
    stage.one.write(0, &noise(1, 1 << 20));
    stage.two.must("down");
    stage.two.fill(0, &vec![0x55; DISK as usize]);
    stage.follow("A new machine");
    let bytes = stage.one.device_bytes();
    let ours = fs::read(stage.tandem.disk(0)).unwrap();
    assert!(
        ours[..bytes as usize] == stage.one.disk(0, bytes),
        "the disks differ"
    );
    stage.one.must("secondary");
    stage.follow("Go back");
    stage.end();
}
