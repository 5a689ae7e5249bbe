//! One clock for every time in a log.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// `CLOCK_MONOTONIC`, counted from an epoch, and what the wall clock said then.
///
/// The kernel answers without a system call (vDSO) where its clock source allows it.
///
/// # References
///
/// `clock_gettime(2)`, `vdso(7)`. Perf events give the same clock with `use_clockid` and
/// `CLOCK_MONOTONIC` (`perf_event_open(2)`), so their times compare with these.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    monotonic_ns: u64,
    realtime_ns: u64,
}

impl Clock {
    /// A clock whose epoch is now.
    pub fn start() -> Clock {
        Clock {
            monotonic_ns: nanoseconds(clock_gettime(ClockId::Monotonic)),
            realtime_ns: nanoseconds(clock_gettime(ClockId::Realtime)),
        }
    }

    /// Nanoseconds since the epoch.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        nanoseconds(clock_gettime(ClockId::Monotonic)).saturating_sub(self.monotonic_ns)
    }

    /// The epoch on `CLOCK_MONOTONIC`, in nanoseconds.
    pub fn epoch_monotonic_ns(&self) -> u64 {
        self.monotonic_ns
    }

    /// The epoch on `CLOCK_REALTIME`: nanoseconds since 1970, UTC.
    pub fn epoch_realtime_ns(&self) -> u64 {
        self.realtime_ns
    }
}

/// A clock set before 1970 counts as 1970.
#[inline]
fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_run_backwards() {
        let clock = Clock::start();
        let mut last_ns = 0;
        for _ in 0..1000 {
            let now_ns = clock.now_ns();
            assert!(now_ns >= last_ns);
            last_ns = now_ns;
        }
    }
}
