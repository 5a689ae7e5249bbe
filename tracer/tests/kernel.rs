//! What the kernel is seen to do is what it must have done: every page that a computation read and that was not in memory
//! faulted, and what came from the device is what is in memory afterwards.
//!
//! Tests that need more than a machine permits say so and pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use llama_rs::{Backend, Batch, Context, ContextParams, Model, ModelParams, Prefetch, Token};
use model_shapes::Shape;
use rustix::fs::Advice;
use tracer::{
    Access, Join, KernelMark, KernelOptions, LogReader, MARK_PAGE_BYTES, NO_STEP, OnFull, Op,
    Record, Recorder, Tables, Totals, bytes_of,
};

const STEPS: i32 = 6;

/// A byte of the model's only file: its page.
fn page_of(offset_bytes: u64) -> u64 {
    offset_bytes / MARK_PAGE_BYTES
}

/// The pages that an access reads.
fn pages_of(tables: &Tables, record: &Record) -> std::ops::Range<u64> {
    let access = Access {
        tensor: record.tensor,
        slice: record.slice,
        n_used: 1,
    };
    let bytes = bytes_of(&tables.tensors[record.tensor as usize], access);
    page_of(bytes.start)..page_of(bytes.end - 1) + 1
}

/// Takes the file out of the page cache, as far as it is not mapped.
fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

struct Recorded {
    log: LogReader,
    records: Vec<Record>,
    _folder: tempfile::TempDir,
}

/// Records a model of which nothing is in memory when the first step begins. With `page_by_page` the kernel reads each page
/// when it is asked for, and no others.
fn record(options: &KernelOptions, page_by_page: bool) -> Recorded {
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape::by_name("tiny-gpt-oss").unwrap();
    let path: PathBuf = folder.path().join("model.gguf");
    model_shapes::generate(&shape, &path, 1, &mut |_, _| {}).unwrap();
    forget(&path);

    let log = folder.path().join("run.ftrace");
    let files = gguf::ModelFiles::open(&path).unwrap();
    forget(&path);
    let mut recorder = Recorder::open(&log, &files, 16 << 20, OnFull::Wrap).unwrap();
    recorder.watch_kernel(options).unwrap();
    let params = ModelParams {
        prefetch: Prefetch::None,
        repack: false,
        ..ModelParams::default()
    };
    let model = Model::load(&Backend::init(), &path, &params).unwrap();
    forget(&path);
    recorder.model_loaded(&model);
    if page_by_page {
        for weight in model.weights() {
            let begin = weight.address / 4096 * 4096;
            let end = (weight.address + weight.size_bytes as usize).next_multiple_of(4096);
            // SAFETY: the pages of a weight of a loaded model are mapped, and this advice changes no contents.
            unsafe {
                let advice = rustix::mm::Advice::Random;
                rustix::mm::madvise(begin as *mut _, end - begin, advice).unwrap();
            }
        }
    }
    let context_params = ContextParams {
        n_ctx: 64,
        n_threads: 2,
        n_threads_batch: 2,
        ..ContextParams::default()
    };
    let mut context = Context::new(&model, &context_params).unwrap();
    context.set_observer(recorder).unwrap();
    let mut batch = Batch::new(8, 1);
    for position in 0..STEPS {
        batch.clear();
        let token = Token((position * 7 + 3) % 64);
        batch.add(token, position, &[0], true).unwrap();
        context.decode(&batch).unwrap();
    }
    let recorder: Recorder = context.take_observer().unwrap();
    let summary = recorder.finish().unwrap();
    assert_eq!(summary.n_lost, 0);

    let log = LogReader::open(&log).unwrap();
    let records = log.records().collect::<Result<_, _>>().unwrap();
    Recorded {
        log,
        records,
        _folder: folder,
    }
}

/// Whether the machine permits it; otherwise the reason is printed.
fn is_permitted(options: &KernelOptions) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape::by_name("tiny-gpt-oss").unwrap();
    let path = folder.path().join("model.gguf");
    model_shapes::generate(&shape, &path, 1, &mut |_, _| {}).unwrap();
    let files = gguf::ModelFiles::open(&path).unwrap();
    match options.check(&files) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("skipped: {error}");
            false
        }
    }
}

/// The last snapshot: resident pages of each tensor.
fn resident_at_the_end(records: &[Record]) -> BTreeMap<u32, u64> {
    let marks = records.iter().filter_map(KernelMark::of);
    marks
        .filter_map(|mark| match mark {
            KernelMark::Resident(resident) => {
                assert!(resident.n_resident <= resident.n_pages);
                Some((resident.tensor, u64::from(resident.n_resident)))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn every_page_that_was_not_in_memory_faults_before_its_first_access_ends() {
    let options = KernelOptions {
        faults: true,
        residency_steps: Some(1),
        ..KernelOptions::default()
    };
    if !is_permitted(&options) {
        return;
    }
    let Recorded { log, records, .. } = record(&options, true);
    let tables = log.tables();
    let is_mapped = log.address(0).is_some_and(|address| address % 4096 == 0);
    assert!(is_mapped && log.address(1).is_none());

    let mut faults = BTreeMap::new();
    let mut join = Join::new(tables);
    let mut n_joined = 0;
    let accessed: BTreeSet<u32> = records
        .iter()
        .filter(|record| !record.op.is_mark())
        .map(|record| record.tensor)
        .collect();
    for record in &records {
        join.push(record);
        let Some(KernelMark::Fault(fault)) = KernelMark::of(record) else {
            continue;
        };
        faults.entry(page_of(fault.offset_bytes)).or_insert(fault);
        let cause = join.cause(&fault);
        if record.step != NO_STEP {
            // Only the computation reads weights, and it reads only what it says.
            let access = cause
                .access
                .unwrap_or_else(|| panic!("{fault:?}: {cause:?}"));
            assert!(pages_of(tables, &access).contains(&page_of(fault.offset_bytes)));
            assert!(accessed.contains(&cause.tensor.unwrap()));
            assert_eq!(record.step, access.step);
            n_joined += 1;
        }
    }
    assert!(n_joined > 0);

    let snapshots = records.iter().filter(|record| record.op == Op::RESIDENT);
    let at_start: u64 = snapshots
        .clone()
        .filter(|record| record.step == NO_STEP)
        .map(|record| u64::from(record.slice))
        .sum();
    // Pages that wait in a CPU's batch (mm/swap.c, 31 of them at most) stay when the kernel is asked to drop a file's pages.
    assert!(
        at_start <= 31,
        "{at_start} pages were in memory before the first step"
    );
    let n_tensors = tables.tensors.len();
    assert_eq!(snapshots.count(), (2 + STEPS as usize) * n_tensors);

    let mut n_pages = 0;
    for record in records.iter().filter(|record| !record.op.is_mark()) {
        let end_ns = record.time_ns + u64::from(record.duration_ns);
        for page in pages_of(tables, record) {
            let fault = faults
                .get(&page)
                .unwrap_or_else(|| panic!("{page}: {record:?}"));
            assert!(fault.time_ns <= end_ns, "{fault:?}: {record:?}");
            n_pages += 1;
        }
    }
    assert!(n_pages > 0);
    // Experts that no token chose stay where they are.
    let resident: u64 = resident_at_the_end(&records).values().sum();
    let all: u64 = tables
        .tensors
        .iter()
        .map(|tensor| tensor.size_bytes / MARK_PAGE_BYTES)
        .sum();
    assert!(resident < all, "{resident} of {all}");

    let mut totals = Totals::new(tables);
    records.iter().for_each(|record| totals.push(record));
    let of_decode = totals.decode.minor_faults.total() + totals.decode.major_faults.total();
    assert_eq!(of_decode, n_joined);
    assert_eq!(totals.decode.n_lost + totals.load.n_lost, 0);
}

#[test]
fn the_device_delivers_exactly_what_is_in_memory_afterwards() {
    let options = KernelOptions {
        block: true,
        residency_steps: Some(STEPS as u32),
        ..KernelOptions::default()
    };
    if !is_permitted(&options) {
        return;
    }
    for page_by_page in [true, false] {
        let Recorded { log, records, .. } = record(&options, page_by_page);
        let tables = log.tables();
        let mut delivered = BTreeSet::new();
        for record in records.iter().filter(|record| record.step != NO_STEP) {
            if let Some(KernelMark::BlockRead(read)) = KernelMark::of(record) {
                let end_bytes = read.offset_bytes + read.size_bytes;
                delivered.extend(page_of(read.offset_bytes)..page_of(end_bytes));
            }
        }
        assert!(!delivered.is_empty());
        for (tensor, n_resident) in resident_at_the_end(&records) {
            let whole = Record {
                tensor,
                slice: tracer::WHOLE,
                ..Record::default()
            };
            let pages = pages_of(tables, &whole);
            let n_delivered = delivered.range(pages).count() as u64;
            let name = &tables.tensors[tensor as usize].name;
            assert_eq!(
                n_delivered, n_resident,
                "{name}, page by page: {page_by_page}"
            );
        }
        for record in records.iter().filter(|record| !record.op.is_mark()) {
            for page in pages_of(tables, record) {
                assert!(delivered.contains(&page), "{page}: {record:?}");
            }
        }
    }
}
