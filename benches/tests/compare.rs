//! The program `tandem-benches` as a whole: a very short comparison, and runs that are given up.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(90);

/// `compare` on tmpfs, or below `dir` where tmpfs has no room for four files of 320 MiB; and where its directories are.
fn compare(dir: &Path) -> (Command, PathBuf) {
    let shm = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(shm).map_or(0, |fs| fs.f_bavail * fs.f_frsize);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-benches"));
    command.args(["compare", "--contenders", "nbdkit,tandem-C"]);
    command.stdin(Stdio::null());
    if room > 3 << 30 {
        command.args(["--medium", "tmpfs"]);
        (command, shm.to_owned())
    } else {
        command.args(["--medium", "disk", "--directory"]).arg(dir);
        (command, dir.to_owned())
    }
}

fn leftovers(place: &Path, pid: u32) -> Vec<PathBuf> {
    let prefix = format!("tandem-compare-{pid}-");
    let entries = std::fs::read_dir(place).unwrap().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    ours.map(|entry| entry.path()).collect()
}

/// Processes with a directory of this run in their command line.
fn servers(pid: u32) -> Vec<String> {
    let mark = format!("tandem-compare-{pid}-");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let words = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let words = words.map(|words| String::from_utf8_lossy(&words).replace('\0', " "));
    words.filter(|words| words.contains(&mark)).collect()
}

fn end(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if start.elapsed() > LIMIT {
            child.kill().ok();
            child.wait().ok();
            panic!("compare did not end within {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_very_short_comparison_has_figures_of_tandem_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut command, place) = compare(dir.path());
    let json = dir.path().join("figures.json");
    command.args([
        "--rows",
        "write-4k-d1",
        "--rounds",
        "1",
        "--seconds-per-row",
        "0.1",
        "--json",
    ]);
    let table = std::fs::File::create(dir.path().join("table")).unwrap();
    let mut child = command.arg(&json).stdout(table).spawn().unwrap();
    let code = end(&mut child);
    let words = std::fs::read_to_string(dir.path().join("table")).unwrap();
    assert_eq!(code, Some(0), "{words}");
    assert_eq!(leftovers(&place, child.id()), Vec::<PathBuf>::new());
    assert_eq!(servers(child.id()), Vec::<String>::new());
    let text = std::fs::read_to_string(&json).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let lines = report["stages"][0]["lines"].as_array().unwrap();
    for row in [
        "write-4k-d1",
        "write-4k-d1-fua",
        "write-4k-d1-flush8",
        "write-4k-d1-cold",
    ] {
        let of_tandem = |line: &&serde_json::Value| {
            line["row"]["name"] == row && line["contender"] == "tandem-C"
        };
        let line = lines
            .iter()
            .find(of_tandem)
            .unwrap_or_else(|| panic!("{row}\n{text}"));
        let round = &line["rounds"][0];
        let figure = |name: &str| {
            round[name]
                .as_f64()
                .unwrap_or_else(|| panic!("{row}\n{words}"))
        };
        assert!(
            figure("per_second") > 0.0 && figure("cpu_us") > 0.0,
            "{row}\n{words}"
        );
        // Each write crosses the link once.
        assert!(figure("loopback_bytes") > 4096.0, "{row}\n{words}");
        // A row that misses the activity log writes it about each time, on one node; one that hits it hardly ever does.
        assert_eq!(
            figure("metadata_writes") > 0.5,
            row.ends_with("cold"),
            "{row}\n{words}"
        );
    }
    assert!(words.contains("write-4k-d1-cold"), "{words}");
}

#[test]
fn a_comparison_that_is_given_up_ends_its_servers_and_removes_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let (mut command, place) = compare(dir.path());
    command.args([
        "--rows",
        "write-128k",
        "--rounds",
        "999",
        "--seconds-per-row",
        "60",
    ]);
    is_given_up(&mut command, &place);
}

#[test]
fn jobs_that_are_given_up_end_their_daemons_and_remove_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-benches"));
    command.args(["jobs", "--only", "reconnect", "--rounds", "99"]);
    command.args(["--medium", "disk", "--directory"]);
    command.arg(dir.path()).stdin(Stdio::null());
    is_given_up(&mut command, dir.path());
}

#[test]
fn a_job_that_nobody_knows_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-benches"));
    let output = command.args(["jobs", "--only", "tape"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("next: jobs --list"), "{said}");
}

/// Starts a run, ends it like Ctrl-C once two servers are there, and sees that nothing of it is left in `place`.
fn is_given_up(command: &mut Command, place: &Path) {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while servers(child.id()).len() < 2 {
        assert!(start.elapsed() < LIMIT, "no servers within {LIMIT:?}");
        assert!(child.try_wait().unwrap().is_none(), "the run ended at once");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(end(&mut child), Some(130));
    assert_eq!(leftovers(place, child.id()), Vec::<PathBuf>::new());
    assert_eq!(servers(child.id()), Vec::<String>::new());
}
