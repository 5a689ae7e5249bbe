//! The file under measurement: how it can be read, and what stands between it and a device.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, OFlags, StatxAttributes, StatxFlags};

use super::MeasureError;
use super::ring::Region;

/// File systems by their number in `statfs(2)`, with what a measurement on them must say.
const FILE_SYSTEMS: &[(u64, &str, Option<&str>)] = &[
    (0xef53, "ext4", None),
    (0x5846_5342, "xfs", None),
    (
        0xf2f5_2010,
        "f2fs",
        Some("f2fs may compress files; then fewer bytes are read than asked for"),
    ),
    (
        0x9123_683e,
        "btrfs",
        Some(
            "btrfs may compress files, and reads of compressed ones go through the page cache: no device's rates then",
        ),
    ),
    (
        0x2fc1_2fc1,
        "zfs",
        Some("zfs has a cache of its own and may compress: these may be rates of memory"),
    ),
    (
        0xca45_1a4e,
        "bcachefs",
        Some("bcachefs may compress files; then fewer bytes are read than asked for"),
    ),
    (
        0x794c_7630,
        "overlay",
        Some(
            "an overlay file system: the file is on another one below it, which is not named here",
        ),
    ),
    (0x0102_1994, "tmpfs", Some(MEMORY)),
    (0x8584_58f6, "ramfs", Some(MEMORY)),
    (0x6969, "nfs", Some(NETWORK)),
    (0xff53_4d42, "cifs", Some(NETWORK)),
    (0x0102_1997, "9p", Some(NETWORK)),
    (
        0x6573_5546,
        "fuse",
        Some("a program serves this file system (fuse): these are its rates, not a device's"),
    ),
    (
        0xf15f,
        "ecryptfs",
        Some("an encrypting file system: rates include the decryption"),
    ),
];
const MEMORY: &str = "the file is in memory, not on a device: these are rates of memory";
const NETWORK: &str =
    "the file is served by another machine: rates include its caches and the network";

/// How the file can be read.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) file: File,
    /// Stands for the file in errors.
    pub(super) path: PathBuf,
    pub(super) size_bytes: u64,
    pub(super) direct: bool,
    pub(super) block_bytes: u64,
    pub(super) file_system: String,
    pub(super) device: Option<String>,
    pub(super) notes: Vec<String>,
}

impl Place {
    /// Opens a file that exists.
    pub(super) fn open(path: &Path, region: &mut Region) -> Result<Place, MeasureError> {
        // Asked first: opening a pipe would wait for somebody to write into it.
        let metadata = path
            .metadata()
            .map_err(|error| MeasureError::io(path, "open", error))?;
        if !metadata.is_file() {
            return Err(MeasureError::path(path, "is not a regular file"));
        }
        if metadata.len() == 0 {
            return Err(MeasureError::path(path, "is empty"));
        }
        let open = |flags: OFlags| {
            OpenOptions::new()
                .read(true)
                .custom_flags(flags.bits() as i32)
                .open(path)
        };
        let direct = match open(OFlags::DIRECT) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => None,
            result => Some(result.map_err(|error| MeasureError::io(path, "open", error))?),
        };
        let file = match direct {
            Some(file) => file,
            None => open(OFlags::empty()).map_err(|error| MeasureError::io(path, "open", error))?,
        };
        Place::new(file, path, region)
    }

    /// The temporary file of a folder.
    pub(super) fn temporary(
        file: File,
        folder: &Path,
        region: &mut Region,
    ) -> Result<Place, MeasureError> {
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| {
            MeasureError::io(folder, "ask for the flags of a file in", error.into())
        })?;
        // Where that is refused, `Place::new` sees it.
        let _ = rustix::fs::fcntl_setfl(&file, flags | OFlags::DIRECT);
        Place::new(file, folder, region)
    }

    fn new(file: File, path: &Path, region: &mut Region) -> Result<Place, MeasureError> {
        let ask = |error: io::Error| MeasureError::io(path, "ask for the properties of", error);
        let metadata = file.metadata().map_err(ask)?;
        let mut notes = Vec::new();
        let number = rustix::fs::fstatfs(&file)
            .map_err(|error| ask(error.into()))?
            .f_type as u64;
        let known = FILE_SYSTEMS
            .iter()
            .find(|known| known.0 == number & 0xffff_ffff);
        notes.extend(known.and_then(|known| known.2).map(str::to_owned));
        notes.extend(attribute_notes(&file).map(str::to_owned));
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| ask(error.into()))?;
        let mut direct = flags.contains(OFlags::DIRECT);
        let mut block_bytes = 512;
        if direct {
            match smallest_read(&file, metadata.len(), region.bytes_mut()) {
                Ok(bytes) => block_bytes = bytes,
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    rustix::fs::fcntl_setfl(&file, flags.difference(OFlags::DIRECT))
                        .map_err(|error| ask(error.into()))?;
                    direct = false;
                }
                Err(error) => return Err(MeasureError::io(path, "read", error)),
            }
        }
        if !direct {
            notes.push(
                "O_DIRECT is refused (EINVAL): reads go through the page cache, so these are rates of memory as soon as a \
                 range is read again"
                    .to_owned(),
            );
        }
        let folder = block_device(metadata.dev());
        notes.extend(folder.as_deref().and_then(encryption_note));
        if has_hypervisor() {
            notes.push(
                "a virtual machine: its host may hold the file in memory, and share the device with others"
                    .to_owned(),
            );
        }
        Ok(Place {
            file,
            path: path.to_owned(),
            size_bytes: metadata.len(),
            direct,
            block_bytes,
            file_system: known.map_or_else(|| format!("{number:#x}"), |known| known.1.to_owned()),
            device: folder.and_then(|folder| {
                let name = folder.file_name()?;
                Some(name.to_string_lossy().into_owned())
            }),
            notes,
        })
    }
}

fn attribute_notes(file: &File) -> impl Iterator<Item = &'static str> {
    let attributes = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::empty())
        .map(|status| status.stx_attributes)
        .unwrap_or(StatxAttributes::empty());
    let compressed = attributes
        .contains(StatxAttributes::COMPRESSED)
        .then_some("the file is compressed: fewer bytes are read than asked for");
    let encrypted = attributes
        .contains(StatxAttributes::ENCRYPTED)
        .then_some("the file is encrypted: rates include the decryption");
    compressed.into_iter().chain(encrypted)
}

/// The least that offsets and lengths of direct reads are multiples of, found by trying.
fn smallest_read(file: &File, size_bytes: u64, buffer: &mut [u8]) -> io::Result<u64> {
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for bytes in [512u64, 1024, 2048, 4096, 8192, 16384, 65536] {
        // At the end of the file a read of fewer bytes says nothing about alignment, but is no error either.
        let offset = if size_bytes >= 2 * bytes { bytes } else { 0 };
        match file.read_at(&mut buffer[..bytes as usize], offset) {
            Ok(_) => return Ok(bytes),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// The folder in sysfs of the disk with this number; none for file systems that are not on one.
fn block_device(number: u64) -> Option<PathBuf> {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let mut folder = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    if folder.join("partition").exists() {
        folder.pop();
    }
    Some(folder)
}

fn encryption_note(folder: &Path) -> Option<String> {
    let uuid = fs::read_to_string(folder.join("dm/uuid")).ok()?;
    uuid.starts_with("CRYPT-")
        .then(|| "an encrypted device (dm-crypt): rates include the decryption".to_owned())
}

fn has_hypervisor() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        text.lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|line| {
                line.split_ascii_whitespace()
                    .any(|flag| flag == "hypervisor")
            })
    })
}
