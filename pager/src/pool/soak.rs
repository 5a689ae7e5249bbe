//! Random operations in random order. After each of them everything must add up.

use std::collections::{BTreeMap, HashSet};

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

use super::*;
use crate::policy::policy_for;
use crate::{LayerCounts, PolicyName};

const N_LAYERS: u32 = 4;
const N_EXPERTS: u32 = 12;
const TOP_K: usize = 3;
const CLASS_SLOTS: [u32; 2] = [9, 14];
const N_OPERATIONS: usize = 100_000;

/// Slices of two tensors per layer: even ones are of class 0, odd ones of class 1.
fn slices() -> Vec<PoolSlice> {
    (0..N_LAYERS * N_EXPERTS * 2)
        .map(|index| PoolSlice {
            layer: index / (N_EXPERTS * 2),
            expert: index % (N_EXPERTS * 2) / 2,
            class: index % 2,
            size_bytes: [100, 70][index as usize % 2],
        })
        .collect()
}

/// What must be true, kept without the pool's help.
#[derive(Default)]
struct Expected {
    pins: BTreeMap<SliceId, u32>,
    in_flight: BTreeMap<SliceId, SlotId>,
    resident: BTreeMap<SliceId, SlotId>,
    failed: HashSet<SliceId>,
    counts: LayerCounts,
    delivered_bytes: u64,
    n_failed: u64,
    n_cancelled: u64,
    n_prefetches: u64,
    n_evictions: u64,
}

impl Expected {
    fn n_pins(&self, slice: SliceId) -> u32 {
        self.pins.get(&slice).copied().unwrap_or(0)
    }

    /// Takes over reads that the pool has begun. Whoever was in their slots was evicted and must not have been needed.
    fn take(&mut self, fetches: &[Fetch]) {
        for fetch in fetches {
            assert!(
                !self.in_flight.values().any(|slot| *slot == fetch.slot),
                "a read into a slot in flight"
            );
            let owner = self.resident.iter().find(|(_, slot)| **slot == fetch.slot);
            if let Some((&owner, _)) = owner {
                assert_eq!(self.n_pins(owner), 0, "a pinned slice was evicted");
                self.resident.remove(&owner);
                self.n_evictions += 1;
            }
            self.failed.remove(&fetch.slice);
            assert!(!self.resident.contains_key(&fetch.slice));
            assert_eq!(self.in_flight.insert(fetch.slice, fetch.slot), None);
        }
    }

    fn check(&self, pool: &Pool) {
        let mut owned = HashSet::new();
        for id in (0..pool.slices.len() as u32).map(SliceId) {
            let state = match (self.in_flight.get(&id), self.resident.get(&id)) {
                (Some(&slot), None) => State::InFlight(slot),
                (None, Some(&slot)) => State::Resident(slot),
                (None, None) if self.failed.contains(&id) => State::Failed,
                (None, None) => State::Absent,
                both => panic!("slice {id:?} is both: {both:?}"),
            };
            assert_eq!(pool.residency.state(id), state, "{id:?}");
            assert_eq!(pool.residency.n_pins(id), self.n_pins(id), "{id:?}");
            if let State::InFlight(slot) | State::Resident(slot) = state {
                assert!(owned.insert(slot), "{slot:?} has two owners");
                let found = pool.slots[slot.index()];
                assert_eq!(found.owner, Some(id));
                assert_eq!(found.class, pool.slices[id.index()].class);
                let can_go =
                    matches!(state, State::Resident(_)) && self.n_pins(id) == 0 && !found.held;
                assert_eq!(pool.is_evictable(slot), can_go, "{id:?} {found:?}");
                assert_eq!(found.held, pool.held.contains(&slot));
            }
        }
        let mut n_free = 0;
        for (index, class) in (0..).zip(&pool.classes) {
            for slot in &class.free {
                assert!(owned.insert(*slot), "{slot:?} is free and has an owner");
                assert!(pool.slots[slot.index()].owner.is_none());
            }
            n_free += class.free.len();
            let own = pool.slots.iter().filter(|slot| slot.class == index);
            let n_streamed = own.filter(|slot| slot.streamed).count();
            assert_eq!(class.n_streamed as usize, n_streamed);
        }
        assert_eq!(owned.len(), pool.n_slots(), "a slot is lost");
        let census = Census {
            n_free,
            n_resident: self.resident.len(),
            n_in_flight: self.in_flight.len(),
            n_lost: 0,
            n_pinned: self.pins.values().filter(|pins| **pins > 0).count(),
        };
        assert_eq!(pool.census(), census);
        assert_eq!(
            self.in_flight.len() + self.resident.len() + n_free,
            pool.n_slots()
        );
        let counted = pool.counters.snapshot();
        assert_eq!(counted.total, self.counts);
        assert_eq!(counted.delivered_bytes, self.delivered_bytes);
        assert_eq!(
            (counted.n_failed, counted.n_cancelled),
            (self.n_failed, self.n_cancelled)
        );
        assert_eq!(
            (counted.n_prefetches, counted.n_evictions),
            (self.n_prefetches, self.n_evictions)
        );
        assert!(counted.n_prefetches_used <= counted.n_prefetches);
        assert!(counted.wasted_bytes <= counted.delivered_bytes);
    }
}

fn pick<T: Copy>(rng: &mut StdRng, items: impl Iterator<Item = T>) -> Option<T> {
    items.collect::<Vec<_>>().choose(rng).copied()
}

#[test]
fn nothing_is_lost_in_100_000_operations() {
    for (seed, policy) in [(1, "lfu-decay:0.95"), (2, "lfu-mix"), (3, "next-use")] {
        soak(seed, policy.parse().unwrap(), N_OPERATIONS / 3);
    }
}

fn soak(seed: u64, policy: PolicyName, n_operations: usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let slices = slices();
    let mut pool = Pool::new(slices.clone(), &CLASS_SLOTS, policy_for(policy, &slices));
    let mut expected = Expected::default();
    let mut open: Vec<Vec<SliceId>> = Vec::new();
    let (mut n_full, mut n_again, mut n_filled, mut fetches) = (0, 0, 0, Vec::new());
    for _ in 0..n_operations {
        fetches.clear();
        match rng.random_range(0..100) {
            0..30 => {
                let first = rng.random_range(0..N_LAYERS) * N_EXPERTS * 2;
                let mut experts: Vec<u32> = (0..N_EXPERTS).collect();
                experts.shuffle(&mut rng);
                let ids: Vec<SliceId> = experts[..rng.random_range(1..=TOP_K)]
                    .iter()
                    .flat_map(|expert| {
                        [SliceId(first + expert * 2), SliceId(first + expert * 2 + 1)]
                    })
                    .collect();
                let before: Vec<_> = ids.iter().map(|id| pool.residency.state(*id)).collect();
                if pool.request(&ids, &mut fetches).is_err() {
                    assert!(fetches.is_empty());
                    n_full += 1;
                    expected.check(&pool);
                    continue;
                }
                let mut missing = Vec::new();
                for (&id, state) in ids.iter().zip(before) {
                    let size_bytes = slices[id.index()].size_bytes;
                    expected.counts.consumed_bytes += size_bytes;
                    match state {
                        State::Resident(_) => expected.counts.n_hits += 1,
                        State::InFlight(_) => expected.counts.n_late += 1,
                        State::Absent | State::Failed => {
                            expected.counts.n_misses += 1;
                            expected.counts.miss_bytes += size_bytes;
                            missing.push(id);
                        }
                    }
                    *expected.pins.entry(id).or_default() += 1;
                }
                assert_eq!(
                    fetches.iter().map(|fetch| fetch.slice).collect::<Vec<_>>(),
                    missing
                );
                expected.take(&fetches);
                open.push(ids);
            }
            30..55 => {
                let Some(slice) = pick(&mut rng, expected.in_flight.keys().copied()) else {
                    continue;
                };
                pool.complete(slice, 4096);
                expected.delivered_bytes += 4096;
                let slot = expected.in_flight.remove(&slice).unwrap();
                expected.resident.insert(slice, slot);
            }
            55..60 => {
                let Some(slice) = pick(&mut rng, expected.in_flight.keys().copied()) else {
                    continue;
                };
                pool.fail(slice);
                expected.in_flight.remove(&slice);
                expected.failed.insert(slice);
                expected.n_failed += 1;
            }
            60..64 => {
                let Some((slice, slot)) =
                    pick(&mut rng, expected.in_flight.iter().map(|(a, b)| (*a, *b)))
                else {
                    continue;
                };
                let again = pool.cancel(slice);
                if expected.n_pins(slice) > 0 {
                    assert_eq!(again, Some(Fetch { slice, slot }));
                    n_again += 1;
                } else {
                    assert_eq!(again, None);
                    expected.in_flight.remove(&slice);
                    expected.n_cancelled += 1;
                }
            }
            64..71 => {
                let slice = SliceId(rng.random_range(0..slices.len() as u32));
                let absent = pool.residency.state(slice) == State::Absent;
                if let Some(fetch) = pool.prefetch(slice) {
                    assert!(absent);
                    expected.n_prefetches += 1;
                    expected.take(&[fetch]);
                }
            }
            71..74 => {
                let slice = SliceId(rng.random_range(0..slices.len() as u32));
                let absent = pool.residency.state(slice) == State::Absent;
                let class = slices[slice.index()].class as usize;
                let n_free = pool.classes[class].free.len();
                let filled = pool.fill(slice, 1);
                match filled {
                    Fill::Read(fetch) => {
                        assert!(absent && n_free > 1);
                        expected.n_prefetches += 1;
                        n_filled += 1;
                        expected.take(&[fetch]);
                    }
                    Fill::Needless => assert!(!absent),
                    Fill::Full => assert!(absent && n_free <= 1),
                }
            }
            74..96 => {
                if open.is_empty() {
                    continue;
                }
                let ids = open.swap_remove(rng.random_range(0..open.len()));
                pool.unpin(&ids);
                for id in ids {
                    *expected.pins.get_mut(&id).unwrap() -= 1;
                }
            }
            96..99 => pool.begin_step(PoolMode::Decode),
            _ => pool.begin_step(PoolMode::Stream { slots_max: 3 }),
        }
        expected.check(&pool);
    }
    // All of it happened.
    assert!(
        n_full > 100 && n_again > 100 && n_filled > 10,
        "{n_full} {n_again} {n_filled}"
    );
    let by_value = pool.by_value();
    assert_eq!(by_value.len(), expected.resident.len());
    let keys = by_value.iter().map(|id| pool.key(expected.resident[id]));
    assert!(keys.rev().is_sorted(), "the most valuable first");
    let counted = pool.counters.snapshot();
    assert!(
        counted.wasted_bytes > 0 && counted.n_evictions > 1000 && counted.n_failed > 100,
        "{counted:?}"
    );
    // In the end every slot can be had again.
    for ids in open {
        pool.unpin(&ids);
    }
    for slice in expected.in_flight.into_keys() {
        pool.complete(slice, 0);
    }
    pool.release_held(None);
    for (class, n_slots) in pool.classes.iter().zip(CLASS_SLOTS) {
        assert_eq!(class.free.len() + class.tree.len(), n_slots as usize);
    }
}
