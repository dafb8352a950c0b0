//! The programs that Tandem is compared with, each with the options that suit it best.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use super::qmp::Monitor;
use super::{Client, Contender, FarSide, Medium, Running, Site, addresses, logs_in};
use crate::Failure;
use crate::disks::{self, Tail};
use crate::load::{Address, Endpoint};
use crate::process::{Server, Stop, bound_to_us, wait_for};

const EXPORT: &str = "x";

pub(super) fn start(
    peer: Contender,
    site: &Site,
    dir: TempDir,
    stop: &Stop,
) -> Result<Running, Failure> {
    let near = dir.path().join("near.img");
    disks::make(&near, site.device_bytes, Tail::None)?;
    let front = match site.client {
        Client::Unix => Endpoint::unix(dir.path().join("front.sock"), EXPORT),
        Client::Tcp => Endpoint::tcp(addresses::fresh()?, EXPORT),
    };
    let mut running = Running {
        contender: peer,
        endpoint: front.clone(),
        servers: Vec::new(),
        notes: Vec::new(),
        nodes: Vec::new(),
        _dir: dir,
    };
    let place = running._dir.path().to_owned();
    match peer {
        Contender::Nbdkit => {
            running.note_page_cache(site, "nbdkit");
            let command = nbdkit(&near, &front);
            running.serve(command, "server", &front, stop)?;
        }
        Contender::QemuNbd => {
            let command = qemu_nbd(&near, &front, site.medium);
            running.serve(command, "server", &front, stop)?;
        }
        Contender::Quorum(side) | Contender::Mirror(side) => {
            let far_file = place.join("far.img");
            disks::make(&far_file, site.device_bytes, Tail::None)?;
            let address = addresses::fresh()?;
            let far = Endpoint::tcp(address, EXPORT);
            let command = match side {
                FarSide::Nbdkit => {
                    running.note_page_cache(site, "the far side");
                    nbdkit(&far_file, &far)
                }
                FarSide::QemuNbd => qemu_nbd(&far_file, &far, site.medium),
            };
            running.serve(command, "far side", &far, stop)?;
            let command = storage_daemon(peer, &near, address, &front, site.medium, &place);
            running.serve(command, "near side", &front, stop)?;
            if matches!(peer, Contender::Mirror(_)) {
                mirror(&place.join("monitor.sock"), stop)?;
            }
        }
        Contender::Tandem(_) => {
            let text =
                String::from("a Tandem pair is no peer of itself; this is a bug of the harness");
            return Err(Failure::Unexpected(text));
        }
    }
    Ok(running)
}

impl Running {
    fn note_page_cache(&mut self, site: &Site, who: &str) {
        if site.medium == Medium::Disk {
            let text =
                format!("{who} knows no O_DIRECT: its writes end in the page cache until a flush");
            self.notes.push(text);
        }
    }

    /// Starts a server and waits until its export is there.
    fn serve(
        &mut self,
        command: Command,
        role: &'static str,
        endpoint: &Endpoint,
        stop: &Stop,
    ) -> Result<(), Failure> {
        let dir = self._dir.path().to_owned();
        let log = dir.join(format!("{}.log", role.replace(' ', "-")));
        self.servers.push(Server::start(command, role, &log)?);
        let what = format!("the {role} of {}", self.contender.name());
        let served = || {
            let ended = self.servers.last_mut().is_some_and(Server::has_ended);
            let there = endpoint.probe().is_ok();
            (ended || there).then_some(there)
        };
        if wait_for(&what, stop, served, || logs_in(&dir))? {
            return Ok(());
        }
        let text = format!("{what} ended at once\n{}", logs_in(&dir));
        Err(Failure::Unexpected(text))
    }
}

fn nbdkit(file: &Path, endpoint: &Endpoint) -> Command {
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--newstyle"]);
    match &endpoint.address {
        Address::Unix(path) => command.arg("--unix").arg(path),
        Address::Tcp(address) => command
            .arg(format!("--ipaddr={}", address.ip()))
            .arg(format!("--port={}", address.port())),
    };
    command.arg("file").arg(file);
    command
}

fn qemu_nbd(file: &Path, endpoint: &Endpoint, medium: Medium) -> Command {
    let mut command = bound_to_us("qemu-nbd");
    command.args([
        "--persistent",
        "--shared=8",
        "--format=raw",
        "--export-name",
    ]);
    command.arg(&endpoint.export);
    match medium {
        // There every asynchronous request would be handed to a thread anyway.
        Medium::Tmpfs => command.args(["--cache=writeback", "--aio=threads"]),
        Medium::Disk => command.args(["--cache=none", "--aio=io_uring"]),
    };
    match &endpoint.address {
        Address::Unix(path) => command.arg("--socket").arg(path),
        Address::Tcp(address) => command
            .arg(format!("--bind={}", address.ip()))
            .arg(format!("--port={}", address.port())),
    };
    command.arg(file);
    command
}

fn storage_daemon(
    peer: Contender,
    near: &Path,
    far: SocketAddr,
    front: &Endpoint,
    medium: Medium,
    dir: &Path,
) -> Command {
    let (aio, direct) = match medium {
        Medium::Tmpfs => ("threads", false),
        Medium::Disk => ("io_uring", true),
    };
    let near = json!({
        "driver": "file", "node-name": "near", "filename": near, "aio": aio, "cache": {"direct": direct},
    });
    let far = json!({
        "driver": "nbd", "node-name": "far", "export": EXPORT,
        "server": {"type": "inet", "host": far.ip().to_string(), "port": far.port().to_string()},
    });
    // Writes to both; fifo: reads from the near file alone, as Tandem does.
    let both = json!({
        "driver": "quorum", "node-name": "both", "children": ["near", "far"],
        "vote-threshold": 2, "read-pattern": "fifo",
    });
    let mut command = bound_to_us("qemu-storage-daemon");
    command.arg("--blockdev").arg(near.to_string());
    command.arg("--blockdev").arg(far.to_string());
    let served = if matches!(peer, Contender::Quorum(_)) {
        command.arg("--blockdev").arg(both.to_string());
        "both"
    } else {
        let socket = dir.join("monitor.sock");
        let monitor = format!(
            "socket,id=monitor,path={},server=on,wait=off",
            socket.display()
        );
        command.arg("--chardev").arg(monitor);
        command.args(["--monitor", "chardev=monitor"]);
        "near"
    };
    let server = match &front.address {
        Address::Unix(path) => json!({
            "addr": {"type": "unix", "path": path}, "max-connections": 16,
        }),
        Address::Tcp(address) => json!({
            "addr": {"type": "inet", "host": address.ip().to_string(), "port": address.port().to_string()},
            "max-connections": 16,
        }),
    };
    command.arg("--nbd-server").arg(server.to_string());
    let export = json!({
        "type": "nbd", "id": "export", "node-name": served, "name": EXPORT, "writable": true,
    });
    command.arg("--export").arg(export.to_string());
    command
}

/// Starts a mirror job on files that are equal already, and waits until it copies each write before it is answered.
fn mirror(socket: &Path, stop: &Stop) -> Result<(), Failure> {
    let mut monitor = Monitor::connect(socket)?;
    let job = json!({
        "job-id": "mirror", "device": "near", "target": "far", "sync": "none", "copy-mode": "write-blocking",
    });
    monitor.execute("blockdev-mirror", job)?;
    let ready = || {
        let jobs = monitor.execute("query-block-jobs", json!({})).ok()?;
        let ready = jobs.get(0)?.get("ready")?.as_bool()?;
        ready.then_some(())
    };
    wait_for("the mirror job", stop, ready, String::new)
}
