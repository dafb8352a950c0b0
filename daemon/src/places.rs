//! Where everything lies on a node. `--root DIR` moves all of it, so that two nodes live on one host.

use std::path::{Path, PathBuf};

/// The places of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    root: PathBuf,
}

impl Places {
    /// The places under `root` (`/` on a real node).
    pub fn new(root: &Path) -> Places {
        Places {
            root: root.to_owned(),
        }
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `/etc`.
    pub fn etc_dir(&self) -> PathBuf {
        self.root.join("etc")
    }

    /// `/run/tandem`: sockets, lock, proc text. Mode 0755.
    pub fn run_dir(&self) -> PathBuf {
        self.root.join("run/tandem")
    }

    /// `/var/lib/tandem`: what survives a reboot. Mode 0700.
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("var/lib/tandem")
    }

    /// The control socket, mode 0600.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir().join("control.sock")
    }

    /// Held by the running daemon; contains its process id.
    pub fn lock_file(&self) -> PathBuf {
        self.run_dir().join("tandemd.pid")
    }

    /// The NBD socket that serves every export, mode 0600.
    pub fn nbd_socket(&self) -> PathBuf {
        self.run_dir().join("nbd.sock")
    }

    /// Directory of the sockets that serve one volume each, mode 0755.
    pub fn nbd_dir(&self) -> PathBuf {
        self.run_dir().join("nbd")
    }

    /// The NBD socket of one volume, mode 0600: an URI needs no export name there.
    pub fn nbd_volume_socket(&self, resource: &str, volume: u16) -> PathBuf {
        self.nbd_dir().join(format!("{resource}-{volume}.sock"))
    }

    /// The text of `/proc/drbd`, kept up to date: `watch cat` follows it.
    pub fn proc_file(&self) -> PathBuf {
        self.run_dir().join("proc")
    }

    /// Where the black boxes of failed loops are written.
    pub fn crash_dir(&self) -> PathBuf {
        self.state_dir().join("crash")
    }
}
