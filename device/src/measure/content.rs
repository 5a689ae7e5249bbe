//! The temporary file: incompressible bytes that follow from their offset, so that each read can be checked.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use rustix::fs;

use super::offsets::mix;
use super::{MeasureError, Stop};

/// Written at once.
const CHUNK_BYTES: usize = 4 << 20;
/// The file leaves this share of the free space, at least.
const FREE_SHARE: u64 = 10;

/// A file without a name, which the kernel removes when it is closed, whatever ends the process.
pub(super) fn temporary(
    folder: &Path,
    size_bytes: u64,
    seed: u64,
    stop: Stop<'_>,
) -> Result<File, MeasureError> {
    let metadata = folder
        .metadata()
        .map_err(|error| MeasureError::io(folder, "open", error))?;
    if !metadata.is_dir() {
        return Err(MeasureError::path(folder, "is not a folder"));
    }
    let space = fs::statvfs(folder)
        .map_err(|error| MeasureError::io(folder, "find the free space of", error.into()))?;
    let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
    if size_bytes > free_bytes - free_bytes / FREE_SHARE {
        return Err(MeasureError::path(
            folder,
            format!(
                "{free_bytes} bytes are free, and a file of {size_bytes} would use more than nine tenths of them; \
                 choose a smaller --file-size"
            ),
        ));
    }
    let file = tempfile::tempfile_in(folder)
        .map_err(|error| MeasureError::io(folder, "make a temporary file in", error))?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < size_bytes {
        if stop() {
            return Err(MeasureError::Interrupted);
        }
        let len = (size_bytes - at).min(CHUNK_BYTES as u64) as usize;
        fill(&mut chunk[..len], at, seed);
        (&file)
            .write_all(&chunk[..len])
            .map_err(|error| MeasureError::io(folder, "write a temporary file in", error))?;
        at += len as u64;
    }
    // Pages that are still to be written would be written during the measurement.
    file.sync_all()
        .map_err(|error| MeasureError::io(folder, "write a temporary file in", error))?;
    Ok(file)
}

/// What the temporary file has at `offset`, a multiple of 8.
pub(super) fn fill(bytes: &mut [u8], offset: u64, seed: u64) {
    for (word, number) in bytes.chunks_mut(8).zip(offset / 8..) {
        word.copy_from_slice(&mix(seed ^ number).to_le_bytes()[..word.len()]);
    }
}
