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
use std::time::{Duration, Instant};

use pager::engine::{
    Class, Engine, EngineChoice, ModelFiles, Preference, Read, Region, open_engine,
};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

const SIZES: [u32; 3] = [256 << 10, 1 << 20, 4_407_296];
const DEPTHS: [u16; 5] = [1, 2, 4, 8, 16];
const BYTES_PER_RUN: u64 = 256 << 20;
const N_ROUNDS: usize = 5;
const SLOT_BYTES: usize = 8 << 20;
const N_SLOTS: usize = 32;

fn region() -> Region {
    let size_bytes = N_SLOTS * SLOT_BYTES;
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new mapping, at an address that the kernel chooses; it is never unmapped.
    let start = unsafe {
        let start = mmap_anonymous(std::ptr::null_mut(), size_bytes, protection, flags).unwrap();
        madvise(start, size_bytes, Advice::LinuxHugepage).unwrap();
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
            let last = (file_bytes - u64::from(size_bytes)) / 4096;
            reads.push(Read {
                file: 0,
                offset_bytes: random.below(last) * 4096,
                // SAFETY: a slot lies in the region.
                target: unsafe { region.start.add(slot * SLOT_BYTES) },
                size_bytes,
                key: slot as u64,
                class: Class::Demand,
            });
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
        file_bytes > u64::from(SIZES[2]),
        "the file is smaller than a read"
    );
    let region = region();
    let mut random = Random(1);
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
                open_engine(Arc::clone(&files), Some(region), preference)
                    .unwrap()
                    .0
            });
            for round in 0..N_ROUNDS {
                for turn in 0..ways.len() {
                    let way = (turn + round) % ways.len();
                    let engine = &mut *engines[way];
                    rates[way].push(run(
                        engine,
                        region,
                        file_bytes,
                        size_bytes,
                        depth,
                        &mut random,
                    ));
                }
            }
            let medians = rates.map(|mut rates| format!("{:.0}", median(&mut rates) / 1e6));
            println!("{size_bytes:>9} {depth:>5}  {}", medians.join(" | "));
        }
    }
}
