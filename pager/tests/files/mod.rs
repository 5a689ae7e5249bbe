//! Files with known bytes, memory to read them into, and a loop that waits for reads.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use pager::engine::{
    Class, Completion, Engine, EngineChoice, ModelFiles, Preference, Read, ReadError, Region,
    open_engine,
};

pub(crate) const BLOCK: usize = 4096;

/// The byte at a position of a file: no two blocks are alike.
pub(crate) fn byte_at(file: u32, position: u64) -> u8 {
    let mixed = (position ^ (u64::from(file) << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// A folder on the disk that the tests are built on.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub(crate) fn write_file(folder: &Path, file: u32, size_bytes: u64) -> PathBuf {
    let path = folder.join(format!("part-{file}.bin"));
    let bytes: Vec<u8> = (0..size_bytes)
        .map(|position| byte_at(file, position))
        .collect();
    let mut out = File::create(&path).unwrap();
    out.write_all(&bytes).unwrap();
    out.sync_all().unwrap();
    path
}

/// Memory for reads, aligned to a block and at first full of a byte that stands for "not read".
#[derive(Debug)]
pub(crate) struct Memory {
    bytes: Vec<u8>,
    start: usize,
    size: usize,
}

impl Memory {
    pub(crate) fn new(size: usize) -> Self {
        let bytes = vec![0xee; size + BLOCK];
        let start = bytes.as_ptr().addr().next_multiple_of(BLOCK) - bytes.as_ptr().addr();
        Memory { bytes, start, size }
    }

    pub(crate) fn target(&mut self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.size);
        NonNull::new(self.bytes.as_mut_ptr().wrapping_add(self.start + offset)).unwrap()
    }

    pub(crate) fn region(&mut self) -> Region {
        Region {
            start: self.target(0),
            size_bytes: self.size,
        }
    }

    /// A range that no read in flight has as its target.
    pub(crate) fn bytes(&self, offset: usize, size: usize) -> &[u8] {
        assert!(offset + size <= self.size);
        // SAFETY: within the vector, and nobody writes to it meanwhile.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().add(self.start + offset), size) }
    }

    pub(crate) fn fill(&mut self, byte: u8) {
        self.bytes.fill(byte);
    }

    /// Whether a read brought the bytes of the file, up to its end.
    pub(crate) fn assert_holds(&self, offset: usize, read: &Read, file_bytes: u64) {
        let size = (file_bytes - read.offset_bytes).min(u64::from(read.size_bytes)) as usize;
        for (index, &byte) in self.bytes(offset, size).iter().enumerate() {
            let position = read.offset_bytes + index as u64;
            assert_eq!(
                byte,
                byte_at(read.file, position),
                "{read:?}: byte {position} of the file"
            );
        }
    }
}

/// The engines that this machine permits.
pub(crate) fn engines() -> Vec<EngineChoice> {
    let uring = Preference {
        engine: EngineChoice::Uring,
        ..Preference::default()
    };
    let no_files = ModelFiles::open::<&Path>([]).unwrap();
    match open_engine(no_files.into(), None, uring) {
        Ok(_) => vec![EngineChoice::Uring, EngineChoice::Threads],
        Err(error) => {
            eprintln!("only the threads are tested: {error}");
            vec![EngineChoice::Threads]
        }
    }
}

/// A read of some blocks to the same number of blocks of the memory.
pub(crate) fn read(memory: &mut Memory, key: u64, offset: u64, size: usize, to: usize) -> Read {
    Read {
        file: 0,
        offset_bytes: offset,
        target: memory.target(to),
        size_bytes: size as u32,
        key,
        class: Class::Demand,
    }
}

/// Waits until nothing is in flight and returns how each read ended, in that order.
pub(crate) fn finish(engine: &mut dyn Engine) -> Vec<Completion> {
    let mut ended = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    while engine.in_flight() > 0 {
        assert!(Instant::now() < deadline, "a read hangs: {engine:?}");
        let timeout = Duration::from_millis(100);
        engine
            .wait(&mut |completion| ended.push(completion), timeout)
            .unwrap();
    }
    ended
}

/// The ends by key; each has one.
pub(crate) fn by_key(ended: Vec<Completion>) -> HashMap<u64, Result<(), Box<ReadError>>> {
    let n_ended = ended.len();
    let ends: HashMap<_, _> = ended.into_iter().map(|end| (end.key, end.result)).collect();
    assert_eq!(ends.len(), n_ended, "a read ended twice");
    ends
}
