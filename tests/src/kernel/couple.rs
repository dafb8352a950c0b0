//! A pair of two kinds: one Tandem node on this host, one kernel node in a machine.

use std::cell::RefCell;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tempfile::TempDir;

use super::gate::Gate;
use super::machine::{Machine, free_port};
use super::node::KernelNode;
use super::record::Record;
use super::tap::Tap;
use crate::e2e::client::Client;
use crate::e2e::node::{COMMAND_LIMIT, Meta, Node, STATE_LIMIT, Settings};
use crate::e2e::wait;

/// Which node dials the other; both listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dial {
    /// Both, as usual.
    Both,
    /// Nobody answers where Tandem dials.
    OnlyKernel,
    /// Nobody answers where the kernel dials.
    OnlyTandem,
}

/// What is between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Nothing.
    Direct,
    /// A relay that keeps what Tandem says; only Tandem dials then.
    Tapped,
    /// A gate that can hold what either dials until both have.
    Gated,
}

/// What differs from the ordinary.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Lines of both `net` sections.
    pub net: String,
    /// Further lines of Tandem's.
    pub tandem_net: String,
    /// Further lines of the kernel's.
    pub kernel_net: String,
    /// Lines of both `disk` sections.
    pub disk: String,
    /// Further lines of the kernel's `disk` section.
    pub kernel_disk: String,
    /// Bytes of Tandem's backing file.
    pub tandem_bytes: u64,
    /// Bytes of the kernel's backing disk.
    pub kernel_bytes: u64,
    /// Volumes of the resource.
    pub volumes: u16,
    /// Where the metadata lie on both nodes.
    pub meta: Meta,
    /// Who dials.
    pub dial: Dial,
    /// What is between the two.
    pub wire: Wire,
    /// How long both wait for each other: lines of both `net` sections.
    pub times: &'static str,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            net: String::from("protocol C;"),
            tandem_net: String::new(),
            kernel_net: String::new(),
            disk: String::from("c-plan-ahead 0; resync-rate 400M;"),
            kernel_disk: String::new(),
            tandem_bytes: 8 << 20,
            kernel_bytes: 8 << 20,
            volumes: 1,
            meta: Meta::Internal,
            dial: Dial::Both,
            wire: Wire::Direct,
            times: TIMES,
        }
    }
}

/// Short times between attempts, patient answers: an emulated processor is slow.
const TIMES: &str = "connect-int 1; ping-timeout 30; socket-check-timeout 3;";

/// The pair.
#[derive(Debug)]
pub struct Couple<'m> {
    /// The kernel's node.
    pub kernel: KernelNode<'m>,
    /// Tandem's node.
    pub tandem: Node,
    /// How they were configured.
    pub setup: Setup,
    /// Tandem's address, and where it finds the kernel.
    addresses: (SocketAddr, SocketAddr),
    /// Where the kernel finds Tandem.
    tandem_port_seen: u16,
    /// The port of this host that leads to the kernel's.
    kernel_port: u16,
    tap: Option<Tap>,
    gate: Option<Gate>,
    record: Record,
    machine: &'m Machine,
    announced: RefCell<Vec<&'static str>>,
    /// Everything of the Tandem node lies here; removed at the end.
    _dir: TempDir,
}

impl<'m> Couple<'m> {
    /// Configures both nodes; no metadata yet, Tandem's daemon does not run yet.
    ///
    /// # Panics
    /// When something cannot be made.
    pub fn configured(machine: &'m Machine, setup: Setup) -> Couple<'m> {
        let record = Record::begin();
        let kernel = KernelNode::create(machine, setup.kernel_bytes, setup.volumes, setup.meta);
        let own = free_port();
        let kernel_port = machine.forward(kernel.guest_port());
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let tap = (setup.wire == Wire::Tapped).then(|| Tap::start(local(kernel_port)));
        let gate = (setup.wire == Wire::Gated).then(|| Gate::start(local(own), local(kernel_port)));
        let seen_by_kernel = match (setup.dial, &gate) {
            (_, Some(gate)) => gate.for_kernel.port(),
            _ if setup.dial == Dial::OnlyTandem || tap.is_some() => free_port(),
            _ => own,
        };
        let peer = match (&tap, &gate) {
            (Some(tap), _) => tap.address.port(),
            (None, Some(gate)) => gate.for_tandem.port(),
            _ if setup.dial == Dial::OnlyKernel => free_port(),
            _ => kernel_port,
        };
        let addresses = (local(own), local(peer));
        let dir = TempDir::with_prefix("tandem-test-").expect("a directory");
        let settings = settings(&setup);
        let tandem = Node::create(dir.path(), "alpha", addresses.0, addresses.1, &settings);
        let couple = Couple {
            kernel,
            tandem,
            setup,
            addresses,
            tandem_port_seen: seen_by_kernel,
            kernel_port,
            tap,
            gate,
            record,
            machine,
            announced: RefCell::new(Vec::new()),
            _dir: dir,
        };
        couple.configure_kernel();
        couple
    }

    fn kernel_sections(&self) -> (String, String) {
        let setup = &self.setup;
        (
            format!("{} {} {}", setup.net, setup.kernel_net, setup.times),
            format!("{} {}", setup.disk, setup.kernel_disk),
        )
    }

    fn configure_kernel(&self) {
        let (net, disk) = self.kernel_sections();
        self.kernel.configure(self.tandem_port_seen, &net, &disk);
    }

    /// Writes both configurations anew, after `setup` was changed.
    pub fn reconfigure(&self) {
        self.configure_kernel();
        self.reconfigure_tandem();
    }

    /// The same for Tandem alone.
    pub fn reconfigure_tandem(&self) {
        let settings = settings(&self.setup);
        self.tandem
            .configure(self.addresses.0, self.addresses.1, &settings);
    }

    /// The kernel's disk and configuration, after its machine was booted again.
    pub fn after_boot(&self) {
        let (net, disk) = self.kernel_sections();
        self.kernel.after_boot(self.tandem_port_seen, &net, &disk);
    }

    /// Fresh metadata on both nodes, Tandem's daemon runs, nothing is up yet.
    ///
    /// # Panics
    /// When a command fails.
    pub fn created(machine: &'m Machine, setup: Setup) -> Couple<'m> {
        let mut couple = Couple::configured(machine, setup);
        couple.create();
        couple
    }

    /// Fresh metadata on both nodes, and Tandem's daemon.
    ///
    /// # Panics
    /// When a command fails.
    pub fn create(&mut self) {
        self.kernel.must("create-md --force");
        self.tandem.must(&["create-md", "--force", "r0"]);
        self.tandem.start();
    }

    /// Up on both nodes.
    ///
    /// # Panics
    /// When a command fails.
    pub fn up(&self) {
        self.tandem.must(&["up", "r0"]);
        self.kernel.must("up");
    }

    /// Both see each other, with these disk states as the kernel sees them (own/peer).
    ///
    /// # Panics
    /// When they do not in time.
    pub fn wait_connected(&self, kernel_first: &str) {
        self.kernel
            .wait_for(&format!("cs:Connected ro:[A-Za-z/]* ds:{kernel_first} "));
        let (own, peer) = kernel_first.split_once('/').expect("own/peer");
        self.tandem
            .wait_state("Connected", &format!("{peer}/{own}"));
        for volume in 1..self.setup.volumes {
            let view = self.kernel.volume(volume);
            view.wait_for(&format!("cs:Connected ro:[A-Za-z/]* ds:{kernel_first} "));
        }
    }

    /// Connected, without data.
    ///
    /// # Panics
    /// When a step fails.
    pub fn connected(machine: &'m Machine, setup: Setup) -> Couple<'m> {
        let couple = Couple::created(machine, setup);
        couple.up();
        couple.wait_connected("Inconsistent/Inconsistent");
        couple
    }

    /// Connected and in sync, both Secondary; the disks were empty.
    ///
    /// # Panics
    /// When a step fails.
    pub fn synced(machine: &'m Machine, setup: Setup) -> Couple<'m> {
        let couple = Couple::connected(machine, setup);
        couple.kernel.must("primary --force");
        couple.wait_connected("UpToDate/UpToDate");
        couple.kernel.must("secondary");
        couple
    }

    /// Connected and in sync without a resync: for large disks, which are as empty as they were made.
    ///
    /// # Panics
    /// When a step fails.
    pub fn equal_from_the_start(machine: &'m Machine, setup: Setup) -> Couple<'m> {
        let couple = Couple::connected(machine, setup);
        couple.kernel.skip_initial_sync();
        couple.wait_connected("UpToDate/UpToDate");
        couple
    }

    /// The relay between the two.
    ///
    /// # Panics
    /// When the setup has none.
    pub fn tap(&self) -> &Tap {
        self.tap.as_ref().expect("Wire::Tapped")
    }

    /// The gate between the two.
    ///
    /// # Panics
    /// When the setup has none.
    pub fn gate(&self) -> &Gate {
        self.gate.as_ref().expect("Wire::Gated")
    }

    /// Both report the same: connection, roles and disks from their two ends, and what each counts as out of sync.
    ///
    /// # Panics
    /// When they do not, for a while.
    pub fn wait_agreement(&self) {
        let agree = || {
            let kernel = self.kernel.state();
            let ours = self.tandem_state();
            let counts = (self.kernel.out_of_sync_kib(), self.tandem.counter(0, "oos"));
            (kernel.starts_with(&ours) && counts.0 == counts.1).then_some(())
        };
        wait::until("agreement", STATE_LIMIT, agree, || {
            let kernel = self.kernel.out_of_sync_kib();
            format!(
                "the kernel: {} oos:{kernel}\nTandem, seen from there: {} oos:{}\n",
                self.kernel.state(),
                self.tandem_state(),
                self.tandem.counter(0, "oos"),
            )
        });
    }

    /// As [`Couple::wait_agreement`], while the counts still move.
    ///
    /// # Panics
    /// As there.
    pub fn wait_agreement_of_states(&self) {
        let agree = || {
            let ours = self.tandem_state();
            self.kernel.state().starts_with(&ours).then_some(())
        };
        wait::until("the same states", STATE_LIMIT, agree, || {
            format!("{}\n{}\n", self.kernel.state(), self.tandem_state())
        });
    }

    /// Waits until a resync that is under way has less than this left, in KiB, as the kernel counts.
    ///
    /// # Panics
    /// When it does not come that far.
    pub fn wait_out_of_sync_below(&self, kib: u64) {
        let below = || (self.kernel.out_of_sync_kib() < kib).then_some(());
        wait::until("a part of the resync", STATE_LIMIT, below, || {
            self.kernel.log()
        });
    }

    /// What the kernel's line must begin with, if Tandem is right.
    fn tandem_state(&self) -> String {
        let turned = |word: &str| {
            let text = self.tandem.word(word);
            let (own, peer) = text.split_once('/').unwrap_or((&text, ""));
            format!("{peer}/{own}")
        };
        let conn = match self.tandem.word("cstate").as_str() {
            "SyncSource" => String::from("SyncTarget"),
            "SyncTarget" => String::from("SyncSource"),
            same => same.to_owned(),
        };
        format!("cs:{conn} ro:{} ds:{} ", turned("role"), turned("dstate"))
    }

    /// A client of Tandem's device.
    ///
    /// # Panics
    /// When it is refused.
    pub fn client(&self) -> Client {
        self.client_of(0)
    }

    /// A client of Tandem's device of this volume.
    ///
    /// # Panics
    /// When it is refused.
    pub fn client_of(&self, volume: u16) -> Client {
        Client::connect(
            &self.tandem.socket(),
            &format!("r0/{volume}"),
            COMMAND_LIMIT,
        )
        .unwrap_or_else(|error| panic!("NBD: {error}\n{}", self.tandem.log()))
    }

    /// Parts of messages that this test lets the kernel say.
    pub fn may_say(&self, parts: &[&'static str]) {
        self.announced.borrow_mut().extend_from_slice(parts);
    }

    /// Compares the data of both backing disks, up to the end of the device.
    ///
    /// # Panics
    /// When a block differs.
    pub fn compare_disks(&self) {
        let bytes = self.kernel.device_bytes();
        for volume in 0..self.setup.volumes {
            self.compare_first(volume, bytes);
        }
    }

    /// Compares the first `bytes` of both backing disks of a volume.
    ///
    /// # Panics
    /// When a block differs.
    pub fn compare_first(&self, volume: u16, bytes: u64) {
        let ours = fs::read(self.tandem.disk(volume)).expect("Tandem's disk");
        let kernels = self.kernel.volume(volume).disk(0, bytes);
        let differing: Vec<usize> = ours[..bytes as usize]
            .chunks(4096)
            .zip(kernels.chunks(4096))
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .map(|(block, _)| block)
            .collect();
        assert!(
            differing.is_empty(),
            "volume {volume}: {} blocks differ, first {:?}\n{}{}",
            differing.len(),
            &differing[..differing.len().min(10)],
            self.tandem.log(),
            self.kernel.log()
        );
    }

    /// Takes both nodes down, compares their disks and judges what the kernel said.
    ///
    /// # Panics
    /// When something is not in order.
    pub fn finish(self) {
        let bytes = self.kernel.device_bytes();
        self.tandem.must(&["down", "r0"]);
        self.kernel.must("down");
        for volume in 0..self.setup.volumes {
            self.compare_first(volume, bytes);
        }
        self.kernel.judge_messages(&self.announced.borrow());
    }

    /// Takes both nodes down and judges what the kernel said; their disks may differ.
    ///
    /// # Panics
    /// When something is not in order.
    pub fn finish_unequal(self) {
        self.tandem.must(&["down", "r0"]);
        self.kernel.must("down");
        self.kernel.judge_messages(&self.announced.borrow());
    }
}

impl Drop for Couple<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}{}", self.tandem.log(), self.kernel.log());
        }
        self.machine.unforward(self.kernel_port);
        // A machine that a failed test left crashed cannot tell its version.
        let version = if std::thread::panicking() {
            ""
        } else {
            self.machine.version()
        };
        self.record
            .end(&self.kernel.messages(), &self.tandem.whole_log(), version);
    }
}

fn settings(setup: &Setup) -> Settings {
    Settings {
        disk_bytes: setup.tandem_bytes,
        net: format!("{} {} {}", setup.net, setup.tandem_net, setup.times),
        disk: setup.disk.clone(),
        volumes: setup.volumes,
        meta: setup.meta,
        ..Settings::default()
    }
}

/// A time limit for what takes a moment.
pub const MOMENT: Duration = Duration::from_secs(10);
