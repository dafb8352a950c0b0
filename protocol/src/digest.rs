//! Digests by the names that the Linux crypto interface gives them (wire 3.6).

use core::fmt;

use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};

use crate::limits::DIGEST_BYTES_MAX;

/// A hash of data-integrity-alg, csums-alg or verify-alg.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DigestAlgorithm {
    /// CRC-32C with initial and final inversion, little-endian.
    Crc32c,
    /// CRC-32 (IEEE) *without* initial and final inversion, little-endian: the kernel's "crc32".
    Crc32,
    /// MD5.
    Md5,
    /// SHA-1.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl DigestAlgorithm {
    /// Every algorithm.
    pub const ALL: [Self; 8] = [
        Self::Crc32c,
        Self::Crc32,
        Self::Md5,
        Self::Sha1,
        Self::Sha224,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
    ];

    /// The algorithm that the kernel knows by `name`; `None` for one that this build does not have.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }

    /// The kernel's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crc32c => "crc32c",
            Self::Crc32 => "crc32",
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Bytes of the digest.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no digest is empty")]
    pub const fn len(self) -> usize {
        match self {
            Self::Crc32c | Self::Crc32 => 4,
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The digest of `data`.
    #[must_use]
    pub fn digest(self, data: &[u8]) -> Digest {
        match self {
            Self::Crc32c => Digest::new(&crc32c::crc32c(data).to_le_bytes()),
            Self::Crc32 => {
                // The library inverts before and after: hand it the inverse of 0, and undo the end.
                let mut hasher = crc32fast::Hasher::new_with_initial(u32::MAX);
                hasher.update(data);
                Digest::new(&(!hasher.finalize()).to_le_bytes())
            }
            Self::Md5 => Digest::new(&Md5::digest(data)),
            Self::Sha1 => Digest::new(&Sha1::digest(data)),
            Self::Sha224 => Digest::new(&Sha224::digest(data)),
            Self::Sha256 => Digest::new(&Sha256::digest(data)),
            Self::Sha384 => Digest::new(&Sha384::digest(data)),
            Self::Sha512 => Digest::new(&Sha512::digest(data)),
        }
    }

    /// Whether `digest` is the one of `data`.
    #[must_use]
    pub fn matches(self, data: &[u8], digest: &[u8]) -> bool {
        self.digest(data).as_ref() == digest
    }
}

impl fmt::Display for DigestAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A digest or HMAC of up to 64 bytes, without an allocation. `as_ref()` gives its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    bytes: [u8; DIGEST_BYTES_MAX],
    len: usize,
}

impl Digest {
    /// `source` has at most [`DIGEST_BYTES_MAX`] bytes in all uses; more would be cut.
    pub(crate) fn new(source: &[u8]) -> Self {
        let len = source.len().min(DIGEST_BYTES_MAX);
        let mut bytes = [0; DIGEST_BYTES_MAX];
        bytes[..len].copy_from_slice(&source[..len]);
        Self { bytes, len }
    }
}

impl AsRef<[u8]> for Digest {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl From<Digest> for bytes::Bytes {
    fn from(digest: Digest) -> Self {
        Self::copy_from_slice(digest.as_ref())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    /// Bit by bit: reflected polynomial, no inversions.
    fn slow_crc(polynomial: u32, mut crc: u32, data: &[u8]) -> u32 {
        for &byte in data {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (polynomial & (0_u32.wrapping_sub(crc & 1)));
            }
        }
        crc
    }

    #[test]
    fn checksums_are_the_kernels_variants() {
        let data = b"123456789";
        assert_eq!(
            slow_crc(0x82f6_3b78, u32::MAX, data) ^ u32::MAX,
            0xe306_9283
        );
        let crc32c = DigestAlgorithm::Crc32c.digest(data);
        assert_eq!(crc32c.as_ref(), 0xe306_9283_u32.to_le_bytes());
        let crc32 = DigestAlgorithm::Crc32.digest(data);
        assert_eq!(crc32.as_ref(), slow_crc(0xedb8_8320, 0, data).to_le_bytes());
        assert_eq!(DigestAlgorithm::Crc32.digest(&[0; 4096]).as_ref(), [0; 4]);
    }

    #[test]
    fn hashes_are_the_published_ones() {
        let md5 = format!("{:?}", DigestAlgorithm::Md5.digest(b"abc"));
        assert_eq!(md5, "900150983cd24fb0d6963f7d28e17f72");
        let sha1 = format!("{:?}", DigestAlgorithm::Sha1.digest(b"abc"));
        assert_eq!(sha1, "a9993e364706816aba3e25717850c26c9cd0d89d");
        let sha256 = format!("{:?}", DigestAlgorithm::Sha256.digest(b"abc"));
        assert_eq!(
            sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn each_name_gives_a_digest_of_its_length() {
        for algorithm in DigestAlgorithm::ALL {
            assert_eq!(
                DigestAlgorithm::from_name(algorithm.name()),
                Some(algorithm)
            );
            assert_eq!(algorithm.digest(b"").as_ref().len(), algorithm.len());
            assert!(algorithm.matches(b"x", algorithm.digest(b"x").as_ref()));
            assert!(!algorithm.matches(b"x", algorithm.digest(b"y").as_ref()));
            assert!(!algorithm.matches(b"x", b""));
        }
        assert_eq!(DigestAlgorithm::from_name("CRC32C"), None);
        assert_eq!(DigestAlgorithm::from_name(""), None);
    }
}
