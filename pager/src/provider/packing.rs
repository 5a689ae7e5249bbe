//! Slices that have arrived and are brought into the layout of the repacked kernels before anybody computes with them.
//!
//! Threads that wait for a slice do this work together, in parts, and outside of the lock around the pool. Nobody waits for
//! the device while there is some.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use llama_rs::Packing;

use super::{Inner, PAGE_BYTES, Provider, lock};
use crate::slices::SliceId;

/// Bytes that a thread repacks at a time: an eighth of a millisecond at most, and small enough for two threads to end together.
const PART_BYTES: usize = 256 << 10;

/// A slice that has arrived in its slot.
#[derive(Debug)]
struct Job {
    slice: SliceId,
    packing: Packing,
    data: NonNull<u8>,
    size_bytes: usize,
    part_bytes: usize,
    n_parts: usize,
    next_part: AtomicUsize,
    /// Parts that have not ended.
    n_left: AtomicUsize,
    has_failed: AtomicBool,
}

// SAFETY: the value is an address and numbers; `Job::repack` says why its use of the memory is sound.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

impl Job {
    /// A part that nobody has taken.
    fn take(&self) -> Option<usize> {
        let part = self.next_part.fetch_add(1, Ordering::Relaxed);
        (part < self.n_parts).then_some(part)
    }

    /// Repacks a part that was taken. Gives whether it was the last to end.
    fn repack(&self, part: usize) -> bool {
        let begin = part * self.part_bytes;
        let size_bytes = self.part_bytes.min(self.size_bytes - begin);
        // SAFETY: inside of the slice, whose read has ended and which nobody reads before it is published, after the last part.
        // A part is taken once, and parts do not overlap.
        let rows = unsafe {
            std::slice::from_raw_parts_mut(self.data.as_ptr().wrapping_add(begin), size_bytes)
        };
        if !self.packing.repack(rows) {
            self.has_failed.store(true, Ordering::Relaxed);
        }
        // Whoever ends last has seen what the others wrote.
        self.n_left.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// Slices that somebody waits for.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    queue: Mutex<VecDeque<Arc<Job>>>,
    /// Those that are not published, for those who do not hold the lock.
    n_unpublished: AtomicUsize,
}

impl Jobs {
    pub(super) fn is_empty(&self) -> bool {
        self.n_unpublished.load(Ordering::Acquire) == 0
    }
}

impl Provider {
    /// A slice has arrived: it is published, or repacked first, at once if nobody waits for it.
    pub(super) fn arrived(&self, state: &mut Inner, id: SliceId) {
        let slice = self.slices.slice(id);
        let Some(packing) = self.packings[slice.sparse_tensor] else {
            let pages = slice.pages(PAGE_BYTES);
            state.pool.complete(id, pages.end - pages.start);
            return;
        };
        let step_bytes = Packing::PART_ROWS * packing.row_bytes();
        let part_bytes = (PART_BYTES / step_bytes).max(1) * step_bytes;
        let size_bytes = slice.size_bytes as usize;
        let n_parts = size_bytes.div_ceil(part_bytes);
        let Some(data) = self.slot_in_flight(id) else {
            return self.fail(format!("slice {} arrived in no slot", id.0));
        };
        let job = Job {
            slice: id,
            packing,
            data,
            size_bytes,
            part_bytes,
            n_parts,
            next_part: AtomicUsize::new(0),
            n_left: AtomicUsize::new(n_parts),
            has_failed: AtomicBool::new(false),
        };
        if self.residency.n_pins(id) > 0 {
            lock(&self.jobs.queue).push_back(Arc::new(job));
            self.jobs.n_unpublished.fetch_add(1, Ordering::Release);
            return;
        }
        while let Some(part) = job.take() {
            job.repack(part);
        }
        self.publish(state, &job);
    }

    fn publish(&self, state: &mut Inner, job: &Job) {
        if job.has_failed.load(Ordering::Relaxed) {
            let reason = format!("slice {} could not be repacked: no memory", job.slice.0);
            state.failures.insert(u64::from(job.slice.0), reason);
            state.pool.fail(job.slice);
            return;
        }
        let pages = self.slices.slice(job.slice).pages(PAGE_BYTES);
        state.pool.complete(job.slice, pages.end - pages.start);
    }

    /// Repacks a part of a slice that somebody waits for. Gives `false` if there is nothing to repack, and nobody is at it.
    pub(super) fn help(&self) -> bool {
        if self.jobs.is_empty() {
            return false;
        }
        let taken = {
            let queue = lock(&self.jobs.queue);
            let mut jobs = queue.iter();
            jobs.find_map(|job| Some((Arc::clone(job), job.take()?)))
        };
        match taken {
            Some((job, part)) => {
                if job.repack(part) {
                    self.publish(&mut lock(&self.state), &job);
                    self.forget(&job);
                }
            }
            // Others end it in a moment.
            None => std::thread::yield_now(),
        }
        true
    }

    fn forget(&self, job: &Arc<Job>) {
        lock(&self.jobs.queue).retain(|other| !Arc::ptr_eq(job, other));
        self.jobs.n_unpublished.fetch_sub(1, Ordering::Release);
    }

    /// Repacks all that has arrived, when no operation is under way: what a step that failed has left.
    pub(super) fn finish_jobs(&self, state: &mut Inner) {
        loop {
            let Some(job) = lock(&self.jobs.queue).front().cloned() else {
                return;
            };
            let mut is_last = false;
            while let Some(part) = job.take() {
                is_last = job.repack(part);
            }
            if is_last {
                self.publish(state, &job);
                self.forget(&job);
            } else {
                // Whoever took its last part waits for the lock that this thread holds, or will: its turn comes after this.
                return;
            }
        }
    }
}
