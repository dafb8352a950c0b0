//! One node: an engine, its two devices, its I/O in flight, and what a person sees of it.
//!
//! Every token of an effect is answered exactly once while the process lives. A killed process leaves its disks as its kernel
//! has them; a power loss takes the caches.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use tandem_metadata::units::ByteLen;
use tandem_metadata::{AlGeometry, Content as MetaContent, Flags, Layout, Placement, Step, Uuids};
use tandem_metadata::{SectorCount, Superblock, create};
use tandem_replicator::planted::Plant;
use tandem_replicator::resource::Resource;
use tandem_replicator::state::word::{DiskState, Role, State};
use tandem_replicator::status::VolumeStatus;
use tandem_replicator::{
    Answer, BackingInfo, DiskOperation, DiskOptions, Effects, Event, IoError, MetaKind,
    MetaOperation, ResourceOptions, Time, Token, VolumeNumber, VolumeOptions,
};

use super::black_box::{Boxes, panic_text};
use super::dice::Dice;
use super::disk::Disk;
use super::network::Host;
use super::stamp::Stamper;

/// The only volume of a simulated resource.
pub const VOLUME: VolumeNumber = VolumeNumber(0);

/// How the backing devices of both nodes are made.
#[derive(Clone, Copy, Debug)]
pub struct DiskPlan {
    /// Bytes of data (external metadata), or of the whole device (internal).
    pub bytes: u64,
    /// Where the metadata lies.
    pub meta: MetaKind,
    /// The device can discard, and discarded blocks are zeroes.
    pub discard: bool,
}

/// What a disk has been told to do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFault {
    /// Reads of data fail.
    DataRead,
    /// Writes, discards and flushes of data fail.
    DataWrite,
    /// Metadata fails.
    Meta,
    /// Writes of data change nothing: there is no room (discards and flushes do not need any).
    Full,
    /// Everything.
    All,
}

/// An I/O between its effect and its completion.
#[derive(Clone, Debug)]
pub enum Io {
    /// On data, with the mark of the cache when it was submitted.
    Data(DiskOperation, u64),
    /// On metadata.
    Meta(MetaOperation, u64),
}

/// Bitmap and activity log are tested whole after so many events of a node: after each it would be a third of the time.
const STRUCTURES_EVERY: u64 = 16;

/// A node.
pub struct Node {
    /// 0 is A, 1 is B, its peer, and so on.
    pub index: usize,
    /// The running engine.
    pub engine: Option<Resource>,
    /// Counts the processes of this node.
    pub boot: u64,
    /// What its host does.
    pub host: Host,
    /// The data device (and metadata, when internal).
    pub data: Disk,
    /// The metadata device, when external.
    pub meta: Option<Disk>,
    /// How the devices were made.
    pub plan: DiskPlan,
    /// I/O in flight.
    pub io: BTreeMap<Token, Io>,
    /// The last status, `None` while no process runs.
    pub status: Option<VolumeStatus>,
    /// Names of the handlers that ran, oldest first.
    pub handlers: Vec<&'static str>,
    /// Comparisons of generations that were logged, oldest first.
    pub comparisons: Vec<String>,
    /// Answers of commands.
    pub answers: BTreeMap<u64, Answer>,
    /// Commands without an answer, in words.
    pub open_commands: BTreeMap<u64, String>,
    /// What its disks do wrong, and how often still.
    pub fault: Option<(IoFault, u32)>,
    /// Clients may use it, with this size.
    pub serves: Option<u64>,
    /// Clients are held back.
    pub clients_paused: bool,
    /// The next timer of the engine that is under way.
    pub timer: Option<Time>,
    /// The data of a Primary whose engine forbids it: completions are held while this is set (worked traces).
    pub hold_data_writes: Option<u32>,
    /// The disk hangs: so many more I/Os of this kind do not end before they are let go.
    pub hang: Option<(IoFault, u32)>,
    /// Completions that are held.
    pub held: Vec<Token>,
    /// Its processes are recorded.
    pub boxes: Option<Boxes>,
    stamper: Stamper,
    /// Events of its engines so far.
    events: u64,
}

impl Node {
    /// A node with blank devices and no process.
    #[must_use]
    pub fn new(index: usize, plan: DiskPlan, stamper: Stamper) -> Node {
        let meta = match plan.meta {
            MetaKind::Internal => None,
            MetaKind::FlexibleExternal | MetaKind::Indexed => {
                Some(Disk::new(stamper, meta_bytes(plan.bytes)))
            }
        };
        Node {
            index,
            engine: None,
            boot: 0,
            host: Host::NoProcess,
            data: Disk::new(stamper, plan.bytes),
            meta,
            plan,
            io: BTreeMap::new(),
            status: None,
            handlers: Vec::new(),
            comparisons: Vec::new(),
            answers: BTreeMap::new(),
            open_commands: BTreeMap::new(),
            events: 0,
            fault: None,
            serves: None,
            clients_paused: false,
            timer: None,
            hold_data_writes: None,
            hang: None,
            held: Vec::new(),
            boxes: None,
            stamper,
        }
    }

    /// The metadata device.
    pub fn meta_disk(&mut self) -> &mut Disk {
        self.meta.as_mut().unwrap_or(&mut self.data)
    }

    /// The layout of its metadata.
    ///
    /// # Errors
    /// A sentence when the device cannot carry metadata.
    pub fn layout(&self) -> Result<Layout, String> {
        let (placement, bytes) = match &self.meta {
            None => (Placement::Internal, self.data.bytes()),
            Some(meta) => (Placement::FlexibleExternal, meta.bytes()),
        };
        Layout::new(placement, ByteLen(bytes), AlGeometry::DEFAULT)
            .map_err(|error| error.to_string())
    }

    /// `create-md`.
    ///
    /// # Errors
    /// A sentence when the device cannot carry metadata.
    pub fn create_metadata(&mut self) -> Result<(), String> {
        let layout = self.layout()?;
        let steps = create::create_md(&layout, 0).map_err(|error| error.to_string())?;
        for step in steps {
            match step {
                Step::Write(write) => {
                    let offset = write.offset.0;
                    if matches!(write.content, MetaContent::Zeroes(_)) {
                        let length = write.len().0;
                        self.meta_disk().zero(offset, length, true);
                    } else {
                        let mut bytes = vec![0; write.len().0 as usize];
                        write.fill(0, &mut bytes);
                        self.meta_disk().write(offset, &bytes, true);
                    }
                }
                Step::Flush => {
                    let mark = self.meta_disk().mark();
                    self.meta_disk().flush(mark);
                }
            }
        }
        Ok(())
    }

    /// Makes its metadata those of an UpToDate node of this generation that was shut down cleanly.
    ///
    /// # Errors
    /// A sentence when the metadata cannot be read.
    pub fn set_generation(&mut self, uuids: Uuids) -> Result<(), String> {
        self.edit_superblock(|block| {
            block.uuids = uuids;
            block.flags = Flags::CONSISTENT
                .with(Flags::WAS_UP_TO_DATE)
                .with(Flags::AL_CLEAN);
        })
    }

    /// Changes its superblock on disk.
    ///
    /// # Errors
    /// A sentence when the superblock cannot be read.
    pub fn edit_superblock(&mut self, edit: impl FnOnce(&mut Superblock)) -> Result<(), String> {
        let layout = self.layout()?;
        let (offset, mut block) = self.superblock(&layout)?;
        edit(&mut block);
        block.la_size = self.usable(&layout);
        self.meta_disk().write(offset, &block.encode(), true);
        Ok(())
    }

    fn superblock(&mut self, layout: &Layout) -> Result<(u64, Superblock), String> {
        let offset = layout.superblock_offset().0;
        let bytes = self.meta_disk().read(offset, 4096);
        let block = Superblock::decode(&bytes).map_err(|error| error.to_string())?;
        Ok((offset, block))
    }

    fn usable(&self, layout: &Layout) -> SectorCount {
        let data = ByteLen(self.data.bytes()).sectors_floor();
        layout.capacity(data).min(layout.data_size_max())
    }

    /// Sectors of data that the device can carry.
    #[must_use]
    pub fn data_sectors(&self) -> u64 {
        self.layout().map_or(0, |layout| self.usable(&layout).0)
    }

    /// The generations on its disk, in the cache or not.
    #[must_use]
    pub fn uuids_on_disk(&mut self) -> Option<[u64; 4]> {
        let layout = self.layout().ok()?;
        let (_, block) = self.superblock(&layout).ok()?;
        let uuids = block.uuids;
        Some([
            uuids.current,
            uuids.bitmap,
            uuids.history[0],
            uuids.history[1],
        ])
    }

    /// Whether its disk says that the data is UpToDate.
    pub fn is_good_on_disk(&mut self) -> bool {
        let good = Flags::CONSISTENT.with(Flags::WAS_UP_TO_DATE);
        let block = self.layout().and_then(|layout| self.superblock(&layout));
        block.is_ok_and(|(_, block)| block.flags.contains(good))
    }

    /// Starts a process.
    pub fn start(&mut self, seed: u64, disk: &DiskOptions, plant: Plant) {
        self.boot += 1;
        let mut dice = Dice::new(seed ^ self.boot << 8, super::trace::name(self.index));
        let mut bytes = [0; 32];
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&dice.bits().to_le_bytes());
        }
        let options = ResourceOptions {
            name: "r0".to_owned(),
            volumes: vec![VolumeOptions {
                number: VOLUME,
                minor: 0,
                disk: disk.clone(),
            }],
            seed: bytes,
        };
        let mut engine = Resource::new(options.clone());
        engine.plant(plant);
        if let Some(boxes) = &mut self.boxes {
            boxes.begin(&options, &mut engine);
        }
        self.engine = Some(engine);
        self.host = Host::Running { listening: false };
        self.timer = None;
        self.refresh();
    }

    /// The process is gone, with all it had in flight. `power`: so are the caches of its disks.
    pub fn stop(&mut self, dice: &mut Dice, power: Option<Keep>) {
        self.engine = None;
        if let Some(boxes) = &mut self.boxes {
            boxes.end();
        }
        self.status = None;
        self.serves = None;
        self.clients_paused = false;
        self.timer = None;
        self.held.clear();
        self.hang = None;
        self.open_commands.clear();
        let power = if power == Some(Keep::Killed) {
            self.io.clear();
            None
        } else {
            power
        };
        self.host = if power.is_some() {
            Host::Off
        } else {
            Host::NoProcess
        };
        if let Some(keep) = power.filter(|keep| *keep != Keep::Dice) {
            self.lose_power_keeping(keep);
            return;
        }
        for (_, io) in std::mem::take(&mut self.io) {
            let mark = self.data.mark();
            match io {
                Io::Data(DiskOperation::Write { offset, data, .. }, _) => {
                    (self.data).tear(offset, data.len() as u64, Some(&data[..]), dice);
                }
                Io::Data(
                    DiskOperation::Discard { offset, length, .. }
                    | DiskOperation::Zero { offset, length, .. },
                    _,
                ) => self.data.tear(offset, u64::from(length), None, dice),
                Io::Data(DiskOperation::Flush, submitted) if dice.chance(1, 2) => {
                    self.data.flush(submitted.min(mark));
                }
                Io::Meta(MetaOperation::Write { offset, data, .. }, _) => {
                    self.meta_disk()
                        .tear(offset, data.len() as u64, Some(&data[..]), dice);
                }
                _ => {}
            }
        }
        if power.is_some() {
            self.data.lose_power(dice);
            if let Some(meta) = &mut self.meta {
                meta.lose_power(dice);
            }
        }
    }

    /// How many writes a power loss now could keep or lose each by itself: those in the caches, then those in flight.
    #[must_use]
    pub fn volatile_writes(&self) -> u32 {
        let cached = self.data.volatile_operations().len()
            + self
                .meta
                .as_ref()
                .map_or(0, |meta| meta.volatile_operations().len());
        let in_flight = self.io.values().filter(|io| is_write(io)).count();
        (cached + in_flight) as u32
    }

    /// The power fails, and exactly these of its [`Node::volatile_writes`] are kept.
    pub fn lose_power_keeping(&mut self, keep: Keep) {
        let mut unit = 0;
        let mut next = || {
            unit += 1;
            keep.of(unit - 1)
        };
        let mut select = |disk: &Disk| -> BTreeSet<u64> {
            let all = disk.volatile_operations().into_iter();
            all.filter(|_| next() == Part::Whole).collect()
        };
        let data = select(&self.data);
        let meta = self.meta.as_ref().map(&mut select);
        let in_flight: Vec<Io> = std::mem::take(&mut self.io).into_values().collect();
        let parts: Vec<Part> = in_flight
            .iter()
            .filter(|io| is_write(io))
            .map(|_| next())
            .collect();
        self.data.lose_power_keeping(&data);
        if let (Some(disk), Some(kept)) = (self.meta.as_mut(), &meta) {
            disk.lose_power_keeping(kept);
        }
        let writes = in_flight.into_iter().filter(is_write);
        for (io, part) in writes.zip(parts) {
            self.write_part(io, part);
        }
    }

    fn write_part(&mut self, io: Io, part: Part) {
        let cut = |length: u64| {
            let middle = (length / 2).next_multiple_of(512);
            match part {
                Part::None => 0..0,
                Part::Whole => 0..length,
                Part::FirstHalf => 0..middle,
                Part::SecondHalf => middle..length,
            }
        };
        match io {
            Io::Data(DiskOperation::Write { offset, data, .. }, _) => {
                let kept = cut(data.len() as u64);
                let at = offset + kept.start;
                (self.data).write(at, &data[kept.start as usize..kept.end as usize], true);
            }
            Io::Data(
                DiskOperation::Discard { offset, length, .. }
                | DiskOperation::Zero { offset, length, .. },
                _,
            ) => {
                let kept = cut(u64::from(length));
                (self.data).zero(offset + kept.start, kept.end - kept.start, true);
            }
            Io::Meta(MetaOperation::Write { offset, data, .. }, _) => {
                let kept = cut(data.len() as u64);
                let at = offset + kept.start;
                let bytes = &data[kept.start as usize..kept.end as usize];
                self.meta_disk().write(at, bytes, true);
            }
            _ => {}
        }
    }

    /// Hands an event to the engine.
    ///
    /// # Errors
    /// The engine panicked, or says itself that an invariant is broken.
    pub fn handle(&mut self, now: Time, event: Event, effects: &mut Effects) -> Result<(), String> {
        let Some(engine) = self.engine.as_mut() else {
            return Ok(());
        };
        let index = self.index;
        self.events += 1;
        let deep = self.events.is_multiple_of(STRUCTURES_EVERY);
        if let Some(boxes) = &mut self.boxes {
            boxes.happened(now, &event);
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            engine.handle(now, event, effects);
            if deep {
                engine.check_structures()?;
            }
            engine.check_invariants()
        }));
        if let Some(boxes) = &mut self.boxes {
            let failure = outcome.as_ref().err().map(|panic| panic_text(&**panic));
            boxes.done(engine, effects, failure.as_deref());
        }
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(text)) => {
                return Err(format!(
                    "node {}: invariant: {text}",
                    super::trace::name(index)
                ));
            }
            Err(panic) => {
                let text = panic_text(&*panic);
                return Err(format!(
                    "node {}: the engine panicked: {text}",
                    super::trace::name(index)
                ));
            }
        }
        self.refresh();
        Ok(())
    }

    fn refresh(&mut self) {
        self.status = self
            .engine
            .as_ref()
            .and_then(|engine| engine.status().volumes.into_iter().next());
    }

    /// Its state, while a process runs.
    #[must_use]
    pub fn state(&self) -> Option<State> {
        self.status.as_ref().map(|status| status.state)
    }

    /// Its process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.engine.is_some()
    }

    /// It runs and is Primary.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.state()
            .is_some_and(|state| state.role == Role::Primary)
    }

    /// It is connected at all.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.state().is_some_and(|state| state.conn.is_connected())
    }

    /// Its disk is UpToDate.
    #[must_use]
    pub fn is_up_to_date(&self) -> bool {
        self.state()
            .is_some_and(|state| state.disk == DiskState::UpToDate)
    }

    /// What `OpenBacking` finds.
    #[must_use]
    pub fn backing(&self) -> BackingInfo {
        BackingInfo {
            data_bytes: self.data.bytes(),
            meta_bytes: self.meta.as_ref().map_or(self.data.bytes(), Disk::bytes),
            meta_kind: self.plan.meta,
            logical_block: 512,
            discard: self.plan.discard,
            discard_zeroes: self.plan.discard,
        }
    }

    /// An I/O is submitted.
    ///
    /// # Errors
    /// It does not lie on its device, or overlaps a write that is in flight (their order would be open).
    pub fn submit(&mut self, token: Token, io: Io) -> Result<(), String> {
        let wrong = |text: String| Err(format!("{}: {text}", super::trace::name(self.index)));
        let range = extent(&io);
        if let Some((is_meta, offset, length, writes)) = range {
            let meta_disk = self.meta.as_ref().unwrap_or(&self.data);
            let disk = if is_meta { meta_disk } else { &self.data };
            if !disk.holds(offset, length) {
                return wrong(format!(
                    "I/O outside its device: {} {offset} +{length} of {}",
                    if is_meta { "metadata" } else { "data" },
                    disk.bytes()
                ));
            }
            for (other, pending) in &self.io {
                let Some((other_meta, at, len, other_writes)) = extent(pending) else {
                    continue;
                };
                let same_device = is_meta == other_meta || self.meta.is_none();
                let overlaps = offset < at + len && at < offset + length;
                if same_device && overlaps && writes && other_writes {
                    return wrong(format!(
                        "two overlapping writes are in flight: #{} and #{} at byte {offset} +{length}",
                        other.0, token.0
                    ));
                }
            }
        }
        if self.io.insert(token, io).is_some() {
            return wrong(format!("token {} is used twice", token.0));
        }
        Ok(())
    }

    /// An I/O ends now: the event for the engine.
    pub fn complete(&mut self, token: Token, dice: &mut Dice) -> Option<Event> {
        let io = self.io.remove(&token)?;
        let full = matches!(self.fault, Some((IoFault::Full, _)));
        if self.fails(&io) {
            match &io {
                _ if full => {}
                Io::Data(DiskOperation::Write { offset, data, .. }, _) => {
                    (self.data).tear(*offset, data.len() as u64, Some(&data[..]), dice);
                }
                Io::Meta(MetaOperation::Write { offset, data, .. }, _) => {
                    (self.meta_disk()).tear(*offset, data.len() as u64, Some(&data[..]), dice);
                }
                _ => {}
            }
            let error = IoError {
                text: if full {
                    "no space left on device (simulated)".to_owned()
                } else {
                    "simulated input/output error".to_owned()
                },
            };
            let result = Err(error);
            return Some(match io {
                Io::Data(..) => Event::DiskDone { token, result },
                Io::Meta(..) => Event::MetaDone { token, result },
            });
        }
        Some(match io {
            Io::Data(operation, mark) => Event::DiskDone {
                token,
                result: Ok(perform_data(&mut self.data, operation, mark)),
            },
            Io::Meta(operation, mark) => Event::MetaDone {
                token,
                result: Ok(perform_meta(self.meta_disk(), operation, mark)),
            },
        })
    }

    fn fails(&mut self, io: &Io) -> bool {
        take_one(&mut self.fault, io)
    }

    /// Whether this I/O does not end for now: its completion is held.
    pub fn hangs(&mut self, token: Token) -> bool {
        let hangs = (self.io.get(&token)).is_some_and(|io| take_one(&mut self.hang, io));
        if hangs {
            self.held.push(token);
        }
        hangs
    }

    /// Sectors that writes in flight may still change.
    #[must_use]
    pub fn sectors_in_flight(&self) -> Vec<std::ops::Range<u64>> {
        let extents = self.io.values().filter_map(extent);
        extents
            .filter(|(is_meta, _, _, writes)| !is_meta && *writes)
            .map(|(_, offset, length, _)| offset / 512..(offset + length) / 512)
            .collect()
    }

    /// The stamps of this simulation.
    #[must_use]
    pub fn stamper(&self) -> Stamper {
        self.stamper
    }
}

impl IoFault {
    fn hits(self, io: &Io) -> bool {
        match (self, io) {
            (IoFault::DataRead, Io::Data(DiskOperation::Read { .. }, _))
            | (IoFault::Meta, Io::Meta(..))
            | (IoFault::Full, Io::Data(DiskOperation::Write { .. }, _)) => true,
            (IoFault::DataWrite, Io::Data(operation, _)) => {
                !matches!(operation, DiskOperation::Read { .. })
            }
            (IoFault::All, _) => true,
            _ => false,
        }
    }
}

/// Whether this I/O is one of those that are left to be hit; it is taken off.
fn take_one(left: &mut Option<(IoFault, u32)>, io: &Io) -> bool {
    let Some((fault, count)) = *left else {
        return false;
    };
    let hit = fault.hits(io);
    if hit {
        *left = (count > 1).then(|| (fault, count - 1));
    }
    hit
}

fn is_write(io: &Io) -> bool {
    extent(io).is_some_and(|(.., writes)| writes)
}

/// What a power loss keeps of the writes that are not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Each goes its own way.
    Dice,
    /// It is the process that dies: the caches stay, what was in flight is lost.
    Killed,
    /// Those whose bit is set.
    These(u64),
    /// Those whose bit is set, and of one more only a part.
    Torn(u64, u32, Part),
}

impl Keep {
    fn of(self, unit: u32) -> Part {
        let (kept, torn) = match self {
            Keep::Dice | Keep::Killed => (0, None),
            Keep::These(kept) => (kept, None),
            Keep::Torn(kept, at, part) => (kept, Some((at, part))),
        };
        match torn {
            Some((at, part)) if at == unit => part,
            _ if kept.checked_shr(unit).is_some_and(|kept| kept & 1 != 0) => Part::Whole,
            _ => Part::None,
        }
    }
}

/// How much of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Nothing.
    None,
    /// Its first sectors (in flight; of a write in the cache nothing).
    FirstHalf,
    /// Its last sectors (the same).
    SecondHalf,
    /// All.
    Whole,
}

/// Metadata device, first byte, bytes, writes.
fn extent(io: &Io) -> Option<(bool, u64, u64, bool)> {
    match io {
        Io::Data(DiskOperation::Read { offset, length }, _) => {
            Some((false, *offset, u64::from(*length), false))
        }
        Io::Data(DiskOperation::Write { offset, data, .. }, _) => {
            Some((false, *offset, data.len() as u64, true))
        }
        Io::Data(
            DiskOperation::Discard { offset, length, .. }
            | DiskOperation::Zero { offset, length, .. },
            _,
        ) => Some((false, *offset, u64::from(*length), true)),
        Io::Meta(MetaOperation::Read { offset, length }, _) => {
            Some((true, *offset, u64::from(*length), false))
        }
        Io::Meta(MetaOperation::Write { offset, data, .. }, _) => {
            Some((true, *offset, data.len() as u64, true))
        }
        Io::Data(DiskOperation::Flush, _) | Io::Meta(MetaOperation::Flush, _) => None,
    }
}

fn perform_data(disk: &mut Disk, operation: DiskOperation, mark: u64) -> Bytes {
    use tandem_replicator::Fua;
    match operation {
        DiskOperation::Read { offset, length } => return disk.read(offset, u64::from(length)),
        DiskOperation::Write { offset, data, fua } => disk.write(offset, &data, fua == Fua::Yes),
        DiskOperation::Discard {
            offset,
            length,
            fua,
        }
        | DiskOperation::Zero {
            offset,
            length,
            fua,
            ..
        } => disk.zero(offset, u64::from(length), fua == Fua::Yes),
        DiskOperation::Flush => disk.flush(mark),
    }
    Bytes::new()
}

fn perform_meta(disk: &mut Disk, operation: MetaOperation, mark: u64) -> Bytes {
    use tandem_replicator::Fua;
    match operation {
        MetaOperation::Read { offset, length } => {
            let data = disk.read(offset, u64::from(length));
            // As a sparse file would be read: what was never written has no bytes.
            let hole = data.iter().all(|byte| *byte == 0);
            return if hole { Bytes::new() } else { data };
        }
        MetaOperation::Write { offset, data, fua } => disk.write(offset, &data, fua == Fua::Yes),
        MetaOperation::Flush => disk.flush(mark),
    }
    Bytes::new()
}

/// An external metadata device of the least size that the engine takes for so much data.
fn meta_bytes(data: u64) -> u64 {
    let bitmap = data / 4096 / 8 + 4096;
    (bitmap + 128 * 1024).max(1 << 20).next_multiple_of(4096)
}
