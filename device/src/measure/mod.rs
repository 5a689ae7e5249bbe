//! Measures the curve: random reads with io_uring and O_DIRECT by request size and queue depth.
//!
//! Each pair of size and depth is measured in short repetitions. Every repetition of every pair, and of reading in
//! order, comes once before any comes a second time, in an order that changes, so that a slow moment hits all alike. The
//! requests of a pair are whole multiples of its size into the file, uniformly random, and none is made twice. Time runs
//! from the first submission to the last completion; the queue empties at the end of each repetition.
//!
//! Before anything is timed, reads of each size are compared with the file's contents.

mod cache;
mod content;
mod engine;
mod error;
mod offsets;
mod options;
mod place;
mod ring;
mod stats;
mod verify;

use std::time::{Duration, Instant};

use crate::{DeviceCurve, Point, Sequential, Target};
use engine::Engine;
use error::Failure;
pub use error::MeasureError;
use offsets::{Permutation, mix};
pub use options::{Options, Source};
use place::Place;
use ring::Region;

/// Reads in order, and those that look for a cache, are of this size ..
const LARGE_BYTES: u64 = 1 << 20;
/// .. and this many are under way.
const LARGE_DEPTH: u32 = 8;

/// True once the measurement is to end.
type Stop<'a> = &'a (dyn Fn() -> bool + Sync);

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress {
    /// The temporary file is being written.
    Writing,
    /// Ranges are read twice, to find a cache.
    LookingForCache,
    /// Reads are compared with the contents.
    Verifying,
    /// The file is read from front to back.
    WarmingUp,
    /// A repetition has begun.
    Repetition {
        /// Its number, from 1.
        number: u32,
        /// All repetitions.
        of: u32,
    },
}

/// A finished read.
struct Read<'a> {
    offset: u64,
    latency_ns: u64,
    bytes: &'a [u8],
}

/// Measures `source`. `progress` is told what is being done; `stop` is asked before each request and ends the
/// measurement with [`MeasureError::Interrupted`].
///
/// What the figures may not be, and what was left out, is in the curve's notes: no O_DIRECT, a cache behind the device,
/// no io_uring, pairs that the file is too small for.
///
/// # Errors
///
/// [`MeasureError`]: options that make no sense, a file that cannot be read, reads that give wrong bytes.
pub fn measure(
    source: &Source,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
    stop: Stop<'_>,
) -> Result<DeviceCurve, MeasureError> {
    let options = options.checked()?;
    let memory_bytes = options
        .memory_bytes()
        .max(LARGE_BYTES * u64::from(LARGE_DEPTH));
    let mut region = Region::new(memory_bytes as usize).map_err(|error| {
        MeasureError::Options(format!(
            "{memory_bytes} bytes of memory for the buffers cannot be had: {error}; choose smaller sizes or depths"
        ))
    })?;
    let place = match source {
        Source::File(path) => Place::open(path, &mut region)?,
        Source::Temporary { folder, size_bytes } => {
            if *size_bytes == 0 {
                return Err(MeasureError::Options(
                    "a temporary file of 0 bytes: there is nothing to read".to_owned(),
                ));
            }
            progress(Progress::Writing);
            let file = content::temporary(folder, *size_bytes, options.seed, stop)?;
            Place::temporary(file, folder, &mut region)?
        }
    };
    let mut measurement = Measurement::new(place, source, options, region, stop)?;
    progress(Progress::LookingForCache);
    measurement.look_for_cache()?;
    progress(Progress::Verifying);
    measurement.verify()?;
    if measurement.options.warm_up {
        progress(Progress::WarmingUp);
        measurement.warm_up()?;
    }
    let of = measurement.options.repetitions;
    for number in 1..=of {
        progress(Progress::Repetition { number, of });
        measurement.repetition(number)?;
    }
    Ok(measurement.finish(source))
}

/// A pair of size and depth, and what was measured of it.
struct Row {
    request_bytes: u64,
    depth: u32,
    order: Order,
    /// Requests made so far.
    n_requests: u64,
    latencies_ns: Vec<u64>,
    samples_bytes_per_s: Vec<f64>,
}

enum Order {
    Random(Permutation),
    /// From front to back, and again.
    InOrder,
}

impl Row {
    fn new(request_bytes: u64, depth: u32, order: Order) -> Row {
        Row {
            request_bytes,
            depth,
            order,
            n_requests: 0,
            latencies_ns: Vec::new(),
            samples_bytes_per_s: Vec::new(),
        }
    }

    /// `None` if no repetition took place.
    fn point(mut self) -> Option<Point> {
        if self.samples_bytes_per_s.is_empty() {
            return None;
        }
        self.latencies_ns.sort_unstable();
        let rates = stats::sorted(&self.samples_bytes_per_s);
        Some(Point {
            request_bytes: self.request_bytes,
            depth: self.depth,
            bytes_per_s: stats::median(&rates),
            bytes_per_s_min: rates[0],
            bytes_per_s_max: rates[rates.len() - 1],
            latency_median_ns: stats::percentile(&self.latencies_ns, 50),
            latency_p99_ns: stats::percentile(&self.latencies_ns, 99),
            n_requests: self.n_requests,
            samples_bytes_per_s: self.samples_bytes_per_s,
        })
    }
}

struct Measurement<'a> {
    place: Place,
    source: &'a Source,
    options: Options,
    engine: Engine,
    stop: Stop<'a>,
    /// The pairs, and at the end the reads in order.
    rows: Vec<Row>,
    large_bytes: u64,
    once_bytes_per_s: Option<f64>,
    host_cache: Option<crate::CacheCheck>,
}

impl<'a> Measurement<'a> {
    fn new(
        mut place: Place,
        source: &'a Source,
        options: Options,
        region: Region,
        stop: Stop<'a>,
    ) -> Result<Measurement<'a>, MeasureError> {
        for &size in &options.sizes {
            if place.direct && size % place.block_bytes != 0 {
                return Err(MeasureError::path(
                    &place.path,
                    format!(
                        "a request of {size} bytes: direct reads of this device are multiples of its blocks of {} bytes",
                        place.block_bytes
                    ),
                ));
            }
        }
        let deepest = options.depths.iter().max().copied().unwrap_or(1);
        let deepest = deepest.max(LARGE_DEPTH);
        let file = place
            .file
            .try_clone()
            .map_err(|error| MeasureError::io(&place.path, "duplicate the descriptor of", error))?;
        let (engine, note) = Engine::new(file, region, deepest, options.io_uring);
        place.notes.extend(note);
        let rows = random_rows(&mut place, &options)?;
        let blocks = place.size_bytes / place.block_bytes;
        let mut measurement = Measurement {
            large_bytes: (blocks / 16 * place.block_bytes).clamp(place.block_bytes, LARGE_BYTES),
            place,
            source,
            options,
            engine,
            stop,
            rows,
            once_bytes_per_s: None,
            host_cache: None,
        };
        let in_order = Row::new(measurement.large_bytes, LARGE_DEPTH, Order::InOrder);
        measurement.rows.push(in_order);
        Ok(measurement)
    }

    /// Reads the whole file once, in order.
    fn warm_up(&mut self) -> Result<(), MeasureError> {
        let large_bytes = self.large_bytes;
        let n_blocks = self.place.size_bytes / large_bytes;
        let offsets = (0..n_blocks).map(|block| block * large_bytes);
        let rate = self.read_all(offsets)?;
        self.once_bytes_per_s = Some(rate);
        Ok(())
    }

    /// Reads at these offsets, and gives the rate in bytes per second.
    fn read_all(&mut self, offsets: impl Iterator<Item = u64> + Send) -> Result<f64, MeasureError> {
        let stop = self.stop;
        let mut offsets = offsets.take_while(|_| !stop());
        let mut n_requests = 0u64;
        let begun = Instant::now();
        self.engine
            .run(
                self.large_bytes,
                LARGE_DEPTH,
                &mut || offsets.next(),
                &mut |_| n_requests += 1,
            )
            .map_err(|failure| failure.of(&self.place.path))?;
        let seconds = begun.elapsed().as_secs_f64();
        if stop() {
            return Err(MeasureError::Interrupted);
        }
        Ok((n_requests * self.large_bytes) as f64 / seconds)
    }

    /// Every row once.
    fn repetition(&mut self, number: u32) -> Result<(), MeasureError> {
        let repetitions = self.options.repetitions;
        let duration = Duration::from_secs_f64(self.options.seconds / f64::from(repetitions));
        let shuffle = Permutation::new(
            self.rows.len() as u64,
            mix(self.options.seed ^ u64::from(number)),
        );
        for index in 0..self.rows.len() as u64 {
            let row = &mut self.rows[shuffle.at(index) as usize];
            let size_bytes = self.place.size_bytes;
            let blocks = size_bytes / row.request_bytes;
            let share = u64::from(number) * blocks / u64::from(repetitions);
            let before = row.n_requests;
            let (mut asked, mut answered) = (before, before);
            let latencies_ns = &mut row.latencies_ns;
            let begun = Instant::now();
            let mut next = || {
                // At least two for each place in the queue, so that its filling and emptying are not all there is.
                let enough = asked - before >= 2 * u64::from(row.depth);
                if (self.stop)() || (enough && begun.elapsed() >= duration) {
                    return None;
                }
                let block = match &row.order {
                    Order::Random(_) if asked >= share => return None,
                    Order::Random(permutation) => permutation.at(asked),
                    Order::InOrder => asked % blocks,
                };
                asked += 1;
                Some(block * row.request_bytes)
            };
            let mut done = |read: &Read<'_>| {
                answered += 1;
                latencies_ns.push(read.latency_ns);
            };
            self.engine
                .run(row.request_bytes, row.depth, &mut next, &mut done)
                .map_err(|failure| failure.of(&self.place.path))?;
            let seconds = begun.elapsed().as_secs_f64();
            if (self.stop)() {
                return Err(MeasureError::Interrupted);
            }
            row.n_requests = answered;
            let read_bytes = (answered - before) * row.request_bytes;
            if read_bytes > 0 {
                row.samples_bytes_per_s.push(read_bytes as f64 / seconds);
            }
        }
        Ok(())
    }

    fn finish(mut self, source: &Source) -> DeviceCurve {
        let in_order = self.rows.pop().and_then(Row::point);
        let points = self.rows.into_iter().filter_map(Row::point).collect();
        let target = Target {
            file: match source {
                Source::File(path) => path
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned()),
                Source::Temporary { .. } => None,
            },
            size_bytes: self.place.size_bytes,
            file_system: self.place.file_system,
            device: self.place.device,
            direct: self.place.direct,
            block_bytes: self.place.block_bytes,
            engine: self.engine.description(),
        };
        let mut curve = DeviceCurve::new(target, points).expect("every row has a sample above 0");
        curve.sequential = in_order.map(|point| Sequential {
            once_bytes_per_s: self.once_bytes_per_s,
            point,
        });
        curve.host_cache = self.host_cache;
        curve.notes = self.place.notes;
        curve
    }
}

/// The pairs that the file is large enough for; the others are noted.
fn random_rows(place: &mut Place, options: &Options) -> Result<Vec<Row>, MeasureError> {
    let mut rows = Vec::new();
    for &request_bytes in &options.sizes {
        let blocks = place.size_bytes / request_bytes;
        let mut too_deep = Vec::new();
        for &depth in &options.depths {
            // Each repetition keeps the queue full once, at least.
            if blocks < u64::from(depth) * 2 * u64::from(options.repetitions) {
                too_deep.push(depth.to_string());
                continue;
            }
            let seed = mix(options.seed ^ mix(request_bytes) ^ u64::from(depth));
            let order = Order::Random(Permutation::new(blocks, seed));
            rows.push(Row::new(request_bytes, depth, order));
        }
        if !too_deep.is_empty() {
            place.notes.push(format!(
                "the file has {blocks} pieces of {request_bytes} bytes, too few to read none of them twice at a depth of {}: left \
                 out",
                too_deep.join(", ")
            ));
        }
    }
    if rows.is_empty() {
        return Err(MeasureError::path(
            &place.path,
            format!(
                "{} bytes are too few: {} repetitions of two requests of {} bytes for each place in a queue of {} need {}; \
                 choose smaller sizes or depths, or a larger file",
                place.size_bytes,
                options.repetitions,
                options.sizes[0],
                options.depths[0],
                options.sizes[0]
                    * u64::from(options.depths[0])
                    * 2
                    * u64::from(options.repetitions)
            ),
        ));
    }
    Ok(rows)
}
