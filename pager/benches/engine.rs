//! Bytes per second of random reads of a real file, by engine, request size and depth:
//!
//! ```sh
//! PAGER_BENCH_FILE=model.gguf cargo bench -p pager --bench engine
//! ```
//!
//! The engines take turns, since a device's speed changes from second to second, and the median of the rounds is shown. What the device, or the
//! host behind it, has in a cache of its own is read faster than the rest: the first line of numbers tells whether that is so.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pager::engine::{
    Class, Engine, EngineChoice, ModelFiles, Preference, Read, Region, open_engine,
};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

/// The second is an expert's slice of gpt-oss-20b, rounded out to pages.
const SIZES: [u32; 2] = [1 << 20, 4_407_296];
const DEPTHS: [u16; 5] = [1, 2, 4, 8, 16];
const BYTES_PER_RUN: u64 = 256 << 20;
const N_ROUNDS: usize = 5;
const SLOT_BYTES: usize = 8 << 20;
const N_SLOTS: usize = 32;
const BATCH: usize = 12;
const N_BATCHES: usize = 40;

fn region(pages: Advice) -> Region {
    let size_bytes = N_SLOTS * SLOT_BYTES;
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new mapping, at an address that the kernel chooses; it is never unmapped.
    let start = unsafe {
        let start = mmap_anonymous(std::ptr::null_mut(), size_bytes, protection, flags).unwrap();
        madvise(start, size_bytes, pages).unwrap();
        start
    };
    Region {
        start: NonNull::new(start.cast()).unwrap(),
        size_bytes,
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 20) % end
    }
}

fn random_read(
    region: Region,
    slot: usize,
    file_bytes: u64,
    size_bytes: u32,
    random: &mut Random,
) -> Read {
    let last = (file_bytes - u64::from(size_bytes)) / 4096;
    Read {
        file: 0,
        offset_bytes: random.below(last) * 4096,
        // SAFETY: a slot lies in the region.
        target: unsafe { region.start.add(slot * SLOT_BYTES) },
        size_bytes,
        key: slot as u64,
        class: Class::Demand,
    }
}

/// Bytes per second of random reads, always `depth` of them under way.
fn run(
    engine: &mut dyn Engine,
    region: Region,
    file_bytes: u64,
    size_bytes: u32,
    depth: u16,
    random: &mut Random,
) -> f64 {
    let n_reads = (BYTES_PER_RUN / u64::from(size_bytes)).max(1);
    let mut free: Vec<usize> = (0..usize::from(depth)).collect();
    let (mut n_started, mut n_ended) = (0, 0);
    let begin = Instant::now();
    while n_ended < n_reads {
        let mut reads = Vec::new();
        while n_started < n_reads
            && let Some(slot) = free.pop()
        {
            n_started += 1;
            reads.push(random_read(region, slot, file_bytes, size_bytes, random));
        }
        // SAFETY: the slots are free, and the region is never unmapped.
        unsafe { engine.submit(&reads) }.unwrap();
        let mut each = |end: pager::engine::Completion| {
            end.result.unwrap();
            free.push(end.key as usize);
        };
        n_ended += engine.wait(&mut each, Duration::from_secs(60)).unwrap() as u64;
    }
    (n_reads * u64::from(size_bytes)) as f64 / begin.elapsed().as_secs_f64()
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn main() {
    let Some(path) = std::env::var_os("PAGER_BENCH_FILE") else {
        eprintln!(
            "PAGER_BENCH_FILE names the file to read, for example a model; nothing is measured without it"
        );
        return;
    };
    let files = Arc::new(ModelFiles::open([&path]).unwrap());
    let file_bytes = files.files()[0].size_bytes();
    assert!(
        file_bytes > u64::from(SIZES[1]),
        "the file is smaller than a read"
    );
    let mut random = Random(1);
    curve(&files, file_bytes, &mut random);
    batches(&files, file_bytes, &mut random);
}

/// Bytes per second by size and depth.
fn curve(files: &Arc<ModelFiles>, file_bytes: u64, random: &mut Random) {
    let region = region(Advice::LinuxHugepage);
    let ways = [
        ("io_uring", EngineChoice::Uring, true),
        ("io_uring, not registered", EngineChoice::Uring, false),
        ("threads", EngineChoice::Threads, false),
    ];
    println!(
        "{:>9} {:>5}  MB/s: {}",
        "bytes",
        "depth",
        ways.map(|way| way.0).join(" | ")
    );
    for size_bytes in SIZES {
        for depth in DEPTHS {
            let mut rates = [const { Vec::new() }; 3];
            let mut engines = ways.map(|(_, engine, register)| {
                let preference = Preference {
                    engine,
                    depth,
                    register,
                    ..Preference::default()
                };
                open_engine(Arc::clone(files), Some(region), preference)
                    .unwrap()
                    .0
            });
            for round in 0..N_ROUNDS {
                for turn in 0..ways.len() {
                    let way = (turn + round) % ways.len();
                    let engine = &mut *engines[way];
                    rates[way].push(run(engine, region, file_bytes, size_bytes, depth, random));
                }
            }
            let medians = rates.map(|mut rates| format!("{:.0}", median(&mut rates) / 1e6));
            println!("{size_bytes:>9} {depth:>5}  {}", medians.join(" | "));
        }
    }
}

/// A layer's misses at once: how long the thread that submits is kept, and when all of them are there, on small and on huge pages, if those
/// who wait sleep or if every core polls as the threads of a model do.
fn batches(files: &Arc<ModelFiles>, file_bytes: u64, random: &mut Random) {
    println!(
        "{BATCH} x {} bytes: microseconds in submit, until all are there",
        SIZES[1]
    );
    let small = region(Advice::LinuxNoHugepage);
    let huge = region(Advice::LinuxHugepage);
    for (name, region, register, polls) in [
        ("small pages, not registered", small, false, false),
        ("small pages, registered", small, true, false),
        ("huge pages, not registered", huge, false, false),
        ("huge pages, registered", huge, true, false),
        ("huge pages, registered, polled", huge, true, true),
        ("small pages, not registered, polled", small, false, true),
    ] {
        let preference = Preference {
            register,
            ..Preference::default()
        };
        let mut engine = open_engine(Arc::clone(files), Some(region), preference)
            .unwrap()
            .0;
        let (mut submit, mut all) = (Vec::new(), Vec::new());
        let done = AtomicBool::new(!polls);
        thread::scope(|scope| {
            for _ in 1..thread::available_parallelism().unwrap().get() {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            for _ in 0..N_BATCHES {
                let reads: Vec<Read> = (0..BATCH)
                    .map(|slot| random_read(region, slot, file_bytes, SIZES[1], random))
                    .collect();
                let begin = Instant::now();
                // SAFETY: the slots are free, and the region is never unmapped.
                unsafe { engine.submit(&reads) }.unwrap();
                submit.push(begin.elapsed().as_secs_f64());
                let timeout = Duration::from_secs(60);
                let mut each = |end: pager::engine::Completion| end.result.unwrap();
                while engine.in_flight() > 0 {
                    if polls {
                        engine.reap(&mut each).unwrap();
                    } else {
                        engine.wait(&mut each, timeout).unwrap();
                    }
                }
                all.push(begin.elapsed().as_secs_f64());
            }
            done.store(true, Ordering::Relaxed);
        });
        println!(
            "{:>8.0} {:>8.0}  {name}",
            median(&mut submit) * 1e6,
            median(&mut all) * 1e6
        );
    }
}
