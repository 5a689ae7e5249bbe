//! The page cache before a run: emptied and verified empty, or filled and verified full.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use rustix::fs::Advice;
use serde::{Deserialize, Serialize};

use crate::interrupt;
use crate::procfs;
use crate::residency;
use crate::size::format_bytes;

/// How the page cache was brought into its state, and what it held then.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Prepared {
    /// Resident bytes of the model's files just before the process was started.
    pub(crate) resident_bytes: u64,
    /// What was needed for it.
    pub(crate) method: Cow<'static, str>,
}

/// How often a state is tried: another process may read or drop the same files in the meantime.
const ATTEMPTS: usize = 3;

/// Empties the page cache of `files`: first by asking for these files alone, then, where pages remain and the system
/// permits it, by dropping all clean pages of the machine. Whether nothing remained is for the caller to judge: a file
/// that another process has mapped or locked, or on a file system in memory, keeps its pages.
pub(crate) fn make_cold(files: &[PathBuf]) -> Result<Prepared> {
    for _ in 0..ATTEMPTS {
        drop_pages(files)?;
        if resident(files)? == 0 {
            return Ok(Prepared {
                resident_bytes: 0,
                method: "fadvise".into(),
            });
        }
    }
    let dropped = fs::write("/proc/sys/vm/drop_caches", "1").is_ok();
    Ok(Prepared {
        resident_bytes: resident(files)?,
        method: if dropped { "drop_caches" } else { "fadvise" }.into(),
    })
}

fn drop_pages(files: &[PathBuf]) -> Result<()> {
    for path in files {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        // Dirty pages cannot be dropped; a model that was just generated may have some.
        file.sync_all()
            .with_context(|| format!("{}: cannot be written back", path.display()))?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)
            .with_context(|| format!("{}: its pages cannot be dropped", path.display()))?;
    }
    Ok(())
}

/// Fills the page cache with `files` and verifies that every byte stayed. What is there is dropped first: the size of
/// the page cache's folios depends on how a file was read, and with it the speed of computing from it, so that pages left
/// by a run with another way of loading would make warm rows unequal.
pub(crate) fn make_warm(files: &[PathBuf]) -> Result<Prepared> {
    let total = total_len(files)?;
    drop_pages(files)?;
    let available = procfs::available_bytes().unwrap_or(u64::MAX);
    if total > available {
        bail!(
            "the model ({}) does not fit in the machine's free memory ({}), so it cannot be warm",
            format_bytes(total),
            format_bytes(available)
        );
    }
    let mut resident_bytes = 0;
    for _ in 0..ATTEMPTS {
        for path in files {
            read_through(path)?;
        }
        resident_bytes = resident(files)?;
        if resident_bytes == total {
            return Ok(Prepared {
                resident_bytes,
                method: "read".into(),
            });
        }
    }
    bail!(
        "only {} of the model's {} stayed in the page cache after reading it {ATTEMPTS} times",
        format_bytes(resident_bytes),
        format_bytes(total)
    )
}

/// As [`make_warm`], for files that `make_warm` filled and that nothing but warm runs has used since: nothing is read if
/// every byte is still there.
pub(crate) fn keep_warm(files: &[PathBuf]) -> Result<Prepared> {
    let resident_bytes = resident(files)?;
    if resident_bytes == total_len(files)? {
        return Ok(Prepared {
            resident_bytes,
            method: "kept".into(),
        });
    }
    make_warm(files)
}

/// Reads `path` from its beginning to its end and returns the rate in bytes per second.
pub(crate) fn read_through(path: &Path) -> Result<f64> {
    let begin = Instant::now();
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let mut buffer = vec![0; 4 << 20];
    let mut total = 0u64;
    loop {
        interrupt::check()?;
        match file
            .read(&mut buffer)
            .with_context(|| format!("{}: read error at byte {total}", path.display()))?
        {
            0 => break,
            n => total += n as u64,
        }
    }
    Ok(total as f64 / begin.elapsed().as_secs_f64().max(1e-9))
}

/// Length of all files together.
pub(crate) fn total_len(files: &[PathBuf]) -> Result<u64> {
    files.iter().try_fold(0, |sum, path| {
        Ok(sum
            + fs::metadata(path)
                .with_context(|| path.display().to_string())?
                .len())
    })
}

/// What a file looked like, to notice that it is another one now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    len: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Result<Stamp> {
        let found = fs::metadata(path).with_context(|| path.display().to_string())?;
        Ok(Stamp {
            inode: (found.dev(), found.ino()),
            len: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }
}

/// The files of a model as they were when the measurement began.
#[derive(Debug)]
pub(crate) struct Unchanged(Vec<(PathBuf, Stamp)>);

impl Unchanged {
    pub(crate) fn new(files: &[PathBuf]) -> Result<Unchanged> {
        let stamps = files
            .iter()
            .map(|path| Ok((path.clone(), Stamp::of(path)?)));
        Ok(Unchanged(stamps.collect::<Result<_>>()?))
    }

    /// An error that names the file which was replaced or written to since.
    pub(crate) fn check(&self) -> Result<()> {
        for (path, stamp) in &self.0 {
            if Stamp::of(path)? != *stamp {
                bail!(
                    "{}: the model changed on disk during the measurement",
                    path.display()
                );
            }
        }
        Ok(())
    }
}

/// Resident bytes of all files together.
pub(crate) fn resident(files: &[PathBuf]) -> Result<u64> {
    files.iter().try_fold(0, |sum, path| {
        let bytes = residency::resident_bytes(path)
            .with_context(|| format!("{}: cannot ask which pages are resident", path.display()))?;
        Ok(sum + bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder beside the build's output: the system's temporary folder may be in memory, where nothing can be dropped.
    fn folder() -> tempfile::TempDir {
        let exe = std::env::current_exe().unwrap();
        tempfile::tempdir_in(exe.parent().unwrap()).unwrap()
    }

    #[test]
    fn cold_then_warm() {
        let folder = folder();
        let paths: Vec<_> = (0..2)
            .map(|i| folder.path().join(format!("part{i}")))
            .collect();
        for path in &paths {
            fs::write(path, vec![3; 1_000_000]).unwrap();
        }
        assert_eq!(make_cold(&paths).unwrap().resident_bytes, 0);
        assert_eq!(make_warm(&paths).unwrap().resident_bytes, 2_000_000);
        assert_eq!(keep_warm(&paths).unwrap().method, "kept");
        drop_pages(&paths[..1]).unwrap();
        assert_eq!(keep_warm(&paths).unwrap().method, "read");
        assert_eq!(make_cold(&paths).unwrap().resident_bytes, 0);
    }

    #[test]
    fn a_changed_file_is_noticed() {
        let folder = folder();
        let path = folder.path().join("part");
        fs::write(&path, "before").unwrap();
        let unchanged = Unchanged::new(std::slice::from_ref(&path)).unwrap();
        unchanged.check().unwrap();
        fs::write(folder.path().join("other"), "before").unwrap();
        fs::rename(folder.path().join("other"), &path).unwrap();
        assert!(
            unchanged
                .check()
                .unwrap_err()
                .to_string()
                .contains("changed on disk")
        );
        fs::remove_file(&path).unwrap();
        assert!(unchanged.check().is_err());
    }

    #[test]
    fn a_missing_file_is_named() {
        let message = format!(
            "{:#}",
            make_cold(&[PathBuf::from("/nonexistent/m.gguf")]).unwrap_err()
        );
        assert!(message.contains("/nonexistent/m.gguf"), "{message}");
    }
}
