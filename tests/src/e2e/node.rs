//! One node: a daemon of its own under a directory of its own, and the commands of its administrator.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::process::{self, Ended};
use super::wait;

/// How long any command may take.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// How long a state may take to be reached, on a loaded machine.
pub const STATE_LIMIT: Duration = Duration::from_secs(40);

/// A counter that has not moved for this long is at rest.
const COUNTERS_REST: Duration = Duration::from_millis(400);

/// Lines of a log that a failure shows.
const LOG_LINES: usize = 200;

/// The binary under test: `TANDEM_BIN`, or the one that was built beside this test.
///
/// # Panics
/// When it is not there.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("TANDEM_BIN") {
        return PathBuf::from(path);
    }
    let own = std::env::current_exe().expect("this process has a file");
    let found = own
        .ancestors()
        .skip(1)
        .map(|dir| dir.join("tandem"))
        .find(|path| path.is_file());
    found.expect("the binary `tandem` is not built; next: cargo build -p tandem-cli")
}

/// What a node's configuration says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Size of each volume's disk in bytes, internal metadata included.
    pub disk_bytes: u64,
    /// Volumes.
    pub volumes: u16,
    /// Where the metadata lie.
    pub meta: Meta,
    /// Lines of the `net` section.
    pub net: String,
    /// Lines of the `disk` section.
    pub disk: String,
    /// Lines of the `handlers` section.
    pub handlers: String,
    /// Lines of the `startup` section.
    pub startup: String,
}

/// Where the metadata of the volumes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// At the end of the disk.
    Internal,
    /// In a file of their own.
    External,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            disk_bytes: 16 << 20,
            volumes: 1,
            meta: Meta::Internal,
            net: net('C'),
            disk: String::from("c-plan-ahead 0; resync-rate 400M;"),
            handlers: String::new(),
            startup: String::new(),
        }
    }
}

/// The lines of the `net` section that most tests want: patient with a loaded machine, quick to connect.
pub fn net(protocol: char) -> String {
    format!("protocol {protocol}; ping-timeout 20; socket-check-timeout 2; connect-int 1;")
}

impl Settings {
    /// With further lines of the `net` section.
    #[must_use]
    pub fn with_net(mut self, lines: &str) -> Settings {
        self.net = format!("{} {lines}", self.net);
        self
    }

    /// With this rate of resync, such as `4M`.
    #[must_use]
    pub fn with_resync_rate(mut self, rate: &str) -> Settings {
        self.disk = format!("c-plan-ahead 0; resync-rate {rate};");
        self
    }

    /// With disks of this size.
    #[must_use]
    pub fn with_disk_bytes(mut self, bytes: u64) -> Settings {
        self.disk_bytes = bytes;
        self
    }
}

/// How far the files of a node's daemon may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileLimit {
    /// As far as the filesystem goes.
    None,
    /// A write beyond this many bytes fails, as on a full filesystem.
    Bytes(u64),
}

/// A node, its own name, and what it knows of its peer.
#[derive(Debug)]
pub struct Node {
    /// `alpha` or `bravo`.
    pub name: String,
    /// Everything of the node lies here.
    pub root: PathBuf,
    daemon: Option<Child>,
}

impl Node {
    /// A node without configuration.
    ///
    /// # Panics
    /// When the directory cannot be written.
    pub fn bare(dir: &Path, name: &str) -> Node {
        let root = dir.join(name);
        fs::create_dir_all(root.join("etc")).expect("a directory of the test");
        Node {
            name: name.to_owned(),
            root,
            daemon: None,
        }
    }

    /// Writes the configuration of a node: its own address, and the peer's as this node shall see it.
    ///
    /// # Panics
    /// When the directory cannot be written.
    pub fn create(
        dir: &Path,
        name: &str,
        own: SocketAddr,
        peer: SocketAddr,
        settings: &Settings,
    ) -> Node {
        let node = Node::bare(dir, name);
        for volume in 0..settings.volumes {
            make_file(&node.disk(volume), settings.disk_bytes);
            if settings.meta == Meta::External {
                make_file(&node.meta_disk(volume), 4 << 20);
            }
        }
        node.configure(own, peer, settings);
        node
    }

    /// Writes the configuration file anew.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn configure(&self, own: SocketAddr, peer: SocketAddr, settings: &Settings) {
        let other = if self.name == "alpha" {
            "bravo"
        } else {
            "alpha"
        };
        let mut volumes = String::new();
        for volume in 0..settings.volumes {
            let meta = match settings.meta {
                Meta::Internal => String::from("meta-disk internal"),
                Meta::External => {
                    format!("flexible-meta-disk {}", self.meta_disk(volume).display())
                }
            };
            volumes.push_str(&format!(
                "  volume {volume} {{\n    device /dev/drbd{volume} minor {volume};\n    disk {};\n    {meta};\n  }}\n",
                self.disk(volume).display()
            ));
        }
        let text = format!(
            "global {{ usage-count no; }}\nresource r0 {{\n  net {{ {} }}\n  disk {{ {} }}\n  handlers {{ {} }}\n  startup {{ {} }}\n{volumes}  \
             on {} {{ address {own}; }}\n  on {other} {{ address {peer}; }}\n}}\n",
            settings.net, settings.disk, settings.handlers, settings.startup, self.name
        );
        self.write_config(&text);
    }

    /// Writes this text as the configuration file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_config(&self, text: &str) {
        fs::write(self.root.join("etc/drbd.conf"), text).expect("a configuration file");
    }

    /// The backing file of a volume.
    pub fn disk(&self, volume: u16) -> PathBuf {
        self.root.join(format!("disk{volume}.img"))
    }

    /// The metadata file of a volume with external metadata.
    pub fn meta_disk(&self, volume: u16) -> PathBuf {
        self.root.join(format!("meta{volume}.img"))
    }

    /// The NBD socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join("run/tandem/nbd.sock")
    }

    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.root.join("run/tandem/control.sock")
    }

    /// The NBD URI of a volume.
    pub fn uri(&self, volume: u16) -> String {
        format!("nbd+unix:///r0/{volume}?socket={}", self.socket().display())
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(&mut self) {
        self.start_with(FileLimit::None, &[]);
    }

    /// As [`Node::start`], and the daemon serves NBD on this TCP address, too.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_with_nbd_tcp(&mut self, address: SocketAddr) {
        self.start_with(FileLimit::None, &["--nbd-tcp", &address.to_string()]);
    }

    /// As [`Node::start`], and everything is recorded in this directory.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_recording(&mut self, dir: &Path) {
        let dir = dir.display().to_string();
        self.start_with(FileLimit::None, &["--record", &dir]);
    }

    /// As [`Node::start`], but the daemon's writes beyond `bytes` of a file fail.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_with_file_limit(&mut self, bytes: u64) {
        self.start_with(FileLimit::Bytes(bytes), &[]);
    }

    /// As [`Node::start`]; [`Node::limit_files`] can be used later.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_limitable(&mut self) {
        self.start_with(FileLimit::Bytes(u64::MAX), &[]);
    }

    /// From now on the daemon's writes beyond the limit fail; it was started with [`Node::start_limitable`].
    ///
    /// # Panics
    /// When the daemon does not run.
    pub fn limit_files(&self, limit: FileLimit) {
        let pid = self.pid().expect("the daemon runs").to_string();
        let bytes = match limit {
            FileLimit::None => String::from("unlimited"),
            FileLimit::Bytes(bytes) => bytes.to_string(),
        };
        // Only the soft limit: the hard one could not be raised again.
        let option = format!("--fsize={bytes}:");
        let ended = process::run(
            Command::new("prlimit").args(["--pid", &pid, &option]),
            COMMAND_LIMIT,
        );
        assert_eq!(ended.code, Some(0), "{}", ended.all());
    }

    fn start_with(&mut self, limit: FileLimit, options: &[&str]) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path());
        let log = log.expect("a log file");
        let mut command = match limit {
            FileLimit::None => Command::new(binary()),
            FileLimit::Bytes(bytes) => {
                // The signal of an overstepped limit is ignored: the write fails, the process lives.
                let blocks = match bytes {
                    u64::MAX => String::from("unlimited"),
                    bytes => (bytes / 512).to_string(),
                };
                let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", &script, "sh"]).arg(binary());
                shell
            }
        };
        command
            .args(["daemon", "--with-parent", "--root"])
            .arg(&self.root)
            .args(options)
            .env("__DRBD_NODE__", &self.name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "info,tandem_daemon=debug");
        }
        let mut child = command.spawn().expect("the daemon starts");
        let control = self.control_socket();
        let up = || {
            if let Some(status) = child.try_wait().expect("wait for the daemon") {
                panic!(
                    "the daemon of {} ended at once: {status}\n{}",
                    self.name,
                    self.logs()
                );
            }
            std::os::unix::net::UnixStream::connect(&control)
                .ok()
                .map(drop)
        };
        let explain = || self.logs();
        wait::until("the daemon's control socket", STATE_LIMIT, up, explain);
        self.daemon = Some(child);
    }

    /// SIGKILL. The kernel keeps what was written.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            child.kill().ok();
            child.wait().ok();
        }
        // A command may have started another one, when it found none.
        if let Some(pid) = self.started_daemon() {
            let mut kill = Command::new("kill");
            process::run(kill.args(["-s", "KILL", &pid.to_string()]), COMMAND_LIMIT);
        }
    }

    /// The daemon of this node that a command started by itself, if one runs.
    pub fn started_daemon(&self) -> Option<u32> {
        let file = self.root.join("run/tandem/tandemd.pid");
        let pid: u32 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
        let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let root = self.root.display().to_string();
        let ours = String::from_utf8_lossy(&words)
            .split('\0')
            .any(|word| word == root);
        (ours && self.pid() != Some(pid)).then_some(pid)
    }

    /// SIGKILL, and up again as after a reboot.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn crash_and_come_back(&mut self) {
        self.kill();
        self.start();
        self.must(&["up", "r0"]);
    }

    /// The id of the daemon, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// Whether the daemon that was started still runs.
    ///
    /// # Panics
    /// When none was started.
    pub fn is_alive(&mut self) -> bool {
        let child = self.daemon.as_mut().expect("the daemon was started");
        child.try_wait().expect("wait for the daemon").is_none()
    }

    /// Sends the daemon a signal by name, such as `STOP`.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().expect("the daemon runs").to_string();
        let ended = process::run(Command::new("kill").args(["-s", name, &pid]), COMMAND_LIMIT);
        assert_eq!(ended.code, Some(0), "{}", ended.all());
    }

    /// Waits for the daemon's own end and returns its exit code.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait_for_end(&mut self) -> Option<i32> {
        let mut child = self.daemon.take().expect("the daemon runs");
        let ended = || child.try_wait().expect("wait for the daemon");
        let explain = || self.logs();
        wait::until("the daemon's end", STATE_LIMIT, ended, explain).code()
    }

    /// Where the daemon's log goes.
    pub fn log_path(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// The daemon's whole log so far.
    pub fn whole_log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The daemon's log so far (its last lines) under its name, and its last status.
    pub fn log(&self) -> String {
        log_of(&self.root)
    }

    /// The logs of this node and of the other nodes of the test.
    pub fn logs(&self) -> String {
        let mut text = self.log();
        let others = self.root.parent().and_then(|dir| fs::read_dir(dir).ok());
        for entry in others.into_iter().flatten().flatten() {
            if entry.path() != self.root && entry.path().is_dir() {
                text.push_str(&log_of(&entry.path()));
            }
        }
        text
    }

    /// `tandem adm ARGS`, whatever its exit code.
    pub fn adm(&self, args: &[&str]) -> Ended {
        let mut command = Command::new(binary());
        command.arg("adm").arg("--root").arg(&self.root).args(args);
        command.env("__DRBD_NODE__", &self.name);
        process::run(&mut command, COMMAND_LIMIT)
    }

    /// `tandem adm ARGS`, started and not waited for; its words are lost.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn adm_begun(&self, args: &[&str]) -> Child {
        let mut command = Command::new(binary());
        command.arg("adm").arg("--root").arg(&self.root).args(args);
        command.env("__DRBD_NODE__", &self.name);
        command.stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("a command starts")
    }

    /// What `tandem status` tells a person, each message and each command to type included.
    ///
    /// # Panics
    /// When it fails.
    pub fn explained(&self) -> String {
        let mut command = Command::new(binary());
        command.arg("status").arg("--root").arg(&self.root);
        command.env("__DRBD_NODE__", &self.name);
        let ended = process::run(&mut command, COMMAND_LIMIT);
        assert_eq!(ended.code, Some(0), "{}\n{}", ended.all(), self.logs());
        ended.stdout
    }

    /// `tandem adm ARGS`, which must succeed; its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn must(&self, args: &[&str]) -> String {
        let ended = self.adm(args);
        assert_eq!(
            ended.code,
            Some(0),
            "{}: adm {args:?}: {}\n{}",
            self.name,
            ended.all(),
            self.logs()
        );
        ended.stdout
    }

    /// `tandem adm ARGS`, which must end with exit code `code` and say each of `words`, in any letter case.
    ///
    /// # Panics
    /// When it does otherwise.
    pub fn refused(&self, args: &[&str], code: i32, words: &[&str]) -> Ended {
        let ended = self.adm(args);
        let all = ended.all().to_lowercase();
        let missing: Vec<_> = words
            .iter()
            .filter(|words| !all.contains(&words.to_lowercase()))
            .collect();
        assert!(
            ended.code == Some(code) && missing.is_empty(),
            "{}: adm {args:?} must end with exit {code} and say {words:?} (missing: {missing:?}): {}\n{}",
            self.name,
            ended.all(),
            self.logs()
        );
        ended
    }

    /// One of the words that `role`, `cstate` and `dstate` print for the first volume.
    pub fn word(&self, command: &str) -> String {
        self.adm(&[command, "r0"])
            .stdout
            .lines()
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    /// The status of r0 as JSON.
    ///
    /// # Panics
    /// When there is none.
    pub fn status(&self) -> Value {
        let text = self.must(&["status", "--json", "r0"]);
        let all: Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: status is no JSON: {error}\n{text}", self.name));
        let first = all
            .get(0)
            .unwrap_or_else(|| panic!("status without a resource\n{text}"));
        first.clone()
    }

    /// The text of `/proc/drbd`.
    ///
    /// # Panics
    /// When the command fails.
    pub fn proc(&self) -> String {
        self.must(&["proc"])
    }

    /// A counter of `/proc/drbd`, such as `oos`.
    ///
    /// # Panics
    /// When it is not there.
    pub fn counter(&self, minor: u32, name: &str) -> u64 {
        let text = self.proc();
        let counters = proc_counters(&text);
        let found = counters.get(&minor).and_then(|counters| counters.get(name));
        *found.unwrap_or_else(|| panic!("no {name} of minor {minor} in\n{text}"))
    }

    /// A counter that does not move any more: the daemon may publish counters a moment after an answer.
    ///
    /// # Panics
    /// When it is not there or does not come to rest.
    pub fn settled_counter(&self, minor: u32, name: &str) -> u64 {
        let mut last = (self.counter(minor, name), Instant::now());
        let settled = || {
            let now = self.counter(minor, name);
            if now != last.0 {
                last = (now, Instant::now());
            }
            (last.1.elapsed() > COUNTERS_REST).then_some(now)
        };
        let what = format!("{name} of {} at rest", self.name);
        wait::until(&what, STATE_LIMIT, settled, || self.logs())
    }

    /// Waits until `cstate` and `dstate` of the first volume are these.
    ///
    /// # Panics
    /// When they are not in time.
    pub fn wait_state(&self, cstate: &str, dstate: &str) {
        let reached =
            || (self.word("cstate") == cstate && self.word("dstate") == dstate).then_some(());
        let what = format!("{cstate} {dstate} on {}", self.name);
        wait::until(&what, STATE_LIMIT, reached, || self.logs());
    }

    /// Waits until a command prints one of these words for the first volume, and returns it.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_word(&self, command: &str, words: &[&str]) -> String {
        let reached = || Some(self.word(command)).filter(|word| words.contains(&word.as_str()));
        let what = format!("{command} {} on {}", words.join(" or "), self.name);
        wait::until(&what, STATE_LIMIT, reached, || self.logs())
    }

    /// Waits until the daemon's log contains `words`.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_log(&self, words: &str) {
        let said = || self.whole_log().contains(words).then_some(());
        let what = format!("{words:?} in the log of {}", self.name);
        wait::until(&what, STATE_LIMIT, said, || self.logs());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

fn make_file(path: &Path, bytes: u64) {
    let file = fs::File::create(path).expect("a disk file");
    file.set_len(bytes).expect("a sparse disk file");
}

fn log_of(root: &Path) -> String {
    let name = root.file_name().unwrap_or_default().display();
    let status = fs::read_to_string(root.join("run/tandem/proc")).unwrap_or_default();
    let text = fs::read_to_string(root.join("daemon.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
    let status: Vec<&str> = status.lines().skip(2).collect();
    format!(
        "--- log of {name}\n{}\n--- last status of {name}\n{}\n",
        tail.join("\n"),
        status.join("\n")
    )
}

/// The counters of each minor in a text of `/proc/drbd`.
fn proc_counters(text: &str) -> BTreeMap<u32, BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    let mut minor = None;
    for line in text.lines() {
        let head = line
            .split_once(": cs:")
            .map(|(number, _)| number.trim().parse().ok());
        if let Some(number) = head {
            minor = number;
        } else if let (Some(minor), true) = (minor, line.trim_start().starts_with("ns:")) {
            let fields = line.split_whitespace().filter_map(|field| {
                let (name, value) = field.split_once(':')?;
                Some((name.to_owned(), value.parse().ok()?))
            });
            all.insert(minor, fields.collect());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_the_text_of_proc() {
        let text = "version: 8.4.11-1 (api:1/proto:86-101)\nbuild\n\n \
            0: cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r-----\n    \
            ns:648576 nr:0 dw:0 dr:649200 al:0 bm:0 lo:0 pe:3 ua:0 ap:0 ep:1 wo:f oos:400000\n\t\
            [===========>........] sync'ed: 62.3% (400000/1048576)K\n\t\
            finish: 0:00:33 speed: 12,000 (12,008) K/sec\n\n \
            5: cs:Unconfigured\n";
        let counters = proc_counters(text);
        assert_eq!(counters.keys().copied().collect::<Vec<u32>>(), vec![0]);
        assert_eq!(counters[&0]["oos"], 400_000);
        assert_eq!(counters[&0]["ns"], 648_576);
        assert!(!counters[&0].contains_key("wo"));
    }
}
