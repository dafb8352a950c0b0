//! Kills Primaries under load, round after round, and reports what was lost: `failover --runs 20 --seconds 60 --protocol C`.

use std::time::Duration;

use clap::Parser;
use tandem_tests::e2e::failover::{Round, run};

#[derive(Debug, Parser)]
#[command(
    about = "Kills the Primary under load and looks for every acknowledged write on the other node"
)]
struct Arguments {
    /// Rounds.
    #[arg(long, default_value_t = 20)]
    runs: u64,
    /// Length of the load of each round.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// A, B or C.
    #[arg(long, default_value_t = 'C')]
    protocol: char,
    /// Seed of the first round.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let (mut acknowledged, mut lost, mut bad) = (0, 0, 0);
    for number in 0..arguments.runs {
        let round = Round {
            protocol: arguments.protocol.to_ascii_uppercase(),
            length: Duration::from_secs(arguments.seconds),
            seed: (arguments.seed + number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        };
        let verdict = run(&round, &std::env::temp_dir());
        acknowledged += verdict.acknowledged;
        lost += verdict.lost;
        bad += u64::from(!verdict.faults.is_empty());
        println!(
            "round {}: {} acknowledged, {} lost, {}",
            number + 1,
            verdict.acknowledged,
            verdict.lost,
            if verdict.faults.is_empty() {
                "ok"
            } else {
                "NOT ok"
            }
        );
        for fault in verdict.faults.iter().take(10) {
            println!("  {fault}");
        }
    }
    println!(
        "protocol {}: {} rounds of {} s, {acknowledged} writes acknowledged, {lost} lost, {bad} rounds not ok",
        arguments.protocol, arguments.runs, arguments.seconds
    );
    if bad == 0 {
        std::process::ExitCode::SUCCESS
    } else {
        std::process::ExitCode::FAILURE
    }
}
