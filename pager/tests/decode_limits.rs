//! A whole model decodes where the machine forbids the better way, or is slow. Logits are those of a mapped model, and memory stays
//! within the budget.

mod child;
mod decode;
mod files;

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use child::{forbid_io_uring, give_up_capabilities, in_child};
use decode::{Decoder, context_params, expected, folder, model_file, paged};
use files::engines;
use pager::engine::{EngineChoice, EngineKind};
use pager::plan::PartKind;
use pager::{Budget, PagerOptions};
use rustix::process::{Resource, Rlimit, setrlimit};

const SHAPE: &str = "tiny-qwen3moe-f16";
const N_CTX: u32 = 128;
const N_PROMPT: i32 = 7;
const N_STEPS: usize = 24;
/// The heap of a model as small as this one. The margin of a plan has more, and the model as a whole is larger than slots and this.
const HEAP_BYTES: u64 = 4 << 20;

/// Anonymous memory of this process.
fn anonymous_bytes() -> u64 {
    let status = resident::Status::own().unwrap();
    status.bytes("RssAnon").unwrap()
}

/// Decodes a model with what this process has for memory before `restrict`, within the smallest budget. Gives what the pager says of
/// its reads.
fn decode_restricted(restrict: impl FnOnce(&Path)) -> (EngineKind, String) {
    let folder = folder();
    let path = model_file(folder.path(), SHAPE);
    let expected = expected(&path, N_CTX, N_PROMPT, N_STEPS);
    let smallest = decode::smallest_budget(&path, N_CTX);
    restrict(&path);

    let process_bytes = anonymous_bytes();
    // The margin grows with the process.
    let budget_bytes = smallest + process_bytes + process_bytes / 256;
    let options = PagerOptions {
        process_bytes: Some(process_bytes),
        ..PagerOptions::with_budget(Budget::Bytes(budget_bytes))
    };
    let model = paged(&path, options);
    let (mut context, pager) = model.context(&context_params(N_CTX)).unwrap();
    let parts = pager.plan().parts.iter();
    let without_margin = parts.filter(|part| part.kind != PartKind::Margin);
    let planned_bytes: u64 = without_margin.map(|part| part.size_bytes).sum();
    let mut decoder = Decoder::new(N_PROMPT);
    for (step, expected) in expected.iter().enumerate() {
        assert!(
            decoder.step(&mut context).unwrap() == *expected,
            "step {step}"
        );
        let now_bytes = anonymous_bytes();
        assert!(
            now_bytes <= planned_bytes + HEAP_BYTES,
            "step {step}: {now_bytes} bytes of anonymous memory, planned are {planned_bytes}"
        );
    }
    assert!(pager.counters().n_evictions > 0, "{:?}", pager.plan());
    let census = pager.census();
    assert_eq!((census.n_lost, census.n_pinned), (0, 0), "{census:?}");
    (pager.reads().kind, pager.reads().to_string())
}

#[test]
fn decoding_without_io_uring() {
    in_child("decoding_without_io_uring", || {
        let (kind, report) = decode_restricted(|_| forbid_io_uring());
        assert_eq!(kind, EngineKind::Threads);
        assert!(report.contains("seccomp"), "{report}");
    });
}

#[test]
fn decoding_with_8_mb_of_locked_memory() {
    in_child("decoding_with_8_mb_of_locked_memory", || {
        let (kind, report) = decode_restricted(|_| {
            let limit = Rlimit {
                current: Some(8_000_000),
                maximum: Some(8_000_000),
            };
            setrlimit(Resource::Memlock, limit).unwrap();
            give_up_capabilities();
        });
        // The ring itself needs little: what is not registered needs nothing.
        let is_permitted = engines().contains(&EngineChoice::Uring);
        assert_eq!(kind == EngineKind::Uring, is_permitted, "{report}");
    });
}

#[test]
fn decoding_without_huge_pages() {
    in_child("decoding_without_huge_pages", || {
        decode_restricted(|_| {
            // SAFETY: PR_SET_THP_DISABLE takes numbers only (prctl(2)).
            let failed = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
            assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
        });
        let maps = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let huge = maps.lines().find(|line| line.starts_with("AnonHugePages:"));
        let n: Vec<&str> = huge.unwrap().split_whitespace().collect();
        assert_eq!(n[1], "0", "{huge:?}");
    });
}

/// A memory group of version 1 in which a device reads so many bytes a second. It is gone when this is dropped.
struct Throttle {
    folder: PathBuf,
}

impl Throttle {
    /// `Err` says what the machine does not permit.
    fn new(path: &Path, bytes_per_s: u32) -> Result<Throttle, String> {
        let device = fs::metadata(path).unwrap().st_dev();
        let (major, minor) = (libc::major(device), libc::minor(device));
        let root = Path::new("/sys/fs/cgroup/blkio");
        let folder = root.join(format!("pager-test-{}", std::process::id()));
        let said = |what: &Path| {
            let what = what.display().to_string();
            move |error: std::io::Error| format!("{what}: {error}")
        };
        fs::create_dir(&folder).map_err(said(&folder))?;
        let throttle = Throttle { folder };
        let limit = throttle.folder.join("blkio.throttle.read_bps_device");
        let line = format!("{major}:{minor} {bytes_per_s}");
        fs::write(&limit, line).map_err(said(&limit))?;
        let members = throttle.folder.join("cgroup.procs");
        fs::write(&members, std::process::id().to_string()).map_err(said(&members))?;
        Ok(throttle)
    }

    /// Bytes that members have read under the limit.
    fn read_bytes(&self) -> u64 {
        let path = self.folder.join("blkio.throttle.io_service_bytes");
        let text = fs::read_to_string(path).unwrap();
        let read = text.lines().find(|line| line.contains(" Read "));
        read.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        let members = self.folder.with_file_name("cgroup.procs");
        let _ = fs::write(members, std::process::id().to_string());
        let _ = fs::remove_dir(&self.folder);
    }
}

#[test]
fn decoding_from_a_slow_device() {
    in_child("decoding_from_a_slow_device", || {
        let (mut throttle, mut refused) = (None, None);
        decode_restricted(|path| match Throttle::new(path, 24 << 20) {
            Ok(made) => throttle = Some(made),
            Err(error) => refused = Some(error),
        });
        match (throttle, refused) {
            (Some(throttle), _) => {
                let read_bytes = throttle.read_bytes();
                assert!(read_bytes > 4 << 20, "{read_bytes} bytes were read slowly");
            }
            (None, refused) => eprintln!("skipped: the device cannot be slowed: {refused:?}"),
        }
    });
}
