//! Lines of the control socket between the command line and the daemon: JSON, one message a line,
//! none longer than a limit. This is not DRBD's but ours alone, on a Unix socket of one host. What
//! the messages say is defined by the daemon.

use alloc::string::ToString;
use alloc::vec::Vec;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ProtocolError;

/// A message as a line, with its newline.
///
/// # Errors
///
/// [`ProtocolError::LineTooLong`] beyond `limit`; [`ProtocolError::BadLine`] when JSON has no words
/// for it.
pub fn to_line<T: Serialize>(message: &T, limit: usize) -> Result<Vec<u8>, ProtocolError> {
    let mut line = serde_json::to_vec(message).map_err(|error| ProtocolError::BadLine {
        reason: error.to_string(),
    })?;
    line.push(b'\n');
    if line.len() > limit {
        return Err(ProtocolError::LineTooLong { limit });
    }
    Ok(line)
}

/// Collects bytes into lines and lines into messages, within a limit.
#[derive(Debug)]
pub struct LineReader {
    buffer: Vec<u8>,
    /// Bytes at the start of `buffer` that were returned already.
    consumed: usize,
    /// Bytes of `buffer` in which no newline was found, so that none is looked at twice.
    searched: usize,
    limit: usize,
}

impl LineReader {
    /// A reader of lines of at most `limit` bytes, newline included.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            buffer: Vec::new(),
            consumed: 0,
            searched: 0,
            limit,
        }
    }

    /// Takes bytes from the socket.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.searched -= self.consumed;
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether a message has begun and its newline is missing.
    #[must_use]
    pub fn is_inside_message(&self) -> bool {
        self.consumed < self.buffer.len()
    }

    /// The next message; `None` when more bytes are needed. Empty lines are skipped.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::LineTooLong`]: give the connection up. [`ProtocolError::BadLine`]: the
    /// line is consumed, and the next one may be sound.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ProtocolError> {
        loop {
            let found = self.buffer[self.searched..]
                .iter()
                .position(|&byte| byte == b'\n');
            let end = found.map_or(self.buffer.len(), |at| self.searched + at + 1);
            if end - self.consumed > self.limit {
                return Err(ProtocolError::LineTooLong { limit: self.limit });
            }
            self.searched = end;
            if found.is_none() {
                return Ok(None);
            }
            let line = self.buffer[self.consumed..end].trim_ascii();
            let message = if line.is_empty() {
                None
            } else {
                let parsed = serde_json::from_slice(line);
                Some(parsed.map_err(|error| ProtocolError::BadLine {
                    reason: error.to_string(),
                }))
            };
            self.consumed = end;
            match message {
                Some(message) => return message.map(Some),
                None => continue,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use serde::Deserialize;

    use super::*;

    const LIMIT: usize = 1 << 20;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Request {
        id: u64,
        verb: alloc::string::String,
    }

    fn request(id: u64) -> Request {
        Request {
            id,
            verb: "up".into(),
        }
    }

    #[test]
    fn messages_survive_any_cut() {
        let mut bytes = to_line(&request(1), LIMIT).unwrap();
        bytes.extend(b"\r\n\n");
        bytes.extend(to_line(&request(2), LIMIT).unwrap());
        for cut in 0..=bytes.len() {
            let mut reader = LineReader::new(LIMIT);
            let mut got = vec![];
            for part in [&bytes[..cut], &bytes[cut..]] {
                reader.push(part);
                while let Some(message) = reader.next_message::<Request>().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, [request(1), request(2)]);
            assert!(!reader.is_inside_message());
        }
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit() {
        let mut reader = LineReader::new(16);
        reader.push(&[b'x'; 16]);
        assert_eq!(reader.next_message::<Request>(), Ok(None));
        reader.push(b"x");
        let too_long = ProtocolError::LineTooLong { limit: 16 };
        assert_eq!(reader.next_message::<Request>(), Err(too_long.clone()));
        assert_eq!(to_line(&request(1), 16), Err(too_long));
    }

    #[test]
    fn a_malformed_line_does_not_spoil_the_next() {
        let mut reader = LineReader::new(LIMIT);
        reader.push(b"{\"id\": }\n\xff\xfe\n");
        reader.push(&to_line(&request(3), LIMIT).unwrap());
        for _ in 0..2 {
            let bad = reader.next_message::<Request>();
            assert!(matches!(bad, Err(ProtocolError::BadLine { .. })));
        }
        assert_eq!(reader.next_message(), Ok(Some(request(3))));
        assert_eq!(reader.next_message::<Request>(), Ok(None));
    }
}
