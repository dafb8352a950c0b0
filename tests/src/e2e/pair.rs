//! Two nodes and, where a test wants to disturb it, the link between them.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::address;
use super::node::{Node, Settings};
use super::proxy::Proxy;

/// The two nodes of a test.
#[derive(Debug)]
pub struct Pair {
    /// The first node.
    pub alpha: Node,
    /// The second node.
    pub bravo: Node,
    /// What alpha's connections to bravo, and bravo's to alpha, go through.
    pub proxies: Option<[Proxy; 2]>,
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
        let dir = TempDir::with_prefix_in("tandem-test-", base).expect("a directory");
        let (a, b) = (address::fresh(), address::fresh());
        let (proxies, a_seen, b_seen) = match link {
            LinkKind::Direct => (None, a, b),
            LinkKind::Proxied => {
                let (to_b, to_a) = (address::fresh(), address::fresh());
                let proxies = [Proxy::start(to_b, b), Proxy::start(to_a, a)];
                (Some(proxies), to_a, to_b)
            }
        };
        let mut alpha = Node::create(dir.path(), "alpha", a, b_seen, settings);
        let mut bravo = Node::create(dir.path(), "bravo", b, a_seen, settings);
        for node in [&mut alpha, &mut bravo] {
            node.must(&["create-md", "r0"]);
            node.start();
        }
        Pair {
            alpha,
            bravo,
            proxies,
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

    /// Brings both nodes up, makes alpha Primary and waits for the end of the first sync.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn bring_up(&self) {
        self.alpha.must(&["up", "r0"]);
        self.bravo.must(&["up", "r0"]);
        self.alpha
            .wait_state("Connected", "Inconsistent/Inconsistent");
        self.alpha.must(&["primary", "--force", "r0"]);
        self.alpha.wait_state("Connected", "UpToDate/UpToDate");
        self.bravo.wait_state("Connected", "UpToDate/UpToDate");
    }

    /// Cuts the link.
    ///
    /// # Panics
    /// When the pair has no proxies.
    pub fn cut(&self) {
        self.proxies
            .as_ref()
            .expect("a proxied pair")
            .iter()
            .for_each(Proxy::cut);
    }

    /// Heals the link.
    ///
    /// # Panics
    /// When the pair has no proxies.
    pub fn heal(&self) {
        self.proxies
            .as_ref()
            .expect("a proxied pair")
            .iter()
            .for_each(Proxy::heal);
    }

    /// Compares the data of both backing files block by block, up to the end of the device.
    ///
    /// # Panics
    /// When a block differs, naming the first ones.
    pub fn compare_disks(&self, volume: u16, device_bytes: u64) {
        let a = fs::read(self.alpha.disk(volume)).expect("alpha's disk");
        let b = fs::read(self.bravo.disk(volume)).expect("bravo's disk");
        let end = device_bytes as usize;
        assert!(
            a.len() >= end && b.len() >= end,
            "a disk is smaller than the device"
        );
        let differing: Vec<usize> = a[..end]
            .chunks(4096)
            .zip(b[..end].chunks(4096))
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .map(|(block, _)| block)
            .collect();
        assert!(
            differing.is_empty(),
            "{} blocks differ, first {:?}\n{}{}",
            differing.len(),
            &differing[..differing.len().min(10)],
            self.alpha.log(),
            self.bravo.log()
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
}
