//! Measuring small files: what comes back, what is refused, and that nothing stays behind. No test looks at a rate's size.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use device_curve::measure::{MeasureError, Options, Progress, Source, measure};
use device_curve::{DeviceCurve, Point};

/// A folder on the file system of the build's output, since the system's temporary folder may be in memory.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn options() -> Options {
    Options {
        sizes: vec![4096, 65_536],
        depths: vec![1, 4],
        seconds: 0.02,
        repetitions: 5,
        seed: 1,
        warm_up: true,
        io_uring: true,
    }
}

fn temporary(folder: &Path, size_bytes: u64) -> Source {
    Source::Temporary {
        folder: folder.to_owned(),
        size_bytes,
    }
}

fn run(source: &Source, options: &Options) -> Result<DeviceCurve, MeasureError> {
    measure(source, options, &mut |_| {}, &|| false)
}

fn refused(source: &Source, options: &Options, words: &[&str]) {
    let message = run(source, options).unwrap_err().to_string();
    for word in words {
        assert!(message.contains(word), "`{word}` is missing: {message}");
    }
}

fn assert_sound(point: &Point) {
    assert_eq!(point.samples_bytes_per_s.len(), 5);
    assert!(point.bytes_per_s_min <= point.bytes_per_s);
    assert!(point.bytes_per_s <= point.bytes_per_s_max);
    assert!(point.latency_median_ns <= point.latency_p99_ns);
    assert!(point.n_requests >= u64::from(10 * point.depth));
}

#[test]
fn every_pair_is_measured_with_both_engines_and_no_file_stays() {
    let folder = folder();
    let mut options = options();
    let mut curves = Vec::new();
    for io_uring in [true, false] {
        options.io_uring = io_uring;
        let mut steps = Vec::new();
        let source = temporary(folder.path(), 128 << 20);
        let curve = measure(&source, &options, &mut |step| steps.push(step), &|| false).unwrap();
        let places: Vec<_> = curve
            .points
            .iter()
            .map(|point| (point.request_bytes, point.depth))
            .collect();
        assert_eq!(places, [(4096, 1), (4096, 4), (65_536, 1), (65_536, 4)]);
        curve.points.iter().for_each(assert_sound);
        let in_order = curve.sequential.as_ref().unwrap();
        assert_sound(&in_order.point);
        assert!(in_order.once_bytes_per_s.is_some());
        assert_eq!(steps[0], Progress::Writing);
        assert_eq!(
            steps.last(),
            Some(&Progress::Repetition { number: 5, of: 5 })
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        curves.push(curve);
    }
    assert!(curves[1].target.engine.contains("pread"));
    // Ranges of 8 MiB were read twice, where the page cache was passed by.
    assert_eq!(curves[1].host_cache.is_some(), curves[1].target.direct);
}

#[test]
fn a_file_of_ones_own_is_compared_with_buffered_reads() {
    let folder = folder();
    let path = folder.path().join("weights");
    // Neither a multiple of the requests nor of a sector.
    let bytes: Vec<u8> = (0..5_000_007u32).map(|index| (index / 3) as u8).collect();
    fs::write(&path, &bytes).unwrap();
    let curve = run(&Source::File(path.clone()), &options()).unwrap();
    assert_eq!(curve.target.size_bytes, 5_000_007);
    assert_eq!(curve.target.file.as_deref(), Some("weights"));
    // 76 pieces of 64 KiB are enough for 5 repetitions of 2 x 4, and too few to look for a cache.
    assert_eq!(curve.points.len(), 4);
    assert_eq!(curve.host_cache, None);
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn pairs_that_the_file_is_too_small_for_are_noted() {
    let folder = folder();
    let mut options = options();
    options.depths = vec![1, 64];
    let curve = run(&temporary(folder.path(), 4 << 20), &options).unwrap();
    let places: Vec<_> = curve
        .points
        .iter()
        .map(|point| (point.request_bytes, point.depth))
        .collect();
    assert_eq!(places, [(4096, 1), (4096, 64), (65_536, 1)]);
    let noted = |note: &String| note.contains("65536") && note.contains("depth of 64");
    assert!(curve.notes.iter().any(noted), "{:?}", curve.notes);
}

#[test]
fn memory_is_not_taken_for_a_device() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else {
        return eprintln!("skipped: no /dev/shm");
    };
    let curve = run(&temporary(folder.path(), 8 << 20), &options()).unwrap();
    let marked = curve.notes.iter().any(|note| note.contains("in memory"));
    assert!(marked, "{} {:?}", curve.target.file_system, curve.notes);
}

#[test]
fn an_interrupt_ends_it() {
    let folder = folder();
    for requests in [0, 3, 40] {
        let asked = AtomicU32::new(0);
        let stop = || asked.fetch_add(1, Ordering::Relaxed) >= requests;
        let source = temporary(folder.path(), 8 << 20);
        let error = measure(&source, &options(), &mut |_| {}, &stop).unwrap_err();
        assert!(matches!(error, MeasureError::Interrupted), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn impossible_options() {
    let folder = folder();
    let source = temporary(folder.path(), 1 << 20);
    let with = |change: &dyn Fn(&mut Options), words: &[&str]| {
        let mut options = options();
        change(&mut options);
        refused(&source, &options, words);
    };
    with(&|options| options.sizes = vec![0], &["0 bytes", "512"]);
    with(&|options| options.sizes = vec![4097], &["4097", "512"]);
    with(
        &|options| options.sizes = vec![1 << 30],
        &["1073741824", "too large"],
    );
    with(&|options| options.sizes.clear(), &["no request sizes"]);
    with(&|options| options.depths = vec![0, 4], &["depth of 0"]);
    with(&|options| options.depths = vec![5000], &["5000", "1024"]);
    with(
        &|options| (options.sizes, options.depths) = (vec![256 << 20], vec![64]),
        &["memory", "smaller"],
    );
    with(&|options| options.seconds = f64::NAN, &["NaN"]);
    with(&|options| options.repetitions = 4, &["4 repetitions", "5"]);
    with(
        &|options| options.sizes = vec![1 << 20],
        &["too few", "larger file"],
    );
}

#[test]
fn things_that_cannot_be_read() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("empty"), "").unwrap();
    refused(
        &Source::File(at("missing")),
        &options(),
        &["missing", "open"],
    );
    refused(&Source::File(at("empty")), &options(), &["empty"]);
    refused(
        &Source::File(folder.path().to_owned()),
        &options(),
        &["not a regular file"],
    );
    refused(
        &temporary(&at("empty"), 1 << 20),
        &options(),
        &["not a folder"],
    );
    refused(
        &temporary(&at("missing"), 1 << 20),
        &options(),
        &["missing"],
    );
    refused(&temporary(folder.path(), 0), &options(), &["0 bytes"]);
    refused(
        &temporary(folder.path(), 1 << 60),
        &options(),
        &["free", "--file-size"],
    );
    // Read-only for everyone, the superuser included.
    if Path::new("/sys/kernel").is_dir() {
        refused(
            &temporary(Path::new("/sys/kernel"), 1 << 20),
            &options(),
            &["/sys/kernel"],
        );
    }
}
