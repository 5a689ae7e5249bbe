//! A pool's slots, counted.

use serde::Serialize;

use super::Pool;
use crate::{SliceId, SlotId, State};

/// What a pool's slots are doing. All of them are in one of the first four numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Census {
    /// Slots that hold nothing.
    pub n_free: usize,
    /// Slots with a slice.
    pub n_resident: usize,
    /// Slots that a read goes to.
    pub n_in_flight: usize,
    /// Slots that nothing can use any more: without an owner and not free, free with an owner, with a slice that believes to be
    /// elsewhere, or with one that nobody needs and that cannot be evicted. Always 0, or the pool is wrong.
    pub n_lost: usize,
    /// Slices that are pinned.
    pub n_pinned: usize,
}

impl Pool {
    /// Looks at every slot and every slice.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        let mut is_free = vec![false; self.slots.len()];
        for slot in self.classes.iter().flat_map(|class| &class.free) {
            is_free[slot.index()] = true;
        }
        for (id, is_free) in (0..).map(SlotId).zip(is_free) {
            let slot = self.slots[id.index()];
            let state = slot.owner.map(|owner| self.residency.state(owner));
            let is_in_use = slot.held
                || slot
                    .owner
                    .is_some_and(|owner| self.residency.n_pins(owner) > 0);
            let count = match (is_free, state) {
                (true, None) => &mut census.n_free,
                (false, Some(State::InFlight(at))) if at == id => &mut census.n_in_flight,
                (false, Some(State::Resident(at)))
                    if at == id && is_in_use != self.is_evictable(id) =>
                {
                    &mut census.n_resident
                }
                _ => &mut census.n_lost,
            };
            *count += 1;
        }
        let slices = (0..self.slices.len() as u32).map(SliceId);
        census.n_pinned = slices.filter(|id| self.residency.n_pins(*id) > 0).count();
        census
    }
}
