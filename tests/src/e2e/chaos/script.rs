//! What happens in a round, drawn from its seed before it begins. Decisions are drawn, times are asked for: the same seed is the same
//! script, not the same interleaving.

use crate::e2e::proxy::Flow;
use crate::sim::dice::Dice;

/// One of the two nodes, by what it is at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The node that clients use.
    Primary,
    /// The other one.
    Secondary,
}

/// Who serves after the Primary's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heir {
    /// The survivor, if it has everything as far as the person can know.
    Survivor,
    /// The survivor, even if the link was lost before.
    SurvivorAnyway,
    /// The same node, started again.
    Same,
}

/// What goes wrong on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFault {
    /// Delay of each byte.
    Slow {
        /// Milliseconds.
        ms: u64,
    },
    /// Bytes per second of each direction.
    Narrow {
        /// The limit.
        bytes_per_second: u64,
    },
    /// Nothing arrives at one node any more, and nobody is told.
    Block {
        /// Which proxies.
        proxies: Proxies,
        /// The node: 0 is alpha, 1 bravo.
        towards: usize,
    },
    /// Cut after so many bytes of a direction.
    CutAfter {
        /// Which proxies.
        proxies: Proxies,
        /// The direction.
        flow: Flow,
        /// The bytes.
        bytes: u32,
    },
    /// Cut at once.
    Cut {
        /// Which proxies.
        proxies: Proxies,
    },
}

/// Which of the two proxies; each carries the connections that one node dials, so one may carry a single socket of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxies {
    /// Of the connections to alpha or to bravo.
    One(usize),
    /// All.
    Both,
}

/// A disk that takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskFault {
    /// Whose.
    pub who: Who,
    /// Writes beyond this part of the disk, in thousandths, fail.
    pub beyond: u64,
}

/// An orderly command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `disconnect`, later `connect`.
    Disconnect(Who),
    /// `down` and `up` of the Secondary.
    DownUp,
    /// `detach`, later `attach`.
    Detach(Who),
    /// `invalidate` of the Secondary.
    Invalidate,
    /// `pause-sync`, later `resume-sync`.
    PauseSync(Who),
    /// `invalidate-remote` of the Primary.
    InvalidateRemote,
    /// `adjust`.
    Adjust(Who),
    /// Clients stop, the roles change places.
    Switchover,
    /// Clients stop, the Primary is demoted and promoted again.
    DemoteAndPromote,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Only what else the step has.
    Nothing,
    /// SIGKILL of the Primary.
    KillPrimary {
        /// Who serves then.
        heir: Heir,
        /// Also what is on its way dies.
        cut: bool,
    },
    /// SIGKILL of the Secondary; started again.
    KillSecondary,
    /// SIGKILL of both.
    KillBoth {
        /// Who serves then.
        heir: Heir,
    },
    /// SIGSTOP, later SIGCONT.
    Freeze {
        /// Whom.
        who: Who,
        /// For how long.
        ms: u64,
    },
    /// SIGSTOP, then SIGKILL of the Primary.
    FreezeAndKill {
        /// Who serves then.
        heir: Heir,
    },
    /// SIGSTOP of the Primary; the other node is promoted; SIGCONT: both believe in themselves.
    Usurp,
    /// A command.
    Order(Order),
    /// A node is killed while a command of its own runs.
    KillDuring {
        /// Whose.
        who: Who,
        /// The command.
        order: Order,
        /// SIGKILL after so many milliseconds.
        ms: u64,
    },
}

/// How far things are repaired before the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Everybody lives, somebody serves; the link and the resync are left as they are.
    Hasty,
    /// Until both are connected with good data; the load goes on.
    Whole,
    /// The same, and the load stops: both disks must become equal.
    Compared,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The load works this long first.
    pub before_ms: u64,
    /// The link is disturbed.
    pub link: Option<LinkFault>,
    /// A disk is full.
    pub disk: Option<DiskFault>,
    /// The disturbances work this long before the action.
    pub between_ms: u64,
    /// The action.
    pub action: Action,
    /// Things stay as they are for so long.
    pub hold_ms: u64,
    /// What is repaired.
    pub repair: Repair,
}

/// The script of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Size of each disk.
    pub disk_bytes: u64,
    /// Metadata in a file of their own.
    pub external_metadata: bool,
    /// Further lines of the `net` section.
    pub net: &'static str,
    /// The `resync-rate`.
    pub resync_rate: &'static str,
    /// The steps.
    pub steps: Vec<Step>,
}

impl Script {
    /// Draws one.
    #[must_use]
    pub fn draw(seed: u64, steps: u64) -> Script {
        let mut dice = Dice::new(seed, "script");
        // The large ones have more extents than the activity log holds.
        let disk_bytes = dice.pick(&[32, 32, 32, 64, 64, 320]) << 20;
        let external_metadata = dice.chance(1, 3);
        let net = dice.pick(&["", "", "data-integrity-alg crc32c;", "csums-alg crc32c;"]);
        let slow = disk_bytes < 320 << 20 && dice.chance(1, 3);
        let steps = (0..steps).map(|_| step(&mut dice)).collect();
        Script {
            disk_bytes,
            external_metadata,
            net,
            resync_rate: if slow { "12M" } else { "400M" },
            steps,
        }
    }
}

fn step(dice: &mut Dice) -> Step {
    let link = dice.chance(1, 2).then(|| link_fault(dice));
    let disk = dice.chance(1, 6).then(|| DiskFault {
        who: who(dice),
        beyond: dice.between(100, 1000),
    });
    Step {
        before_ms: dice.between(20, 500),
        link,
        disk,
        between_ms: dice.pick(&[0, 5, 30, 150, 400]),
        action: action(dice),
        hold_ms: dice.pick(&[0, 20, 200, 800, 2500]),
        repair: match dice.weighted(&[5, 3, 2]) {
            0 => Repair::Hasty,
            1 => Repair::Whole,
            _ => Repair::Compared,
        },
    }
}

fn who(dice: &mut Dice) -> Who {
    dice.pick(&[Who::Primary, Who::Secondary])
}

fn heir(dice: &mut Dice) -> Heir {
    dice.pick(&[
        Heir::Survivor,
        Heir::Survivor,
        Heir::SurvivorAnyway,
        Heir::Same,
    ])
}

fn proxies(dice: &mut Dice) -> Proxies {
    dice.pick(&[Proxies::One(0), Proxies::One(1), Proxies::Both])
}

fn link_fault(dice: &mut Dice) -> LinkFault {
    let flow = dice.pick(&[Flow::In, Flow::Out]);
    match dice.weighted(&[3, 2, 3, 4, 2]) {
        0 => LinkFault::Slow {
            ms: dice.pick(&[1, 5, 20, 80]),
        },
        1 => LinkFault::Narrow {
            bytes_per_second: dice.pick(&[400_000, 2_000_000, 8_000_000]),
        },
        2 => LinkFault::Block {
            proxies: proxies(dice),
            towards: dice.pick(&[0, 1]),
        },
        3 => {
            let most = dice.pick(&[100, 5_000, 300_000, 2_000_000]);
            LinkFault::CutAfter {
                proxies: proxies(dice),
                flow,
                bytes: u32::try_from(dice.between(1, most)).unwrap_or(u32::MAX),
            }
        }
        _ => LinkFault::Cut {
            proxies: proxies(dice),
        },
    }
}

fn order(dice: &mut Dice) -> Order {
    match dice.weighted(&[3, 3, 3, 3, 2, 1, 1, 4, 2]) {
        0 => Order::Disconnect(who(dice)),
        1 => Order::DownUp,
        2 => Order::Detach(who(dice)),
        3 => Order::Invalidate,
        4 => Order::PauseSync(who(dice)),
        5 => Order::InvalidateRemote,
        6 => Order::Adjust(who(dice)),
        7 => Order::Switchover,
        _ => Order::DemoteAndPromote,
    }
}

fn action(dice: &mut Dice) -> Action {
    match dice.weighted(&[2, 6, 4, 2, 3, 2, 2, 7, 3]) {
        0 => Action::Nothing,
        1 => Action::KillPrimary {
            heir: heir(dice),
            cut: dice.chance(1, 2),
        },
        2 => Action::KillSecondary,
        3 => Action::KillBoth { heir: heir(dice) },
        4 => Action::Freeze {
            who: who(dice),
            ms: dice.pick(&[30, 300, 1500, 6000]),
        },
        5 => Action::FreezeAndKill { heir: heir(dice) },
        6 => Action::Usurp,
        7 => Action::Order(order(dice)),
        _ => Action::KillDuring {
            who: who(dice),
            order: order(dice),
            ms: dice.between(0, 60),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_script_and_scripts_differ() {
        let first = Script::draw(1, 8);
        assert_eq!(first, Script::draw(1, 8));
        assert_ne!(first.steps, Script::draw(2, 8).steps);
    }

    #[test]
    fn every_kind_of_action_is_drawn() {
        let all: Vec<Step> = (0..200)
            .flat_map(|seed| Script::draw(seed, 8).steps)
            .collect();
        let drawn = |test: fn(&Action) -> bool| all.iter().any(|step| test(&step.action));
        assert!(drawn(|action| matches!(action, Action::Usurp)));
        assert!(drawn(|action| matches!(
            action,
            Action::Order(Order::Adjust(_))
        )));
        assert!(drawn(|action| matches!(action, Action::KillDuring { .. })));
        assert!(all.iter().any(|step| step.disk.is_some()));
        for fault in 0..5 {
            let is_kind = |link: &LinkFault| match link {
                LinkFault::Slow { .. } => fault == 0,
                LinkFault::Narrow { .. } => fault == 1,
                LinkFault::Block { .. } => fault == 2,
                LinkFault::CutAfter { .. } => fault == 3,
                LinkFault::Cut { .. } => fault == 4,
            };
            assert!(
                all.iter()
                    .filter_map(|step| step.link.as_ref())
                    .any(is_kind)
            );
        }
    }
}
