//! Counters of each step, kept in memory until the end.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::procfs::{self, Usage};
use crate::protocol::StepCounters;

/// Reads the process's counters before and after a step: two system calls each, outside of the step's time.
#[derive(Debug)]
pub(super) struct StepMeter {
    /// `/proc/self/io`, where the kernel keeps it.
    io: Option<File>,
    before: (Usage, Option<u64>),
    counters: StepCounters,
}

impl StepMeter {
    pub(super) fn new(n_steps: usize) -> StepMeter {
        let mut meter = StepMeter {
            io: File::open("/proc/self/io").ok(),
            before: Default::default(),
            counters: StepCounters {
                cpu_ns: Vec::with_capacity(n_steps),
                read_bytes: Vec::with_capacity(n_steps),
                faults_major: Vec::with_capacity(n_steps),
                faults_minor: Vec::with_capacity(n_steps),
            },
        };
        meter.begin();
        meter
    }

    pub(super) fn begin(&mut self) {
        self.before = self.now();
    }

    pub(super) fn end(&mut self) {
        let (usage, read) = self.now();
        let (usage_before, read_before) = self.before;
        let counters = &mut self.counters;
        counters
            .cpu_ns
            .push(usage.cpu_ns.saturating_sub(usage_before.cpu_ns));
        counters
            .faults_major
            .push(usage.faults_major.saturating_sub(usage_before.faults_major));
        counters
            .faults_minor
            .push(usage.faults_minor.saturating_sub(usage_before.faults_minor));
        if let (Some(read), Some(read_before)) = (read, read_before) {
            counters.read_bytes.push(read.saturating_sub(read_before));
        }
    }

    pub(super) fn finish(self) -> StepCounters {
        self.counters
    }

    fn now(&self) -> (Usage, Option<u64>) {
        let read_bytes = || {
            let mut text = [0; 512];
            let len = self.io.as_ref()?.read_at(&mut text, 0).ok()?;
            procfs::read_bytes_of(std::str::from_utf8(&text[..len]).ok()?)
        };
        (procfs::own_usage(), read_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_the_difference() {
        let mut meter = StepMeter::new(2);
        // More than what an allocator keeps for later: its pages are new.
        for size in [64 << 20, 0] {
            meter.begin();
            std::hint::black_box(vec![1u8; size]);
            meter.end();
        }
        let counters = meter.finish();
        assert_eq!((counters.cpu_ns.len(), counters.faults_minor.len()), (2, 2));
        assert!(counters.faults_minor[0] > 0, "{counters:?}");
        assert!(counters.read_bytes.is_empty() || counters.read_bytes.len() == 2);
    }
}
