//! The files of a model, opened for reads past the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, AtFlags, OFlags, StatxFlags};
use rustix::io::Errno;

use super::EngineError;

/// The largest alignment that is asked of whoever reads, and that of buffered reads.
const PAGE_BYTES: u32 = 4096;

/// How a file is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// With `O_DIRECT`: the device writes to the target.
    Direct,
    /// Through the page cache, from which every read removes its pages again.
    Buffered {
        /// Why `O_DIRECT` is not used.
        reason: String,
    },
}

/// What tells one file, in one state, from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
}

impl Identity {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    fn difference(&self, now: &Identity) -> Option<String> {
        if (self.device, self.inode) != (now.device, now.inode) {
            Some("another file has its name".to_owned())
        } else if self.size_bytes != now.size_bytes {
            let (then, now) = (self.size_bytes, now.size_bytes);
            Some(format!("its size was {then} bytes and is {now}"))
        } else if self.modified != now.modified {
            Some("it was written to".to_owned())
        } else {
            None
        }
    }
}

/// One part of a model.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    file: File,
    identity: Identity,
    access: Access,
    alignment_bytes: u32,
}

impl ModelFile {
    fn open(path: &Path, direct: bool) -> io::Result<Self> {
        let reason = if direct {
            match open_direct(path)? {
                Ok((file, alignment_bytes)) => {
                    let identity = Identity::of(&file.metadata()?);
                    return Ok(ModelFile {
                        path: path.to_owned(),
                        file,
                        identity,
                        access: Access::Direct,
                        alignment_bytes,
                    });
                }
                Err(reason) => reason,
            }
        } else {
            "asked for".to_owned()
        };
        let file = File::open(path)?;
        // Readahead would bring pages that nobody asked for, and that nobody would remove.
        match rustix::fs::fadvise(&file, 0, None, Advice::Random) {
            Ok(()) | Err(Errno::NOSYS | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        let identity = Identity::of(&file.metadata()?);
        Ok(ModelFile {
            path: path.to_owned(),
            file,
            identity,
            access: Access::Buffered { reason },
            alignment_bytes: PAGE_BYTES,
        })
    }

    /// The path that it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size when it was opened.
    pub fn size_bytes(&self) -> u64 {
        self.identity.size_bytes
    }

    /// When it was last written to before it was opened: seconds and nanoseconds.
    pub(crate) fn modified(&self) -> (i64, i64) {
        self.identity.modified
    }

    /// How it is read.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Offsets, sizes and addresses of reads are multiples of this power of two, which is at most 4096. A file that needs
    /// more is read through the page cache.
    pub fn alignment_bytes(&self) -> u32 {
        self.alignment_bytes
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn is_direct(&self) -> bool {
        self.access == Access::Direct
    }

    /// Its size now.
    pub(super) fn size_now_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// After a read through the page cache: removes its pages from there. Advice, so a failure is none of the read.
    pub(super) fn forget(&self, offset_bytes: u64, size_bytes: u32) {
        if !self.is_direct() {
            let size = NonZeroU64::new(u64::from(size_bytes));
            let _ = rustix::fs::fadvise(&self.file, offset_bytes, size, Advice::DontNeed);
        }
    }

    fn changed(&self, now: io::Result<std::fs::Metadata>) -> Result<(), EngineError> {
        let what = match now {
            Ok(metadata) => self.identity.difference(&Identity::of(&metadata)),
            Err(error) => Some(error.to_string()),
        };
        match what {
            None => Ok(()),
            Some(what) => Err(EngineError::Changed {
                path: self.path.clone(),
                what,
            }),
        }
    }
}

/// The parts of a model, in the order of their indices.
#[derive(Debug)]
pub struct ModelFiles {
    files: Vec<ModelFile>,
}

impl ModelFiles {
    /// Opens the files with `O_DIRECT`, and buffered where the file system refuses that.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`] with the file that cannot be opened.
    pub fn open<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Self, EngineError> {
        Self::open_all(paths, true)
    }

    /// Opens the files for reads through the page cache, whatever the file system can do.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_buffered<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
    ) -> Result<Self, EngineError> {
        Self::open_all(paths, false)
    }

    fn open_all<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
        direct: bool,
    ) -> Result<Self, EngineError> {
        let open = |path: P| {
            let path = path.as_ref();
            ModelFile::open(path, direct).map_err(|source| EngineError::File {
                path: path.to_owned(),
                source,
            })
        };
        let files = paths.into_iter().map(open).collect::<Result<_, _>>()?;
        Ok(ModelFiles { files })
    }

    /// The files.
    pub fn files(&self) -> &[ModelFile] {
        &self.files
    }

    /// The alignment that suits all of them.
    pub fn alignment_bytes(&self) -> u32 {
        let all = self.files.iter().map(ModelFile::alignment_bytes);
        all.max().unwrap_or(PAGE_BYTES)
    }

    /// Whether the open files are as they were: size and time of modification. One `fstat` a file, so cheap enough for every token.
    /// A file whose name was given to another one is still the one that was opened.
    ///
    /// # Errors
    ///
    /// [`EngineError::Changed`] with the first that is not.
    pub fn check_contents(&self) -> Result<(), EngineError> {
        let mut files = self.files.iter();
        files.try_for_each(|file| file.changed(file.file.metadata()))
    }

    /// As [`check_contents`](Self::check_contents), and whether the names still lead to them.
    ///
    /// # Errors
    ///
    /// [`EngineError::Changed`] with the first that is not.
    pub fn check_unchanged(&self) -> Result<(), EngineError> {
        self.check_contents()?;
        let mut files = self.files.iter();
        files.try_for_each(|file| file.changed(std::fs::metadata(&file.path)))
    }

    /// How many are read with `O_DIRECT`, and the others with their reasons.
    pub(super) fn access_summary(&self) -> (usize, Vec<String>) {
        let reasons: Vec<String> = self
            .files
            .iter()
            .filter_map(|file| match &file.access {
                Access::Direct => None,
                Access::Buffered { reason } => Some(format!("{} ({reason})", file.path.display())),
            })
            .collect();
        (self.files.len() - reasons.len(), reasons)
    }
}

/// The file and the alignment of its reads, or the reason for which it cannot be read with `O_DIRECT`.
fn open_direct(path: &Path) -> io::Result<Result<(File, u32), String>> {
    let flags = OFlags::DIRECT.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
            return Ok(Err("the file system refuses O_DIRECT".to_owned()));
        }
        Err(error) => return Err(error),
    };
    // statx(2): both are 0 where direct reads are not supported; not in the mask where the file system does not say.
    let mut known = None;
    if let Ok(stat) = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0
    {
        if stat.stx_dio_offset_align == 0 {
            return Ok(Err(
                "the file system does not read this file directly".to_owned()
            ));
        }
        known = Some(stat.stx_dio_offset_align.max(stat.stx_dio_mem_align));
    }
    // A file system may open with O_DIRECT and refuse the read, so the answer is tried before it is believed.
    let candidates = known.map_or(vec![512, PAGE_BYTES], |alignment| vec![alignment]);
    for alignment in candidates {
        if !alignment.is_power_of_two() || alignment > PAGE_BYTES {
            return Ok(Err(format!(
                "an alignment of {alignment} bytes is not supported"
            )));
        }
        match read_block(&file, alignment as usize) {
            Ok(()) => return Ok(Ok((file, alignment))),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Err("the file system refuses direct reads".to_owned()))
}

/// Reads the second block, or the first if there is no second, to an address that is aligned to the block and no more.
fn read_block(file: &File, block_bytes: usize) -> Result<(), Errno> {
    let mut memory = vec![MaybeUninit::<u8>::uninit(); 4 * block_bytes];
    let address = memory.as_ptr().addr();
    let mut start = address.next_multiple_of(block_bytes) - address;
    if (address + start).is_multiple_of(2 * block_bytes) {
        start += block_bytes;
    }
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let offset = if size > 2 * block_bytes as u64 {
        block_bytes as u64
    } else {
        0
    };
    let block = &mut memory[start..start + block_bytes];
    rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut block[..], offset).map(|_| ()))
}
