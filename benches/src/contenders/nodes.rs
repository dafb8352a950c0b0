//! Two Tandem nodes on this machine, started with an administrator's own words.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use tandem_daemon::control::ControlClient;
use tandem_daemon::control::messages::{ResourceReport, VolumeReport};
use tempfile::TempDir;

use super::{addresses, logs_in};
use crate::Failure;
use crate::disks::{self, Tail};
use crate::load::Endpoint;
use crate::process::{READY_LIMIT, Server, Stop, wait_within};

/// The first word with which this program is `tandem`.
pub const INNER_WORD: &str = "tandem";

/// The name of the first resource, and of the only one where nothing else is said.
pub(crate) const RESOURCE: &str = "r0";

const NAMES: [&str; 2] = ["alpha", "bravo"];

/// What the backing files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Filled with the same data on both nodes.
    Filled(u64),
    /// Without any blocks.
    Sparse(u64),
}

/// Addresses of a resource's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Where each node listens.
    pub(crate) own: [SocketAddr; 2],
    /// Where its peer finds it: the same, or a proxy in between.
    pub(crate) seen: [SocketAddr; 2],
}

impl Link {
    /// Without anything in between.
    pub(crate) fn direct() -> Result<Link, Failure> {
        let own = [addresses::fresh()?, addresses::fresh()?];
        Ok(Link { own, seen: own })
    }

    /// With room for a proxy in front of each node.
    pub(crate) fn with_proxies() -> Result<Link, Failure> {
        Ok(Link {
            own: [addresses::fresh()?, addresses::fresh()?],
            seen: [addresses::fresh()?, addresses::fresh()?],
        })
    }
}

/// Options of the sections `net` and `disk`, in the words of drbd.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Words {
    /// Of the section `net`, each with its semicolon.
    pub(crate) net: String,
    /// Of the section `disk`.
    pub(crate) disk: String,
}

impl Words {
    /// For a report: `net: protocol C; disk: defaults`.
    pub(crate) fn in_words(&self) -> String {
        let section = |text: &str| {
            if text.is_empty() {
                String::from("defaults")
            } else {
                text.trim_end_matches(';').to_owned()
            }
        };
        format!("net: {}; disk: {}", section(&self.net), section(&self.disk))
    }
}

/// How two nodes are set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// The backing file of every resource.
    pub(crate) backing: Backing,
    /// The link of every resource: one resource for each.
    pub(crate) links: Vec<Link>,
    /// Options of every resource.
    pub(crate) words: Words,
    /// Where the first node serves NBD besides its Unix socket.
    pub(crate) nbd_tcp: Option<SocketAddr>,
}

impl Setup {
    /// One resource with a direct link and default options.
    pub(crate) fn plain(backing: Backing) -> Result<Setup, Failure> {
        Ok(Setup {
            backing,
            links: vec![Link::direct()?],
            words: Words::default(),
            nbd_tcp: None,
        })
    }
}

/// A node: its own root directory.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// As the configuration calls it.
    pub(crate) name: &'static str,
    root: PathBuf,
    program: Option<PathBuf>,
}

/// Two nodes; dropping them ends their daemons and removes their files.
#[derive(Debug)]
pub(crate) struct Nodes {
    /// alpha and bravo.
    pub(crate) nodes: [Node; 2],
    /// Their daemons, where they run.
    pub(crate) servers: [Option<Server>; 2],
    setup: Setup,
    /// Held for its end, after the daemons.
    pub(crate) dir: TempDir,
}

impl Nodes {
    /// Writes files, configurations and fresh metadata; no daemon runs yet.
    ///
    /// # Errors
    /// When a file cannot be made or a command fails.
    pub(crate) fn make(
        setup: Setup,
        program: Option<&PathBuf>,
        dir: TempDir,
    ) -> Result<Nodes, Failure> {
        let nodes = NAMES.map(|name| Node {
            name,
            root: dir.path().join(name),
            program: program.cloned(),
        });
        let made = Nodes {
            nodes,
            servers: [None, None],
            setup,
            dir,
        };
        for node in &made.nodes {
            let etc = node.root.join("etc");
            let doing = format!("make {}", etc.display());
            std::fs::create_dir_all(&etc).map_err(Failure::system(doing))?;
            for number in 0..made.setup.links.len() {
                let disk = node.disk(number);
                match made.setup.backing {
                    Backing::Filled(bytes) => disks::make(&disk, bytes, Tail::Metadata)?,
                    Backing::Sparse(bytes) => disks::make_sparse(&disk, bytes, Tail::Metadata)?,
                }
            }
        }
        made.write_configurations()?;
        for node in &made.nodes {
            // The disk may be full of data on purpose.
            node.must(&["create-md", "--force", "all"])?;
        }
        Ok(made)
    }

    fn write_configurations(&self) -> Result<(), Failure> {
        for (which, node) in self.nodes.iter().enumerate() {
            let disks = (0..self.setup.links.len()).map(|number| node.disk(number));
            let text = configuration(&self.setup, which, &disks.collect::<Vec<_>>());
            let path = node.root.join("etc/drbd.conf");
            let doing = format!("write {}", path.display());
            std::fs::write(path, text).map_err(Failure::system(doing))?;
        }
        Ok(())
    }

    /// Starts the daemon of one node and waits until it can be spoken to.
    pub(crate) fn start(&mut self, which: usize, stop: &Stop) -> Result<(), Failure> {
        let node = &self.nodes[which];
        let log = self.dir.path().join(format!("{}.log", node.name));
        let mut command = node.command();
        command.args(["daemon", "--with-parent", "--log", "warn", "--root"]);
        command.arg(&node.root);
        if let (Some(address), 0) = (self.setup.nbd_tcp, which) {
            command.args(["--nbd-tcp", &address.to_string()]);
        }
        let server = Server::start(command, node.name, &log)?;
        self.servers[which] = Some(server);
        let up = || ControlClient::connect_root(&node.root).ok().map(drop);
        let what = format!("the control socket of {}", node.name);
        wait_within(READY_LIMIT, &what, stop, up, || self.logs())
    }

    /// Starts both daemons.
    pub(crate) fn start_both(&mut self, stop: &Stop) -> Result<(), Failure> {
        self.start(0, stop)?;
        self.start(1, stop)
    }

    /// Brings all resources up. Both disks are equal already: no first sync.
    pub(crate) fn bring_up(&self, stop: &Stop) -> Result<(), Failure> {
        for node in &self.nodes {
            node.must(&["up", "all"])?;
        }
        let resources = || (0..self.setup.links.len()).map(|number| format!("r{number}"));
        for resource in resources() {
            self.reached(&resource, "Inconsistent/Inconsistent", READY_LIMIT, stop)?;
            self.nodes[0].must(&["new-current-uuid", "--clear-bitmap", &resource])?;
        }
        for resource in resources() {
            self.reached(&resource, "UpToDate/UpToDate", READY_LIMIT, stop)?;
        }
        Ok(())
    }

    /// Makes, starts and brings up in one.
    pub(crate) fn running(
        setup: Setup,
        program: Option<&PathBuf>,
        dir: TempDir,
        stop: &Stop,
    ) -> Result<Nodes, Failure> {
        let mut nodes = Nodes::make(setup, program, dir)?;
        nodes.start_both(stop)?;
        nodes.bring_up(stop)?;
        Ok(nodes)
    }

    /// Takes everything down in order and ends both daemons, as before a reboot.
    pub(crate) fn shut_down(&mut self) -> Result<(), Failure> {
        for node in &self.nodes {
            node.must(&["down", "all"])?;
        }
        self.servers = [None, None];
        Ok(())
    }

    /// Other options for all resources; both nodes are connected again.
    pub(crate) fn change(&mut self, words: Words, stop: &Stop) -> Result<(), Failure> {
        self.setup.words = words;
        self.write_configurations()?;
        // On both: a node that goes on dialling keeps the options of the connection that it had.
        for words in [["disconnect", "all"], ["adjust", "all"]] {
            for node in &self.nodes {
                node.must(&words)?;
            }
        }
        self.reached(RESOURCE, "UpToDate/UpToDate", READY_LIMIT, stop)
    }

    /// Waits until both nodes are Connected with these disks.
    pub(crate) fn reached(
        &self,
        resource: &str,
        disks: &str,
        limit: Duration,
        stop: &Stop,
    ) -> Result<(), Failure> {
        for node in self.nodes.iter().rev() {
            let what = format!("Connected {disks} of {resource} on {}", node.name);
            let there = |volume: &VolumeReport| {
                volume.connection == "Connected" && disks_of(volume) == disks
            };
            self.until(node, resource, limit, &what, stop, there)?;
        }
        Ok(())
    }

    /// Waits until a node says what is wanted of the only volume of a resource.
    pub(crate) fn until(
        &self,
        node: &Node,
        resource: &str,
        limit: Duration,
        what: &str,
        stop: &Stop,
        wanted: impl Fn(&VolumeReport) -> bool,
    ) -> Result<(), Failure> {
        let looked = || {
            let volume = node.volume(resource).ok()?;
            wanted(&volume).then_some(())
        };
        wait_within(limit, what, stop, looked, || {
            let states = self.nodes.iter().map(|node| node.state_words(resource));
            let states: Vec<String> = states.collect();
            format!("{}\n{}", states.join("\n"), self.logs())
        })
    }

    /// The daemon of a node.
    ///
    /// # Errors
    /// When it was ended.
    pub(crate) fn server(&self, which: usize) -> Result<&Server, Failure> {
        self.servers[which].as_ref().ok_or_else(|| {
            let name = self.nodes[which].name;
            Failure::Unexpected(format!("the daemon of {name} was ended before"))
        })
    }

    /// The logs of both daemons, for messages.
    pub(crate) fn logs(&self) -> String {
        logs_in(self.dir.path())
    }
}

/// `own/peer`, as `dstate` says it.
fn disks_of(volume: &VolumeReport) -> String {
    format!("{}/{}", volume.disk, volume.peer_disk)
}

/// drbd.conf of one node: it listens where it is, and dials where its peer is seen.
fn configuration(setup: &Setup, which: usize, disks: &[PathBuf]) -> String {
    let mut text = String::from("global { usage-count no; }\n");
    let Words { net, disk } = &setup.words;
    for (number, (link, path)) in setup.links.iter().zip(disks).enumerate() {
        let mut addresses = link.seen;
        addresses[which] = link.own[which];
        let [alpha, bravo] = addresses;
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "resource r{number} {{\n  net {{ {net} }}\n  disk {{ {disk} }}\n  volume 0 {{\n    \
             device /dev/drbd{number} minor {number};\n    disk {};\n    meta-disk internal;\n  }}\n  \
             on alpha {{ address {alpha}; }}\n  on bravo {{ address {bravo}; }}\n}}\n",
            path.display()
        );
    }
    text
}

impl Node {
    fn disk(&self, number: usize) -> PathBuf {
        self.root.join(format!("r{number}.img"))
    }

    /// Where it serves a resource while it is Primary.
    pub(crate) fn endpoint(&self, resource: &str) -> Endpoint {
        let socket = self.root.join("run/tandem/nbd.sock");
        Endpoint::unix(socket, &format!("{resource}/0"))
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

    /// Runs a command that must succeed.
    ///
    /// # Errors
    /// With what it said, when it does not.
    pub(crate) fn must(&self, words: &[&str]) -> Result<String, Failure> {
        let output = self.adm(words)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = format!("{}: tandem adm {}: {said}", self.name, words.join(" "));
        Err(Failure::Unexpected(text))
    }

    /// What the daemon says of a resource now.
    ///
    /// # Errors
    /// When it does not answer or does not know the resource.
    pub(crate) fn report(&self, resource: &str) -> Result<ResourceReport, Failure> {
        let failed = |text: String| Failure::Unexpected(format!("{}: {text}", self.name));
        let mut client =
            ControlClient::connect_root(&self.root).map_err(|error| failed(error.to_string()))?;
        let answer = client
            .status(Some(resource))
            .map_err(|error| failed(error.to_string()))?;
        let mut report = answer.map_err(|refusal| failed(refusal.text))?;
        let first = report.resources.pop();
        first.ok_or_else(|| failed(format!("the status of {resource} is empty")))
    }

    /// What the daemon says of the only volume of a resource now.
    ///
    /// # Errors
    /// As [`Node::report`]; when there is no volume.
    pub(crate) fn volume(&self, resource: &str) -> Result<VolumeReport, Failure> {
        let volume = self.report(resource)?.volumes.pop();
        let text = format!("{}: {resource} has no volume", self.name);
        volume.ok_or(Failure::Unexpected(text))
    }

    fn state_words(&self, resource: &str) -> String {
        match self.volume(resource) {
            Ok(volume) => format!("{}: {} {}", self.name, volume.connection, disks_of(&volume)),
            Err(failure) => failure.to_string(),
        }
    }

    /// Writes of the activity log and the bitmap of the first resource so far.
    pub(super) fn metadata_writes(&self) -> u64 {
        self.volume(RESOURCE)
            .map_or(0, |volume| volume.counters.al + volume.counters.bm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_listens_where_it_is_and_dials_where_its_peer_is_seen() {
        let address = |last: u8| SocketAddr::from(([127, 0, 0, last], 7790));
        let setup = Setup {
            backing: Backing::Sparse(1 << 20),
            links: vec![Link {
                own: [address(1), address(2)],
                seen: [address(3), address(4)],
            }],
            words: Words {
                net: String::from("protocol C;"),
                disk: String::from("al-extents 67;"),
            },
            nbd_tcp: None,
        };
        let disks = [PathBuf::from("/d/r0.img")];
        let alpha = configuration(&setup, 0, &disks);
        assert!(alpha.contains("on alpha { address 127.0.0.1:7790; }"));
        assert!(alpha.contains("on bravo { address 127.0.0.4:7790; }"));
        let bravo = configuration(&setup, 1, &disks);
        assert!(bravo.contains("on alpha { address 127.0.0.3:7790; }"));
        assert!(bravo.contains("on bravo { address 127.0.0.2:7790; }"));
        assert!(bravo.contains("net { protocol C; }") && bravo.contains("disk { al-extents 67; }"));
        assert!(bravo.contains("disk /d/r0.img;"));
    }

    #[test]
    fn options_are_said_in_words() {
        let mut words = Words::default();
        assert_eq!(words.in_words(), "net: defaults; disk: defaults");
        words.disk = String::from("c-plan-ahead 0; c-min-rate 0;");
        assert_eq!(
            words.in_words(),
            "net: defaults; disk: c-plan-ahead 0; c-min-rate 0"
        );
    }
}
