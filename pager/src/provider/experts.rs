//! Experts in slots.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use llama_rs::Begin;

use super::{Inner, Look, PAGE_BYTES, Provider, lock};
use crate::engine::{Class, Read};
use crate::pool::{PoolMode, SlotId};
use crate::region::Region;
use crate::residency::State;
use crate::slices::SliceId;

/// Places of all slots.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) region: Region,
    /// Where each slot begins in the region.
    pub(super) offsets: Vec<usize>,
}

impl Provider {
    fn slot_address(&self, slice: SliceId) -> Option<NonNull<u8>> {
        Some(self.address_in(self.residency.slot(slice)?, slice))
    }

    /// Where the bytes of a slice arrive.
    pub(super) fn slot_in_flight(&self, slice: SliceId) -> Option<NonNull<u8>> {
        match self.residency.state(slice) {
            State::InFlight(slot) => Some(self.address_in(slot, slice)),
            _ => None,
        }
    }

    fn address_in(&self, slot: SlotId, slice: SliceId) -> NonNull<u8> {
        let head_bytes = (self.slices.slice(slice).offset % PAGE_BYTES) as usize;
        self.slots
            .region
            .at(self.slots.offsets[slot.index()] + head_bytes)
    }

    /// Starts the reads that the pool has asked for.
    pub(super) fn submit(&self, state: &mut Inner, class: Class) {
        if state.fetches.is_empty() {
            return;
        }
        let slices = &self.slices;
        let reads: Vec<Read> = state
            .fetches
            .drain(..)
            .map(|fetch| {
                let slice = slices.slice(fetch.slice);
                let pages = slice.pages(PAGE_BYTES);
                state.failures.remove(&u64::from(fetch.slice.0));
                Read {
                    file: slice.part as u32,
                    offset_bytes: pages.start,
                    target: self.slots.region.at(self.slots.offsets[fetch.slot.index()]),
                    size_bytes: (pages.end - pages.start) as u32,
                    key: u64::from(fetch.slice.0),
                    class,
                }
            })
            .collect();
        // SAFETY: the pool gives a slot to one slice at a time, and publishes it only when `note` has seen the completion; until
        // then no `get` gives its address. The engine is dropped before the region.
        if let Err(error) = unsafe { state.engine.submit(&reads) } {
            self.fail(error.to_string());
        }
        self.n_in_flight
            .store(state.engine.in_flight(), Ordering::Relaxed);
    }

    pub(super) fn begin_experts(&self, index: usize, access: &mut Begin<'_>) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        self.note(state, None);
        if state.pinned[index].is_empty() {
            self.request(state, index, access);
        }
        let stack = &self.slices.sparse_tensors()[index];
        let id = |expert: i32| SliceId(stack.first.0 + expert.cast_unsigned());
        access
            .ids
            .sort_by_key(|expert| self.residency.slot(id(expert)).is_none());
    }

    /// Asks for the experts of all tensors of the layer, or, where those have no room, of this one.
    fn request(&self, state: &mut Inner, index: usize, access: &Begin<'_>) {
        let stacks = self.slices.sparse_tensors();
        let layer = stacks[index].layer;
        if state.layer.is_none_or(|last| layer <= last) {
            // What a step that failed has left.
            self.finish_jobs(state);
            for pinned in &mut state.pinned {
                state.pool.unpin(pinned);
                pinned.clear();
            }
            state.pool.begin_step(match access.node.n_tokens() {
                0 | 1 => PoolMode::Decode,
                _ => PoolMode::Stream {
                    slots_max: state.slots_streamed_max,
                },
            });
            state.n_steps = state.n_steps.saturating_add(1);
            self.begin_ahead(state);
            if let Some(recorder) = &mut state.recorder {
                recorder.begin_step(access.node.n_tokens().max(1) as u32);
            }
        }
        state.layer = Some(layer);
        state.wanted.clear();
        for &expert in access.ids.iter() {
            let id = SliceId(stacks[index].first.0 + expert.cast_unsigned());
            state.wanted.extend(self.slices.expert(id));
        }
        self.settle_ahead(state, layer);
        Self::hurry(state);
        if let Some(recorder) = &mut state.recorder {
            recorder.use_slices(&state.wanted, |slice| {
                self.slices.slice(slice).sparse_tensor
            });
        }
        let all = state.pool.request(&state.wanted, &mut state.fetches);
        let requested = all.or_else(|_| {
            let slices = &self.slices;
            state
                .wanted
                .retain(|&id| slices.slice(id).sparse_tensor == index);
            state.pool.request(&state.wanted, &mut state.fetches)
        });
        match requested {
            Ok(()) => {
                for &id in &state.wanted {
                    state.pinned[self.slices.slice(id).sparse_tensor].push(id);
                }
                // What is computed first comes first: the tensors of a layer in their order.
                let slices = &self.slices;
                state
                    .fetches
                    .sort_by_key(|fetch| slices.slice(fetch.slice).sparse_tensor);
                self.submit(state, Class::Demand);
                if access.node.n_tokens() == 1 {
                    self.look_ahead(state, index, access);
                }
            }
            Err(full) => self.fail(full.to_string()),
        }
    }

    pub(super) fn expert(&self, index: usize, expert: u32) -> Option<NonNull<u8>> {
        let stack = &self.slices.sparse_tensors()[index];
        if expert >= stack.n_slices {
            return None;
        }
        let id = SliceId(stack.first.0 + expert);
        self.look_at_device();
        self.guess_ahead();
        if let Some(address) = self.slot_address(id) {
            return Some(address);
        }
        let key = u64::from(id.0);
        self.wait_for(key, Some(stack.layer), || match self.slot_address(id) {
            Some(address) => Look::Found(address),
            None if self.residency.state(id) == State::Failed => Look::Failed,
            None => Look::NotYet,
        })
    }
}
