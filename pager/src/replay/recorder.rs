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

    /// The step uses these slices, the first one first.
    pub(crate) fn use_slices(&mut self, slices: impl Iterator<Item = SliceId>) {
        let Some(step) = self.pattern.steps.last_mut() else {
            return;
        };
        for slice in slices {
            if !std::mem::replace(&mut self.is_used[slice.index()], true) {
                self.pattern.slices.push(slice.0);
                step.n_slices += 1;
            }
        }
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
