//! Reads of a model's files into memory, many at a time, without waiting: one trait, [`Engine`], over `io_uring`
//! or a pool of threads.
//!
//! Three layers, each of which can be replaced in a test:
//!
//! - [`ModelFiles`] opens the parts of a model with `O_DIRECT` where the file system takes it, and knows their identity.
//! - A *device* makes one attempt at one request and says how it ended: `io_uring`, threads, or either of them behind
//!   [`Faults`].
//! - The *scheduler* makes an [`Engine`] of a device: it queues, puts demand before prefetch, splits, and sees to it
//!   that a read that is reported as done has been read in full, whatever the attempts brought.

mod device;
mod error;
mod faulty;
mod open;
mod scheduler;
mod threads;
mod uring;

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

pub use error::{Cause, EngineError, ReadError};
pub use faulty::{Fault, Faults};
pub use open::{Access, ModelFile, ModelFiles};

use device::Device;
use scheduler::Scheduler;
use threads::Threads;
use uring::Uring;

/// Which reads go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Somebody waits for these bytes.
    Demand,
    /// A guess: started only while no demand read waits in the queue.
    Prefetch,
}

/// A read of a range of a file into memory.
///
/// `offset_bytes`, `size_bytes` and the address of `target` are multiples of [`ModelFile::alignment_bytes`]. The range begins
/// before the end of the file and may go past it: then the bytes up to the end are read, and what the rest of
/// the target holds is not defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// The file's index in [`ModelFiles`].
    pub file: u32,
    /// Where in the file the range begins.
    pub offset_bytes: u64,
    /// Where the bytes go.
    pub target: NonNull<u8>,
    /// Size of the range and of the target; not 0.
    pub size_bytes: u32,
    /// The caller's name for the read, unique among those in flight.
    pub key: u64,
    /// Its priority.
    pub class: Class,
}

/// The end of a read. Every submitted read has exactly one.
#[derive(Debug)]
pub struct Completion {
    /// [`Read::key`].
    pub key: u64,
    /// `Ok`: the whole range, up to the end of the file, has been read. Otherwise the target holds anything.
    pub result: Result<(), Box<ReadError>>,
    /// From [`Engine::submit`] to the call that reported the end, in microseconds.
    pub latency_us: u64,
}

/// What an engine has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads that ended well.
    pub n_reads: u64,
    /// Reads that ended with an error, without the cancelled ones.
    pub n_failed: u64,
    /// Reads that ended as cancelled.
    pub n_cancelled: u64,
    /// Attempts that were handed to the kernel or to a thread.
    pub n_requests: u64,
    /// Attempts that failed or were short, and were made again.
    pub n_retries: u64,
    /// Bytes that arrived, those of reads that failed or were repeated included.
    pub delivered_bytes: u64,
}

/// Reads into memory that go on while the caller computes.
///
/// An engine is used by one thread at a time, under the caller's lock, but by any thread: what one thread submitted another
/// may reap. Callbacks cannot reach the engine; what they were not called for because one of them panicked is
/// reported by the next call.
///
/// After an error other than [`EngineError::BadRead`] an engine is only good for being dropped.
pub trait Engine: Send + fmt::Debug {
    /// Starts reads, as many as the device takes at a time with one system call, and queues the others. Never waits for I/O.
    ///
    /// # Errors
    ///
    /// [`EngineError::BadRead`] if one of them cannot be: nothing of the batch was started then.
    /// [`EngineError::Device`] if the kernel refuses all work; the batch is in flight all the same.
    ///
    /// # Safety
    ///
    /// Until a read's completion was reported, or the engine has been dropped, its target is valid for writes of `size_bytes`
    /// and nobody else reads or writes it. Pages of the [`Region`] that the engine was opened with were not unmapped or replaced since.
    unsafe fn submit(&mut self, reads: &[Read]) -> Result<(), EngineError>;

    /// Calls `each` for every read that has ended, starts queued ones in their place, and returns how many had ended. Never waits.
    ///
    /// # Errors
    ///
    /// [`EngineError::Device`] as [`submit`](Self::submit).
    fn reap(&mut self, each: &mut dyn FnMut(Completion)) -> Result<usize, EngineError>;

    /// As [`reap`](Self::reap), but waits until at least one read has ended, `timeout` is over, or none is in flight.
    ///
    /// # Errors
    ///
    /// [`EngineError::Device`] as [`submit`](Self::submit).
    fn wait(
        &mut self,
        each: &mut dyn FnMut(Completion),
        timeout: Duration,
    ) -> Result<usize, EngineError>;

    /// Says that a read is not needed any more: what of it waits in the queue is not started. It still has a completion, as
    /// [`Cause::Cancelled`] or as done if all of it was under way: the kernel does not take back what a block device has. False if
    /// no read with this key is in flight.
    fn cancel(&mut self, key: u64) -> bool;

    /// Makes a prefetch read a demand read. False if no read with this key is in flight.
    fn promote(&mut self, key: u64) -> bool;

    /// Reads that were submitted and whose completion has not been reported.
    fn in_flight(&self) -> usize;

    /// What was done so far.
    fn counters(&self) -> Counters;
}

/// Memory that many reads go to, registered with the kernel once so that a read need not look up its pages.
///
/// Registering allocates all pages: ask for huge pages first.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// Its first byte, on a page.
    pub start: NonNull<u8>,
    /// Its size.
    pub size_bytes: usize,
}

/// Which engine is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// `io_uring`, and threads where it is refused.
    #[default]
    Auto,
    /// `io_uring` or an error.
    Uring,
    /// Threads that call `pread`.
    Threads,
}

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// `io_uring(7)`.
    Uring,
    /// Threads that call `pread(2)`.
    Threads,
}

/// How to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preference {
    /// The engine.
    pub engine: EngineChoice,
    /// Requests in the kernel at a time, 1 to 1024; with threads also their number. What is above waits in the queue, where it can
    /// be cancelled and overtaken.
    pub depth: u16,
    /// When two requests or more are in the kernel and ask for this many bytes together, the others wait: reads then end one after
    /// the other in their order, and not all of them when the last one does.
    pub in_flight_bytes: u32,
    /// How many of the requests in the kernel may be prefetch reads, at least 1.
    pub prefetch_depth: u16,
    /// Reads above this size are split into requests of it. 64 KiB to 8 MiB, a multiple of 4096.
    pub request_bytes_max: u32,
    /// The same for prefetch reads: what the kernel has of them keeps a demand read waiting.
    pub prefetch_request_bytes_max: u32,
    /// Whether the region is registered with `io_uring`.
    pub register: bool,
}

impl Default for Preference {
    fn default() -> Self {
        Preference {
            engine: EngineChoice::Auto,
            depth: 16,
            in_flight_bytes: IN_FLIGHT_BYTES,
            prefetch_depth: 2,
            request_bytes_max: REQUEST_BYTES_MAX,
            prefetch_request_bytes_max: PREFETCH_REQUEST_BYTES_MAX,
            register: true,
        }
    }
}

/// More than a fast SSD has under way while it answers one request (7 GB/s for 0.1 ms are 0.7 MB), and half of it is read in
/// less than a millisecond.
const IN_FLIGHT_BYTES: u32 = 4 << 20;

/// The largest request.
const REQUEST_BYTES_MAX: u32 = 8 << 20;

/// About the smallest request with which a device is as fast as with large ones.
const PREFETCH_REQUEST_BYTES_MAX: u32 = 1 << 20;

impl Preference {
    fn check(&self) -> Result<(), EngineError> {
        if !(1..=1024).contains(&self.depth) || self.prefetch_depth == 0 {
            return Err(EngineError::BadPreference(format!(
                "depth {} and prefetch depth {}: 1 to 1024 and at least 1 are possible",
                self.depth, self.prefetch_depth
            )));
        }
        for request in [self.request_bytes_max, self.prefetch_request_bytes_max] {
            if !(64 << 10..=REQUEST_BYTES_MAX).contains(&request) || !request.is_multiple_of(4096) {
                return Err(EngineError::BadPreference(format!(
                    "requests of {request} bytes: multiples of 4096 from 65536 to {REQUEST_BYTES_MAX} are possible"
                )));
            }
        }
        Ok(())
    }
}

/// Which engine was opened and why. `Display` gives one line for each fact.
#[derive(Debug, Clone)]
pub struct EngineReport {
    /// The engine.
    pub kind: EngineKind,
    /// Requests at a time.
    pub depth: u16,
    /// Why it is not `io_uring`, if that was tried.
    pub uring_refused: Option<String>,
    /// Whether the files are registered with `io_uring`.
    pub files_registered: bool,
    /// Bytes of the region that are registered.
    pub registered_bytes: usize,
    /// Why the region is not registered, if that was tried.
    pub register_refused: Option<String>,
    /// Files that are read through the page cache, each with the reason.
    pub buffered: Vec<String>,
    /// How many files are read with `O_DIRECT`.
    pub n_direct: usize,
}

impl fmt::Display for EngineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            EngineKind::Uring => write!(f, "reads: io_uring, {} requests at a time", self.depth)?,
            EngineKind::Threads => write!(f, "reads: {} threads that call pread", self.depth)?,
        }
        if let Some(reason) = &self.uring_refused {
            write!(f, "\nio_uring is refused: {reason}")?;
        }
        if self.kind == EngineKind::Uring && !self.files_registered {
            write!(f, "\nfiles are not registered")?;
        }
        if self.registered_bytes > 0 {
            write!(f, "\nregistered buffers: {} bytes", self.registered_bytes)?;
        }
        if let Some(reason) = &self.register_refused {
            write!(f, "\nbuffers are not registered: {reason}")?;
        }
        if self.n_direct > 0 {
            write!(f, "\nfiles read with O_DIRECT: {}", self.n_direct)?;
        }
        for file in &self.buffered {
            write!(f, "\nread through the page cache: {file}")?;
        }
        Ok(())
    }
}

/// Opens the engine that the preference and the machine allow. The region is where most reads will go; others may go elsewhere.
///
/// ```no_run
/// use std::sync::Arc;
/// use std::time::Duration;
/// use pager::engine::{Class, ModelFiles, Preference, Read, open_engine};
///
/// # fn example(target: std::ptr::NonNull<u8>, size_bytes: u32) -> Result<(), Box<dyn std::error::Error>> {
/// let files = Arc::new(ModelFiles::open(["model.gguf"])?);
/// let (mut engine, report) = open_engine(files, None, Preference::default())?;
/// println!("{report}");
/// let read = Read { file: 0, offset_bytes: 4096, target, size_bytes, key: 7, class: Class::Demand };
/// // SAFETY: the target is ours until the completion is there.
/// unsafe { engine.submit(&[read])? };
/// engine.wait(&mut |done| println!("{}: {:?}", done.key, done.result), Duration::from_secs(1))?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`EngineError::BadPreference`]; [`EngineError::Refused`] if `io_uring` is asked for and refused, or threads cannot be started.
pub fn open_engine(
    files: Arc<ModelFiles>,
    region: Option<Region>,
    preference: Preference,
) -> Result<(Box<dyn Engine>, EngineReport), EngineError> {
    open(files, region, preference, None)
}

/// As [`open_engine`], with faults between the device and everything that has to stand them: for tests.
///
/// # Errors
///
/// As [`open_engine`].
pub fn open_faulty_engine(
    files: Arc<ModelFiles>,
    region: Option<Region>,
    preference: Preference,
    faults: Faults,
) -> Result<(Box<dyn Engine>, EngineReport), EngineError> {
    open(files, region, preference, Some(faults))
}

fn open(
    files: Arc<ModelFiles>,
    region: Option<Region>,
    preference: Preference,
    faults: Option<Faults>,
) -> Result<(Box<dyn Engine>, EngineReport), EngineError> {
    preference.check()?;
    let (n_direct, buffered) = files.access_summary();
    let mut report = EngineReport {
        kind: EngineKind::Threads,
        depth: preference.depth,
        uring_refused: None,
        files_registered: false,
        registered_bytes: 0,
        register_refused: None,
        buffered,
        n_direct,
    };
    let mut device: Option<Box<dyn Device>> = None;
    if preference.engine != EngineChoice::Threads {
        let region = region.filter(|_| preference.register);
        match Uring::open(&files, region, preference.depth, &mut report) {
            Ok(uring) => {
                report.kind = EngineKind::Uring;
                device = Some(Box::new(uring));
            }
            Err(error) if preference.engine == EngineChoice::Uring => {
                return Err(EngineError::Refused {
                    what: "io_uring",
                    source: error,
                });
            }
            Err(error) => report.uring_refused = Some(uring::explain_refusal(&error)),
        }
    }
    let mut device = match device {
        Some(device) => device,
        None => Box::new(Threads::open(&files, preference.depth).map_err(|source| {
            EngineError::Refused {
                what: "starting threads for reads",
                source,
            }
        })?),
    };
    if let Some(faults) = faults {
        device = Box::new(faulty::Faulty::new(device, faults));
    }
    Ok((Box::new(Scheduler::new(device, files, preference)), report))
}
