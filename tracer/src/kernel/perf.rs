//! Sampled perf events with a ring for each CPU.

use std::fmt;
use std::fs;
use std::io;

use perf_event::data::{Record, Sample};
use perf_event::{Builder, Sampler};

/// Bytes of one ring; less where the limit on locked memory asks for it.
const RING_BYTES: usize = 512 << 10;
const RING_BYTES_MIN: usize = 32 << 10;

/// Most records that one pass takes from a ring: as many as the smallest fill it with, twice, so that a pass ends even if
/// the kernel is faster.
const RECORDS_MAX: usize = 2 * RING_BYTES / 32;

/// The rings of one event.
pub(super) struct Rings {
    samplers: Vec<Sampler>,
}

impl fmt::Debug for Rings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rings")
            .field("n_cpus", &self.samplers.len())
            .finish_non_exhaustive()
    }
}

impl Rings {
    /// Opens the event on every CPU, not counting yet. `ring_bytes` is a power of two of pages.
    pub(super) fn open(builder: &mut Builder<'_>, ring_bytes: usize) -> io::Result<Rings> {
        let mut samplers = Vec::new();
        for cpu in online_cpus()? {
            match open_one(builder.one_cpu(cpu), ring_bytes) {
                Ok(sampler) => samplers.push(sampler),
                // It went offline in between.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Rings { samplers })
    }

    /// As [`Rings::open`] with the usual size.
    pub(super) fn open_usual(builder: &mut Builder<'_>) -> io::Result<Rings> {
        Rings::open(builder, RING_BYTES)
    }

    /// Begins to count.
    pub(super) fn enable(&mut self) -> io::Result<()> {
        self.samplers.iter_mut().try_for_each(|s| s.enable())
    }

    /// Empties the rings, CPU by CPU. Returns how many events the kernel had to drop.
    pub(super) fn drain(&mut self, mut each: impl FnMut(&Sample<'_>)) -> u64 {
        let mut n_lost = 0;
        for sampler in &mut self.samplers {
            for _ in 0..RECORDS_MAX {
                let Some(record) = sampler.next_record() else {
                    break;
                };
                match record.parse_record() {
                    Ok(Record::Sample(sample)) => each(&sample),
                    Ok(Record::Lost(lost)) => n_lost += lost.lost,
                    Ok(Record::LostSamples(lost)) => n_lost += lost.lost,
                    Ok(_) => {}
                    Err(_) => n_lost += 1,
                }
            }
        }
        n_lost
    }
}

fn open_one(builder: &Builder<'_>, ring_bytes: usize) -> io::Result<Sampler> {
    let mut ring_bytes = ring_bytes;
    loop {
        // Its ring belongs to the counter, so a smaller ring needs a new counter.
        match builder.build()?.sampled(ring_bytes) {
            // Locked memory: kernel.perf_event_mlock_kb for each CPU and user, then RLIMIT_MEMLOCK.
            Err(error)
                if error.raw_os_error() == Some(libc::EPERM) && ring_bytes > RING_BYTES_MIN =>
            {
                ring_bytes /= 2;
            }
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            sampler => return sampler,
        }
    }
}

/// Numbers of the CPUs that run.
fn online_cpus() -> io::Result<Vec<usize>> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online")?;
    parse_list(&text).ok_or_else(|| io::Error::other(format!("unknown list of CPUs: {text}")))
}

/// The kernel's form of a set, such as `0-3,8`.
fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_list("0\n"), Some(vec![0]));
        assert_eq!(
            parse_list("0-3,8,10-11\n"),
            Some(vec![0, 1, 2, 3, 8, 10, 11])
        );
        assert_eq!(parse_list(""), None);
        assert_eq!(parse_list("0-x"), None);
    }
}
