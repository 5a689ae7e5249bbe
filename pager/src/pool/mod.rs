//! Slots, who owns them, and who gives way.
//!
//! The pool decides and never reads: [`Pool::request`] and [`Pool::prefetch`] say what to read into
//! which slot, and the engine reports the end of each read with [`Pool::complete`], [`Pool::fail`] or
//! [`Pool::cancel`]. All methods that change something need the pool mutably, so the lock is the
//! caller's; compute threads read the shared [`Residency`] without it.
//!
//! A slot is free, or has an owner whose read is in flight, or is resident. A resident slot can be
//! evicted if nobody has its slice pinned and no prefetch is waiting for its layer in it. Of those the
//! one with the lowest value goes, over all layers: see [`Policy`].
//!
//! # Prompts
//!
//! A ubatch of many tokens reads most experts of a layer once, and then the next layer's. Its step is
//! begun with [`PoolMode::Stream`]: uses do not count for the policy, and a slice that had to be read
//! is worth less than every slice that decoding has used, so the next miss takes its slot. The most
//! recent one goes first: a scan that comes round again then finds what it left, where the oldest first would
//! find nothing. A slice becomes an ordinary one when a decode step uses it.

mod census;
mod tree;

#[cfg(all(test, not(feature = "loom")))]
mod soak;

use std::sync::Arc;

use crate::SliceId;
use crate::counters::{Counters, Found};
use crate::policy::{Changed, Policy};
use crate::residency::{Event, Residency, State};
pub use census::Census;
use tree::Tree;

/// Number of a slot. Those of a class follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

impl SlotId {
    /// As an index into tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What the pool has to know of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSlice {
    /// Index of its layer.
    pub layer: u32,
    /// The expert that it is part of, counted in its layer.
    pub expert: u32,
    /// Index of the class of slots that it fits in.
    pub class: u32,
    /// Its size.
    pub size_bytes: u64,
}

/// What kind of step begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// One token, or a few: uses count for the policy.
    Decode,
    /// A prompt: slices pass through. Beyond `slots_max` slots of a class, reading ahead evicts no slice that decoding has
    /// used. What an operation itself needs always gets a slot.
    Stream {
        /// Slots of each class that reading ahead may take.
        slots_max: u32,
    },
}

/// A read that the pool asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// What to read.
    pub slice: SliceId,
    /// Where to.
    pub slot: SlotId,
}

/// What [`Pool::fill`] makes of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// It has a slot, and is to be read.
    Read(Fetch),
    /// It is there or on its way, or could not be read.
    Needless,
    /// There is no slot for it.
    Full,
}

/// There are not enough slots that may be evicted. Nothing is pinned then, and nothing is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "layer {layer}: {n_needed} slices are missing and only {n_available} slots of class {class} can be evicted; decode \
     fewer tokens at once, or give a larger budget"
)]
pub struct PoolFull {
    /// The layer of the request.
    pub layer: u32,
    /// The class of slots.
    pub class: u32,
    /// Slots that the request needs.
    pub n_needed: usize,
    /// Slots that are free or may be evicted.
    pub n_available: usize,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Pool {
    slices: Arc<[PoolSlice]>,
    residency: Arc<Residency>,
    counters: Arc<Counters>,
    policy: Box<dyn Policy>,
    mode: PoolMode,
    classes: Vec<Class>,
    slots: Vec<Slot>,
    /// Number of the last use of each slice; 0: never used.
    last_used: Vec<u64>,
    n_uses: u64,
    /// The slices of each layer.
    layers: Vec<Vec<SliceId>>,
    /// Slots of prefetched slices whose layer has not come yet.
    held: Vec<SlotId>,
    missing: Vec<SliceId>,
    needs: Vec<usize>,
}

#[derive(Debug)]
struct Class {
    /// Its first slot.
    first: u32,
    /// Slots without an owner; the last goes next.
    free: Vec<SlotId>,
    /// Slots that may be evicted, by value.
    tree: Tree,
    /// Slots with a slice that only prompts have used.
    n_streamed: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    owner: Option<SliceId>,
    class: u32,
    /// Only prompts have used the slice.
    streamed: bool,
    /// It was read ahead, and nobody has used it yet.
    prefetched: bool,
    /// It was read ahead for a layer that has not come yet.
    held: bool,
}

impl Pool {
    /// A pool whose slots are free: `class_slots` is the number of slots of each class, which are numbered from the
    /// first class on.
    ///
    /// # Panics
    ///
    /// If a slice is of a class that does not exist, or there are more than 2^32 - 1 slots.
    pub fn new(
        slices: impl Into<Arc<[PoolSlice]>>,
        class_slots: &[u32],
        policy: Box<dyn Policy>,
    ) -> Pool {
        let slices = slices.into();
        let mut slots = Vec::new();
        let classes: Vec<Class> = (0..)
            .zip(class_slots)
            .map(|(class, &n_slots)| {
                let first = u32::try_from(slots.len()).expect("fewer than 2^32 slots");
                let end = first.checked_add(n_slots).expect("fewer than 2^32 slots");
                slots.extend((first..end).map(|_| Slot {
                    class,
                    ..Slot::default()
                }));
                Class {
                    first,
                    free: (first..end).rev().map(SlotId).collect(),
                    tree: Tree::new(n_slots as usize),
                    n_streamed: 0,
                }
            })
            .collect();
        let n_layers = slices.iter().map(|slice| slice.layer as usize + 1).max();
        let mut layers = vec![Vec::new(); n_layers.unwrap_or(0)];
        for (index, slice) in slices.iter().enumerate() {
            layers[slice.layer as usize].push(SliceId(index as u32));
        }
        assert!(
            slices
                .iter()
                .all(|slice| (slice.class as usize) < classes.len()),
            "every slice has a class of slots"
        );
        Pool {
            residency: Arc::new(Residency::new(slices.len())),
            counters: Arc::new(Counters::new(n_layers.unwrap_or(0))),
            policy,
            mode: PoolMode::Decode,
            needs: vec![0; classes.len()],
            classes,
            slots,
            last_used: vec![0; slices.len()],
            n_uses: 0,
            layers,
            held: Vec::new(),
            missing: Vec::new(),
            slices,
        }
    }

    /// Where each slice is, for threads that compute.
    pub fn residency(&self) -> &Arc<Residency> {
        &self.residency
    }

    /// What was counted.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Slots of all classes.
    pub fn n_slots(&self) -> usize {
        self.slots.len()
    }

    /// A step begins. Requests and prefetches up to the next call belong to it.
    pub fn begin_step(&mut self, mode: PoolMode) {
        self.mode = mode;
        if mode == PoolMode::Decode && self.policy.begin_token() != Changed::Accessed {
            self.set_all_keys();
        }
    }

    fn set_all_keys(&mut self) {
        for class in 0..self.classes.len() {
            // Taken out for a moment: keys depend on the rest of the pool.
            let mut tree = std::mem::replace(&mut self.classes[class].tree, Tree::new(0));
            let first = self.classes[class].first;
            tree.set_all(|leaf| self.key(SlotId(first + leaf as u32)));
            self.classes[class].tree = tree;
        }
    }

    fn set_keys(&mut self, layer: u32) {
        for index in 0..self.layers[layer as usize].len() {
            let slice = self.layers[layer as usize][index];
            let slot = self.residency.slot(slice);
            if slot.is_some_and(|slot| self.is_evictable(slot)) {
                self.make_evictable(slice);
            }
        }
    }

    /// Slices of one layer, all different, are needed together. Pins each of them; [`Pool::unpin`] them when the
    /// operations have ended, however they ended. What must be read is added to `fetches`, in the order of the slices; the
    /// reads may be started in any order.
    ///
    /// All slices are looked up first, so none of them gives way to another one. Give the tensors of an expert one after
    /// the other: where values are equal the order of use decides, and they then also go together.
    ///
    /// # Errors
    ///
    /// [`PoolFull`]: then nothing is pinned and nothing is to be read.
    ///
    /// # Panics
    ///
    /// If there is no such slice.
    pub fn request(
        &mut self,
        slices: &[SliceId],
        fetches: &mut Vec<Fetch>,
    ) -> Result<(), PoolFull> {
        let Some(&first) = slices.first() else {
            return Ok(());
        };
        let layer = self.slices[first.index()].layer;
        self.release_held(Some(layer));
        if self.check_room(layer, slices).is_err() {
            self.release_held(None);
            self.check_room(layer, slices)?;
        }
        self.missing.clear();
        for &slice in slices {
            self.use_slice(slice);
        }
        if self.mode == PoolMode::Decode {
            match self.policy.end_layer(layer) {
                Changed::Accessed => {}
                Changed::Layer => self.set_keys(layer),
                Changed::All => self.set_all_keys(),
            }
        }
        let missing = std::mem::take(&mut self.missing);
        for &slice in &missing {
            let slot = self
                .take_slot(self.slices[slice.index()].class as usize)
                .expect("check_room has counted the slots");
            self.start(slice, slot, false, self.mode != PoolMode::Decode);
            self.residency.apply(slice, Event::Pin);
            fetches.push(Fetch { slice, slot });
        }
        self.missing = missing;
        Ok(())
    }

    /// The operations that needed these slices have ended.
    ///
    /// # Panics
    ///
    /// If a slice is not pinned.
    pub fn unpin(&mut self, slices: &[SliceId]) {
        for &slice in slices {
            if self.residency.apply(slice, Event::Unpin) == 0 {
                self.make_evictable(slice);
            }
        }
    }

    /// Reads a slice ahead of its layer, into a slot that is free or can be evicted. It then stays at least until its layer is
    /// requested, unless a request finds no other slot. `None`: it is resident or on its way, its last read
    /// failed, or there is no slot for it.
    ///
    /// # Panics
    ///
    /// If there is no such slice.
    pub fn prefetch(&mut self, slice: SliceId) -> Option<Fetch> {
        if self.residency.state(slice) != State::Absent {
            return None;
        }
        let class = &self.classes[self.slices[slice.index()].class as usize];
        if let (PoolMode::Stream { slots_max }, true) = (self.mode, class.free.is_empty()) {
            let least = SlotId(class.first + class.tree.least()? as u32);
            if class.n_streamed >= slots_max && !self.slots[least.index()].streamed {
                return None;
            }
        }
        let slot = self.take_slot(self.slices[slice.index()].class as usize)?;
        self.start(slice, slot, true, self.mode != PoolMode::Decode);
        self.counters.prefetch();
        Some(Fetch { slice, slot })
    }

    /// Reads a slice as [`prefetch`](Self::prefetch) does, but evicts nothing for it, and leaves so many slots of its class free.
    ///
    /// # Panics
    ///
    /// If there is no such slice.
    pub fn fill(&mut self, slice: SliceId, n_spare: usize) -> Fill {
        if self.residency.state(slice) != State::Absent {
            return Fill::Needless;
        }
        let class = &mut self.classes[self.slices[slice.index()].class as usize];
        if class.free.len() <= n_spare {
            return Fill::Full;
        }
        let Some(slot) = class.free.pop() else {
            return Fill::Full;
        };
        // Decoding will have used it, whoever needs it first.
        self.start(slice, slot, true, false);
        self.counters.prefetch();
        Fill::Read(Fetch { slice, slot })
    }

    /// Slots of each class that are not free.
    pub fn n_taken(&self) -> Vec<usize> {
        let slots = self.slots.iter();
        let mut n_taken = vec![0; self.classes.len()];
        slots.for_each(|slot| n_taken[slot.class as usize] += 1);
        for (n_taken, class) in n_taken.iter_mut().zip(&self.classes) {
            *n_taken -= class.free.len();
        }
        n_taken
    }

    /// Slices that are in a slot, those of the highest value first.
    pub fn by_value(&self) -> Vec<SliceId> {
        let owned = (0..).map(SlotId).zip(&self.slots).filter_map(|(id, slot)| {
            let owner = slot.owner?;
            (self.residency.slot(owner) == Some(id)).then(|| (self.key(id), owner))
        });
        let mut owned: Vec<(u128, SliceId)> = owned.collect();
        owned.sort_unstable_by(|left, right| right.cmp(left));
        owned.into_iter().map(|(_, owner)| owner).collect()
    }

    /// A read has ended well; the slice's bytes are in its slot. `delivered_bytes` is what the read brought in.
    ///
    /// # Panics
    ///
    /// If the slice is not in flight.
    pub fn complete(&mut self, slice: SliceId, delivered_bytes: u64) {
        self.counters.delivered(delivered_bytes);
        if self.residency.apply(slice, Event::Publish) == 0 {
            self.make_evictable(slice);
        }
    }

    /// A read has failed for good. The slot is free again; pins stay until [`Pool::unpin`].
    ///
    /// # Panics
    ///
    /// If the slice is not in flight.
    pub fn fail(&mut self, slice: SliceId) {
        let slot = self.slot_in_flight(slice);
        self.residency.apply(slice, Event::Fail);
        self.counters.failed();
        self.free(slot);
    }

    /// A read was cancelled, and the kernel will not write to its slot any more. If somebody has come to need the slice
    /// meanwhile it stays in flight, and the read to start again is returned.
    ///
    /// # Panics
    ///
    /// If the slice is not in flight.
    pub fn cancel(&mut self, slice: SliceId) -> Option<Fetch> {
        let slot = self.slot_in_flight(slice);
        if self.residency.n_pins(slice) > 0 {
            return Some(Fetch { slice, slot });
        }
        self.residency.apply(slice, Event::Clear);
        self.counters.cancelled();
        self.free(slot);
        None
    }

    fn slot_in_flight(&self, slice: SliceId) -> SlotId {
        match self.residency.state(slice) {
            State::InFlight(slot) => slot,
            state => panic!("slice {} is not in flight but {state:?}", slice.0),
        }
    }

    /// Whether the missing ones of these slices can get a slot.
    fn check_room(&mut self, layer: u32, slices: &[SliceId]) -> Result<(), PoolFull> {
        self.needs.fill(0);
        for &slice in slices {
            let class = self.slices[slice.index()].class as usize;
            self.needs[class] += match self.residency.state(slice) {
                State::Absent | State::Failed => 1,
                // It may be evicted now, and may not be once it is pinned.
                State::Resident(slot) => usize::from(self.is_evictable(slot)),
                State::InFlight(_) => 0,
            };
        }
        for (class, (&n_needed, slots)) in (0..).zip(self.needs.iter().zip(&self.classes)) {
            let n_available = slots.free.len() + slots.tree.len();
            if n_needed > n_available {
                return Err(PoolFull {
                    layer,
                    class,
                    n_needed,
                    n_available,
                });
            }
        }
        Ok(())
    }

    fn use_slice(&mut self, slice: SliceId) {
        let is_decode = self.mode == PoolMode::Decode;
        if is_decode {
            self.policy.access(slice);
        }
        self.n_uses += 1;
        let (found, slot) = match self.residency.state(slice) {
            State::Resident(slot) => (Found::Resident, Some(slot)),
            State::InFlight(slot) => (Found::InFlight, Some(slot)),
            State::Absent | State::Failed => (Found::Nowhere, None),
        };
        let PoolSlice {
            layer, size_bytes, ..
        } = self.slices[slice.index()];
        self.counters.request(layer as usize, found, size_bytes);
        let Some(slot) = slot else {
            self.last_used[slice.index()] = self.n_uses;
            self.missing.push(slice);
            return;
        };
        let state = &mut self.slots[slot.index()];
        if std::mem::take(&mut state.prefetched) {
            self.counters.prefetch_used();
        }
        if is_decode && std::mem::take(&mut state.streamed) {
            self.classes[state.class as usize].n_streamed -= 1;
        }
        if is_decode || state.streamed {
            self.last_used[slice.index()] = self.n_uses;
        }
        self.residency.apply(slice, Event::Pin);
        let class = &mut self.classes[state.class as usize];
        class.tree.remove((slot.0 - class.first) as usize);
    }

    /// A free slot of the class, or that of the slice which is worth least.
    fn take_slot(&mut self, class: usize) -> Option<SlotId> {
        let class = &mut self.classes[class];
        if let Some(slot) = class.free.pop() {
            return Some(slot);
        }
        let slot = SlotId(class.first + class.tree.least()? as u32);
        let state = self.slots[slot.index()];
        let owner = state
            .owner
            .expect("a slot that can be evicted has an owner");
        self.residency.apply(owner, Event::Clear);
        self.counters.evicted();
        if state.prefetched {
            self.counters.wasted(self.slices[owner.index()].size_bytes);
        }
        self.free(slot);
        self.classes[state.class as usize].free.pop()
    }

    fn start(&mut self, slice: SliceId, slot: SlotId, is_prefetch: bool, streamed: bool) {
        let state = &mut self.slots[slot.index()];
        state.owner = Some(slice);
        state.streamed = streamed;
        state.prefetched = is_prefetch;
        state.held = is_prefetch;
        if is_prefetch {
            self.held.push(slot);
        }
        self.classes[state.class as usize].n_streamed += u32::from(state.streamed);
        self.residency.apply(slice, Event::Read(slot));
    }

    fn free(&mut self, slot: SlotId) {
        let state = &mut self.slots[slot.index()];
        let class = &mut self.classes[state.class as usize];
        class.tree.remove((slot.0 - class.first) as usize);
        class.n_streamed -= u32::from(state.streamed);
        if state.held {
            self.held.retain(|held| *held != slot);
        }
        *state = Slot {
            class: state.class,
            ..Slot::default()
        };
        class.free.push(slot);
    }

    /// Prefetched slices of this layer, or of all, have waited long enough.
    fn release_held(&mut self, layer: Option<u32>) {
        let mut held = std::mem::take(&mut self.held);
        held.retain(|&slot| {
            let owner = self.slots[slot.index()]
                .owner
                .expect("a held slot has an owner");
            if layer.is_some_and(|layer| layer != self.slices[owner.index()].layer) {
                return true;
            }
            self.slots[slot.index()].held = false;
            if self.residency.n_pins(owner) == 0 {
                self.make_evictable(owner);
            }
            false
        });
        self.held = held;
    }

    /// Lets a slice that nobody has pinned be evicted, if it is resident and not held.
    fn make_evictable(&mut self, slice: SliceId) {
        let Some(slot) = self.residency.slot(slice) else {
            return;
        };
        if self.slots[slot.index()].held {
            return;
        }
        let key = self.key(slot);
        let class = &mut self.classes[self.slots[slot.index()].class as usize];
        class.tree.set((slot.0 - class.first) as usize, key);
    }

    fn is_evictable(&self, slot: SlotId) -> bool {
        let class = &self.classes[self.slots[slot.index()].class as usize];
        class.tree.has((slot.0 - class.first) as usize)
    }

    /// What decides between slots: the least goes.
    fn key(&self, slot: SlotId) -> u128 {
        let Slot {
            owner, streamed, ..
        } = self.slots[slot.index()];
        let slice = owner.expect("a slot with a key has an owner");
        let last_used = self.last_used[slice.index()];
        if streamed {
            // Below all values, the most recent one first.
            return u128::from(!last_used);
        }
        u128::from(ordered_bits(self.policy.value(slice))) << 64 | u128::from(last_used)
    }
}

/// Bits that have the order of the numbers, and are 0 for none but a NaN. Zeros of both signs are equal.
fn ordered_bits(value: f64) -> u64 {
    let bits = (value + 0.0).to_bits();
    if bits >> 63 == 0 {
        bits | 1 << 63
    } else {
        !bits
    }
}
