//! Real daemons die, hang, lose their link and their disks at random: `chaos --minutes 30`, `chaos --seed 7 --rounds 1 --protocol C`.

use std::time::{Duration, Instant};

use clap::Parser;
use tandem_tests::e2e::chaos::{Round, Tally, run};

#[derive(Debug, Parser)]
#[command(
    about = "Disturbs pairs of daemons at random under load and judges every write, round after round"
)]
struct Arguments {
    /// Seed of the first round; each next one has the next seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds at most.
    #[arg(long)]
    rounds: Option<u64>,
    /// Begin no round after so many minutes.
    #[arg(long)]
    minutes: Option<u64>,
    /// A, B or C; otherwise they take turns by the seed.
    #[arg(long)]
    protocol: Option<char>,
    /// Steps of a round.
    #[arg(long, default_value_t = 8)]
    steps: u64,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let rounds = arguments.rounds.unwrap_or(if arguments.minutes.is_some() {
        u64::MAX
    } else {
        10
    });
    let limit = arguments
        .minutes
        .map(|minutes| Duration::from_secs(60 * minutes));
    // A failure is told once, by its report.
    std::panic::set_hook(Box::new(|_| {}));
    let start = Instant::now();
    let (mut sum, mut done, mut failed) = (Tally::default(), 0, 0);
    while done < rounds && limit.is_none_or(|limit| start.elapsed() < limit) {
        let seed = arguments.seed + done;
        let turn = if seed.is_multiple_of(2) {
            'C'
        } else if seed % 4 == 1 {
            'A'
        } else {
            'B'
        };
        let round = Round {
            seed,
            protocol: arguments.protocol.unwrap_or(turn).to_ascii_uppercase(),
            steps: arguments.steps,
        };
        let began = Instant::now();
        done += 1;
        match run(&round, &std::env::temp_dir()) {
            Ok(tally) => {
                println!(
                    "seed {seed} protocol {}: ok, {:.0} s, {} writes told",
                    round.protocol,
                    began.elapsed().as_secs_f64(),
                    tally.told
                );
                sum.add(&tally);
            }
            Err(report) => {
                failed += 1;
                println!("seed {seed}: FAILED\n{report}");
                if !arguments.keep_going {
                    break;
                }
            }
        }
    }
    println!(
        "{done} rounds, {failed} failed, {:.1} min; in those that passed: {sum:#?}",
        start.elapsed().as_secs_f64() / 60.0
    );
    if failed == 0 {
        std::process::ExitCode::SUCCESS
    } else {
        std::process::ExitCode::FAILURE
    }
}
