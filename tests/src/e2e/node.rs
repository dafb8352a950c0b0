//! One node: a daemon of its own under a directory of its own, and the commands of its administrator.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::process::{self, Ended};
use super::wait;

/// How long any command may take.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

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
    found.expect("the binary `tandem` is not built: cargo build -p tandem-cli")
}

/// What a node's configuration says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Size of each volume's disk in bytes, internal metadata included.
    pub disk_bytes: u64,
    /// Volumes.
    pub volumes: u16,
    /// Lines of the `net` section.
    pub net: String,
    /// Lines of the `disk` section.
    pub disk: String,
    /// Lines of the `handlers` section.
    pub handlers: String,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            disk_bytes: 16 << 20,
            volumes: 1,
            net: String::from("protocol C; ping-timeout 20; connect-int 1;"),
            disk: String::from("c-plan-ahead 0; resync-rate 400M;"),
            handlers: String::new(),
        }
    }
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
        let root = dir.join(name);
        fs::create_dir_all(root.join("etc")).expect("a directory of the test");
        let node = Node {
            name: name.to_owned(),
            root,
            daemon: None,
        };
        for volume in 0..settings.volumes {
            let file = fs::File::create(node.disk(volume)).expect("a disk file");
            file.set_len(settings.disk_bytes)
                .expect("a sparse disk file");
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
            volumes.push_str(&format!(
                "  volume {volume} {{\n    device /dev/drbd{volume} minor {volume};\n    disk {};\n    meta-disk internal;\n  }}\n",
                self.disk(volume).display()
            ));
        }
        let text = format!(
            "global {{ usage-count no; }}\nresource r0 {{\n  net {{ {} }}\n  disk {{ {} }}\n  handlers {{ {} }}\n{volumes}  \
             on {} {{ address {own}; }}\n  on {other} {{ address {peer}; }}\n}}\n",
            settings.net, settings.disk, settings.handlers, self.name
        );
        fs::write(self.root.join("etc/drbd.conf"), text).expect("a configuration file");
    }

    /// The backing file of a volume.
    pub fn disk(&self, volume: u16) -> PathBuf {
        self.root.join(format!("disk{volume}.img"))
    }

    /// The NBD socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join("run/tandem/nbd.sock")
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
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path());
        let log = log.expect("a log file");
        let child = Command::new(binary())
            .arg("daemon")
            .arg("--root")
            .arg(&self.root)
            .env("__DRBD_NODE__", &self.name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        self.daemon = Some(child);
        let control = self.root.join("run/tandem/control.sock");
        let up = || {
            std::os::unix::net::UnixStream::connect(&control)
                .ok()
                .map(drop)
        };
        wait::until("the daemon's control socket", COMMAND_LIMIT, up, || {
            self.log()
        });
    }

    /// SIGKILL. The kernel keeps what was written.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// The id of the daemon, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
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
        wait::until("the daemon's end", COMMAND_LIMIT, ended, String::new).code()
    }

    /// Where the daemon's log goes.
    pub fn log_path(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// The daemon's log so far (its last 200 lines).
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(200)..];
        format!("--- log of {}\n{}\n", self.name, tail.join("\n"))
    }

    /// `tandem adm ARGS`, whatever its exit code.
    pub fn adm(&self, args: &[&str]) -> Ended {
        let mut command = Command::new(binary());
        command.arg("adm").arg("--root").arg(&self.root).args(args);
        command.env("__DRBD_NODE__", &self.name);
        process::run(&mut command, COMMAND_LIMIT)
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
            self.log()
        );
        ended.stdout
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

    /// Waits until `cstate` and `dstate` of the first volume are these.
    ///
    /// # Panics
    /// When they are not in time.
    pub fn wait_state(&self, cstate: &str, dstate: &str) {
        let reached =
            || (self.word("cstate") == cstate && self.word("dstate") == dstate).then_some(());
        let explain = || {
            format!(
                "{} is {} {}\n{}",
                self.name,
                self.word("cstate"),
                self.word("dstate"),
                self.log()
            )
        };
        wait::until(
            &format!("{cstate} {dstate} on {}", self.name),
            COMMAND_LIMIT,
            reached,
            explain,
        );
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
