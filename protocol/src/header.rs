//! The three packet headers (wire 2.1).
//!
//! | name | bytes | fields in order |
//! | --- | --- | --- |
//! | h80 | 8 | u32 magic `0x83740267`, u16 command, u16 length |
//! | h95 | 8 | u16 magic `0x835a`, u16 command, u32 length |
//! | h100 | 16 | u32 magic `0x8620ec20`, u16 volume, u16 command, u32 length, u32 pad (0) |

use core::fmt;

use crate::codec::{self, fixed};
use crate::error::ProtocolError;

const MAGIC_80: u32 = 0x8374_0267;
const MAGIC_95: u16 = 0x835a;
const MAGIC_100: u32 = 0x8620_ec20;

/// Which header a stream has at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HeaderKind {
    /// Old 8-byte header: first packets and features only.
    H80,
    /// 8-byte header with a 32-bit length; never used at the versions we agree to.
    H95,
    /// 16-byte header with the volume: everything after the features.
    H100,
}

impl HeaderKind {
    /// Bytes of this header.
    #[must_use]
    pub const fn len(self) -> usize {
        match self {
            Self::H80 | Self::H95 => 8,
            Self::H100 => 16,
        }
    }

    /// Always `false`; exists beside [`HeaderKind::len`] because the language's custom asks for it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }
}

impl fmt::Display for HeaderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::H80 => "h80",
            Self::H95 => "h95",
            Self::H100 => "h100",
        })
    }
}

/// The fields of a header. The command is still a number: nothing is judged here but magic and pad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Volume; 0 in the 8-byte headers.
    pub volume: u16,
    /// Command number.
    pub command: u16,
    /// Bytes that follow the header.
    pub length: u32,
}

#[derive(bincode::Encode, bincode::Decode)]
struct H80 {
    magic: u32,
    command: u16,
    length: u16,
}

#[derive(bincode::Encode, bincode::Decode)]
struct H95 {
    magic: u16,
    command: u16,
    length: u32,
}

#[derive(bincode::Encode, bincode::Decode)]
struct H100 {
    magic: u32,
    volume: u16,
    command: u16,
    length: u32,
    pad: u32,
}

fixed!(H80 => 8, H95 => 8, H100 => 16);

impl Header {
    /// Reads a header of `kind` from the start of `bytes`; `None` when there are too few.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::BadMagic`] (also as soon as four bytes are wrong, without waiting for the
    /// rest) and [`ProtocolError::HeaderPad`].
    pub fn decode(bytes: &[u8], kind: HeaderKind) -> Result<Option<Self>, ProtocolError> {
        let Some(&[a, b, c, d]) = bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let magic = u32::from_be_bytes([a, b, c, d]);
        let right = match kind {
            HeaderKind::H80 => magic == MAGIC_80,
            HeaderKind::H95 => u16::from_be_bytes([a, b]) == MAGIC_95,
            HeaderKind::H100 => magic == MAGIC_100,
        };
        if !right {
            return Err(ProtocolError::BadMagic {
                magic,
                expected: kind,
            });
        }
        let header = match kind {
            HeaderKind::H80 => codec::get::<H80>(bytes).map(|h| Self {
                volume: 0,
                command: h.command,
                length: u32::from(h.length),
            }),
            HeaderKind::H95 => codec::get::<H95>(bytes).map(|h| Self {
                volume: 0,
                command: h.command,
                length: h.length,
            }),
            HeaderKind::H100 => match codec::get::<H100>(bytes) {
                Some(h) if h.pad != 0 => return Err(ProtocolError::HeaderPad { pad: h.pad }),
                Some(h) => Some(Self {
                    volume: h.volume,
                    command: h.command,
                    length: h.length,
                }),
                None => None,
            },
        };
        Ok(header)
    }

    /// Writes the header over `out`, which has its length. `false`: the packet's length does not
    /// fit, or a volume is named that an 8-byte header has no room for.
    #[must_use]
    pub(crate) fn write(&self, kind: HeaderKind, out: &mut [u8]) -> bool {
        let (volume, command, length) = (self.volume, self.command, self.length);
        match kind {
            HeaderKind::H80 => u16::try_from(length).is_ok_and(|length| {
                volume == 0
                    && codec::write(
                        &H80 {
                            magic: MAGIC_80,
                            command,
                            length,
                        },
                        out,
                    )
            }),
            HeaderKind::H95 => {
                volume == 0
                    && codec::write(
                        &H95 {
                            magic: MAGIC_95,
                            command,
                            length,
                        },
                        out,
                    )
            }
            HeaderKind::H100 => codec::write(
                &H100 {
                    magic: MAGIC_100,
                    volume,
                    command,
                    length,
                    pad: 0,
                },
                out,
            ),
        }
    }
}
