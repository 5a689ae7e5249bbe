//! Page faults of this process, from perf's software events.

use std::path::PathBuf;

use perf_event::events::Software;
use perf_event::{Builder, Clock as PerfClock, SampleFlag};

use crate::{Clock, Fault, KernelMark};

use super::maps::{self, FileIdentity, Mapping};
use super::perf::Rings;
use super::{KernelError, Queue};

/// Bytes of a ring of major faults: each of them waits for a device, so they are few.
const MAJOR_RING_BYTES: usize = 128 << 10;

/// Page faults of this process.
///
/// Faults are seen where they are taken, in user space. What the kernel maps at once on request (`MAP_POPULATE`,
/// `MADV_POPULATE_READ`) or for itself (reading into fresh memory) gives no event, though `getrusage(2)` counts some of it.
///
/// # References
///
/// `perf_event_open(2)`; `mm_account_fault` in `mm/memory.c` of the kernel.
#[derive(Debug)]
pub(super) struct Faults {
    minor: Rings,
    major: Rings,
    clock: Clock,
    files: Vec<FileIdentity>,
    mappings: Vec<Mapping>,
    /// Time on `CLOCK_MONOTONIC`, address, and whether it is major.
    samples: Vec<(u64, u64, bool)>,
}

impl Faults {
    /// Counts from now on, in the calling thread and all that it starts.
    pub(super) fn open(paths: &[PathBuf], clock: Clock) -> Result<Faults, KernelError> {
        let what = "page faults";
        let rings = |event, ring_bytes: Option<usize>| {
            let mut builder = Builder::new(event);
            builder
                .observe_self()
                .inherit(true)
                .sample_period(1)
                .sample(SampleFlag::TID)
                .sample(SampleFlag::TIME)
                .sample(SampleFlag::ADDR)
                .clockid(PerfClock::MONOTONIC);
            let rings = match ring_bytes {
                Some(ring_bytes) => Rings::open(&mut builder, ring_bytes),
                None => Rings::open_usual(&mut builder),
            };
            rings.map_err(|error| KernelError::perf(what, &error))
        };
        let mut faults = Faults {
            major: rings(Software::PAGE_FAULTS_MAJ, Some(MAJOR_RING_BYTES))?,
            minor: rings(Software::PAGE_FAULTS_MIN, None)?,
            clock,
            files: paths
                .iter()
                .map(|path| FileIdentity::of(path))
                .collect::<Result<_, _>>()
                .map_err(|error| KernelError::system(what, "find a model file", &error))?,
            mappings: Vec::new(),
            samples: Vec::new(),
        };
        let mut enable = |rings: fn(&mut Faults) -> &mut Rings| {
            let enabled = rings(&mut faults).enable();
            enabled.map_err(|error| KernelError::perf(what, &error))
        };
        enable(|faults| &mut faults.minor)?;
        enable(|faults| &mut faults.major)?;
        Ok(faults)
    }

    pub(super) fn drain(&mut self, queue: &mut Queue) {
        let Faults {
            minor,
            major,
            samples,
            ..
        } = self;
        for (rings, is_major) in [(minor, false), (major, true)] {
            queue.counts.n_lost += rings.drain(|sample| {
                if let (Some(time_ns), Some(address)) = (sample.time(), sample.addr()) {
                    samples.push((time_ns, address, is_major));
                }
            });
        }
        if samples.is_empty() {
            return;
        }
        // After the samples were taken: a page that faulted is mapped before. If the list cannot be read, the last one
        // is nearly as good.
        if let Ok(mappings) = maps::mappings(&self.files) {
            self.mappings = mappings;
        }
        let epoch_ns = self.clock.epoch_monotonic_ns();
        for (time_ns, address, is_major) in self.samples.drain(..) {
            match maps::find(&self.mappings, address) {
                Some((file, offset_bytes)) => queue.push(KernelMark::Fault(Fault {
                    time_ns: time_ns.saturating_sub(epoch_ns),
                    file,
                    offset_bytes,
                    is_major,
                })),
                None if is_major => queue.counts.major_elsewhere += 1,
                None => queue.counts.minor_elsewhere += 1,
            }
        }
    }
}
