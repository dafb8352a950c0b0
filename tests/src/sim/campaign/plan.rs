//! What is drawn before a campaign begins: sizes, options, and a mix of faults and commands.

use std::time::Duration;

use tandem_replicator::planted::Plant;
use tandem_replicator::{DiskOptions, MetaKind, NetOptions, Protocol};

use super::{FIRST_DIGEST_SEED, FIRST_SHARP_SEED, FIRST_SMALL_SEED, FIRST_TORN_SEED, Spec, rough};
use crate::sim::clients::Habits;
use crate::sim::dice::Dice;
use crate::sim::network::{MS, NetSettings};
use crate::sim::node::DiskPlan;
use crate::sim::world::Settings;

/// How two nodes come to be in sync at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setup {
    /// Metadata of a pair that was in sync.
    Equal,
    /// `new-current-uuid --clear-bitmap`.
    Skipped,
    /// `primary --force` on A: B holds garbage before.
    Full,
}

/// Something that goes wrong, or that a person does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each has words in [`ACTIONS`].
pub enum Action {
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
    Verify,
}

/// All of them, in words, and how often each happens where it happens.
pub const ACTIONS: [(Action, &str, u32); 24] = [
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
    // Its weight is that of `verify_weight`.
    (Action::Verify, "verify", 0),
];

/// A drawn campaign.
pub(super) struct Plan {
    pub(super) settings: Settings,
    pub(super) setup: Setup,
    pub(super) weights: Vec<u32>,
    pub(super) actions: u32,
    pub(super) gap: u64,
}

pub(super) fn draw(spec: Spec) -> Plan {
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
    let mut weights: Vec<u32> = ACTIONS[..ACTIONS.len() - 1]
        .iter()
        .map(|(_, _, weight)| if dice.chance(1, 2) { *weight } else { 0 })
        .collect();
    if weights.iter().all(|weight| *weight == 0) {
        weights[0] = 1;
    }
    weights.push(verify_weight(spec.seed));
    let settings = Settings {
        seed: spec.seed,
        pairs: 1,
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
        tears_sectors: spec.seed >= FIRST_TORN_SEED,
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
    let net = NetOptions {
        integrity_alg: dice.pick(&["", "", "crc32c", "sha1"]).to_owned(),
        ..net
    };
    if seed < FIRST_DIGEST_SEED {
        return net;
    }
    let mut dice = Dice::new(seed, "checksums");
    NetOptions {
        csums_alg: dice.pick(&["", "crc32c", "sha1"]).to_owned(),
        csums_after_crash_only: dice.chance(1, 4),
        verify_alg: dice.pick(&["", "crc32c", "crc32c"]).to_owned(),
        ..net
    }
}

/// A person verifies in some of the later histories, whether or not there is an algorithm.
fn verify_weight(seed: u64) -> u32 {
    if seed < FIRST_DIGEST_SEED {
        return 0;
    }
    Dice::new(seed, "verify").pick(&[0, 4, 12])
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
