//! A file that gets its name only when it is ready.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, CWD, OFlags};

/// A file without a name, so that even a killed process leaves nothing behind; where the file system
/// cannot do that, with a hidden name that is removed unless the file is renamed.
pub(super) struct Pending {
    pub(super) file: File,
    target: PathBuf,
    hidden: Option<PathBuf>,
}

impl Pending {
    /// Opens a new file in the folder of `target`, which must have a file name.
    pub(super) fn create(target: &Path) -> io::Result<Pending> {
        Pending::create_as(target, Path::new("/proc/self/fd").exists())
    }

    fn create_as(target: &Path, nameless: bool) -> io::Result<Pending> {
        let options = |flags: OFlags| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(0o644);
            options.custom_flags(flags.bits().cast_signed());
            options
        };
        if nameless && let Ok(file) = options(OFlags::TMPFILE).open(folder_of(target)) {
            return Ok(Pending {
                file,
                target: target.to_owned(),
                hidden: None,
            });
        }
        // Whatever was wrong with the nameless file, this has the better error.
        let hidden = hidden_name(target);
        let file = options(OFlags::empty()).create_new(true).open(&hidden)?;
        Ok(Pending {
            file,
            target: target.to_owned(),
            hidden: Some(hidden),
        })
    }

    /// How many bytes the process may still use on this file system; `None` if it keeps no count.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::fstatvfs(&self.file).ok()?;
        (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Gives the file its name, replacing what had it.
    pub(super) fn rename(mut self) -> io::Result<File> {
        let hidden = match self.hidden.take() {
            Some(hidden) => hidden,
            // A link cannot replace a file, a rename can.
            None => {
                let source = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                let hidden = hidden_name(&self.target);
                rustix::fs::linkat(CWD, source, CWD, &hidden, AtFlags::SYMLINK_FOLLOW)?;
                hidden
            }
        };
        self.hidden = Some(hidden.clone());
        fs::rename(&hidden, &self.target)?;
        self.hidden = None;
        self.file.try_clone()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(hidden) = self.hidden.take() {
            // The error that led here is reported; a second one would hide it.
            let _ = fs::remove_file(hidden);
        }
    }
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A name beside the target that nobody else uses: it has the process and a running number.
fn hidden_name(target: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}-{number}.partial", std::process::id()));
    folder_of(target).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_file_leaves_nothing_and_a_renamed_one_only_its_name() {
        for nameless in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let target = folder.path().join("a");
            let n_files = || fs::read_dir(folder.path()).unwrap().count();

            let pending = Pending::create_as(&target, nameless).unwrap();
            assert_eq!(n_files(), usize::from(!nameless));
            drop(pending);
            assert_eq!(n_files(), 0);

            fs::write(&target, b"old").unwrap();
            let pending = Pending::create_as(&target, nameless).unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"old");
            pending.rename().unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"");
            assert_eq!(n_files(), 1);
        }
    }
}
