//! A virtual machine of the lab: boots the kernel, runs commands in it, ends with this process.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::e2e::process::{self, Ended};
use crate::e2e::wait;

/// How long a machine may take to boot, the building of its image included.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// How long a command in a machine may take.
pub const EXEC_LIMIT: Duration = Duration::from_secs(120);
/// A machine that everybody forgot ends after this many seconds.
const LIFE_SECONDS: &str = "7200";
/// Bytes of the machine's disk that one resource gets.
pub const SLOT_BYTES: u64 = 256 << 20;
/// Resources of one machine, at most.
const SLOTS: u64 = 96;
/// First port of DRBD in a machine.
const GUEST_PORTS: u16 = 7800;

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    dir: PathBuf,
    resources: AtomicU32,
    commands: AtomicU32,
    /// Ports that lead into the machine: of this host, of the machine.
    forwards: Mutex<BTreeSet<(u16, u16)>>,
    version: OnceLock<String>,
}

/// What a machine is made of.
#[derive(Clone, Copy, Debug)]
pub struct Hardware<'a> {
    /// Bytes of each disk: /dev/vda, /dev/vdb, ..
    pub disks: &'a [u64],
    /// Modules that its kernel loads.
    pub modules: &'a str,
}

/// The machine that is a DRBD peer.
const DRBD_PEER: Hardware<'static> = Hardware {
    disks: &[SLOT_BYTES * SLOTS],
    modules: "drbd dm-mod",
};

fn lab(script: &str) -> Command {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab");
    let mut command = Command::new(scripts.join(script));
    command.env("LAB_NO_INSTALL", "1");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

impl Machine {
    /// The machine that all tests of this process share.
    ///
    /// # Panics
    /// When it does not boot, saying what is missing and what to type.
    pub fn shared() -> &'static Machine {
        static SHARED: OnceLock<Result<Machine, String>> = OnceLock::new();
        match SHARED.get_or_init(|| Machine::boot(DRBD_PEER)) {
            Ok(machine) => machine,
            Err(why) => panic!("{why}"),
        }
    }

    /// The machine of the tests that crash it or pull its cable: one of them at a time. It runs and has its cable.
    ///
    /// # Panics
    /// As [`Machine::shared`].
    pub fn breakable() -> MutexGuard<'static, Machine> {
        static BREAKABLE: OnceLock<Result<Mutex<Machine>, String>> = OnceLock::new();
        let machine = match BREAKABLE.get_or_init(|| Machine::boot(DRBD_PEER).map(Mutex::new)) {
            Ok(machine) => machine.lock().unwrap_or_else(PoisonError::into_inner),
            Err(why) => panic!("{why}"),
        };
        // The test before may have failed in the middle.
        if !machine.runs() {
            machine.boot_again();
        }
        machine.cable(Cable::Plugged);
        machine
    }

    /// A machine of its own with other disks and modules.
    ///
    /// # Panics
    /// As [`Machine::shared`].
    pub fn with(hardware: Hardware<'_>) -> Machine {
        Machine::boot(hardware).unwrap_or_else(|why| panic!("{why}"))
    }

    /// An emulated machine on a starved host now and then fails its own start-up checks: that says nothing about what is
    /// tested, so it is started up to three times.
    fn boot(hardware: Hardware<'_>) -> Result<Machine, String> {
        let mut tries = (0..3).map(|_| Machine::boot_once(hardware));
        let mut last = tries.next().unwrap_or_else(|| Err(String::new()));
        while let Err(why) = &last {
            eprintln!("{why}");
            match tries.next() {
                Some(next) => last = next,
                None => break,
            }
        }
        last
    }

    fn boot_once(hardware: Hardware<'_>) -> Result<Machine, String> {
        let dir = tempfile::Builder::new()
            .prefix("tandem-lab-")
            .tempdir()
            .map_err(|error| format!("a directory for a machine: {error}"))?
            .keep(); // Removed by the machine's keeper when this process has ended.
        let machine = Machine {
            dir,
            resources: AtomicU32::new(0),
            commands: AtomicU32::new(0),
            forwards: Mutex::new(BTreeSet::new()),
            version: OnceLock::new(),
        };
        let owner = std::process::id().to_string();
        let mut start = lab("vm");
        start.env("LAB_DIR", &machine.dir).args(["start", "k"]);
        for (number, bytes) in hardware.disks.iter().enumerate() {
            let file = machine.disk_file(number);
            start.args(["--disk", &format!("{}:{bytes}", file.display())]);
        }
        start.args(["--modules", hardware.modules]);
        start.args(["--life", LIFE_SECONDS, "--owner", &owner]);
        let ended = process::run(&mut start, BOOT_LIMIT);
        if ended.code != Some(0) {
            fs::remove_dir_all(&machine.dir).ok();
            return Err(format!(
                "the machine with the kernel's DRBD cannot be started: {}\n\
                 next: scripts/interop installs what is missing and runs these tests",
                ended.all()
            ));
        }
        machine.follow_messages();
        Ok(machine)
    }

    fn follow_messages(&self) {
        let line = "dmesg -n 1; cat /dev/kmsg >>/share/messages 2>/dev/null &";
        let ended = self.exec(line, EXEC_LIMIT);
        assert_eq!(ended.code, Some(0), "{}", ended.all());
    }

    /// What the kernel has said since it booted first, one message a line, with its own prefix.
    pub fn messages(&self) -> String {
        let bytes = fs::read(self.share().join("messages")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Version of the machine's kernel and of its DRBD: `6.1.0-56-amd64, drbd 8.4.11`.
    ///
    /// # Panics
    /// When the machine does not answer.
    pub fn version(&self) -> &str {
        self.version.get_or_init(|| {
            let line = "echo \"$(uname -r), drbd $(cat /sys/module/drbd/version)\"";
            self.exec(line, EXEC_LIMIT).stdout.trim().to_owned()
        })
    }

    /// The file that is the machine's first disk.
    pub fn disk(&self) -> PathBuf {
        self.disk_file(0)
    }

    /// The file that is one of the machine's disks, counted from 0.
    pub fn disk_file(&self, number: usize) -> PathBuf {
        self.dir.join(format!("disk{number}.img"))
    }

    /// The directory that the machine sees at `/share`.
    pub fn share(&self) -> PathBuf {
        self.dir.join("vm/k/share")
    }

    /// The first of `volumes` numbers for a new resource: its minors, slices of the disk, and its port.
    ///
    /// # Panics
    /// When the machine is full.
    pub fn next_resource(&self, volumes: u32) -> u32 {
        let first = self.resources.fetch_add(volumes, Ordering::Relaxed);
        assert!(
            u64::from(first + volumes) <= SLOTS,
            "the machine's disk is full"
        );
        first
    }

    /// The port of a resource in the machine.
    pub fn guest_port(number: u32) -> u16 {
        GUEST_PORTS + number as u16
    }

    /// Runs a line of shell in the machine.
    ///
    /// # Panics
    /// When it does not end in time, or the machine has ended.
    pub fn exec(&self, line: &str, limit: Duration) -> Ended {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let id = format!("t{number}");
        let exchange = self.share().join(".x");
        let file = |end: &str| exchange.join(format!("{id}.{end}"));
        fs::write(file("cmd"), format!("{line}\n")).expect("write a command");
        let seconds = limit.as_secs();
        let run = format!("exec timeout -s KILL {seconds} dash /share/.x/{id}.cmd\n");
        fs::write(file("sh"), run).expect("write a command");
        self.ring(&format!("{id}\n"));
        let ended = || {
            assert!(self.runs(), "the machine has ended during: {line}");
            fs::read_to_string(file("rc"))
                .ok()
                .filter(|text| text.ends_with('\n'))
        };
        let code = wait::until(line, limit + Duration::from_secs(20), ended, String::new);
        let text =
            |end| String::from_utf8_lossy(&fs::read(file(end)).unwrap_or_default()).into_owned();
        let result = Ended {
            code: code.trim().parse().ok(),
            stdout: text("out"),
            stderr: text("err"),
        };
        for end in ["cmd", "sh", "rc", "out", "err"] {
            fs::remove_file(file(end)).ok();
        }
        result
    }

    /// Wakes the agent. Opened for reading too: that does not wait for QEMU.
    fn ring(&self, id: &str) {
        let bell = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.dir.join("vm/k/agent.in"));
        bell.and_then(|mut bell| bell.write_all(id.as_bytes()))
            .expect("ring the agent");
    }

    fn pid(&self) -> Option<u32> {
        let text = fs::read_to_string(self.dir.join("vm/k/pid")).ok()?;
        text.trim().parse().ok()
    }

    fn runs(&self) -> bool {
        self.pid()
            .is_some_and(|pid| Path::new(&format!("/proc/{pid}")).is_dir())
    }

    /// A port of this host's 127.0.0.1 that leads to `guest` in the machine.
    ///
    /// # Panics
    /// When QEMU refuses.
    pub fn forward(&self, guest: u16) -> u16 {
        for _ in 0..20 {
            let host = free_port();
            if self.try_forward(host, guest).is_ok() {
                self.forwards
                    .lock()
                    .expect("forwards")
                    .insert((host, guest));
                return host;
            }
        }
        panic!("QEMU forwards no port");
    }

    /// This port of this host's 127.0.0.1 leads to `guest` in the machine.
    ///
    /// # Panics
    /// When QEMU refuses.
    pub fn forward_from(&self, host: u16, guest: u16) {
        self.try_forward(host, guest).expect("a forwarding");
        let mut forwards = self.forwards.lock().expect("forwards");
        forwards.insert((host, guest));
    }

    fn try_forward(&self, host: u16, guest: u16) -> Result<(), String> {
        let line = format!("hostfwd_add net0 tcp:127.0.0.1:{host}-10.0.2.15:{guest}");
        let said = self.monitor(&line)?;
        if said.trim().is_empty() {
            Ok(())
        } else {
            Err(said)
        }
    }

    /// Ends a forwarding; what is connected through it stays.
    pub fn unforward(&self, host: u16) {
        self.monitor(&format!("hostfwd_remove net0 tcp:127.0.0.1:{host}"))
            .ok();
        self.forwards
            .lock()
            .expect("forwards")
            .retain(|(port, _)| *port != host);
    }

    /// Plugs or pulls the machine's cable: packets vanish, nobody is told.
    ///
    /// # Panics
    /// When QEMU refuses.
    pub fn cable(&self, plugged: Cable) {
        let word = match plugged {
            Cable::Plugged => "on",
            Cable::Pulled => "off",
        };
        self.monitor(&format!("set_link net0 {word}"))
            .expect("QEMU's monitor");
    }

    /// A line for QEMU's monitor; its answer.
    fn monitor(&self, line: &str) -> Result<String, String> {
        // QEMU speaks to one client at a time.
        static ONE: Mutex<()> = Mutex::new(());
        let _turn = ONE.lock().unwrap_or_else(|poison| poison.into_inner());
        let failed = |error: std::io::Error| format!("QEMU's monitor: {error}");
        let mut stream = UnixStream::connect(self.dir.join("vm/k/qmp.sock")).map_err(failed)?;
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .map_err(failed)?;
        let mut answers = BufReader::new(stream.try_clone().map_err(failed)?);
        let mut text = String::new();
        answers.read_line(&mut text).map_err(failed)?;
        let command = serde_json::json!({
            "execute": "human-monitor-command",
            "arguments": { "command-line": line },
        });
        for ask in [
            serde_json::json!({ "execute": "qmp_capabilities" }),
            command,
        ] {
            writeln!(stream, "{ask}").map_err(failed)?;
            loop {
                text.clear();
                if answers.read_line(&mut text).map_err(failed)? == 0 {
                    return Err(String::from("QEMU's monitor has ended"));
                }
                let answer: serde_json::Value =
                    serde_json::from_str(&text).map_err(|error| error.to_string())?;
                if let Some(error) = answer.get("error") {
                    return Err(error.to_string());
                }
                if let Some(said) = answer.get("return") {
                    text = said.as_str().unwrap_or_default().to_owned();
                    break;
                }
            }
        }
        Ok(text)
    }

    /// SIGKILL of the machine: its memory is lost, its disk keeps everything that was written to it.
    ///
    /// # Panics
    /// When it does not end.
    pub fn crash(&self) {
        let Some(pid) = self.pid() else { return };
        let pid = pid.to_string();
        process::run(Command::new("kill").args(["-KILL", &pid]), EXEC_LIMIT);
        let gone = || (!self.runs()).then_some(());
        wait::until("the machine's end", EXEC_LIMIT, gone, String::new);
    }

    /// Boots a crashed machine again with the same disk and the same ports.
    ///
    /// # Panics
    /// When it does not boot.
    pub fn boot_again(&self) {
        let mut restart = lab("vm");
        restart.env("LAB_DIR", &self.dir).args(["restart", "k"]);
        let ended = process::run(&mut restart, BOOT_LIMIT);
        assert_eq!(ended.code, Some(0), "{}", ended.all());
        self.follow_messages();
        for (host, guest) in self.forwards.lock().expect("forwards").iter() {
            self.try_forward(*host, *guest).expect("the same port");
        }
    }

    /// The machine's disk, opened.
    ///
    /// # Panics
    /// When it is not there.
    pub fn open_disk(&self) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.disk())
            .expect("the machine's disk")
    }
}

/// Whether the machine's network card has its cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    /// Packets pass.
    Plugged,
    /// Packets vanish.
    Pulled,
}

/// Below the ports that the system gives to outgoing connections, so that none of these takes it away.
const PORTS: std::ops::Range<u32> = 20_000..32_000;

/// A port of 127.0.0.1 that is free right now and was not given out before in this process.
///
/// # Panics
/// When none is free.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let span = PORTS.end - PORTS.start;
    for _ in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let start = std::process::id().wrapping_mul(2_654_435_761) % span;
        let port = (PORTS.start + (start + step) % span) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}
