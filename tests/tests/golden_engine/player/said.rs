//! What the engine says, beside what the kernel said.

use tandem_protocol::packets::Uuids;

use super::*;

impl Player {
    pub(super) fn expect(&mut self, captured: &Captured) {
        if is_left_out(&captured.frame.packet) {
            return;
        }
        if let Packet::State(state) = &captured.frame.packet
            && self.last_expected_state.replace(state.state.0) == Some(state.state.0)
        {
            return; // Said twice.
        }
        if matches!(
            captured.frame.packet,
            Packet::InitialData | Packet::InitialMeta
        ) {
            self.dial_as_captured(captured.socket);
        }
        let ending = self.state().conn < ConnState::WFReportParams;
        let said = self
            .link
            .get(&captured.socket)
            .and_then(|id| self.sockets.get(id));
        let unsaid = said.is_none_or(|speaker| speaker.said.is_empty());
        if ending && unsaid && matches!(captured.frame.packet, Packet::Uuids(_)) {
            return; // Said into a link that ends: a kernel does, or is too late for it.
        }
        match &captured.frame.packet {
            Packet::RsDataRequest(request) | Packet::RsThinReq(request) => {
                self.expect_pieces(captured, request.sector, request.blksize)
            }
            Packet::CsumRsRequest(hashed) => {
                self.expect_pieces(captured, hashed.request.sector, hashed.request.blksize)
            }
            Packet::RsWriteAck(ack) => self.expect_pieces(captured, ack.sector, ack.blksize),
            packet => {
                let said = self.hear(captured);
                self.compare(packet, &said.packet);
            }
        }
        self.compared += 1;
    }

    /// The engine may cut a resync request (and so its acks) into smaller ones: together they must cover the same.
    fn expect_pieces(&mut self, captured: &Captured, sector: u64, bytes: u32) {
        let (mut at, end) = (sector, sector + u64::from(bytes) / 512);
        while at < end {
            let mut wanted = captured.frame.packet.clone();
            if let Packet::RsWriteAck(ack) = &mut wanted {
                ack.sector = at;
            }
            let frame = Frame {
                volume: captured.frame.volume,
                packet: wanted,
            };
            let piece = Captured {
                connection: captured.connection,
                socket: captured.socket,
                ours: true,
                frame,
            };
            let (from, length) = match self.hear(&piece).packet {
                Packet::RsDataRequest(request) | Packet::RsThinReq(request) => {
                    self.requested.insert(request.sector, request.blksize);
                    (request.sector, request.blksize)
                }
                Packet::RsWriteAck(ack) => (ack.sector, ack.blksize),
                Packet::CsumRsRequest(hashed) => {
                    self.check_digest(captured, &hashed);
                    let request = hashed.request;
                    self.requested.insert(request.sector, request.blksize);
                    (request.sector, request.blksize)
                }
                other => self.fail(&format!("the engine said {other:.300?} in the resync")),
            };
            if from != at || from + u64::from(length) / 512 > end {
                self.fail(&format!("a resync request or ack of {length} bytes at {from}, not within {sector}..{end}"));
            }
            at += u64::from(length) / 512;
            if at < end && matches!(captured.frame.packet, Packet::RsWriteAck(_)) {
                self.more_acks += 1;
            }
        }
    }

    /// The same range has the kernel's digest; of a piece the digest of what is on the disk.
    fn check_digest(&self, captured: &Captured, said: &HashedRequest) {
        let start = said.request.sector as usize * 512;
        let data = &self.disk[start..start + said.request.blksize as usize];
        let algorithm = DigestAlgorithm::from_name(&self.net.csums_alg).expect("csums-alg");
        if !algorithm.matches(data, &said.digest) {
            self.fail(&format!("the digest of {:?} is wrong", said.request));
        }
        if let Packet::CsumRsRequest(kernels) = &captured.frame.packet
            && kernels.request.blksize == said.request.blksize
            && kernels != said
        {
            self.fail(&format!(
                "the kernel asked {kernels:?}\nthe engine {said:?}"
            ));
        }
    }

    /// What the engine says next on that socket, driving it until it does.
    fn hear(&mut self, captured: &Captured) -> Frame {
        let wanted = &captured.frame.packet;
        let mut waited = Duration::ZERO;
        for _ in 0..100_000 {
            if let Some(frame) = self.take_said(captured.socket, wanted) {
                return frame;
            }
            if waited < PATIENCE || !self.may_act() || !self.is_connected() {
                waited += Duration::from_millis(20);
                self.pass(Duration::from_millis(20));
                if waited > Duration::from_secs(20) {
                    break;
                }
                continue;
            }
            waited = Duration::ZERO;
            if let Some(action) = self.actions.pop_front() {
                self.run(action);
            }
        }
        self.fail(&format!("the engine does not say {wanted:.300?}"));
    }

    /// Nobody acts in the middle of a handshake.
    fn is_connected(&self) -> bool {
        self.state().conn >= ConnState::Connected
    }

    pub(super) fn may_act(&self) -> bool {
        self.actions.front().is_some_and(|action| {
            !matches!(action, Action::LinkEnds | Action::Crash | Action::Unseen(_))
        })
    }

    fn take_said(&mut self, socket: Socket, wanted: &Packet) -> Option<Frame> {
        let id = *self.link.get(&socket)?;
        let speaker = self.sockets.get_mut(&id)?;
        loop {
            let packet = &speaker.said.front()?.packet;
            let repeated = match packet {
                // The engine also tells its state after a skipped initial sync and once more after a resync.
                Packet::State(state) => {
                    let later = || {
                        speaker
                            .said
                            .iter()
                            .skip(1)
                            .any(|frame| &frame.packet == wanted)
                    };
                    self.last_state == Some(state.state.0)
                        || !matches!(wanted, Packet::State(_))
                        || packet != wanted && later()
                }
                _ => false,
            };
            if !is_left_out(packet) && !repeated {
                break;
            }
            speaker.said.pop_front();
        }
        // Resync replies and acks may come in another order: the one that is wanted is looked for.
        let at = match wanted {
            Packet::RsDataReply(reply) => speaker.said.iter().position(
                |frame| matches!(&frame.packet, Packet::RsDataReply(data) if data.sector == reply.sector),
            )?,
            Packet::RsWriteAck(ack) => speaker.said.iter().position(
                |frame| matches!(&frame.packet, Packet::RsWriteAck(own) if own.sector == ack.sector),
            )?,
            Packet::RsIsInSync(ack) => speaker.said.iter().position(
                |frame| matches!(&frame.packet, Packet::RsIsInSync(own) if own.sector == ack.sector),
            )?,
            Packet::OvReply(reply) => speaker.said.iter().position(
                |frame| matches!(&frame.packet, Packet::OvReply(own) if own.request == reply.request),
            )?,
            Packet::OvResult(ack) => speaker.said.iter().position(
                |frame| matches!(&frame.packet, Packet::OvResult(own) if own.sector == ack.sector),
            )?,
            // A barrier may come before it or after it.
            Packet::Uuids(_) => speaker.said.iter().position(
                |frame| !matches!(&frame.packet, Packet::Barrier(_)),
            )?,
            Packet::RsDeallocated(hole) => speaker.said.iter().position(
                |frame| matches!(&frame.packet, Packet::RsDeallocated(own) if own.sector == hole.sector),
            )?,
            _ => 0,
        };
        let frame = speaker.said.remove(at)?;
        if let Packet::State(state) = &frame.packet {
            self.last_state = Some(state.state.0);
        }
        Some(frame)
    }

    fn compare(&mut self, captured: &Packet, said: &Packet) {
        let mut captured = captured.clone();
        let mut said = said.clone();
        match (&mut captured, &mut said) {
            (Packet::ConnectionFeatures(kernel), Packet::ConnectionFeatures(own)) => {
                kernel.protocol_min = own.protocol_min; // We do not speak 86 to 99.
                kernel.reserved = own.reserved;
            }
            (Packet::AuthChallenge(_), Packet::AuthChallenge(own)) => {
                self.challenge = Some(own.clone());
                return;
            }
            (Packet::Sizes(kernel), Packet::Sizes(own)) => kernel.limits = own.limits,
            (Packet::Uuids(kernel), Packet::Uuids(own)) => {
                return self.compare_generations(kernel, own);
            }
            (Packet::SyncUuid(kernel), Packet::SyncUuid(own)) => {
                self.same_generation(kernel.uuid, own.uuid);
                return;
            }
            (Packet::Data(kernel), Packet::Data(own)) => {
                self.ids.insert(kernel.block_id, own.block_id);
                kernel.block_id = own.block_id;
                if self.state().disk == DiskState::Diskless {
                    kernel.dp_flags.0 |= FUA; // docs/durability.md: so the engine asks for it.
                }
            }
            (Packet::Trim(kernel), Packet::Trim(own))
            | (Packet::Zeroes(kernel), Packet::Zeroes(own)) => {
                self.ids.insert(kernel.block_id, own.block_id);
                kernel.block_id = own.block_id;
            }
            (Packet::DataRequest(kernel), Packet::DataRequest(own)) => {
                self.ids.insert(kernel.block_id, own.block_id);
                (kernel.block_id, kernel.pad) = (own.block_id, own.pad); // The kernel's pad is garbage.
            }
            (Packet::Barrier(kernel), Packet::Barrier(own)) => {
                self.barriers.insert(kernel.barrier, own.barrier);
                return;
            }
            (Packet::WriteAck(kernel), Packet::WriteAck(_)) => kernel.seq_num += self.more_acks,
            (Packet::RsWriteAck(kernel), Packet::RsWriteAck(own))
            | (Packet::OvResult(kernel), Packet::OvResult(own)) => kernel.seq_num = own.seq_num,
            (Packet::RsIsInSync(kernel), Packet::RsIsInSync(own)) => {
                // The kernel's block id is garbage (wire-protocol.md 6.4).
                (kernel.seq_num, kernel.block_id) = (own.seq_num, own.block_id);
            }
            _ => {}
        }
        if captured != said {
            self.fail(&format!(
                "the kernel said {captured:.400?}\nthe engine said {said:.400?}"
            ));
        }
    }

    fn compare_generations(&mut self, kernel: &Uuids, own: &Uuids) {
        let pairs = [
            (kernel.current, own.current),
            (kernel.bitmap, own.bitmap),
            (kernel.history[0], own.history[0]),
            (kernel.history[1], own.history[1]),
        ];
        for (theirs, ours) in pairs {
            self.same_generation(theirs, ours);
        }
        assert_eq!(
            kernel.flags, own.flags,
            "{}: flags of P_UUIDS",
            self.scenario
        );
        assert_eq!(
            kernel.current & 1,
            own.current & 1,
            "{}: the role bit",
            self.scenario
        );
    }

    /// Generations are random: equal ones must stay equal, different ones different. The first meeting pairs them.
    fn same_generation(&mut self, captured: u64, own: u64) {
        const DELTA: u64 = 0x0001_0000_0000_0000;
        let (theirs, ours) = (captured & !1, own & !1);
        if theirs == 4 || theirs == 0 || ours == 4 || ours == 0 {
            if theirs != ours {
                self.fail(&format!(
                    "generation {captured:016x}, the engine says {own:016x}"
                ));
            }
            return;
        }
        let expected = self.generations.get(&theirs).copied().or_else(|| {
            let before = self.generations.get(&theirs.wrapping_sub(DELTA)).copied();
            before.map(|known| known.wrapping_add(DELTA))
        });
        match expected {
            Some(expected) if expected != ours => {
                self.fail(&format!(
                    "generation {captured:016x} is not the engine's {own:016x}"
                ));
            }
            _ => {
                self.generations.insert(theirs, ours);
            }
        }
    }
}
