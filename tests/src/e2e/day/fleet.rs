//! Two nodes with many resources: their configuration, their commands, their state.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tandem_metadata::units::ByteLen;
use tandem_metadata::{AlGeometry, Flags, Layout, Placement, Superblock};
use tempfile::TempDir;

use crate::e2e::node::{COMMAND_LIMIT, Node, binary, net};
use crate::e2e::pair::CLIENT_LIMIT;
use crate::e2e::proxy::Proxy;
use crate::e2e::{address, client::Client, process, record, wait};

/// Size of each disk in bytes: enough for several extents of the activity log, small enough to be compared in a moment.
pub const DISK_BYTES: u64 = 12 << 20;

/// How long a pair may take to be connected and in sync again.
const REST_LIMIT: Duration = Duration::from_secs(120);

/// Between two looks at the state of a pair: each look starts processes.
const LOOK: Duration = Duration::from_millis(80);

/// Replication state, disk and peer's disk of a pair at rest.
const GOOD: &str = "Established UpToDate UpToDate";

/// Handlers that write down that they ran, and for which resource.
const HANDLERS: [&str; 6] = [
    "before-resync-target",
    "after-resync-target",
    "split-brain",
    "pri-on-incon-degr",
    "local-io-error",
    "out-of-sync",
];

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The one.
    Alpha,
    /// The other.
    Bravo,
}

impl Side {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Side {
        match self {
            Side::Alpha => Side::Bravo,
            Side::Bravo => Side::Alpha,
        }
    }
}

/// Two daemons and their resources.
#[derive(Debug)]
pub struct Fleet {
    /// A node.
    pub alpha: Node,
    /// Its peer.
    pub bravo: Node,
    resources: usize,
    proxies: BTreeMap<usize, [Proxy; 2]>,
    dir: TempDir,
}

/// Name of a resource.
#[must_use]
pub fn name(number: usize) -> String {
    format!("r{number:02}")
}

/// The addresses of one resource as a node's configuration has them.
#[derive(Clone, Copy)]
struct Addresses {
    alpha: SocketAddr,
    bravo: SocketAddr,
}

impl Fleet {
    /// Configures both nodes; the resources numbered in `disturbed` reach their peer through proxies.
    ///
    /// # Panics
    /// When something cannot be made.
    pub fn configured(base: &Path, resources: usize, disturbed: &[usize]) -> Fleet {
        let dir = TempDir::with_prefix_in("tandem-day-", base).expect("a directory");
        let mut fleet = Fleet {
            alpha: Node::bare(dir.path(), "alpha"),
            bravo: Node::bare(dir.path(), "bravo"),
            resources,
            proxies: BTreeMap::new(),
            dir,
        };
        let mut seen = [Vec::new(), Vec::new()];
        for number in 0..resources {
            let (alpha, bravo) = (address::fresh(), address::fresh());
            let mut known = [Addresses { alpha, bravo }; 2];
            if disturbed.contains(&number) {
                let (to_bravo, to_alpha) = (address::fresh(), address::fresh());
                let proxies = [
                    Proxy::start(to_bravo, bravo, to_alpha.ip()),
                    Proxy::start(to_alpha, alpha, to_bravo.ip()),
                ];
                fleet.proxies.insert(number, proxies);
                (known[0].bravo, known[1].alpha) = (to_bravo, to_alpha);
            }
            for (seen, known) in seen.iter_mut().zip(known) {
                seen.push(known);
            }
        }
        for (node, seen) in [&fleet.alpha, &fleet.bravo].into_iter().zip(&seen) {
            node.write_config(&configuration(node, seen));
            for number in 0..resources {
                let file = fs::File::create(disk(node, number)).expect("a disk file");
                file.set_len(DISK_BYTES).expect("a sparse disk file");
            }
        }
        fleet
    }

    /// Starts both daemons and brings every resource up on blank disks that are declared equal; the Primaries are shared out evenly.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn bring_up(&mut self) {
        for node in [&mut self.alpha, &mut self.bravo] {
            node.must(&["create-md", "all"]);
            node.start();
            node.must(&["up", "all"]);
        }
        self.wait_all("Established Inconsistent Inconsistent");
        let fresh = ["new-current-uuid", "--clear-bitmap", "all"];
        self.alpha.must(&fresh);
        self.settle_all();
        for side in [Side::Alpha, Side::Bravo] {
            let own = (0..self.resources).filter(|number| first_primary(*number) == side);
            let own: Vec<String> = own.map(name).collect();
            let words: Vec<&str> = own.iter().map(String::as_str).collect();
            self.node(side)
                .must(&[&["primary"], words.as_slice()].concat());
        }
    }

    /// Waits until both nodes of every resource are connected with good data.
    ///
    /// # Panics
    /// When they are not in time.
    pub fn settle_all(&self) {
        self.wait_all(GOOD);
    }

    fn wait_all(&self, state: &str) {
        let reached = || {
            let good = |side| {
                let states = self.states(side, &[]);
                states.len() == self.resources
                    && states.iter().all(|found| found.join(" ") == state)
            };
            let there = good(Side::Alpha) && good(Side::Bravo);
            if !there {
                std::thread::sleep(LOOK);
            }
            there.then_some(())
        };
        let what = format!("{state} of all resources on both nodes");
        wait::until(&what, REST_LIMIT, reached, || self.logs());
    }

    /// A node.
    pub const fn node(&self, side: Side) -> &Node {
        match side {
            Side::Alpha => &self.alpha,
            Side::Bravo => &self.bravo,
        }
    }

    /// A node whose daemon shall end or begin.
    pub const fn node_mut(&mut self, side: Side) -> &mut Node {
        match side {
            Side::Alpha => &mut self.alpha,
            Side::Bravo => &mut self.bravo,
        }
    }

    /// How many resources there are.
    pub const fn resources(&self) -> usize {
        self.resources
    }

    /// The proxies of a resource that has some.
    pub fn proxies(&self, number: usize) -> Option<&[Proxy; 2]> {
        self.proxies.get(&number)
    }

    /// Replication state, disk and peer's disk.
    ///
    /// # Panics
    /// When the node does not answer.
    pub fn state(&self, side: Side, number: usize) -> [String; 3] {
        let states = self.states(side, &[&name(number)]);
        states.into_iter().next().expect("a state")
    }

    /// Of some resources; of all, if none is named.
    fn states(&self, side: Side, resources: &[&str]) -> Vec<[String; 3]> {
        let words = [&["status", "--json"], resources].concat();
        let text = self.node(side).must(&words);
        let all: Value = serde_json::from_str(&text).expect("status is JSON");
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of = |resource: &Value| {
            let peer = &resource["connections"][0]["peer_devices"][0];
            [
                word(&peer["replication-state"]),
                word(&resource["devices"][0]["disk-state"]),
                word(&peer["peer-disk-state"]),
            ]
        };
        all.as_array().expect("resources").iter().map(of).collect()
    }

    /// Waits until both nodes of a resource are connected with good data.
    ///
    /// # Panics
    /// When they are not in time.
    pub fn settle(&self, number: usize) {
        let resource = name(number);
        let good = |side| self.state(side, number).join(" ") == GOOD;
        let reached = || {
            let there = good(Side::Alpha) && good(Side::Bravo);
            if !there {
                std::thread::sleep(LOOK);
            }
            there.then_some(())
        };
        let what = format!("{GOOD} of {resource} on both nodes");
        wait::until(&what, REST_LIMIT, reached, || self.logs());
    }

    /// Waits until a node knows that it is alone with a resource.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_alone(&self, side: Side, number: usize) {
        let alone = || {
            let off = self.state(side, number)[0] == "Off";
            if !off {
                std::thread::sleep(LOOK);
            }
            off.then_some(())
        };
        let what = format!("the loss of the peer of {}", name(number));
        wait::until(&what, REST_LIMIT, alone, || self.logs());
    }

    /// A client of a resource.
    ///
    /// # Panics
    /// When the node does not serve it.
    pub fn client(&self, side: Side, number: usize) -> Client {
        let client = Client::connect(&self.node(side).socket(), &name(number), CLIENT_LIMIT);
        client.unwrap_or_else(|error| {
            panic!("a client of {}: {error}\n{}", name(number), self.logs())
        })
    }

    /// Size of each device.
    ///
    /// # Panics
    /// When the metadata do not fit their disk.
    #[must_use]
    pub fn device_bytes() -> u64 {
        layout().data_size_max().0 * 512
    }

    /// The data on a node's disk.
    ///
    /// # Panics
    /// When they cannot be read.
    pub fn data(&self, side: Side, number: usize) -> Vec<u8> {
        record::read_disk(&disk(self.node(side), number), Fleet::device_bytes())
    }

    /// The backing file of a resource on a node.
    pub fn disk(&self, side: Side, number: usize) -> PathBuf {
        disk(self.node(side), number)
    }

    /// What the metadata of a resource say that an orderly end does not leave behind; nothing, if all is in order.
    ///
    /// # Panics
    /// When they cannot be read.
    pub fn disorder(&self, side: Side, number: usize) -> Vec<String> {
        let whole = record::read_disk(&self.disk(side, number), DISK_BYTES);
        let start = layout().superblock_offset().0 as usize;
        let block = Superblock::decode(&whole[start..start + 4096]).expect("a superblock");
        let flags = block.flags;
        let wrong = [
            (flags.contains(Flags::PRIMARY_IND), "marked as Primary"),
            (flags.contains(Flags::CRASHED_PRIMARY), "marked as crashed"),
            (flags.contains(Flags::FULL_SYNC), "full resync wanted"),
            (!flags.contains(Flags::CONSISTENT), "not consistent"),
        ];
        let found = wrong.into_iter().filter(|(is, _)| *is);
        let words = |(_, words)| format!("{} {side:?}: {words}", name(number));
        found.map(words).collect()
    }

    /// How often a handler ran on both nodes.
    pub fn calls(&self, handler: &str) -> usize {
        [&self.alpha, &self.bravo]
            .iter()
            .map(|node| fs::read_to_string(notes(node, handler)).unwrap_or_default())
            .map(|text| text.lines().count())
            .sum()
    }

    /// Size of all black boxes of a node in KiB, as files.
    ///
    /// # Panics
    /// When one cannot be written.
    pub fn boxes_kib(&self, side: Side) -> u64 {
        let node = self.node(side);
        // In memory, where the machine has such a place: they are not small.
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() { shm } else { self.dir.path() };
        let dir = TempDir::with_prefix_in("tandem-day-", base).expect("a directory");
        let size = |number| {
            let file = dir.path().join(name(number));
            let mut command = Command::new(binary());
            command.arg("black-box").arg("--root").arg(&node.root);
            command
                .arg(name(number))
                .arg(&file)
                .env("__DRBD_NODE__", &node.name);
            let ended = process::run(&mut command, COMMAND_LIMIT);
            assert_eq!(ended.code, Some(0), "{}", ended.all());
            let bytes = fs::metadata(&file).expect("a black box").len();
            fs::remove_file(&file).expect("a black box");
            bytes
        };
        (0..self.resources).map(size).sum::<u64>() / 1024
    }

    /// The logs of both nodes, for messages.
    pub fn logs(&self) -> String {
        self.alpha.logs()
    }

    /// Where both nodes lie.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// The node on which a resource is Primary first.
#[must_use]
pub const fn first_primary(number: usize) -> Side {
    if number.is_multiple_of(2) {
        Side::Alpha
    } else {
        Side::Bravo
    }
}

/// Most resources have protocol C, some B or A.
const fn protocol(number: usize) -> char {
    match number % 5 {
        3 => 'B',
        4 => 'A',
        _ => 'C',
    }
}

fn layout() -> Layout {
    let layout = Layout::new(
        Placement::Internal,
        ByteLen(DISK_BYTES),
        AlGeometry::DEFAULT,
    );
    layout.expect("metadata fit the disk")
}

fn disk(node: &Node, number: usize) -> PathBuf {
    node.root.join(format!("{}.img", name(number)))
}

fn notes(node: &Node, handler: &str) -> PathBuf {
    node.root.join(format!("etc/drbd.conf.{handler}"))
}

fn configuration(node: &Node, seen: &[Addresses]) -> String {
    let handlers: String = HANDLERS
        .iter()
        .map(|handler| format!("    {handler} \"echo $DRBD_RESOURCE >> $DRBD_CONF.{handler}\";\n"))
        .collect();
    let mut text = format!(
        "global {{ usage-count no; }}\ncommon {{\n  net {{ ping-int 2; connect-int 2; verify-alg crc32c; }}\n  \
         disk {{ c-plan-ahead 0; resync-rate 100M; }}\n  handlers {{\n{handlers}  }}\n}}\n"
    );
    for (number, addresses) in seen.iter().enumerate() {
        text.push_str(&format!(
            "resource {} {{\n  net {{ {} }}\n  device /dev/drbd{number} minor {number};\n  disk {};\n  meta-disk internal;\n  \
             on alpha {{ address {}; }}\n  on bravo {{ address {}; }}\n}}\n",
            name(number),
            net(protocol(number)),
            disk(node, number).display(),
            addresses.alpha,
            addresses.bravo
        ));
    }
    text
}
