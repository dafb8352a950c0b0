//! Every input that fuzzing kept is run again, and every target has some.
//! The inputs are in `fuzz/corpus`, a folder for each target; a failure names the input.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tandem_fuzz_targets::TARGETS;

/// Inputs of one target, and bytes of all: what is kept is a choice, not everything that was ever found.
const INPUTS_MAX: usize = 60;
const BYTES_MAX: u64 = 1 << 20;

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let folder = fuzz_dir().join("corpus").join(target);
    let mut inputs: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    inputs.sort();
    inputs
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect()
}

#[test]
fn every_kept_input_passes_its_target() {
    let mut failed = Vec::new();
    for (name, target) in TARGETS {
        for path in inputs(name) {
            let input = fs::read(&path).unwrap();
            if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
                failed.push(format!("{name}: {}", path.display()));
            }
        }
    }
    assert!(failed.is_empty(), "failed:\n{}", failed.join("\n"));
}

#[test]
fn every_target_has_a_program_and_a_small_corpus() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&fuzz_dir().join("fuzz_targets")), targets);
    assert_eq!(names(&fuzz_dir().join("corpus")), targets);
    let mut bytes = 0;
    for (name, _) in TARGETS {
        let inputs = inputs(name);
        assert!(
            (1..=INPUTS_MAX).contains(&inputs.len()),
            "{name}: {} inputs",
            inputs.len()
        );
        bytes += inputs
            .iter()
            .map(|path| fs::metadata(path).unwrap().len())
            .sum::<u64>();
    }
    assert!(bytes <= BYTES_MAX, "the corpus has {bytes} bytes");
}
