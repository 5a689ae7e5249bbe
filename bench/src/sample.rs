//! The resident memory of a worker over time.

use serde::{Deserialize, Serialize};

use crate::procfs::{self, Rss};

/// Resident memory at one moment, as `[ms, file_bytes, anon_bytes]` in result files.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "(f64, u64, u64)", into = "(f64, u64, u64)")]
pub(crate) struct Sample {
    /// Time since the process was started.
    pub(crate) at_ms: f64,
    pub(crate) file_bytes: u64,
    pub(crate) anon_bytes: u64,
}

impl From<(f64, u64, u64)> for Sample {
    fn from((at_ms, file_bytes, anon_bytes): (f64, u64, u64)) -> Sample {
        Sample {
            at_ms,
            file_bytes,
            anon_bytes,
        }
    }
}

impl From<Sample> for (f64, u64, u64) {
    fn from(sample: Sample) -> (f64, u64, u64) {
        (sample.at_ms, sample.file_bytes, sample.anon_bytes)
    }
}

/// Collects samples of one process. Runs of equal values keep their first and last sample only, so that a long decode
/// with constant memory costs nothing.
#[derive(Debug)]
pub(crate) struct Sampler {
    pid: u32,
    started_ns: u64,
    samples: Vec<Sample>,
    peak: Rss,
}

impl Sampler {
    /// A sampler for process `pid`, which was started at `started_ns` (CLOCK_MONOTONIC).
    pub(crate) fn new(pid: u32, started_ns: u64) -> Sampler {
        Sampler {
            pid,
            started_ns,
            samples: Vec::with_capacity(2048),
            peak: Rss::default(),
        }
    }

    /// Takes a sample; a process that has just ended gives none.
    pub(crate) fn take(&mut self) {
        if let Ok(rss) = procfs::rss(self.pid) {
            self.push(procfs::monotonic_ns(), rss);
        }
    }

    fn push(&mut self, now_ns: u64, rss: Rss) {
        self.peak.file_bytes = self.peak.file_bytes.max(rss.file_bytes);
        self.peak.anon_bytes = self.peak.anon_bytes.max(rss.anon_bytes);
        // Microseconds are plenty and keep the files short.
        let at_ms = (now_ns.saturating_sub(self.started_ns) / 1_000) as f64 / 1_000.0;
        let sample = Sample {
            at_ms,
            file_bytes: rss.file_bytes,
            anon_bytes: rss.anon_bytes,
        };
        let equal =
            |a: &Sample| a.file_bytes == sample.file_bytes && a.anon_bytes == sample.anon_bytes;
        match self.samples.as_mut_slice() {
            [.., before, last] if equal(before) && equal(last) => *last = sample,
            _ => self.samples.push(sample),
        }
    }

    /// The samples, and the highest file and anonymous memory among them.
    pub(crate) fn finish(self) -> (Vec<Sample>, Rss) {
        (self.samples, self.peak)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rss(file_bytes: u64, anon_bytes: u64) -> Rss {
        Rss {
            file_bytes,
            anon_bytes,
        }
    }

    #[test]
    fn plateaus_keep_their_ends() {
        let mut sampler = Sampler::new(1, 1_000_000);
        for (at_ms, file) in [(1, 10), (2, 20), (3, 20), (4, 20), (5, 20), (6, 5)] {
            sampler.push((at_ms + 1) * 1_000_000, rss(file, 1));
        }
        let (samples, peak) = sampler.finish();
        let points: Vec<_> = samples.iter().map(|s| (s.at_ms, s.file_bytes)).collect();
        assert_eq!(points, [(1.0, 10), (2.0, 20), (5.0, 20), (6.0, 5)]);
        assert_eq!(peak, rss(20, 1));
    }

    #[test]
    fn this_process_can_be_sampled() {
        let mut sampler = Sampler::new(std::process::id(), procfs::monotonic_ns());
        sampler.take();
        let (samples, peak) = sampler.finish();
        assert_eq!(samples.len(), 1);
        assert!(peak.file_bytes > 0 && peak.anon_bytes > 0);
    }

    #[test]
    fn written_as_a_triple() {
        let sample = Sample {
            at_ms: 1.5,
            file_bytes: 2,
            anon_bytes: 3,
        };
        assert_eq!(serde_json::to_string(&sample).unwrap(), "[1.5,2,3]");
        assert_eq!(serde_json::from_str::<Sample>("[1.5,2,3]").unwrap(), sample);
    }
}
