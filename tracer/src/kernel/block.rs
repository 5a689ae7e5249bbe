//! Reads of the model's files from their disks, from the block layer's tracepoints.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use perf_event::events::Tracepoint;
use perf_event::{Builder, Clock as PerfClock, SampleFlag};

use crate::{BlockRead, Clock, KernelMark, MARK_PAGE_BYTES};

use super::device::Pieces;
use super::error::{BLOCK, tracefs};
use super::perf::Rings;
use super::{KernelError, Queue};

/// Bytes of the ring of a tracepoint: some thousand events.
const RING_BYTES: usize = 256 << 10;

/// Requests that are remembered while the device works on them.
const IN_FLIGHT_MAX: usize = 1 << 16;

/// A request of this age has been completed without an event: Linux 6.18 was seen to drop all events of one CPU's idle task,
/// which is where a device's interrupt often comes. Its latency is not known then.
const UNSEEN_NS: u64 = 1_000_000_000;

/// A request that is issued again after less than this was put back because the device's queue was full; the kernel tries
/// again within some milliseconds. Later, the same place is read a second time.
const REQUEUE_NS: u64 = 20_000_000;

/// Longest read that one mark holds.
const MARK_BYTES_MAX: u64 = u16::MAX as u64 * MARK_PAGE_BYTES;

/// Where tracefs is mounted: since Linux 4.1, and before.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Reads of the model's files, whoever asked for them.
///
/// # References
///
/// `include/trace/events/block.h` of the kernel; `blktrace(8)` shows the same requests as D (issue) and C (complete).
#[derive(Debug)]
pub(super) struct Blocks {
    issue: Rings,
    complete: Rings,
    issue_layout: Layout,
    complete_layout: Layout,
    pieces: Pieces,
    clock: Clock,
    events: Vec<Event>,
    /// When requests were issued and how many sectors they have, by disk and first sector.
    in_flight: HashMap<(u32, u64), (u64, u32)>,
    /// When those were last looked through.
    looked_ns: u64,
}

/// A request is issued or completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Event {
    time_ns: u64,
    is_complete: bool,
    disk: u32,
    sector: u64,
    n_sectors: u32,
}

impl Blocks {
    pub(super) fn open(paths: &[PathBuf], clock: Clock) -> Result<Blocks, KernelError> {
        let pieces = Pieces::of(paths)?;
        let (issue_id, issue_layout) = tracepoint("block_rq_issue")?;
        let (complete_id, complete_layout) = tracepoint("block_rq_complete")?;
        let rings = |id| {
            let mut builder = Builder::new(Tracepoint::with_id(id));
            builder
                .any_pid()
                .include_kernel()
                .include_hv()
                .sample_period(1)
                .sample(SampleFlag::TIME)
                .sample(SampleFlag::RAW)
                .clockid(PerfClock::MONOTONIC);
            let rings = Rings::open(&mut builder, RING_BYTES).and_then(|mut rings| {
                rings.enable()?;
                Ok(rings)
            });
            rings.map_err(|error| KernelError::perf(BLOCK, &error))
        };
        // Completions last, so that each has its issue.
        Ok(Blocks {
            issue: rings(issue_id)?,
            complete: rings(complete_id)?,
            issue_layout,
            complete_layout,
            pieces,
            clock,
            events: Vec::new(),
            in_flight: HashMap::new(),
            looked_ns: 0,
        })
    }

    pub(super) fn drain(&mut self, queue: &mut Queue, is_last: bool) {
        let Blocks {
            issue,
            complete,
            issue_layout,
            complete_layout,
            pieces,
            clock,
            events,
            ..
        } = self;
        // A request is completed on another CPU than it was issued on: what came while the rings were read one after the
        // other waits for the next time.
        let until_ns = if is_last {
            u64::MAX
        } else {
            clock.epoch_monotonic_ns() + clock.now_ns()
        };
        for (rings, layout, is_complete) in [
            (issue, &*issue_layout, false),
            (complete, &*complete_layout, true),
        ] {
            queue.counts.n_lost += rings.drain(|sample| {
                let event = match (sample.time(), sample.raw()) {
                    (Some(time_ns), Some(raw)) => layout.event(time_ns, is_complete, raw),
                    _ => None,
                };
                events.extend(event.filter(|event| pieces.has_disk(event.disk)));
            });
        }
        events.sort_by_key(|event| (event.time_ns, event.is_complete));
        let n_ready = events.partition_point(|event| event.time_ns <= until_ns);
        for index in 0..n_ready {
            self.take(self.events[index], queue);
        }
        self.events.drain(..n_ready);
        if until_ns.saturating_sub(self.looked_ns) > UNSEEN_NS / 4 {
            self.looked_ns = until_ns;
            self.give_up(queue, until_ns.saturating_sub(UNSEEN_NS));
        }
    }

    /// Requests that were issued before a time become reads of unknown latency.
    fn give_up(&mut self, queue: &mut Queue, before_ns: u64) {
        let is_old = |_: &(u32, u64), (issued_ns, _): &mut (u64, u32)| *issued_ns < before_ns;
        let unseen: Vec<_> = self.in_flight.extract_if(is_old).collect();
        for (place, (issued_ns, n_sectors)) in unseen {
            self.push(queue, place, n_sectors, issued_ns, u32::MAX);
        }
    }

    fn take(&mut self, event: Event, queue: &mut Queue) {
        let place = (event.disk, event.sector);
        if !event.is_complete {
            if self.in_flight.len() == IN_FLIGHT_MAX {
                self.give_up(queue, u64::MAX);
            }
            let issued = (event.time_ns, event.n_sectors);
            if let Some((issued_ns, n_sectors)) = self.in_flight.insert(place, issued)
                && event.time_ns.saturating_sub(issued_ns) > REQUEUE_NS
            {
                self.push(queue, place, n_sectors, issued_ns, u32::MAX);
            }
            return;
        }
        // Otherwise it was issued before watching began, or that event was lost and counted.
        if let Some((issued_ns, n_issued)) = self.in_flight.remove(&place) {
            // Some devices complete a request piece by piece.
            if let Some(n_left) = n_issued.checked_sub(event.n_sectors).filter(|&n| n > 0) {
                let rest = (
                    event.disk,
                    event.sector.saturating_add(u64::from(event.n_sectors)),
                );
                self.in_flight.insert(rest, (issued_ns, n_left));
            }
            let latency_ns = u32::try_from(event.time_ns.saturating_sub(issued_ns));
            let latency_ns = latency_ns.unwrap_or(u32::MAX);
            self.push(queue, place, event.n_sectors, issued_ns, latency_ns);
        }
    }

    fn push(
        &self,
        queue: &mut Queue,
        (disk, sector): (u32, u64),
        n_sectors: u32,
        issued_ns: u64,
        latency_ns: u32,
    ) {
        let time_ns = issued_ns.saturating_sub(self.clock.epoch_monotonic_ns());
        self.pieces
            .split(disk, sector, n_sectors, |file, mut range| {
                while !range.is_empty() {
                    let end = range.end.min(range.start + MARK_BYTES_MAX);
                    queue.push(KernelMark::BlockRead(BlockRead {
                        time_ns,
                        latency_ns,
                        file,
                        offset_bytes: range.start,
                        size_bytes: end - range.start,
                    }));
                    range.start = end;
                }
            });
    }
}

/// The number of a tracepoint and where its fields are.
fn tracepoint(name: &str) -> Result<(u64, Layout), KernelError> {
    let mut failure = None;
    for root in TRACEFS {
        let folder = Path::new(root).join("events/block").join(name);
        match read(&folder) {
            Ok(found) => return Ok(found),
            // The first place is the better one to name.
            Err(error) => _ = failure.get_or_insert_with(|| tracefs(&folder, &error)),
        }
    }
    Err(failure.unwrap_or_else(|| KernelError::new(BLOCK, "tracefs has no place")))
}

fn read(folder: &Path) -> io::Result<(u64, Layout)> {
    let id = fs::read_to_string(folder.join("id"))?;
    let format = fs::read_to_string(folder.join("format"))?;
    let layout = Layout::parse(&format);
    id.trim()
        .parse()
        .ok()
        .zip(layout)
        .ok_or_else(|| io::Error::other("its fields are not those that this program knows"))
}

/// Where the fields of an event are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layout {
    disk: Range<usize>,
    sector: Range<usize>,
    n_sectors: Range<usize>,
    /// Letters for what the request does.
    kind: Range<usize>,
}

impl Layout {
    /// From a `format` file of tracefs, whose lines are such as `field:dev_t dev; offset:8; size:4; signed:0;`, with tabs.
    fn parse(format: &str) -> Option<Layout> {
        let field = |name: &str, size_bytes: Option<usize>| {
            let line = format.lines().find(|line| {
                let declaration = line.trim().strip_prefix("field:");
                let declared = declaration.and_then(|rest| rest.split(';').next());
                declared.and_then(|text| text.split([' ', '[']).find(|word| *word == name))
                    == Some(name)
            })?;
            let number = |key: &str| {
                let rest = line.split(key).nth(1)?;
                rest.split(';').next()?.parse::<usize>().ok()
            };
            let (offset, size) = (number("offset:")?, number("size:")?);
            let fits = size_bytes.is_none_or(|expected| expected == size);
            fits.then(|| offset..offset + size)
        };
        Some(Layout {
            disk: field("dev", Some(4))?,
            sector: field("sector", Some(8))?,
            n_sectors: field("nr_sector", Some(4))?,
            kind: field("rwbs", None)?,
        })
    }

    /// The event in a raw sample, if it is about a read.
    fn event(&self, time_ns: u64, is_complete: bool, raw: &[u8]) -> Option<Event> {
        let word = |range: &Range<usize>| {
            let bytes = raw.get(range.clone())?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let sector = raw.get(self.sector.clone())?;
        // A letter for a flush may come first (`blk_fill_rwbs`); F after the operation stands for FUA.
        let kind = raw.get(self.kind.clone())?;
        let operation = kind.iter().find(|&&letter| letter != b'F')?;
        let n_sectors = word(&self.n_sectors)?;
        (*operation == b'R' && n_sectors > 0).then_some(Event {
            time_ns,
            is_complete,
            disk: word(&self.disk)?,
            sector: u64::from_ne_bytes(sector.try_into().ok()?),
            n_sectors,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: block_rq_complete\nID: 2107\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
        \tfield:dev_t dev;\toffset:8;\tsize:4;\tsigned:0;\n\
        \tfield:sector_t sector;\toffset:16;\tsize:8;\tsigned:0;\n\
        \tfield:unsigned int nr_sector;\toffset:24;\tsize:4;\tsigned:0;\n\
        \tfield:int error;\toffset:28;\tsize:4;\tsigned:1;\n\
        \tfield:char rwbs[10];\toffset:34;\tsize:10;\tsigned:0;\n\
        print fmt: \"%d\", REC->dev\n";

    #[test]
    fn fields_are_where_the_kernel_says() {
        let layout = Layout::parse(FORMAT).unwrap();
        assert_eq!(
            (
                layout.disk.clone(),
                layout.sector.clone(),
                layout.kind.clone()
            ),
            (8..12, 16..24, 34..44)
        );
        let mut raw = vec![0; 48];
        raw[8..12].copy_from_slice(&(254u32 << 20).to_ne_bytes());
        raw[16..24].copy_from_slice(&77u64.to_ne_bytes());
        raw[24..28].copy_from_slice(&8u32.to_ne_bytes());
        raw[34..36].copy_from_slice(b"RA");
        let event = Event {
            time_ns: 5,
            is_complete: true,
            disk: 254 << 20,
            sector: 77,
            n_sectors: 8,
        };
        assert_eq!(layout.event(5, true, &raw), Some(event));
        raw[34..36].copy_from_slice(b"WS");
        assert_eq!(layout.event(5, true, &raw), None);
        raw.truncate(40);
        assert_eq!(layout.event(5, true, &raw), None);
        assert_eq!(Layout::parse(&FORMAT.replace("nr_sector", "n")), None);
        assert_eq!(Layout::parse(&FORMAT.replace("size:8", "size:4")), None);
    }
}
