//! Making the file of a log: planned, reserved, filled, mapped, and only then named.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::pending::Pending;
use crate::header::{
    ALIGNMENT_BYTES, Fixed, HEADER_BYTES, MAX_FILE_BYTES, OnFull, Section, VERSION_MINOR,
};
use crate::map::Map;
use crate::tables::{EXTRA_BYTES, MAX_TABLE_BYTES, Tables};
use crate::{Clock, Error, RECORD_BYTES, Result};

/// A log's file, ready for its first record.
pub(super) struct Created {
    pub(super) file: File,
    pub(super) map: Map,
    pub(super) fixed: Fixed,
}

pub(super) fn create(
    path: &Path,
    tables: &Tables,
    capacity_bytes: u64,
    on_full: OnFull,
    clock: Clock,
) -> Result<Created> {
    let (fixed, front) = plan(path, tables, capacity_bytes, on_full, clock)?;
    // A link keeps pointing to the log.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if target.exists() && !target.is_file() || target.file_name().is_none() {
        return Err(Error::NotAFile {
            path: path.to_owned(),
        });
    }
    let size_bytes = fixed.file_bytes();
    if let Some(limit_bytes) = getrlimit(Resource::Fsize).current
        && size_bytes > limit_bytes
    {
        return Err(Error::FileSizeLimit {
            path: path.to_owned(),
            needed_bytes: size_bytes,
            limit_bytes,
        });
    }
    let pending = Pending::create(&target).map_err(|e| Error::io(path, "create", e))?;
    reserve(&pending, size_bytes).map_err(|source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Error::NoSpace {
                path: path.to_owned(),
                needed_bytes: size_bytes,
                source,
            }
        }
        _ => Error::io(path, "reserve its disk space", source),
    })?;
    pending
        .file
        .write_all_at(&front, 0)
        .map_err(|e| Error::io(path, "write its header", e))?;
    let map = match (
        usize::try_from(size_bytes),
        usize::try_from(fixed.ring_offset_bytes),
        usize::try_from(fixed.n_slots()),
    ) {
        (Ok(size), Ok(ring), Ok(n_slots)) => Map::new(&pending.file, size, ring, n_slots),
        _ => Err(Errno::NOMEM),
    }
    .map_err(|e| Error::io(path, "map it", e))?;
    let file = pending
        .rename()
        .map_err(|e| Error::io(path, "give it its name", e))?;
    Ok(Created { file, map, fixed })
}

/// Lays out the file and returns everything that stands before the extra tensors.
fn plan(
    path: &Path,
    tables: &Tables,
    capacity_bytes: u64,
    on_full: OnFull,
    clock: Clock,
) -> Result<(Fixed, Vec<u8>)> {
    let mut front = vec![0; HEADER_BYTES];
    let mut append = |table: &'static str, bytes: Vec<u8>, count: usize| {
        let size_bytes = bytes.len() as u64;
        let count = match u32::try_from(count) {
            Ok(count) if size_bytes <= MAX_TABLE_BYTES => count,
            _ => {
                return Err(Error::TableSize {
                    path: path.to_owned(),
                    table,
                    size_bytes,
                    limit_bytes: MAX_TABLE_BYTES,
                });
            }
        };
        let section = Section {
            offset_bytes: front.len() as u64,
            size_bytes,
            count,
            checksum: crc32fast::hash(&bytes),
        };
        front.extend_from_slice(&bytes);
        front.resize(front.len().next_multiple_of(8), 0);
        Ok(section)
    };
    let files = append("files", tables.encode_files(), tables.files.len())?;
    let tensors = append("tensors", tables.encode_tensors(), tables.tensors.len())?;
    let properties = append(
        "properties",
        tables.encode_properties(),
        tables.properties.len(),
    )?;

    let extras_offset_bytes = front.len() as u64;
    let extras_bytes = u64::from(tables.extra_capacity) * EXTRA_BYTES as u64;
    let ring_offset_bytes = (extras_offset_bytes + extras_bytes).next_multiple_of(ALIGNMENT_BYTES);
    let n_slots = capacity_bytes.saturating_sub(ring_offset_bytes) / RECORD_BYTES as u64;
    if n_slots < 2 || capacity_bytes > MAX_FILE_BYTES {
        return Err(Error::Capacity {
            path: path.to_owned(),
            capacity_bytes,
            minimum_bytes: ring_offset_bytes + 2 * RECORD_BYTES as u64,
        });
    }
    let fixed = Fixed {
        minor: VERSION_MINOR,
        capacity: n_slots - 1,
        ring_offset_bytes,
        epoch_realtime_ns: clock.epoch_realtime_ns(),
        epoch_monotonic_ns: clock.epoch_monotonic_ns(),
        on_full,
        pid: std::process::id(),
        digest: tables.digest(),
        files,
        tensors,
        properties,
        extras_offset_bytes,
        extra_capacity: tables.extra_capacity,
    };
    front[..HEADER_BYTES].copy_from_slice(&fixed.encode());
    Ok((fixed, front))
}

/// Gives the file its whole size, with blocks behind every byte: storing into a hole of a mapped file
/// on a full disk would be a SIGBUS.
fn reserve(pending: &Pending, size_bytes: u64) -> io::Result<()> {
    // Asked first: on its way to failing, fallocate would take all that others have left.
    if pending.free_bytes().is_some_and(|free| free < size_bytes) {
        return Err(Errno::NOSPC.into());
    }
    let file = &pending.file;
    let answer = rustix::io::retry_on_intr(|| {
        rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size_bytes)
    });
    match answer {
        // File systems that cannot reserve blocks can at least write them.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeros(file, size_bytes),
        answer => Ok(answer?),
    }
}

/// Reserves blocks where the file system cannot do so without writing them.
fn write_zeros(file: &File, size_bytes: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < size_bytes {
        let count = (size_bytes - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..count as usize], at)?;
        at += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_reserving_give_the_whole_size() {
        let folder = tempfile::tempdir().unwrap();
        let pending = Pending::create(&folder.path().join("a")).unwrap();
        reserve(&pending, 5).unwrap();
        assert_eq!(pending.file.metadata().unwrap().len(), 5);
        write_zeros(&pending.file, (1 << 20) + 5).unwrap();
        assert_eq!(pending.file.metadata().unwrap().len(), (1 << 20) + 5);
        let error = reserve(&pending, 1 << 60).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
