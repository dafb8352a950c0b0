//! What is compared: how each contender is started, and where it listens.
//!
//! Every contender gets files of its own with the same contents, servers of its own, and for replication a TCP connection over the
//! loopback interface. Its servers are ended, and its files removed, when its [`Running`] is dropped.

mod addresses;
pub(crate) mod nodes;
mod peers;
mod qmp;
mod tandem;

use std::path::{Path, PathBuf};

use serde::Serialize;
use tempfile::TempDir;

use crate::Failure;
use crate::load::Endpoint;
use crate::machine::is_installed;
use crate::process::{Server, Stop};

pub use nodes::INNER_WORD;

/// Where the backing files lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Medium {
    /// In memory: what the software costs.
    Tmpfs,
    /// In a directory on a disk, with O_DIRECT where the contender can do that.
    Disk,
}

/// How clients connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Client {
    /// A Unix socket.
    Unix,
    /// TCP on loopback.
    Tcp,
}

/// Where and how contenders are started.
#[derive(Clone, Debug)]
pub struct Site {
    /// The medium.
    pub medium: Medium,
    /// The directory for backing files and sockets.
    pub directory: PathBuf,
    /// How clients connect.
    pub client: Client,
    /// The program `tandem`, if not the one inside this program.
    pub tandem: Option<PathBuf>,
    /// Bytes of every contender's device.
    pub device_bytes: u64,
}

/// What a contender is compared as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// A server without replication.
    Plain,
    /// Another replicating server.
    Peer,
    /// Ours.
    Tandem,
}

/// The server on the far side of a replicating peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarSide {
    /// nbdkit with its file plugin.
    Nbdkit,
    /// qemu-nbd.
    QemuNbd,
}

/// One of those that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// qemu-nbd on a file.
    QemuNbd,
    /// nbdkit's file plugin.
    Nbdkit,
    /// qemu-storage-daemon, driver quorum: a file and an NBD client.
    Quorum(FarSide),
    /// qemu-storage-daemon, a mirror job with copy-mode write-blocking to an NBD client.
    Mirror(FarSide),
    /// Two Tandem nodes with this protocol.
    Tandem(char),
}

/// All of them, in the order of the table.
pub const CONTENDERS: &[Contender] = &[
    Contender::QemuNbd,
    Contender::Nbdkit,
    Contender::Quorum(FarSide::Nbdkit),
    Contender::Quorum(FarSide::QemuNbd),
    Contender::Mirror(FarSide::Nbdkit),
    Contender::Mirror(FarSide::QemuNbd),
    Contender::Tandem('A'),
    Contender::Tandem('B'),
    Contender::Tandem('C'),
];

/// A contender whose servers run.
#[derive(Debug)]
pub struct Running {
    /// Which one.
    pub contender: Contender,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its servers: ended before the directory goes.
    pub servers: Vec<Server>,
    /// What a reader of its figures has to know.
    pub notes: Vec<String>,
    /// Tandem's nodes, for their counters.
    nodes: Vec<nodes::Node>,
    /// Held for its end.
    _dir: TempDir,
}

/// Counters of a contender, where it has some.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Blocks of metadata that its nodes wrote: activity log and bitmap.
    pub metadata_writes: u64,
}

impl Contender {
    /// Its name, as `--contenders` takes it.
    pub fn name(self) -> String {
        let far = |side| match side {
            FarSide::Nbdkit => "nbdkit",
            FarSide::QemuNbd => "qemu-nbd",
        };
        match self {
            Contender::QemuNbd => String::from("qemu-nbd"),
            Contender::Nbdkit => String::from("nbdkit"),
            Contender::Quorum(side) => format!("quorum+{}", far(side)),
            Contender::Mirror(side) => format!("mirror+{}", far(side)),
            Contender::Tandem(protocol) => format!("tandem-{protocol}"),
        }
    }

    /// What it is compared as.
    pub fn class(self) -> Class {
        match self {
            Contender::QemuNbd | Contender::Nbdkit => Class::Plain,
            Contender::Quorum(_) | Contender::Mirror(_) => Class::Peer,
            Contender::Tandem(_) => Class::Tandem,
        }
    }

    /// Whether `--quick` has it: qemu-nbd is no good far side, and its rows are left to longer runs.
    pub fn is_quick(self) -> bool {
        !matches!(
            self,
            Contender::Quorum(FarSide::QemuNbd) | Contender::Mirror(FarSide::QemuNbd)
        )
    }

    /// The programs that it needs, with their Debian packages.
    fn programs(self) -> &'static [(&'static str, &'static str)] {
        const QEMU_NBD: (&str, &str) = ("qemu-nbd", "qemu-utils");
        const NBDKIT: (&str, &str) = ("nbdkit", "nbdkit");
        const STORAGE: (&str, &str) = ("qemu-storage-daemon", "qemu-system-common");
        match self {
            Contender::QemuNbd => &[QEMU_NBD],
            Contender::Nbdkit => &[NBDKIT],
            Contender::Quorum(FarSide::Nbdkit) | Contender::Mirror(FarSide::Nbdkit) => {
                &[STORAGE, NBDKIT]
            }
            Contender::Quorum(FarSide::QemuNbd) | Contender::Mirror(FarSide::QemuNbd) => {
                &[STORAGE, QEMU_NBD]
            }
            Contender::Tandem(_) => &[],
        }
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// When a program is missing or does not do what it should.
    pub fn start(self, site: &Site, stop: &Stop) -> Result<Running, Failure> {
        for (program, package) in self.programs() {
            if !is_installed(program) {
                return Err(Failure::Missing {
                    program: (*program).to_owned(),
                    package: (*package).to_owned(),
                });
            }
        }
        let dir = temporary_directory(&site.directory)?;
        match self {
            Contender::Tandem(protocol) => tandem::start(protocol, site, dir, stop),
            peer => peers::start(peer, site, dir, stop),
        }
    }
}

impl Running {
    /// Its counters now.
    pub fn counters(&self) -> Counters {
        Counters {
            metadata_writes: self.nodes.iter().map(nodes::Node::metadata_writes).sum(),
        }
    }

    /// The logs of its servers, for messages.
    pub fn logs(&self) -> String {
        logs_in(self._dir.path())
    }
}

/// A directory that goes when it is dropped; its name has the id of this process, so that a leftover can be told from one in use.
///
/// # Errors
/// Those of the filesystem.
pub(crate) fn temporary_directory(parent: &Path) -> Result<TempDir, Failure> {
    let doing = format!("make a directory in {}", parent.display());
    let prefix = format!("tandem-compare-{}-", std::process::id());
    TempDir::with_prefix_in(prefix, parent).map_err(Failure::system(doing))
}

/// Last lines of every log below a contender's directory.
fn logs_in(dir: &Path) -> String {
    const LINES: usize = 12;
    let mut text = String::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|end| end == "log") {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LINES)..];
            let name = path.file_stem().unwrap_or_default().display();
            text.push_str(&format!("{name}: {}\n", tail.join("\n  ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> = CONTENDERS
            .iter()
            .map(|contender| contender.name())
            .collect();
        assert_eq!(names.len(), CONTENDERS.len());
        assert!(names.contains("quorum+nbdkit") && names.contains("tandem-C"));
    }
}
