//! A file that gets its name only when it is complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, CWD, FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::Error;

/// A file being written. Dropped before [`PendingFile::finish`], it leaves nothing behind.
///
/// Where the file system allows it the file has no name at all until it is finished, so that even a
/// killed process leaves nothing; elsewhere it has a hidden name in the same folder.
#[derive(Debug)]
pub(crate) struct PendingFile {
    file: File,
    path: PathBuf,
    folder: PathBuf,
    hidden: Option<PathBuf>,
    size_bytes: u64,
}

impl PendingFile {
    /// Reserves `size_bytes` of disk space for a file that will be called `path`.
    pub(crate) fn create(path: &Path, size_bytes: u64) -> Result<PendingFile, Error> {
        PendingFile::create_as(path, size_bytes, Path::new("/proc/self/fd").exists())
    }

    /// A file of `size_bytes` that takes disk space only where it is written to.
    pub(crate) fn create_hollow(path: &Path, size_bytes: u64) -> Result<PendingFile, Error> {
        let nameless = Path::new("/proc/self/fd").exists();
        let pending = PendingFile::open(path, size_bytes, nameless)?;
        let length = pending.file.set_len(size_bytes);
        length.map_err(|e| pending.explain(e))?;
        Ok(pending)
    }

    fn create_as(path: &Path, size_bytes: u64, nameless: bool) -> Result<PendingFile, Error> {
        let pending = PendingFile::open(path, size_bytes, nameless)?;
        if let Some(free_bytes) =
            free_bytes(&pending.folder).map_err(|e| Error::io(path, "create", e))?
            && free_bytes < size_bytes
        {
            return Err(Error::DiskFull {
                path: path.to_owned(),
                needed_bytes: size_bytes,
                free_bytes,
            });
        }
        pending.reserve().map_err(|e| pending.explain(e))?;
        Ok(pending)
    }

    /// An empty file.
    fn open(path: &Path, size_bytes: u64, nameless: bool) -> Result<PendingFile, Error> {
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
            _ => PathBuf::from("."),
        };
        if path.is_dir() || path.file_name().is_none() {
            return Err(Error::NotAFile {
                path: path.to_owned(),
                kind: "a folder",
            });
        }
        let (file, hidden) = match nameless.then(|| open_nameless(&folder)) {
            Some(Ok(file)) => (file, None),
            _ => open_hidden(path, &folder)
                .map(|(f, p)| (f, Some(p)))
                .map_err(|e| Error::io(path, "create", e))?,
        };
        Ok(PendingFile {
            file,
            path: path.to_owned(),
            folder,
            hidden,
            size_bytes,
        })
    }

    /// Asks for the whole file's space at once: a full disk shows here and not after minutes of
    /// writing.
    fn reserve(&self) -> io::Result<()> {
        if self.size_bytes == 0 {
            return Ok(());
        }
        let answer = rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, self.size_bytes)
        });
        match answer {
            // Not every file system can; then a full disk shows while writing.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(e) => return Err(e.into()),
        }
        self.file.set_len(self.size_bytes)
    }

    /// Writes at a position. Different threads may write different ranges at the same time.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|e| self.explain(e))
    }

    /// Makes the data durable, then gives the file its name, replacing what had it.
    pub(crate) fn finish(mut self) -> Result<(), Error> {
        self.file.sync_all().map_err(|e| self.explain(e))?;
        let hidden = match &self.hidden {
            Some(hidden) => hidden.clone(),
            None => {
                let hidden = self.link().map_err(|e| self.explain(e))?;
                self.hidden = Some(hidden.clone());
                hidden
            }
        };
        fs::rename(&hidden, &self.path)
            .map_err(|e| Error::io(&self.path, "rename the finished file to", e))?;
        self.hidden = None;
        // Makes the rename durable too. Not every file system can sync a folder; the data is safe
        // already.
        let _ = File::open(&self.folder).and_then(|folder| folder.sync_all());
        Ok(())
    }

    /// Gives a nameless file a hidden name: a link cannot replace an existing file, a rename can.
    fn link(&self) -> io::Result<PathBuf> {
        let source = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        retry_names(&self.path, &self.folder, |hidden| {
            Ok(rustix::fs::linkat(
                CWD,
                source.as_str(),
                CWD,
                hidden,
                AtFlags::SYMLINK_FOLLOW,
            )?)
        })
        .map(|((), hidden)| hidden)
    }

    /// Tells a full disk from other failures.
    fn explain(&self, e: io::Error) -> Error {
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::DiskFull {
                path: self.path.clone(),
                needed_bytes: self.size_bytes,
                free_bytes: free_bytes(&self.folder).ok().flatten().unwrap_or(0),
            },
            _ => Error::io(&self.path, "write", e),
        }
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden {
            let _ = fs::remove_file(hidden);
        }
    }
}

/// Bytes that this process may still use on the folder's file system; `None` if it keeps no count.
fn free_bytes(folder: &Path) -> io::Result<Option<u64>> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok((stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize)))
}

fn open_nameless(folder: &Path) -> io::Result<File> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o644)
        .custom_flags(OFlags::TMPFILE.bits() as i32)
        .open(folder)
}

fn open_hidden(path: &Path, folder: &Path) -> io::Result<(File, PathBuf)> {
    retry_names(path, folder, |hidden| {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(hidden)
    })
}

/// Calls `f` with hidden names beside `path` until one is free.
fn retry_names<T>(
    path: &Path,
    folder: &Path,
    f: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(T, PathBuf)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}-{number}.partial", std::process::id()));
        let hidden = folder.join(name);
        match f(&hidden) {
            Ok(value) => return Ok((value, hidden)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect()
    }

    #[test]
    fn finish_names_the_file_and_drop_leaves_nothing() {
        for nameless in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a");
            drop(PendingFile::create_as(&path, 10, nameless).unwrap());
            assert!(names(folder.path()).is_empty());

            fs::write(&path, "old").unwrap();
            let pending = PendingFile::create_as(&path, 3, nameless).unwrap();
            pending.write_at(b"new", 0).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"old");
            pending.finish().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"new");
            assert_eq!(names(folder.path()), ["a"]);
        }
    }

    #[test]
    fn more_than_the_disk_has_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let e = PendingFile::create(&path, 1 << 60).unwrap_err();
        assert!(
            matches!(e, Error::DiskFull { needed_bytes, .. } if needed_bytes == 1 << 60),
            "{e}"
        );
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn folders_that_cannot_hold_it_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let e = PendingFile::create(&folder.path().join("no/such/a"), 1).unwrap_err();
        assert!(matches!(e, Error::Io { .. }), "{e}");
        let e = PendingFile::create(folder.path(), 1).unwrap_err();
        assert!(matches!(e, Error::NotAFile { .. }), "{e}");
    }
}
