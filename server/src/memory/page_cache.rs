//! What the page cache holds of a model's files, and giving it back.
//!
//! Sources: posix_fadvise(2), madvise(2).

use std::fs::{self, File};
use std::io;

use rustix::fs::Advice;

use super::{MappedFile, parse_header};

/// Share of a file in the page cache from which on somebody else keeps it there.
const OTHERS_SHARE: f64 = 0.5;

/// Files that a load brings into the page cache.
#[derive(Debug)]
pub(crate) struct PageCache {
    own: Vec<MappedFile>,
}

impl PageCache {
    /// To be called before a load: files that are in the page cache already, at least half of each, are not this process's to take
    /// out of it. Where the kernel does not tell, none is.
    pub(crate) fn before_load(files: &[MappedFile]) -> PageCache {
        let is_own = |file: &&MappedFile| match cached_bytes(file) {
            Ok(cached) => (cached as f64) < OTHERS_SHARE * file.size_bytes as f64,
            Err(_) => true,
        };
        PageCache {
            own: files.iter().filter(is_own).cloned().collect(),
        }
    }

    /// To be called when nothing of the load is mapped any more: gives back what it brought in. Advice: what another process has
    /// mapped stays.
    pub(crate) fn give_back(&self) {
        for file in &self.own {
            if let Ok(file) = File::open(&file.path) {
                let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
            }
        }
    }
}

/// Bytes of a file that are in the page cache.
fn cached_bytes(file: &MappedFile) -> io::Result<u64> {
    let n_pages = resident::cached_pages(&File::open(&file.path)?, 0, 0)?;
    Ok(n_pages * rustix::param::page_size() as u64)
}

/// Gives up this process's hold on the pages of programs and libraries that it runs: what only loading and computing needs stays
/// out of its memory, and the rest comes back from the page cache with a page fault each.
pub(crate) fn release_program() {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for line in maps.lines() {
        // Only what can be executed and not written to: relocations have made the rest differ from the file.
        let is_program = line
            .split(' ')
            .nth(1)
            .is_some_and(|rights| rights == "r-xp");
        let Some(header) = parse_header(line).filter(|header| is_program && header.inode != 0)
        else {
            continue;
        };
        let address = std::ptr::with_exposed_provenance_mut(header.start);
        // SAFETY: the range is a private mapping of a file without write access, so its pages equal the file's, and what is
        // touched next is mapped again from there; a range that is not mapped any more is an error.
        let _ = unsafe {
            rustix::mm::madvise(
                address,
                header.end - header.start,
                rustix::mm::Advice::LinuxDontNeed,
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ProcessMemory;

    fn file(folder: &tempfile::TempDir) -> MappedFile {
        let path = folder.path().join("m.gguf");
        let file = File::create(&path).unwrap();
        std::io::Write::write_all(&mut &file, &vec![7; 4 << 20]).unwrap();
        file.sync_all().unwrap();
        MappedFile::of(&path).unwrap()
    }

    #[test]
    fn what_was_there_before_stays() {
        let folder = tempfile::tempdir().unwrap();
        let files = [file(&folder)];
        if cached_bytes(&files[0]).is_err() {
            println!("skipped: no cachestat");
            return;
        }
        // Just written, so it is there.
        let cache = PageCache::before_load(&files);
        cache.give_back();
        assert_eq!(cached_bytes(&files[0]).unwrap(), 4 << 20);

        let all = PageCache {
            own: files.to_vec(),
        };
        all.give_back();
        let cache = PageCache::before_load(&files);
        fs::read(&files[0].path).unwrap();
        assert_eq!(cached_bytes(&files[0]).unwrap(), 4 << 20);
        cache.give_back();
        // A file system in memory keeps everything.
        let left = cached_bytes(&files[0]).unwrap();
        assert!(left <= 1 << 20 || left == 4 << 20, "{left}");
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let before = ProcessMemory::read().unwrap();
        release_program();
        let after = ProcessMemory::read().unwrap();
        assert!(after.file_bytes < before.file_bytes, "{before:?} {after:?}");
        assert_eq!(
            MappedFile::of(&std::env::current_exe().unwrap())
                .unwrap()
                .state(),
            super::super::FileState::Present
        );
    }
}
