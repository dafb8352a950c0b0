//! What a sector may hold: which of its writes, or which of them in which of its parts.

use std::collections::BTreeSet;
use std::ops::Range;

use super::{NEVER_WRITTEN, Oracle, Version};
use crate::sim::stamp::{Content, UNITS, Unit};

impl Oracle {
    fn ended(&self, id: u64, history: usize) -> u64 {
        let write = &self.writes[id as usize];
        let ended = write.ended.unwrap_or(u64::MAX);
        if write.history == history {
            return ended;
        }
        ended.min(self.histories[history].forked)
    }

    /// Did `old` end before `young` was submitted?
    pub(super) fn is_before(&self, old: u64, young: u64, history: usize) -> bool {
        old != young && self.ended(old, history) < self.writes[young as usize].submitted
    }

    /// What a sector held when this history began; `None` where nothing had been written or a write was under way, and for the first history.
    pub(super) fn found_at_fork(&self, history: usize, sector: u64) -> Option<&Content> {
        let history = &self.histories[history];
        let mut versions = history.sectors.get(&sector)?.iter();
        // What it began with has its tick.
        let found = versions
            .find(|version| self.writes[version.write as usize].submitted == history.forked)?;
        Some(&found.content)
    }

    /// The youngest version of this sector that has this content, if any.
    fn versions<'a>(
        &'a self,
        history: usize,
        sector: u64,
        content: &'a Content,
    ) -> impl Iterator<Item = u64> + 'a {
        let versions = self.histories[history].sectors.get(&sector);
        let first = Version {
            write: NEVER_WRITTEN,
            content: Content::Zero,
        };
        std::iter::once(first)
            .filter(move |version| version.content == *content)
            .map(|version| version.write)
            .chain(
                versions
                    .into_iter()
                    .flatten()
                    .filter(move |version| version.content == *content)
                    .map(|version| version.write),
            )
    }

    /// Whether a part of a sector may hold this: each run of it on its own, where writes were cut.
    pub(super) fn allowed_part(
        &self,
        history: usize,
        sector: u64,
        part: Range<usize>,
        content: &Content,
        floor: u64,
    ) -> Result<(), String> {
        let runs = content.runs(part.clone());
        if part == (0..UNITS) && runs.len() < 2 {
            return self.allowed(history, sector, content, floor);
        }
        if runs.is_empty() {
            return Err(format!("sector {sector} holds {content:?}"));
        }
        let cuts = self.cuts(history, sector);
        for (run, unit) in runs {
            if run.start != part.start && !cuts.contains(&run.start) {
                return Err(format!(
                    "sector {sector} holds {content:?}, but nothing was ever cut at byte {}",
                    run.start * 16
                ));
            }
            let mut shown = self.shown(history, sector, run, unit).peekable();
            let any = shown.peek().is_some();
            if !any || shown.all(|write| self.is_before(write, floor, history)) {
                return Err(format!(
                    "sector {sector} holds {content:?}, of which a part was {}; the last that must not be lost is {}",
                    if any {
                        "overwritten before"
                    } else {
                        "never written there"
                    },
                    self.describe(floor)
                ));
            }
        }
        Ok(())
    }

    /// Where writes of this sector were cut, by clients or by a disk, in units of the sector.
    fn cuts(&self, history: usize, sector: u64) -> BTreeSet<usize> {
        let versions = self.histories[history].sectors.get(&sector);
        let per_sector = UNITS as u64;
        let torn = self.torn.range((sector, 0)..(sector + 1, 0));
        let mut cuts: BTreeSet<usize> = torn.map(|(_, cut)| *cut).collect();
        for version in versions.into_iter().flatten() {
            let cut = self.writes[version.write as usize].cut;
            cuts.extend(
                cut.filter(|cut| cut / per_sector == sector)
                    .map(|cut| (cut % per_sector) as usize),
            );
            // What was found at the beginning of a history may be cut already.
            let inherited = version.content.runs(0..UNITS).into_iter().skip(1);
            cuts.extend(inherited.map(|(run, _)| run.start));
        }
        cuts
    }

    /// The versions of a sector that show this in a run of its units.
    fn shown(
        &self,
        history: usize,
        sector: u64,
        run: Range<usize>,
        unit: Unit,
    ) -> impl Iterator<Item = u64> + '_ {
        let versions = self.histories[history].sectors.get(&sector);
        let first = unit.is_none().then_some(NEVER_WRITTEN);
        let holds = move |content: &Content| run.clone().all(|at| content.unit(at) == Some(unit));
        first.into_iter().chain(
            versions
                .into_iter()
                .flatten()
                .filter(move |version| holds(&version.content))
                .map(|version| version.write),
        )
    }

    /// Whether all that a sector shows ended before this write was submitted, somewhere in it.
    pub(super) fn shows_older(
        &self,
        history: usize,
        sector: u64,
        content: &Content,
        than: u64,
    ) -> bool {
        let older = |write: u64| self.is_before(write, than, history);
        let runs = content.runs(0..UNITS);
        if runs.len() < 2 {
            return self.versions(history, sector, content).all(older);
        }
        runs.into_iter()
            .any(|(run, unit)| self.shown(history, sector, run, unit).all(older))
    }

    pub(super) fn allowed(
        &self,
        history: usize,
        sector: u64,
        content: &Content,
        floor: u64,
    ) -> Result<(), String> {
        if matches!(content, Content::Mixed(_)) {
            return self.allowed_part(history, sector, 0..UNITS, content, floor);
        }
        let mut found = None;
        for write in self.versions(history, sector, content) {
            if !self.is_before(write, floor, history) {
                return Ok(());
            }
            found = Some(write);
        }
        let floor_words = self.describe(floor);
        Err(match found {
            Some(write) => format!(
                "sector {sector} holds {content:?} ({}), which was overwritten by {floor_words}",
                self.describe(write)
            ),
            None => format!(
                "sector {sector} holds {content:?}, which was never written there in this history ({history}); the last \
                 that must not be lost is {floor_words}"
            ),
        })
    }

    pub(super) fn describe(&self, id: u64) -> String {
        let write = &self.writes[id as usize];
        let fate = match (write.acknowledged, write.ended) {
            (true, Some(at)) => format!("acknowledged at tick {at}"),
            _ => "never acknowledged".to_owned(),
        };
        format!(
            "write {id} of sectors {}+{}, submitted at tick {} in history {}, {fate}",
            write.first, write.sectors, write.submitted, write.history
        )
    }
}
