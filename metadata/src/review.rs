//! The dialogue of `create-md`: what has to be asked or refused, with the texts of `docs/spec/metadata.md` section 6.1.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::activity_log::AlGeometry;
use crate::codec::be32;
use crate::detect::{Found, Kind, Marks};
use crate::placement::{Layout, Placement};
use crate::relocate::Former;
use crate::superblock::{Superblock, Version};
use crate::units::{ByteLen, ByteOffset};

/// Exit code when a question is answered "no".
pub const EXIT_CANCELLED: u8 = 1;
/// Exit code of a device that is too small, or of bad values.
pub const EXIT_BAD_VALUE: u8 = 10;
/// Exit code of an attempt to change the stripes of existing metadata.
pub const EXIT_STRIPES: u8 = 30;
/// Exit code of a refusal because of existing data.
pub const EXIT_EXISTING_DATA: u8 = 40;

/// What the administrator said about the sanity checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SanityChecks {
    /// Nothing: they hold.
    Obey,
    /// `--ignore-sanity-checks`.
    Ignore,
}

/// A question; `--force` answers all with yes. Only the full word `yes` confirms, and without a terminal the answer
/// is no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// For standard output, before the question.
    pub stdout: String,
    /// The question, for standard error.
    pub stderr: String,
    /// For standard output if the answer is no.
    pub cancelled: &'static str,
}

/// A refusal that no answer changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For standard output.
    pub stdout: String,
    /// For standard error.
    pub stderr: String,
    /// The exit code.
    pub exit: u8,
}

/// What to do before `create-md` writes: print `notes`, ask each question in order, then refuse if there is a refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// The questions, in order.
    pub questions: Vec<Question>,
    /// Text for standard output between the questions and the work.
    pub notes: String,
    /// The refusal, after the questions.
    pub refusal: Option<Refusal>,
}

/// Metadata that are already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Existing {
    /// Their version.
    pub version: Version,
    /// Where their superblock is.
    pub offset: ByteOffset,
    /// The style, as in [`Placement::style`].
    pub style: &'static str,
    /// The stripes, for v08.
    pub geometry: Option<AlGeometry>,
}

/// Where the superblock of fixed-size v07 internal metadata would be: 128 MiB before the end.
pub const fn v07_internal_offset(device: ByteLen) -> Option<ByteOffset> {
    match (device.0 / 4096 * 4096).checked_sub(128 << 20) {
        Some(offset) => Some(ByteOffset(offset)),
        None => None,
    }
}

/// Looks for metadata of any version in a block read at a place where a superblock may be. `layout` is the new
/// metadata's. Damaged v08 metadata count as well: their owner is asked before they are overwritten.
pub fn existing(layout: &Layout, offset: ByteOffset, block: &[u8]) -> Option<Existing> {
    let version = Version::of(block)?;
    let mut style = layout.placement().style();
    let mut geometry = None;
    match version {
        Version::V08(_) => {
            let opened = Superblock::open(layout.placement(), layout.device(), block);
            geometry = opened
                .ok()
                .and_then(|(superblock, _)| superblock.geometry().ok());
        }
        Version::V07 => {
            // Only the size of a v07 superblock tells its fixed form (128 MiB) from the flexible one.
            if block.len() >= 36 && be32(block, 32) == 262_144 {
                style = "fixed-size internal";
            }
        }
        Version::V06 | Version::V09 => {}
    }
    Some(Existing {
        version,
        offset,
        style,
        geometry,
    })
}

/// Reviews what was found. `name` is the device's path, for the texts. `former` are metadata that a device which has
/// grown left behind; they do not count beside `existing` ones.
pub fn review(
    layout: &Layout,
    name: &str,
    existing: Option<&Existing>,
    former: Option<&Former>,
    found: Option<&Found>,
    checks: SanityChecks,
) -> Review {
    let mut review = Review::default();
    if let Some(existing) = existing {
        review_existing(&mut review, layout, name, existing);
        if review.refusal.is_some() {
            return review;
        }
    } else if let Some(former) = former {
        review
            .questions
            .push(ask_about_former(layout, name, former));
    }
    // External metadata stand at the start of the device, or of their slot, themselves: they have been asked about.
    let own = existing.is_some()
        && layout.placement() != Placement::Internal
        && found.is_some_and(|found| found.kind == Kind::SomeData);
    if let Some(found) = found.filter(|_| !own) {
        review_found(&mut review, layout, found, checks);
    }
    review
}

fn review_existing(review: &mut Review, layout: &Layout, name: &str, existing: &Existing) {
    let style = layout.placement().style();
    let mut text = format!(
        "You want me to create a v08 style {style} meta data block.\nThere appears to be a {} {} \
         meta data block\nalready in place on {name} at byte offset {}\n\n",
        existing.version.name(),
        existing.style,
        existing.offset.0,
    );
    let stripes = |geometry: AlGeometry| (geometry.stripes(), geometry.stripe_size_4k());
    if let Some(old) = existing.geometry.filter(|old| *old != layout.geometry()) {
        let ((a, b), (c, d)) = (stripes(old), stripes(layout.geometry()));
        text.push_str(&format!(
            "Its activity log has {a} stripe(s) of {b} blocks, not {c} of {d}.\nChanging the \
             stripes of existing meta data is not implemented:\nwipe them first (wipe-md), then \
             create them anew.\n"
        ));
        review.refusal = Some(Refusal {
            stdout: String::new(),
            stderr: text,
            exit: EXIT_STRIPES,
        });
        return;
    }
    text.push_str(match existing.version {
        Version::V08(_) => "Do you really want to overwrite the existing meta-data?\n",
        Version::V06 | Version::V07 | Version::V09 => {
            "They will not be converted: a full resync will be needed.\n\
             Do you really want to replace the existing meta-data?\n"
        }
    });
    review.questions.push(Question {
        stdout: String::new(),
        stderr: text,
        cancelled: "Operation cancelled.\n",
    });
}

fn ask_about_former(layout: &Layout, name: &str, former: &Former) -> Question {
    let what = if former.movable {
        "check-resize moves them to the new end. New ones know nothing of the data, and of what\n\
         differs from the peer: a full resync will be needed."
    } else {
        "They are damaged, or those of another device: check-resize does not move them."
    };
    let style = layout.placement().style();
    Question {
        stdout: String::new(),
        stderr: format!(
            "You want me to create a v08 style {style} meta data block.\n\
             There appears to be a v08 {style} meta data block\n\
             at the former end of {name}, at byte offset {}: it had {} bytes, and has {} now\n\n\
             {what}\nDo you really want to give up the existing meta-data?\n",
            former.offset.0,
            former.size.0,
            layout.device().0,
        ),
        cancelled: "Operation cancelled.\n",
    }
}

/// The three offsets that introduce a finding.
fn offsets(layout: &Layout) -> String {
    format!(
        "md_offset {}\nal_offset {}\nbm_offset {}\n\n",
        layout.superblock_offset().0,
        layout.activity_log_offset().0,
        layout.bitmap_offset().0,
    )
}

const TEXT_TRUNCATED: &str = "Device size would be truncated, which
would corrupt data and result in
'access beyond end of device' errors.
";
const TEXT_ZERO_OUT: &str = "If you want me to do this, you need to zero out the first part
of the device (destroy the content).
You should be very sure that you mean it.
";
/// Where zeroing the first part would not help.
const TEXT_REMOVE_MARKS: &str =
    "If you want me to do this, you need to remove its marks (wipefs -a), since
zeroing the first part of the device would leave those at its end.
You should be very sure that you mean it.
";
const TEXT_SHRINK: &str = "You need to either
   * use external meta data (recommended)
   * shrink that filesystem first
   * zero out the device (destroy the filesystem)
";
const TEXT_REFUSED: &str = "Operation refused.\n\n";
const TEXT_IGNORED: &str = "\nIgnoring sanity check on user request.\n\n";
const TEXT_PROCEED: &str = "\nDo you want to proceed?\n";
const TEXT_CANCELED: &str = "Operation canceled.\n";

fn review_found(review: &mut Review, layout: &Layout, found: &Found, checks: SanityChecks) {
    let mut text = offsets(layout);
    text.push_str(&format!("Found {}\n", found.kind.text()));
    let external = layout.placement() != Placement::Internal;
    if found.kind == Kind::SomeData {
        text.push_str("\n ==> This might destroy existing data! <==\n");
        return ask(review, text);
    }
    if external {
        text.push_str("\nThis would corrupt existing data.\n");
        return refuse_or_ignore(review, text, found.marks, checks);
    }
    let left = layout.data_size_max().0 / 2;
    match found.used {
        Some(used) => {
            // Rounding down could let something fit that is half a kilobyte too long.
            let kib = used.0.div_ceil(1024);
            text.push_str(&format!(
                "{kib:>12} kB data area apparently used\n{left:>12} kB left usable by current \
                 configuration\n\n"
            ));
            if kib > left {
                text.push_str(TEXT_TRUNCATED);
                text.push_str(TEXT_SHRINK);
                text.push_str(TEXT_REFUSED);
                review.refusal = Some(refusal(text));
            } else {
                text.push_str(
                    "Even though it looks like this would place the new meta data into\n\
                     unused space, you still need to confirm, as this is only a guess.\n",
                );
                ask(review, text);
            }
        }
        None => {
            text.push_str(&format!(
                "{left:>12} kB left usable by current configuration\n"
            ));
            if found.kind != Kind::Swap {
                text.push_str("Could not determine the size of the actually used data area.\n\n");
            }
            text.push_str(TEXT_TRUNCATED);
            refuse_or_ignore(review, text, found.marks, checks);
        }
    }
}

fn ask(review: &mut Review, stdout: String) {
    let stderr = TEXT_PROCEED.to_string();
    review.questions.push(Question {
        stdout,
        stderr,
        cancelled: TEXT_CANCELED,
    });
}

fn refuse_or_ignore(review: &mut Review, mut text: String, marks: Marks, checks: SanityChecks) {
    match checks {
        SanityChecks::Ignore => {
            text.push_str(TEXT_IGNORED);
            review.notes.push_str(&text);
        }
        SanityChecks::Obey => {
            text.push_str(match marks {
                Marks::Start => TEXT_ZERO_OUT,
                Marks::End | Marks::BothEnds => TEXT_REMOVE_MARKS,
            });
            text.push_str(TEXT_REFUSED);
            review.refusal = Some(refusal(text));
        }
    }
}

const fn refusal(stdout: String) -> Refusal {
    Refusal {
        stdout,
        stderr: String::new(),
        exit: EXIT_EXISTING_DATA,
    }
}

/// The refusal of a device that is too small for `create-md` at all.
pub fn text_too_small(name: &str, device: ByteLen) -> String {
    format!("{name} is only {} bytes. That's not enough.\n", device.0)
}

/// The refusal of a device that ends before the place of the superblock.
pub fn text_superblock_beyond(name: &str, device: ByteLen, offset: ByteOffset) -> String {
    format!(
        "Device too small: expecting meta data block at\nbyte offset {}, but {name} is only {} bytes.\n",
        offset.0, device.0
    )
}
