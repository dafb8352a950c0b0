//! Carrying out what an engine asks for: disks and sockets of the world.

use super::*;

impl World {
    pub(super) fn perform(&mut self, node: usize, effect: Effect) {
        let fails = self.nodes[node]
            .fail
            .as_mut()
            .is_some_and(|fail| fail(&effect));
        match effect {
            Effect::Disk {
                token, operation, ..
            } => self.disk(node, token, &operation, fails),
            Effect::Meta {
                token, operation, ..
            } => self.meta(node, token, &operation, fails),
            Effect::OpenBacking { token, .. } => self.open(node, token, fails),
            Effect::MeasureBacking { token, .. } => self.measure(node, token),
            Effect::CloseBacking { token, .. } => {
                self.nodes[node].open = false;
                self.events
                    .push_back((node, Event::BackingClosed { token }));
            }
            Effect::RunHandler { token, name, .. } => {
                let at = &mut self.nodes[node];
                at.handlers.push(name);
                let exit = at.handler_exit;
                self.events
                    .push_back((node, Event::HandlerDone { token, exit }));
            }
            Effect::Reply { request, result } => {
                let old = self.nodes[node].replies.insert(request, result);
                assert!(old.is_none(), "{request:?} was answered twice");
            }
            Effect::Answer { command, answer } => {
                let old = self.nodes[node].answers.insert(command, answer);
                assert!(old.is_none(), "{command:?} was answered twice");
            }
            Effect::Notify(notification) => self.notified(node, notification),
            Effect::PauseClients { .. } | Effect::ResumeClients { .. } => {}
            network => self.network(node, network),
        }
    }

    fn notified(&mut self, node: usize, notification: Notification) {
        match notification {
            Notification::Log { level, text, .. } => {
                if level <= Level::Info {
                    let second = self.now.0 / 1_000_000_000;
                    self.nodes[node].log.push(format!("{second}s {text}"));
                }
            }
            Notification::Serve { bytes, .. } => self.nodes[node].served = bytes,
            Notification::StatusChanged => {}
        }
    }

    fn open(&mut self, node: usize, token: Token, fails: bool) {
        let at = &mut self.nodes[node];
        let result = if fails {
            Err(OpenError {
                number: 104,
                text: String::from("can not open backing device"),
            })
        } else {
            assert!(!at.open, "the backing device is opened twice");
            at.open = true;
            Ok(at.backing())
        };
        self.events
            .push_back((node, Event::BackingOpened { token, result }));
    }

    fn measure(&mut self, node: usize, token: Token) {
        let result = Ok(self.nodes[node].backing());
        self.events
            .push_back((node, Event::BackingOpened { token, result }));
    }

    fn disk(&mut self, node: usize, token: Token, operation: &DiskOperation, fails: bool) {
        let at = &mut self.nodes[node];
        let disk = at.data.as_mut().unwrap_or(&mut at.disk);
        let zeroes = |length: u32| Bytes::from(vec![0; length as usize]);
        let result = if fails {
            Err(io_error("data"))
        } else {
            match operation {
                DiskOperation::Read { offset, length } => Ok(disk.read(*offset, *length)),
                DiskOperation::Write { offset, data, fua } => {
                    disk.write(*offset, data, *fua);
                    Ok(Bytes::new())
                }
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
                } => {
                    disk.write(*offset, &zeroes(*length), *fua);
                    Ok(Bytes::new())
                }
                DiskOperation::Flush => {
                    disk.flush();
                    Ok(Bytes::new())
                }
            }
        };
        self.events
            .push_back((node, Event::DiskDone { token, result }));
    }

    fn meta(&mut self, node: usize, token: Token, operation: &MetaOperation, fails: bool) {
        let at = &mut self.nodes[node];
        assert!(at.open, "metadata I/O on a closed device: {operation:?}");
        let disk = &mut at.disk;
        let result = if fails {
            Err(io_error("metadata"))
        } else {
            match operation {
                MetaOperation::Read { offset, length } => {
                    assert!(offset % 4096 == 0 && length % 4096 == 0);
                    let data = disk.read(*offset, *length);
                    // As a sparse file would be read: what was never written has no bytes.
                    let hole = data.iter().all(|byte| *byte == 0);
                    Ok(if hole { Bytes::new() } else { data })
                }
                MetaOperation::Write { offset, data, fua } => {
                    assert!(offset % 4096 == 0 && data.len() % 4096 == 0);
                    disk.write(*offset, data, *fua);
                    Ok(Bytes::new())
                }
                MetaOperation::Flush => {
                    disk.flush();
                    Ok(Bytes::new())
                }
            }
        };
        self.events
            .push_back((node, Event::MetaDone { token, result }));
    }

    fn network(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Listen => self.nodes[node].listening = true,
            Effect::Unlisten => self.nodes[node].listening = false,
            Effect::Dial { token } => self.dial(node, token),
            Effect::Send {
                socket,
                head,
                payload,
            } => self.send(socket, head, payload),
            Effect::Close { socket, how } => self.close(socket, how),
            Effect::PauseRead { socket } => {
                if let Some(end) = self.sockets.get_mut(&socket) {
                    end.paused = true;
                }
            }
            Effect::ResumeRead { socket } => {
                if let Some(end) = self.sockets.get_mut(&socket) {
                    end.paused = false;
                    let node = end.node;
                    let waiting = std::mem::take(&mut end.waiting);
                    self.events
                        .extend(waiting.into_iter().map(|event| (node, event)));
                }
            }
            other => panic!("{other:?} is no effect of the network"),
        }
    }

    fn dial(&mut self, node: usize, token: Token) {
        let peer = 1 - node.min(1);
        let reachable = !self.cut && self.nodes.get(peer).is_some_and(|peer| peer.listening);
        if !reachable {
            let result = Err(DialError::Unreachable(String::from("connection refused")));
            self.events
                .push_back((node, Event::Dialled { token, result }));
            return;
        }
        let (ours, theirs) = (
            SocketId(self.next_socket + 1),
            SocketId(self.next_socket + 2),
        );
        self.next_socket += 2;
        for (id, node, other) in [(ours, node, theirs), (theirs, peer, ours)] {
            let socket = Socket {
                node,
                other,
                paused: false,
                waiting: Vec::new(),
            };
            self.sockets.insert(id, socket);
        }
        self.events.push_back((
            node,
            Event::Dialled {
                token,
                result: Ok(ours),
            },
        ));
        self.events
            .push_back((peer, Event::Accepted { socket: theirs }));
    }

    fn send(&mut self, socket: SocketId, head: Bytes, payload: Option<Bytes>) {
        let Some(end) = self.sockets.get(&socket) else {
            return;
        };
        let (node, other) = (end.node, end.other);
        if self.stalled {
            return;
        }
        let head = if self.kernels {
            without_capabilities(head)
        } else {
            head
        };
        let mut sent = 0;
        for mut bytes in [Some(head), payload].into_iter().flatten() {
            if let Some(left) = self.cut_after.as_mut() {
                bytes.truncate(*left);
                *left -= bytes.len();
            }
            sent += bytes.len() as u64;
            if !bytes.is_empty() && !self.silent {
                self.deliver(other, bytes);
            }
            if self.cut_after == Some(0) {
                self.cut_after = None;
                self.reset_all();
                return;
            }
        }
        self.events.push_back((
            node,
            Event::Sent {
                socket,
                bytes: sent,
            },
        ));
    }

    fn deliver(&mut self, socket: SocketId, bytes: Bytes) {
        let Some(to) = self.sockets.get_mut(&socket) else {
            return;
        };
        let event = Event::Bytes { socket, bytes };
        if to.paused {
            to.waiting.push(event);
        } else {
            self.events.push_back((to.node, event));
        }
    }

    pub(super) fn reset_all(&mut self) {
        for (socket, end) in std::mem::take(&mut self.sockets) {
            let reason = String::from("connection reset");
            self.events
                .push_back((end.node, Event::Closed { socket, reason }));
        }
    }

    fn close(&mut self, socket: SocketId, _how: CloseHow) {
        if let Some(end) = self.sockets.remove(&socket) {
            let reason = String::from("closed by this node");
            self.events
                .push_back((end.node, Event::Closed { socket, reason }));
            self.hang_up(end.other);
        }
    }
}

fn io_error(what: &str) -> IoError {
    IoError {
        text: format!("input/output error ({what}, made by the test)"),
    }
}

/// P_CONNECTION_FEATURES as a kernel sends it: nothing in the reserved words (wire-protocol.md 4.2).
fn without_capabilities(head: Bytes) -> Bytes {
    let features = tandem_protocol::Command::ConnectionFeatures as u16;
    let length = head.len();
    if length != 8 + 72 || head[4..6] != features.to_be_bytes() {
        return head;
    }
    let mut bytes = head.to_vec();
    bytes[length - 56..].fill(0);
    bytes.into()
}
