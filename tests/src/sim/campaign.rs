//! One seed, one history: sizes, options and a mix of faults are drawn, a safety phase runs under faults, then everything is healed
//! and the two nodes must come together again.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use tandem_metadata::Uuids;
use tandem_replicator::planted::{Plant, Planted};
use tandem_replicator::state::word::{ConnState, DiskState, Role};
use tandem_replicator::{Command, DiskOptions, Force, MetaKind, NetOptions, Protocol};

mod rough;

use super::black_box::Boxes;
use super::clients::Habits;
use super::dice::Dice;
use super::network::{MS, NetSettings};
use super::node::{DiskPlan, IoFault, Keep, VOLUME};
use super::person::Person;
use super::stamp::{Content, SECTOR};
use super::trace::{name, state_words};
use super::world::{CrashAt, Settings, World};

/// Histories before this one are those that found the first mistakes: they stay what they were, and nodes die at a time. From
/// this one on they die at an I/O as well.
const FIRST_SHARP_SEED: u64 = 2000;

/// From this seed on devices are small: blocks meet more often, and a resync does not take most of the time.
const FIRST_SMALL_SEED: u64 = 4000;

/// From this one on disks hang and fill up, ports are closed, handlers fail, and persons type whatever there is to type.
pub(super) const FIRST_ROUGH_SEED: u64 = 3000;

/// What is asked of a run.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// The seed.
    pub seed: u64,
    /// The protocol.
    pub protocol: Protocol,
    /// Print everything while it happens.
    pub live: bool,
    /// A mistake of both engines.
    pub planted: Option<Planted>,
}

impl Spec {
    /// A silent run of the engine as it is.
    #[must_use]
    pub const fn new(seed: u64, protocol: Protocol) -> Spec {
        Spec {
            seed,
            protocol,
            live: false,
            planted: None,
        }
    }
}

/// How a run ended well.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Hash of the whole trace.
    pub fingerprint: u64,
    /// How often the bits of two nodes that were apart were compared with their disks.
    pub looks_at_bits: u32,
    /// Requests answered with success, with an error, never.
    pub requests: (u64, u64, u64),
    /// Faults and commands of the safety phase.
    pub actions: u32,
    /// Split brains that a person decided.
    pub split_brains: u32,
    /// Times that a person had to disconnect and connect to get a resync going.
    pub nudges: u32,
    /// Virtual seconds.
    pub seconds: u64,
    /// Lines of the trace.
    pub lines: u64,
    /// What happened, by name.
    pub kinds: Vec<&'static str>,
}

/// How a run went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What is wrong, in one line.
    pub why: String,
    /// Everything that helps: the end of the story, the states, the command that replays it.
    pub story: String,
    /// Faults and commands that were carried out before, by their place in the campaign.
    pub actions: Vec<(u32, &'static str)>,
    /// Turns of the clients before.
    pub turns: u64,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.story)
    }
}

/// How a run ended.
pub type Outcome = Result<Report, Failure>;

/// What is left of a history: see [`super::shrink`].
#[derive(Clone, Debug, Default)]
pub struct Cuts {
    /// Places of the faults and commands that are left out.
    pub actions: BTreeSet<u32>,
    /// Turns of the clients in which they do nothing.
    pub turns: Vec<Range<u64>>,
    /// The dice of each place as the whole history had them, so that those that are left do what they did.
    dice: Vec<Dice>,
}

/// How two nodes come to be in sync at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setup {
    /// Metadata of a pair that was in sync.
    Equal,
    /// `new-current-uuid --clear-bitmap`.
    Skipped,
    /// `primary --force` on A: B holds garbage before.
    Full,
}

/// Something that goes wrong, or that a person does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    CutStreams,
    CutOneStream,
    Partition,
    HalfOpen,
    SlowNetwork,
    SlowDisk,
    KillPrimary,
    KillSecondary,
    PowerPrimary,
    PowerSecondary,
    PowerBoth,
    KillBoth,
    DiskError,
    Disconnect,
    Detach,
    Down,
    Switchover,
    SplitBrain,
    Invalidate,
    PauseSync,
    SuspendIo,
    Quiet,
    Outdate,
}

const ACTIONS: [(Action, &str, u32); 23] = [
    (Action::CutStreams, "cut streams", 8),
    (Action::CutOneStream, "cut one stream", 5),
    (Action::Partition, "partition", 6),
    (Action::HalfOpen, "half-open", 4),
    (Action::SlowNetwork, "slow network", 3),
    (Action::SlowDisk, "slow disk", 3),
    (Action::KillPrimary, "kill the primary", 6),
    (Action::KillSecondary, "kill the secondary", 6),
    (Action::PowerPrimary, "power off the primary", 6),
    (Action::PowerSecondary, "power off the secondary", 6),
    (Action::PowerBoth, "power off both", 4),
    (Action::KillBoth, "kill both", 3),
    (Action::DiskError, "disk error", 4),
    (Action::Disconnect, "disconnect", 4),
    (Action::Detach, "detach", 3),
    (Action::Down, "down", 3),
    (Action::Switchover, "switchover", 6),
    (Action::SplitBrain, "split brain", 1),
    (Action::Invalidate, "invalidate", 2),
    (Action::PauseSync, "pause-sync", 2),
    (Action::SuspendIo, "suspend-io", 2),
    (Action::Quiet, "quiet", 6),
    (Action::Outdate, "outdate", 1),
];

/// A drawn campaign.
struct Plan {
    settings: Settings,
    setup: Setup,
    weights: Vec<u32>,
    actions: u32,
    gap: u64,
}

fn draw(spec: Spec) -> Plan {
    let mut dice = Dice::new(spec.seed, "plan");
    // A device with more extents than the activity log takes as long as fifty others: later histories have it less often.
    let rare = match spec.seed {
        ..FIRST_SHARP_SEED => 25,
        FIRST_SHARP_SEED..FIRST_SMALL_SEED => 100,
        FIRST_SMALL_SEED.. => 1000,
    };
    let large = dice.chance(1, rare);
    let internal = dice.chance(1, 2);
    let data = if large {
        dice.between(300, 420) << 20
    } else if spec.seed < FIRST_SMALL_SEED {
        dice.pick(&[64, 256, 1024, 2048, 4096, 6144, 9000]) << 10
    } else {
        dice.pick(&[64, 64, 128, 256, 256, 512, 1024, 3000]) << 10
    };
    let bytes = if internal {
        data.max(1 << 20) + (256 << 10)
    } else {
        data
    };
    let setup = match dice.weighted(&[5, 2, u32::from(!large) * 2]) {
        0 => Setup::Equal,
        1 => Setup::Skipped,
        _ => Setup::Full,
    };
    let mut weights: Vec<u32> = ACTIONS
        .iter()
        .map(|(_, _, weight)| if dice.chance(1, 2) { *weight } else { 0 })
        .collect();
    if weights.iter().all(|weight| *weight == 0) {
        weights[0] = 1;
    }
    let settings = Settings {
        seed: spec.seed,
        disk: DiskPlan {
            bytes,
            meta: if internal {
                MetaKind::Internal
            } else {
                MetaKind::FlexibleExternal
            },
            discard: dice.chance(2, 3),
        },
        disk_options: rough::draw_policy(draw_disk(&mut dice, large), spec.seed),
        net_options: draw_digests(draw_net(&mut dice, spec.protocol), spec.seed),
        net: NetSettings {
            delay: (50_000, dice.pick(&[100_000, 500_000, 3 * MS, 10 * MS])),
            window: dice.pick(&[4096, 65_536, 1 << 20]),
            pieces: true,
            dial_timeout: dice.between(500, 3000) * MS,
        },
        disk_delay: (20_000, dice.pick(&[100_000, MS, 4 * MS])),
        handler_delay: dice.between(1, 200) * MS,
        habits: draw_odd(draw_habits(&mut dice, large), spec.seed),
        live: spec.live,
        plant: Plant::of(spec.planted),
    };
    Plan {
        settings,
        setup,
        weights,
        actions: dice.between(4, 14) as u32,
        gap: dice.between(600, 3500) * MS,
    }
}

fn draw_disk(dice: &mut Dice, large: bool) -> DiskOptions {
    let rate = dice.pick(&[1000, 10_000, 100_000]);
    DiskOptions {
        al_extents: if large { 67 } else { dice.pick(&[67, 1237]) },
        resync_rate: rate,
        c_plan_ahead: dice.pick(&[0, 0, 20]),
        c_fill_target: dice.pick(&[0, 100, 1000]),
        c_max_rate: 400_000,
        c_min_rate: dice.pick(&[0, 250, 10_000]),
        ..DiskOptions::default()
    }
}

fn draw_net(dice: &mut Dice, protocol: Protocol) -> NetOptions {
    let ping_timeout = dice.pick(&[100, 300, 500]);
    NetOptions {
        protocol,
        secret: dice
            .chance(1, 8)
            .then(|| (b"secret".to_vec(), "sha256".to_owned())),
        timeout: Duration::from_millis(dice.pick(&[1000, 2000, 6000])),
        ping_interval: Duration::from_millis(dice.pick(&[1000, 3000])),
        ping_timeout: Duration::from_millis(ping_timeout),
        connect_interval: Duration::from_millis(dice.pick(&[1000, 3000])),
        ko_count: dice.pick(&[1, 2, 7]),
        max_buffers: dice.pick(&[32, 128, 2048]),
        max_epoch_size: dice.pick(&[2, 20, 2048]),
        use_rle: dice.chance(1, 2),
        ..NetOptions::default()
    }
}

/// From a stream of their own: histories of older seeds without digests stay what they were.
fn draw_digests(net: NetOptions, seed: u64) -> NetOptions {
    let mut dice = Dice::new(seed, "digests");
    NetOptions {
        integrity_alg: dice.pick(&["", "", "crc32c", "sha1"]).to_owned(),
        ..net
    }
}

fn draw_habits(dice: &mut Dice, large: bool) -> Habits {
    Habits {
        depth: dice.pick(&[1, 4, 16]),
        pause: dice.pick(&[20, 50, 120]) * MS,
        sectors_max: dice.pick(&[8, 32, 128]),
        hot: if large { 0 } else { dice.pick(&[0, 64, 256]) },
        mix: [
            dice.pick(&[1, 4, 8]),
            20,
            dice.pick(&[0, 2]),
            dice.pick(&[0, 2, 5]),
            dice.pick(&[0, 0, 2]),
            dice.pick(&[0, 0, 2]),
        ],
        odd: 0,
    }
}

/// Requests that do not start or end on a sector: in the later histories, from a stream of their own.
fn draw_odd(habits: Habits, seed: u64) -> Habits {
    let mut dice = Dice::new(seed, "odd");
    let odd = if seed < FIRST_SHARP_SEED {
        0
    } else {
        dice.pick(&[0, 1, 4, 12])
    };
    Habits { odd, ..habits }
}

/// Runs one campaign.
///
/// # Errors
/// What is wrong, with the last lines of the trace and the command that replays it.
pub fn run(spec: Spec) -> Outcome {
    carry_out(spec, Cuts::default(), None).0
}

/// As [`run`], with a black box of every process of both nodes.
///
/// # Errors
/// As of [`run`].
pub fn run_recorded(spec: Spec) -> (Outcome, Vec<Vec<u8>>) {
    let mut boxes = Vec::new();
    let (outcome, _) = carry_out(spec, Cuts::default(), Some(&mut boxes));
    (outcome, boxes)
}

/// Runs what is left of a campaign.
///
/// # Errors
/// As of [`run`].
pub fn run_cut(spec: Spec, cuts: &Cuts) -> Outcome {
    let whole = Spec {
        live: false,
        ..spec
    };
    let (_, dice) = carry_out(whole, Cuts::default(), None);
    let cuts = Cuts {
        dice,
        ..cuts.clone()
    };
    carry_out(spec, cuts, None).0
}

fn carry_out(spec: Spec, cuts: Cuts, boxes: Option<&mut Vec<Vec<u8>>>) -> (Outcome, Vec<Dice>) {
    let plan = draw(spec);
    let dice = Dice::new(spec.seed, "campaign");
    let mut campaign = Campaign {
        world: World::new(plan.settings.clone()),
        person: Person::new(Dice::new(spec.seed, "person")),
        plan,
        dice,
        sharp: Dice::new(spec.seed, "sharp"),
        rough: Dice::new(spec.seed, "rough"),
        report: Report::default(),
        done: Vec::new(),
        undo: Vec::new(),
        dice_at: Vec::new(),
        cuts,
    };
    campaign.world.clients.muted = campaign.cuts.turns.clone();
    if boxes.is_some() {
        for node in &mut campaign.world.nodes {
            node.boxes = Some(Boxes::default());
        }
    }
    let outcome = campaign.run();
    if let Some(boxes) = boxes {
        let nodes = campaign.world.nodes.iter_mut();
        boxes.extend(
            nodes
                .filter_map(|node| node.boxes.as_mut())
                .flat_map(Boxes::take),
        );
    }
    let dice = std::mem::take(&mut campaign.dice_at);
    let outcome = match outcome {
        Ok(()) => Ok(campaign.finish()),
        Err(why) => Err(campaign.explain(spec, &why)),
    };
    (outcome, dice)
}

/// Something to be taken back later.
enum Undo {
    Unblock,
    Faster,
    Loud,
    Rough(rough::Undo),
}

struct Campaign {
    world: World,
    person: Person,
    plan: Plan,
    dice: Dice,
    report: Report,
    undo: Vec<(u64, Undo)>,
    /// For crashes at an I/O: a stream of its own, so that histories found before it stay what they were.
    sharp: Dice,
    /// For what only rough histories have.
    rough: Dice,
    /// Faults and commands so far, by place.
    done: Vec<(u32, &'static str)>,
    /// The dice at each place.
    dice_at: Vec<Dice>,
    cuts: Cuts,
}

impl Campaign {
    fn run(&mut self) -> Result<(), String> {
        self.set_up()?;
        self.safety()?;
        self.heal()?;
        self.final_reading()
    }

    fn set_up(&mut self) -> Result<(), String> {
        let plan = format!(
            "setup {:?}, {:?}, {:?}, protocol {:?}",
            self.plan.setup,
            self.world.settings.disk,
            self.world.settings.habits,
            self.world.settings.net_options.protocol
        );
        self.world.say(plan);
        let generation = self.dice.bits() & !1;
        let older = [self.dice.bits(), self.dice.bits()];
        for node in 0..2 {
            self.world.nodes[node].create_metadata()?;
            if self.plan.setup == Setup::Equal {
                let uuids = Uuids {
                    current: generation,
                    bitmap: 0,
                    history: older,
                };
                self.world.nodes[node].set_generation(uuids)?;
            }
        }
        if self.plan.setup == Setup::Full {
            let sectors = self.world.nodes[1].data_sectors();
            for _ in 0..40 {
                let sector = self.dice.below(sectors);
                let garbage = Content::Raw(std::sync::Arc::new([0xb5; 512]));
                self.world.nodes[1].data.set(sector, garbage, true);
            }
        }
        self.world.up(0);
        self.world.up(1);
        let world = &mut self.world;
        world
            .run_until(60_000 * MS, |world| {
                world.nodes.iter().all(super::node::Node::is_connected)
                    && world.nodes.iter().all(|node| node.open_commands.is_empty())
            })
            .map_err(|why| format!("the nodes do not connect at first: {why}"))?;
        match self.plan.setup {
            Setup::Equal => {}
            Setup::Skipped => {
                world.command(
                    0,
                    Command::NewCurrentUuid {
                        volume: VOLUME,
                        clear_bitmap: true,
                    },
                );
            }
            Setup::Full => {
                world.promote(0, Force::Yes);
            }
        }
        world
            .run_until(600_000 * MS, |world| world.is_in_sync())
            .map_err(|why| format!("the nodes do not get in sync at first: {why}"))
    }

    /// Runs for a time, with the person looking now and then.
    fn live(&mut self, time: u64) -> Result<(), String> {
        let end = self.world.now + time;
        while self.world.now < end {
            let left = end - self.world.now;
            let woken = self.world.run_until(left, |world| world.person_due);
            if let Some(failure) = self.world.failure() {
                return Err(failure.to_owned());
            }
            self.take_back();
            if woken.is_ok() {
                self.world.person_due = false;
                self.person.look(&mut self.world);
            }
            self.let_clients_on();
        }
        Ok(())
    }

    /// Clients of a node that is no longer being demoted go on.
    fn let_clients_on(&mut self) {
        if !self.person.switching && !self.person.sees_split() {
            self.world.clients.resting = [false; 2];
        }
    }

    fn take_back(&mut self) {
        let now = self.world.now;
        let due: Vec<_> = self.undo.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, undo) in due {
            self.take_back_one(&undo);
        }
    }

    fn take_back_one(&mut self, undo: &Undo) {
        match undo {
            Undo::Unblock => self.world.block([false; 2]),
            Undo::Faster => {
                self.world.say("network and disks are as fast as before");
                self.world.net.settings.delay = self.plan.settings.net.delay;
                self.world.settings.disk_delay = self.plan.settings.disk_delay;
            }
            Undo::Loud => {
                self.world.clients.quiet = false;
                self.world.wake_clients();
            }
            Undo::Rough(undo) => self.take_back_rough(*undo),
        }
    }

    fn undo_in(&mut self, least_ms: u64, most_ms: u64, undo: Undo) {
        let at = self.world.now + self.dice.between(least_ms, most_ms) * MS;
        self.undo.push((at, undo));
    }

    fn safety(&mut self) -> Result<(), String> {
        self.world.clients.quiet = false;
        self.world.wake_clients();
        self.world.wake_person(0);
        for place in 0..self.plan.actions {
            if let Some(dice) = self.cuts.dice.get(place as usize) {
                self.dice = dice.clone();
            }
            self.dice_at.push(self.dice.clone());
            let gap = self.dice.spread(self.plan.gap).min(8 * self.plan.gap);
            self.live(gap)?;
            let index = self.dice.weighted(&self.plan.weights);
            let (action, words, _) = ACTIONS[index];
            if self.cuts.actions.contains(&place) {
                continue;
            }
            self.sharpen(action);
            if self.act(action) {
                self.done.push((place, words));
                self.report.actions += 1;
                self.report.kinds.push(words);
            }
            if let Some(words) = self.roughen() {
                self.report.kinds.push(words);
            }
            self.world.compare_if_idle();
            self.report.looks_at_bits += u32::from(self.world.check_bits_if_apart());
        }
        let gap = self.plan.gap;
        self.live(gap)
    }

    /// Now and then a node dies in the middle of what this action makes it write, at an I/O and not at a time.
    fn sharpen(&mut self, action: Action) {
        if self.world.settings.seed < FIRST_SHARP_SEED {
            return;
        }
        let writes = matches!(
            action,
            Action::Switchover
                | Action::Detach
                | Action::Disconnect
                | Action::CutStreams
                | Action::CutOneStream
                | Action::Invalidate
                | Action::Down
                | Action::Quiet
        );
        if writes && self.sharp.chance(1, 3) {
            let (node, power) = (self.sharp.below(2) as usize, self.sharp.chance(3, 4));
            self.arm(node, power);
        }
    }

    fn arm(&mut self, node: usize, power: bool) {
        let crash = CrashAt {
            left: self.sharp.between(1, 12) as u32,
            all: false,
            power: power.then_some(Keep::Dice),
            completed: self.sharp.chance(1, 2),
        };
        self.world.crash_at[node] = Some(crash);
        let down = self.sharp.between(200, 6000) * MS;
        self.person.start_at[node] = Some(self.world.now + down);
    }

    /// Who serves clients, and who does not.
    fn primary(&self) -> usize {
        let is_primary = |node: usize| self.world.nodes[node].is_primary();
        match (is_primary(0), is_primary(1)) {
            (true, false) => 0,
            (false, true) => 1,
            _ => self.person.wanted,
        }
    }

    fn act(&mut self, action: Action) -> bool {
        let primary = self.primary();
        let secondary = 1 - primary;
        match action {
            Action::CutStreams => self.world.reset_streams(false),
            Action::CutOneStream => self.world.reset_streams(true),
            Action::Partition => {
                self.world.block([true; 2]);
                self.undo_in(100, 9000, Undo::Unblock);
            }
            Action::HalfOpen => {
                let from = self.dice.below(2) as usize;
                self.world.block([from == 0, from == 1]);
                self.undo_in(100, 9000, Undo::Unblock);
            }
            Action::SlowNetwork => {
                self.world.say("the network is slow");
                self.world.net.settings.delay = (MS, 60 * MS);
                self.undo_in(500, 6000, Undo::Faster);
            }
            Action::SlowDisk => {
                self.world.say("the disks are slow");
                self.world.settings.disk_delay = (MS, 80 * MS);
                self.undo_in(500, 6000, Undo::Faster);
            }
            Action::KillPrimary => self.stop_primary(primary, false),
            Action::PowerPrimary => self.stop_primary(primary, true),
            Action::KillSecondary => self.stop(secondary, false),
            Action::PowerSecondary => self.stop(secondary, true),
            Action::PowerBoth | Action::KillBoth => {
                let power = action == Action::PowerBoth;
                self.stop(0, power);
                if self.dice.chance(1, 2) {
                    let gap = self.dice.below(300) * MS;
                    if self.live(gap).is_err() {
                        return true;
                    }
                }
                self.stop(1, power);
            }
            Action::DiskError => self.disk_error(),
            Action::Switchover => self.person.switching = true,
            Action::SplitBrain => return self.split_brain(primary),
            Action::Quiet => {
                self.world.clients.quiet = true;
                self.undo_in(500, 3000, Undo::Loud);
            }
            _ => return self.operate(action, primary, secondary),
        }
        true
    }

    /// Commands of a person that are not about who is Primary.
    fn operate(&mut self, action: Action, primary: usize, secondary: usize) -> bool {
        let node = self.dice.below(2) as usize;
        let volume = VOLUME;
        let force = self.dice.pick(&[Force::No, Force::No, Force::Yes]);
        let state = |node: usize| self.world.nodes[node].state();
        let (Some(own), Some(peer)) = (state(primary), state(secondary)) else {
            return false;
        };
        match action {
            Action::Disconnect => {
                self.world.command(node, Command::Disconnect { force });
            }
            Action::Detach => {
                let both = own.disk == DiskState::UpToDate && peer.disk == DiskState::UpToDate;
                if !both || own.conn != ConnState::Connected {
                    return false;
                }
                self.world.command(node, Command::Detach { volume, force });
            }
            Action::Down => {
                let force = Force::No;
                if peer.role == Role::Primary {
                    return false;
                }
                let force_or_not = force;
                self.world.command(
                    secondary,
                    Command::Down {
                        force: force_or_not,
                    },
                );
                let wait = self.dice.between(200, 1500) * MS;
                if self.live(wait).is_err() {
                    return true;
                }
                self.stop(secondary, false);
            }
            Action::Invalidate => {
                let fit = own.disk == DiskState::UpToDate
                    && own.conn == ConnState::Connected
                    && peer.conn == ConnState::Connected;
                if !fit {
                    return false;
                }
                self.world.oracle.discard(secondary);
                if self.dice.chance(1, 2) {
                    self.world
                        .command(secondary, Command::Invalidate { volume });
                } else {
                    self.world
                        .command(primary, Command::InvalidateRemote { volume });
                }
            }
            Action::PauseSync => {
                self.world.command(node, Command::PauseSync { volume });
                let after = self.dice.between(200, 6000) * MS;
                self.person.resume_at[node] = Some(self.world.now + after);
            }
            Action::SuspendIo => {
                self.world.command(primary, Command::SuspendIo { volume });
                let after = self.dice.between(200, 6000) * MS;
                self.person.resume_at[primary] = Some(self.world.now + after);
            }
            Action::Outdate => {
                if peer.conn.is_connected() || peer.role == Role::Primary {
                    return false;
                }
                self.world.command(secondary, Command::Outdate { volume });
            }
            _ => return false,
        }
        true
    }

    fn stop(&mut self, node: usize, power: bool) {
        if !self.world.nodes[node].is_running() {
            return;
        }
        if self.world.settings.seed >= FIRST_SHARP_SEED && self.sharp.chance(1, 4) {
            self.arm(node, power);
            return;
        }
        self.world.stop(node, power);
        let down = self.dice.between(200, 6000) * MS;
        self.person.start_at[node] = Some(self.world.now + down);
    }

    /// The Primary dies; now and then the person makes the other node Primary.
    fn stop_primary(&mut self, primary: usize, power: bool) {
        self.stop(primary, power);
        if self.dice.chance(1, 2) {
            self.person.wanted = 1 - primary;
            self.person.switching = false;
            if self.dice.chance(1, 2) {
                self.person.start_at[primary] =
                    Some(self.world.now + self.dice.between(3000, 9000) * MS);
            }
        }
    }

    fn disk_error(&mut self) {
        let node = self.dice.below(2) as usize;
        let both = self.world.is_in_sync();
        if !both {
            return;
        }
        let kind = self
            .dice
            .pick(&[IoFault::DataRead, IoFault::DataWrite, IoFault::Meta]);
        let count = self.dice.between(1, 3) as u32;
        self.world
            .say(format!("{}: the next {count} {kind:?} fail", name(node)));
        self.world.nodes[node].fault = Some((kind, count));
    }

    /// The person promotes the other node although the Primary lives.
    fn split_brain(&mut self, primary: usize) -> bool {
        let other = 1 - primary;
        if !self.world.nodes.iter().all(super::node::Node::is_running)
            || !self.world.nodes[primary].is_primary()
        {
            return false;
        }
        self.world.block([true; 2]);
        self.undo_in(4000, 9000, Undo::Unblock);
        let gone = self.live(3500 * MS);
        if gone.is_err() || self.world.nodes[other].is_connected() {
            return true;
        }
        if self.world.nodes[other].is_up_to_date() {
            self.world.promote(other, Force::No);
        }
        true
    }

    /// All faults end; the two nodes must come together.
    fn heal(&mut self) -> Result<(), String> {
        self.world.say("everything is healed");
        for (_, undo) in std::mem::take(&mut self.undo) {
            self.take_back_one(&undo);
        }
        self.world.block([false; 2]);
        self.world.crash_at = [None; 2];
        self.smooth();
        self.person.healing = true;
        self.person.switching = false;
        for node in 0..2 {
            self.world.nodes[node].fault = None;
        }
        // Half of the histories heal under load.
        self.world.clients.quiet = self.dice.chance(1, 2);
        if !self.world.clients.quiet {
            self.world.wake_clients();
        }
        for nudge in 0..4 {
            if self.together(200)? {
                return self.all_answered();
            }
            if nudge == 3 {
                break;
            }
            self.nudge()?;
        }
        Err("everything is healed, but the nodes do not get in sync".to_owned())
    }

    fn together(&mut self, seconds: u64) -> Result<bool, String> {
        for _ in 0..seconds {
            self.live(1000 * MS)?;
            let calm = self
                .world
                .nodes
                .iter()
                .all(|node| node.open_commands.is_empty());
            let served = self.world.nodes.iter().any(super::node::Node::is_primary);
            if self.world.is_in_sync() && calm && served && !self.person.sees_split() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What a person does with a resync that does not move: disconnect, connect.
    fn nudge(&mut self) -> Result<(), String> {
        let stuck = self.states();
        self.world
            .say(format!("a person disconnects and connects again: {stuck}"));
        self.report.nudges += 1;
        // A load above what the link carries in `timeout` x `ko-count` breaks it again and again, and rightly so.
        self.world.clients.quiet |= self.report.nudges > 1;
        for node in 0..2 {
            let force = Force::Yes;
            self.world.command(node, Command::Disconnect { force });
        }
        self.live(3000 * MS)
    }

    fn states(&self) -> String {
        let words: Vec<_> = (0..2)
            .map(|node| {
                let state = self.world.nodes[node].state();
                let status = &self.world.nodes[node].status;
                let oos = status
                    .as_ref()
                    .map_or(0, |status| status.counters.out_of_sync_kib);
                let commands: Vec<_> = self.world.nodes[node].open_commands.values().collect();
                format!(
                    "{}: {} oos {oos} KiB, open commands {commands:?}, {} requests",
                    name(node),
                    state.map_or("down".to_owned(), state_words),
                    self.world.clients.in_flight(node)
                )
            })
            .collect();
        words.join("; ")
    }

    fn all_answered(&mut self) -> Result<(), String> {
        self.world.clients.quiet = true;
        for _ in 0..60 {
            self.live(1000 * MS)?;
            if self.world.compare_if_idle() {
                return Ok(());
            }
        }
        let open: Vec<_> = (0..2)
            .filter_map(|node| self.world.clients.oldest(node))
            .collect();
        Err(format!(
            "the nodes are healed, but do not come to rest: requests {open:?}, I/O {:?}, network quiet {}; {}",
            [self.world.nodes[0].io.len(), self.world.nodes[1].io.len()],
            self.world.net.is_quiet(),
            self.states()
        ))
    }

    /// Every sector that was ever written is read through the Primary, then once more after a switchover.
    fn final_reading(&mut self) -> Result<(), String> {
        for _ in 0..2 {
            let node = self.primary();
            let sectors = self.world.nodes[node].serves.unwrap_or(0) / SECTOR;
            let used: Vec<u64> = self.world.nodes[node].data.used(sectors).collect();
            let mut at = 0;
            for sector in used {
                if sector < at {
                    continue;
                }
                at = (sector + 64).min(sectors);
                self.world.request(node, 0, sector, at - sector);
                if self.world.clients.in_flight(node) > 8 {
                    self.live(20 * MS)?;
                }
            }
            self.live(2000 * MS)?;
            if self.world.clients.in_flight(node) > 0 {
                return Err("reads of healed nodes are not answered".to_owned());
            }
            // The person may have had the other node in mind, and would take the switch for done.
            self.person.wanted = node;
            self.person.switching = true;
            for _ in 0..60 {
                self.live(1000 * MS)?;
                if self.world.nodes[1 - node].is_primary() && self.world.compare_if_idle() {
                    break;
                }
            }
            if !self.world.nodes[1 - node].is_primary() {
                return Err(format!(
                    "a switchover of healed nodes fails: {}",
                    self.states()
                ));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Report {
        let counts = self.world.clients.counts;
        self.report.fingerprint = self.world.trace.fingerprint();
        self.report.requests = (counts.done, counts.failed, counts.lost);
        self.report.split_brains = self.person.decided;
        self.report.seconds = self.world.now / 1000 / MS;
        self.report.lines = self.world.trace.count();
        self.report
    }

    fn explain(&mut self, spec: Spec, why: &str) -> Failure {
        let why = self.world.failure().unwrap_or(why).to_owned();
        let story = format!(
            "{}\n\nseed {} of protocol {:?}: {why}\n{}  actions: {}\n  commit: {}\n  replay: {}",
            self.world.trace.tail(),
            spec.seed,
            spec.protocol,
            self.ends(),
            self.report.kinds.join(", "),
            commit(),
            replay(spec, &self.cuts),
        );
        Failure {
            why,
            story,
            actions: self.done.clone(),
            turns: self.world.clients.turns,
        }
    }

    /// Where both nodes ended, one line each.
    fn ends(&mut self) -> String {
        let mut text = String::new();
        for node in 0..2 {
            let state = self.world.nodes[node].state();
            let live = self.world.nodes[node].status.as_ref();
            let oos = live.map_or(0, |status| status.counters.out_of_sync_kib);
            let uuids = live.and_then(|status| status.uuids);
            let uuids = uuids.or_else(|| self.world.nodes[node].uuids_on_disk());
            let commands: Vec<_> = self.world.nodes[node].open_commands.values().collect();
            let line = format!(
                "  {}: {} {:016x?}, {oos} KiB out of sync, open commands {commands:?}, {} requests\n",
                name(node),
                state.map_or("down".to_owned(), state_words),
                uuids.unwrap_or_default(),
                self.world.clients.in_flight(node)
            );
            text.push_str(&line);
        }
        text
    }
}

/// The command that runs the same again.
#[must_use]
pub fn replay(spec: Spec, cuts: &Cuts) -> String {
    let mut words = format!(
        "cargo run -p tandem-tests --bin sim -- --seed {} --protocol {:?}",
        spec.seed, spec.protocol
    );
    if let Some(bug) = spec.planted {
        words.push_str(&format!(" --plant {bug:?}"));
    }
    if !cuts.actions.is_empty() {
        let places: Vec<_> = cuts.actions.iter().map(u32::to_string).collect();
        words.push_str(&format!(" --without-actions {}", places.join(",")));
    }
    if !cuts.turns.is_empty() {
        let turns: Vec<_> = cuts
            .turns
            .iter()
            .map(|turns| format!("{turns:?}"))
            .collect();
        words.push_str(&format!(" --without-turns {}", turns.join(",")));
    }
    words.push_str(" --trace");
    words
}

/// The commit of the sources; "unknown" where there is none.
#[must_use]
pub fn commit() -> String {
    let mut git = std::process::Command::new("git");
    git.args(["rev-parse", "HEAD"]);
    git.current_dir(env!("CARGO_MANIFEST_DIR"));
    let text = git.output().ok().filter(|output| output.status.success());
    let text = text.and_then(|output| String::from_utf8(output.stdout).ok());
    text.map_or("unknown".to_owned(), |text| text.trim().to_owned())
}
