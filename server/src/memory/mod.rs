//! What the kernel says about this process's memory, and how memory goes back to it.
//!
//! Sources: proc(5), `Documentation/filesystems/proc.rst` (smaps, clear_refs), `Documentation/admin-guide/blockdev/zram.rst`.

mod page_cache;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use resident::{Status, kib_field};
use serde::Serialize;

pub(crate) use page_cache::{PageCache, release_program};

/// Resident memory of this process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProcessMemory {
    /// Anonymous pages.
    pub anonymous_bytes: u64,
    /// Pages of files.
    pub file_bytes: u64,
    /// The most that was resident since the start or [`reset_peak`].
    pub peak_bytes: u64,
}

impl ProcessMemory {
    /// As of `/proc/self/status`.
    ///
    /// # Errors
    ///
    /// What reading it gives.
    pub fn read() -> io::Result<ProcessMemory> {
        let status = Status::own()?;
        let bytes = |field| status.bytes(field).unwrap_or(0);
        Ok(ProcessMemory {
            anonymous_bytes: bytes("RssAnon") + bytes("RssShmem"),
            file_bytes: bytes("RssFile"),
            peak_bytes: bytes("VmHWM"),
        })
    }

    /// All of it.
    pub fn resident_bytes(&self) -> u64 {
        self.anonymous_bytes + self.file_bytes
    }
}

/// Makes [`ProcessMemory::peak_bytes`] begin anew.
///
/// # Errors
///
/// What writing `/proc/self/clear_refs` gives.
pub fn reset_peak() -> io::Result<()> {
    fs::write("/proc/self/clear_refs", "5")
}

/// Makes [`Mappings::referenced_bytes`] begin anew, for every mapping of this process.
///
/// # Errors
///
/// What writing `/proc/self/clear_refs` gives.
pub fn clear_referenced() -> io::Result<()> {
    fs::write("/proc/self/clear_refs", "1")
}

/// A file that is mapped: what finds it in `/proc/self/smaps`, also after it was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedFile {
    /// The name, without links.
    pub path: PathBuf,
    inode: u64,
    device: u64,
    size_bytes: u64,
    modified: (i64, i64),
}

/// What became of a file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileState {
    /// It leads to the same file with the same contents.
    Present,
    /// It leads nowhere.
    Missing,
    /// It leads to another file, or the file was written to.
    Replaced,
}

impl MappedFile {
    /// The file as it is now.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn of(path: &Path) -> io::Result<MappedFile> {
        let path = path.canonicalize()?;
        let metadata = fs::metadata(&path)?;
        Ok(MappedFile {
            inode: metadata.ino(),
            device: metadata.dev(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            path,
        })
    }

    /// Whether the name still leads to this file.
    pub fn state(&self) -> FileState {
        match MappedFile::of(&self.path) {
            Ok(now) if now == *self => FileState::Present,
            Ok(_) => FileState::Replaced,
            Err(_) => FileState::Missing,
        }
    }

    fn is_named_by(&self, header: &Header<'_>) -> bool {
        let path = header
            .path
            .strip_suffix(" (deleted)")
            .unwrap_or(header.path);
        header.inode == self.inode && Path::new(path) == self.path
    }
}

/// Sums over some mappings of this process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mappings {
    /// Of addresses.
    pub size_bytes: u64,
    /// In memory.
    pub resident_bytes: u64,
    /// In memory, and copied rather than the file's.
    pub anonymous_bytes: u64,
    /// Locked in memory.
    pub locked_bytes: u64,
    /// Touched since [`clear_referenced`].
    pub referenced_bytes: u64,
}

/// The mappings of this process.
#[derive(Debug)]
pub struct Smaps(String);

/// The first line of a mapping in smaps.
struct Header<'a> {
    start: usize,
    end: usize,
    inode: u64,
    path: &'a str,
}

impl Smaps {
    /// As of `/proc/self/smaps`.
    ///
    /// # Errors
    ///
    /// What reading it gives.
    pub fn read() -> io::Result<Smaps> {
        fs::read_to_string("/proc/self/smaps").map(Smaps)
    }

    /// The mappings of one of some files.
    pub fn of_files(&self, files: &[MappedFile]) -> Mappings {
        self.sum(|header| files.iter().any(|file| file.is_named_by(header)))
    }

    /// All mappings.
    pub fn total(&self) -> Mappings {
        self.sum(|_| true)
    }

    fn sum(&self, wanted: impl Fn(&Header<'_>) -> bool) -> Mappings {
        let mut sum = Mappings::default();
        let mut is_wanted = false;
        for line in self.0.lines() {
            if let Some(header) = parse_header(line) {
                is_wanted = wanted(&header);
                continue;
            }
            if !is_wanted {
                continue;
            }
            let bytes = |field| kib_field(line, field).unwrap_or(0);
            sum.size_bytes += bytes("Size");
            sum.resident_bytes += bytes("Rss");
            sum.anonymous_bytes += bytes("Anonymous");
            sum.locked_bytes += bytes("Locked");
            sum.referenced_bytes += bytes("Referenced");
        }
        sum
    }

    /// Where files are mapped: first address and length.
    fn places(&self, files: &[MappedFile]) -> Vec<(usize, usize)> {
        let headers = self.0.lines().filter_map(parse_header);
        headers
            .filter(|header| files.iter().any(|file| file.is_named_by(header)))
            .map(|header| (header.start, header.end - header.start))
            .collect()
    }
}

/// `7f00-7f10 r--s 00000000 fe:00 1234   /models/a.gguf`
fn parse_header(line: &str) -> Option<Header<'_>> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (
        usize::from_str_radix(start, 16).ok()?,
        usize::from_str_radix(end, 16).ok()?,
    );
    let mut rest = rest.splitn(4, ' ').skip(3);
    let rest = rest.next()?;
    let (inode, path) = rest.split_once(' ').unwrap_or((rest, ""));
    Some(Header {
        start,
        end,
        inode: inode.parse().ok()?,
        path: path.trim_start(),
    })
}

/// Locks the mappings of some files in memory, and reads what is not there yet. They stay locked until they are unmapped.
///
/// # Errors
///
/// The kernel's: usually RLIMIT_MEMLOCK is too small.
pub(crate) fn lock(files: &[MappedFile]) -> io::Result<u64> {
    let mut locked_bytes = 0;
    for (address, length) in Smaps::read()?.places(files) {
        // SAFETY: mlock(2) neither moves nor changes memory; a range that is not mapped any more is an error.
        unsafe { rustix::mm::mlock(std::ptr::with_exposed_provenance_mut(address), length)? };
        locked_bytes += length as u64;
    }
    Ok(locked_bytes)
}

/// Blocks from this size on are mappings of their own, which go back to the system when they are freed.
#[cfg(target_env = "gnu")]
const OWN_MAPPING_BYTES: libc::c_int = 256 << 10;

/// Keeps large blocks out of the heaps of threads, for the whole process. By itself malloc raises the size from which it maps
/// blocks up to the largest one that was freed (32 MiB at most), and the end of a thread's heap is not given back: mallopt(3).
#[cfg(target_env = "gnu")]
pub(crate) fn map_large_blocks() {
    // SAFETY: mallopt(3) only changes how later allocations are made; any thread may call it.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES) };
}

/// Other C libraries have no such call.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn map_large_blocks() {}

/// Gives freed memory that the heap keeps back to the system.
#[cfg(target_env = "gnu")]
pub(crate) fn trim_heap() {
    // SAFETY: malloc_trim(3) only releases what is free; it may be called by any thread at any time.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries keep little, and have no such call.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn trim_heap() {}

/// What zram devices hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Zram {
    /// Before compression.
    pub original_bytes: u64,
    /// Of memory that is used for it.
    pub used_bytes: u64,
}

impl Zram {
    /// The sum over all devices of `/sys/block`; `None` if there is none.
    pub fn read() -> Option<Zram> {
        Zram::read_below(Path::new("/sys/block"))
    }

    fn read_below(folder: &Path) -> Option<Zram> {
        let mut sum: Option<Zram> = None;
        for device in fs::read_dir(folder).ok()?.flatten() {
            if !device.file_name().to_string_lossy().starts_with("zram") {
                continue;
            }
            let text = fs::read_to_string(device.path().join("mm_stat")).unwrap_or_default();
            let mut fields = text.split_ascii_whitespace().map(str::parse::<u64>);
            // orig_data_size compr_data_size mem_used_total ...
            let (Some(Ok(original)), Some(Ok(_)), Some(Ok(used))) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let sum = sum.get_or_insert(Zram {
                original_bytes: 0,
                used_bytes: 0,
            });
            sum.original_bytes += original;
            sum.used_bytes += used;
        }
        sum
    }

    /// Factor of the compression; `None` while nothing is held.
    pub fn ratio(&self) -> Option<f64> {
        (self.original_bytes > 0 && self.used_bytes > 0)
            .then(|| self.original_bytes as f64 / self.used_bytes as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000200000 r--s 00000000 fe:00 77                         /m/a b.gguf
Size:               2048 kB
Rss:                 512 kB
Referenced:          256 kB
Anonymous:             0 kB
Locked:              512 kB
VmFlags: rd mr
7f0000200000-7f0000201000 rw-p 00000000 00:00 0
Size:                  4 kB
Rss:                   4 kB
Anonymous:             4 kB
7f0000300000-7f0000301000 r--p 00001000 fe:00 77                         /m/a b.gguf (deleted)
Size:                  4 kB
Rss:                   4 kB
Anonymous:             4 kB
";

    fn file(inode: u64) -> MappedFile {
        MappedFile {
            path: "/m/a b.gguf".into(),
            inode,
            device: 1,
            size_bytes: 0,
            modified: (0, 0),
        }
    }

    #[test]
    fn mappings_of_a_file_are_summed() {
        let smaps = Smaps(SMAPS.to_owned());
        let of_file = smaps.of_files(&[file(77)]);
        let expected = Mappings {
            size_bytes: (2048 + 4) << 10,
            resident_bytes: (512 + 4) << 10,
            anonymous_bytes: 4 << 10,
            locked_bytes: 512 << 10,
            referenced_bytes: 256 << 10,
        };
        assert_eq!(of_file, expected);
        assert_eq!(smaps.of_files(&[file(78)]), Mappings::default());
        assert_eq!(smaps.total().resident_bytes, (512 + 8) << 10);
        let places = smaps.places(&[file(77)]);
        assert_eq!(
            places,
            [(0x7f00_0000_0000, 0x20_0000), (0x7f00_0030_0000, 0x1000)]
        );
    }

    #[test]
    fn a_mapped_file_is_found_and_can_be_locked() {
        let own = MappedFile::of(&std::env::current_exe().unwrap()).unwrap();
        let files = [own];
        assert!(Smaps::read().unwrap().of_files(&files).resident_bytes > 0);
        let memory = ProcessMemory::read().unwrap();
        assert!(memory.peak_bytes >= memory.resident_bytes() / 2 && memory.anonymous_bytes > 0);
    }

    #[test]
    fn a_file_that_changed_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m");
        fs::write(&path, "one").unwrap();
        let file = MappedFile::of(&path).unwrap();
        assert_eq!(file.state(), FileState::Present);
        fs::write(&path, "three").unwrap();
        assert_eq!(file.state(), FileState::Replaced);
        fs::remove_file(&path).unwrap();
        assert_eq!(file.state(), FileState::Missing);
    }

    #[test]
    fn zram_devices_are_summed() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Zram::read_below(folder.path()), None);
        for (name, text) in [
            ("zram0", "4096 1000 2048 0 0"),
            ("zram1", "4096 1000 2048"),
            ("sda", ""),
        ] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("mm_stat"), text).unwrap();
        }
        let zram = Zram::read_below(folder.path()).unwrap();
        assert_eq!((zram.original_bytes, zram.used_bytes), (8192, 4096));
        assert_eq!(zram.ratio(), Some(2.0));
        assert_eq!(
            Zram {
                original_bytes: 0,
                used_bytes: 12
            }
            .ratio(),
            None
        );
    }
}
