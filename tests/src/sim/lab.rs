//! Two nodes of 8 blocks without random faults, driven step by step: for worked traces and for stories of one mistake.

use std::collections::BTreeMap;
use std::time::Duration;

use tandem_metadata::Uuids;
use tandem_replicator::planted::Plant;
use tandem_replicator::state::word::ConnState;
use tandem_replicator::{Command, DiskOptions, Force, MetaKind, NetOptions};

use super::clients::Habits;
use super::network::{MS, NetSettings};
use super::node::{DiskPlan, VOLUME};
use super::pair::ONLY_PAIR;
use super::trace::state_words;
use super::worked::{self, Cell};
use super::{Settings, World};

/// What is added to a bitmap UUID at every start of a resync (0.2).
pub const DELTA: u64 = 0x0001_0000_0000_0000;
/// Node A.
pub const A: usize = 0;
/// Node B.
pub const B: usize = 1;
/// Blocks of both devices.
pub const BLOCKS: u64 = 8;
/// Virtual time within which each row is reached.
const ROW_LIMIT: u64 = 120_000 * MS;

/// Two nodes and the values of the names in the table.
pub struct Lab {
    /// Both nodes.
    pub world: World,
    /// Values of the names in the cells, without their role bits.
    pub names: BTreeMap<String, u64>,
    handlers_seen: [usize; 2],
    comparisons_seen: [usize; 2],
    /// Rows of the trace that is played, from the one that was reached last.
    followed: Vec<worked::Row>,
    /// The first of them has been reached.
    reached: bool,
}

/// How a lab is made: 8 blocks, a resync that can be watched.
#[must_use]
pub fn settings() -> Settings {
    Settings {
        seed: 11,
        pairs: 1,
        disk: DiskPlan {
            bytes: BLOCKS * 4096,
            meta: MetaKind::FlexibleExternal,
            discard: false,
        },
        // One block in each tenth of a second: a resync can be watched.
        disk_options: DiskOptions {
            resync_rate: 40,
            c_plan_ahead: 0,
            ..DiskOptions::default()
        },
        net_options: NetOptions {
            connect_interval: Duration::from_secs(3),
            ping_interval: Duration::from_secs(2),
            ..NetOptions::default()
        },
        net: NetSettings {
            delay: (MS, MS),
            window: 1 << 20,
            pieces: false,
            dial_timeout: 1000 * MS,
        },
        disk_delay: (100_000, 100_000),
        handler_delay: 2 * MS,
        habits: Habits {
            depth: 1,
            pause: MS,
            sectors_max: 8,
            hot: 0,
            mix: [0, 1, 0, 0, 0, 0],
            odd: 0,
        },
        live: false,
        plant: Plant::default(),
        tears_sectors: false,
    }
}

impl Lab {
    /// Blank metadata, no process.
    pub fn blank() -> Lab {
        Lab::blank_of(settings())
    }

    /// The same with other settings.
    pub fn blank_of(settings: Settings) -> Lab {
        let mut world = World::new(settings);
        world.trace.keep(4000);
        for node in [A, B] {
            world.nodes[node].create_metadata().unwrap();
        }
        Lab {
            world,
            names: BTreeMap::new(),
            handlers_seen: [0; 2],
            comparisons_seen: [0; 2],
            followed: Vec::new(),
            reached: false,
        }
    }

    /// Connected, both UpToDate with [C, 0, H1, H2], both Secondary.
    pub fn pair() -> Lab {
        Lab::pair_of(settings())
    }

    /// The same with other settings.
    pub fn pair_of(settings: Settings) -> Lab {
        let mut lab = Lab::blank_of(settings);
        let [c, h1, h2] = lab.know_names();
        for node in [A, B] {
            let uuids = Uuids {
                current: c,
                bitmap: 0,
                history: [h1, h2],
            };
            lab.world.nodes[node].set_generation(uuids).unwrap();
            lab.world.up(node);
        }
        lab.wait("both are in sync", |world| world.is_in_sync());
        lab
    }

    /// Gives C, H1 and H2 their values.
    pub fn know_names(&mut self) -> [u64; 3] {
        let values = [
            0xc0c0_1234_5678_9abc,
            0x1111_0000_aaaa_0000,
            0x2222_0000_bbbb_0000,
        ];
        for (name, value) in ["C", "H1", "H2"].into_iter().zip(values) {
            self.names.insert(name.to_owned(), value);
        }
        values
    }

    /// The start of most traces: A is Primary.
    pub fn start() -> Lab {
        let mut lab = Lab::pair();
        lab.ok(A, primary(Force::No));
        lab.row(
            "start",
            "Connected Pri/Sec UpToDate/UpToDate [C*, 0, H1, H2] oos=0",
            "Connected Sec/Pri UpToDate/UpToDate [C, 0, H1, H2] oos=0",
        );
        lab
    }

    /// Runs until a condition holds.
    pub fn wait(&mut self, what: &str, done: impl FnMut(&mut World) -> bool) {
        if let Err(why) = self.world.run_until(ROW_LIMIT, done) {
            panic!(
                "{}\n{what}: {why}\n  A: {}\n  B: {}",
                self.world.trace.tail(),
                self.now(A),
                self.now(B)
            );
        }
    }

    /// Gives a command and waits: the number of its answer.
    pub fn command(&mut self, node: usize, command: Command) -> i32 {
        let id = self.world.command(node, command);
        self.wait("the command is answered", |world| {
            world.nodes[node].answers.contains_key(&id)
        });
        self.world.nodes[node].answers[&id].number
    }

    /// The same, for a command that must succeed.
    pub fn ok(&mut self, node: usize, command: Command) {
        let words = format!("{command:?}");
        let number = self.command(node, command);
        assert!(number > 0, "{words} is refused: {number}");
    }

    /// `connect`.
    pub fn connect(&mut self, node: usize, discard_my_data: bool) {
        let net = self.world.settings.net_options.clone();
        let command = Command::Connect {
            net,
            discard_my_data,
            tentative: false,
        };
        self.ok(node, command);
    }

    /// The power of a node fails.
    pub fn power_off(&mut self, node: usize) {
        self.world.stop(node, true);
    }

    /// Starts a node that is down: attached, not connected.
    pub fn boot(&mut self, node: usize) {
        self.world.start(node);
        self.ok(node, Command::Attach { volume: VOLUME });
    }

    /// Pulls the cable until both have noticed.
    pub fn cut(&mut self) {
        self.block([true; 2]);
        self.wait("both notice the cut", |world| {
            world.nodes.iter().all(|node| !node.is_connected())
        });
    }

    /// Plugs the cable in again.
    pub fn plug(&mut self) {
        self.block([false; 2]);
    }

    /// Holds back (or lets go) what the nodes send: from A, from B.
    pub fn block(&mut self, blocked: [bool; 2]) {
        self.world.block(ONLY_PAIR, blocked);
    }

    /// Writes single blocks and waits for the answers.
    pub fn write(&mut self, node: usize, blocks: &[u64]) {
        for block in blocks {
            self.world.request(node, 1, block * 8, 8);
        }
        self.wait("writes are answered", |world| {
            world.clients.in_flight(node) == 0
        });
        assert_eq!(self.world.clients.errors, [], "writes fail");
    }

    fn state(&self, node: usize) -> String {
        self.world.nodes[node]
            .state()
            .map_or("(down)".to_owned(), state_words)
    }

    fn oos(&self, node: usize) -> u64 {
        self.world.nodes[node]
            .status
            .as_ref()
            .map_or(0, |status| status.counters.out_of_sync_kib / 4)
    }

    /// Generations: in memory, or on the disk of a node that is down or has none.
    pub fn uuids(&mut self, node: usize) -> [u64; 4] {
        let live = self.world.nodes[node]
            .status
            .as_ref()
            .and_then(|status| status.uuids);
        live.unwrap_or_else(|| self.world.nodes[node].uuids_on_disk().unwrap())
    }

    fn now(&mut self, node: usize) -> String {
        let uuids = self.uuids(node);
        format!("{} {uuids:016x?} oos={}", self.state(node), self.oos(node))
    }

    /// From now on each row is compared with the text of this trace of the specification (`T26`).
    pub fn follow(&mut self, trace: &str) {
        self.followed = worked::rows(trace);
        self.reached = false;
        assert!(
            !self.followed.is_empty(),
            "the specification has no {trace}"
        );
    }

    /// Waits until both nodes are in the states of the row, with its set bits, and compares the generations. With a trace to follow,
    /// this has to be one of its rows, not before the last one, and the comparisons that it names are those that were made.
    pub fn row(&mut self, event: &str, a: &str, b: &str) {
        let cells = [a, b].map(|text| Cell::parse(text).unwrap());
        let covers = |row: &worked::Row| {
            let mut pairs = row.cells.iter().zip(&cells);
            pairs.all(|(spec, test)| spec.covers(test, BLOCKS))
        };
        // A later row, or the same once more.
        let later = usize::from(self.reached);
        let found = (later..self.followed.len())
            .find(|at| covers(&self.followed[*at]))
            .or_else(|| self.followed.first().filter(|row| covers(row)).map(|_| 0));
        assert!(
            found.is_some() || self.followed.is_empty(),
            "{event}: not a row of the trace, or before the last one:\n  A: {a}\n  B: {b}\n{:#?}",
            self.followed
        );
        self.reach(event, &cells);
        let Some(found) = found else { return };
        let again = self.reached && found == 0;
        self.followed.drain(..found);
        self.reached = true;
        if let Some(expected) = self.followed[0].comparisons().filter(|_| !again) {
            self.comparisons(event, &expected);
        }
    }

    /// A row that differs from the specification, for this reason.
    pub fn row_but(&mut self, reason: &str, event: &str, a: &str, b: &str) {
        let cells = [a, b].map(|text| Cell::parse(text).unwrap());
        self.reach(&format!("{event} ({reason})"), &cells);
    }

    /// The last comparison of each node, made since the last look.
    fn comparisons(&mut self, event: &str, expected: &[String; 2]) {
        for (node, expected) in expected.iter().enumerate() {
            let all = &self.world.nodes[node].comparisons;
            let new = &all[self.comparisons_seen[node]..];
            assert_eq!(
                new.last(),
                Some(expected),
                "{event}: comparison of {}",
                ["A", "B"][node]
            );
            self.comparisons_seen[node] = all.len();
        }
    }

    fn reach(&mut self, event: &str, cells: &[Cell; 2]) {
        let [a, b] = cells;
        let wanted = [a.state.clone(), b.state.clone()];
        let bits = [a.oos, b.oos];
        self.wait(event, |world| {
            (0..2).all(|node| {
                let state = world.nodes[node].state();
                let oos = world.nodes[node]
                    .status
                    .as_ref()
                    .map_or(0, |status| status.counters.out_of_sync_kib / 4);
                state.map_or("(down)".to_owned(), state_words) == wanted[node]
                    && bits[node].is_none_or(|bits| state.is_none() || bits == oos)
            })
        });
        for (node, cell) in [(A, a), (B, b)] {
            let uuids = self.uuids(node);
            for (slot, (word, value)) in cell.uuids.iter().zip(uuids).enumerate() {
                self.compare(event, node, slot, word, value);
            }
        }
    }

    /// `C`, `C*`, `C+δ`, `C+2δ*`, `0`, `4`: a name that is new gets this value.
    fn compare(&mut self, event: &str, node: usize, slot: usize, word: &str, value: u64) {
        let (word, star) = match word.strip_suffix('*') {
            Some(word) => (word, 1),
            None => (word, 0),
        };
        let (name, times) = match word.split_once('+') {
            Some((name, "δ")) => (name, 1),
            Some((name, times)) => (name, times.trim_end_matches('δ').parse().unwrap()),
            None => (word, 0),
        };
        let place = format!("{event}: slot {slot} of {}: {word}", ["A", "B"][node]);
        if let Ok(number) = name.parse::<u64>() {
            assert_eq!(value, number, "{place}\n  is {}", self.now(node));
            return;
        }
        let step = DELTA.wrapping_mul(times);
        let known = self.names.get(name).copied();
        let base = known.unwrap_or_else(|| value.wrapping_sub(step) & !1);
        if known.is_none() {
            assert!(base > 4, "{place} is not random: {value:#x}");
            let others = self.names.values().filter(|other| **other == base).count();
            assert_eq!(others, 0, "{place} is an old generation: {value:#x}");
            self.names.insert(name.to_owned(), base);
        }
        let expected = base.wrapping_add(step);
        assert_eq!(
            value & !1,
            expected & !1,
            "{place}\n  is {}",
            self.now(node)
        );
        // The role bit of a random sync UUID is random (3.1); what is on a disk that is not attached may lack it.
        let attached =
            (self.world.nodes[node].status.as_ref()).is_some_and(|status| status.uuids.is_some());
        if !name.starts_with('S') && attached {
            assert_eq!(
                value & 1,
                star,
                "{place}: role bit\n  is {}",
                self.now(node)
            );
        }
    }

    /// Handlers that ran since the last look, or run now.
    pub fn handlers(&mut self, a: &[&str], b: &[&str]) {
        for (node, expected) in [(A, a), (B, b)] {
            let count = self.handlers_seen[node] + expected.len();
            self.wait("handlers run", |world| {
                world.nodes[node].handlers.len() >= count
            });
            let all = &self.world.nodes[node].handlers;
            assert_eq!(&all[self.handlers_seen[node]..], expected, "{node}");
            self.handlers_seen[node] = all.len();
        }
    }

    /// The last row of a resync from A: both are in sync, and their data is equal.
    pub fn finished(&mut self, a: &str, b: &str) {
        self.row("resync finished", a, b);
        self.wait("both are equal", World::compare_if_idle);
    }

    /// An unresolved split brain: at least one is StandAlone, the other too or waiting (5.7).
    pub fn split(&mut self) {
        self.wait("the split brain is seen", |world| {
            let conn = |node: usize| world.nodes[node].state().unwrap().conn;
            let over = |conn| matches!(conn, ConnState::StandAlone | ConnState::WFConnection);
            let alone = conn(A) == ConnState::StandAlone || conn(B) == ConnState::StandAlone;
            over(conn(A)) && over(conn(B)) && alone
        });
        for node in [A, B] {
            let conn = self.world.nodes[node].state().unwrap().conn;
            if conn != ConnState::StandAlone {
                self.ok(node, Command::Disconnect { force: Force::No });
            }
        }
    }
}

/// `primary`.
#[must_use]
pub fn primary(force: Force) -> Command {
    Command::Primary {
        volume: VOLUME,
        force,
    }
}
