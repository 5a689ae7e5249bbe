//! Which slot goes next.

/// A tournament over a fixed number of slots, some of which have a key: finds the least key at
/// once, and changes one in as many steps as the number of slots has bits.
#[derive(Debug)]
pub(super) struct Tree {
    /// Padded to a power of two; `NONE` for slots without a key.
    keys: Vec<u128>,
    /// The slot with the least key below each node. Node 1 is the root, node `n` has the children `2n` and `2n + 1`.
    winners: Vec<u32>,
    n_keys: usize,
}

/// No key is as large.
const NONE: u128 = u128::MAX;

impl Tree {
    /// No slot has a key.
    pub(super) fn new(n_slots: usize) -> Tree {
        let n_leaves = n_slots.next_power_of_two().max(2);
        let mut tree = Tree {
            keys: vec![NONE; n_leaves],
            winners: vec![0; n_leaves],
            n_keys: 0,
        };
        tree.rebuild();
        tree
    }

    /// Slots that have a key.
    pub(super) fn len(&self) -> usize {
        self.n_keys
    }

    pub(super) fn has(&self, slot: usize) -> bool {
        self.keys[slot] != NONE
    }

    /// The slot with the least key.
    pub(super) fn least(&self) -> Option<usize> {
        (self.n_keys > 0).then(|| self.winners[1] as usize)
    }

    /// Gives a slot a key, or another one.
    pub(super) fn set(&mut self, slot: usize, key: u128) {
        self.n_keys += usize::from(!self.has(slot));
        self.change(slot, key);
    }

    /// Takes a slot's key away, if it has one.
    pub(super) fn remove(&mut self, slot: usize) {
        if self.has(slot) {
            self.n_keys -= 1;
            self.change(slot, NONE);
        }
    }

    /// Gives every slot that has a key another one: cheaper than one by one.
    pub(super) fn set_all(&mut self, key: impl Fn(usize) -> u128) {
        for (slot, old) in self.keys.iter_mut().enumerate() {
            if *old != NONE {
                *old = key(slot);
            }
        }
        self.rebuild();
    }

    fn change(&mut self, slot: usize, key: u128) {
        self.keys[slot] = key;
        let mut node = (self.keys.len() + slot) / 2;
        let mut winner = self.better(slot as u32, slot as u32 ^ 1);
        loop {
            let before = std::mem::replace(&mut self.winners[node], winner);
            // Another slot won here before and still does: nothing changes above.
            if node == 1 || (before == winner && winner as usize != slot) {
                return;
            }
            winner = self.better(winner, self.winners[node ^ 1]);
            node /= 2;
        }
    }

    fn rebuild(&mut self) {
        let n_leaves = self.keys.len();
        for node in (1..n_leaves).rev() {
            let (left, right) = match 2 * node {
                child if child < n_leaves => (self.winners[child], self.winners[child + 1]),
                leaf => ((leaf - n_leaves) as u32, (leaf + 1 - n_leaves) as u32),
            };
            self.winners[node] = self.better(left, right);
        }
    }

    fn better(&self, left: u32, right: u32) -> u32 {
        if self.keys[right as usize] < self.keys[left as usize] {
            right
        } else {
            left
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn the_least_key_wins() {
        let mut rng = StdRng::seed_from_u64(1);
        for n_slots in [1, 2, 3, 37, 64] {
            let mut tree = Tree::new(n_slots);
            let mut expected = BTreeMap::new();
            for _ in 0..3_000 {
                let slot = rng.random_range(0..n_slots);
                match rng.random_range(0..100) {
                    0 => {
                        let shift = rng.random_range(0..7u128);
                        tree.set_all(|slot| expected[&slot] ^ shift);
                        expected.values_mut().for_each(|key| *key ^= shift);
                    }
                    1..40 => {
                        tree.remove(slot);
                        expected.remove(&slot);
                    }
                    _ => {
                        // Different keys: the low bits are the slot's.
                        let key = rng.random_range(0..9u128) << 16 | (slot as u128) << 4;
                        tree.set(slot, key);
                        expected.insert(slot, key);
                    }
                }
                assert_eq!(tree.len(), expected.len());
                let least = expected.iter().min_by_key(|(_, key)| **key);
                assert_eq!(tree.least(), least.map(|(slot, _)| *slot));
            }
        }
    }
}
