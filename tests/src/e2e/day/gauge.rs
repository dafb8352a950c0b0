//! What a process holds, look by look, and whether that grows.

use std::fs;
use std::time::Duration;

/// Growth of memory from the second quarter to the second half that counts as none, in percent.
pub const GROWTH_PERCENT: u64 = 5;

/// Looks that it takes at least to judge.
pub const LOOKS_MIN: usize = 4;

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Resident memory in KiB (`VmRSS`).
    pub rss: u64,
    /// Largest resident memory so far in KiB (`VmHWM`).
    pub peak: u64,
    /// Of it, the black boxes of all resources in KiB, which grow up to a bound.
    pub boxes: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Processor time so far.
    pub cpu: Duration,
}

impl Held {
    /// Looks at a process; the black boxes are not known here.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn by(pid: u32) -> Held {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let status = read("status");
        let field = |name: &str| number_after(&status, name);
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        Held {
            rss: field("VmRSS:"),
            peak: field("VmHWM:"),
            boxes: 0,
            descriptors: descriptors as u64,
            threads: field("Threads:"),
            cpu: cpu(&read("stat")),
        }
    }

    /// Memory without the black boxes.
    #[must_use]
    pub const fn working(&self) -> u64 {
        self.rss.saturating_sub(self.boxes)
    }
}

fn number_after(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// User and system time in `/proc/PID/stat`, behind the name in parentheses; the kernel counts 100 ticks a second.
fn cpu(stat: &str) -> Duration {
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|word| word.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// How memory (without the black boxes) grew between the second quarter of the looks and their second half; nothing, if all is well.
#[must_use]
pub fn growth(looks: &[Held]) -> Option<String> {
    if looks.len() < LOOKS_MIN {
        return None;
    }
    let largest = |looks: &[Held]| looks.iter().map(Held::working).max().unwrap_or(0);
    let (quarter, half) = (looks.len() / 4, looks.len() / 2);
    let before = largest(&looks[quarter..half.max(quarter + 1)]);
    let after = largest(&looks[half..]);
    let grown = after * 100 > before * (100 + GROWTH_PERCENT);
    grown.then(|| format!("memory grew from {before} KiB to {after} KiB"))
}

/// At which looks there were not as many descriptors as at the first one; nothing, if all is well. Everything is at rest at each of them.
#[must_use]
pub fn descriptors(looks: &[Held]) -> Vec<String> {
    let Some(first) = looks.first() else {
        return Vec::new();
    };
    let changed = |(_, look): &(usize, &Held)| look.descriptors != first.descriptors;
    let words = |(number, look): (usize, &Held)| {
        let (then, now) = (first.descriptors, look.descriptors);
        format!("descriptors were {then}, at look {number} {now}")
    };
    looks
        .iter()
        .enumerate()
        .filter(changed)
        .map(words)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(rss: u64, boxes: u64, descriptors: u64) -> Held {
        Held {
            rss,
            boxes,
            descriptors,
            ..Held::default()
        }
    }

    #[test]
    fn memory_that_grows_after_the_warm_up_is_told_and_black_boxes_are_not() {
        let looks = |growth: u64, boxes: u64| -> Vec<Held> {
            let at = |n| held(20_000 + n * growth + n * boxes, n * boxes, 100);
            (0..12).map(at).collect()
        };
        assert_eq!(growth(&looks(10, 4000)), None);
        assert!(growth(&looks(1000, 0)).is_some());
    }

    #[test]
    fn a_descriptor_that_stays_open_is_told() {
        let mut looks = vec![held(1000, 0, 50); 8];
        assert!(descriptors(&looks).is_empty());
        looks[6].descriptors = 51;
        assert_eq!(descriptors(&looks), ["descriptors were 50, at look 6 51"]);
    }

    #[test]
    fn this_process_holds_something() {
        let own = Held::by(std::process::id());
        assert!(own.rss > 0 && own.peak >= own.rss && own.descriptors > 2 && own.threads > 0);
    }

    #[test]
    fn processor_time_is_read_behind_a_name_with_blanks() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 4 0 100";
        assert_eq!(cpu(stat), Duration::from_secs(3));
    }
}
