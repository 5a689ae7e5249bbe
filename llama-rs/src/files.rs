//! Whether a model's files are still what they were when the model was loaded.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What identifies a file's content as far as the file system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    /// Last modification in seconds and nanoseconds.
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    /// What differs in `now`, in words.
    fn difference(&self, now: &Stamp) -> Option<String> {
        if (self.device, self.inode) != (now.device, now.inode) {
            return Some("its name now leads to another file".to_owned());
        }
        if self.size_bytes != now.size_bytes {
            return Some(format!(
                "its size was {} bytes and is {}",
                self.size_bytes, now.size_bytes
            ));
        }
        (self.modified != now.modified).then(|| "it was modified".to_owned())
    }
}

/// The files of a loaded model, open, with what they looked like.
#[derive(Debug)]
pub(crate) struct WatchedFiles {
    parts: Vec<(PathBuf, File, Stamp)>,
}

impl WatchedFiles {
    /// Opens every part and remembers its state.
    pub(crate) fn open<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<WatchedFiles> {
        let parts = paths
            .map(|path| {
                let io = |source| Error::Io {
                    path: path.to_owned(),
                    source,
                };
                let file = File::open(path).map_err(io)?;
                let stamp = Stamp::of(&file.metadata().map_err(io)?);
                Ok((path.to_owned(), file, stamp))
            })
            .collect::<Result<_>>()?;
        Ok(WatchedFiles { parts })
    }

    /// Whether the mapped files themselves were shortened or written to: one `fstat` a part.
    pub(crate) fn check_contents(&self) -> Result<()> {
        for (path, file, stamp) in &self.parts {
            let metadata = file.metadata().map_err(|source| Error::Io {
                path: path.clone(),
                source,
            })?;
            compare(path, stamp, &metadata)?;
        }
        Ok(())
    }

    /// As [`check_contents`](WatchedFiles::check_contents), and whether the names still lead to these files.
    pub(crate) fn check_names(&self) -> Result<()> {
        self.check_contents()?;
        for (path, _, stamp) in &self.parts {
            let metadata = std::fs::metadata(path).map_err(|source| Error::Io {
                path: path.clone(),
                source,
            })?;
            compare(path, stamp, &metadata)?;
        }
        Ok(())
    }
}

fn compare(path: &Path, stamp: &Stamp, metadata: &Metadata) -> Result<()> {
    match stamp.difference(&Stamp::of(metadata)) {
        Some(reason) => Err(Error::ModelChanged {
            path: path.to_owned(),
            reason,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        std::fs::write(&path, [1u8; 64]).unwrap();
        let files = WatchedFiles::open([path.as_path()].into_iter()).unwrap();
        files.check_contents().unwrap();
        files.check_names().unwrap();

        let moved = folder.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        files.check_contents().unwrap();
        assert!(matches!(files.check_names(), Err(Error::Io { .. })));
        std::fs::write(&path, [1u8; 64]).unwrap();
        let error = files.check_names().unwrap_err().to_string();
        assert!(error.contains("another file"), "{error}");

        File::options()
            .write(true)
            .open(&moved)
            .unwrap()
            .set_len(63)
            .unwrap();
        let error = files.check_contents().unwrap_err().to_string();
        assert!(error.contains("64") && error.contains("63"), "{error}");
    }

    #[test]
    fn an_overwritten_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        std::fs::write(&path, [1u8; 64]).unwrap();
        let files = WatchedFiles::open([path.as_path()].into_iter()).unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(later)
            .unwrap();
        let error = files.check_contents().unwrap_err().to_string();
        assert!(error.contains("modified"), "{error}");
    }
}
