//! Two Tandem nodes, started with an administrator's own words.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::{Client, Contender, Running, Site, addresses, logs_in};
use crate::Failure;
use crate::disks::{self, Tail};
use crate::load::Endpoint;
use crate::process::{Server, Stop, wait_for};
use crate::rows::AL_EXTENTS;

/// The first word with which this program is `tandem`.
pub const INNER_WORD: &str = "tandem";

const RESOURCE: &str = "r0";

/// A node: its own root directory.
#[derive(Clone, Debug)]
pub(super) struct Node {
    name: &'static str,
    root: PathBuf,
    program: Option<PathBuf>,
}

pub(super) fn start(
    protocol: char,
    site: &Site,
    dir: TempDir,
    stop: &Stop,
) -> Result<Running, Failure> {
    let addresses = [addresses::fresh()?, addresses::fresh()?];
    let node = |name: &'static str| Node {
        name,
        root: dir.path().join(name),
        program: site.tandem.clone(),
    };
    let nodes = [node("alpha"), node("bravo")];
    let front = match site.client {
        Client::Unix => {
            let socket = nodes[0].root.join("run/tandem/nbd.sock");
            Endpoint::unix(socket, "r0/0")
        }
        Client::Tcp => Endpoint::tcp(addresses::fresh()?, "r0/0"),
    };
    for node in &nodes {
        node.prepare(protocol, addresses)?;
    }
    let mut running = Running {
        contender: Contender::Tandem(protocol),
        endpoint: front.clone(),
        servers: Vec::new(),
        notes: Vec::new(),
        nodes: nodes.to_vec(),
        _dir: dir,
    };
    for node in &nodes {
        let log = running._dir.path().join(format!("{}.log", node.name));
        let mut command = node.command();
        command.args(["daemon", "--with-parent", "--log", "warn", "--root"]);
        command.arg(&node.root);
        if let (super::Client::Tcp, crate::load::Address::Tcp(address)) =
            (site.client, &front.address)
            && node.name == "alpha"
        {
            command.args(["--nbd-tcp", &address.to_string()]);
        }
        running
            .servers
            .push(Server::start(command, node.name, &log)?);
    }
    bring_up(&nodes, running._dir.path(), stop)?;
    let served = || front.probe().ok();
    let logs = || logs_in(running._dir.path());
    wait_for("Tandem's export", stop, served, logs)?;
    Ok(running)
}

/// Both disks are equal already: no first sync.
fn bring_up(nodes: &[Node; 2], dir: &Path, stop: &Stop) -> Result<(), Failure> {
    let logs = || logs_in(dir);
    for node in nodes {
        let control = node.root.join("run/tandem/control.sock");
        let up = || std::os::unix::net::UnixStream::connect(&control).ok();
        wait_for("Tandem's control socket", stop, up, logs)?;
        node.must(&["up", RESOURCE])?;
    }
    let reached = |disks: &str| {
        for node in nodes {
            let what = format!("Connected {disks} on {}", node.name);
            let there = || node.is_in("Connected", disks).then_some(());
            wait_for(&what, stop, there, logs)?;
        }
        Ok::<(), Failure>(())
    };
    reached("Inconsistent/Inconsistent")?;
    nodes[0].must(&["new-current-uuid", "--clear-bitmap", RESOURCE])?;
    reached("UpToDate/UpToDate")?;
    nodes[0].must(&["primary", RESOURCE]).map(drop)
}

impl Node {
    fn prepare(&self, protocol: char, addresses: [SocketAddr; 2]) -> Result<(), Failure> {
        let etc = self.root.join("etc");
        let doing = format!("write a configuration below {}", self.root.display());
        std::fs::create_dir_all(&etc).map_err(Failure::system(doing.clone()))?;
        let disk = self.root.join("disk.img");
        disks::make(&disk, Tail::Metadata)?;
        let [alpha, bravo] = addresses;
        let text = format!(
            "global {{ usage-count no; }}\nresource {RESOURCE} {{\n  net {{ protocol {protocol}; connect-int 1; }}\n  \
             disk {{ al-extents {AL_EXTENTS}; }}\n  volume 0 {{\n    device /dev/drbd0 minor 0;\n    disk {};\n    \
             meta-disk internal;\n  }}\n  on alpha {{ address {alpha}; }}\n  on bravo {{ address {bravo}; }}\n}}\n",
            disk.display()
        );
        std::fs::write(etc.join("drbd.conf"), text).map_err(Failure::system(doing))?;
        // The disk is full of data on purpose.
        self.must(&["create-md", "--force", RESOURCE]).map(drop)
    }

    /// The program, as this node.
    fn command(&self) -> Command {
        let mut command = match (&self.program, std::env::current_exe()) {
            (Some(program), _) => Command::new(program),
            (None, Ok(own)) => {
                let mut command = Command::new(own);
                command.arg(INNER_WORD);
                command
            }
            (None, Err(_)) => Command::new("tandem"),
        };
        command.env("__DRBD_NODE__", self.name);
        command.env_remove("RUST_LOG");
        command
    }

    fn adm(&self, words: &[&str]) -> Result<std::process::Output, Failure> {
        let mut command = self.command();
        command.arg("adm").arg("--root").arg(&self.root).args(words);
        command.stdin(Stdio::null());
        let doing = format!("run tandem adm {}", words.join(" "));
        command.output().map_err(Failure::system(doing))
    }

    fn must(&self, words: &[&str]) -> Result<String, Failure> {
        let output = self.adm(words)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = format!("{}: tandem adm {}: {said}", self.name, words.join(" "));
        Err(Failure::Unexpected(text))
    }

    fn is_in(&self, connection: &str, disks: &str) -> bool {
        let says = |word: &str, wanted: &str| {
            let text = self.must(&[word, RESOURCE]).unwrap_or_default();
            text.lines()
                .next()
                .is_some_and(|line| line.trim() == wanted)
        };
        says("cstate", connection) && says("dstate", disks)
    }

    /// Writes of its activity log and bitmap so far.
    pub(super) fn metadata_writes(&self) -> u64 {
        let text = self.must(&["proc"]).unwrap_or_default();
        proc_counter(&text, "al:") + proc_counter(&text, "bm:")
    }
}

/// A counter of the only volume in the text of `/proc/drbd`; 0 when it is not there.
fn proc_counter(text: &str, name: &str) -> u64 {
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with("ns:"));
    line.unwrap_or_default()
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_the_text_of_proc() {
        let text = "version: 8.4.11-1 (api:1/proto:86-101)\n\n 0: cs:Connected ro:Primary/Secondary\n    \
            ns:648 nr:0 dw:0 dr:649 al:17 bm:4 lo:0 pe:3 ua:0 ap:0 ep:1 wo:f oos:0\n";
        assert_eq!(
            (proc_counter(text, "al:"), proc_counter(text, "bm:")),
            (17, 4)
        );
        assert_eq!(proc_counter("", "al:"), 0);
    }
}
