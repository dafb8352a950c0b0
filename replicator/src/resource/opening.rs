//! Opening a connection: features and authentication on the data socket, before there is a link (wire-protocol.md 3.2,
//! 4.3, 4.4).

use alloc::format;
use alloc::string::{String, ToString};

use bytes::Bytes;
use tandem_protocol::ProtocolError;
use tandem_protocol::auth::{HmacAlgorithm, SharedSecret, Verdict, check_challenge};
use tandem_protocol::features::{Agreed, Features, TANDEM_CAPABILITIES};
use tandem_protocol::limits::CHALLENGE_BYTES;
use tandem_protocol::packet::Packet;
use tandem_protocol::packets::ConnectionFeatures;

use super::Resource;
use super::dialling::Phase;
use super::trouble::Telling;
use crate::state::word::ConnState;
use crate::time::Time;

/// Features and authentication under way on the data socket.
#[derive(Debug)]
pub(crate) struct Opening {
    /// The awaited packet has to come until then.
    pub(super) deadline: Time,
    awaits: Awaits,
}

#[derive(Debug)]
enum Awaits {
    Features,
    Challenge {
        agreed: Agreed,
        own: [u8; CHALLENGE_BYTES],
    },
    Response {
        agreed: Agreed,
        own: [u8; CHALLENGE_BYTES],
    },
}

impl Opening {
    /// The packet that has to come next.
    pub(super) fn awaited(&self) -> &'static str {
        match self.awaits {
            Awaits::Features => "features",
            Awaits::Challenge { .. } => "challenge (does it have the shared secret?)",
            Awaits::Response { .. } => "answer to the challenge",
        }
    }
}

/// By their numbers on the tape.
const VERDICTS: [Verdict; 3] = [Verdict::Accepted, Verdict::Refused, Verdict::WrongLength];

/// How an opening fails.
enum Failed {
    /// Trying again may help.
    Retry(String),
    /// It cannot: a person has to act.
    StandAlone(String),
}

impl Resource {
    /// Both sockets are there: the features are exchanged.
    pub(super) fn open(&mut self) {
        self.connection.dialling.phase = Phase::Opening(Opening {
            deadline: self.now + self.opening_timeout(),
            awaits: Awaits::Features,
        });
        let own = own_features();
        self.send_early(Packet::ConnectionFeatures(own));
        self.connection.link_work = true;
    }

    /// Sends on the data socket before there is a link.
    fn send_early(&mut self, packet: Packet) {
        let now = self.now;
        if let Some(data) = self.connection.dialling.data.as_mut() {
            data.send(now, packet.on_connection(), &mut self.effects);
        }
    }

    /// Handles what came for the opening.
    pub(super) fn step_opening(&mut self) {
        while let Phase::Opening(_) = self.connection.dialling.phase {
            let Some(data) = self.connection.dialling.data.as_mut() else {
                return;
            };
            let result = match data.next() {
                Ok(None) => return,
                Ok(Some(frame)) => self.opening_packet(frame.packet),
                Err(error) => Err(self.opening_error(&error)),
            };
            match result {
                Ok(()) => {}
                Err(Failed::Retry(text)) => self.attempt_failed(Telling::Reason, &text),
                Err(Failed::StandAlone(text)) => self.refuse_connection(&text),
            }
            if self.connection.cstate <= ConnState::Disconnecting {
                return;
            }
        }
    }

    /// The stream is not what it should be: a wrong packet instead of the features is final, garbage is not (4.6).
    fn opening_error(&self, error: &ProtocolError) -> Failed {
        let text = format!("in the handshake: {error}");
        let features = matches!(
            &self.connection.dialling.phase,
            Phase::Opening(Opening {
                awaits: Awaits::Features,
                ..
            })
        );
        match error {
            ProtocolError::Unexpected { .. } | ProtocolError::BadLength { .. } if features => {
                Failed::StandAlone(text)
            }
            _ => Failed::Retry(text),
        }
    }

    fn opening_packet(&mut self, packet: Packet) -> Result<(), Failed> {
        let phase = core::mem::take(&mut self.connection.dialling.phase);
        let Phase::Opening(opening) = phase else {
            self.connection.dialling.phase = phase;
            return Ok(());
        };
        let next = match (opening.awaits, packet) {
            (Awaits::Features, Packet::ConnectionFeatures(peer)) => self.features_came(&peer)?,
            (Awaits::Challenge { agreed, own }, Packet::AuthChallenge(challenge)) => {
                self.challenge_came(agreed, own, &challenge)?
            }
            (Awaits::Response { agreed, own }, Packet::AuthResponse(response)) => {
                self.response_came(&own, &response)?;
                self.establish(agreed);
                return Ok(());
            }
            (Awaits::Challenge { .. }, other) => {
                let text = format!(
                    "the peer does not authenticate itself ({} instead of P_AUTH_CHALLENGE): give both nodes the same cram-hmac-alg and shared-secret",
                    other.command()
                );
                return Err(Failed::StandAlone(text));
            }
            (_, other) => {
                let text = format!("{} came in the middle of the handshake", other.command());
                return Err(Failed::Retry(text));
            }
        };
        if let Some(awaits) = next {
            self.connection.dialling.phase = Phase::Opening(Opening {
                deadline: self.now + self.opening_timeout(),
                awaits,
            });
        }
        Ok(())
    }

    /// None: the link is established.
    fn features_came(&mut self, peer: &ConnectionFeatures) -> Result<Option<Awaits>, Failed> {
        let agreed = own_features()
            .agree(peer)
            .map_err(|error| Failed::StandAlone(error.to_string()))?;
        if let Some(data) = self.connection.dialling.data.as_mut() {
            data.set_agreed(&agreed);
        }
        if self.secret().is_none() {
            self.establish(agreed);
            return Ok(None);
        }
        let mut own = [0; CHALLENGE_BYTES];
        self.random.fill(&mut own);
        self.send_early(Packet::AuthChallenge(Bytes::copy_from_slice(&own)));
        Ok(Some(Awaits::Challenge { agreed, own }))
    }

    fn challenge_came(
        &mut self,
        agreed: Agreed,
        own: [u8; CHALLENGE_BYTES],
        challenge: &[u8],
    ) -> Result<Option<Awaits>, Failed> {
        let judged = check_challenge(&own, challenge);
        let judged = match self
            .tape
            .is(|| judged == Err(ProtocolError::ReflectedChallenge))
        {
            true => Err(ProtocolError::ReflectedChallenge),
            false => judged,
        };
        judged.map_err(|error| Failed::StandAlone(error.to_string()))?;
        let Some((algorithm, secret)) = self.secret() else {
            return Err(Failed::Retry(String::from(
                "authentication is not configured",
            )));
        };
        let response = algorithm.response(&secret, challenge);
        self.send_early(Packet::AuthResponse(response.into()));
        Ok(Some(Awaits::Response { agreed, own }))
    }

    fn response_came(
        &mut self,
        own: &[u8; CHALLENGE_BYTES],
        response: &[u8],
    ) -> Result<(), Failed> {
        let Some((algorithm, secret)) = self.secret() else {
            return Err(Failed::Retry(String::from(
                "authentication is not configured",
            )));
        };
        let judged = || algorithm.verify(&secret, own, response) as u8;
        match VERDICTS.get(usize::from(self.tape.verdict(judged))) {
            Some(Verdict::Accepted) => Ok(()),
            Some(Verdict::Refused) | None => Err(Failed::StandAlone(String::from(
                "the peer's authentication is wrong: give both nodes the same shared-secret",
            ))),
            Some(Verdict::WrongLength) => Err(Failed::Retry(format!(
                "the peer authenticates with another algorithm than {}: give both nodes the same cram-hmac-alg",
                algorithm.name()
            ))),
        }
    }

    fn secret(&self) -> Option<(HmacAlgorithm, SharedSecret)> {
        let (secret, name) = self.connection.net.as_ref()?.secret.as_ref()?;
        Some((HmacAlgorithm::from_name(name)?, SharedSecret::new(secret)))
    }
}

fn own_features() -> ConnectionFeatures {
    ConnectionFeatures::own(Features::KERNEL_8_4, TANDEM_CAPABILITIES)
}
