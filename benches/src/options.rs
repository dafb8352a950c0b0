//! The arguments of `compare`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::contenders::{CONTENDERS, Client, Contender, Medium};
use crate::jobs;
use crate::load::Durations;
use crate::rows::{ROWS, Row};

/// What Tandem's data path costs, beside the programs it is compared with.
#[derive(Debug, Parser)]
#[command(name = "tandem-benches")]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub words: Words,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Words {
    /// Start Tandem and its peers, run the same load on each in turn, and print a table.
    #[command(args_conflicts_with_subcommands = true)]
    Compare {
        /// Of the comparison.
        #[command(flatten)]
        options: Options,
        /// Instead of a comparison.
        #[command(subcommand)]
        check: Option<Check>,
    },
    /// Do the other jobs of a replicated device with real daemons: resync, large devices, many resources, a lost link, a dead node.
    Jobs(jobs::options::Options),
}

/// Instead of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Check {
    /// Run the load generator and fio's nbd engine on the same server: both must find the same.
    CheckLoad,
}

/// Which CPUs everything runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Where the system puts it.
    Free,
    /// All on one CPU: what everything costs together, without waking another CPU.
    One,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MediumWord {
    Tmpfs,
    Disk,
}

impl From<MediumWord> for Medium {
    fn from(word: MediumWord) -> Medium {
        match word {
            MediumWord::Tmpfs => Medium::Tmpfs,
            MediumWord::Disk => Medium::Disk,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ClientWord {
    Unix,
    Tcp,
}

/// Of the comparison.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The main rows on tmpfs, two short rounds: within a minute.
    #[arg(long)]
    quick: bool,
    /// Write every figure to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// How often each row is run (default: 5; with --quick 2).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..1000))]
    rounds: Option<u32>,
    /// Only rows with one of these in their names.
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    rows: Vec<String>,
    /// Only contenders with one of these in their names.
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    contenders: Vec<String>,
    /// Where the backing files lie (default: both, one after the other; with --quick tmpfs).
    #[arg(long, value_enum)]
    medium: Option<MediumWord>,
    /// For the medium disk: a directory on it with 7 GB of room (default: where this program was built).
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Draw the figures as SVG files in this directory: for each medium operations per second, p50 and CPU per operation.
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
    /// On which CPUs everything runs.
    #[arg(long, value_enum, default_value = "free")]
    pub placement: Placement,
    /// How the load connects.
    #[arg(long, value_enum, default_value = "unix")]
    client: ClientWord,
    /// How long a row is measured in each round (default: 2; with --quick 0.3).
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds_per_row: Option<Duration>,
    /// Another program `tandem` than the one of this build.
    #[arg(long, value_name = "FILE")]
    pub tandem: Option<PathBuf>,
    /// List rows and contenders, and end.
    #[arg(long)]
    pub list: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.01..=3600.0).contains(&number) {
        Ok(Duration::from_secs_f64(number))
    } else {
        Err(String::from("0.01 to 3600 seconds"))
    }
}

impl Options {
    /// Rounds.
    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 2 } else { 5 })
    }

    /// The time of each row.
    pub fn durations(&self) -> Durations {
        let normal = if self.quick { 300 } else { 2000 };
        let measured = self
            .seconds_per_row
            .unwrap_or(Duration::from_millis(normal));
        Durations {
            warm_up: measured / 6,
            measured,
        }
    }

    /// The chosen rows.
    pub fn chosen_rows(&self) -> Vec<Row> {
        let chosen = |row: &&Row| {
            let named = self
                .rows
                .iter()
                .any(|part| row.name.contains(part.as_str()));
            (self.rows.is_empty() || named) && (row.quick || !self.quick)
        };
        ROWS.iter().filter(chosen).copied().collect()
    }

    /// The chosen contenders.
    pub fn chosen_contenders(&self) -> Vec<Contender> {
        let chosen = |contender: &&Contender| {
            if self.contenders.is_empty() {
                return contender.is_quick() || !self.quick;
            }
            let name = contender.name();
            self.contenders.iter().any(|part| name.contains(part))
        };
        CONTENDERS.iter().filter(chosen).copied().collect()
    }

    /// The chosen media.
    pub fn media(&self) -> Vec<Medium> {
        match self.medium {
            Some(medium) => vec![medium.into()],
            None if self.quick => vec![Medium::Tmpfs],
            None => vec![Medium::Tmpfs, Medium::Disk],
        }
    }

    /// How the load connects.
    pub fn client(&self) -> Client {
        match self.client {
            ClientWord::Unix => Client::Unix,
            ClientWord::Tcp => Client::Tcp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contenders::FarSide;

    fn parsed(words: &[&str]) -> Result<Options, clap::Error> {
        let all = ["tandem-benches", "compare"].iter().chain(words);
        match Arguments::try_parse_from(all)?.words {
            Words::Compare { options, .. } => Ok(options),
            Words::Jobs(_) => panic!("compare is another word than jobs"),
        }
    }

    fn names(options: &Options) -> Vec<&'static str> {
        options.chosen_rows().iter().map(|row| row.name).collect()
    }

    #[test]
    fn quick_means_the_main_rows_on_tmpfs_in_two_short_rounds() {
        let options = parsed(&["--quick"]).unwrap();
        assert_eq!(options.rounds(), 2);
        assert_eq!(options.media(), [Medium::Tmpfs]);
        assert_eq!(options.durations().measured, Duration::from_millis(300));
        assert!(
            !options
                .chosen_contenders()
                .contains(&Contender::Quorum(FarSide::QemuNbd))
        );
        assert_eq!(
            names(&options),
            [
                "write-4k-d1",
                "write-4k-d32",
                "write-4k-d1-fua",
                "write-128k-d8",
                "read-4k-d32"
            ]
        );
    }

    #[test]
    fn without_options_everything_is_run_on_both_media() {
        let options = parsed(&[]).unwrap();
        assert_eq!((options.rounds(), options.media().len()), (5, 2));
        assert_eq!(names(&options).len(), ROWS.len());
        assert_eq!(options.chosen_contenders().len(), CONTENDERS.len());
        assert_eq!(options.client(), Client::Unix);
        assert_eq!(options.placement, Placement::Free);
    }

    #[test]
    fn rows_and_contenders_are_chosen_by_parts_of_their_names() {
        let options = parsed(&["--rows", "cold,128k", "--contenders", "tandem-C,quorum"]).unwrap();
        let expected = [
            "write-4k-d1-cold",
            "write-4k-d32-cold",
            "write-128k-d8",
            "read-128k-d8",
        ];
        assert_eq!(names(&options), expected);
        let contenders: Vec<String> = options
            .chosen_contenders()
            .iter()
            .map(|contender| contender.name())
            .collect();
        assert_eq!(contenders, ["quorum+nbdkit", "quorum+qemu-nbd", "tandem-C"]);
    }

    #[test]
    fn figures_of_the_options_override_those_of_quick() {
        let words = [
            "--quick",
            "--rounds",
            "7",
            "--seconds-per-row",
            "0.05",
            "--medium",
            "disk",
        ];
        let options = parsed(&words).unwrap();
        assert_eq!((options.rounds(), options.media()), (7, vec![Medium::Disk]));
        assert_eq!(options.durations().measured, Duration::from_millis(50));
    }

    #[test]
    fn figures_that_mean_nothing_are_refused() {
        for words in [
            &["--rounds", "0"][..],
            &["--seconds-per-row", "0"],
            &["--seconds-per-row", "soon"],
            &["--medium", "tape"],
            &["--placement", "two"],
        ] {
            assert!(parsed(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn the_check_of_the_load_is_a_word_of_its_own() {
        let all = ["tandem-benches", "compare", "check-load"];
        let words = Arguments::try_parse_from(all).unwrap().words;
        let is_check = matches!(
            words,
            Words::Compare {
                check: Some(Check::CheckLoad),
                ..
            }
        );
        assert!(is_check, "{words:?}");
    }
}
