//! Whether something behind the device remembers what was read, such as the host of a virtual machine.

use super::{MeasureError, Measurement, Permutation, mix, stats};
use crate::CacheCheck;

const N_RANGES: u64 = 8;
const RANGE_MAX_BYTES: u64 = 32 << 20;
/// Smaller ranges are over before the queue is full.
const RANGE_MIN_BYTES: u64 = 8 << 20;
/// A range that is read again is this much faster if it comes from a cache.
const RATIO: f64 = 1.25;

impl Measurement<'_> {
    /// Reads some ranges twice, each in random order, before anything else is read.
    pub(super) fn look_for_cache(&mut self) -> Result<(), MeasureError> {
        if !self.place.direct {
            return Ok(());
        }
        let range_bytes = (self.place.size_bytes / (2 * N_RANGES)).min(RANGE_MAX_BYTES)
            / self.large_bytes
            * self.large_bytes;
        if range_bytes < RANGE_MIN_BYTES {
            self.place.notes.push(format!(
                "the file is too small to find out whether something behind the device remembers what was read: that takes \
                 {N_RANGES} ranges of {RANGE_MIN_BYTES} bytes that lie apart"
            ));
            return Ok(());
        }
        let n_ranges = self.place.size_bytes / range_bytes;
        let ranges = Permutation::new(n_ranges, mix(self.options.seed ^ 0xcac4e));
        let (mut first, mut again) = (Vec::new(), Vec::new());
        for index in 0..N_RANGES {
            let begin = ranges.at(index) * range_bytes;
            for (pass, rates) in [&mut first, &mut again].into_iter().enumerate() {
                let n_blocks = range_bytes / self.large_bytes;
                let order = Permutation::new(n_blocks, mix(self.options.seed ^ pass as u64));
                let large_bytes = self.large_bytes;
                let offsets = (0..n_blocks).map(move |block| begin + order.at(block) * large_bytes);
                rates.push(self.read_all(offsets)?);
            }
        }
        let check = verdict(range_bytes, first, again);
        self.place.notes.push(note(&check));
        self.host_cache = Some(check);
        Ok(())
    }
}

fn verdict(range_bytes: u64, first: Vec<f64>, again: Vec<f64>) -> CacheCheck {
    let ratios: Vec<f64> = again
        .iter()
        .zip(&first)
        .map(|(again, first)| again / first)
        .collect();
    let ratio = stats::median(&stats::sorted(&ratios));
    CacheCheck {
        range_bytes,
        first_bytes_per_s: first,
        again_bytes_per_s: again,
        ratio,
        seen: ratio >= RATIO,
    }
}

fn note(check: &CacheCheck) -> String {
    let median = |rates: &[f64]| stats::median(&stats::sorted(rates)) / 1e6;
    let (first, again) = (
        median(&check.first_bytes_per_s),
        median(&check.again_bytes_per_s),
    );
    if check.seen {
        format!(
            "a cache behind the device: ranges came at {first:.0} MB/s when they were first read and at {again:.0} MB/s right after \
             that ({:.1} times); the figures are of ranges that were read before, so they are not the device's",
            check.ratio
        )
    } else {
        format!(
            "no cache was seen behind the device: ranges came at {first:.0} MB/s when they were first read and at {again:.0} MB/s right \
             after that; that does not exclude one that had all of the file already"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_faster_second_time_is_a_cache() {
        let check = verdict(1, vec![5e8; 8], vec![2e9; 8]);
        assert!(check.seen && check.ratio == 4.0);
        assert!(note(&check).contains("500 MB/s"), "{}", note(&check));
        assert!(note(&check).contains("2000 MB/s"), "{}", note(&check));
        // A single fast range among equal ones is chance.
        let mut again = vec![1.05e9; 8];
        again[3] = 9e9;
        assert!(!verdict(1, vec![1e9; 8], again).seen);
    }
}
