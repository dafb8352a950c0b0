//! Which nodes belong together: nodes 0 and 1 are the first pair of a world, 2 and 3 the second, and so on. A resource of DRBD 8.4
//! has exactly two nodes, so a larger world has more pairs.

use std::ops::{Index, IndexMut};

use super::trace::LETTERS;

/// Pairs of a world, at most: each node has a letter.
pub const PAIRS_MAX: usize = LETTERS.len() / 2;

/// The pair of those who have only one: a campaign, a lab, the story of a crash.
pub const ONLY_PAIR: usize = 0;

/// The other node of its pair.
#[must_use]
pub const fn peer_of(node: usize) -> usize {
    node ^ 1
}

/// The pair of a node.
#[must_use]
pub const fn pair_of(node: usize) -> usize {
    node / 2
}

/// The nodes of a pair.
#[must_use]
pub const fn nodes_of(pair: usize) -> [usize; 2] {
    [2 * pair, 2 * pair + 1]
}

/// Something that each node of one pair has. Its index is the node; one of another pair is none.
#[derive(Clone, Debug)]
pub struct OfPair<T> {
    pair: usize,
    both: [T; 2],
}

impl<T: Default> OfPair<T> {
    /// Each node of this pair has the default.
    #[must_use]
    pub fn new(pair: usize) -> OfPair<T> {
        OfPair {
            pair,
            both: [T::default(), T::default()],
        }
    }
}

impl<T> OfPair<T> {
    /// The nodes of this pair.
    #[must_use]
    pub fn nodes(&self) -> [usize; 2] {
        nodes_of(self.pair)
    }

    /// What the two nodes have.
    #[must_use]
    pub fn both(&self) -> [&T; 2] {
        self.both.each_ref()
    }

    /// The same, to change it.
    pub fn both_mut(&mut self) -> [&mut T; 2] {
        self.both.each_mut()
    }

    /// Where a node has its own.
    fn side(&self, node: usize) -> usize {
        assert_eq!(pair_of(node), self.pair, "a node of another pair");
        node % 2
    }
}

impl<T> Index<usize> for OfPair<T> {
    type Output = T;

    fn index(&self, node: usize) -> &T {
        &self.both[self.side(node)]
    }
}

impl<T> IndexMut<usize> for OfPair<T> {
    fn index_mut(&mut self, node: usize) -> &mut T {
        let side = self.side(node);
        &mut self.both[side]
    }
}
