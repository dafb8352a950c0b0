//! What is in flight, by its number: numbers only grow, most are gone soon, and each is looked up many times in between.

use core::fmt;
use core::hash::{BuildHasherDefault, Hash, Hasher};

use alloc::vec::Vec;
use hashbrown::HashMap;

/// A map from this node's own running numbers. Nothing is moved when something else comes or goes; the same history gives the same
/// order, and where order counts it is that of the numbers.
pub(crate) struct Numbered<N, T> {
    entries: HashMap<N, T, BuildHasherDefault<NumberHasher>>,
}

impl<N, T> Default for Numbered<N, T> {
    fn default() -> Self {
        Numbered {
            entries: HashMap::default(),
        }
    }
}

impl<N: Copy + Ord + Hash, T> Numbered<N, T> {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Nothing is in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Puts something in, and gives back what had that number.
    pub(crate) fn insert(&mut self, number: N, entry: T) -> Option<T> {
        self.entries.insert(number, entry)
    }

    /// Takes it out.
    pub(crate) fn remove(&mut self, number: &N) -> Option<T> {
        self.entries.remove(number)
    }

    /// Whether it is there.
    pub(crate) fn contains_key(&self, number: &N) -> bool {
        self.entries.contains_key(number)
    }

    /// What has this number.
    pub(crate) fn get(&self, number: &N) -> Option<&T> {
        self.entries.get(number)
    }

    /// What has this number, to be changed.
    pub(crate) fn get_mut(&mut self, number: &N) -> Option<&mut T> {
        self.entries.get_mut(number)
    }

    /// All, in no order that means anything.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.values()
    }

    /// All, in no order that means anything, to be changed.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.values_mut()
    }

    /// All, by number: sorts, so not for what happens with every write.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (N, &T)> {
        let mut all: Vec<(N, &T)> = self
            .entries
            .iter()
            .map(|(at, entry)| (*at, entry))
            .collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        all.into_iter()
    }

    /// All, by number, to be changed; sorts, too.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (N, &mut T)> {
        let entries = self.entries.iter_mut();
        let mut all: Vec<(N, &mut T)> = entries.map(|(at, entry)| (*at, entry)).collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        all.into_iter()
    }
}

impl<N: Copy + Ord + Hash + fmt::Debug, T: fmt::Debug> fmt::Debug for Numbered<N, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<N: Clone, T: Clone> Clone for Numbered<N, T> {
    fn clone(&self) -> Self {
        Numbered {
            entries: self.entries.clone(),
        }
    }
}

/// Spreads running numbers with one multiplication. Nobody else chooses them, so nobody can make them collide.
#[derive(Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 divided by the golden ratio.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_left_comes_by_number() {
        let mut map = Numbered::default();
        for number in 0..1000_u64 {
            assert_eq!(map.insert(number, number * 2), None);
        }
        for number in (0..1000).filter(|number| number % 7 != 0) {
            assert_eq!(map.remove(&number), Some(number * 2));
        }
        assert_eq!(map.remove(&1), None);
        assert!(map.contains_key(&7) && !map.contains_key(&8));
        for (_, entry) in map.iter_mut() {
            *entry += 1;
        }
        let left: Vec<(u64, u64)> = map.iter().map(|(number, entry)| (number, *entry)).collect();
        let expected: Vec<(u64, u64)> = (0..1000).step_by(7).map(|at| (at, at * 2 + 1)).collect();
        assert_eq!(left, expected);
        assert_eq!(map.len(), left.len());
        assert_eq!(
            map.values().sum::<u64>(),
            expected.iter().map(|(_, entry)| entry).sum::<u64>()
        );
        assert_eq!(map.get(&14), Some(&29));
    }
}
