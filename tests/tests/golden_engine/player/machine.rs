//! The machine around the engine: its disk, its sockets, its clock.

use super::*;

impl Player {
    pub(super) fn run(&mut self, action: Action) {
        self.next += 1;
        match action {
            Action::Run(command) => self.event(Event::Command {
                id: CommandId(self.next),
                command,
            }),
            Action::Connect { discard_my_data } => {
                let command = Command::Connect {
                    net: self.net.clone(),
                    discard_my_data,
                    tentative: false,
                };
                self.event(Event::Command {
                    id: CommandId(self.next),
                    command: Box::new(command),
                });
            }
            Action::Write { offset, data, fua } => {
                let operation = Operation::Write {
                    offset,
                    data: Bytes::from(data),
                    fua,
                };
                self.request(operation);
            }
            Action::Clear {
                offset,
                length,
                unmap,
                zeroes,
            } => {
                let fua = Fua::No;
                self.request(if zeroes {
                    Operation::WriteZeroes {
                        offset,
                        length,
                        fua,
                        unmap,
                    }
                } else {
                    Operation::Discard {
                        offset,
                        length,
                        fua,
                    }
                });
            }
            Action::Read { offset, length } => self.request(Operation::Read { offset, length }),
            Action::Unseen(action) => self.run(*action),
            Action::LinkEnds | Action::Crash => {}
        }
    }

    fn request(&mut self, operation: Operation) {
        let request = Request {
            id: RequestId(self.next),
            volume: VOLUME,
            operation,
        };
        self.event(Event::Request(request));
    }

    /// A new engine finds the disk as the old one left it.
    pub(super) fn live_again(&mut self) {
        self.resource = new_resource(self.backing);
        self.link.clear();
        self.sockets.clear();
        (self.last_state, self.last_expected_state) = (None, None);
        self.more_acks = 0;
        self.dials.clear();
        self.requested.clear();
        self.attach_and_connect();
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
                let result = self.disk_operation(operation);
                events.push_back(Event::DiskDone { token, result });
            }
            Effect::Meta {
                token, operation, ..
            } => {
                let data = match operation {
                    MetaOperation::Read { offset, length } => {
                        read(self.meta_disk(), offset, length)
                    }
                    MetaOperation::Write { offset, data, .. } => {
                        write(self.meta_disk(), offset, &data)
                    }
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
            Effect::Reply {
                result: Ok(data), ..
            } if !data.is_empty() => self.answered_reads.push(data),
            Effect::Dial { token } => self.dials.push_back(token),
            Effect::Close { socket, .. } => {
                events.push_back(Event::Closed {
                    socket,
                    reason: String::from("closed here"),
                });
            }
            Effect::OpenBacking { token, .. } | Effect::MeasureBacking { token, .. } => {
                self.openings += 1;
                if self.openings > 1 {
                    self.backing.bad_byte = None;
                }
                let meta_kind = match self.backing.placement {
                    Placement::Internal => MetaKind::Internal,
                    _ => MetaKind::FlexibleExternal,
                };
                let result = Ok(BackingInfo {
                    data_bytes: self.backing.bytes,
                    meta_bytes: self.meta_disk().len() as u64,
                    meta_kind,
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

    fn disk_operation(&mut self, operation: DiskOperation) -> Result<Bytes, IoError> {
        let (offset, data) = match operation {
            DiskOperation::Read { offset, length } => {
                return Ok(read(&mut self.disk, offset, length));
            }
            DiskOperation::Write { offset, data, .. } => (offset, data),
            DiskOperation::Discard { offset, length, .. }
            | DiskOperation::Zero { offset, length, .. } => {
                (offset, Bytes::from(vec![0; length as usize]))
            }
            DiskOperation::Flush => return Ok(Bytes::new()),
        };
        let range = offset..offset + data.len() as u64;
        if self
            .backing
            .bad_byte
            .is_some_and(|byte| range.contains(&byte))
        {
            let text = format!("write at {offset}: the disk is bad");
            return Err(IoError { text });
        }
        Ok(write(&mut self.disk, offset, &data))
    }

    /// Where the metadata are.
    fn meta_disk(&mut self) -> &mut Vec<u8> {
        match self.backing.placement {
            Placement::Internal => &mut self.disk,
            _ => &mut self.meta,
        }
    }
}

fn read(disk: &mut [u8], offset: u64, length: u32) -> Bytes {
    let start = offset as usize;
    Bytes::copy_from_slice(&disk[start..start + length as usize])
}

fn write(disk: &mut [u8], offset: u64, data: &[u8]) -> Bytes {
    let start = offset as usize;
    disk[start..start + data.len()].copy_from_slice(data);
    Bytes::new()
}

/// The disk with `data` on it, and the disk of the metadata: empty where they are internal.
pub(super) fn fresh_disk(backing: Backing, data: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut disk, mut meta) = (vec![0; backing.bytes as usize], Vec::new());
    disk[..data.len()].copy_from_slice(data);
    if backing.placement != Placement::Internal {
        meta = vec![0; backing.bytes as usize];
    }
    let metadata = if meta.is_empty() {
        &mut disk
    } else {
        &mut meta
    };
    let layout = Layout::new(
        backing.placement,
        ByteLen(metadata.len() as u64),
        AlGeometry::DEFAULT,
    )
    .expect("a layout");
    let block = activity_log::initialized_block();
    for number in 0..layout.geometry().blocks() {
        write(metadata, layout.activity_log_block(number).0, &block[..]);
    }
    let bits = vec![0xFF; layout.bitmap_len().0 as usize];
    write(metadata, layout.bitmap_offset().0, &bits);
    let superblock = Superblock::fresh(&layout).encode();
    write(metadata, layout.superblock_offset().0, &superblock[..]);
    (disk, meta)
}
