//! The phases of a campaign: two nodes get in sync, a safety phase under faults, healing, a last reading of everything.

use std::collections::BTreeSet;

use tandem_metadata::Uuids;
use tandem_replicator::{Command, Force};

use super::Campaign;
use super::plan::{ACTIONS, Setup};
use crate::sim::dice::Dice;
use crate::sim::network::MS;
use crate::sim::node::{Node, VOLUME};
use crate::sim::pair::{ONLY_PAIR, peer_of};
use crate::sim::stamp::{Content, SECTOR};
use crate::sim::trace::name;
use crate::sim::world::Rotten;

impl Campaign {
    pub(super) fn set_up(&mut self) -> Result<(), String> {
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
                world.nodes.iter().all(Node::is_connected)
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

    pub(super) fn safety(&mut self) -> Result<(), String> {
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
            self.report.looks_at_bits += u32::from(self.world.check_bits_if_apart(ONLY_PAIR));
        }
        let gap = self.plan.gap;
        self.live(gap)
    }

    /// All faults end; the two nodes must come together.
    pub(super) fn heal(&mut self) -> Result<(), String> {
        self.world.say("everything is healed");
        for (_, undo) in std::mem::take(&mut self.undo) {
            self.take_back_one(&undo);
        }
        self.world.block(ONLY_PAIR, [false; 2]);
        self.world.crash_at.fill(None);
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
        let mut left = u64::MAX;
        let mut nudges = 0;
        loop {
            if self.together(200)? {
                return self.all_answered();
            }
            let now = self.left_to_sync();
            let moves = now < left - left / 8;
            left = now;
            if moves {
                continue; // A slow link takes its time.
            }
            if nudges == 3 {
                break;
            }
            self.nudge()?;
            nudges += 1;
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
            let served = self.world.nodes.iter().any(Node::is_primary);
            if self.world.is_in_sync() && calm && served && !self.person.sees_split() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// KiB out of sync, as the node says that has more of them.
    fn left_to_sync(&self) -> u64 {
        let reports = self.world.nodes.iter().filter_map(|at| at.status.as_ref());
        let kib = reports.map(|status| status.counters.out_of_sync_kib);
        kib.max().unwrap_or(0)
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
            self.world.net.is_quiet(ONLY_PAIR),
            self.states()
        ))
    }

    /// Every sector that was ever written is read through the Primary, then once more after a switchover.
    pub(super) fn final_reading(&mut self) -> Result<(), String> {
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
                if self.world.nodes[peer_of(node)].is_primary() && self.world.compare_if_idle() {
                    break;
                }
            }
            if !self.world.nodes[peer_of(node)].is_primary() {
                return Err(format!(
                    "a switchover of healed nodes fails: {}",
                    self.states()
                ));
            }
        }
        Ok(())
    }

    /// In later histories: blocks go bad on the Secondary behind the engines' backs. A verify finds each of them, also while clients
    /// write, and the next resync copies them.
    pub(super) fn rot(&mut self) -> Result<(), String> {
        if self.world.settings.net_options.verify_alg.is_empty() {
            return Ok(());
        }
        let mut dice = Dice::new(self.world.settings.seed, "rot");
        let primary = self.primary();
        self.plant_garbage(peer_of(primary), &mut dice);
        self.world.clients.quiet = dice.chance(1, 3);
        self.world.wake_clients();
        let starter = dice.below(2) as usize;
        let verify = Command::Verify {
            volume: VOLUME,
            start: Some(0),
            stop: None,
        };
        self.world.command(starter, verify);
        for second in 0..1800 {
            if self.world.verified == [true; 2] {
                break;
            }
            if second == 300 {
                // A large device beside busy clients, at the least rate: they have been seen together for long enough.
                self.world.clients.quiet = true;
            }
            self.live(1000 * MS)?;
        }
        if self.world.verified != [true; 2] {
            return Err(format!("a verify does not end: {}", self.states()));
        }
        let force = Force::No;
        let disconnect = Command::Disconnect { force };
        self.world.command(peer_of(primary), disconnect);
        self.live(3000 * MS)?;
        let mut synced = self.together(200)?;
        if !synced {
            // What clients wrote meanwhile has to be copied, too: beside their load a slow link takes too long for that.
            self.world.clients.quiet = true;
            synced = self.together(400)?;
        }
        if !synced {
            return Err("what a verify found is not synced".to_owned());
        }
        self.report.kinds.push("blocks go bad");
        self.all_answered()
    }

    fn plant_garbage(&mut self, node: usize, dice: &mut Dice) {
        let sectors = self.world.nodes[peer_of(node)].serves.unwrap_or(0) / SECTOR;
        let garbage = Content::Raw(std::sync::Arc::new([0x6e; 512]));
        let places: BTreeSet<u64> = (0..dice.between(1, 6))
            .map(|_| dice.below(sectors.max(1)))
            .collect();
        let words = format!("sectors {places:?} of {} go bad", name(node));
        self.world.say(words);
        for sector in &places {
            self.world.nodes[node]
                .data
                .set(*sector, garbage.clone(), true);
        }
        self.world.verified.fill(false);
        let mut reports = self.world.nodes.iter().filter_map(|at| at.status.as_ref());
        let alone = reports.all(|status| status.counters.out_of_sync_kib == 0);
        self.world.pair_mut(node).rotten = Some(Rotten {
            node,
            garbage,
            places,
            alone,
        });
    }
}
