//! Where the bytes of a file lie on its device.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use crate::{Error, Result};

/// A piece of a file that lies in one piece on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub file_offset_bytes: u64,
    /// Where it begins on the block device that holds the file system; without meaning where
    /// [`ExtentFlags::has_place`] says no. A partition counts from its own beginning. Where a file
    /// system spreads over several devices (btrfs), this is an address of the file system.
    pub device_offset_bytes: u64,
    /// Its size: a multiple of the file system's block, so the last one may reach past the end of
    /// the file.
    pub size_bytes: u64,
    /// What the file system says about it.
    pub flags: ExtentFlags,
}

/// The kernel's `FIEMAP_EXTENT_…` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct ExtentFlags(pub u32);

impl ExtentFlags {
    /// The last one of the file.
    pub const LAST: ExtentFlags = ExtentFlags(0x1);
    /// The place is not known.
    pub const UNKNOWN: ExtentFlags = ExtentFlags(0x2);
    /// Not written to the device yet, so without a place.
    pub const DELAYED: ExtentFlags = ExtentFlags(0x4);
    /// Compressed or encrypted: its bytes on the device are not those of the file.
    pub const ENCODED: ExtentFlags = ExtentFlags(0x8);
    /// In a block with other data, such as the file's inode.
    pub const NOT_ALIGNED: ExtentFlags = ExtentFlags(0x100);
    /// Reserved and never written: reading it gives zeros and asks no device.
    pub const UNWRITTEN: ExtentFlags = ExtentFlags(0x800);
    /// Shared with another file.
    pub const SHARED: ExtentFlags = ExtentFlags(0x2000);

    /// Whether all bits of `other` are set.
    pub fn has(self, other: ExtentFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the bytes of the file are found, as they are, at
    /// [`device_offset_bytes`](Extent::device_offset_bytes).
    pub fn has_place(self) -> bool {
        let without = Self::UNKNOWN.0 | Self::DELAYED.0 | Self::ENCODED.0 | Self::UNWRITTEN.0;
        self.0 & without == 0
    }
}

/// The extents of a file, in the order of the file. Holes have none; a file that is empty or all
/// hole has an empty list. What is dirty in the page cache is written to the device first, so that
/// it has a place.
///
/// # Errors
///
/// [`Error::Io`] if the file cannot be opened, or with [`io::ErrorKind::Unsupported`] if its file
/// system cannot tell (tmpfs, overlays, most network file systems).
///
/// # References
///
/// `Documentation/filesystems/fiemap.rst` and `include/uapi/linux/fiemap.h` of the kernel;
/// `filefrag(8)` prints the same.
pub fn extents(path: impl AsRef<Path>) -> Result<Vec<Extent>> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|source| Error::io(path, "open", source))?;
    extents_of(&file).map_err(|source| {
        Error::io(
            path,
            "ask its file system for the extents (FIEMAP) of",
            source,
        )
    })
}

/// As [`extents`], of an open file.
///
/// # Errors
///
/// The system's answer; [`io::ErrorKind::Unsupported`] if the file system cannot tell.
pub fn extents_of(file: &File) -> io::Result<Vec<Extent>> {
    let mut found = Vec::new();
    let mut begin_bytes = 0;
    loop {
        let mut request = Request::new(begin_bytes);
        // SAFETY: the opcode is FIEMAP's, whose argument is a `fiemap` with room for
        // `extent_count` extents behind it. `Request` has that layout (checked below), and any
        // bytes are valid for its integers.
        let answer = unsafe { ioctl(file, Updater::<FS_IOC_FIEMAP, Request>::new(&mut request)) };
        answer.map_err(|errno| match errno {
            // An ioctl that a file system does not know at all is ENOTTY.
            Errno::NOTTY => Errno::OPNOTSUPP.into(),
            other => io::Error::from(other),
        })?;
        let n_mapped = (request.n_mapped as usize).min(EXTENTS_PER_CALL);
        let mapped = &request.extents[..n_mapped];
        found.extend(mapped.iter().map(|extent| Extent {
            file_offset_bytes: extent.logical,
            device_offset_bytes: extent.physical,
            size_bytes: extent.length,
            flags: ExtentFlags(extent.flags),
        }));
        let Some(last) = mapped.last() else {
            return Ok(found);
        };
        let end_bytes = last.logical.saturating_add(last.length);
        if ExtentFlags(last.flags).has(ExtentFlags::LAST) || end_bytes <= begin_bytes {
            return Ok(found);
        }
        begin_bytes = end_bytes;
    }
}

const FS_IOC_FIEMAP: Opcode = opcode::read_write::<[u8; REQUEST_HEADER_BYTES]>(b'f', 11);
const FIEMAP_FLAG_SYNC: u32 = 1;
const REQUEST_HEADER_BYTES: usize = 32;
const EXTENTS_PER_CALL: usize = 256;

/// `struct fiemap` with room for extents.
#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    n_mapped: u32,
    extent_count: u32,
    reserved: u32,
    extents: [RawExtent; EXTENTS_PER_CALL],
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const _: () = assert!(std::mem::offset_of!(Request, extents) == REQUEST_HEADER_BYTES);
const _: () = assert!(size_of::<RawExtent>() == 56);
const _: () = assert!(std::mem::offset_of!(RawExtent, flags) == 40);

impl Request {
    fn new(begin_bytes: u64) -> Request {
        Request {
            start: begin_bytes,
            length: u64::MAX - begin_bytes,
            flags: FIEMAP_FLAG_SYNC,
            n_mapped: 0,
            extent_count: EXTENTS_PER_CALL as u32,
            reserved: 0,
            extents: [RawExtent::default(); EXTENTS_PER_CALL],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// Every other block is written, so that the extents outnumber those of one call.
    #[test]
    fn the_extents_of_a_file_with_holes_are_its_written_blocks() {
        const BLOCK_BYTES: u64 = 64 << 10;
        let n_blocks = EXTENTS_PER_CALL as u64 + 10;
        let file = tempfile::tempfile().unwrap();
        for block in 0..n_blocks {
            let data = vec![1; BLOCK_BYTES as usize / 2];
            file.write_all_at(&data, block * BLOCK_BYTES).unwrap();
        }
        let found = match extents_of(&file) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                eprintln!("skipped: the file system of the temporary folder has no FIEMAP");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        assert!(found.len() as u64 >= n_blocks, "{}", found.len());
        let mut end_bytes = 0;
        let mut covered_bytes = 0;
        for extent in &found {
            assert!(extent.file_offset_bytes >= end_bytes, "{extent:?}");
            end_bytes = extent.file_offset_bytes + extent.size_bytes;
            covered_bytes += extent.size_bytes;
            assert!(
                extent.file_offset_bytes % BLOCK_BYTES + extent.size_bytes <= BLOCK_BYTES / 2,
                "{extent:?} is of a hole"
            );
        }
        assert_eq!(covered_bytes, n_blocks * BLOCK_BYTES / 2);
        assert!(found.last().unwrap().flags.has(ExtentFlags::LAST));
    }

    #[test]
    fn an_empty_file_has_no_extents_and_a_missing_one_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        match extents(file.path()) {
            Ok(found) => assert_eq!(found, []),
            Err(error) => assert!(error.to_string().contains("FIEMAP"), "{error}"),
        }
        let missing = extents("no-such-file.gguf").unwrap_err();
        assert!(missing.to_string().contains("no-such-file.gguf"));
    }
}
