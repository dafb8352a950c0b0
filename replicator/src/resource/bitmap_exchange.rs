//! The exchange of bitmaps before a resync, and full syncs, which need none (state-machine.md 6.1, 6.2; wire-protocol.md
//! 6.2, 6.3, 6.9).
//!
//! ```text
//!  source  WFBitMapS   hold I/O ─► send own bits ─► receive and add the target's ─► start as source
//!  target  WFBitMapT   receive and add the source's bits ─► hold I/O ─► send own ─► WFSyncUUID ─► P_SYNC_UUID ─► start
//! ```
//!
//! Invariants:
//! - A bitmap is sent only while no write of an application is in flight: what it says was true at one moment.
//! - Received bits are added, never cleared.

use alloc::format;

use bytes::Bytes;

use tandem_protocol::bitmap_code::{
    BitSink, BitSource, BitmapReceiver, BitmapSender, Compression, Progress,
};
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::SyncUuid;

use super::Resource;
use super::plan::{self, Then};
use super::resync::{AfterPlan, Side};
use super::volume::IoHold;
use crate::bitmap::{Bitmap, Urgency};
use crate::effect::Level;
use crate::event::{IoError, VolumeNumber};
use crate::planted::Planted;
use crate::state::Hardness;
use crate::state::word::{ConnState, DiskState};
use crate::time::Time;

/// Packets of a bitmap that are sent in one turn: 1 MiB at most, so that other work is not held up.
const PACKETS_PER_TURN: u32 = 256;

/// Where the exchange of a volume is. Forgotten when it ends, and with the link.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// Own bits have to be sent, as soon as no application write is in flight.
    wanted: bool,
    /// How far they are sent.
    sender: Option<BitmapSender>,
    /// When the next packets are due.
    resume_at: Option<Time>,
    sent: bool,
    /// How far the peer's bits are received.
    receiver: Option<BitmapReceiver>,
    received: bool,
    /// P_SYNC_UUID came before this node was ready for it.
    sync_uuid: Option<u64>,
    /// All bits have to be set for a full sync, as soon as no application write is in flight.
    fill: Option<Side>,
    /// They are set in memory and on their way to the disk.
    filling: bool,
}

impl Exchange {
    /// When more packets may be sent.
    pub(super) fn deadline(&self) -> Time {
        self.resume_at.unwrap_or(Time::NEVER)
    }

    /// Whether a P_SYNC_UUID waits: nothing behind it on the data socket may be handled.
    pub(super) fn stalls_receiver(&self) -> bool {
        self.sync_uuid.is_some()
    }

    fn is_idle(&self) -> bool {
        !self.wanted
            && !self.received
            && self.receiver.is_none()
            && self.sync_uuid.is_none()
            && self.fill.is_none()
    }
}

struct Source<'a>(&'a Bitmap);

impl BitSource for Source<'_> {
    fn bits(&self) -> u64 {
        self.0.bits()
    }
    fn next_set(&self, from: u64) -> Option<u64> {
        self.0.next_set(from)
    }
    fn next_clear(&self, from: u64) -> Option<u64> {
        self.0.next_clear(from)
    }
    fn word(&self, index: u64) -> u64 {
        self.0.word(index)
    }
}

struct Sink<'a>(&'a mut Bitmap);

impl BitSink for Sink<'_> {
    fn set_range(&mut self, first: u64, count: u64) {
        self.0
            .set(first..first.saturating_add(count), Urgency::Lazy);
    }
    fn merge_word(&mut self, index: u64, word: u64) {
        // The receiver hands out words within the bitmap only; nothing else can fail.
        let _ = self
            .0
            .merge_words(index, core::iter::once(word), Urgency::Lazy);
    }
}

impl Resource {
    /// 2.9 no. 9: the volume is the source of a resync and its bitmap is due.
    pub(crate) fn send_bitmap(&mut self, number: VolumeNumber) {
        self.want_to_send(number);
    }

    fn want_to_send(&mut self, number: VolumeNumber) {
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.exchange.wanted = true;
            volume.io_holds.insert(IoHold::BitmapExchange);
        }
    }

    /// Goes on with exchanges and full syncs that waited for something. Asked after every event.
    pub(crate) fn step_bitmap_exchange(&mut self) {
        for number in self.volumes_where(|volume| !volume.exchange.is_idle()) {
            let Some(volume) = self.volumes.get(&number) else {
                continue;
            };
            if volume.exchange.fill.is_some() {
                self.step_full_sync(number);
                continue;
            }
            match volume.state.conn {
                ConnState::WFBitMapS | ConnState::WFBitMapT => self.step_exchange(number),
                // Behind: no bitmaps are exchanged, P_OUT_OF_SYNC has kept them equal (6.11).
                ConnState::WFSyncUUID | ConnState::Behind => self.step_sync_uuid(number),
                ConnState::StartingSyncT => {}
                // The source has agreed already; its answer is on the other socket.
                ConnState::Connected if self.asks_to_become_target(number) => {}
                // A disk failed on either node: nothing comes of it.
                _ => self.exchange_over(number),
            }
        }
    }

    fn step_exchange(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get(&number) else {
            return;
        };
        let exchange = &volume.exchange;
        if exchange.wanted && !exchange.sent && exchange.resume_at.is_none_or(|at| at <= self.now) {
            let quiet = exchange.sender.is_some() || !self.application_writes_in_flight(number);
            if quiet {
                self.send_bits(number);
            }
        }
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        if !(volume.exchange.sent && volume.exchange.received) {
            return;
        }
        let conn = volume.state.conn;
        let early = volume.exchange.sync_uuid.take();
        volume.exchange = Exchange {
            sync_uuid: early,
            ..Exchange::default()
        };
        if conn == ConnState::WFBitMapS {
            self.start_resync(number, Side::Source);
        } else {
            let wait = |state: &mut crate::state::word::State| state.conn = ConnState::WFSyncUUID;
            self.change_state(number, wait, Hardness::Hard);
        }
    }

    fn send_bits(&mut self, number: VolumeNumber) {
        let rle = self.connection.net.as_ref().is_none_or(|net| net.use_rle);
        let compression = if rle {
            Compression::RunLength
        } else {
            Compression::Plain
        };
        for _ in 0..PACKETS_PER_TURN {
            let Some(volume) = self.volumes.get_mut(&number) else {
                return;
            };
            let Some(backing) = volume.backing.as_ref() else {
                return;
            };
            let bits = backing.bitmap.bits();
            let sender = volume
                .exchange
                .sender
                .get_or_insert_with(|| BitmapSender::new(bits, compression));
            let Some(packet) = sender.next_packet(&Source(&backing.bitmap)) else {
                volume.exchange.sent = true;
                volume.exchange.sender = None;
                volume.exchange.resume_at = None;
                volume.io_holds.remove(&IoHold::BitmapExchange);
                return;
            };
            self.send(Some(number), packet);
        }
        let next = self.now + core::time::Duration::from_millis(1);
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.exchange.resume_at = Some(next);
        }
    }

    /// P_BITMAP. Errors are protocol errors, in words.
    pub(crate) fn on_bitmap(
        &mut self,
        number: VolumeNumber,
        chunk: Bytes,
    ) -> Result<(), &'static str> {
        self.receive_bits(number, |receiver, bitmap| {
            receiver
                .plain(&chunk, &mut Sink(bitmap))
                .map_err(|_| "a bitmap chunk of a wrong size")
        })
    }

    /// P_COMPRESSED_BITMAP. Errors are protocol errors, in words.
    pub(crate) fn on_compressed_bitmap(
        &mut self,
        number: VolumeNumber,
        code: Bytes,
    ) -> Result<(), &'static str> {
        self.receive_bits(number, |receiver, bitmap| {
            receiver
                .compressed(&code, &mut Sink(bitmap))
                .map_err(|_| "a compressed bitmap that cannot be decoded")
        })
    }

    fn receive_bits(
        &mut self,
        number: VolumeNumber,
        merge: impl FnOnce(&mut BitmapReceiver, &mut Bitmap) -> Result<Progress, &'static str>,
    ) -> Result<(), &'static str> {
        let deaf = self.planted(Planted::IgnoreSourcesBits);
        let volume = self
            .volumes
            .get_mut(&number)
            .ok_or("a bitmap of an unknown volume")?;
        if volume.state.disk < DiskState::Negotiating {
            return Ok(()); // The disk failed while this was on its way.
        }
        let expected = match volume.state.conn {
            ConnState::WFBitMapS => volume.exchange.sent,
            ConnState::WFBitMapT => true,
            _ => false,
        };
        if !expected || volume.exchange.received {
            return Err("a bitmap that is not expected now");
        }
        let backing = volume
            .backing
            .as_mut()
            .ok_or("a bitmap for a node without a disk")?;
        let bits = backing.bitmap.bits();
        let receiver = volume
            .exchange
            .receiver
            .get_or_insert_with(|| BitmapReceiver::new(bits));
        let mut ignored =
            (deaf && volume.state.conn == ConnState::WFBitMapT).then(|| backing.bitmap.clone());
        let bitmap = ignored.as_mut().unwrap_or(&mut backing.bitmap);
        if merge(receiver, bitmap)? == Progress::Complete {
            let (ours, conn) = (backing.bitmap.count(), volume.state.conn);
            volume.exchange.receiver = None;
            volume.exchange.received = true;
            if conn == ConnState::WFBitMapT {
                self.want_to_send(number);
            }
            let text = format!("bitmaps are exchanged: {} KiB to sync", ours * 4);
            self.log(Level::Info, Some(number), text);
        }
        Ok(())
    }

    /// 2.9 no. 7: the sync UUID, which is on disk, goes to the target before anything that shows the new state.
    pub(crate) fn send_sync_uuid(&mut self, number: VolumeNumber) {
        if let Some(volume) = self.volumes.get(&number) {
            let uuid = volume.generations.uuids.bitmap;
            self.send(Some(number), Packet::SyncUuid(SyncUuid { uuid }));
        }
    }

    /// P_SYNC_UUID. Errors are protocol errors, in words.
    pub(crate) fn on_sync_uuid(
        &mut self,
        number: VolumeNumber,
        uuid: u64,
    ) -> Result<(), &'static str> {
        let asks = self.asks_to_become_target(number);
        let volume = self
            .volumes
            .get_mut(&number)
            .ok_or("a sync UUID for an unknown volume")?;
        if volume.state.disk < DiskState::Negotiating {
            return Ok(());
        }
        let may_come = match volume.state.conn {
            ConnState::StartingSyncT
            | ConnState::WFBitMapT
            | ConnState::WFSyncUUID
            | ConnState::Behind => true,
            ConnState::Connected => asks,
            _ => false,
        };
        if !may_come || volume.exchange.sync_uuid.is_some() || volume.resync.is_some() {
            return Err("a sync UUID that is not expected now");
        }
        volume.exchange.sync_uuid = Some(uuid);
        Ok(())
    }

    fn step_sync_uuid(&mut self, number: VolumeNumber) {
        let takes_early = self.planted(Planted::TakeGenerationEarly);
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let Some(uuid) = volume.exchange.sync_uuid.take() else {
            return;
        };
        volume.exchange = Exchange::default();
        let role = volume.state.role;
        let early = volume.peer.uuids.as_ref().filter(|_| takes_early);
        let uuid = early.map_or(uuid, |peer| peer.set.current);
        volume.generations.start_as_target(uuid, role);
        self.write_superblock_soon(number);
        self.log_generations(number, "sync UUID received");
        self.start_resync(number, Side::Target);
        self.receiving_may_go_on();
    }

    /// 2.9 no. 19: StartingSyncS or StartingSyncT.
    pub(crate) fn start_full_sync(&mut self, number: VolumeNumber) {
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let side = match volume.state.conn {
            ConnState::StartingSyncS => Side::Source,
            ConnState::StartingSyncT => Side::Target,
            _ => return,
        };
        volume.exchange.fill = Some(side);
        volume.exchange.filling = false;
        volume.io_holds.insert(IoHold::FullSync);
    }

    fn step_full_sync(&mut self, number: VolumeNumber) {
        let busy = self.application_writes_in_flight(number);
        let Some(volume) = self.volumes.get_mut(&number) else {
            return;
        };
        let starting = [ConnState::StartingSyncS, ConnState::StartingSyncT];
        if !volume.exchange.filling && !starting.contains(&volume.state.conn) {
            self.full_sync_given_up(number);
            return;
        }
        if volume.exchange.filling || busy {
            return;
        }
        volume.exchange.filling = true;
        if let Some(backing) = volume.backing.as_mut() {
            backing.bitmap.set_all();
        }
        let then = Then::Resync(AfterPlan::AllBitsSet);
        self.start_plan(number, plan::rewrite_bitmap(), then);
    }

    fn full_sync_given_up(&mut self, number: VolumeNumber) {
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.exchange.fill = None;
            volume.exchange.filling = false;
            volume.io_holds.remove(&IoHold::FullSync);
        }
    }

    /// All bits are set on disk as well, or could not be written.
    pub(super) fn all_bits_set(&mut self, number: VolumeNumber, result: Result<(), IoError>) {
        let side = self.volumes.get(&number).and_then(|at| at.exchange.fill);
        self.full_sync_given_up(number);
        let conn = self.volumes.get(&number).map(|volume| volume.state.conn);
        let expected = match side {
            Some(Side::Source) => ConnState::StartingSyncS,
            Some(Side::Target) => ConnState::StartingSyncT,
            None => return,
        };
        if conn != Some(expected) {
            return;
        }
        let next = match (side, result) {
            (Some(Side::Source), Ok(())) => {
                self.start_resync(number, Side::Source);
                return;
            }
            (_, Ok(())) => ConnState::WFSyncUUID,
            (_, Err(_)) => ConnState::Connected,
        };
        self.change_state(number, |state| state.conn = next, Hardness::Hard);
    }

    /// The link or a disk is gone.
    pub(super) fn exchange_over(&mut self, number: VolumeNumber) {
        self.receiving_may_go_on();
        if let Some(volume) = self.volumes.get_mut(&number) {
            let filling = volume.exchange.filling;
            let fill = volume.exchange.fill.filter(|_| filling);
            volume.exchange = Exchange {
                fill,
                filling,
                ..Exchange::default()
            };
            volume.io_holds.remove(&IoHold::BitmapExchange);
            if !filling {
                volume.io_holds.remove(&IoHold::FullSync);
            }
        }
    }
}
