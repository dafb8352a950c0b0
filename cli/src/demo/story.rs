//! The demo, step by step.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tandem_daemon::control::messages::ResourceReport;

use super::nbd_client::{NbdClient, NbdError};
use super::pair::{NodeOfPair, Pair, RESOURCE, Stay};
use super::screen::{self, Live, grouped};
use super::stamps::{BLOCK, Findings, Record};
use super::writers::{Ended, Writers, read_back};
use super::{Interrupt, Options, WRONG_DATA};
use crate::failure::{CANNOT_RUN, Failure, Outcome};
use crate::invocation::Invocation;
use crate::output::{err, out_line};
use crate::status::human::size;

/// Connections of the writing clients.
const CONNECTIONS: usize = 4;

/// How often the nodes are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// A state that does not come within this time does not come.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the survivor is written to while the other is dead.
const ALONE: Duration = Duration::from_secs(2);

/// Wrong blocks that are printed one by one.
const WRONG_SHOWN: usize = 5;

struct Story<'a> {
    pair: Pair,
    record: Record,
    interrupt: &'a Interrupt,
    options: &'a Options,
}

/// What the end tells.
#[derive(Debug, Default)]
struct Numbers {
    device_bytes: u64,
    acknowledged: u64,
    in_flight: usize,
    failover: Duration,
    alone: u64,
    resynced_bytes: u64,
    after_crash: Findings,
    at_end: Findings,
}

/// Tells all of it.
pub(super) fn tell(program: &Invocation, options: &Options, interrupt: &Interrupt) -> Outcome {
    let begun = Instant::now();
    let seed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |since| u64::try_from(since.as_nanos()).unwrap_or(1));
    let directory = options.dir.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("tandem-demo-{}", std::process::id()))
    });
    let directory = std::path::absolute(&directory).unwrap_or(directory);
    let stay = if options.keep { Stay::Yes } else { Stay::No };
    out_line(&format!(
        "Two nodes, alpha and beta, below {}: each with a daemon of its own and a disk of {} MiB in a file.",
        directory.display(),
        options.size
    ));
    let pair = Pair::create(program, directory, options.size << 20, seed, stay)?;
    let mut story = Story {
        pair,
        record: Record::new(seed, 0),
        interrupt,
        options,
    };
    let mut numbers = Numbers::default();
    story.connect(stay)?;
    story.first_sync(&mut numbers)?;
    story.write_and_kill(&mut numbers)?;
    story.fail_over(&mut numbers)?;
    story.write_alone(&mut numbers)?;
    story.come_back(stay, &mut numbers)?;
    story.compare_disks(&mut numbers)?;
    story.summary(&numbers, begun.elapsed());
    if options.keep {
        story.how_to_go_on()?;
    }
    story.pair.finish();
    Ok(())
}

fn nbd(error: &NbdError) -> Failure {
    Failure::new(CANNOT_RUN, error.to_string())
}

/// The URI of the device on a node that is Primary.
fn uri(node: &NodeOfPair) -> Result<String, Failure> {
    let report = node.report()?;
    let volume = report.volumes.first();
    volume
        .and_then(|volume| volume.nbd.first().cloned())
        .ok_or_else(|| Failure::new(CANNOT_RUN, format!("{} serves no NBD device", node.name)))
}

fn disks(report: &ResourceReport) -> Option<(&str, &str)> {
    let volume = report.volumes.first()?;
    Some((&volume.disk, &volume.peer_disk))
}

impl Story<'_> {
    /// Looks at a node until `is` holds.
    fn wait_for(
        &self,
        node: &NodeOfPair,
        what: &str,
        mut is: impl FnMut(&ResourceReport) -> bool,
    ) -> Result<ResourceReport, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.interrupt.check()?;
            let report = node.report()?;
            if is(&report) {
                return Ok(report);
            }
            if Instant::now() > deadline {
                let failure = Failure::new(
                    CANNOT_RUN,
                    format!(
                        "waited {} s for {what} in vain; {}",
                        PATIENCE.as_secs(),
                        screen::node(node.name, Some(&report))
                    ),
                );
                return Err(match &report.last_error {
                    Some(error) => failure.line(format!("{}: {error}", node.name)),
                    None => failure,
                });
            }
            std::thread::sleep(LOOK);
        }
    }

    fn adm(&self, node: &NodeOfPair, words: &str) -> Outcome {
        self.interrupt.check()?;
        screen::command(&node.command(words));
        node.adm(words)
    }

    fn connect(&mut self, stay: Stay) -> Outcome {
        screen::step(
            1,
            "Metadata on both disks (alpha's holds data already, so it needs --force); both come up and connect.",
        );
        for node in [&self.pair.alpha, &self.pair.beta] {
            self.adm(node, &format!("create-md --force {RESOURCE}"))?;
        }
        self.pair.alpha.start(stay)?;
        self.pair.beta.start(stay)?;
        for node in [&self.pair.alpha, &self.pair.beta] {
            self.adm(node, &format!("up {RESOURCE}"))?;
        }
        let report = self.wait_for(&self.pair.alpha, "the connection", |report| {
            report.connection == "Connected"
        })?;
        screen::note(&screen::node("alpha", Some(&report)));
        Ok(())
    }

    fn first_sync(&mut self, numbers: &mut Numbers) -> Outcome {
        screen::step(
            2,
            "alpha has the data: it becomes Primary, and all of it is copied to beta.",
        );
        self.adm(&self.pair.alpha, &format!("primary --force {RESOURCE}"))?;
        let report = self.pair.alpha.report()?;
        numbers.device_bytes = report.volumes.first().map_or(0, |volume| volume.bytes);
        let blocks = numbers.device_bytes / BLOCK as u64;
        self.record = Record::new(
            self.record.seed,
            usize::try_from(blocks).unwrap_or(usize::MAX),
        );
        self.sync(&self.pair.alpha, numbers.device_bytes)?;
        Ok(())
    }

    /// Follows a resync to its end; returns how many bytes it had to look at.
    fn sync(&self, source: &NodeOfPair, device_bytes: u64) -> Result<u64, Failure> {
        let mut live = Live::bar(device_bytes);
        let mut total = 0;
        let begun = Instant::now();
        self.wait_for(source, "the end of the sync", |report| {
            if let Some(resync) = report.volumes.first().and_then(|volume| volume.resync) {
                total = total.max(resync.total * BLOCK as u64);
                let done = resync.total.saturating_sub(resync.left) * BLOCK as u64;
                let rate = size(resync.rate_kib * 1024);
                live.progress(done, total, &format!("{rate}/s"));
            }
            report.connection == "Connected" && disks(report) == Some(("UpToDate", "UpToDate"))
        })?;
        live.done(&format!(
            "{} synced in {:.1} s; both disks are UpToDate",
            size(total),
            begun.elapsed().as_secs_f64()
        ));
        Ok(total)
    }

    fn write_and_kill(&mut self, numbers: &mut Numbers) -> Outcome {
        let end = self.record.blocks.len() / 4;
        screen::step(
            3,
            &format!(
                "{CONNECTIONS} NBD clients write stamped blocks to the first {} of the device on alpha, as fast as it goes.",
                size((end * BLOCK) as u64)
            ),
        );
        let uri = uri(&self.pair.alpha)?;
        screen::note(&format!("device: {uri}"));
        let writers = Writers::start(&uri, &self.record, (0, end), CONNECTIONS)
            .map_err(|error| nbd(&error))?;
        let watched = self.watch_writers(&writers, Duration::from_secs(self.options.seconds));
        screen::step(4, "alpha dies in the middle of the writes: SIGKILL.");
        let begun = Instant::now();
        let killed = self.pair.alpha.kill();
        let dead = self.all_ended(&writers);
        let before = writers.acknowledged();
        let ended = writers
            .stop(&mut self.record)
            .map_err(|error| nbd(&error))?;
        watched?;
        dead?;
        numbers.acknowledged = before;
        numbers.in_flight = ended.iter().map(|ended| ended.in_flight).sum();
        screen::note(&format!(
            "pid {} is gone; {} writes were acknowledged, {} were in flight",
            killed?,
            grouped(before),
            numbers.in_flight
        ));
        numbers.failover = Duration::ZERO;
        self.promote(begun, numbers)
    }

    fn watch_writers(&self, writers: &Writers, length: Duration) -> Outcome {
        let mut live = Live::line();
        let begun = Instant::now();
        while begun.elapsed() < length {
            self.interrupt.check()?;
            if writers.all_ended() {
                break;
            }
            let (alpha, beta) = (self.pair.alpha.report().ok(), self.pair.beta.report().ok());
            let count = writers.acknowledged();
            let bytes = count * BLOCK as u64;
            let millis = u64::try_from(begun.elapsed().as_millis())
                .unwrap_or(1)
                .max(1);
            live.text(&format!(
                "{} | {} | {} writes acknowledged, {}/s",
                screen::node("alpha", alpha.as_ref()),
                screen::node("beta", beta.as_ref()),
                grouped(count),
                size(bytes * 1000 / millis)
            ));
            std::thread::sleep(LOOK);
        }
        live.done(&format!(
            "{} writes acknowledged in {:.1} s",
            grouped(writers.acknowledged()),
            begun.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    /// Waits until every writer has seen that its server is gone.
    fn all_ended(&self, writers: &Writers) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        while !writers.all_ended() {
            if Instant::now() > deadline {
                return Err(Failure::new(
                    CANNOT_RUN,
                    "the clients do not notice that the server is gone",
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn promote(&self, begun: Instant, numbers: &mut Numbers) -> Outcome {
        screen::step(5, "beta takes over.");
        self.wait_for(
            &self.pair.beta,
            "beta to see that alpha is gone",
            |report| report.peer_role == "Unknown",
        )?;
        self.adm(&self.pair.beta, &format!("primary {RESOURCE}"))?;
        let uri = uri(&self.pair.beta)?;
        let client = NbdClient::connect(&uri).map_err(|error| nbd(&error))?;
        if client.size() != numbers.device_bytes {
            let line = format!(
                "beta serves {} bytes, alpha served {}",
                client.size(),
                numbers.device_bytes
            );
            return Err(Failure::new(WRONG_DATA, line));
        }
        client.disconnect();
        numbers.failover = begun.elapsed();
        screen::note(&format!(
            "served again {:.2} s after the crash, at {uri}",
            numbers.failover.as_secs_f64()
        ));
        Ok(())
    }

    fn fail_over(&mut self, numbers: &mut Numbers) -> Outcome {
        screen::step(
            6,
            "Every block is read from beta and compared with the record of what was acknowledged.",
        );
        let uri = uri(&self.pair.beta)?;
        let findings = read_back(&uri, &self.record, CONNECTIONS).map_err(|error| nbd(&error))?;
        judge("beta", &findings)?;
        screen::note(&format!(
            "{} blocks are right, {} of them written before the crash; {} hold a write that was in flight",
            grouped(findings.compared),
            grouped(findings.written),
            findings.unacknowledged
        ));
        numbers.after_crash = findings;
        self.settle()
    }

    /// What was in flight at the crash is known now: the record holds what beta has.
    fn settle(&mut self) -> Outcome {
        let uri = uri(&self.pair.beta)?;
        let mut client = NbdClient::connect(&uri).map_err(|error| nbd(&error))?;
        let mut data = vec![0; BLOCK];
        for index in 0..self.record.blocks.len() {
            let versions = self.record.blocks[index];
            if versions.sent == versions.acknowledged {
                continue;
            }
            let at = index as u64;
            client
                .read(at * BLOCK as u64, &mut data)
                .map_err(|error| nbd(&error))?;
            let newer = self.record.compare(at, &data).unacknowledged > 0;
            let now = if newer {
                versions.sent
            } else {
                versions.acknowledged
            };
            self.record.blocks[index].acknowledged = now;
            self.record.blocks[index].sent = now;
        }
        client.disconnect();
        Ok(())
    }

    fn write_alone(&mut self, numbers: &mut Numbers) -> Outcome {
        let blocks = self.record.blocks.len();
        let region = (blocks / 2, blocks / 2 + blocks / 8);
        screen::step(
            7,
            &format!(
                "Clients go on writing, to beta alone, in another {} of the device.",
                size(((region.1 - region.0) * BLOCK) as u64)
            ),
        );
        let uri = uri(&self.pair.beta)?;
        let writers =
            Writers::start(&uri, &self.record, region, CONNECTIONS).map_err(|error| nbd(&error))?;
        let begun = Instant::now();
        let mut watched = Ok(());
        while watched.is_ok() && begun.elapsed() < ALONE && !writers.all_ended() {
            watched = self.interrupt.check();
            std::thread::sleep(LOOK);
        }
        numbers.alone = writers.acknowledged();
        let ended = writers
            .stop(&mut self.record)
            .map_err(|error| nbd(&error))?;
        watched?;
        if let Some(Ended {
            error: Some(error), ..
        }) = ended.into_iter().find(|e| e.error.is_some())
        {
            return Err(nbd(&error));
        }
        let report = self.pair.beta.report()?;
        let oos = report
            .volumes
            .first()
            .map_or(0, |volume| volume.counters.oos);
        screen::note(&format!(
            "{} writes acknowledged; beta knows that {} differ from alpha",
            grouped(numbers.alone),
            size(oos * 1024)
        ));
        Ok(())
    }

    fn come_back(&mut self, stay: Stay, numbers: &mut Numbers) -> Outcome {
        screen::step(
            8,
            "alpha comes back. Only what may differ is copied: what beta wrote alone, and what alpha was writing when it died.",
        );
        self.pair.alpha.start(stay)?;
        self.adm(&self.pair.alpha, &format!("up {RESOURCE}"))?;
        numbers.resynced_bytes = self.sync(&self.pair.beta, numbers.device_bytes)?;
        screen::note(&format!(
            "{} of {}",
            size(numbers.resynced_bytes),
            size(numbers.device_bytes)
        ));
        Ok(())
    }

    fn compare_disks(&mut self, numbers: &mut Numbers) -> Outcome {
        screen::step(
            9,
            "Both disks are compared, block by block, with each other and with the record.",
        );
        let (alpha, beta) = (&self.pair.alpha.disk, &self.pair.beta.disk);
        let mut findings = Findings::default();
        let mut different = 0;
        let files = (open(alpha)?, open(beta)?);
        let chunk = 256 * BLOCK;
        let (mut first, mut second) = (vec![0; chunk], vec![0; chunk]);
        let end = self.record.blocks.len() * BLOCK;
        for at in (0..end).step_by(chunk) {
            self.interrupt.check()?;
            let len = chunk.min(end - at);
            read_at(&files.0, alpha, at, &mut first[..len])?;
            read_at(&files.1, beta, at, &mut second[..len])?;
            let pairs = first[..len].chunks(BLOCK).zip(second[..len].chunks(BLOCK));
            different += pairs.filter(|(one, other)| one != other).count();
            findings.add(self.record.compare((at / BLOCK) as u64, &first[..len]));
        }
        judge("alpha", &findings)?;
        if different > 0 {
            return Err(Failure::new(
                WRONG_DATA,
                format!("{different} blocks differ between the two disks"),
            ));
        }
        screen::note(&format!(
            "{} blocks are the same on both disks, and right",
            grouped(findings.compared)
        ));
        numbers.at_end = findings;
        Ok(())
    }

    fn summary(&self, numbers: &Numbers, took: Duration) {
        out_line(&format!(
            "\nAll right after {:.0} s. {} writes were acknowledged by the pair and {} by beta alone; none was lost or changed.",
            took.as_secs_f64(),
            grouped(numbers.acknowledged),
            grouped(numbers.alone)
        ));
        out_line(&format!(
            "Blocks with acknowledged writes: {} after the crash, {} at the end. Writes in flight at the crash: {}, of which {} had reached beta.",
            grouped(numbers.after_crash.written),
            grouped(numbers.at_end.written),
            numbers.in_flight,
            numbers.after_crash.unacknowledged
        ));
        out_line(&format!(
            "The device was served again {:.2} s after the crash; the resync copied {} of {}.",
            numbers.failover.as_secs_f64(),
            size(numbers.resynced_bytes),
            size(numbers.device_bytes)
        ));
        by_hand(&self.pair.alpha.invocation, self.options.keep);
    }

    fn how_to_go_on(&self) -> Outcome {
        let (alpha, beta) = (&self.pair.alpha, &self.pair.beta);
        out_line("\nThe pair is still running; beta is Primary. By hand:");
        let lines = [
            (beta.invocation.tandem("status"), "what is going on"),
            (
                format!("nbdinfo '{}'", uri(beta)?),
                "the device, for any NBD client",
            ),
            (
                beta.command(&format!("secondary {RESOURCE}")),
                "hand over: first here,",
            ),
            (alpha.command(&format!("primary {RESOURCE}")), "then there"),
            (
                beta.command(&format!("disconnect {RESOURCE}")),
                "part them,",
            ),
            (
                beta.command(&format!("connect {RESOURCE}")),
                "and together again",
            ),
        ];
        for (command, remark) in lines {
            out_line(&format!("  {command}   # {remark}"));
        }
        out_line("To stop and remove it:");
        for node in [alpha, beta] {
            let lock = node.invocation.places().lock_file();
            out_line(&format!("  kill $(cat {})", lock.display()));
        }
        out_line(&format!("  rm -r {}", self.pair.directory.display()));
        Ok(())
    }
}

/// Each step as it is done on two machines.
fn by_hand(program: &Invocation, kept: bool) {
    let plain = Invocation {
        root: None,
        config_file: None,
        ..program.clone()
    };
    let steps = [
        (
            "both",
            plain.adm("create-md r0"),
            "once, with r0 in /etc/drbd.conf",
        ),
        (
            "both",
            plain.adm("up r0"),
            "starts the daemon, attaches, connects",
        ),
        (
            "one",
            plain.adm("primary --force r0"),
            "once: its data are copied to the other",
        ),
        (
            "one",
            "nbd-client -unix /run/tandem/nbd/r0-0.sock /dev/nbd0".to_owned(),
            "or any other NBD client",
        ),
        ("either", plain.tandem("status --watch"), "see what goes on"),
        (
            "other",
            plain.adm("primary r0"),
            "when the first one died: fail over",
        ),
        (
            "first",
            plain.adm("up r0"),
            "when it is back: resync of what differs",
        ),
    ];
    out_line("\nThe same by hand, on two machines:");
    for (node, command, remark) in steps {
        out_line(&format!("  {node:<7} {command}   # {remark}"));
    }
    if kept {
        return;
    }
    out_line(&format!(
        "On this one: {} --keep leaves the pair running and says what to type.",
        plain.tandem("demo")
    ));
}

/// Fails, and shows some of what is wrong.
fn judge(name: &str, findings: &Findings) -> Outcome {
    if findings.wrong.is_empty() {
        return Ok(());
    }
    for line in findings.wrong.iter().take(WRONG_SHOWN) {
        err(&format!("   {line}"));
    }
    Err(Failure::new(
        WRONG_DATA,
        format!(
            "{} of {} blocks on {name} are wrong",
            findings.wrong.len(),
            findings.compared
        ),
    ))
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| {
        Failure::new(
            CANNOT_RUN,
            format!("cannot open {}: {error}", path.display()),
        )
    })
}

fn read_at(file: &File, path: &Path, at: usize, buffer: &mut [u8]) -> Outcome {
    file.read_exact_at(buffer, at as u64).map_err(|error| {
        Failure::new(
            CANNOT_RUN,
            format!("cannot read {} at byte {at}: {error}", path.display()),
        )
    })
}
