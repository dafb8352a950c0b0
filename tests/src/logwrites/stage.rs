//! The pair whose disk is watched: one node in a machine on dm-log-writes, its peer on this host, and clients of both.
//!
//! A test acts ([`Stage::burst`], [`Stage::guest_adm`], [`Stage::host`]) and marks ([`Stage::mark`]): each mark stands in the log and in
//! the ledger. [`Stage::finish`] ends everything and gives both out.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use tandem_metadata::units::ByteLen;
use tandem_metadata::{AlGeometry, Layout, Placement};
use tempfile::TempDir;

use super::cuts::mark_name;
use super::ledger::{Floor, GuestDisk, GuestRole, Ledger, Mark, Pace, raise};
use super::log::{self, Entry, SECTOR};
use crate::e2e::client::{Client, Fua};
use crate::e2e::node::{Node, STATE_LIMIT, Settings, binary};
use crate::e2e::{process, wait};
use crate::kernel::machine::{EXEC_LIMIT, Hardware, Machine, free_port};
use crate::sim::dice::Dice;
use crate::sim::disk::Disk;
use crate::sim::stamp::{Content, Stamper};

/// Connections of a burst; each has cells of its own.
const CLIENTS: u64 = 4;
/// Sectors of a cell: what one client writes into at once.
pub const CELL: u64 = 64;
/// Bytes for the log: sparse.
const LOG_BYTES: u64 = 8 << 30;
/// Where the node in the machine listens for its peer, and for clients.
const GUEST_PORTS: [u16; 2] = [7788, 10809];
/// How long a resync of the whole disk may take when the machine is starved.
const RESYNC_LIMIT: Duration = Duration::from_secs(240);
/// How long a command in the machine may take by its own clock, which was seen to run five times too fast on a starved host.
const GUEST_LIMIT: Duration = Duration::from_secs(900);
/// An emulated processor answers slowly.
const CLIENT_LIMIT: Duration = Duration::from_secs(60);

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The node in the machine.
    Guest,
    /// The node on this host.
    Host,
}

/// How a burst ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With the last answer.
    Answered,
    /// With a flush after the last answer.
    Flushed,
}

/// Writes of several clients at once.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    /// The Primary.
    pub on: Side,
    /// Writes.
    pub writes: u64,
    /// One in so many has FUA.
    pub fua_of: u64,
    /// The end.
    pub end: End,
}

/// What a stage is made of.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The seed of everything.
    pub seed: u64,
    /// Bytes of each disk, internal metadata included.
    pub disk_bytes: u64,
    /// Lines of the `disk` section of both.
    pub disk: &'static str,
    /// First sectors of the cells that clients write.
    pub cells: Vec<u64>,
}

/// What is left when everything has ended.
#[derive(Debug)]
pub struct Recording {
    /// How it was made.
    pub scene: Scene,
    /// What the medium saw.
    pub log: Vec<Entry>,
    /// What clients saw, and the peer's disk.
    pub ledger: Ledger,
    /// The watched disk at the end.
    pub end: Disk,
}

/// The pair.
#[derive(Debug)]
pub struct Stage {
    /// The node on this host.
    pub host: Node,
    /// What the administrator made of the node in the machine: kept up to date by the test.
    pub role: GuestRole,
    /// The same, of its disk.
    pub disk: GuestDisk,
    machine: Machine,
    scene: Scene,
    ledger: Ledger,
    stamper: Stamper,
    dice: Dice,
    nbd: [SocketAddr; 2],
    issued: u64,
    acknowledged: Floor,
    durable: Floor,
    guest_durable: Floor,
    written: BTreeSet<u64>,
    clients: Option<(Side, Vec<Client<TcpStream>>)>,
    _dir: TempDir,
}

/// A request of a client.
#[derive(Clone, Debug)]
struct Request {
    id: u64,
    first: u64,
    sectors: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Write(Fua),
    Zeroes,
    Trim,
    /// What this client was told before is durable now.
    Flush,
}

impl Request {
    fn range(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.sectors
    }

    fn content(&self) -> Content {
        match self.kind {
            Kind::Write(_) => Content::Stamp(self.id),
            Kind::Zeroes | Kind::Trim | Kind::Flush => Content::Zero,
        }
    }

    fn perform(&self, client: &mut Client<TcpStream>, stamper: Stamper) -> std::io::Result<()> {
        let (offset, length) = (self.first * SECTOR, (self.sectors * SECTOR) as u32);
        match self.kind {
            Kind::Write(fua) => {
                let data = stamper.payload(self.id, self.first, self.sectors);
                client.write(offset, &data, fua)
            }
            Kind::Zeroes => client.write_zeroes(offset, length),
            Kind::Trim => client.trim(offset, length),
            Kind::Flush => client.flush(),
        }
    }
}

impl Stage {
    /// Both nodes are up, connected, UpToDate (the disks are blank: no first sync) and Secondary; mark 0 is made.
    ///
    /// # Panics
    /// When something cannot be made.
    pub fn open(scene: Scene) -> Stage {
        let hardware = Hardware {
            disks: &[scene.disk_bytes, LOG_BYTES],
            modules: "dm-mod dm-log-writes",
        };
        let machine = Machine::with(hardware);
        let own = local(free_port());
        let forward = |guest| local(machine.forward(guest));
        let (peer, guest_nbd, host_nbd) = (
            forward(GUEST_PORTS[0]),
            forward(GUEST_PORTS[1]),
            local(free_port()),
        );
        let dir = TempDir::with_prefix("tandem-test-").expect("a directory");
        let settings = Settings {
            disk_bytes: scene.disk_bytes,
            net: String::from(
                "protocol C; timeout 300; connect-int 31; ping-int 20; ping-timeout 300; socket-check-timeout 3;",
            ),
            disk: scene.disk.to_owned(),
            ..Settings::default()
        };
        let mut host = Node::create(dir.path(), "alpha", own, peer, &settings);
        host.must(&["create-md", "r0"]);
        host.start_with_nbd_tcp(host_nbd);
        let stamper = Stamper::new(scene.seed);
        let mut stage = Stage {
            host,
            role: GuestRole::Secondary,
            disk: GuestDisk::Good,
            ledger: Ledger::default(),
            stamper,
            dice: Dice::new(scene.seed, "clients of a stage"),
            nbd: [guest_nbd, host_nbd],
            issued: 0,
            acknowledged: Floor::new(),
            durable: Floor::new(),
            guest_durable: Floor::new(),
            written: BTreeSet::new(),
            clients: None,
            machine,
            scene,
            _dir: dir,
        };
        stage.install(&settings, own.port());
        stage.guest_adm("create-md r0");
        stage.start_guest();
        stage.host.must(&["up", "r0"]);
        stage.guest_adm("up r0");
        stage.wait_guest("Connected", "Inconsistent/Inconsistent");
        stage
            .host
            .wait_state("Connected", "Inconsistent/Inconsistent");
        stage
            .host
            .must(&["new-current-uuid", "--clear-bitmap", "r0"]);
        stage.wait_good();
        stage.mark("start", Pace::Transition);
        stage
    }

    /// The binary with its libraries, its configuration and its disk.
    fn install(&self, settings: &Settings, host_port: u16) {
        let share = self.machine.share();
        fs::create_dir_all(share.join("lib")).expect("a directory of the machine");
        fs::copy(binary(), share.join("tandem")).expect("copy the binary");
        let libraries = process::run(Command::new("ldd").arg(binary()), EXEC_LIMIT);
        let words = libraries
            .stdout
            .split_whitespace()
            .filter(|word| word.starts_with("/lib"));
        for path in words {
            let name = path.rsplit('/').next().unwrap_or(path);
            fs::copy(path, share.join("lib").join(name)).expect("copy a library");
        }
        let text = format!(
            "global {{ usage-count no; }}\nresource r0 {{\n  net {{ {} }}\n  disk {{ {} }}\n  volume 0 {{ device /dev/drbd0 minor 0; \
             disk /dev/mapper/watched; meta-disk internal; }}\n  on bravo {{ address 10.0.2.15:{}; }}\n  \
             on alpha {{ address 10.0.2.2:{host_port}; }}\n}}\n",
            settings.net, settings.disk, GUEST_PORTS[0]
        );
        fs::write(share.join("drbd.conf"), text).expect("a configuration file");
        let sectors = self.scene.disk_bytes / SECTOR;
        self.shell(&format!(
            "set -e; for f in /share/lib/*; do [ -e /usr/lib/x86_64-linux-gnu/${{f##*/}} ] || cp $f /usr/lib/x86_64-linux-gnu/; done; \
             cp /share/tandem /usr/sbin/tandem; mkdir -p /node/etc; cp /share/drbd.conf /node/etc/; \
             DM_DISABLE_UDEV=1 dmsetup create watched --table '0 {sectors} log-writes /dev/vda /dev/vdb'"
        ));
    }

    /// Starts the daemon in the machine and waits until it answers.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_guest(&self) {
        self.shell(&format!(
            "rm -f /node/run/tandem/control.sock; export __DRBD_NODE__=bravo RUST_LOG=info; \
             setsid tandem daemon --root /node --nbd-tcp 10.0.2.15:{} </dev/null >>/share/daemon.log 2>&1 & \
             end=$(($(date +%s) + 600)); until [ -S /node/run/tandem/control.sock ]; do \
             [ $(date +%s) -lt $end ] || {{ ps; head -3 /proc/meminfo; dmesg | tail -20; cat /proc/[0-9]*/stack; exit 1; }}; sleep 0.1; done",
            GUEST_PORTS[1]
        ));
    }

    /// SIGKILL of the daemon in the machine: its disk, with its cache, stays.
    ///
    /// # Panics
    /// When it does not end.
    pub fn kill_guest(&mut self) {
        self.clients = None;
        self.shell("p=$(cat /node/run/tandem/tandemd.pid); kill -9 $p || exit 2; n=0; while [ -e /proc/$p/exe ]; do n=$((n+1)); [ $n -lt 300 ] || exit 1; sleep 0.1; done");
    }

    /// A line of shell in the machine, which must succeed; its output.
    fn shell(&self, line: &str) -> String {
        let ended = self.machine.exec(line, GUEST_LIMIT);
        assert_eq!(
            ended.code,
            Some(0),
            "in the machine: {line}: {}\n{}",
            ended.all(),
            self.logs()
        );
        ended.stdout
    }

    /// The last lines of both daemons.
    fn logs(&self) -> String {
        let text = fs::read_to_string(self.machine.share().join("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!(
            "--- the machine's daemon\n{}\n{}",
            lines[lines.len().saturating_sub(100)..].join("\n"),
            self.host.log()
        )
    }

    /// `tandem adm ARGS` in the machine, which must succeed; its output.
    ///
    /// # Panics
    /// When it fails.
    pub fn guest_adm(&self, args: &str) -> String {
        self.shell(&format!(
            "__DRBD_NODE__=bravo tandem adm --root /node {args}"
        ))
    }

    /// Waits until the node in the machine is in these states.
    ///
    /// # Panics
    /// When it is not in time.
    pub fn wait_guest(&self, connection: &str, disks: &str) {
        let wanted = format!("{connection} {disks}");
        let reached = || {
            let words =
                self.guest_adm("cstate r0; __DRBD_NODE__=bravo tandem adm --root /node dstate r0");
            (words.split_whitespace().collect::<Vec<_>>().join(" ") == wanted).then_some(())
        };
        wait::until(
            &format!("{wanted} in the machine"),
            STATE_LIMIT,
            reached,
            || self.logs(),
        );
    }

    /// Waits until both are connected and UpToDate.
    ///
    /// # Panics
    /// When they are not in time.
    pub fn wait_good(&self) {
        let good = || {
            let words = [self.host.word("cstate"), self.host.word("dstate")];
            (words == ["Connected", "UpToDate/UpToDate"]).then_some(())
        };
        wait::until("the end of a resync", RESYNC_LIMIT, good, || self.logs());
        self.wait_guest("Connected", "UpToDate/UpToDate");
    }

    /// Clients write.
    ///
    /// # Panics
    /// When a request fails.
    pub fn burst(&mut self, burst: Burst) {
        if self
            .clients
            .as_ref()
            .is_none_or(|(side, _)| *side != burst.on)
        {
            let server = self.nbd[burst.on as usize];
            let connect = |_| Client::connect_tcp(server, "r0/0", CLIENT_LIMIT);
            let clients = (0..CLIENTS)
                .map(connect)
                .collect::<std::io::Result<Vec<_>>>();
            let clients = clients.unwrap_or_else(|error| panic!("NBD: {error}\n{}", self.logs()));
            self.clients = Some((burst.on, clients));
        }
        let queues: Vec<Vec<Request>> = self.draw(burst);
        for request in queues
            .iter()
            .flatten()
            .filter(|request| request.kind != Kind::Flush)
        {
            for sector in request.range() {
                self.ledger.issue(request.id, sector, request.content());
                self.written.insert(sector);
            }
        }
        // What two clients issue at once is in no order; each sector belongs to one client.
        for versions in self.ledger.versions.values_mut() {
            versions.sort_by_key(|(write, _)| *write);
        }
        let (_, clients) = self.clients.as_mut().expect("clients are connected");
        let stamper = self.stamper;
        let failed: Vec<String> = std::thread::scope(|scope| {
            let pairs = clients.iter_mut().zip(&queues);
            let running: Vec<_> = pairs
                .map(|(client, queue)| {
                    scope.spawn(move || perform_all(queue, client, stamper).err())
                })
                .collect();
            running
                .into_iter()
                .filter_map(|client| client.join().expect("a client ends"))
                .collect()
        });
        assert!(
            failed.is_empty(),
            "requests fail: {failed:?}\n{}",
            self.logs()
        );
        for queue in &queues {
            self.told(queue);
        }
        if burst.end == End::Flushed {
            let flushed = self.clients.as_mut().map(|(_, clients)| clients[0].flush());
            assert!(
                matches!(flushed, Some(Ok(()))),
                "a flush fails: {flushed:?}\n{}",
                self.logs()
            );
            let all = self.acknowledged.clone();
            for (sector, write) in all {
                self.is_durable(sector..sector + 1, write);
            }
        }
    }

    /// The clients let go of the device.
    pub fn close_clients(&mut self) {
        if let Some((_, clients)) = self.clients.take() {
            for client in clients {
                client.disconnect().ok();
            }
        }
    }

    fn draw(&mut self, burst: Burst) -> Vec<Vec<Request>> {
        let mut queues = vec![Vec::new(); CLIENTS as usize];
        let cells = self.scene.cells.len() as u64;
        for _ in 0..burst.writes {
            let cell = self.dice.below(cells);
            self.issued += 1;
            let start = self.scene.cells[cell as usize];
            let (offset, sectors) = match self.dice.below(10) {
                0 => (0, CELL),
                1 | 2 => {
                    let offset = self.dice.below(CELL);
                    (offset, 1 + self.dice.below((CELL - offset).min(20)))
                }
                _ => (self.dice.below(CELL / 8) * 8, 8),
            };
            let aligned = offset % 8 == 0 && sectors % 8 == 0;
            let kind = match self.dice.below(24) {
                0 if aligned => Kind::Zeroes,
                1 if aligned => Kind::Trim,
                _ if self.dice.chance(1, burst.fua_of) => Kind::Write(Fua::Yes),
                _ => Kind::Write(Fua::No),
            };
            let queue = &mut queues[(cell % CLIENTS) as usize];
            queue.push(Request {
                id: self.issued,
                first: start + offset,
                sectors,
                kind,
            });
            // After zeroes too: their sectors carry no stamp that tells their age (cuts).
            if self.dice.chance(1, 16) || matches!(kind, Kind::Zeroes | Kind::Trim) {
                queue.push(Request {
                    id: 0,
                    first: 0,
                    sectors: 0,
                    kind: Kind::Flush,
                });
            }
        }
        queues
    }

    /// All of a client's requests were answered.
    fn told(&mut self, queue: &[Request]) {
        let last_flush = queue
            .iter()
            .rposition(|request| request.kind == Kind::Flush)
            .unwrap_or(0);
        for (at, request) in queue.iter().enumerate() {
            raise(&mut self.acknowledged, request.range(), request.id);
            if at < last_flush || request.kind == Kind::Write(Fua::Yes) {
                self.is_durable(request.range(), request.id);
            }
        }
    }

    fn is_durable(&mut self, sectors: std::ops::Range<u64>, write: u64) {
        raise(&mut self.durable, sectors.clone(), write);
        if self.disk == GuestDisk::Good {
            raise(&mut self.guest_durable, sectors, write);
        }
    }

    /// A mark in the log and in the ledger: everything that was asked for has been answered.
    ///
    /// # Panics
    /// When the machine refuses.
    pub fn mark(&mut self, name: &str, pace: Pace) {
        let number = self.ledger.marks.len();
        self.shell(&format!(
            "DM_DISABLE_UDEV=1 dmsetup message watched 0 mark {}",
            mark_name(number)
        ));
        let mark = Mark {
            name: format!("{number} ({name})"),
            issued: self.issued,
            pace,
            role: self.role,
            disk: self.disk,
            acknowledged: self.acknowledged.clone(),
            durable: self.durable.clone(),
            guest_durable: self.guest_durable.clone(),
            written: std::mem::take(&mut self.written),
            peer: self.peer_disk(),
        };
        self.ledger.marks.push(mark);
    }

    /// As [`Stage::mark`], while the node in the machine is the target of a resync; a mark at its begin or end promises nothing.
    ///
    /// # Panics
    /// When the machine refuses.
    pub fn mark_target(&mut self, name: &str) {
        let before = self.host.word("cstate");
        self.disk = GuestDisk::Target;
        self.mark(name, Pace::Transition);
        if [before, self.host.word("cstate")] != ["SyncSource", "SyncSource"] {
            self.disk = GuestDisk::Absent;
            if let Some(mark) = self.ledger.marks.last_mut() {
                mark.disk = GuestDisk::Absent;
            }
        }
    }

    /// What the node on this host has on its disk now.
    fn peer_disk(&self) -> Disk {
        let file = File::open(self.host.disk(0)).expect("the host's disk");
        let bytes = self.scene.disk_bytes;
        let layout = Layout::new(Placement::Internal, ByteLen(bytes), AlGeometry::DEFAULT)
            .expect("a layout");
        let (start, length) = layout.area();
        let read = |offset: u64, length: u64| {
            let mut data = vec![0; length as usize];
            file.read_exact_at(&mut data, offset)
                .expect("read the host's disk");
            data
        };
        let mut disk = Disk::new(self.stamper, bytes);
        // Until two readings agree: its own housekeeping may write just now.
        let meta = wait::until(
            "two equal readings of the host's metadata",
            STATE_LIMIT,
            || {
                let first = read(start.0, length.0);
                (first == read(start.0, length.0)).then_some(first)
            },
            String::new,
        );
        disk.write(start.0, &meta, true);
        for cell in &self.scene.cells {
            disk.write(cell * SECTOR, &read(cell * SECTOR, CELL * SECTOR), true);
        }
        disk
    }

    /// Ends both nodes and reads the log.
    ///
    /// # Panics
    /// When the log cannot be read.
    pub fn finish(mut self) -> Recording {
        self.close_clients();
        self.host.must(&["down", "r0"]);
        self.guest_adm("down r0");
        self.role = GuestRole::Secondary;
        self.disk = GuestDisk::Absent;
        self.mark("down", Pace::Transition);
        self.kill_guest();
        self.shell("n=0; until DM_DISABLE_UDEV=1 dmsetup remove watched; do n=$((n+1)); [ $n -lt 50 ] || exit 1; sleep 0.1; done");
        self.machine.crash();
        let log = log::read(&self.machine.disk_file(1)).expect("the log");
        fs::remove_file(self.machine.disk_file(1)).ok();
        let mut end = Disk::new(self.stamper, self.scene.disk_bytes);
        let bytes = fs::read(self.machine.disk_file(0)).expect("the watched disk");
        end.write(0, &bytes, true);
        Recording {
            scene: self.scene,
            log,
            ledger: self.ledger,
            end,
        }
    }
}

/// One after the other.
fn perform_all(
    queue: &[Request],
    client: &mut Client<TcpStream>,
    stamper: Stamper,
) -> Result<(), String> {
    for request in queue {
        let result = request.perform(client, stamper);
        result.map_err(|error| format!("{request:?}: {error}"))?;
    }
    Ok(())
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
