//! Where a run was made: without this its figures mean nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// The machine and the source at the start of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Seconds since 1970.
    pub started: u64,
    /// Model of the first CPU.
    pub cpu: String,
    /// CPUs.
    pub cpus: usize,
    /// MiB of memory.
    pub memory_mib: u64,
    /// `Linux 6.1.0 x86_64`.
    pub kernel: String,
    /// Whether a hypervisor is announced by the CPU.
    pub virtual_machine: bool,
    /// Commit of the source, `-dirty` when files were changed; unknown outside a repository.
    pub commit: String,
    /// Optimised or not.
    pub profile: &'static str,
    /// Load of the last minute, five and fifteen minutes, when the run began.
    pub load_average: String,
    /// Versions of the programs it is compared with.
    pub programs: Vec<String>,
}

impl Machine {
    /// Looks around.
    pub fn here() -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let uname = rustix::system::uname();
        let words = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        Machine {
            started: std::time::UNIX_EPOCH
                .elapsed()
                .map_or(0, |since| since.as_secs()),
            cpu: field(&cpuinfo, "model name").unwrap_or_else(|| String::from("unknown CPU")),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_mib("MemTotal"),
            kernel: format!(
                "{} {} {}",
                words(uname.sysname()),
                words(uname.release()),
                words(uname.machine())
            ),
            virtual_machine: field(&cpuinfo, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            commit: commit(),
            profile: if cfg!(debug_assertions) {
                "debug: figures mean nothing"
            } else {
                "release"
            },
            load_average: load_average(),
            programs: [
                "qemu-nbd",
                "qemu-storage-daemon",
                "nbdkit",
                "fio",
                "nbdcopy",
            ]
            .iter()
            .map(|program| version(program))
            .collect(),
        }
    }

    /// In lines for a person.
    pub fn words(&self) -> String {
        let virtual_words = if self.virtual_machine {
            ", a virtual machine"
        } else {
            ""
        };
        format!(
            "machine: {} x {}, {} MiB, {}{virtual_words}\nsource:  {}, {}\nload at the start: {}\nagainst: {}",
            self.cpus,
            self.cpu,
            self.memory_mib,
            self.kernel,
            self.commit,
            self.profile,
            self.load_average,
            self.programs.join("; ")
        )
    }
}

/// The load of the last minutes.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let words: Vec<&str> = text.split(' ').take(3).collect();
    words.join(" ")
}

/// Name of the filesystem that a directory lies on, as the kernel lists it.
pub fn filesystem(dir: &Path) -> String {
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let best = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (device, point, kind) = (words.next()?, words.next()?, words.next()?);
            dir.starts_with(point)
                .then(|| (point.len(), format!("{kind} on {device}")))
        })
        .max_by_key(|(length, _)| *length);
    best.map_or_else(|| String::from("unknown filesystem"), |(_, words)| words)
}

/// Bytes that the loopback interface has sent since the start of the system.
pub fn loopback_bytes() -> u64 {
    fs::read_to_string("/sys/class/net/lo/statistics/tx_bytes")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or_default()
}

/// Whether a program is in PATH or where an administrator's programs are.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|dir| Path::new(dir).join(program).is_file())
}

fn version(program: &str) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    match text.ok().as_deref().and_then(|text| text.lines().next()) {
        Some(line) => line.to_owned(),
        None => format!("{program} is not installed"),
    }
}

fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// MiB of memory that could be had now.
pub(crate) fn memory_available_mib() -> u64 {
    memory_mib("MemAvailable")
}

fn memory_mib(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = field(&text, name).unwrap_or_default();
    let kib: Option<u64> = total.split(' ').next().and_then(|word| word.parse().ok());
    kib.unwrap_or_default() >> 10
}

fn commit() -> String {
    let source = env!("CARGO_MANIFEST_DIR");
    let git = |words: &[&str]| {
        let output = Command::new("git")
            .args(["-C", source])
            .args(words)
            .output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(head) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return String::from("unknown commit");
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    if changed.is_some_and(|lines| !lines.is_empty()) {
        format!("commit {head}-dirty")
    } else {
        format!("commit {head}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let machine = Machine::here();
        assert!(machine.cpus > 0 && machine.memory_mib > 0);
        assert!(machine.kernel.starts_with("Linux "), "{}", machine.kernel);
        assert_eq!(machine.load_average.split(' ').count(), 3);
        assert!(filesystem(Path::new("/proc")).starts_with("proc on "));
    }

    #[test]
    fn a_program_that_nobody_has_is_not_installed() {
        assert!(is_installed("sh"));
        assert!(!is_installed("no-such-program-of-anybody"));
    }
}
