//! The arguments of `jobs`.

use std::path::PathBuf;

use clap::Args;

use super::{JOBS, Job};
use crate::contenders::Medium;
use crate::options::MediumWord;

/// Of the other jobs.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Only jobs with one of these in their names.
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<String>,
    /// Write every figure to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Where the backing files lie.
    #[arg(long, value_enum, default_value = "tmpfs")]
    medium: MediumWord,
    /// For the medium disk: a directory on it with 6 GB of room (default: where this program was built).
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// How often each job is done.
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..100))]
    pub rounds: u32,
    /// Another program `tandem` than the one of this build.
    #[arg(long, value_name = "FILE")]
    pub tandem: Option<PathBuf>,
    /// List the jobs, and end.
    #[arg(long)]
    pub list: bool,
}

impl Options {
    /// The chosen jobs.
    pub fn chosen(&self) -> Vec<&'static Job> {
        let named = |job: &&Job| {
            self.only
                .iter()
                .any(|part| job.name.contains(part.as_str()))
        };
        let chosen = |job: &&Job| self.only.is_empty() || named(job);
        JOBS.iter().filter(chosen).collect()
    }

    /// The chosen medium.
    pub fn medium(&self) -> Medium {
        self.medium.into()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::options::{Arguments, Words};

    fn parsed(words: &[&str]) -> Result<Options, clap::Error> {
        let all = ["tandem-benches", "jobs"].iter().chain(words);
        match Arguments::try_parse_from(all)?.words {
            Words::Jobs(options) => Ok(options),
            Words::Compare { .. } => panic!("jobs is another word than compare"),
        }
    }

    fn names(options: &Options) -> Vec<&'static str> {
        options.chosen().iter().map(|job| job.name).collect()
    }

    #[test]
    fn without_options_every_job_is_done_in_memory() {
        let options = parsed(&[]).unwrap();
        assert_eq!(names(&options).len(), JOBS.len());
        assert_eq!((options.rounds, options.medium()), (3, Medium::Tmpfs));
    }

    #[test]
    fn jobs_are_chosen_by_parts_of_their_names() {
        let options = parsed(&["--only", "resync-,idle", "--medium", "disk"]).unwrap();
        assert_eq!(names(&options), ["resync-full", "resync-scattered", "idle"]);
        assert_eq!(options.medium(), Medium::Disk);
        assert!(names(&parsed(&["--only", "nothing"]).unwrap()).is_empty());
    }

    #[test]
    fn figures_that_mean_nothing_are_refused() {
        assert!(parsed(&["--rounds", "0"]).is_err());
        assert!(parsed(&["--medium", "tape"]).is_err());
    }
}
