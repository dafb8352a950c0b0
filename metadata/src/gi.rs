//! Generation identifiers and flags as tools show and change them: `get-gi`, `show-gi`, `set-gi`, `dstate`,
//! `outdate`, `invalidate` on a device that is not attached. `docs/spec/metadata.md` sections 6.4 and 6.5.

use alloc::format;
use alloc::string::{String, ToString};

use crate::superblock::{Flags, Superblock, Uuids};

/// The flags of the `get-gi` line, in its order.
const GI_FLAGS: [Flags; 7] = [
    Flags::CONSISTENT,
    Flags::WAS_UP_TO_DATE,
    Flags::PRIMARY_IND,
    Flags::CONNECTED_IND,
    Flags::FULL_SYNC,
    Flags::PEER_OUT_DATED,
    Flags::CRASHED_PRIMARY,
];

const LEGEND_ABOVE: &str = "
       +--<  Current data generation UUID  >-
       |               +--<  Bitmap's base data generation UUID  >-
       |               |                 +--<  younger history UUID  >-
       |               |                 |         +-<  older history  >-
       V               V                 V         V
";

const LEGEND_BELOW: &str = "
                                                                    ^ ^ ^ ^ ^ ^ ^
                                      -<  Data consistency flag  >--+ | | | | | |
                             -<  Data was/is currently up-to-date  >--+ | | | | |
                                  -<  Node was/is currently primary  >--+ | | | |
                                  -<  Node was/is currently connected  >--+ | | |
         -<  Node was in the progress of setting all bits in the bitmap  >--+ | |
                        -<  The peer's disk was out-dated or inconsistent  >--+ |
      -<  This node was a crashed primary, and has not seen its peer since   >--+

";

/// Why `set-gi` refuses its argument (exit 10).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetGiError {
    /// A generation is not a hexadecimal number of up to 16 digits.
    #[error("'{field}' is not a number.")]
    NotANumber {
        /// The text.
        field: String,
    },
    /// A flag is neither 0 nor 1.
    #[error("'{field}' is not 0 or 1.")]
    NotAFlag {
        /// The text.
        field: String,
    },
    /// More fields than generations and flags.
    #[error("{count} fields, but there are only 4 generations and 7 flags.")]
    TooManyFields {
        /// How many were given.
        count: usize,
    },
}

/// `outdate` of inconsistent data (exit 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Device is inconsistent.")]
pub struct DeviceInconsistent;

/// A size in KiB as the tools write it: divided by 1024, rounding half up, while it has more than four digits.
pub fn pretty_kib(kib: u64) -> String {
    const UNITS: [&str; 6] = ["KB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = kib;
    let mut unit = 0;
    while value >= 10_000 && unit + 1 < UNITS.len() {
        value = value / 1024 + u64::from(value % 1024 >= 512);
        unit += 1;
    }
    format!("{value} {}", UNITS[unit])
}

/// The `get-gi` line without its newline: `C:B:H0:H1:c:u:p:n:f:o:x`.
pub fn get_gi(superblock: &Superblock) -> String {
    let mut line = format!("{:?}", superblock.uuids);
    for flag in GI_FLAGS {
        line.push(':');
        line.push(if superblock.flags.contains(flag) {
            '1'
        } else {
            '0'
        });
    }
    line
}

/// The whole `show-gi` text.
pub fn show_gi(superblock: &Superblock) -> String {
    let mut text = String::from(LEGEND_ABOVE);
    text.push_str(&get_gi(superblock));
    text.push_str(LEGEND_BELOW);
    for line in show_gi_lines(superblock) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// The lines of `show-gi` after the legend.
pub fn show_gi_lines(superblock: &Superblock) -> alloc::vec::Vec<String> {
    let flags = superblock.flags;
    let choose = |flag: Flags, yes: &'static str, no: &'static str| {
        if flags.contains(flag) { yes } else { no }
    };
    let data = match (
        flags.contains(Flags::CONSISTENT),
        flags.contains(Flags::WAS_UP_TO_DATE),
    ) {
        (true, true) => "UpToDate",
        (true, false) => "Outdated",
        (false, _) => "Inconsistent",
    };
    let state = format!(
        "flags:{} {}, {}, {data}{}{}",
        choose(Flags::CRASHED_PRIMARY, " crashed", ""),
        choose(Flags::PRIMARY_IND, "Primary", "Secondary"),
        choose(Flags::CONNECTED_IND, "Connected", "StandAlone"),
        choose(Flags::FULL_SYNC, ", need full sync", ""),
        choose(Flags::PEER_OUT_DATED, ", peer Outdated", ""),
    );
    let clean = format!(
        "meta-data: {}",
        choose(Flags::AL_CLEAN, "clean", "need apply-al")
    );
    let sectors = superblock.la_size.0;
    if sectors == 0 {
        let never = "zero size device -- never seen peer yet?".to_string();
        return alloc::vec![state, clean, never];
    }
    let size = format!(
        "last agreed size: {} ({sectors} sectors)",
        pretty_kib(sectors / 2)
    );
    let bio = format!(
        "last agreed max bio size: {} Byte",
        superblock.la_peer_max_bio_size
    );
    alloc::vec![state, clean, size, bio]
}

/// The word that `dstate` prints.
pub const fn dstate(superblock: &Superblock) -> &'static str {
    let flags = superblock.flags;
    if !flags.contains(Flags::CONSISTENT) {
        "Inconsistent"
    } else if !flags.contains(Flags::WAS_UP_TO_DATE) {
        "Outdated"
    } else if flags.contains(Flags::PEER_OUT_DATED) {
        "UpToDate"
    } else {
        "Consistent"
    }
}

/// The superblock as `set-gi` leaves it: fields in the order of `get-gi`, separated by colons; empty or missing
/// ones keep their value. Generations are stored exactly as given; AL_CLEAN, AL_DISABLED and the magic are kept.
///
/// # Errors
/// [`SetGiError`].
pub fn set_gi(superblock: &Superblock, argument: &str) -> Result<Superblock, SetGiError> {
    let fields: alloc::vec::Vec<&str> = argument.split(':').map(str::trim).collect();
    if fields.len() > 4 + GI_FLAGS.len() {
        return Err(SetGiError::TooManyFields {
            count: fields.len(),
        });
    }
    let mut changed = superblock.clone();
    for (index, field) in fields
        .iter()
        .enumerate()
        .filter(|(_, field)| !field.is_empty())
    {
        match index {
            0..4 => *uuid_field(&mut changed.uuids, index) = parse_uuid(field)?,
            _ => {
                let flag = GI_FLAGS[index - 4];
                changed.flags = match *field {
                    "0" => changed.flags.without(flag),
                    "1" => changed.flags.with(flag),
                    other => {
                        return Err(SetGiError::NotAFlag {
                            field: other.to_string(),
                        });
                    }
                };
            }
        }
    }
    Ok(changed)
}

const fn uuid_field(uuids: &mut Uuids, index: usize) -> &mut u64 {
    match index {
        0 => &mut uuids.current,
        1 => &mut uuids.bitmap,
        2 => &mut uuids.history[0],
        _ => &mut uuids.history[1],
    }
}

/// A generation or device UUID: up to 16 hexadecimal digits, `0x` not needed.
///
/// # Errors
/// [`SetGiError::NotANumber`].
pub fn parse_uuid(field: &str) -> Result<u64, SetGiError> {
    let digits = field
        .strip_prefix("0x")
        .or_else(|| field.strip_prefix("0X"))
        .unwrap_or(field);
    let hexadecimal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16)
        .ok()
        .filter(|_| hexadecimal)
        .ok_or_else(|| SetGiError::NotANumber {
            field: field.to_string(),
        })
}

/// The two lines `set-gi` prints on standard output before it asks.
pub fn text_set_gi(old: &Superblock, new: &Superblock) -> String {
    format!("previously {}\nset GI to  {}\n", get_gi(old), get_gi(new))
}

/// Question of `set-gi`, on standard error after an empty line; "no" ends with exit 0.
pub const TEXT_SET_GI_QUESTION: &str = "Write new GI to disk?";

/// The superblock as `outdate` leaves it.
///
/// # Errors
/// [`DeviceInconsistent`]: exit 5.
pub fn outdate(superblock: &Superblock) -> Result<Superblock, DeviceInconsistent> {
    if !superblock.flags.contains(Flags::CONSISTENT) {
        return Err(DeviceInconsistent);
    }
    let mut changed = superblock.clone();
    changed.flags = changed.flags.without(Flags::WAS_UP_TO_DATE);
    Ok(changed)
}

/// The superblock as `invalidate` leaves it: a full sync is due; generations and bitmap are not touched.
#[must_use]
pub fn invalidate(superblock: &Superblock) -> Superblock {
    let mut changed = superblock.clone();
    changed.flags = changed
        .flags
        .without(Flags::CONSISTENT.with(Flags::WAS_UP_TO_DATE))
        .with(Flags::FULL_SYNC);
    changed
}
