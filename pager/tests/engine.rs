//! What an engine promises, with `io_uring` and with threads, past the page cache and through it, in the presence of faults.

mod files;

use std::fs::OpenOptions;
use std::sync::Arc;
use std::time::Duration;

use files::{BLOCK, Memory, by_key, engines, finish, folder, read, write_file};
use pager::engine::{
    Access, Cause, Class, Engine, EngineChoice, EngineError, Fault, Faults, ModelFiles, Preference,
    Read, open_engine, open_faulty_engine,
};
use proptest::prelude::*;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The last block is cut by the end of the file.
const FILE_BYTES: u64 = 1_500_123;

fn preference(engine: EngineChoice, depth: u16) -> Preference {
    Preference {
        engine,
        depth,
        ..Preference::default()
    }
}

/// An engine that meets these faults, on the file `part-0.bin` of the folder.
fn faulty(
    files: &Arc<ModelFiles>,
    preference: Preference,
    faults: impl IntoIterator<Item = Option<Fault>>,
) -> Box<dyn Engine> {
    let files = Arc::clone(files);
    open_faulty_engine(files, None, preference, Faults::script(faults))
        .unwrap()
        .0
}

fn submit(engine: &mut dyn Engine, reads: &[Read]) {
    // SAFETY: the tests keep the memory until the reads have ended, and look at it only then.
    unsafe { engine.submit(reads) }.unwrap();
}

#[derive(Debug, Clone)]
struct Planned {
    file: u32,
    block: u64,
    n_blocks: usize,
    class: Class,
    cancel: bool,
    promote: bool,
}

fn planned() -> impl Strategy<Value = Planned> {
    let blocks = FILE_BYTES.div_ceil(BLOCK as u64);
    let class = prop_oneof![Just(Class::Demand), Just(Class::Prefetch)];
    let chance = |one_in: u32| (0..one_in).prop_map(|drawn| drawn == 0);
    (
        0..2u32,
        0..blocks,
        1..=SLOT_BLOCKS,
        class,
        chance(6),
        chance(6),
    )
        .prop_map(|(file, block, n_blocks, class, cancel, promote)| Planned {
            file,
            block,
            n_blocks,
            class,
            cancel,
            promote,
        })
}

const SLOT_BLOCKS: usize = 48;

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every read ends once, with the bytes of the file or an error that may be.
    #[test]
    fn every_read_ends_once_with_the_right_bytes_or_an_error(
        plan in prop::collection::vec(planned(), 1..32),
        uring in any::<bool>(),
        direct in any::<bool>(),
        register in any::<bool>(),
        depth in 1..9u16,
        split in any::<bool>(),
        seed in any::<u64>(),
        per_mille in prop_oneof![Just(0u32), 1..500u32],
        batch in 1..12usize,
    ) {
        let folder = folder();
        let paths = [0, 1].map(|file| write_file(folder.path(), file, FILE_BYTES));
        let files = if direct { ModelFiles::open(&paths) } else { ModelFiles::open_buffered(&paths) };
        let preference = Preference {
            engine: if uring { EngineChoice::Auto } else { EngineChoice::Threads },
            depth,
            register,
            request_bytes_max: if split { 64 << 10 } else { 8 << 20 },
            ..Preference::default()
        };
        let slot_bytes = SLOT_BLOCKS * BLOCK;
        let mut memory = Memory::new(plan.len() * slot_bytes);
        let region = memory.region();
        let faults = Faults::random(seed, per_mille);
        let (mut engine, report) =
            open_faulty_engine(Arc::new(files.unwrap()), Some(region), preference, faults).unwrap();
        prop_assert_eq!(report.n_direct + report.buffered.len(), 2);
        prop_assert!(direct || report.n_direct == 0);

        let reads: Vec<Read> = plan.iter().enumerate().map(|(slot, planned)| Read {
            file: planned.file,
            offset_bytes: planned.block * BLOCK as u64,
            target: memory.target(slot * slot_bytes),
            size_bytes: (planned.n_blocks * BLOCK) as u32,
            key: slot as u64,
            class: planned.class,
        }).collect();
        let mut ended = Vec::new();
        for (reads, plan) in reads.chunks(batch).zip(plan.chunks(batch)) {
            submit(&mut *engine, reads);
            for (read, planned) in reads.iter().zip(plan) {
                if planned.cancel {
                    prop_assert!(engine.cancel(read.key));
                }
                if planned.promote && !planned.cancel {
                    prop_assert!(engine.promote(read.key));
                }
            }
            engine.reap(&mut |completion| ended.push(completion)).unwrap();
        }
        ended.extend(finish(&mut *engine));
        let counters = engine.counters();
        let (n_ended, mut n_good) = (ended.len() as u64, 0);
        let ends = by_key(ended);
        prop_assert_eq!(ends.len(), reads.len());
        for (read, planned) in reads.iter().zip(&plan) {
            match &ends[&read.key] {
                Ok(()) => {
                    n_good += 1;
                    memory.assert_holds(read.key as usize * slot_bytes, read, FILE_BYTES);
                }
                Err(error) => match error.cause {
                    Cause::Cancelled => prop_assert!(planned.cancel, "{}", error),
                    Cause::Os { ref source, .. } => {
                        let injected = [libc::EIO, libc::EAGAIN, libc::EINTR, libc::ECANCELED];
                        let known = source.raw_os_error().is_some_and(|code| injected.contains(&code));
                        prop_assert!(per_mille > 0 && known, "{}", error);
                    }
                    Cause::Short { .. } => prop_assert!(per_mille > 0, "{}", error),
                    _ => prop_assert!(false, "{}", error),
                },
            }
        }
        prop_assert_eq!(counters.n_reads, n_good);
        prop_assert_eq!(counters.n_reads + counters.n_failed + counters.n_cancelled, n_ended);
    }
}

#[test]
fn an_error_is_retried_and_one_that_stays_names_file_offset_and_cause() {
    let folder = folder();
    let path = write_file(folder.path(), 0, FILE_BYTES);
    let files = Arc::new(ModelFiles::open([&path]).unwrap());
    for engine in engines() {
        let mut memory = Memory::new(4 * BLOCK);
        let first = read(&mut memory, 1, 8 * BLOCK as u64, 4 * BLOCK, 0);
        let faults = [
            Fault::Eio,
            Fault::Short,
            Fault::Eagain,
            Fault::Eintr,
            Fault::Cancelled,
            Fault::Full,
        ];
        let mut once = faulty(&files, preference(engine, 4), faults.map(Some));
        submit(&mut *once, &[first]);
        assert!(finish(&mut *once)[0].result.is_ok());
        memory.assert_holds(0, &first, FILE_BYTES);
        assert_eq!(once.counters().n_retries, 5);

        let faults = Faults::default().with_broken_byte(0, 9 * BLOCK as u64);
        let (mut broken, _) =
            open_faulty_engine(Arc::clone(&files), None, preference(engine, 4), faults).unwrap();
        submit(&mut *broken, &[first]);
        let error = by_key(finish(&mut *broken))
            .remove(&1)
            .unwrap()
            .unwrap_err()
            .to_string();
        for part in [
            "part-0.bin",
            "byte 32768",
            "16384 bytes",
            "Input/output error",
            "4 attempts",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn a_file_that_changes_is_noticed() {
    for engine in engines() {
        let folder = folder();
        let path = write_file(folder.path(), 0, FILE_BYTES);
        let files = Arc::new(ModelFiles::open([&path]).unwrap());
        files.check_unchanged().unwrap();
        let (mut reader, _) = open_engine(Arc::clone(&files), None, preference(engine, 4)).unwrap();
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1_000_000)
            .unwrap();
        let mut memory = Memory::new(8 * BLOCK);
        // Before, across and behind the new end.
        let reads = [(1, 0), (2, 243), (3, 300)].map(|(key, block)| {
            read(
                &mut memory,
                key,
                block * BLOCK as u64,
                2 * BLOCK,
                key as usize * 2 * BLOCK,
            )
        });
        submit(&mut *reader, &reads);
        let ends = by_key(finish(&mut *reader));
        assert!(ends[&1].is_ok());
        for key in [2, 3] {
            let error = ends[&key].as_ref().unwrap_err();
            assert!(
                matches!(
                    error.cause,
                    Cause::Truncated {
                        size_now_bytes: 1_000_000,
                        ..
                    }
                ),
                "{error}"
            );
        }
        let error = files.check_contents().unwrap_err().to_string();
        assert!(
            error.contains("part-0.bin") && error.contains("1500123"),
            "{error}"
        );

        let files = ModelFiles::open([&path]).unwrap();
        let other = write_file(folder.path(), 1, 1_000_000);
        std::fs::rename(other, &path).unwrap();
        files.check_contents().unwrap();
        assert!(matches!(
            files.check_unchanged(),
            Err(EngineError::Changed { .. })
        ));
    }
}

#[test]
fn demand_goes_before_prefetch_and_what_is_queued_can_be_cancelled() {
    let folder = folder();
    let path = write_file(folder.path(), 0, FILE_BYTES);
    let files = Arc::new(ModelFiles::open([&path]).unwrap());
    for engine in engines() {
        let mut memory = Memory::new(8 * BLOCK);
        let mut reads: Vec<Read> = (0..7)
            .map(|key| {
                read(
                    &mut memory,
                    key,
                    key * BLOCK as u64,
                    BLOCK,
                    key as usize * BLOCK,
                )
            })
            .collect();
        for read in &mut reads[..4] {
            read.class = Class::Prefetch;
        }
        // One at a time, so the order of the ends is that of the starts. The first is under way when the others come.
        let delay = Some(Fault::Delay(Duration::from_millis(20)));
        let mut reader = faulty(&files, preference(engine, 1), [delay]);
        submit(&mut *reader, &reads[..4]);
        submit(&mut *reader, &reads[4..]);
        assert!(reader.promote(3));
        assert!(reader.cancel(0));
        assert!(reader.cancel(2));
        assert!(reader.cancel(5));
        assert!(!reader.cancel(99) && !reader.promote(99));
        let ended = finish(&mut *reader);
        let good = ended.iter().filter(|end| end.result.is_ok());
        assert_eq!(good.map(|end| end.key).collect::<Vec<_>>(), [0, 4, 6, 3, 1]);
        assert_eq!(reader.counters().n_cancelled, 2);
    }
}

#[test]
fn a_read_that_cannot_be_is_refused_and_none_of_its_batch_started() {
    let folder = folder();
    let path = write_file(folder.path(), 0, FILE_BYTES);
    let files = Arc::new(ModelFiles::open([&path]).unwrap());
    let (mut reader, _) = open_engine(files, None, Preference::default()).unwrap();
    let mut memory = Memory::new(4 * BLOCK);
    let good = read(&mut memory, 0, 0, BLOCK, 0);
    let bad = [
        Read { file: 1, ..good },
        Read {
            offset_bytes: 100,
            ..good
        },
        Read {
            size_bytes: 100,
            ..good
        },
        Read {
            size_bytes: 0,
            ..good
        },
        Read {
            target: memory.target(1),
            ..good
        },
        Read {
            offset_bytes: 1_503_232,
            ..good
        },
    ];
    for bad in bad {
        // SAFETY: the memory outlives the engine's use of it; none of these is started.
        let error = unsafe { reader.submit(&[good, bad]) }.unwrap_err();
        assert!(matches!(error, EngineError::BadRead { .. }), "{error}");
        assert_eq!(reader.in_flight(), 0);
    }
    let depth = Preference {
        depth: 0,
        ..Preference::default()
    };
    let files = Arc::new(ModelFiles::open([&path]).unwrap());
    assert!(matches!(
        open_engine(files, None, depth),
        Err(EngineError::BadPreference(_))
    ));
}

#[test]
fn nothing_is_written_after_an_engine_was_dropped() {
    let folder = folder();
    let path = write_file(folder.path(), 0, 32 << 20);
    for engine in engines() {
        let files = Arc::new(ModelFiles::open([&path]).unwrap());
        let mut memory = Memory::new(32 << 20);
        let reads: Vec<Read> = (0..32)
            .map(|key| read(&mut memory, key, key << 20, 1 << 20, (key as usize) << 20))
            .collect();
        let (mut reader, _) =
            open_engine(files, Some(memory.region()), preference(engine, 32)).unwrap();
        submit(&mut *reader, &reads);
        // The others are under way when the first has ended.
        reader.wait(&mut |_| {}, Duration::from_secs(60)).unwrap();
        drop(reader);
        memory.fill(0xdd);
        std::thread::sleep(Duration::from_millis(100));
        assert!(memory.bytes(0, 32 << 20).iter().all(|&byte| byte == 0xdd));
    }
}

#[test]
fn a_thread_may_end_while_what_it_submitted_is_under_way() {
    let folder = folder();
    let path = write_file(folder.path(), 0, 16 << 20);
    for engine in engines() {
        let files = Arc::new(ModelFiles::open([&path]).unwrap());
        let mut memory = Memory::new(16 << 20);
        let reads: Vec<Read> = (0..16)
            .map(|key| read(&mut memory, key, key << 20, 1 << 20, (key as usize) << 20))
            .collect();
        let (mut reader, _) =
            open_engine(files, Some(memory.region()), preference(engine, 8)).unwrap();
        let submitted = reads.clone();
        let mut reader = std::thread::spawn(move || {
            submit(&mut *reader, &submitted);
            reader
        })
        .join()
        .unwrap();
        assert!(finish(&mut *reader).iter().all(|end| end.result.is_ok()));
        for read in &reads {
            memory.assert_holds((read.key as usize) << 20, read, 16 << 20);
        }
    }
}

/// Pages of the file that are in the page cache.
fn n_cached_pages(path: &std::path::Path) -> usize {
    let file = std::fs::File::open(path).unwrap();
    let size = file.metadata().unwrap().len() as usize;
    let mut pages = vec![0u8; size.div_ceil(BLOCK)];
    // SAFETY: a new mapping that nobody reads, unmapped before the function returns; mincore(2) fills a byte for each of its pages.
    let failed = unsafe {
        let (protection, flags) = (ProtFlags::READ, MapFlags::SHARED);
        let start = mmap(std::ptr::null_mut(), size, protection, flags, &file, 0).unwrap();
        let failed = libc::mincore(start, size, pages.as_mut_ptr());
        munmap(start, size).unwrap();
        failed
    };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|&page| page & 1 == 1).count()
}

#[test]
fn reads_leave_no_pages_in_the_page_cache() {
    let folder = folder();
    let path = write_file(folder.path(), 0, FILE_BYTES);
    for engine in engines() {
        for files in [
            ModelFiles::open([&path]),
            ModelFiles::open_buffered([&path]),
        ] {
            let files = Arc::new(files.unwrap());
            let direct = *files.files()[0].access() == Access::Direct;
            let all = std::fs::File::open(&path).unwrap();
            std::fs::read(&path).unwrap();
            assert!(n_cached_pages(&path) > 0);
            rustix::fs::fadvise(&all, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            let size = (FILE_BYTES as usize).next_multiple_of(BLOCK);
            let mut memory = Memory::new(size);
            let whole = read(&mut memory, 0, 0, size, 0);
            let (mut reader, _) = open_engine(files, None, preference(engine, 4)).unwrap();
            submit(&mut *reader, &[whole]);
            finish(&mut *reader);
            memory.assert_holds(0, &whole, FILE_BYTES);
            assert_eq!(n_cached_pages(&path), 0, "{engine:?}, direct: {direct}");
        }
    }
}
