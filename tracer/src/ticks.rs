//! The time of a node for less than a call of `clock_gettime`.
//!
//! On x86-64 the kernel's clock reads the time stamp counter, after an instruction that waits for everything before
//! it to finish: about 20 ns, and none of the computation's cache misses overlap with it. [`Ticks`] reads the
//! counter without waiting and converts it by the kernel's own clock, which it asks again every [`ANCHOR_NS`]. It does so
//! only where the kernel itself uses the counter as its clock, and has thus found it to be constant, and equal on all CPUs.

use crate::Clock;

/// How long times are counted on from what the kernel's clock said.
const ANCHOR_NS: u64 = 5_000_000;
/// The shortest time over which the rate of the counter is measured: a reading is off by about 20 ns.
const RATE_NS_MIN: u64 = 1_000_000;
/// After this time the rate is measured anew: the kernel adjusts the rate of `CLOCK_MONOTONIC`.
const RATE_NS_MAX: u64 = 10_000_000_000;
/// Bits after the binary point of the rate.
const RATE_SHIFT: u32 = 32;

/// Nanoseconds since a [`Clock`]'s epoch, from the CPU's counter where that is possible.
#[derive(Debug)]
pub(crate) struct Ticks {
    clock: Clock,
    counter: Option<fn() -> u64>,
    /// The last time that the clock was asked.
    anchor: Reading,
    /// The time from which the rate is measured.
    base: Reading,
    /// Nanoseconds per tick times 2^32; 0 while it is not known.
    rate: u64,
    /// Ticks after the anchor for which the rate serves.
    valid_ticks: u64,
    last_ns: u64,
}

/// The counter and the clock at the same time.
#[derive(Clone, Copy, Debug)]
struct Reading {
    ticks: u64,
    ns: u64,
}

impl Reading {
    /// The closest of three: a process can lose its CPU between two instructions.
    fn take(clock: Clock, counter: fn() -> u64) -> Reading {
        let once = || {
            let before = counter();
            let ns = clock.now_ns();
            let width = counter().wrapping_sub(before);
            let ticks = before.wrapping_add(width / 2);
            (width, Reading { ticks, ns })
        };
        let first = once();
        let closer = |a: (u64, Reading), b: (u64, Reading)| if b.0 < a.0 { b } else { a };
        closer(closer(first, once()), once()).1
    }
}

impl Ticks {
    pub(crate) fn new(clock: Clock) -> Ticks {
        Ticks::with_counter(clock, counter())
    }

    fn with_counter(clock: Clock, counter: Option<fn() -> u64>) -> Ticks {
        let now = counter.map_or(Reading { ticks: 0, ns: 0 }, |counter| {
            Reading::take(clock, counter)
        });
        Ticks {
            clock,
            counter,
            anchor: now,
            base: now,
            rate: 0,
            valid_ticks: 0,
            last_ns: now.ns,
        }
    }

    /// Nanoseconds since the clock's epoch. Never less than before.
    #[inline]
    pub(crate) fn now_ns(&mut self) -> u64 {
        let Some(counter) = self.counter else {
            return self.clock.now_ns();
        };
        let since_anchor = counter().wrapping_sub(self.anchor.ticks);
        let ns = if since_anchor < self.valid_ticks {
            // At most 2^32 * ANCHOR_NS: no overflow.
            self.anchor.ns + ((since_anchor * self.rate) >> RATE_SHIFT)
        } else {
            self.ask(counter)
        };
        self.last_ns = self.last_ns.max(ns);
        self.last_ns
    }

    /// Asks the clock, and measures the rate of the counter.
    #[cold]
    fn ask(&mut self, counter: fn() -> u64) -> u64 {
        let now = Reading::take(self.clock, counter);
        self.anchor = now;
        let ns = now.ns.saturating_sub(self.base.ns);
        let ticks = now.ticks.wrapping_sub(self.base.ticks);
        if ns >= RATE_NS_MIN && ticks > 0 {
            let rate = (u128::from(ns) << RATE_SHIFT) / u128::from(ticks);
            self.rate = u64::try_from(rate).unwrap_or(0);
            self.valid_ticks = (u128::from(ANCHOR_NS) << RATE_SHIFT)
                .checked_div(rate)
                .and_then(|ticks| u64::try_from(ticks).ok())
                .unwrap_or(0);
        }
        if ns > RATE_NS_MAX {
            self.base = now;
        }
        now.ns
    }
}

/// The CPU's counter, if it can serve as a clock.
fn counter() -> Option<fn() -> u64> {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        let source = std::fs::read_to_string(SOURCE).ok()?;
        if source.trim() == "tsc" {
            // SAFETY: every x86-64 CPU has the instruction; a process that may not use it (PR_SET_TSC) cannot read the
            // kernel's clock without a signal either.
            return Some(|| unsafe { std::arch::x86_64::_rdtsc() });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Longer than two anchors, so that the rate is used and measured again.
    const LONG_ENOUGH: Duration = Duration::from_millis(25);

    fn check(mut ticks: Ticks) {
        let clock = ticks.clock;
        let begin = Instant::now();
        let mut last_ns = 0;
        while begin.elapsed() < LONG_ENOUGH {
            let before_ns = clock.now_ns();
            let now_ns = ticks.now_ns();
            let after_ns = clock.now_ns();
            assert!(now_ns >= last_ns, "{now_ns} after {last_ns}");
            last_ns = now_ns;
            // The counter is read without a barrier, and its rate is known to 1 in 10,000 at first.
            let slack_ns = 5_000;
            assert!(
                now_ns + slack_ns >= before_ns && now_ns <= after_ns + slack_ns,
                "{now_ns} is not between {before_ns} and {after_ns}"
            );
        }
    }

    #[test]
    fn times_are_those_of_the_clock() {
        check(Ticks::new(Clock::start()));
    }

    #[test]
    fn without_a_counter_the_clock_is_asked() {
        check(Ticks::with_counter(Clock::start(), None));
    }

    #[test]
    fn any_rate_of_the_counter_will_do() {
        fn slow() -> u64 {
            // 25 MHz, as on some other architectures.
            wall_ns() / 40
        }
        fn wall_ns() -> u64 {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
        }
        check(Ticks::with_counter(Clock::start(), Some(slow)));
    }
}
