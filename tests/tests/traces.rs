//! Worked traces of `docs/spec/state-machine.md` section 11, row by row: states, data generations, set bits and handlers of two
//! nodes of 8 blocks in the simulator, without random faults.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::time::Duration;

use tandem_metadata::{Flags, Uuids};
use tandem_replicator::state::word::ConnState;
use tandem_replicator::{Command, DiskOptions, Force, MetaKind, NetOptions};
use tandem_tests::sim::clients::Habits;
use tandem_tests::sim::network::{MS, NetSettings};
use tandem_tests::sim::node::{DiskPlan, VOLUME};
use tandem_tests::sim::trace::state_words;
use tandem_tests::sim::{Settings, World};

/// What is added to a bitmap UUID at every start of a resync (0.2).
const DELTA: u64 = 0x0001_0000_0000_0000;
const A: usize = 0;
const B: usize = 1;
/// Virtual time within which each row is reached.
const ROW_LIMIT: u64 = 120_000 * MS;
/// The log holds whole extents of 4 MiB: here all of the device.
const ALL: &str = "oos=8";

/// Two nodes and the values of the names in the table.
struct Lab {
    world: World,
    names: BTreeMap<String, u64>,
    handlers_seen: [usize; 2],
}

fn settings() -> Settings {
    Settings {
        seed: 11,
        disk: DiskPlan {
            bytes: 8 * 4096,
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
        },
        live: false,
    }
}

impl Lab {
    fn blank() -> Lab {
        let mut world = World::new(settings());
        world.trace.keep(4000);
        for node in [A, B] {
            world.nodes[node].create_metadata().unwrap();
        }
        Lab {
            world,
            names: BTreeMap::new(),
            handlers_seen: [0; 2],
        }
    }

    /// Connected, both UpToDate with [C, 0, H1, H2], both Secondary.
    fn pair() -> Lab {
        let mut lab = Lab::blank();
        let (c, h1, h2) = (
            0xc0c0_1234_5678_9abc,
            0x1111_0000_aaaa_0000,
            0x2222_0000_bbbb_0000,
        );
        for (name, value) in [("C", c), ("H1", h1), ("H2", h2)] {
            lab.names.insert(name.to_owned(), value);
        }
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

    /// The start of most traces: A is Primary.
    fn start() -> Lab {
        let mut lab = Lab::pair();
        lab.ok(A, primary(Force::No));
        lab.row(
            "start",
            "Connected Pri/Sec UpToDate/UpToDate [C*, 0, H1, H2] oos=0",
            "Connected Sec/Pri UpToDate/UpToDate [C, 0, H1, H2] oos=0",
        );
        lab
    }

    fn wait(&mut self, what: &str, done: impl FnMut(&mut World) -> bool) {
        if let Err(why) = self.world.run_until(ROW_LIMIT, done) {
            panic!(
                "{}\n{what}: {why}\n  A: {}\n  B: {}",
                self.world.trace.tail(),
                self.now(A),
                self.now(B)
            );
        }
    }

    fn command(&mut self, node: usize, command: Command) -> i32 {
        let id = self.world.command(node, command);
        self.wait("the command is answered", |world| {
            world.nodes[node].answers.contains_key(&id)
        });
        self.world.nodes[node].answers[&id].number
    }

    fn ok(&mut self, node: usize, command: Command) {
        let words = format!("{command:?}");
        let number = self.command(node, command);
        assert!(number > 0, "{words} is refused: {number}");
    }

    fn connect(&mut self, node: usize, discard_my_data: bool) {
        let net = self.world.settings.net_options.clone();
        let command = Command::Connect {
            net,
            discard_my_data,
            tentative: false,
        };
        self.ok(node, command);
    }

    fn power_off(&mut self, node: usize) {
        self.world.stop(node, true);
    }

    /// Starts a node that is down: attached, not connected.
    fn boot(&mut self, node: usize) {
        self.world.start(node);
        self.ok(node, Command::Attach { volume: VOLUME });
    }

    /// Pulls the cable until both have noticed.
    fn cut(&mut self) {
        self.world.block([true; 2]);
        self.wait("both notice the cut", |world| {
            world.nodes.iter().all(|node| !node.is_connected())
        });
    }

    fn plug(&mut self) {
        self.world.block([false; 2]);
    }

    /// Writes single blocks and waits for the answers.
    fn write(&mut self, node: usize, blocks: &[u64]) {
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

    fn uuids(&mut self, node: usize) -> [u64; 4] {
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

    /// Waits until both nodes are in the states of the row, with its set bits, and compares the generations.
    fn row(&mut self, event: &str, a: &str, b: &str) {
        let [a, b] = [a, b].map(|cell| Cell::parse(cell));
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
        for (node, cell) in [(A, &a), (B, &b)] {
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
        // The role bit of a random sync UUID is random (3.1); what is on the disk of a node that is down may lack it.
        if !name.starts_with('S') && self.world.nodes[node].is_running() {
            assert_eq!(
                value & 1,
                star,
                "{place}: role bit\n  is {}",
                self.now(node)
            );
        }
    }

    /// Handlers that ran since the last look, or run now.
    fn handlers(&mut self, a: &[&str], b: &[&str]) {
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
    fn finished(&mut self, a: &str, b: &str) {
        self.row("resync finished", a, b);
        self.wait("both are equal", World::compare_if_idle);
    }

    /// An unresolved split brain: at least one is StandAlone, the other too or waiting (5.7).
    fn split(&mut self) {
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

/// One cell of a table: `conn role/peer disk/pdsk [current, bitmap, h1, h2] oos=n`.
struct Cell {
    state: String,
    uuids: Vec<String>,
    oos: Option<u64>,
}

impl Cell {
    fn parse(text: &str) -> Cell {
        let (state, rest) = text.split_once(" [").unwrap();
        let (uuids, rest) = rest.split_once(']').unwrap();
        let oos = rest.trim().strip_prefix("oos=").unwrap();
        Cell {
            state: state.to_owned(),
            uuids: uuids.split(", ").map(str::to_owned).collect(),
            oos: oos.parse().ok(),
        }
    }
}

fn primary(force: Force) -> Command {
    Command::Primary {
        volume: VOLUME,
        force,
    }
}

const SECONDARY: Command = Command::Secondary { volume: VOLUME };
const FROM_A: [&str; 2] = ["before-resync-source", "before-resync-target"];

#[test]
fn t1_first_initial_sync() {
    let mut lab = Lab::blank();
    lab.boot(A);
    lab.boot(B);
    let fresh = "StandAlone Sec/Unk Inconsistent/DUnknown [4, 0, 0, 0] oos=8";
    lab.row("attach", fresh, fresh);
    lab.connect(A, false);
    lab.connect(B, false);
    let fresh = "Connected Sec/Sec Inconsistent/Inconsistent [4, 0, 0, 0] oos=8";
    lab.row("connect", fresh, fresh);
    assert_eq!(lab.command(A, primary(Force::No)), -2);
    lab.row("refused", fresh, fresh);
    lab.world.promote(A, Force::Yes);
    lab.row(
        "primary --force",
        "WFBitMapS Pri/Sec UpToDate/Inconsistent [A1*, 4, 0, 0] oos=8",
        "WFBitMapT Sec/Pri Inconsistent/UpToDate [4, 0, 0, 0] oos=8",
    );
    lab.row(
        "resync runs",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A1*, S1, 4, 0] oos=8",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [S1, 0, 0, 0] oos=8",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Pri/Sec UpToDate/UpToDate [A1*, 0, S1, 4] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [A1, 0, S1, 4] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
}

#[test]
fn t2_skip_the_initial_sync() {
    let mut lab = Lab::blank();
    lab.world.up(A);
    lab.world.up(B);
    let fresh = "Connected Sec/Sec Inconsistent/Inconsistent [4, 0, 0, 0] oos=8";
    lab.row("connect", fresh, fresh);
    lab.wait("nothing is under way", |world| world.is_idle());
    let command = Command::NewCurrentUuid {
        volume: VOLUME,
        clear_bitmap: true,
    };
    lab.ok(A, command);
    let done = "Connected Sec/Sec UpToDate/UpToDate [A1, 0, 0, 0] oos=0";
    lab.row("new-current-uuid", done, done);
    lab.handlers(&[], &[]);
    lab.wait("both are equal", World::compare_if_idle);
}

#[test]
fn t3_secondary_shut_down_for_an_hour() {
    let mut lab = Lab::start();
    lab.ok(B, Command::Down { force: Force::No });
    lab.row(
        "down",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0",
        "StandAlone Sec/Unk Diskless/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.world.stop(B, false);
    lab.write(A, &[1, 3, 5]);
    lab.boot(B);
    lab.row(
        "B attached",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=3",
        "StandAlone Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.connect(B, false);
    lab.row(
        "connect",
        "WFBitMapS Pri/Sec UpToDate/Consistent [A1*, C*, H1, H2] oos=3",
        "WFBitMapT Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=0",
    );
    from_a_with_c(&mut lab, 3);
}

/// Bitmaps exchanged and resync finished, as in T3, T4, T5 and T12.
fn from_a_with_c(lab: &mut Lab, bits: u64) {
    lab.row(
        "resync runs",
        &format!("SyncSource Pri/Sec UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos={bits}"),
        &format!("SyncTarget Sec/Pri Inconsistent/UpToDate [C+δ, 0, H1, H2] oos={bits}"),
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Pri/Sec UpToDate/UpToDate [A1*, 0, C+δ*, C*] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [A1, 0, C+δ, C*] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
}

fn cut_with_writes(blocks: &[u64]) -> Lab {
    let mut lab = Lab::start();
    lab.cut();
    lab.row(
        "link lost",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0",
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.write(A, blocks);
    let bits = blocks.len();
    lab.row(
        "A writes",
        &format!("WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos={bits}"),
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab
}

fn reconnect(lab: &mut Lab, bits: usize) {
    lab.plug();
    lab.row(
        "reconnect",
        &format!("WFBitMapS Pri/Sec UpToDate/Consistent [A1*, C*, H1, H2] oos={bits}"),
        "WFBitMapT Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=0",
    );
}

#[test]
fn t4_network_cut_with_writes_on_the_primary() {
    let mut lab = cut_with_writes(&[2, 6]);
    reconnect(&mut lab, 2);
    from_a_with_c(&mut lab, 2);
}

#[test]
fn t5_link_flap_without_any_write() {
    let mut lab = cut_with_writes(&[]);
    reconnect(&mut lab, 0);
    from_a_with_c(&mut lab, 0);
}

#[test]
fn t6_link_flap_of_two_secondaries() {
    let mut lab = Lab::pair();
    lab.cut();
    let apart = "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0";
    lab.row("link lost", apart, apart);
    lab.plug();
    let joined = "Connected Sec/Sec UpToDate/UpToDate [C, 0, H1, H2] oos=0";
    lab.row("reconnect", joined, joined);
    lab.handlers(&[], &[]);
}

/// A Primary with a hot activity log loses power; B waits; A is attached again.
fn crashed_primary() -> Lab {
    let mut lab = Lab::start();
    lab.write(A, &[0, 1, 2, 3]);
    lab.power_off(A);
    lab.row(
        "A loses power",
        "(down) [C*, 0, H1, H2] oos=0",
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab
}

fn boots_with_hot_log(lab: &mut Lab, b: &str) {
    lab.boot(A);
    let a = format!("StandAlone Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] {ALL}");
    lab.row("A boots", &a, b);
}

fn crash_recovery_connects(lab: &mut Lab) {
    lab.row(
        "connect",
        "WFBitMapS Sec/Sec UpToDate/Consistent [C, 0, H1, H2] oos=8",
        "WFBitMapT Sec/Sec Outdated/UpToDate [C, 0, H1, H2] oos=0",
    );
}

fn crash_recovery_runs(lab: &mut Lab) {
    lab.row(
        "resync runs",
        "SyncSource Sec/Sec UpToDate/Inconsistent [C, S1, H1, H2] oos=8",
        "SyncTarget Sec/Sec Inconsistent/UpToDate [S1, 0, H1, H2] oos=8",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    let done = "Connected Sec/Sec UpToDate/UpToDate [C, 0, S1, H1] oos=0";
    lab.finished(done, done);
    lab.handlers(&[], &["after-resync-target"]);
}

#[test]
fn t7_primary_crashes_with_hot_activity_log_and_comes_back() {
    let mut lab = crashed_primary();
    boots_with_hot_log(
        &mut lab,
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.connect(A, false);
    crash_recovery_connects(&mut lab);
    crash_recovery_runs(&mut lab);
}

#[test]
fn t8_primary_crashes_secondary_is_promoted_old_primary_returns() {
    let mut lab = crashed_primary();
    lab.ok(B, primary(Force::No));
    lab.write(B, &[5]);
    let b = "WFConnection Pri/Unk UpToDate/DUnknown [B1*, C, H1, H2] oos=1";
    lab.row("B promoted", "(down) [C*, 0, H1, H2] oos=0", b);
    boots_with_hot_log(&mut lab, b);
    lab.connect(A, false);
    lab.row(
        "connect",
        "WFBitMapT Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=8",
        "WFBitMapS Pri/Sec UpToDate/Consistent [B1*, C, H1, H2] oos=1",
    );
    lab.row(
        "resync runs",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [C+δ, 0, H1, H2] oos=8",
        "SyncSource Pri/Sec UpToDate/Inconsistent [B1*, C+δ, C, H1] oos=8",
    );
    lab.handlers(&FROM_A[1..], &FROM_A[..1]);
    lab.finished(
        "Connected Sec/Pri UpToDate/UpToDate [B1, 0, C+δ, C] oos=0",
        "Connected Pri/Sec UpToDate/UpToDate [B1*, 0, C+δ, C] oos=0",
    );
    lab.handlers(&["after-resync-target"], &[]);
}

#[test]
fn t9_power_loss_on_both() {
    let mut lab = Lab::start();
    lab.write(A, &[4, 5]);
    lab.power_off(A);
    lab.power_off(B);
    lab.boot(B);
    boots_with_hot_log(
        &mut lab,
        "StandAlone Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
    );
    lab.connect(B, false);
    lab.connect(A, false);
    crash_recovery_connects(&mut lab);
    crash_recovery_runs(&mut lab);
}

#[test]
fn t12_split_brain_and_its_manual_recovery() {
    let mut lab = Lab::start();
    lab.cut();
    lab.write(A, &[0, 2]);
    lab.ok(B, primary(Force::No));
    lab.write(B, &[6]);
    lab.row(
        "both write",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=2",
        "WFConnection Pri/Unk UpToDate/DUnknown [B1*, C, H1, H2] oos=1",
    );
    lab.plug();
    lab.split();
    lab.row(
        "link returns",
        "StandAlone Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=2",
        "StandAlone Pri/Unk UpToDate/DUnknown [B1*, C, H1, H2] oos=1",
    );
    lab.handlers(
        &["initial-split-brain", "split-brain"],
        &["initial-split-brain", "split-brain"],
    );
    lab.ok(B, SECONDARY);
    lab.world.oracle.discard(B);
    lab.connect(B, true);
    lab.connect(A, false);
    lab.row(
        "handshake",
        "WFBitMapS Pri/Sec UpToDate/Consistent [A1*, C*, H1, H2] oos=2",
        "WFBitMapT Sec/Pri Outdated/UpToDate [B1, C, H1, H2] oos=1",
    );
    lab.handlers(&["initial-split-brain"], &["initial-split-brain"]);
    from_a_with_c(&mut lab, 3);
}

/// Half of four blocks are synced.
fn half_synced() -> Lab {
    let mut lab = cut_with_writes(&[0, 2, 4, 6]);
    lab.plug();
    // A target clears bits only when it has flushed the blocks, so it still has more.
    lab.row(
        "half of 4 blocks synced",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=2",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [C+δ, 0, H1, H2] oos=any",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab
}

#[test]
fn t17_target_crashes_during_resync() {
    let mut lab = half_synced();
    lab.power_off(B);
    lab.wait("A notices", |world| !world.nodes[A].is_connected());
    lab.write(A, &[1]);
    let a = "WFConnection Pri/Unk UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=3";
    lab.row("B loses power", a, "(down) [C+δ, 0, H1, H2] oos=any");
    lab.boot(B);
    assert_eq!(lab.command(B, primary(Force::No)), -2);
    // The bits of B are those that it had on disk.
    let b = "StandAlone Sec/Unk Inconsistent/DUnknown [C+δ, 0, H1, H2] oos=any";
    lab.row("B boots", a, b);
    lab.connect(B, false);
    lab.row(
        "connect",
        "WFBitMapS Pri/Sec UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=3",
        "WFBitMapT Sec/Pri Inconsistent/UpToDate [C+δ, 0, H1, H2] oos=any",
    );
    lab.row(
        "resync runs",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A1*, C+2δ*, C+δ*, C*] oos=any",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [C+2δ, 0, H1, H2] oos=any",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Pri/Sec UpToDate/UpToDate [A1*, 0, C+2δ*, C+δ*] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [A1, 0, C+2δ, C+δ*] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
}

/// Rows 1 and 2 of T18.
fn source_crashes() -> Lab {
    let mut lab = half_synced();
    lab.power_off(A);
    lab.wait("B notices", |world| !world.nodes[B].is_connected());
    assert_eq!(lab.command(B, primary(Force::No)), -2);
    lab.row(
        "A loses power",
        "(down) [A1*, C+δ*, C*, H1] oos=0",
        "WFConnection Sec/Unk Inconsistent/DUnknown [C+δ, 0, H1, H2] oos=any",
    );
    lab
}

#[test]
fn t18_sync_source_crashes_during_resync() {
    let mut lab = source_crashes();
    lab.boot(A);
    lab.row(
        "A boots",
        "StandAlone Sec/Unk UpToDate/Outdated [A1, C+δ*, C*, H1] oos=8",
        "WFConnection Sec/Unk Inconsistent/DUnknown [C+δ, 0, H1, H2] oos=any",
    );
    lab.connect(A, false);
    lab.row(
        "connect",
        "WFBitMapS Sec/Sec UpToDate/Inconsistent [A1, C+δ*, C*, H1] oos=8",
        "WFBitMapT Sec/Sec Inconsistent/UpToDate [C+δ, 0, H1, H2] oos=any",
    );
    lab.row(
        "resync runs",
        "SyncSource Sec/Sec UpToDate/Inconsistent [A1, C+2δ*, C+δ*, C*] oos=8",
        "SyncTarget Sec/Sec Inconsistent/UpToDate [C+2δ, 0, H1, H2] oos=8",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.finished(
        "Connected Sec/Sec UpToDate/UpToDate [A1, 0, C+2δ*, C+δ*] oos=0",
        "Connected Sec/Sec UpToDate/UpToDate [A1, 0, C+2δ, C+δ*] oos=0",
    );
}

#[test]
fn t19_target_of_a_crashed_source_is_forced_then_the_source_returns() {
    let mut lab = source_crashes();
    lab.ok(B, primary(Force::Yes));
    lab.row(
        "primary --force",
        "(down) [A1*, C+δ*, C*, H1] oos=0",
        "WFConnection Pri/Unk UpToDate/DUnknown [B1*, C+δ, H1, H2] oos=any",
    );
    lab.boot(A);
    lab.connect(A, false);
    lab.split();
    lab.row(
        "A boots and connects",
        "StandAlone Sec/Unk UpToDate/Outdated [A1, C+δ*, C*, H1] oos=8",
        "StandAlone Pri/Unk UpToDate/DUnknown [B1*, C+δ, H1, H2] oos=any",
    );
    lab.handlers(
        &["initial-split-brain", "split-brain"],
        &["initial-split-brain", "split-brain"],
    );
}

#[test]
fn t20_link_lost_while_bitmaps_are_exchanged() {
    let mut lab = cut_with_writes(&[2, 6]);
    reconnect(&mut lab, 2);
    lab.cut();
    lab.row(
        "link lost before P_SYNC_UUID",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=2",
        "WFConnection Sec/Unk Outdated/DUnknown [C, 0, H1, H2] oos=0",
    );
    assert_eq!(lab.command(B, primary(Force::No)), -2);
    reconnect(&mut lab, 2);
    from_a_with_c(&mut lab, 2);
}

/// From now on nothing of A arrives at B, which waits for the sync UUID, until the link is given up.
fn lose_sync_uuid(lab: &mut Lab) {
    lab.wait("B waits for the sync UUID", |world| {
        world.nodes[B].state().unwrap().conn == ConnState::WFSyncUUID
    });
    lab.world.block([true, false]);
}

#[test]
fn t21_sync_uuid_is_lost() {
    let mut lab = cut_with_writes(&[2, 6]);
    lab.plug();
    lose_sync_uuid(&mut lab);
    lab.row(
        "A became SyncSource",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=2",
        "WFSyncUUID Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=2",
    );
    lab.handlers(&FROM_A[..1], &[]);
    lab.cut();
    lab.row(
        "link lost",
        "WFConnection Pri/Unk UpToDate/Inconsistent [A1*, C+δ*, C*, H1] oos=2",
        "WFConnection Sec/Unk Outdated/DUnknown [C, 0, H1, H2] oos=2",
    );
    lab.plug();
    lab.row(
        "reconnect: both sides undo",
        "WFBitMapS Pri/Sec UpToDate/Consistent [A1*, C*, H1, H1] oos=2",
        "WFBitMapT Sec/Pri Outdated/UpToDate [C, 0, H1, H2] oos=2",
    );
    from_a_with_c(&mut lab, 2);
}

#[test]
fn t22_sync_uuid_of_a_crash_recovery_is_lost() {
    let mut lab = crashed_primary();
    lab.boot(A);
    lab.connect(A, false);
    lose_sync_uuid(&mut lab);
    lab.row(
        "A became SyncSource",
        "SyncSource Sec/Sec UpToDate/Inconsistent [C, S1, H1, H2] oos=8",
        "WFSyncUUID Sec/Sec Outdated/UpToDate [C, 0, H1, H2] oos=8",
    );
    lab.cut();
    lab.row(
        "link lost",
        "WFConnection Sec/Unk UpToDate/Inconsistent [C, S1, H1, H2] oos=8",
        "WFConnection Sec/Unk Outdated/DUnknown [C, 0, H1, H2] oos=8",
    );
    lab.plug();
    lab.row(
        "reconnect",
        "WFBitMapS Sec/Sec UpToDate/Consistent [C, S1, H1, H2] oos=8",
        "WFBitMapT Sec/Sec Outdated/UpToDate [C, 0, H1, H2] oos=8",
    );
    lab.row(
        "resync runs",
        "SyncSource Sec/Sec UpToDate/Inconsistent [C, S1+δ, S1, H1] oos=8",
        "SyncTarget Sec/Sec Inconsistent/UpToDate [S1+δ, 0, H1, H2] oos=8",
    );
    let done = "Connected Sec/Sec UpToDate/UpToDate [C, 0, S1+δ, S1] oos=0";
    lab.finished(done, done);
}

#[test]
fn t23_source_missed_the_end_of_the_resync() {
    let mut lab = Lab::blank();
    let (a1, c, h1) = (
        0xa1a1_0000_0000_0000_u64,
        0xc000_0000_0000_0000_u64,
        0x1111_0000_0000_0000,
    );
    for (name, value) in [("A1", a1), ("C", c), ("H1", h1)] {
        lab.names.insert(name.to_owned(), value);
    }
    // Rows 1 and 2: what the two disks hold when the link is lost after B finished.
    let on_a = Uuids {
        current: a1,
        bitmap: (c + DELTA) | 1,
        history: [c | 1, h1],
    };
    let on_b = Uuids {
        current: a1,
        bitmap: 0,
        history: [c + DELTA, c | 1],
    };
    lab.world.nodes[A].set_generation(on_a).unwrap();
    lab.world.nodes[B].set_generation(on_b).unwrap();
    let flags = Flags::CONSISTENT
        .with(Flags::WAS_UP_TO_DATE)
        .with(Flags::PEER_OUT_DATED)
        .with(Flags::AL_CLEAN);
    lab.world.nodes[A]
        .edit_superblock(|block| block.flags = flags)
        .unwrap();
    let bitmap = lab.world.nodes[A].layout().unwrap().bitmap_offset().0;
    let mut page = vec![0; 4096];
    page[0] = 1 << 3;
    lab.world.nodes[A].meta_disk().write(bitmap, &page, true);
    lab.boot(A);
    lab.boot(B);
    lab.ok(A, primary(Force::No));
    lab.row(
        "link lost",
        "StandAlone Pri/Unk UpToDate/Outdated [A1*, C+δ*, C*, H1] oos=1",
        "StandAlone Sec/Unk UpToDate/DUnknown [A1, 0, C+δ, C*] oos=0",
    );
    lab.connect(A, false);
    lab.connect(B, false);
    lab.row(
        "reconnect: history corrected",
        "WFBitMapS Pri/Sec UpToDate/Consistent [A1*, 0, C+δ*, C*] oos=1",
        "WFBitMapT Sec/Pri Outdated/UpToDate [A1, 0, C+δ, C*] oos=0",
    );
    lab.row(
        "resync runs",
        "SyncSource Pri/Sec UpToDate/Inconsistent [A1*, S1, C+δ*, C*] oos=1",
        "SyncTarget Sec/Pri Inconsistent/UpToDate [S1, 0, C+δ, C*] oos=1",
    );
    lab.handlers(&FROM_A[..1], &FROM_A[1..]);
    lab.row(
        "resync finished",
        "Connected Pri/Sec UpToDate/UpToDate [A1*, 0, S1, C+δ*] oos=0",
        "Connected Sec/Pri UpToDate/UpToDate [A1, 0, S1, C+δ*] oos=0",
    );
    lab.handlers(&[], &["after-resync-target"]);
}

#[test]
fn t40_clean_switchover() {
    let mut lab = Lab::start();
    lab.ok(A, SECONDARY);
    let both = "Connected Sec/Sec UpToDate/UpToDate [C, 0, H1, H2] oos=0";
    lab.row("secondary", both, both);
    lab.ok(B, primary(Force::No));
    lab.row(
        "primary",
        "Connected Sec/Pri UpToDate/UpToDate [C, 0, H1, H2] oos=0",
        "Connected Pri/Sec UpToDate/UpToDate [C*, 0, H1, H2] oos=0",
    );
    lab.cut();
    lab.row(
        "link lost",
        "WFConnection Sec/Unk UpToDate/DUnknown [C, 0, H1, H2] oos=0",
        "WFConnection Pri/Unk UpToDate/DUnknown [B1*, C*, H1, H2] oos=0",
    );
    lab.handlers(&[], &[]);
}

#[test]
fn t41_degraded_primary_crashes_and_reboots_alone() {
    let mut lab = Lab::start();
    lab.power_off(B);
    lab.wait("A notices", |world| !world.nodes[A].is_connected());
    lab.row(
        "B died",
        "WFConnection Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0",
        "(down) [C, 0, H1, H2] oos=0",
    );
    lab.power_off(A);
    lab.boot(A);
    lab.row(
        "A boots",
        "StandAlone Sec/Unk UpToDate/DUnknown [A1, C*, H1, H2] oos=0",
        "(down) [C, 0, H1, H2] oos=0",
    );
    lab.ok(A, primary(Force::No));
    lab.row(
        "primary",
        "StandAlone Pri/Unk UpToDate/DUnknown [A1*, C*, H1, H2] oos=0",
        "(down) [C, 0, H1, H2] oos=0",
    );
}
