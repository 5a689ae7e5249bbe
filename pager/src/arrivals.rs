//! Dense weights on their way: a thread of its own reads them while the model is loaded, and while the first token is computed.

use std::collections::HashMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::engine::{Class, Completion, Engine, EngineError, Read};
use crate::region::Region;

/// Bytes of one read.
const READ_BYTES: u64 = 8 << 20;
/// Bytes that the device is asked for at a time, and as many behind them whose memory is cleared meanwhile: otherwise the kernel does
/// that in the call that starts a read, and the device has nothing to do.
pub(crate) const IN_FLIGHT_BYTES: u32 = 32 << 20;
/// An ordinary page is a segment of its own, and a request has few of them: a virtio disk brought 0.5 GB/s there and 2.4 to huge pages. So what
/// belongs on ordinary pages is read into one of so many places on huge ones, and copied.
const N_PLACES: usize = 4;
const PLACE_BYTES: u64 = 2 << 20;
/// Longest time in the kernel before the thread looks whether it is to end.
const WAIT: Duration = Duration::from_millis(20);
/// Longest time that nothing arrives before reading is given up.
const SILENCE: Duration = Duration::from_secs(120);

/// Pages of a part of the model, one read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) part: usize,
    pub(crate) range: Range<u64>,
    /// Its memory is on ordinary pages.
    pub(crate) is_scattered: bool,
}

impl Piece {
    fn size_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn overlaps(&self, part: usize, range: &Range<u64>) -> bool {
        self.part == part && self.range.start < range.end && range.start < self.range.end
    }
}

/// What has arrived.
#[derive(Debug)]
pub(crate) struct Arrivals {
    /// In the order of reading. No two of them overlap.
    pieces: Vec<Piece>,
    progress: Mutex<Progress>,
    changed: Condvar,
    /// Everything has arrived: then nobody has to ask.
    is_complete: AtomicBool,
    is_stopped: AtomicBool,
    /// Of each dense tensor: whether it was repacked, and how that went.
    repacked: Box<[OnceLock<bool>]>,
}

#[derive(Debug)]
struct Progress {
    has_arrived: Vec<bool>,
    n_arrived: usize,
    /// Why nothing more will come.
    failure: Option<String>,
}

/// The thread that reads. Dropping it ends it, when the reads under way have ended.
#[derive(Debug)]
pub(crate) struct Arriving {
    arrivals: Arc<Arrivals>,
    thread: Option<JoinHandle<()>>,
}

/// Divides ranges of whole pages, in this order, into pieces. Of pages that several have the first one counts.
pub(crate) fn pieces(ranges: impl Iterator<Item = (usize, Range<u64>)>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    // By part and begin, without overlaps.
    let mut covered: Vec<(usize, Range<u64>)> = Vec::new();
    for (part, range) in ranges {
        let mut begin = range.start;
        let mut fresh = Vec::new();
        let overlapping = covered.iter().filter(|(other_part, other)| {
            *other_part == part && other.start < range.end && range.start < other.end
        });
        for (_, other) in overlapping {
            if begin < other.start {
                fresh.push(begin..other.start);
            }
            begin = begin.max(other.end);
        }
        if begin < range.end {
            fresh.push(begin..range.end);
        }
        for fresh in fresh {
            let at = covered.partition_point(|(p, r)| (*p, r.start) < (part, fresh.start));
            covered.insert(at, (part, fresh.clone()));
            add(&mut pieces, part, fresh);
        }
    }
    pieces
}

/// Adds a range to the pieces: to the last one where it follows it and there is room.
fn add(pieces: &mut Vec<Piece>, part: usize, range: Range<u64>) {
    let mut begin = range.start;
    if let Some(last) = pieces.last_mut()
        && last.part == part
        && last.range.end == begin
    {
        last.range.end = range.end.min(last.range.start + READ_BYTES);
        begin = last.range.end;
    }
    while begin < range.end {
        let end = range.end.min(begin + READ_BYTES);
        pieces.push(Piece {
            part,
            range: begin..end,
            is_scattered: false,
        });
        begin = end;
    }
}

/// Divides pieces at the borders of the memory on huge pages, which is given by part and range.
pub(crate) fn scattered(pieces: Vec<Piece>, huge: &[(usize, Range<u64>)]) -> Vec<Piece> {
    let mut divided = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let of_part = huge
            .iter()
            .filter(|(part, range)| *part == piece.part && !range.is_empty());
        let huge: Vec<&Range<u64>> = of_part.map(|(_, range)| range).collect();
        let mut begin = piece.range.start;
        while begin < piece.range.end {
            let is_scattered = !huge.iter().any(|range| range.contains(&begin));
            let borders = huge.iter().flat_map(|range| [range.start, range.end]);
            let next = borders.filter(|&border| border > begin).min();
            let most = match is_scattered {
                true => begin + PLACE_BYTES,
                false => u64::MAX,
            };
            let end = piece.range.end.min(next.unwrap_or(u64::MAX)).min(most);
            divided.push(Piece {
                part: piece.part,
                range: begin..end,
                is_scattered,
            });
            begin = end;
        }
    }
    divided
}

/// Memory on huge pages where bytes arrive that have their place on ordinary ones.
#[derive(Debug)]
struct Places {
    region: Option<Region>,
    free: Vec<usize>,
    /// By key of the read.
    taken: HashMap<u64, usize>,
}

impl Places {
    fn new(pieces: &[Piece]) -> Places {
        let is_any = pieces.iter().any(|piece| piece.is_scattered);
        let size_bytes = N_PLACES * PLACE_BYTES as usize;
        // Without memory for it they are read where they belong.
        let region = is_any.then(|| Region::opened(size_bytes).ok()).flatten();
        let n_places = if region.is_some() { N_PLACES } else { 0 };
        Places {
            region,
            free: (0..n_places)
                .map(|place| place * PLACE_BYTES as usize)
                .collect(),
            taken: HashMap::new(),
        }
    }

    /// A place for a read, if one is free and it needs one.
    fn take(&mut self, key: u64, piece: &Piece) -> Option<NonNull<u8>> {
        let region = self.region.as_ref().filter(|_| piece.is_scattered)?;
        let offset = self.free.pop()?;
        self.taken.insert(key, offset);
        Some(region.at(offset))
    }

    /// The place of a read that has ended, until another one is begun.
    fn leave(&mut self, key: u64) -> Option<NonNull<u8>> {
        let offset = self.taken.remove(&key)?;
        self.free.push(offset);
        Some(self.region.as_ref()?.at(offset))
    }
}

impl Arriving {
    /// Starts to read the pieces in their order into `regions`, one for each part, in which they are open. To be called once.
    ///
    /// # Errors
    ///
    /// If there is no thread.
    pub(crate) fn start(
        arrivals: Arc<Arrivals>,
        regions: Arc<[Region]>,
        engine: Box<dyn Engine>,
    ) -> std::io::Result<Arriving> {
        let shared = Arc::clone(&arrivals);
        let thread = std::thread::Builder::new()
            .name("weights".to_owned())
            .spawn(move || {
                // However it ends, nobody waits for it any more.
                let over = Over(&shared);
                let result = shared.read_all(&regions, engine);
                if let Err(reason) = result {
                    shared.fail(reason);
                }
                drop(over);
            })?;
        Ok(Arriving {
            arrivals,
            thread: Some(thread),
        })
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.arrivals.is_stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it was noted as a failure.
            let _ = thread.join();
        }
    }
}

/// Dropped when the thread ends.
struct Over<'a>(&'a Arrivals);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        if !self.0.is_complete() {
            self.0
                .fail("the thread that reads the model has ended; load it again".to_owned());
        }
    }
}

impl Arrivals {
    /// Nothing has arrived of the pieces of this many tensors.
    pub(crate) fn new(pieces: Vec<Piece>, n_tensors: usize) -> Arrivals {
        Arrivals {
            progress: Mutex::new(Progress {
                has_arrived: vec![false; pieces.len()],
                n_arrived: 0,
                failure: None,
            }),
            changed: Condvar::new(),
            is_complete: AtomicBool::new(pieces.is_empty()),
            is_stopped: AtomicBool::new(false),
            repacked: (0..n_tensors).map(|_| OnceLock::new()).collect(),
            pieces,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, reason: String) {
        self.lock().failure.get_or_insert(reason);
        self.changed.notify_all();
    }

    /// Whether everything has arrived.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Acquire)
    }

    /// The pieces that hold a part of this range.
    pub(crate) fn of(&self, part: usize, range: &Range<u64>) -> Vec<usize> {
        let pieces = self.pieces.iter().enumerate();
        let overlapping = pieces.filter(|(_, piece)| piece.overlaps(part, range));
        overlapping.map(|(index, _)| index).collect()
    }

    /// Whether these pieces hold all of a range.
    pub(crate) fn cover(&self, pieces: &[usize], range: &Range<u64>) -> bool {
        let mut ranges: Vec<&Range<u64>> = pieces
            .iter()
            .map(|&piece| &self.pieces[piece].range)
            .collect();
        ranges.sort_by_key(|range| range.start);
        let mut end = range.start;
        for range in ranges {
            if range.start <= end {
                end = end.max(range.end);
            }
        }
        end >= range.end
    }

    /// Waits until these pieces have arrived.
    ///
    /// # Errors
    ///
    /// Why they will not.
    pub(crate) fn wait_for(&self, pieces: &[usize]) -> Result<(), String> {
        if self.is_complete() {
            return Ok(());
        }
        let mut progress = self.lock();
        loop {
            if pieces.iter().all(|&piece| progress.has_arrived[piece]) {
                return Ok(());
            }
            if let Some(failure) = &progress.failure {
                return Err(failure.clone());
            }
            progress = (self.changed.wait(progress)).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Repacks a tensor that has arrived, unless that was done; whoever comes second waits for the first.
    ///
    /// # Errors
    ///
    /// `repack` gave nothing, now or then.
    pub(crate) fn once(
        &self,
        tensor: usize,
        repack: impl FnOnce() -> Option<()>,
    ) -> Result<(), String> {
        match self.repacked[tensor].get_or_init(|| repack().is_some()) {
            true => Ok(()),
            false => Err("dense weights could not be repacked: no memory".to_owned()),
        }
    }

    fn read_all(&self, regions: &[Region], engine: Box<dyn Engine>) -> Result<(), String> {
        let broken = |error: EngineError| error.to_string();
        let mut places = Places::new(&self.pieces);
        // Declared behind the places, so dropped before them.
        let mut engine = engine;
        let (mut n_submitted, mut n_cleared) = (0, 0);
        let mut in_flight_bytes = 0;
        let mut silent_since = std::time::Instant::now();
        while !self.is_complete() && !self.is_stopped.load(Ordering::Relaxed) {
            while n_submitted < self.pieces.len() && in_flight_bytes < u64::from(IN_FLIGHT_BYTES) {
                let piece = &self.pieces[n_submitted];
                let key = n_submitted as u64;
                let place = places.take(key, piece);
                let read = Read {
                    file: piece.part as u32,
                    offset_bytes: piece.range.start,
                    target: place
                        .unwrap_or_else(|| regions[piece.part].at(piece.range.start as usize)),
                    size_bytes: piece.size_bytes() as u32,
                    key,
                    class: Class::Demand,
                };
                // SAFETY: pieces do not overlap, so each has its pages to itself; they are open, and nobody looks at them before
                // `note` has published the piece. A place belongs to one read at a time. The engine is dropped before the places and
                // before the thread's share of the regions.
                unsafe { engine.submit(&[read]) }.map_err(broken)?;
                in_flight_bytes += piece.size_bytes();
                n_submitted += 1;
            }
            let mut ended = Vec::new();
            let mut keep = |done| ended.push(done);
            match self.clear_next(regions, n_submitted, &mut n_cleared) {
                true => engine.reap(&mut keep).map_err(broken)?,
                false => engine.wait(&mut keep, WAIT).map_err(broken)?,
            };
            if !ended.is_empty() {
                silent_since = std::time::Instant::now();
                let arrived = ended.iter().map(|done| &self.pieces[done.key as usize]);
                in_flight_bytes -= arrived.map(Piece::size_bytes).sum::<u64>();
                for done in &ended {
                    let piece = &self.pieces[done.key as usize];
                    if let Some(place) = places.leave(done.key) {
                        let to = regions[piece.part].at(piece.range.start as usize);
                        // SAFETY: the read has ended, so its place holds this many bytes that nobody writes; those of the piece are open, its own,
                        // and looked at by nobody before `note` has published it.
                        unsafe { to.copy_from_nonoverlapping(place, piece.size_bytes() as usize) };
                    }
                }
                self.note(ended)?;
            } else if silent_since.elapsed() > SILENCE {
                return Err(format!("nothing was read for {} s", SILENCE.as_secs()));
            }
        }
        Ok(())
    }

    /// Clears the memory of the next piece that is neither submitted nor cleared, as far as [`IN_FLIGHT_BYTES`] ahead. False if there is none.
    fn clear_next(&self, regions: &[Region], n_submitted: usize, n_cleared: &mut usize) -> bool {
        *n_cleared = (*n_cleared).max(n_submitted);
        let ahead = self.pieces[n_submitted..*n_cleared].iter();
        let ahead_bytes: u64 = ahead.map(Piece::size_bytes).sum();
        let Some(piece) = self.pieces.get(*n_cleared) else {
            return false;
        };
        if ahead_bytes >= u64::from(IN_FLIGHT_BYTES) {
            return false;
        }
        regions[piece.part].populate(piece.range.start as usize..piece.range.end as usize);
        *n_cleared += 1;
        true
    }

    fn note(&self, ended: Vec<Completion>) -> Result<(), String> {
        let mut progress = self.lock();
        for done in ended {
            done.result.map_err(|error| error.to_string())?;
            progress.has_arrived[done.key as usize] = true;
            progress.n_arrived += 1;
        }
        if progress.n_arrived == self.pieces.len() {
            self.is_complete.store(true, Ordering::Release);
        }
        drop(progress);
        self.changed.notify_all();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::engine::{Faults, ModelFiles, Preference, open_engine, open_faulty_engine};

    const PAGE: u64 = 4096;

    fn whole(part: usize, range: Range<u64>) -> Piece {
        Piece {
            part,
            range,
            is_scattered: false,
        }
    }

    fn small(part: usize, range: Range<u64>) -> Piece {
        Piece {
            is_scattered: true,
            ..whole(part, range)
        }
    }

    #[test]
    fn pages_are_read_once_and_neighbours_together() {
        let ranges = [
            (0, 3 * PAGE..4 * PAGE),
            (0, 0..2 * PAGE),
            (0, PAGE..5 * PAGE),
            (0, 5 * PAGE..6 * PAGE),
            (1, 0..READ_BYTES + PAGE),
            (0, 0..6 * PAGE),
        ];
        let expected = [
            whole(0, 3 * PAGE..4 * PAGE),
            whole(0, 0..3 * PAGE),
            whole(0, 4 * PAGE..6 * PAGE),
            whole(1, 0..READ_BYTES),
            whole(1, READ_BYTES..READ_BYTES + PAGE),
        ];
        assert_eq!(pieces(ranges.into_iter()), expected);
    }

    #[test]
    fn what_is_on_ordinary_pages_is_read_by_itself() {
        const HUGE: u64 = PLACE_BYTES;
        let found = vec![
            whole(0, HUGE - PAGE..4 * HUGE + PAGE),
            whole(0, HUGE..2 * HUGE),
            whole(1, 0..HUGE + PAGE),
        ];
        let huge = [(0, HUGE..4 * HUGE), (1, HUGE..HUGE)];
        let expected = [
            small(0, HUGE - PAGE..HUGE),
            whole(0, HUGE..4 * HUGE),
            small(0, 4 * HUGE..4 * HUGE + PAGE),
            whole(0, HUGE..2 * HUGE),
            small(1, 0..HUGE),
            small(1, HUGE..HUGE + PAGE),
        ];
        assert_eq!(scattered(found, &huge), expected);
    }

    const N_PAGES: u64 = 64;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("part");
        let bytes: Vec<u8> = (0..N_PAGES * PAGE).map(|at| (at / PAGE) as u8).collect();
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    /// Reads that go where they belong, or some of them elsewhere first.
    fn start(path: &PathBuf, faults: Option<Faults>, is_huge: bool) -> (Arc<[Region]>, Arriving) {
        let files = Arc::new(ModelFiles::open([path]).unwrap());
        let (engine, _) = match faults {
            None => open_engine(files, None, Preference::default()).unwrap(),
            Some(faults) => open_faulty_engine(files, None, Preference::default(), faults).unwrap(),
        };
        let region = Region::opened((N_PAGES * PAGE) as usize).unwrap();
        let regions: Arc<[Region]> = [region].into();
        // The last page first.
        let backwards = (0..N_PAGES)
            .rev()
            .map(|page| (0, page * PAGE..(page + 1) * PAGE));
        let huge = if is_huge { N_PAGES * PAGE } else { 0 };
        let pieces = scattered(pieces(backwards), &[(0, 0..huge)]);
        let arrivals = Arc::new(Arrivals::new(pieces, 0));
        let arriving = Arriving::start(arrivals, Arc::clone(&regions), engine).unwrap();
        (regions, arriving)
    }

    #[test]
    fn who_waits_finds_the_bytes_of_the_file() {
        let (_folder, path) = file();
        let faulty = |is_huge| (Some(Faults::random(5, 200)), is_huge);
        for (faults, is_huge) in [(None, true), (None, false), faulty(true), faulty(false)] {
            let (regions, arriving) = start(&path, faults, is_huge);
            let arrivals = &arriving.arrivals;
            for page in [3, 63, 0, 31] {
                let range = page * PAGE + 5..page * PAGE + 9;
                arrivals.wait_for(&arrivals.of(0, &range)).unwrap();
                // SAFETY: the page has arrived, and nothing writes to it any more.
                let byte = unsafe { regions[0].at(range.start as usize).read() };
                assert_eq!(u64::from(byte), page);
            }
        }
    }

    #[test]
    fn whoever_waits_is_told_why_nothing_comes() {
        let (_folder, path) = file();
        let broken = Faults::default().with_broken_byte(0, 7 * PAGE);
        let (_regions, arriving) = start(&path, Some(broken), false);
        let arrivals = &arriving.arrivals;
        let wanted = arrivals.of(0, &(7 * PAGE..8 * PAGE));
        let reason = arrivals.wait_for(&wanted).unwrap_err();
        assert!(
            reason.contains("part") && reason.contains("Input/output error"),
            "{reason}"
        );
        // It can be left in the middle.
        let (_regions, arriving) = start(&path, None, false);
        let arrivals = Arc::clone(&arriving.arrivals);
        drop(arriving);
        let all: Vec<usize> = (0..N_PAGES as usize).collect();
        if let Err(reason) = arrivals.wait_for(&all) {
            assert!(reason.contains("load it again"), "{reason}");
        }
    }
}
