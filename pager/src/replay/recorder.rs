//! Notes what is used first.

use super::{Pattern, Step, Store};
use crate::slices::SliceId;

/// What a run has used so far.
#[derive(Debug)]
pub(crate) struct Recorder {
    store: Store,
    pattern: Pattern,
    is_used: Vec<bool>,
    n_steps: u32,
}

impl Recorder {
    /// Nothing was used yet.
    pub(crate) fn new(store: Store, n_slices: usize) -> Recorder {
        Recorder {
            store,
            pattern: Pattern::default(),
            is_used: vec![false; n_slices],
            n_steps: 0,
        }
    }

    /// A ubatch of so many tokens begins to use slices.
    pub(crate) fn begin_step(&mut self, n_tokens: u32) {
        // Steps that used nothing new are not kept.
        self.pattern.steps.pop_if(|step| step.n_slices == 0);
        self.pattern.steps.push(Step {
            number: self.n_steps,
            n_tokens,
            n_slices: 0,
        });
        self.n_steps += 1;
    }

    /// The step uses these slices, those of a tensor after those of the tensor before.
    pub(crate) fn use_slices(&mut self, slices: &[SliceId], tensor_of: impl Fn(SliceId) -> usize) {
        let Some(step) = self.pattern.steps.last_mut() else {
            return;
        };
        let is_used = &mut self.is_used;
        let is_new = |slice: &&SliceId| !std::mem::replace(&mut is_used[slice.index()], true);
        let mut new: Vec<SliceId> = slices.iter().filter(is_new).copied().collect();
        new.sort_by_key(|slice| tensor_of(*slice));
        step.n_slices += new.len() as u32;
        self.pattern.slices.extend(new.iter().map(|slice| slice.0));
    }

    /// A dense tensor is used for the first time.
    pub(crate) fn use_dense(&mut self, index: usize) {
        self.pattern.dense.push(index as u32);
    }

    /// Keeps what was used, and what is in slots now, the most valuable first. A run without a step keeps what an earlier one kept.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn keep(&mut self, hot: impl Iterator<Item = SliceId>) -> std::io::Result<()> {
        if self.n_steps == 0 {
            return Ok(());
        }
        self.pattern.hot = hot.map(|slice| slice.0).collect();
        self.store.write(&self.pattern)
    }
}
