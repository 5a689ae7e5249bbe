//! Which step a moment belongs to.

use std::collections::VecDeque;

use crate::{Flags, NO_STEP};

/// Steps that are remembered: an event comes to the log at most some seconds late.
const STEPS_MAX: usize = 4096;

/// The beginnings of the last steps.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    begins: VecDeque<(u64, u32, Flags)>,
    /// A step has been forgotten, so that what is older than the oldest does not come before the first.
    has_forgotten: bool,
}

impl Steps {
    /// A step begins; later than all before.
    pub(crate) fn begin(&mut self, begin_ns: u64, step: u32, flags: Flags) {
        if self.begins.len() == STEPS_MAX {
            self.begins.pop_front();
            self.has_forgotten = true;
        }
        self.begins.push_back((begin_ns, step, flags));
    }

    /// The last step that had begun at this time, with its flags; [`NO_STEP`] before the first.
    pub(crate) fn at(&self, time_ns: u64) -> (u32, Flags) {
        let after = self
            .begins
            .partition_point(|(begin_ns, ..)| *begin_ns <= time_ns);
        let found = match after.checked_sub(1) {
            Some(index) => self.begins.get(index),
            None if self.has_forgotten => self.begins.front(),
            None => None,
        };
        found.map_or((NO_STEP, Flags::default()), |&(_, step, flags)| {
            (step, flags)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_belongs_to_the_last_step_that_had_begun() {
        let mut steps = Steps::default();
        assert_eq!(steps.at(5).0, NO_STEP);
        steps.begin(10, 0, Flags::PROMPT);
        steps.begin(20, 1, Flags::default());
        assert_eq!(steps.at(9).0, NO_STEP);
        assert_eq!(steps.at(10), (0, Flags::PROMPT));
        assert_eq!(steps.at(19), (0, Flags::PROMPT));
        assert_eq!(steps.at(1000), (1, Flags::default()));
        for step in 2..5000 {
            steps.begin(u64::from(step) * 10, step, Flags::default());
        }
        assert_eq!(steps.at(49_995).0, 4999);
        assert_eq!(steps.at(5).0, 5000 - STEPS_MAX as u32);
    }
}
