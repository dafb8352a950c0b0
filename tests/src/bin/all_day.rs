//! A day of two daemons with forty resources: `all_day --minutes 60`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tandem_tests::e2e::day::{Look, Matter, Plan, connects, run};

#[derive(Debug, Parser)]
#[command(about = "Two daemons with many resources live a day, and what they hold is watched")]
struct Arguments {
    /// How long the day is.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Resources in each daemon.
    #[arg(long, default_value_t = 40)]
    resources: usize,
    /// Looks at what the daemons hold, besides the one before the first deed.
    #[arg(long, default_value_t = 12)]
    looks: u32,
    /// Losses of a link and returns of it that a day of an hour takes at least; a shorter one takes fewer.
    #[arg(long, default_value_t = 1000)]
    connects: u64,
    /// Milliseconds between two deeds of each of the four persons.
    #[arg(long, default_value_t = 100)]
    pause: u64,
    /// Chooses the deeds.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the files lie, 1.2 GB at most; otherwise where temporary files do.
    #[arg(long)]
    dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let plan = Plan {
        resources: arguments.resources,
        length: Duration::from_secs(60 * arguments.minutes),
        looks: arguments.looks,
        connects: arguments.connects * arguments.minutes.min(60) / 60,
        pause: Duration::from_millis(arguments.pause),
        seed: arguments.seed,
        base: arguments.dir.unwrap_or_else(std::env::temp_dir),
    };
    println!("{}", Look::HEADING);
    let day = run(&plan, |look| println!("{}", look.line()));
    for (deed, count) in &day.tally {
        println!("{count:6} {deed}");
    }
    println!("{:6} writes answered", day.writes);
    println!("{:6} links lost and back", connects(&day.tally));
    let [before, after] = day.handlers;
    println!("{before:6} calls of before-resync-target, {after} of after-resync-target");
    println!(
        "SIGTERM: {:.2} s with clients writing, {:.2} s both at rest",
        day.ending.busy.as_secs_f64(),
        day.ending.both.as_secs_f64()
    );
    for matter in Matter::ALL {
        let faults: Vec<_> = day
            .faults
            .iter()
            .filter(|fault| fault.matter == matter)
            .collect();
        let verdict = if faults.is_empty() { "ok   " } else { "FAULT" };
        println!("{verdict} {}", matter.rule(&plan));
        for fault in faults {
            println!("      {}", fault.words);
        }
    }
    if day.faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
