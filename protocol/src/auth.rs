//! CRAM-HMAC: both nodes prove that they know the shared secret (wire 4.4).
//!
//! Each sends 64 random bytes, answers the other's with an HMAC over them, and compares the answer
//! to its own. The random bytes are the caller's.

use core::fmt;

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};

use crate::command::Command;
use crate::digest::Digest;
use crate::error::ProtocolError;
use crate::limits::{CHALLENGE_BYTES, CHALLENGE_BYTES_MAX, SECRET_BYTES_MAX};

/// The hash of cram-hmac-alg.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HmacAlgorithm {
    /// HMAC-MD5.
    Md5,
    /// HMAC-SHA-1.
    Sha1,
    /// HMAC-SHA-224.
    Sha224,
    /// HMAC-SHA-256.
    Sha256,
    /// HMAC-SHA-384.
    Sha384,
    /// HMAC-SHA-512.
    Sha512,
}

/// Whether the peer proved itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its response is right.
    Accepted,
    /// Right length, wrong content: the secrets differ. The kernel goes StandAlone.
    Refused,
    /// Not the HMAC's length: another algorithm. The kernel tries again.
    WrongLength,
}

/// The shared secret. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedSecret {
    bytes: [u8; SECRET_BYTES_MAX],
    len: usize,
}

impl SharedSecret {
    /// The key in `text`: its bytes up to the first NUL, at most 63.
    #[must_use]
    pub fn new(text: &[u8]) -> Self {
        let end = text
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(text.len());
        let len = end.min(SECRET_BYTES_MAX);
        let mut bytes = [0; SECRET_BYTES_MAX];
        bytes[..len].copy_from_slice(&text[..len]);
        Self { bytes, len }
    }

    fn key(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

impl HmacAlgorithm {
    /// Every algorithm.
    pub const ALL: [Self; 6] = [
        Self::Md5,
        Self::Sha1,
        Self::Sha224,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
    ];

    /// The algorithm by its name in cram-hmac-alg; `None` for one that this build does not have.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }

    /// The name in cram-hmac-alg.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The answer to the peer's challenge: what goes into P_AUTH_RESPONSE.
    #[must_use]
    pub fn response(self, secret: &SharedSecret, challenge: &[u8]) -> Digest {
        match self {
            Self::Md5 => compute::<Hmac<Md5>>(secret, challenge),
            Self::Sha1 => compute::<Hmac<Sha1>>(secret, challenge),
            Self::Sha224 => compute::<Hmac<Sha224>>(secret, challenge),
            Self::Sha256 => compute::<Hmac<Sha256>>(secret, challenge),
            Self::Sha384 => compute::<Hmac<Sha384>>(secret, challenge),
            Self::Sha512 => compute::<Hmac<Sha512>>(secret, challenge),
        }
    }

    /// Judges the peer's answer to our own challenge, in constant time for a given length.
    #[must_use]
    pub fn verify(
        self,
        secret: &SharedSecret,
        own_challenge: &[u8; CHALLENGE_BYTES],
        response: &[u8],
    ) -> Verdict {
        let right = self.response(secret, own_challenge);
        if response.len() != right.as_ref().len() {
            return Verdict::WrongLength;
        }
        let different = right
            .as_ref()
            .iter()
            .zip(response)
            .fold(0, |acc, (a, b)| acc | (a ^ b));
        if core::hint::black_box(different) == 0 {
            Verdict::Accepted
        } else {
            Verdict::Refused
        }
    }
}

#[expect(
    clippy::expect_used,
    reason = "HMAC takes a key of any length: it hashes long ones"
)]
fn compute<M: Mac + KeyInit>(secret: &SharedSecret, challenge: &[u8]) -> Digest {
    let mut mac = <M as KeyInit>::new_from_slice(secret.key()).expect("any key length is valid");
    mac.update(challenge);
    Digest::new(&mac.finalize().into_bytes())
}

/// Judges the peer's challenge before it is answered.
///
/// # Errors
///
/// [`ProtocolError::BadLength`] outside of 64 to 128 bytes, [`ProtocolError::ReflectedChallenge`]
/// when it is our own: answering it would hand the peer the answer that it owes us.
pub fn check_challenge(own: &[u8; CHALLENGE_BYTES], peer: &[u8]) -> Result<(), ProtocolError> {
    if !(CHALLENGE_BYTES..=CHALLENGE_BYTES_MAX).contains(&peer.len()) {
        return Err(ProtocolError::BadLength {
            command: Command::AuthChallenge,
            length: peer.len() as u64,
            min: CHALLENGE_BYTES as u64,
            max: CHALLENGE_BYTES_MAX as u64,
        });
    }
    if peer.starts_with(own) {
        return Err(ProtocolError::ReflectedChallenge);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    #[test]
    fn responses_are_the_published_hmacs() {
        // RFC 2202 and RFC 4231, test case 2.
        let secret = SharedSecret::new(b"Jefe");
        let text = b"what do ya want for nothing?";
        let sha1 = format!("{:?}", HmacAlgorithm::Sha1.response(&secret, text));
        assert_eq!(sha1, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
        let sha256 = format!("{:?}", HmacAlgorithm::Sha256.response(&secret, text));
        assert_eq!(
            sha256,
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        let md5 = format!("{:?}", HmacAlgorithm::Md5.response(&secret, text));
        assert_eq!(md5, "750c783e6ab0b503eaa86e310a5db738");
    }

    #[test]
    fn only_the_right_secret_is_accepted() {
        let challenge = [7; 64];
        let (ours, theirs) = (SharedSecret::new(b"golden"), SharedSecret::new(b"other"));
        for algorithm in HmacAlgorithm::ALL {
            assert_eq!(HmacAlgorithm::from_name(algorithm.name()), Some(algorithm));
            let right = algorithm.response(&ours, &challenge);
            let wrong = algorithm.response(&theirs, &challenge);
            let judge = |response: &[u8]| algorithm.verify(&ours, &challenge, response);
            assert_eq!(judge(right.as_ref()), Verdict::Accepted);
            assert_eq!(judge(wrong.as_ref()), Verdict::Refused);
            assert_eq!(judge(&right.as_ref()[1..]), Verdict::WrongLength);
            assert_eq!(judge(b""), Verdict::WrongLength);
        }
    }

    #[test]
    fn a_reflected_challenge_is_refused_also_with_a_tail() {
        let own = [9; 64];
        assert_eq!(
            check_challenge(&own, &own),
            Err(ProtocolError::ReflectedChallenge)
        );
        assert_eq!(
            check_challenge(&own, &[9; 100]),
            Err(ProtocolError::ReflectedChallenge)
        );
        assert_eq!(check_challenge(&own, &[8; 128]), Ok(()));
        for length in [0, 63, 129] {
            let judged = check_challenge(&own, &[8; 200][..length]);
            assert!(matches!(judged, Err(ProtocolError::BadLength { .. })));
        }
    }

    #[test]
    fn the_secret_ends_at_its_first_nul_and_is_never_printed() {
        assert_eq!(SharedSecret::new(b"abc\0def"), SharedSecret::new(b"abc"));
        assert_eq!(
            SharedSecret::new(&[b'x'; 70]),
            SharedSecret::new(&[b'x'; 63])
        );
        assert!(!format!("{:?}", SharedSecret::new(b"abc")).contains("abc"));
    }
}
