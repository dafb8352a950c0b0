//! The demo's two nodes: directories, configuration, daemons. Nothing of it survives the demo, whatever happens, unless
//! it is asked to stay.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tandem_daemon::control::messages::{Call, ResourceReport};

use super::stamps::{BLOCK, fill};
use crate::daemon;
use crate::failure::{CANNOT_RUN, Failure};
use crate::invocation::Invocation;

/// Name of the demo's resource.
pub(crate) const RESOURCE: &str = "demo";

/// Longest run of one administration command.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// Time that a daemon gets to end by itself.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// Whether the pair outlives the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stay {
    /// It is stopped and its files are removed.
    No,
    /// It goes on running.
    Yes,
}

/// One node.
#[derive(Debug)]
pub(crate) struct NodeOfPair {
    pub(crate) name: &'static str,
    pub(crate) invocation: Invocation,
    pub(crate) disk: PathBuf,
    child: Option<Child>,
}

/// Both nodes.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) directory: PathBuf,
    pub(crate) alpha: NodeOfPair,
    pub(crate) beta: NodeOfPair,
    stay: Stay,
    finished: bool,
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        CANNOT_RUN,
        format!("cannot {what} {}: {error}", path.display()),
    )
}

/// Two ports that nobody uses now.
fn free_ports() -> Result<(u16, u16), Failure> {
    let take = || TcpListener::bind("127.0.0.1:0").and_then(|one| Ok((one.local_addr()?, one)));
    let found = take().and_then(|one| Ok((one, take()?)));
    let ((first, _held), (second, _also_held)) = found
        .map_err(|error| Failure::new(CANNOT_RUN, format!("cannot find free ports: {error}")))?;
    Ok((first.port(), second.port()))
}

fn configuration(alpha: &NodeOfPair, beta: &NodeOfPair, ports: (u16, u16)) -> String {
    let host = |node: &NodeOfPair, port: u16| {
        format!(
            "    on {} {{\n        device    /dev/drbd0 minor 0;\n        disk      \"{}\";\n        meta-disk internal;\n        \
             address   127.0.0.1:{port};\n    }}\n",
            node.name,
            node.disk.display()
        )
    };
    format!(
        "# The pair of `tandem demo`.\nresource {RESOURCE} {{\n    net {{\n        protocol C;\n        # A dead peer is \
         seen soon.\n        timeout 20;\n        connect-int 3;\n        ping-int 3;\n    }}\n    disk {{\n        # A fixed \
         rate: slow enough to be watched.\n        c-plan-ahead 0;\n        resync-rate 24M;\n    }}\n{}{}}}\n",
        host(alpha, ports.0),
        host(beta, ports.1)
    )
}

impl NodeOfPair {
    fn new(program: &Invocation, directory: &Path, name: &'static str) -> NodeOfPair {
        let root = directory.join(name);
        NodeOfPair {
            name,
            disk: root.join("disk"),
            invocation: Invocation {
                root: Some(root),
                config_file: None,
                ..program.clone()
            },
            child: None,
        }
    }

    /// Writes etc/hostname, etc/drbd.conf and the disk.
    fn prepare(
        &self,
        configuration: &str,
        disk_bytes: u64,
        seed: Option<u64>,
    ) -> Result<(), Failure> {
        let etc = self.invocation.places().etc_dir();
        std::fs::create_dir_all(&etc).map_err(|error| cannot("create", &etc, &error))?;
        for (file, text) in [
            ("hostname", format!("{}\n", self.name)),
            ("drbd.conf", configuration.to_owned()),
        ] {
            let path = etc.join(file);
            std::fs::write(&path, text).map_err(|error| cannot("write", &path, &error))?;
        }
        let failed = |error| cannot("write", &self.disk, &error);
        let mut disk = File::create(&self.disk).map_err(failed)?;
        if let Some(seed) = seed {
            let mut block = vec![0; BLOCK];
            for number in 0..disk_bytes / BLOCK as u64 {
                fill(&mut block, seed, number, 0);
                disk.write_all(&block).map_err(failed)?;
            }
        }
        disk.set_len(disk_bytes).map_err(failed)
    }

    /// Starts its daemon and waits until it answers.
    pub(crate) fn start(&mut self, stay: Stay) -> Result<(), Failure> {
        let options: &[&str] = match stay {
            Stay::No => &["--with-parent"],
            Stay::Yes => &["--detached"],
        };
        let mut child = daemon::spawn(&self.invocation, options)?;
        let answered = daemon::wait_until_it_answers(&self.invocation, &mut child);
        self.child = Some(child);
        answered.map(|_| ())
    }

    /// Ends its daemon with SIGKILL, as a power cut would.
    pub(crate) fn kill(&mut self) -> Result<u32, Failure> {
        let Some(mut child) = self.child.take() else {
            return Err(Failure::new(
                CANNOT_RUN,
                format!("{} does not run", self.name),
            ));
        };
        let pid = child.id();
        child
            .kill()
            .and_then(|()| child.wait())
            .map_err(|error| Failure::new(CANNOT_RUN, format!("cannot kill {pid}: {error}")))?;
        Ok(pid)
    }

    /// The administration command as a person would type it.
    pub(crate) fn command(&self, words: &str) -> String {
        self.invocation.adm(words)
    }

    /// Runs an administration command as a process of its own, exactly as typed.
    pub(crate) fn adm(&self, words: &str) -> Result<(), Failure> {
        let program = std::env::current_exe().map_err(|error| {
            Failure::new(CANNOT_RUN, format!("cannot find the own program: {error}"))
        })?;
        let mut command = Command::new(program);
        command
            .arg("adm")
            .arg("--root")
            .arg(self.invocation.root_dir())
            .args(words.split(' '))
            // Who a node is stands in its etc/hostname.
            .env_remove("__DRBD_NODE__")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let failed =
            |why: String| Failure::new(CANNOT_RUN, format!("{} {why}", self.command(words)));
        let mut child = command
            .spawn()
            .map_err(|error| failed(format!("cannot be started: {error}")))?;
        let deadline = Instant::now() + COMMAND_DEADLINE;
        // The texts of these commands fit a pipe, so it cannot block on them.
        while child
            .try_wait()
            .map_err(|error| failed(error.to_string()))?
            .is_none()
        {
            if Instant::now() > deadline {
                // It is not needed any more; whether it ended by itself just now does not matter.
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed("did not end in time".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = child
            .wait_with_output()
            .map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let mut failure = failed(format!("failed: {}", output.status));
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            failure = failure.line(format!("  {line}"));
        }
        Err(failure)
    }

    /// Its view of the resource.
    pub(crate) fn report(&self) -> Result<ResourceReport, Failure> {
        let mut client = daemon::connect(&self.invocation)?;
        let status = client
            .status(Some(RESOURCE))
            .map_err(|error| daemon::failed(&self.invocation, &error))?;
        status
            .ok()
            .and_then(|report| report.resources.into_iter().next())
            .ok_or_else(|| Failure::new(CANNOT_RUN, format!("{} has no resource", self.name)))
    }

    /// Ends the daemon in order, and in any case.
    fn end(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        if let Ok(mut client) = daemon::connect(&self.invocation) {
            // If it does not listen, it is killed below.
            let _ = client.command(Call::Shutdown, Some(END_DEADLINE));
            let deadline = Instant::now() + END_DEADLINE;
            while Instant::now() < deadline {
                if matches!(child.try_wait(), Ok(Some(_))) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Pair {
    /// Makes both nodes, with data on alpha's disk.
    pub(crate) fn create(
        program: &Invocation,
        directory: PathBuf,
        disk_bytes: u64,
        seed: u64,
        stay: Stay,
    ) -> Result<Pair, Failure> {
        let taken = directory.join("alpha").exists() || directory.join("beta").exists();
        if taken {
            return Err(Failure::new(
                CANNOT_RUN,
                format!("{} holds another demo already", directory.display()),
            )
            .next(format!("rm -r {}", directory.display())));
        }
        let pair = Pair {
            alpha: NodeOfPair::new(program, &directory, "alpha"),
            beta: NodeOfPair::new(program, &directory, "beta"),
            directory,
            stay,
            finished: false,
        };
        let text = configuration(&pair.alpha, &pair.beta, free_ports()?);
        pair.alpha.prepare(&text, disk_bytes, Some(seed))?;
        pair.beta.prepare(&text, disk_bytes, None)?;
        Ok(pair)
    }

    /// Everything went well: a pair that is to stay is left alone.
    pub(crate) fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if self.finished && self.stay == Stay::Yes {
            return;
        }
        self.alpha.end();
        self.beta.end();
        for node in [&self.alpha, &self.beta] {
            // What cannot be removed is in a directory for temporary files, whose name was printed.
            let _ = std::fs::remove_dir_all(node.invocation.root_dir());
        }
        // Only if it is empty: it may be the user's own.
        let _ = std::fs::remove_dir(&self.directory);
    }
}
