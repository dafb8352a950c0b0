//! Simple replies out of a stream of bytes; the data of reads are passed over.

/// Where in the stream of replies the last received byte was.
#[derive(Debug, Default)]
pub(super) struct Replies {
    head: [u8; HEAD_BYTES],
    filled: usize,
    /// Bytes of a read's data that are still to come.
    data_left: usize,
}

const HEAD_BYTES: usize = 16;
const MAGIC: u32 = 0x6744_6698;

/// What was found in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The head of the reply with this cookie: how many bytes of data follow it?
    Head(u64),
    /// The reply with this cookie is there with all its data.
    Whole(u64),
}

impl Replies {
    /// Takes received bytes and tells what was found; the number that is given back counts for a head only.
    pub(super) fn take(
        &mut self,
        mut bytes: &[u8],
        mut tell: impl FnMut(Found) -> Result<usize, String>,
    ) -> Result<(), String> {
        while !bytes.is_empty() {
            if self.data_left > 0 {
                let passed = self.data_left.min(bytes.len());
                self.data_left -= passed;
                bytes = &bytes[passed..];
            } else {
                let wanted = (HEAD_BYTES - self.filled).min(bytes.len());
                self.head[self.filled..self.filled + wanted].copy_from_slice(&bytes[..wanted]);
                self.filled += wanted;
                bytes = &bytes[wanted..];
                if self.filled < HEAD_BYTES {
                    return Ok(());
                }
                self.data_left = tell(Found::Head(self.cookie()?))?;
            }
            if self.data_left == 0 {
                self.filled = 0;
                tell(Found::Whole(self.cookie()?))?;
            }
        }
        Ok(())
    }

    fn cookie(&self) -> Result<u64, String> {
        let (numbers, _) = self.head.as_chunks::<4>();
        let [magic, error, high, low] = [0, 1, 2, 3].map(|at| u32::from_be_bytes(numbers[at]));
        if magic != MAGIC {
            return Err(format!("a reply begins with {magic:#x}"));
        }
        if error != 0 {
            return Err(format!("a request failed with error {error}"));
        }
        Ok(u64::from(high) << 32 | u64::from(low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(error: u32, cookie: u64) -> Vec<u8> {
        let mut bytes = MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&error.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes
    }

    fn told(pieces: &[&[u8]]) -> Result<Vec<u64>, String> {
        let (mut replies, mut told) = (Replies::default(), Vec::new());
        for piece in pieces {
            replies.take(piece, |found| {
                match found {
                    // Odd cookies are reads of five bytes.
                    Found::Head(cookie) if cookie % 2 == 1 => return Ok(5),
                    Found::Head(_) => {}
                    Found::Whole(cookie) => told.push(cookie),
                }
                Ok(0)
            })?;
        }
        Ok(told)
    }

    #[test]
    fn replies_may_be_cut_at_any_byte() {
        let mut bytes = reply(0, 2);
        bytes.extend(reply(0, 7));
        bytes.extend(b"12345");
        bytes.extend(reply(0, 4));
        for cut in 0..bytes.len() {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(told(&[first, second]), Ok(vec![2, 7, 4]), "cut at {cut}");
        }
    }

    #[test]
    fn a_read_without_its_data_is_not_finished() {
        let mut bytes = reply(0, 3);
        bytes.extend(b"1234");
        assert_eq!(told(&[&bytes]), Ok(vec![]));
        assert_eq!(told(&[&bytes, b"5"]), Ok(vec![3]));
    }

    #[test]
    fn an_error_and_a_foreign_reply_are_failures() {
        assert!(told(&[&reply(5, 2)]).unwrap_err().contains("error 5"));
        assert!(told(&[&[0x66; 16]]).unwrap_err().contains("0x66666666"));
    }
}
