//! The machine around the engine: its disk, its sockets, its clock.

use super::*;

impl Player {
    pub(super) fn run(&mut self, action: Action) {
        self.next += 1;
        match action {
            Action::Run(command) => self.event(Event::Command {
                id: CommandId(self.next),
                command: *command,
            }),
            Action::Connect { discard_my_data } => {
                let command = Command::Connect {
                    net: self.net.clone(),
                    discard_my_data,
                    tentative: false,
                };
                self.event(Event::Command {
                    id: CommandId(self.next),
                    command,
                });
            }
            Action::Write { offset, data, fua } => {
                let operation = Operation::Write {
                    offset,
                    data: Bytes::from(data),
                    fua,
                };
                let request = Request {
                    id: RequestId(self.next),
                    volume: VOLUME,
                    operation,
                };
                self.event(Event::Request(request));
            }
            Action::LinkEnds => {}
        }
    }

    pub(super) fn pass(&mut self, length: Duration) {
        let end = self.now + length;
        while let Some(at) = self.resource.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.event(Event::Timer);
        }
        self.now = end;
    }

    pub(super) fn event(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut effects = Effects::new();
            self.resource.handle(self.now, event, &mut effects);
            for effect in effects {
                self.perform(effect, &mut events);
            }
        }
    }

    fn perform(&mut self, effect: Effect, events: &mut VecDeque<Event>) {
        match effect {
            Effect::Disk {
                token, operation, ..
            } => {
                let result = Ok(self.disk_operation(operation));
                events.push_back(Event::DiskDone { token, result });
            }
            Effect::Meta {
                token, operation, ..
            } => {
                let data = match operation {
                    MetaOperation::Read { offset, length } => self.read(offset, length),
                    MetaOperation::Write { offset, data, .. } => self.write(offset, &data),
                    MetaOperation::Flush => Bytes::new(),
                };
                events.push_back(Event::MetaDone {
                    token,
                    result: Ok(data),
                });
            }
            Effect::Send {
                socket,
                head,
                payload,
            } => self.heard(socket, &head, payload, events),
            Effect::Answer { answer, .. } if answer.exit != 0 => {
                self.log.push(format!("answer {answer:?}"))
            }
            Effect::Dial { token } => self.dials.push_back(token),
            Effect::Close { socket, .. } => {
                events.push_back(Event::Closed {
                    socket,
                    reason: String::from("closed here"),
                });
            }
            Effect::OpenBacking { token, .. } | Effect::MeasureBacking { token, .. } => {
                let result = Ok(BackingInfo {
                    data_bytes: DISK_BYTES,
                    meta_bytes: DISK_BYTES,
                    meta_kind: MetaKind::Internal,
                    logical_block: 512,
                    discard: true,
                    discard_zeroes: true,
                });
                events.push_back(Event::BackingOpened { token, result });
            }
            Effect::CloseBacking { token, .. } => events.push_back(Event::BackingClosed { token }),
            Effect::RunHandler { token, .. } => {
                events.push_back(Event::HandlerDone { token, exit: 0 })
            }
            Effect::Notify(Notification::Log { text, .. }) => self.log.push(text),
            _ => {}
        }
    }

    fn heard(
        &mut self,
        socket: SocketId,
        head: &Bytes,
        payload: Option<Bytes>,
        events: &mut VecDeque<Event>,
    ) {
        let Some(speaker) = self.sockets.get_mut(&socket) else {
            return;
        };
        let bytes = head.len() + payload.as_ref().map_or(0, Bytes::len);
        speaker.framer.push(head.clone());
        if let Some(payload) = payload {
            speaker.framer.push(payload);
        }
        while let Some(frame) = speaker
            .framer
            .next()
            .expect("the engine sends what its own framer reads")
        {
            if frame.packet == Packet::Ping {
                let ack = encode(&Frame {
                    volume: 0,
                    packet: Packet::PingAck,
                });
                events.push_back(Event::Bytes { socket, bytes: ack });
            }
            speaker.said.push_back(frame);
        }
        events.push_back(Event::Sent {
            socket,
            bytes: bytes as u64,
        });
    }

    fn disk_operation(&mut self, operation: DiskOperation) -> Bytes {
        match operation {
            DiskOperation::Read { offset, length } => self.read(offset, length),
            DiskOperation::Write { offset, data, .. } => self.write(offset, &data),
            DiskOperation::Discard { offset, length, .. }
            | DiskOperation::Zero { offset, length, .. } => {
                self.write(offset, &vec![0; length as usize])
            }
            DiskOperation::Flush => Bytes::new(),
        }
    }

    fn read(&self, offset: u64, length: u32) -> Bytes {
        let start = offset as usize;
        Bytes::copy_from_slice(&self.disk[start..start + length as usize])
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Bytes {
        let start = offset as usize;
        self.disk[start..start + data.len()].copy_from_slice(data);
        Bytes::new()
    }
}

pub(super) fn fresh_disk(data: &[u8]) -> Vec<u8> {
    let layout = Layout::new(
        Placement::Internal,
        ByteLen(DISK_BYTES),
        AlGeometry::DEFAULT,
    )
    .expect("a layout");
    let mut disk = vec![0; DISK_BYTES as usize];
    let mut put = |offset: u64, bytes: &[u8]| {
        disk[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
    };
    put(0, data);
    let block = activity_log::initialized_block();
    for number in 0..layout.geometry().blocks() {
        put(layout.activity_log_block(number).0, &block[..]);
    }
    put(
        layout.bitmap_offset().0,
        &vec![0xFF; layout.bitmap_len().0 as usize],
    );
    put(
        layout.superblock_offset().0,
        &Superblock::fresh(&layout).encode()[..],
    );
    disk
}
