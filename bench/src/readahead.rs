//! The device's readahead during a run, restored afterwards.
//!
//! The kernel copies the setting into every file when it is opened, so it must be in force before the worker starts and
//! the parent's own open files do not matter.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::device::BlockDevice;
use crate::size::{KIB, format_bytes};

/// The device's readahead in bytes.
pub(crate) fn current_bytes(device: &BlockDevice) -> Result<u64> {
    Ok(read_kib(&device.readahead_file())? * KIB)
}

/// A changed readahead. Dropping it restores what was there before.
#[derive(Debug)]
pub(crate) struct Readahead {
    file: PathBuf,
    before_kib: u64,
}

impl Readahead {
    /// Sets the device's readahead to `bytes` and verifies that the device took it.
    pub(crate) fn set(device: &BlockDevice, bytes: u64) -> Result<Readahead> {
        Readahead::set_file(device.readahead_file(), bytes).with_context(|| {
            format!(
                "readahead of {} cannot be set to {}",
                device.name,
                format_bytes(bytes)
            )
        })
    }

    fn set_file(file: PathBuf, bytes: u64) -> Result<Readahead> {
        if !bytes.is_multiple_of(KIB) {
            bail!("{bytes} bytes is not a multiple of 1 KiB");
        }
        let before_kib = read_kib(&file)?;
        // Made before the write: a device that takes the write but reports another value is restored as well.
        let guard = Readahead { file, before_kib };
        write_kib(&guard.file, bytes / KIB)?;
        let found_kib = read_kib(&guard.file)?;
        if found_kib != bytes / KIB {
            bail!("the device took {} instead", format_bytes(found_kib * KIB));
        }
        Ok(guard)
    }
}

impl Drop for Readahead {
    fn drop(&mut self) {
        if let Err(error) = write_kib(&self.file, self.before_kib) {
            eprintln!(
                "warning: readahead is not restored: {error:#}; `echo {} > {}` does it",
                self.before_kib,
                self.file.display()
            );
        }
    }
}

fn read_kib(file: &Path) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    text.trim()
        .parse()
        .with_context(|| format!("{}: `{}` is not a number", file.display(), text.trim()))
}

fn write_kib(file: &Path, kib: u64) -> Result<()> {
    // Opened without creating: a missing file of sysfs must stay missing.
    let open = fs::OpenOptions::new().write(true).truncate(true).open(file);
    open.and_then(|mut file| std::io::Write::write_all(&mut file, kib.to_string().as_bytes()))
        .with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(value: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("read_ahead_kb");
        fs::write(&file, value).unwrap();
        (folder, file)
    }

    #[test]
    fn restored_when_dropped() {
        let (_folder, file) = fake("128\n");
        let guard = Readahead::set_file(file.clone(), 8 << 20).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "8192");
        drop(guard);
        assert_eq!(fs::read_to_string(&file).unwrap(), "128");
    }

    #[test]
    fn restored_when_a_panic_unwinds() {
        let (_folder, file) = fake("128");
        let copy = file.clone();
        let result = std::panic::catch_unwind(move || {
            let _guard = Readahead::set_file(copy, 0).unwrap();
            panic!("in the middle of a run");
        });
        assert!(result.is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "128");
    }

    #[test]
    fn odd_sizes_and_missing_files_are_refused() {
        let (folder, file) = fake("128");
        assert!(Readahead::set_file(file.clone(), 1000).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "128");
        let missing = folder.path().join("missing");
        assert!(Readahead::set_file(missing.clone(), 4096).is_err());
        assert!(!missing.exists());
    }
}
