//! What the harness knows of the two nodes: who serves, whose disk has what, what is disturbed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::e2e::node::{Meta, Node, Settings};
use crate::e2e::pair::{LinkKind, Pair};
use crate::sim::stamp::{Content, SECTOR, Stamper};

use super::evidence::{self, Change, is_connected};
use super::ledger::{Floor, Ledger, Micros, Order, SLACK, now};
use super::load::{End, Ground, Load};
use super::person::PERSON_LIMIT;
use super::script::{Script, Who};
use super::{Round, Story, Tally};

/// A moment in both logs, as lengths.
pub(super) type Mark = [usize; 2];

/// Under B, what a killed Secondary had only in memory is gone; what is older than this was written.
const MEMORY: Micros = 1_000_000;

/// Lines of each log that a failure shows.
const LOG_LINES: usize = 150;

/// The two nodes and everything that was done to them.
#[derive(Debug)]
pub struct World<'a> {
    pub(super) pair: Pair,
    pub(super) story: &'a Story,
    pub(super) protocol: char,
    seed: u64,
    ground: Ground,
    ledger: Arc<Mutex<Ledger>>,
    load: Option<Load>,
    loads: usize,
    /// Where the present load's node had its log when it began, if its own disk was good then.
    load_began: Option<usize>,
    /// The node that clients use.
    pub(super) holder: usize,
    pub(super) frozen: [bool; 2],
    /// Since when each node's disk is known to have the present line.
    good: [Option<Mark>; 2],
    /// When the present line began.
    line: Mark,
    /// Moments at which the harness ended one of the nodes, since both were good.
    breaks: Vec<Micros>,
    /// Everything told before was on both nodes, and nothing was on its way.
    quiet: Micros,
    /// Answered writes that the present line gave up: the nodes must tell of a split brain.
    owed: Option<String>,
    pub(super) tally: Tally,
}

/// The words of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// Connection state.
    pub cstate: String,
    /// Disk states.
    pub dstate: String,
    /// Roles.
    pub role: String,
}

/// Whether the node of a load was left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Alive,
    Killed,
}

/// How a node came to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promotion {
    /// The other node served before; its peer is not there: a new line.
    Alone,
    /// The other node served before and was demoted in order.
    Switched,
    /// It served before.
    Again,
}

impl<'a> World<'a> {
    /// Two configured nodes; no daemon runs yet.
    pub fn new(round: &Round, script: &Script, base: &Path, story: &'a Story) -> World<'a> {
        let settings = Settings {
            disk_bytes: script.disk_bytes,
            volumes: 1,
            meta: if script.external_metadata {
                Meta::External
            } else {
                Meta::Internal
            },
            net: format!(
                "protocol {}; timeout 20; ping-int 2; ping-timeout 20; connect-int 1; socket-check-timeout 2; \
                 ko-count 3; {}",
                round.protocol, script.net
            ),
            disk: format!(
                "c-plan-ahead 0; c-min-rate 0; resync-rate {}; al-extents 67;",
                script.resync_rate
            ),
            handlers: String::new(),
            ..Settings::default()
        };
        let pair = Pair::configured(&settings, LinkKind::Proxied, base);
        let ground = Ground {
            sectors: pair.device_bytes() / SECTOR,
            stamper: Stamper::new(round.seed),
        };
        World {
            pair,
            story,
            protocol: round.protocol,
            seed: round.seed,
            ground,
            ledger: Arc::default(),
            load: None,
            loads: 0,
            load_began: None,
            holder: 0,
            frozen: [false; 2],
            good: [None; 2],
            line: [0; 2],
            breaks: Vec::new(),
            quiet: 0,
            owed: None,
            tally: Tally::default(),
        }
    }

    /// Brings both nodes up with equal, blank disks and starts the load on alpha.
    pub fn begin(&mut self) {
        for node in 0..2 {
            let node = self.node_mut(node);
            node.must(&["create-md", "r0"]);
            node.start_limitable();
        }
        self.pair.bring_up_without_sync();
        self.good = [Some(self.mark()); 2];
        self.line = self.mark();
        self.quiet = now();
        self.start_load();
    }

    pub(super) fn node(&self, node: usize) -> &Node {
        if node == 0 {
            &self.pair.alpha
        } else {
            &self.pair.bravo
        }
    }

    pub(super) fn node_mut(&mut self, node: usize) -> &mut Node {
        if node == 0 {
            &mut self.pair.alpha
        } else {
            &mut self.pair.bravo
        }
    }

    pub(super) fn which(&self, who: Who) -> usize {
        match who {
            Who::Primary => self.holder,
            Who::Secondary => 1 - self.holder,
        }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happened so far.
    pub fn tally(&self) -> Tally {
        Tally {
            told: self.ledger().told(),
            ..self.tally
        }
    }

    /// Both logs and where the files lie, which stay.
    pub fn abandon(mut self) -> (String, String) {
        self.pair.dir.disable_cleanup(true);
        let logs = [0, 1].map(|node| self.log_tail(node)).concat();
        (logs, self.pair.dir.path().display().to_string())
    }

    /// The last lines of a log, without the comings and goings of clients.
    fn log_tail(&self, node: usize) -> String {
        let log = self.node(node).whole_log();
        let is_client = |line: &str| line.contains("::nbd: client") || line.contains("::exports:");
        let lines: Vec<&str> = log.lines().filter(|line| !is_client(line)).collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        format!("--- log of {}\n{tail}\n", self.node(node).name)
    }

    /// Notes what is done.
    pub(super) fn note(&self, text: &str) {
        self.story.note(text);
    }

    /// Lets time pass in which the load and the faults work.
    pub(super) fn pause(ms: u64) {
        std::thread::sleep(Duration::from_millis(ms));
    }

    pub(super) fn mark(&self) -> Mark {
        [0, 1].map(|node| self.node(node).whole_log().len())
    }

    pub(super) fn log_since(&self, node: usize, mark: usize) -> String {
        let log = self.node(node).whole_log();
        log.get(mark..).unwrap_or_default().to_owned()
    }

    fn changes_since(&self, node: usize, mark: usize) -> Vec<Change> {
        evidence::changes(&self.log_since(node, mark))
    }

    /// A command, whatever comes of it.
    pub(super) fn adm(&self, node: usize, args: &[&str]) -> Option<i32> {
        let ended = self.node(node).adm(args);
        let words = format!("{}{}", ended.stdout, ended.stderr);
        let mut words = words.lines().filter(|line| !line.contains("warning:"));
        let words = words.next_back().unwrap_or_default();
        self.note(&format!(
            "{}: {} -> {:?} {words}",
            self.node(node).name,
            args.join(" "),
            ended.code
        ));
        ended.code
    }

    /// What a node says of itself; empty words while it says nothing.
    pub(super) fn words(&self, node: usize) -> Words {
        let node = self.node(node);
        Words {
            cstate: node.word("cstate"),
            dstate: node.word("dstate"),
            role: node.word("role"),
        }
    }

    pub(super) fn is_synced(&self) -> bool {
        [0, 1].iter().all(|node| {
            let words = self.words(*node);
            words.cstate == "Connected" && words.dstate == "UpToDate/UpToDate"
        })
    }

    /// Both nodes are seen connected with good data since `mark`.
    pub(super) fn synced_at(&mut self, mark: Mark) {
        let split = [0, 1].iter().any(|node| self.is_split(*node));
        if let Some(owed) = self.owed.take() {
            assert!(
                split,
                "answered writes were given up, and no split brain was told: {owed}"
            );
        }
        self.tally.splits += u64::from(split);
        self.good = [Some(mark); 2];
        self.line = self.mark();
        self.breaks.clear();
    }

    /// A node told of a split brain since the present line began, or both nodes were good for the last time.
    pub(super) fn is_split(&self, node: usize) -> bool {
        self.log_since(node, self.line[node])
            .contains("plit-Brain detected")
    }

    /// A person gives up the data of the node that does not serve.
    pub(super) fn forgive(&mut self) {
        self.owed = None;
    }

    /// A node was ended by the harness: it acknowledges nothing from now on, nor does it receive.
    pub(super) fn note_break(&mut self) {
        self.breaks.push(now());
    }

    /// The Secondary is about to be killed: what it has only in memory is lost.
    pub(super) fn note_secondary_break(&mut self) {
        let memory = if self.protocol == 'B' { MEMORY } else { 0 };
        self.breaks.push(now() - memory);
    }

    /// Up to when this node's own disk has what was told; None when that cannot be known.
    pub(super) fn floor(&self, node: usize) -> Option<Floor> {
        let mark = self.good[node]?;
        let disk = |change: &Change| change.field == "disk" && change.old == "UpToDate";
        let link = |change: &Change| {
            change.field == "conn" && is_connected(&change.old) && !is_connected(&change.new)
        };
        let own = self.changes_since(node, mark[node]);
        let peer = self.changes_since(1 - node, mark[1 - node]);
        let holds = node == self.holder;
        let own = own
            .iter()
            .filter(|change| disk(change) || (!holds && link(change)));
        // The peer may know of this node's disk before this node says so: a detach waits for its consent.
        let seen = |change: &Change| change.field == "pdsk" && change.old == "UpToDate";
        let peer = peer
            .iter()
            .filter(|change| !holds && (link(change) || seen(change)));
        let ended = self.breaks.iter().min().copied().filter(|_| !holds);
        let logged = own.chain(peer).map(|change| change.at).min();
        // What the logs say after an end is its consequence.
        let logged = logged.filter(|at| ended.is_none_or(|ended| *at < ended));
        let moment = logged.map(|at| at.saturating_sub(SLACK)).or(ended);
        Some(moment.map_or(Floor::Everything, Floor::Until))
    }

    /// Whether this node's disk has everything that was told, as far as can be known.
    pub(super) fn has_everything(&self, node: usize) -> bool {
        self.floor(node)
            .is_some_and(|floor| self.ledger().nothing_after(floor))
    }

    /// Under A and B, the node that serves lost its disk and then its peer: what the peer did not have yet is gone, and the next flush
    /// fails (docs/durability.md, "When a disk fails"). `quiet` is the last moment at which the peer surely had everything.
    fn lost_both(&self) -> bool {
        let node = self.holder;
        let changes = self.changes_since(node, self.line[node]);
        let disk = changes
            .iter()
            .find(|change| change.field == "disk" && change.old == "UpToDate");
        let link = |change: &Change| {
            change.field == "conn" && is_connected(&change.old) && !is_connected(&change.new)
        };
        let both = disk.is_some_and(|disk| {
            changes
                .iter()
                .any(|change| link(change) && change.at >= disk.at)
        });
        self.protocol != 'C' && both
    }

    /// Since the link was lost, it was not there again.
    fn stayed_apart(&self, node: usize) -> bool {
        let Some(mark) = self.good[node] else {
            return false;
        };
        [0, 1].iter().all(|node| {
            let changes = self.changes_since(*node, mark[*node]);
            changes
                .iter()
                .all(|change| change.field != "conn" || !is_connected(&change.new))
        })
    }

    /// The load begins on the node that serves.
    pub(super) fn start_load(&mut self) {
        let socket = self.node(self.holder).socket();
        let dstate = self.node(self.holder).word("dstate");
        let mark = self.node(self.holder).whole_log().len();
        self.load_began = dstate.starts_with("UpToDate/").then_some(mark);
        self.loads += 1;
        let load = Load::start(&self.ledger, self.ground, &socket, self.seed, self.loads);
        self.load = Some(load);
        self.note(&format!(
            "load {} on {}",
            self.loads,
            self.node(self.holder).name
        ));
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.load.is_some()
    }

    /// The load ends; what its clients saw is judged.
    pub(super) fn end_load(&mut self, how: End, fate: Fate) {
        let Some(load) = self.load.take() else {
            return;
        };
        let outcome = load.stop(how);
        self.note(&format!(
            "load ended: {} errors, {} broken, {} told in all",
            outcome.errors,
            outcome.broken.len(),
            self.ledger().told()
        ));
        let is_old_read = |fault: &String| fault.starts_with("a read:");
        let excused = self.lost_both() && outcome.faults.iter().all(is_old_read);
        assert!(
            outcome.faults.is_empty() || excused,
            "clients: {:?}",
            outcome.faults
        );
        if fate == Fate::Alive && how == End::Orderly {
            assert!(
                outcome.broken.is_empty(),
                "the node lives, but its clients lost their connections: {:?}",
                outcome.broken
            );
        }
        self.tally.errors += outcome.errors;
        if let Some(mark) = self.load_began.filter(|_| outcome.errors > 0) {
            let failed = self
                .changes_since(self.holder, mark)
                .iter()
                .any(|change| change.field == "disk" && change.old == "UpToDate");
            assert!(
                failed,
                "{} requests were answered with an error although the disk of {} was good",
                outcome.errors,
                self.node(self.holder).name
            );
        }
    }

    /// What clients see on a node; a node without a good disk may need its link for that.
    ///
    /// `None`: it was promoted alone, and its disk has failed since. Nobody has its data then.
    pub(super) fn read(&self, node: usize, how: Promotion) -> Option<BTreeMap<u64, Content>> {
        let socket = self.node(node).socket();
        let start = Instant::now();
        loop {
            match self.ground.read(&socket) {
                Ok(found) => return Some(found),
                Err(error) => {
                    let words = self.words(node);
                    let has_no_disk = ["Failed/", "Diskless/"]
                        .iter()
                        .any(|disk| words.dstate.starts_with(disk));
                    if how == Promotion::Alone && has_no_disk {
                        return None;
                    }
                    assert!(
                        !words.dstate.starts_with("UpToDate/") && start.elapsed() < PERSON_LIMIT,
                        "{} ({words:?}) cannot be read: {error}",
                        self.node(node).name
                    );
                    self.heal_link();
                    World::pause(200);
                }
            }
        }
    }

    /// A node was promoted: all that it shows is judged, and a load begins on it.
    ///
    /// False: it can show nothing ([`Self::read`]), and serves nobody.
    pub(super) fn promoted(&mut self, node: usize, floor: Floor, how: Promotion) -> bool {
        let Some(found) = self.read(node, how) else {
            return false;
        };
        let name = self.node(node).name.clone();
        let alone = how == Promotion::Alone;
        let excused = !alone && self.lost_both();
        let (order, floor) = match (self.protocol, alone) {
            _ if excused => (Order::Free, floor.min(Floor::Until(self.quiet))),
            (_, false) | ('C', _) => (Order::Free, floor),
            // Answered as soon as it was handed over: since nothing was on its way, only the order counts.
            ('A', true) => (Order::Kept, floor.min(Floor::Until(self.quiet))),
            _ => (Order::Kept, floor),
        };
        let judgement = self.ledger().judge(&found, floor, order);
        let missing = judgement.missing.len();
        self.note(&format!(
            "{name} serves ({how:?}): floor {floor:?}, {missing} missing"
        ));
        self.tally.promotions += 1;
        if !judgement.faults.is_empty() || (!alone && !excused && missing > 0) {
            self.tally.lost += missing as u64;
            panic!(
                "{name} was promoted ({how:?}), lacks {missing} writes, and shows what it must not: {:#?}",
                judgement.faults
            );
        }
        self.tally.given_up += missing as u64;
        if alone {
            self.tally.takeovers += 1;
            let is_told = self.protocol == 'C' && self.stayed_apart(node);
            self.owed = (is_told && missing > 0).then(|| format!("{:?}", judgement.missing));
            self.line = self.mark();
        }
        if how != Promotion::Again {
            self.good = [None; 2];
            self.breaks.clear();
        }
        if self.node(node).word("dstate").starts_with("UpToDate/") {
            let mark = self.mark();
            self.good[node].get_or_insert(mark);
        }
        self.ledger().settle(&found);
        self.holder = node;
        self.start_load();
        true
    }

    /// Both nodes are synced and nobody writes: their disks become equal, and show what they must.
    pub(super) fn compare(&mut self) {
        let bytes = self.pair.device_bytes();
        let differing = || {
            let disks =
                [0, 1].map(|node| crate::e2e::record::read_disk(&self.node(node).disk(0), bytes));
            crate::e2e::record::differing(&disks[0], &disks[1])
        };
        // Under A and B the last writes may still be on their way.
        let start = Instant::now();
        let mut blocks = differing();
        while !blocks.is_empty() && start.elapsed() < Duration::from_secs(15) {
            World::pause(100);
            blocks = differing();
        }
        assert!(
            blocks.is_empty(),
            "both are connected and UpToDate and nobody writes, but {} differ",
            crate::e2e::record::name_blocks(&blocks)
        );
        self.tally.comparisons += 1;
        self.quiet = now();
    }
}
