//! Watching a link: pings, sends without progress, requests without an answer (wire-protocol.md 1.4, state-machine.md
//! 8.1).

use alloc::format;
use core::time::Duration;

use tandem_protocol::packet::Packet;

use super::Resource;
use crate::effect::Level;
use crate::options::NetOptions;
use crate::state::word::ConnState;
use crate::time::Time;

/// A peer sends the states of all its volumes in one go, right after P_PROTOCOL. A volume of which it said nothing for
/// so long is not configured there.
const VOLUME_WAIT: Duration = Duration::from_secs(5);

/// What is known of the peer's life. Starts again with every link.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Liveness {
    /// When the link was made.
    pub(super) since: Time,
    /// When bytes last arrived, on either socket.
    pub(super) received: Time,
    /// When the oldest unanswered ping was sent.
    ping: Option<Time>,
    /// Pings sent and answered on this link.
    pings_sent: u64,
    pings_answered: u64,
    /// When the oldest request is looked at next.
    requests_at: Time,
}

impl Liveness {
    /// For a link made now.
    pub(super) fn of_link(now: Time) -> Liveness {
        Liveness {
            since: now,
            received: now,
            requests_at: now,
            ..Liveness::default()
        }
    }
}

/// `timeout * ko-count`; None: never.
pub(super) fn request_limit(net: &NetOptions) -> Option<Duration> {
    let limit = net.timeout * net.ko_count;
    (!limit.is_zero()).then_some(limit)
}

impl Resource {
    /// Asks the peer for a sign of life now. Returns the number of this ping on this link: once
    /// [`Resource::pings_answered`] is as high, everything that the peer sent on the meta socket before is handled.
    pub(crate) fn ping_now(&mut self) -> u64 {
        if self.connection.link.is_none() {
            return 0;
        }
        self.send(None, Packet::Ping);
        let now = self.now;
        let liveness = &mut self.connection.liveness;
        liveness.ping.get_or_insert(now);
        liveness.pings_sent += 1;
        liveness.pings_sent
    }

    /// The number of the last ping that was answered.
    pub(crate) fn pings_answered(&self) -> u64 {
        self.connection.liveness.pings_answered
    }

    /// P_PING_ACK.
    pub(super) fn ping_answered(&mut self) {
        let now = self.now;
        let liveness = &mut self.connection.liveness;
        liveness.pings_answered = (liveness.pings_answered + 1).min(liveness.pings_sent);
        let open = liveness.pings_answered < liveness.pings_sent;
        liveness.ping = open.then_some(now);
        self.resync_ping_answered();
        self.verify_ping_answered();
    }

    /// When the link (or the way to it) wants to be looked at.
    pub(crate) fn next_link_deadline(&self) -> Time {
        self.link_deadline()
            .min(self.connection_commands_deadline())
    }

    fn link_deadline(&self) -> Time {
        let Some((net, link)) = self
            .connection
            .net
            .as_ref()
            .zip(self.connection.link.as_ref())
        else {
            return self.dialling_deadline();
        };
        let liveness = &self.connection.liveness;
        let ping = match liveness.ping {
            Some(sent) => sent.max(liveness.received) + net.ping_timeout,
            None => liveness.received + net.ping_interval,
        };
        let mut deadline = ping.min(link.closing_deadline());
        for stream in [&link.data, &link.meta] {
            if stream.is_sending() {
                deadline = deadline.min(stream.progress + net.timeout);
            }
        }
        if self.connection.state_sent && link.waiting.is_none() {
            deadline = deadline.min(liveness.since + VOLUME_WAIT);
        }
        if request_limit(net).is_some() {
            deadline = deadline.min(liveness.requests_at);
        }
        deadline
    }

    /// Timers of the link and of the way to it.
    pub(crate) fn tick_link(&mut self) {
        self.tick_dialling();
        let Some(net) = self.connection.net.clone() else {
            return;
        };
        self.tick_closing();
        self.watch_handshake();
        self.watch_pings(&net);
        self.watch_sends(&net);
        self.watch_requests(&net);
    }

    /// A volume that the peer does not know would keep every other one from changing its state (rule 7 of 2.4).
    fn watch_handshake(&mut self) {
        let over = self.connection.liveness.since + VOLUME_WAIT <= self.now;
        let waits = self
            .connection
            .link
            .as_ref()
            .is_some_and(|link| link.waiting.is_none());
        if !over || !waits || !self.connection.state_sent {
            return;
        }
        self.connection.state_sent = false;
        self.state_changed = true;
        for number in self.volume_numbers() {
            let volume = self.volumes.get(&number);
            if volume.is_some_and(|volume| volume.state.conn == ConnState::WFReportParams) {
                let text = format!(
                    "the peer says nothing about volume {}: it is not configured there, and has no second copy",
                    number.0
                );
                self.log(Level::Warn, Some(number), text);
            }
        }
    }

    fn watch_pings(&mut self, net: &NetOptions) {
        if self.connection.link.is_none() {
            return;
        }
        let now = self.now;
        let liveness = &self.connection.liveness;
        match liveness.ping {
            Some(sent) if sent.max(liveness.received) + net.ping_timeout <= now => {
                let text = format!(
                    "no answer to a ping within {} ms (ping-timeout)",
                    net.ping_timeout.as_millis()
                );
                self.link_lost(ConnState::NetworkFailure, &text);
            }
            None if liveness.received + net.ping_interval <= now => {
                self.ping_now();
            }
            _ => {}
        }
    }

    /// Sends that make no progress for `timeout`: on the meta socket the end; on the data socket a ping, and the end after
    /// ko-count times.
    fn watch_sends(&mut self, net: &NetOptions) {
        let now = self.now;
        let Some(link) = self.connection.link.as_mut() else {
            return;
        };
        if link.meta.is_sending() && link.meta.progress + net.timeout <= now {
            let text = format!(
                "the meta socket takes nothing for {} s (timeout)",
                net.timeout.as_secs()
            );
            self.link_lost(ConnState::Timeout, &text);
            return;
        }
        if !link.data.is_sending() || link.data.progress + net.timeout > now {
            return;
        }
        link.data.progress = now;
        link.data.stalled = link.data.stalled.saturating_add(1);
        let stalled = link.data.stalled;
        if net.ko_count > 0 && stalled >= net.ko_count {
            let text = format!(
                "the data socket takes nothing for {} times {} s (ko-count, timeout)",
                stalled,
                net.timeout.as_secs()
            );
            self.link_lost(ConnState::Timeout, &text);
        } else {
            self.ping_now();
        }
    }

    /// Requests, and questions about changes of state, that the peer does not answer although it lives: the data socket may be dead in one
    /// direction while pings pass on the other one.
    fn watch_requests(&mut self, net: &NetOptions) {
        let Some(limit) = request_limit(net) else {
            return;
        };
        let now = self.now;
        if self.connection.link.is_none() || self.connection.liveness.requests_at > now {
            return;
        }
        let since = self.connection.liveness.since;
        let requests = self.oldest_unanswered_request();
        let oldest = requests.into_iter().chain(self.oldest_question()).min();
        let oldest = oldest.map(|sent| sent.max(since));
        match oldest {
            Some(sent) if sent + limit <= now => {
                let text = format!(
                    "the peer does not answer a request for {} s (timeout times ko-count)",
                    limit.as_secs()
                );
                self.link_lost(ConnState::Timeout, &text);
            }
            // A request sent right after this look is found at most a fifth too late.
            Some(sent) => self.connection.liveness.requests_at = (sent + limit).min(now + limit),
            None => self.connection.liveness.requests_at = now + limit / 5,
        }
    }
}
