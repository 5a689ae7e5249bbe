//! What a record costs to write and to read, and what the clock costs. Each measurement first shows
//! that what it measures is right.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tracer::{Access, Clock, LogReader, LogWriter, Node, OnFull, Op, Record, Tables};

const LOG_BYTES: u64 = 256 << 20;
const STEP_RECORDS: u64 = 4096;

fn create(folder: &tempfile::TempDir) -> LogWriter {
    let path = folder.path().join("bench.ftrace");
    LogWriter::create(path, &Tables::default(), LOG_BYTES, OnFull::Wrap).unwrap()
}

fn record(sequence: u64) -> Record {
    Record {
        time_ns: sequence,
        duration_ns: 1000,
        tensor: sequence as u32 & 255,
        op: Op::MUL_MAT,
        ..Record::default()
    }
}

fn write(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let mut group = criterion.benchmark_group("write");
    group.throughput(Throughput::Elements(1));

    // Pages that were touched before: the cost of the protocol alone, in 1 MiB.
    let small = tempfile::tempdir().unwrap();
    let path = small.path().join("bench.ftrace");
    let mut log = LogWriter::create(path, &Tables::default(), 1 << 20, OnFull::Wrap).unwrap();
    let mut sequence = 0;
    group.bench_function("one record, pages in memory", |bencher| {
        bencher.iter(|| {
            log.push(black_box(record(sequence)));
            sequence += 1;
        });
    });
    assert_eq!(log.finish().unwrap().n_written, sequence);

    // Every page for the first time, with steps of 4096 records as a recorder has them: faults as
    // they come, or room made between two steps, which is counted or not.
    for (name, prepare, count_prepare) in [
        ("one record, new pages", false, false),
        (
            "one record, new pages prepared, without preparing",
            true,
            false,
        ),
        ("one record, new pages prepared, with preparing", true, true),
    ] {
        let mut log = create(&folder);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|n_iterations| {
                let mut total = Duration::ZERO;
                let mut left = n_iterations;
                while left > 0 {
                    let count = left.min(STEP_RECORDS);
                    if log.progress().n_written() + count > log.capacity() {
                        log = create(&folder);
                    }
                    let begin = Instant::now();
                    if prepare {
                        log.prepare(STEP_RECORDS);
                    }
                    let prepared = Instant::now();
                    for sequence in 0..count {
                        log.push(black_box(record(sequence)));
                    }
                    total += if count_prepare { begin } else { prepared }.elapsed();
                    left -= count;
                }
                total
            });
        });
    }

    for n_slices in [1, 4, 32] {
        let mut log = create(&folder);
        let node = Node {
            op: Op::MUL_MAT_ID,
            ..Node::default()
        };
        group.throughput(Throughput::Elements(u64::from(n_slices)));
        group.bench_function(format!("a node with {n_slices} slices"), |bencher| {
            bencher.iter(|| {
                let accesses = (0..black_box(n_slices)).map(|slice| Access {
                    tensor: 3,
                    slice,
                    n_used: 1,
                });
                log.push_node(black_box(&node), accesses);
            });
        });
    }
    group.finish();
}

fn read(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bench.ftrace");
    let mut log = LogWriter::create(&path, &Tables::default(), LOG_BYTES, OnFull::Wrap).unwrap();
    let n_records = log.capacity();
    for sequence in 0..n_records {
        log.push(record(sequence));
    }
    log.finish().unwrap();
    let reader = LogReader::open(&path).unwrap();
    let expected: u64 = n_records * (n_records - 1) / 2;

    let mut group = criterion.benchmark_group("read");
    group.sample_size(20);
    group.throughput(Throughput::Elements(n_records));
    group.bench_function("chunks", |bencher| {
        bencher.iter(|| {
            let mut chunks = reader.chunks();
            let mut sum = 0;
            while let Some((_, records)) = chunks.next_chunk().unwrap() {
                sum += records.iter().map(|record| record.time_ns).sum::<u64>();
            }
            assert_eq!(sum, expected);
        });
    });
    group.bench_function("records", |bencher| {
        bencher.iter(|| {
            let sum: u64 = reader.records().map(|record| record.unwrap().time_ns).sum();
            assert_eq!(sum, expected);
        });
    });
    group.finish();
}

fn clock(criterion: &mut Criterion) {
    let clock = Clock::start();
    let begin_ns = clock.now_ns();
    assert!(clock.now_ns() >= begin_ns);
    criterion.bench_function("clock/now", |bencher| bencher.iter(|| clock.now_ns()));
}

criterion_group!(benches, write, read, clock);
criterion_main!(benches);
