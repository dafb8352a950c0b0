//! Two nodes and, where a test wants to disturb it, the link between them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tandem_metadata::units::ByteLen;
use tandem_metadata::{AlGeometry, Layout, Placement};
use tempfile::TempDir;

use super::address;
use super::client::Client;
use super::node::{Meta, Node, Settings};
use super::proxy::Proxy;
use super::record::{self, Record};

/// How long a request of a client may take.
pub const CLIENT_LIMIT: Duration = Duration::from_secs(30);

/// The two nodes of a test.
#[derive(Debug)]
pub struct Pair {
    /// The first node.
    pub alpha: Node,
    /// The second node.
    pub bravo: Node,
    /// What alpha's connections to bravo, and bravo's to alpha, go through.
    pub proxies: Option<[Proxy; 2]>,
    /// Where alpha listens, and where it believes bravo.
    pub alpha_addresses: (SocketAddr, SocketAddr),
    /// Where bravo listens, and where it believes alpha.
    pub bravo_addresses: (SocketAddr, SocketAddr),
    /// What both are configured with.
    pub settings: Settings,
    /// Everything lies here; removed at the end.
    pub dir: TempDir,
}

/// Whether the link can be disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// The nodes talk to each other.
    Direct,
    /// Through proxies.
    Proxied,
}

impl Pair {
    /// Two configured nodes with running daemons and fresh metadata; nothing is up yet.
    ///
    /// # Panics
    /// When something cannot be made.
    pub fn new(settings: &Settings, link: LinkKind) -> Pair {
        Pair::in_directory(settings, link, &std::env::temp_dir())
    }

    /// As [`Pair::new`], with its files below `base`.
    ///
    /// # Panics
    /// When something cannot be made.
    pub fn in_directory(settings: &Settings, link: LinkKind, base: &Path) -> Pair {
        let mut pair = Pair::configured(settings, link, base);
        for node in [&mut pair.alpha, &mut pair.bravo] {
            node.must(&["create-md", "r0"]);
            node.start();
        }
        pair
    }

    /// Two configured nodes with blank disks; no daemon runs.
    ///
    /// # Panics
    /// When something cannot be made.
    pub fn configured(settings: &Settings, link: LinkKind, base: &Path) -> Pair {
        let dir = TempDir::with_prefix_in("tandem-test-", base).expect("a directory");
        let (a, b) = (address::fresh(), address::fresh());
        let (proxies, a_seen, b_seen) = match link {
            LinkKind::Direct => (None, a, b),
            LinkKind::Proxied => {
                let (to_b, to_a) = (address::fresh(), address::fresh());
                // Bravo expects alpha to come from where it believes alpha, and the other way round.
                let proxies = [
                    Proxy::start(to_b, b, to_a.ip()),
                    Proxy::start(to_a, a, to_b.ip()),
                ];
                (Some(proxies), to_a, to_b)
            }
        };
        Pair {
            alpha: Node::create(dir.path(), "alpha", a, b_seen, settings),
            bravo: Node::create(dir.path(), "bravo", b, a_seen, settings),
            proxies,
            alpha_addresses: (a, b_seen),
            bravo_addresses: (b, a_seen),
            settings: settings.clone(),
            dir,
        }
    }

    /// As [`Pair::new`], brought up and synced, alpha Primary.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn synced(settings: &Settings, link: LinkKind) -> Pair {
        let pair = Pair::new(settings, link);
        pair.bring_up();
        pair
    }

    /// Brings both nodes up and connects them; the disks are fresh.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn connect_fresh(&self) {
        self.alpha.must(&["up", "r0"]);
        self.bravo.must(&["up", "r0"]);
        for node in [&self.alpha, &self.bravo] {
            node.wait_state("Connected", "Inconsistent/Inconsistent");
        }
    }

    /// Brings both nodes up, makes alpha Primary and waits for the end of the first sync.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn bring_up(&self) {
        self.connect_fresh();
        self.alpha.must(&["primary", "--force", "r0"]);
        self.wait_synced();
    }

    /// Brings both nodes up with blank disks that are declared equal: no first sync. Alpha is Primary.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn bring_up_without_sync(&self) {
        self.connect_fresh();
        self.alpha
            .must(&["new-current-uuid", "--clear-bitmap", "r0"]);
        self.wait_synced();
        self.alpha.must(&["primary", "r0"]);
    }

    /// Waits until both nodes are connected with good data.
    ///
    /// # Panics
    /// When they are not in time.
    pub fn wait_synced(&self) {
        for node in [&self.alpha, &self.bravo] {
            node.wait_state("Connected", "UpToDate/UpToDate");
        }
    }

    /// Writes other settings into both configuration files; nothing running is told.
    pub fn configure(&mut self, settings: &Settings) {
        let (own, peer) = self.alpha_addresses;
        self.alpha.configure(own, peer, settings);
        let (own, peer) = self.bravo_addresses;
        self.bravo.configure(own, peer, settings);
        self.settings = settings.clone();
    }

    /// Cuts the link.
    ///
    /// # Panics
    /// When the pair has no proxies.
    pub fn cut(&self) {
        self.each_proxy(Proxy::cut);
    }

    /// Heals the link.
    ///
    /// # Panics
    /// When the pair has no proxies.
    pub fn heal(&self) {
        self.each_proxy(Proxy::heal);
    }

    /// Every byte arrives this much later.
    ///
    /// # Panics
    /// When the pair has no proxies.
    pub fn delay(&self, delay: Duration) {
        self.each_proxy(|proxy| proxy.delay(delay));
    }

    fn each_proxy(&self, mut act: impl FnMut(&Proxy)) {
        let proxies = self.proxies.as_ref().expect("a proxied pair");
        proxies.iter().for_each(&mut act);
    }

    /// Size of each volume's device in bytes.
    ///
    /// # Panics
    /// When the disks are too small for their metadata.
    pub fn device_bytes(&self) -> u64 {
        let disk = self.settings.disk_bytes;
        match self.settings.meta {
            Meta::External => disk,
            Meta::Internal => {
                let layout = Layout::new(Placement::Internal, ByteLen(disk), AlGeometry::DEFAULT);
                layout.expect("metadata fit the disk").data_size_max().0 * 512
            }
        }
    }

    /// A record of a device of this size on which nothing was written yet.
    pub fn record(&self) -> Record {
        Record::new(self.device_bytes())
    }

    /// A client of volume 0 on `node`.
    ///
    /// # Panics
    /// When the node does not serve it.
    pub fn client(&self, node: &Node) -> Client {
        let client = Client::connect(&node.socket(), "r0/0", CLIENT_LIMIT);
        client.unwrap_or_else(|error| panic!("a client of {}: {error}\n{}", node.name, self.logs()))
    }

    /// The logs of both nodes, for messages.
    pub fn logs(&self) -> String {
        format!("{}{}", self.alpha.log(), self.bravo.log())
    }

    /// Compares the data of both backing files block by block, up to `device_bytes`.
    ///
    /// # Panics
    /// When a block differs, naming the first ones.
    pub fn compare_disks(&self, volume: u16, device_bytes: u64) {
        let a = record::read_disk(&self.alpha.disk(volume), device_bytes);
        let b = record::read_disk(&self.bravo.disk(volume), device_bytes);
        let differing = record::differing(&a, &b);
        assert!(
            differing.is_empty(),
            "the disks of volume {volume} differ in {}\n{}",
            record::name_blocks(&differing),
            self.logs()
        );
    }

    /// Compares both backing files with each other and with what the client knows.
    ///
    /// # Panics
    /// When a block differs, naming the first ones.
    pub fn compare_with(&self, volume: u16, known: &Record) {
        self.compare_disks(volume, known.len());
        let found = record::read_disk(&self.alpha.disk(volume), known.len());
        let wrong = known.contradicted(&found);
        assert!(
            wrong.is_empty(),
            "both disks of volume {volume} contradict the client's record in {}\n{}",
            record::name_blocks(&wrong),
            self.logs()
        );
    }

    /// Takes both nodes down in order, so that nothing is in flight on their disks.
    ///
    /// # Panics
    /// When a command fails.
    pub fn down(&self) {
        self.alpha.must(&["down", "r0"]);
        self.bravo.must(&["down", "r0"]);
    }

    /// Takes both nodes down and compares volume 0 with what the client knows.
    ///
    /// # Panics
    /// When a command fails or a block differs.
    pub fn down_and_compare(&self, known: &Record) {
        self.wait_synced();
        self.down();
        self.compare_with(0, known);
    }
}
