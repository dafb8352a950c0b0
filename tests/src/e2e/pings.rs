//! How soon pings are answered, read from what passes a proxy (wire-protocol.md section 3: P_PING and P_PING_ACK have no body).

use std::time::{Duration, Instant};

use super::proxy::{Flow, Heard};

/// P_PING and P_PING_ACK.
const PING: u16 = 0x13;
const PING_ACK: u16 = 0x14;

/// A packet without a body and without a volume, with the header of protocol 100 and later.
fn packet(command: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&0x8620_ec20_u32.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes
}

/// When a packet came, in one direction of a connection: it may have come in pieces.
fn times(heard: &[&Heard], wanted: [u8; 16]) -> Vec<Instant> {
    let mut bytes = Vec::new();
    let mut arrived = Vec::new();
    for piece in heard {
        bytes.extend_from_slice(&piece.bytes);
        arrived.resize(bytes.len(), piece.at);
    }
    let windows = bytes.windows(16).enumerate();
    windows
        .filter(|(_, window)| *window == wanted)
        .map(|(start, _)| arrived[start + 15])
        .collect()
}

/// For each ping in direction `asked` how long its answer took; `None` where none came.
#[must_use]
pub fn answers(heard: &[Heard], asked: Flow) -> Vec<Option<Duration>> {
    let connections = heard
        .iter()
        .map(|piece| piece.connection + 1)
        .max()
        .unwrap_or(0);
    let mut all = Vec::new();
    for connection in 0..connections {
        let of = |asking: bool| -> Vec<&Heard> {
            let own =
                |piece: &&Heard| piece.connection == connection && (piece.flow == asked) == asking;
            heard.iter().filter(own).collect()
        };
        let pings = times(&of(true), packet(PING));
        let answers = times(&of(false), packet(PING_ACK));
        // They are answered in order; one whose ping came before the listening is left out.
        let first = pings.first().copied();
        let mut answers = answers
            .into_iter()
            .filter(|at| first.is_some_and(|first| *at >= first));
        for ping in pings {
            all.push(
                answers
                    .next()
                    .map(|answer| answer.saturating_duration_since(ping)),
            );
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_and_its_answer_are_found_in_pieces_and_in_the_midst_of_others() {
        let start = Instant::now();
        let piece = |connection, flow, millis, bytes: &[u8]| Heard {
            connection,
            flow,
            at: start + Duration::from_millis(millis),
            bytes: bytes.to_vec(),
        };
        let (ping, answer) = (packet(PING), packet(PING_ACK));
        let heard = [
            piece(0, Flow::In, 0, &[7; 300]),
            piece(1, Flow::Out, 1, &answer),
            piece(1, Flow::In, 10, &ping[..5]),
            piece(1, Flow::In, 20, &ping[5..]),
            piece(1, Flow::Out, 30, &[packet(0x16), answer].concat()),
            piece(1, Flow::In, 100, &ping),
        ];
        assert_eq!(
            answers(&heard, Flow::In),
            [Some(Duration::from_millis(10)), None]
        );
        assert_eq!(answers(&heard, Flow::Out), []);
    }
}
