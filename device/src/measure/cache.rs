//! Whether something behind the device remembers what was read, such as the host of a virtual machine.

use super::{MeasureError, Measurement, Permutation, mix, stats};
use crate::CacheCheck;

const N_RANGES: u64 = 8;
const RANGE_MAX_BYTES: u64 = 32 << 20;
/// Smaller ranges are over before the queue is full.
const RANGE_MIN_BYTES: u64 = 8 << 20;
/// Ranges that are read again are this much faster, in the median, if they come from a cache.
const RATIO: f64 = 1.25;
/// A cache that had some of the ranges before shows by the others: two more of them are faster by this than are slower by it,
/// which happens by chance as well.
const RATIO_OF_SOME: f64 = 1.5;

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
    let faster = ratios.iter().filter(|ratio| **ratio >= RATIO_OF_SOME);
    let slower = ratios
        .iter()
        .filter(|ratio| **ratio <= RATIO_OF_SOME.recip());
    let some = faster.count() >= slower.count() + 2;
    CacheCheck {
        range_bytes,
        first_bytes_per_s: first,
        again_bytes_per_s: again,
        ratio,
        seen: ratio >= RATIO || some,
    }
}

fn note(check: &CacheCheck) -> String {
    let spread = |rates: &[f64]| {
        let sorted = stats::sorted(rates);
        let megabytes = |rate: f64| format!("{:.0}", rate / 1e6);
        format!(
            "{} MB/s ({} to {})",
            megabytes(stats::median(&sorted)),
            megabytes(sorted[0]),
            megabytes(sorted[sorted.len() - 1])
        )
    };
    let (first, again) = (
        spread(&check.first_bytes_per_s),
        spread(&check.again_bytes_per_s),
    );
    if check.seen {
        format!(
            "a cache behind the device: ranges came at {first} when they were first read and at {again} right after that; the \
             figures are of ranges that were read before, so they are not the device's"
        )
    } else {
        format!(
            "no cache was seen behind the device: ranges came at {first} when they were first read and at {again} right after \
             that; that does not exclude one that had all of the file already"
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
        // A single fast range among equal ones is chance, and so are as many slow ones.
        let mut again = vec![1.05e9; 8];
        again[3] = 9e9;
        assert!(!verdict(1, vec![1e9; 8], again.clone()).seen);
        (again[4], again[5]) = (9e9, 9e8);
        assert!(verdict(1, vec![1e9; 8], again.clone()).seen);
        again[5] = 1e8;
        assert!(!verdict(1, vec![1e9; 8], again).seen);
    }
}
