//! What a disk says after a power cut, and whether it may say so (docs/durability.md, docs/spec/metadata.md).
//!
//! 1. Its metadata can be read: superblock, activity log, bitmap.
//! 2. A Primary's mark (PRIMARY_IND) is there while it is Primary with a disk.
//! 3. A target in a resync does not call itself UpToDate.
//! 4. Every sector holds what was written there, not older than what was promised: what a flush or FUA made durable on this disk
//!    and, when it calls itself UpToDate in the peer's generation, on the peer's.
//! 5. Every block that differs from the peer's disk of that moment is covered: by the bitmap of one of the two, or by the
//!    activity log of one that was Primary. A target covers by itself all that differs from its source.

use std::collections::BTreeSet;

use tandem_metadata::apply::ApplyAl;
use tandem_metadata::units::{ByteLen, PageNumber};
use tandem_metadata::{AlGeometry, Flags, Layout, Placement, Superblock, bitmap};

use super::cuts::Image;
use super::ledger::{GuestDisk, GuestRole, Ledger, Mark, Pace};
use crate::sim::disk::Disk;

/// Sectors of a block.
pub(super) const BLOCK_SECTORS: u64 = 8;

/// The metadata of a disk.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The superblock.
    pub superblock: Superblock,
    /// Sectors of data.
    pub data_sectors: u64,
    /// The bitmap as `apply-al` would leave it.
    covered: Vec<u8>,
}

impl Facts {
    /// Reads internal metadata as an attach would.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn of(disk: &Disk) -> Result<Facts, String> {
        let fault = |what: &str, why: &dyn std::fmt::Display| format!("{what}: {why}");
        let layout = Layout::new(
            Placement::Internal,
            ByteLen(disk.bytes()),
            AlGeometry::DEFAULT,
        )
        .map_err(|why| fault("layout", &why))?;
        let block = disk.read(layout.superblock_offset().0, 4096);
        let superblock = Superblock::decode(&block).map_err(|why| fault("superblock", &why))?;
        superblock
            .check(&layout)
            .map_err(|why| fault("superblock", &why))?;
        let ring = disk.read(layout.activity_log_offset().0, layout.activity_log_len().0);
        let plan = ApplyAl::plan(&superblock, &layout, &ring)
            .map_err(|why| fault("activity log", &why))?;
        let mut covered = disk
            .read(layout.bitmap_offset().0, layout.bitmap_len().0)
            .to_vec();
        for page in plan.pages() {
            let start = page.0 as usize * 4096;
            plan.mark_page(PageNumber(page.0), &mut covered[start..start + 4096]);
        }
        let blind = Flags::PRIMARY_IND.with(Flags::AL_DISABLED);
        if superblock.flags.contains(Flags::FULL_SYNC) || superblock.flags.contains(blind) {
            covered.fill(0xff);
        }
        let data_sectors = superblock.la_size.0;
        Ok(Facts {
            superblock,
            data_sectors,
            covered,
        })
    }

    /// A resync would look at this block.
    #[must_use]
    pub fn covers(&self, block: u64) -> bool {
        bitmap::get(&self.covered, block)
    }

    /// It would be attached as UpToDate.
    #[must_use]
    pub fn is_up_to_date(&self) -> bool {
        let flags = self.superblock.flags;
        flags.contains(Flags::CONSISTENT) && flags.contains(Flags::WAS_UP_TO_DATE)
    }

    /// It is of one moment, be it an old one.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.superblock.flags.contains(Flags::CONSISTENT)
    }

    /// It was Primary.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.superblock.flags.contains(Flags::PRIMARY_IND)
    }

    /// The generation of its data, without the role.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.superblock.uuids.current & !1
    }
}

/// The ledger with what the peer's disk says at each mark.
#[derive(Debug)]
pub struct Judge<'a> {
    ledger: &'a Ledger,
    peers: Vec<Facts>,
}

impl<'a> Judge<'a> {
    /// Reads the peer's metadata at every mark.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn new(ledger: &'a Ledger) -> Result<Judge<'a>, String> {
        let read = |mark: &Mark| {
            Facts::of(&mark.peer).map_err(|why| format!("the peer at {}: {why}", mark.name))
        };
        let peers = ledger.marks.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Judge { ledger, peers })
    }

    /// Judges an image.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge(&self, image: &Image<'_>) -> Result<Facts, String> {
        let facts = Facts::of(image.disk)?;
        let (mark, next) = self.around(image);
        let flags = facts.superblock.flags;
        let is = |disk, role| {
            [mark, next]
                .iter()
                .all(|mark| mark.disk == disk && mark.role == role)
        };
        if is(GuestDisk::Good, GuestRole::Primary) && !facts.is_primary() {
            return Err(format!("a Primary's mark is missing: flags {flags:?}"));
        }
        let target = [mark, next]
            .iter()
            .all(|mark| mark.disk == GuestDisk::Target);
        if target && facts.is_up_to_date() {
            return Err(format!("a target calls itself UpToDate: flags {flags:?}"));
        }
        self.check_values(image, &facts)?;
        self.check_coverage(image, &facts)?;
        Ok(facts)
    }

    /// The marks before and after: the same for an image at a mark.
    fn around(&self, image: &Image<'_>) -> (&Mark, &Mark) {
        let next = if image.at_mark {
            image.mark
        } else {
            image.mark + 1
        };
        let marks = &self.ledger.marks;
        (&marks[image.mark], &marks[next.min(marks.len() - 1)])
    }

    fn check_values(&self, image: &Image<'_>, facts: &Facts) -> Result<(), String> {
        let (mark, next) = self.around(image);
        let same = |number: usize| {
            self.peers
                .get(number)
                .is_some_and(|peer| peer.generation() == facts.generation())
        };
        let follows =
            facts.is_up_to_date() && same(image.mark) && (image.at_mark || same(image.mark + 1));
        let mut sectors: BTreeSet<u64> = image.disk.used(facts.data_sectors).collect();
        sectors.extend(mark.durable.keys());
        for sector in sectors {
            let known = !facts.is_up_to_date() && facts.covers(sector / BLOCK_SECTORS);
            let promised = mark.guest_durable.get(&sector).copied().unwrap_or(0);
            let everywhere = mark.durable.get(&sector).copied().unwrap_or(0);
            let floor = match (known, follows) {
                (true, _) => 0,
                (false, true) => promised.max(everywhere),
                (false, false) => promised,
            };
            let content = image.disk.content(sector);
            self.ledger.allowed(sector, content, floor, next.issued)?;
        }
        Ok(())
    }

    fn check_coverage(&self, image: &Image<'_>, facts: &Facts) -> Result<(), String> {
        let (mark, next) = self.around(image);
        let primary = mark.role == GuestRole::Primary && next.role == GuestRole::Primary;
        if image.at_mark || (next.pace == Pace::Steady && primary) {
            let peer = &self.peers[image.mark];
            for block in differing(image.disk, &mark.peer, facts.data_sectors) {
                if !facts.covers(block) && !peer.covers(block) {
                    return Err(format!(
                        "block {block} differs from the peer's ({} here, {} there) and neither disk knows: flags {:?} here, {:?} there",
                        first_of(image.disk, block),
                        first_of(&mark.peer, block),
                        facts.superblock.flags,
                        peer.superblock.flags
                    ));
                }
            }
        }
        if mark.disk == GuestDisk::Target && next.disk == GuestDisk::Target {
            for block in differing(image.disk, &next.peer, facts.data_sectors) {
                let changed = (block * BLOCK_SECTORS..(block + 1) * BLOCK_SECTORS)
                    .any(|sector| next.written.contains(&sector));
                if !facts.covers(block) && !changed {
                    return Err(format!(
                        "block {block} of a target differs from its source ({} here, {} there) and is not in its bitmap: flags {:?}",
                        first_of(image.disk, block),
                        first_of(&next.peer, block),
                        facts.superblock.flags
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Blocks in which two disks differ below `sectors`.
#[must_use]
pub fn differing(a: &Disk, b: &Disk, sectors: u64) -> BTreeSet<u64> {
    let used = a.used(sectors).chain(b.used(sectors));
    used.filter(|sector| a.content(*sector) != b.content(*sector))
        .map(|sector| sector / BLOCK_SECTORS)
        .collect()
}

fn first_of(disk: &Disk, block: u64) -> String {
    let words: Vec<String> = (block * BLOCK_SECTORS..(block + 1) * BLOCK_SECTORS)
        .map(|sector| format!("{:?}", disk.content(sector)))
        .collect();
    let mut short = words.clone();
    short.dedup();
    short.join(", ")
}

#[cfg(test)]
mod tests {
    use tandem_replicator::{Force, MetaKind};

    use super::super::cuts::Cut;
    use super::super::engine::attach_alone;
    use super::super::ledger::Floor;
    use super::*;
    use crate::sim::lab::{A, B, Lab, primary, settings};
    use crate::sim::node::DiskPlan;
    use crate::sim::stamp::Content;

    /// A Primary that wrote, alone at last, and its peer.
    fn lab() -> Lab {
        let mut settings = settings();
        let bytes = (1 << 20) + (32 << 10);
        settings.disk = DiskPlan {
            bytes,
            meta: MetaKind::Internal,
            discard: false,
        };
        let mut lab = Lab::pair_of(settings);
        lab.ok(A, primary(Force::No));
        lab.write(A, &[0, 1]);
        lab.cut();
        lab.write(A, &[2]);
        lab
    }

    /// What clients of that lab know, with one mark.
    fn ledger(lab: &Lab) -> Ledger {
        let mut ledger = Ledger::default();
        let mut floor = Floor::new();
        let disk = &lab.world.nodes[A].data;
        for sector in 0..24 {
            let Content::Stamp(write) = *disk.content(sector) else {
                panic!("sector {sector} was not written");
            };
            ledger.issue(write, sector, Content::Stamp(write));
            floor.insert(sector, write);
        }
        ledger.marks.push(Mark {
            name: String::from("only"),
            issued: *floor.values().max().unwrap(),
            pace: Pace::Steady,
            role: GuestRole::Primary,
            disk: GuestDisk::Good,
            acknowledged: floor.clone(),
            durable: floor.clone(),
            guest_durable: floor,
            written: BTreeSet::new(),
            peer: lab.world.nodes[B].data.clone(),
        });
        ledger
    }

    fn judge(lab: &Lab, ledger: &Ledger) -> Result<Facts, String> {
        let image = Image {
            cut: Cut::After,
            entries: 0,
            mark: 0,
            at_mark: true,
            disk: &lab.world.nodes[A].data,
        };
        Judge::new(ledger).unwrap().judge(&image)
    }

    #[test]
    fn a_primary_as_it_should_be_is_let_through() {
        let lab = lab();
        let facts = judge(&lab, &ledger(&lab)).unwrap();
        assert!(facts.is_primary() && facts.is_up_to_date() && facts.covers(2));
    }

    #[test]
    fn an_engine_that_attaches_an_image_alone_finds_what_its_metadata_cover() {
        let lab = lab();
        let facts = judge(&lab, &ledger(&lab)).unwrap();
        let disk = &lab.world.nodes[A].data;
        attach_alone(1, disk, &facts).unwrap();
        // Facts of another disk are not those that the engine finds.
        let peer = Facts::of(&lab.world.nodes[B].data).unwrap();
        let why = attach_alone(1, disk, &peer).unwrap_err();
        assert!(why.contains("has the bit"), "{why}");
    }

    #[test]
    fn a_lost_write_is_found() {
        let mut lab = lab();
        let ledger = ledger(&lab);
        lab.world.nodes[A].data.set(9, Content::Zero, true);
        let why = judge(&lab, &ledger).unwrap_err();
        assert!(
            why.contains("sector 9") && why.contains("promised"),
            "{why}"
        );
    }

    #[test]
    fn a_missing_mark_of_a_primary_is_found() {
        let mut lab = lab();
        let mut ledger = ledger(&lab);
        let node = &mut lab.world.nodes[A];
        node.edit_superblock(|block| block.flags = block.flags.without(Flags::PRIMARY_IND))
            .unwrap();
        let why = judge(&lab, &ledger).unwrap_err();
        assert!(why.contains("mark is missing"), "{why}");
        // Nobody asks for the mark of a Secondary; but then the log of this one does not count.
        ledger.marks[0].role = GuestRole::Secondary;
        let why = judge(&lab, &ledger).unwrap_err();
        assert!(
            why.contains("block 2") && why.contains("neither disk knows"),
            "{why}"
        );
    }

    #[test]
    fn a_target_that_calls_itself_up_to_date_is_found() {
        let lab = lab();
        let mut ledger = ledger(&lab);
        ledger.marks[0].disk = GuestDisk::Target;
        let why = judge(&lab, &ledger).unwrap_err();
        assert!(why.contains("a target calls itself UpToDate"), "{why}");
    }

    #[test]
    fn a_damaged_superblock_is_found() {
        let mut lab = lab();
        let ledger = ledger(&lab);
        let bytes = lab.world.nodes[A].data.bytes();
        lab.world.nodes[A].data.zero(bytes - 4096, 4096, true);
        assert!(judge(&lab, &ledger).unwrap_err().starts_with("superblock"));
    }
}
