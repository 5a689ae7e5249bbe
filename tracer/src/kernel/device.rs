//! From a byte of a disk to the byte of a model file that is there.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{Extent, MARK_PAGE_BYTES};

use super::KernelError;
use super::error::BLOCK;

/// Bytes of a sector, whatever the device's own size is: the unit of the block layer.
const SECTOR_BYTES: u64 = 512;

/// A piece of a file that lies in one piece on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    /// The disk, as tracepoints name it.
    disk: u32,
    begin_bytes: u64,
    end_bytes: u64,
    file: u32,
    file_offset_bytes: u64,
}

/// Where the model's files lie.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// By disk, then by place.
    pieces: Vec<Piece>,
}

impl Pieces {
    pub(super) fn of(paths: &[PathBuf]) -> Result<Pieces, KernelError> {
        let mut pieces = Pieces::default();
        for (file, path) in (0..).zip(paths) {
            let (disk, start_bytes) = disk(path)?;
            let extents =
                crate::extents(path).map_err(|error| KernelError::new(BLOCK, error.to_string()))?;
            pieces.add(file, disk, start_bytes, &extents);
        }
        Ok(pieces)
    }

    fn add(&mut self, file: u32, disk: u32, start_bytes: u64, extents: &[Extent]) {
        let with_place = extents.iter().filter(|extent| extent.flags.has_place());
        self.pieces.extend(with_place.map(|extent| {
            let begin_bytes = start_bytes.saturating_add(extent.device_offset_bytes);
            Piece {
                disk,
                begin_bytes,
                end_bytes: begin_bytes.saturating_add(extent.size_bytes),
                file,
                file_offset_bytes: extent.file_offset_bytes,
            }
        }));
        self.pieces
            .sort_by_key(|piece| (piece.disk, piece.begin_bytes));
    }

    pub(super) fn has_disk(&self, disk: u32) -> bool {
        let first = self.pieces.partition_point(|piece| piece.disk < disk);
        self.pieces
            .get(first)
            .is_some_and(|piece| piece.disk == disk)
    }

    /// Calls `each` with a file and a range of whole pages of it for every piece that a request covers.
    pub(super) fn split(
        &self,
        disk: u32,
        sector: u64,
        n_sectors: u32,
        mut each: impl FnMut(u32, Range<u64>),
    ) {
        let begin = sector.saturating_mul(SECTOR_BYTES);
        let end = begin.saturating_add(u64::from(n_sectors) * SECTOR_BYTES);
        let first = self
            .pieces
            .partition_point(|piece| (piece.disk, piece.end_bytes) <= (disk, begin));
        for piece in &self.pieces[first..] {
            if (piece.disk, piece.begin_bytes) >= (disk, end) {
                break;
            }
            let at = |byte: u64| piece.file_offset_bytes + (byte - piece.begin_bytes);
            let part = at(begin.max(piece.begin_bytes))..at(end.min(piece.end_bytes));
            let pages = part.start / MARK_PAGE_BYTES * MARK_PAGE_BYTES
                ..part.end.next_multiple_of(MARK_PAGE_BYTES);
            each(piece.file, pages);
        }
    }
}

/// The disk that holds a file, as tracepoints name it, and where the file system begins on it, in bytes.
///
/// Requests are seen after the kernel has turned a partition's sectors into the disk's.
fn disk(path: &Path) -> Result<(u32, u64), KernelError> {
    let action = |action: &'static str| move |error| KernelError::system(BLOCK, action, &error);
    let device = fs::metadata(path)
        .map_err(action("find a model file"))?
        .dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let refuse = |reason: String| {
        let path = path.display();
        let help =
            "copy the model to a file system that lies directly on a disk, such as ext4 or xfs";
        Err(KernelError::new(BLOCK, format!("{path}: {reason}; {help}")))
    };
    if major == 0 {
        return refuse(
            "its file system does not lie on one block device (such as btrfs, overlay, tmpfs and network file systems)"
                .to_owned(),
        );
    }
    let folder = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let folder = fs::canonicalize(&folder).map_err(action("find the model's device in sysfs"))?;
    for kind in ["dm", "md"] {
        if folder.join(kind).exists() {
            return refuse(format!(
                "it lies on {}, a device that passes requests on to others (LVM, encryption, RAID)",
                folder.file_name().unwrap_or_default().display()
            ));
        }
    }
    let read = |path: PathBuf| {
        fs::read_to_string(path).map_err(action("read the model's device in sysfs"))
    };
    if !folder.join("partition").exists() {
        return Ok((kernel_number(major, minor), 0));
    }
    let start_sector = read(folder.join("start"))?;
    let number = read(folder.join("../dev"))?;
    let parsed = (|| {
        let (major, minor) = number.trim().split_once(':')?;
        let start_bytes = start_sector
            .trim()
            .parse::<u64>()
            .ok()?
            .checked_mul(SECTOR_BYTES)?;
        Some((
            kernel_number(major.parse().ok()?, minor.parse().ok()?),
            start_bytes,
        ))
    })();
    match parsed {
        Some(found) => Ok(found),
        None => refuse(format!(
            "sysfs gives its partition as {start_sector} on {number}"
        )),
    }
}

/// `dev_t` as it is inside the kernel (`MKDEV`), which tracepoints show.
fn kernel_number(major: u32, minor: u32) -> u32 {
    major << 20 | minor & 0xf_ffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ExtentFlags;

    fn extent(file_offset_bytes: u64, device_offset_bytes: u64, size_bytes: u64) -> Extent {
        Extent {
            file_offset_bytes,
            device_offset_bytes,
            size_bytes,
            flags: ExtentFlags::default(),
        }
    }

    #[test]
    fn a_request_leads_to_every_piece_that_it_covers() {
        let mut pieces = Pieces::default();
        let start_bytes = 1 << 20;
        // Two pieces of file 0 in the wrong order on the disk, with one of file 1 between.
        pieces.add(
            0,
            7,
            start_bytes,
            &[extent(0, 40_960, 8192), extent(8192, 0, 4096)],
        );
        pieces.add(1, 7, start_bytes, &[extent(0, 4096, 36_864)]);
        let unwritten = Extent {
            flags: ExtentFlags::UNWRITTEN,
            ..extent(0, 1 << 30, 4096)
        };
        pieces.add(2, 7, start_bytes, &[unwritten]);
        let split = |disk, begin_bytes: u64, size_bytes: u64| {
            let mut found = Vec::new();
            let sector = (start_bytes + begin_bytes) / SECTOR_BYTES;
            let n_sectors = (size_bytes / SECTOR_BYTES) as u32;
            pieces.split(disk, sector, n_sectors, |file, range| {
                found.push((file, range))
            });
            found
        };
        assert_eq!(
            split(7, 0, 49_152),
            [(0, 8192..12_288), (1, 0..36_864), (0, 0..8192)]
        );
        assert_eq!(split(7, 4608, 512), [(1, 0..4096)]);
        assert_eq!(split(7, 49_152, 4096), []);
        assert_eq!(split(7, 1 << 30, 4096), []);
        assert_eq!(split(6, 0, 49_152), []);
        assert_eq!(split(8, 0, 49_152), []);
        assert!(pieces.has_disk(7) && !pieces.has_disk(6) && !pieces.has_disk(8));
    }
}
