//! A failover that a user would believe: mixed writes on several connections, the Primary is killed at a random moment, the
//! other node is promoted and every acknowledged write is looked for; then the dead node comes back and both disks are
//! compared.

use std::path::Path;
use std::time::{Duration, Instant};

use super::history::History;
use super::load::{Load, Plan, read_back};
use super::node::{Settings, net};
use super::pair::{LinkKind, Pair};
use super::verdict::{Rule, Verdict, judge};
use super::wait;

/// What one round does.
#[derive(Clone, Debug)]
pub struct Round {
    /// `A`, `B` or `C`.
    pub protocol: char,
    /// Writes before the kill, at most; the moment is random in the last half.
    pub length: Duration,
    /// Chooses everything.
    pub seed: u64,
}

/// Connections that write.
const WRITERS: u64 = 4;
/// Blocks of each.
const BLOCKS: u64 = 1024;
/// Delay of each direction of the link, protocols A and B: what is on its way when the Primary dies must count.
const DELAY: Duration = Duration::from_millis(5);

/// Runs a round below `base`.
///
/// # Panics
/// When a step fails; faults of the data are in the verdict.
pub fn run(round: &Round, base: &Path) -> Verdict {
    let settings = Settings {
        disk_bytes: 32 << 20,
        net: net(round.protocol),
        ..Settings::default()
    };
    let link = if round.protocol == 'C' {
        LinkKind::Direct
    } else {
        LinkKind::Proxied
    };
    let mut pair = Pair::in_directory(&settings, link, base);
    pair.bring_up();
    if let Some(proxies) = &pair.proxies {
        proxies.iter().for_each(|proxy| proxy.delay(DELAY));
    }
    let plan = Plan {
        run: round.seed,
        socket: pair.alpha.socket(),
        export: String::from("r0"),
        writers: WRITERS,
        blocks: BLOCKS,
        first: 0,
        seed: round.seed,
    };
    let histories = write_and_kill(&mut pair, &plan, round);
    let verdict = promote_and_judge(&pair, &plan, &histories, round);
    come_back(&mut pair);
    verdict
}

fn write_and_kill(pair: &mut Pair, plan: &Plan, round: &Round) -> Vec<History> {
    let load = Load::start(plan);
    let half = round.length / 2;
    let part = u32::try_from(round.seed % 1000).unwrap_or(0);
    let moment = half + half * part / 1000;
    let start = Instant::now();
    let passed = || (start.elapsed() >= moment).then_some(());
    wait::until(
        "the moment of the kill",
        round.length + Duration::from_secs(5),
        passed,
        String::new,
    );
    let bytes_on_their_way_die = round.protocol == 'A';
    if bytes_on_their_way_die {
        pair.cut();
    }
    pair.alpha.kill();
    if bytes_on_their_way_die {
        pair.heal();
    }
    load.stop()
}

fn promote_and_judge(pair: &Pair, plan: &Plan, histories: &[History], round: &Round) -> Verdict {
    pair.bravo.wait_state("WFConnection", "UpToDate/DUnknown");
    pair.bravo.must(&["primary", "r0"]);
    let found = read_back(plan, &pair.bravo.socket(), "r0").expect("the promoted node serves");
    let rule = if round.protocol == 'A' {
        Rule::OnlyTheEnd
    } else {
        Rule::NothingLost
    };
    let mut verdict = judge(histories, &found, rule);
    if !verdict.faults.is_empty() {
        verdict.faults.push(pair.logs());
    }
    verdict
}

fn come_back(pair: &mut Pair) {
    if let Some(proxies) = &pair.proxies {
        proxies.iter().for_each(|proxy| proxy.delay(Duration::ZERO));
    }
    pair.alpha.start();
    pair.alpha.must(&["up", "r0"]);
    pair.bravo.wait_state("Connected", "UpToDate/UpToDate");
    pair.alpha.wait_state("Connected", "UpToDate/UpToDate");
    pair.bravo.must(&["secondary", "r0"]);
    pair.down();
    pair.compare_disks(0, WRITERS * BLOCKS * 4096);
}
