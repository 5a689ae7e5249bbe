//! Points of the run and the counters at each.

use anyhow::Result;

use super::send;
use crate::procfs::{self, monotonic_ns};
use crate::protocol::{Event, Mark, Point};

/// Sends marks and keeps account of what looking at itself costs the worker.
#[derive(Debug)]
pub(super) struct Marks {
    started_ns: u64,
    probe_ns: u64,
    probe_faults: (u64, u64),
}

impl Marks {
    /// Call first in the process.
    pub(super) fn start() -> Marks {
        Marks {
            started_ns: monotonic_ns(),
            probe_ns: 0,
            probe_faults: (0, 0),
        }
    }

    /// Sends the counters at `point`, which is now, or for [`Point::Start`] when this value was made.
    pub(super) fn send(&mut self, point: Point) -> Result<()> {
        let now_ns = monotonic_ns();
        let (minor, major) = procfs::own_faults();
        let mark = Mark {
            point,
            at_ns: if point == Point::Start {
                self.started_ns
            } else {
                now_ns
            },
            probe_ns: self.probe_ns,
            read_bytes: procfs::own_read_bytes(),
            faults_major: major.saturating_sub(self.probe_faults.1),
            faults_minor: minor.saturating_sub(self.probe_faults.0),
        };
        send(&Event::Mark(mark))?;
        self.probe_ns += monotonic_ns() - now_ns;
        Ok(())
    }

    /// Runs `look`, whose time and page faults do not count for the run.
    pub(super) fn probe<R>(&mut self, look: impl FnOnce() -> R) -> R {
        let before = procfs::own_faults();
        let found = self.time_out(look);
        let after = procfs::own_faults();
        self.probe_faults.0 += after.0 - before.0;
        self.probe_faults.1 += after.1 - before.1;
        found
    }

    /// As [`probe`](Marks::probe), for what is done after every token and touches no new memory.
    pub(super) fn time_out<R>(&mut self, look: impl FnOnce() -> R) -> R {
        let begin_ns = monotonic_ns();
        let found = look();
        self.probe_ns += monotonic_ns() - begin_ns;
        found
    }
}
