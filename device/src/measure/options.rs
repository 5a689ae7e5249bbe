//! What to measure, checked.

use std::path::PathBuf;

use super::MeasureError;
use super::engine::stride;

const REQUEST_MAX_BYTES: u64 = 256 << 20;
const DEPTH_MAX: u32 = 1024;
/// All buffers of the point that needs most.
const MEMORY_MAX_BYTES: u64 = 2 << 30;
const REPETITIONS_MIN: u32 = 5;
/// Offsets and lengths of direct reads are at least multiples of this.
const SECTOR_BYTES: u64 = 512;

/// What is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file that exists.
    File(PathBuf),
    /// A temporary file of incompressible bytes, removed at the end whatever happens.
    Temporary {
        /// Where.
        folder: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
}

/// What to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Bytes of requests: multiples of 512.
    pub sizes: Vec<u64>,
    /// Requests under way at once.
    pub depths: Vec<u32>,
    /// Time for each pair of size and depth, all repetitions together.
    pub seconds: f64,
    /// Repetitions of each pair, at least 5.
    pub repetitions: u32,
    /// Decides the offsets and the order.
    pub seed: u64,
    /// Read the file once from front to back before, so that ranges are equally warm for all pairs.
    pub warm_up: bool,
    /// Try io_uring; otherwise threads read.
    pub io_uring: bool,
}

impl Options {
    /// Sorts sizes and depths and checks everything that does not depend on the file.
    pub(super) fn checked(&self) -> Result<Options, MeasureError> {
        let refuse = |text: String| Err(MeasureError::Options(text));
        let mut options = self.clone();
        options.sizes.sort_unstable();
        options.sizes.dedup();
        options.depths.sort_unstable();
        options.depths.dedup();
        let (Some(&largest), Some(&deepest)) = (options.sizes.last(), options.depths.last()) else {
            return refuse("no request sizes or no queue depths".to_owned());
        };
        for &size in &options.sizes {
            if size == 0 || size % SECTOR_BYTES != 0 {
                return refuse(format!(
                    "a request of {size} bytes: direct reads are multiples of {SECTOR_BYTES} bytes, and at least that"
                ));
            }
        }
        if largest > REQUEST_MAX_BYTES {
            return refuse(format!(
                "a request of {largest} bytes is too large: at most {REQUEST_MAX_BYTES}"
            ));
        }
        if options.depths[0] == 0 || deepest > DEPTH_MAX {
            let wrong = if options.depths[0] == 0 { 0 } else { deepest };
            return refuse(format!(
                "a queue depth of {wrong}: it is from 1 to {DEPTH_MAX}"
            ));
        }
        if options.memory_bytes() > MEMORY_MAX_BYTES {
            return refuse(format!(
                "{deepest} requests of {largest} bytes take {} bytes of memory: at most {MEMORY_MAX_BYTES}; choose smaller \
                 sizes or depths",
                options.memory_bytes()
            ));
        }
        if !(options.seconds > 0.0 && options.seconds <= 3600.0) {
            return refuse(format!(
                "{} seconds for a point: it is more than 0 and at most 3600",
                options.seconds
            ));
        }
        if options.repetitions < REPETITIONS_MIN || options.repetitions > 1000 {
            return refuse(format!(
                "{} repetitions: it is from {REPETITIONS_MIN}, for a spread, to 1000",
                options.repetitions
            ));
        }
        Ok(options)
    }

    /// Bytes of the buffers for the largest size and depth.
    pub(super) fn memory_bytes(&self) -> u64 {
        let largest = self.sizes.iter().max().copied().unwrap_or(0);
        let deepest = self.depths.iter().max().copied().unwrap_or(0);
        stride(largest as usize) as u64 * u64::from(deepest)
    }
}
