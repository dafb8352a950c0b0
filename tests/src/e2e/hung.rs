//! A disk that can be stopped: a file served by a FUSE process. While that process is stopped, every read and write of the file hangs.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::node::STATE_LIMIT;
use super::{process, tool, wait};

/// A mounted file. Dropping it ends the FUSE process, which fails whatever hangs, and unmounts the file.
#[derive(Debug)]
pub struct StoppableDisk {
    path: PathBuf,
    server: Child,
}

/// Why this machine cannot mount, if so: it takes `/dev/fuse`, `nbdfuse`, `nbdkit` and root.
fn obstacle() -> Option<String> {
    let fuse = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    if let Err(error) = fuse {
        return Some(format!("/dev/fuse: {error}"));
    }
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if !root {
        return Some(String::from("not root"));
    }
    ["nbdfuse", "nbdkit"]
        .into_iter()
        .find(|program| !tool::is_installed(program))
        .map(|program| format!("{program} is not installed"))
}

impl StoppableDisk {
    /// Puts a disk of `bytes` zeroes over the file at `path`. None where FUSE cannot be used; that is said.
    ///
    /// # Panics
    /// When the mounted file does not come up in time, or a program cannot be started.
    pub fn mount(path: &Path, bytes: u64) -> Option<StoppableDisk> {
        if let Some(why) = obstacle() {
            eprintln!("NOT TESTED: {why}");
            return None;
        }
        std::fs::write(path, b"").expect("a file to mount over");
        // The server ends with this test, however that ends: a stopped one would keep its clients hanging.
        let server = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nbdfuse"])
            .arg(path)
            .args(["[", "nbdkit", "--exit-with-parent", "memory"])
            .arg(bytes.to_string())
            .arg("]")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start nbdfuse");
        let mut disk = StoppableDisk {
            path: path.to_owned(),
            server,
        };
        let mounted = || {
            let ended = disk.server.try_wait().expect("wait for nbdfuse").is_some();
            let mut stat = Command::new("stat");
            stat.args(["--format", "%s"]).arg(&disk.path);
            let length = process::run(&mut stat, STATE_LIMIT).stdout;
            let up = length.trim() == bytes.to_string();
            (ended || up).then_some(up && !ended)
        };
        let up = wait::until("the mounted file", STATE_LIMIT, mounted, String::new);
        if !up {
            eprintln!("NOT TESTED: nbdfuse cannot mount here");
        }
        up.then_some(disk)
    }

    /// From now on every access hangs.
    pub fn stop(&self) {
        self.signal("STOP");
    }

    /// What hung goes on.
    pub fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let pid = self.server.id().to_string();
        let ended = process::run(Command::new("kill").args(["-s", name, &pid]), STATE_LIMIT);
        assert_eq!(ended.code, Some(0), "{}", ended.all());
    }
}

impl Drop for StoppableDisk {
    fn drop(&mut self) {
        // SIGKILL also ends a stopped process; the kernel then fails what hangs.
        self.server.kill().ok();
        self.server.wait().ok();
        process::run(
            Command::new("umount").arg("-l").arg(&self.path),
            STATE_LIMIT,
        );
    }
}
