//! Programs from outside: a missing one is a failure that names its package.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process::{self, Ended};

/// How long any tool may take.
pub const TOOL_LIMIT: Duration = Duration::from_secs(60);

/// Debian packages of the tools that tests use.
const PACKAGES: &[(&str, &str)] = &[
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("qemu-io", "qemu-utils"),
    ("qemu-img", "qemu-utils"),
    ("fio", "fio"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
];

/// PATH with the administrator's directories, which an ordinary user's lacks.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// Whether a program is there.
pub fn is_installed(program: &str) -> bool {
    find(program).is_some()
}

/// Runs a tool in `dir`, whatever its exit code.
///
/// # Panics
/// When it is not installed, or does not end in time.
pub fn run(dir: &Path, program: &str, args: &[&str]) -> Ended {
    let package = PACKAGES.iter().find(|(name, _)| *name == program);
    let package = package.map_or(program, |(_, package)| package);
    let Some(path) = find(program) else {
        panic!(
            "{program} is not installed; next: apt-get install --no-install-recommends {package}"
        );
    };
    let mut command = Command::new(path);
    command
        .args(args)
        .current_dir(dir)
        .env("PATH", search_path());
    process::run(&mut command, TOOL_LIMIT)
}

/// As [`run`], and the tool must succeed; `explain` says what the nodes say.
///
/// # Panics
/// When it fails.
pub fn must(dir: &Path, program: &str, args: &[&str], explain: impl Fn() -> String) -> Ended {
    let ended = run(dir, program, args);
    assert_eq!(
        ended.code,
        Some(0),
        "{program} {args:?}: {}\n{}",
        ended.all(),
        explain()
    );
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "no-such-tool is not installed; next: apt-get install")]
    fn a_missing_tool_is_named_with_its_package() {
        run(Path::new("/"), "no-such-tool", &[]);
    }
}
