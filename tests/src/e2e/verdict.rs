//! Judges what is found on a device after a failover against what the writers were told.

use std::collections::BTreeMap;

use super::history::{Contents, History, Write};

/// What a protocol may lose when the Primary dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Nothing that was acknowledged (protocols B and C, while the other node lives).
    NothingLost,
    /// Only an end of the order: no write may be missing that was acknowledged before a present one was issued (protocol A).
    OnlyTheEnd,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Acknowledged writes that are missing.
    pub lost: u64,
    /// What contradicts the rule, in words; empty: all is well.
    pub faults: Vec<String>,
}

/// Judges `found` (block to contents) against the histories of writers with blocks of their own.
pub fn judge(histories: &[History], found: &BTreeMap<u64, Contents>, rule: Rule) -> Verdict {
    let mut verdict = Verdict::default();
    let mut missing: Vec<Write> = Vec::new();
    let mut present: Vec<Write> = Vec::new();
    for history in histories {
        let mut blocks: BTreeMap<u64, Vec<&Write>> = BTreeMap::new();
        for write in &history.writes {
            blocks.entry(write.block).or_default().push(write);
            verdict.acknowledged += u64::from(write.acknowledged.is_some());
        }
        for (block, writes) in blocks {
            let number = match found.get(&block) {
                Some(Contents::Written { writer, number }) if *writer == history.writer => *number,
                Some(Contents::Empty) | None => 0,
                Some(other) => {
                    verdict.faults.push(format!(
                        "block {block}: {other:?}, not of writer {}",
                        history.writer
                    ));
                    continue;
                }
            };
            if number != 0 && !writes.iter().any(|write| write.number == number) {
                verdict.faults.push(format!(
                    "block {block}: number {number} was never written there"
                ));
            }
            for write in writes {
                if write.number <= number {
                    present.push(*write);
                } else if write.acknowledged.is_some() {
                    missing.push(*write);
                }
            }
        }
    }
    verdict.lost = missing.len() as u64;
    match rule {
        Rule::NothingLost => {
            for write in &missing {
                verdict.faults.push(format!(
                    "acknowledged write {} of block {} is lost",
                    write.number, write.block
                ));
            }
        }
        Rule::OnlyTheEnd => check_order(&missing, &present, &mut verdict),
    }
    verdict
}

fn check_order(missing: &[Write], present: &[Write], verdict: &mut Verdict) {
    let Some(last) = present.iter().max_by_key(|write| write.issued) else {
        return;
    };
    for write in missing {
        if write.acknowledged.is_some_and(|told| told < last.issued) {
            verdict.faults.push(format!(
                "write {} of block {} is lost, though it was acknowledged before write {} of block {} was issued, \
                 which is there",
                write.number, write.block, last.number, last.block
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn history(start: Instant) -> History {
        let at = |ms| start + Duration::from_millis(ms);
        let write = |number, block, issued, told: Option<u64>| Write {
            number,
            block,
            issued: at(issued),
            acknowledged: told.map(at),
        };
        History {
            writer: 1,
            writes: vec![
                write(1, 10, 0, Some(1)),
                write(2, 11, 2, Some(3)),
                write(3, 10, 4, None),
            ],
        }
    }

    fn written(number: u64) -> Contents {
        Contents::Written { writer: 1, number }
    }

    #[test]
    fn one_lost_write_is_found_and_an_unacknowledged_one_may_be_either() {
        let history = [history(Instant::now())];
        let all = BTreeMap::from([(10, written(3)), (11, written(2))]);
        assert_eq!(
            judge(&history, &all, Rule::NothingLost).faults,
            Vec::<String>::new()
        );
        let old = BTreeMap::from([(10, written(1)), (11, written(2))]);
        assert_eq!(
            judge(&history, &old, Rule::NothingLost).faults,
            Vec::<String>::new()
        );
        let lost = BTreeMap::from([(10, written(1)), (11, Contents::Empty)]);
        assert_eq!(judge(&history, &lost, Rule::NothingLost).lost, 1);
        assert_eq!(judge(&history, &lost, Rule::NothingLost).faults.len(), 1);
    }

    #[test]
    fn an_end_may_be_lost_and_a_hole_may_not() {
        let history = [history(Instant::now())];
        let end = BTreeMap::from([(10, written(1)), (11, Contents::Empty)]);
        assert_eq!(
            judge(&history, &end, Rule::OnlyTheEnd).faults,
            Vec::<String>::new()
        );
        let hole = BTreeMap::from([(10, Contents::Empty), (11, written(2))]);
        assert_eq!(judge(&history, &hole, Rule::OnlyTheEnd).faults.len(), 1);
    }
}
