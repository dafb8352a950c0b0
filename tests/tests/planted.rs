//! The simulator finds every planted mistake (sim::planted), and no program that serves data can have one.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::process::Command;

use tandem_tests::sim::planted::{By, SEEDS_MAX, hint, search_all};

#[test]
fn every_planted_mistake_is_found() {
    // A mistake that makes an engine panic is found as well: its words would only fill the log.
    std::panic::set_hook(Box::new(|_| {}));
    let all = search_all(2, SEEDS_MAX, |_| true, hint);
    drop(std::panic::take_hook());
    assert!(all.len() >= 25);
    let mut missed = Vec::new();
    for found in &all {
        match &found.by {
            Some(By::Seed(seed, failure)) => {
                println!("{}: seed {seed}: {}", found.name, failure.why);
            }
            Some(By::Crash(story, point, why)) => {
                println!("{}: {story}, {point:?}: {why}", found.name);
            }
            None => missed.push(found.name),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn the_program_that_is_installed_has_no_planted_mistakes() {
    let tree = |package: &str| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["tree", "--offline", "--edges", "normal,build"]);
        cargo.args(["--package", package, "--format", "{p} [{f}]"]);
        let output = cargo
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find(|line| line.contains("tandem-replicator"));
        line.unwrap().to_owned()
    };
    assert!(!tree("tandem-cli").contains("planted"));
    assert!(!tree("tandem-daemon").contains("planted"));
    assert!(tree("tandem-tests").contains("planted"));
}
