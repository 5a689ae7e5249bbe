//! The file system and the block device under a file.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) mount_point: PathBuf,
    /// Such as `ext4`.
    pub(crate) kind: String,
    /// Such as `/dev/nvme0n1p2`.
    pub(crate) source: String,
}

/// The file system that holds `path`.
pub(crate) fn mount_of(path: &Path) -> Result<Mount> {
    let path = path
        .canonicalize()
        .with_context(|| path.display().to_string())?;
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    parse_mounts(&table)
        .into_iter()
        .filter(|mount| path.starts_with(&mount.mount_point))
        // Later mounts hide earlier ones on the same point.
        .max_by_key(|mount| mount.mount_point.as_os_str().len())
        .with_context(|| format!("{}: no mount point found", path.display()))
}

fn parse_mounts(table: &str) -> Vec<Mount> {
    let parse = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        Some(Mount {
            mount_point: PathBuf::from(unescape(before.split(' ').nth(4)?)),
            kind: after.next()?.to_string(),
            source: unescape(after.next()?),
        })
    };
    table.lines().filter_map(parse).collect()
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
pub(crate) fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// A block device as a folder of sysfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockDevice {
    /// The disk's name, such as `nvme0n1`, also for a file on a partition.
    pub(crate) name: String,
    folder: PathBuf,
}

impl BlockDevice {
    /// The device that holds `path`.
    pub(crate) fn of_file(path: &Path) -> Result<BlockDevice> {
        let device = fs::metadata(path)
            .with_context(|| path.display().to_string())?
            .dev();
        let (mut major, mut minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        if major == 0 {
            // An anonymous number (btrfs, overlay): the mount's source may still be one device.
            let mount = mount_of(path)?;
            match fs::metadata(&mount.source) {
                Ok(source) if source.rdev() != 0 && mount.source.starts_with("/dev/") => {
                    (major, minor) = (
                        rustix::fs::major(source.rdev()),
                        rustix::fs::minor(source.rdev()),
                    );
                }
                _ => bail!(
                    "{}: its file system ({}) is not on a block device",
                    path.display(),
                    mount.kind
                ),
            }
        }
        BlockDevice::by_number(Path::new("/sys"), major, minor)
    }

    fn by_number(sys: &Path, major: u32, minor: u32) -> Result<BlockDevice> {
        let link = sys.join(format!("dev/block/{major}:{minor}"));
        let mut folder = link
            .canonicalize()
            .with_context(|| format!("{}: no such block device", link.display()))?;
        if folder.join("partition").exists() {
            folder.pop();
        }
        let name = folder
            .file_name()
            .context("a device folder without a name")?
            .to_string_lossy()
            .into_owned();
        Ok(BlockDevice { name, folder })
    }

    /// The file that holds the device's readahead in KiB.
    pub(crate) fn readahead_file(&self) -> PathBuf {
        self.folder.join("queue/read_ahead_kb")
    }

    /// Bytes read from the device by anyone since boot.
    pub(crate) fn read_bytes_total(&self) -> Option<u64> {
        // Field 3 of `stat` is sectors read, always of 512 bytes.
        let stat = fs::read_to_string(self.folder.join("stat")).ok()?;
        stat.split_ascii_whitespace()
            .nth(2)?
            .parse::<u64>()
            .ok()
            .map(|sectors| sectors * 512)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_lines() {
        let table = "21 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                     30 21 0:25 / /mnt/my\\040disk rw - tmpfs none rw,size=1g\n\
                     garbage\n";
        let mounts = parse_mounts(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(
            (mounts[0].kind.as_str(), mounts[0].source.as_str()),
            ("ext4", "/dev/vda")
        );
        assert_eq!(mounts[1].mount_point, Path::new("/mnt/my disk"));
    }

    #[test]
    fn a_partition_leads_to_its_disk() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("devices/pci/nvme0n1");
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::create_dir_all(disk.join("nvme0n1p2")).unwrap();
        fs::write(disk.join("nvme0n1p2/partition"), "2\n").unwrap();
        fs::write(disk.join("stat"), " 10 0 2000 5 0 0 0 0 0 0 0\n").unwrap();
        fs::create_dir_all(sys.path().join("dev/block")).unwrap();
        std::os::unix::fs::symlink(&disk, sys.path().join("dev/block/259:0")).unwrap();
        std::os::unix::fs::symlink(disk.join("nvme0n1p2"), sys.path().join("dev/block/259:2"))
            .unwrap();

        let whole = BlockDevice::by_number(sys.path(), 259, 0).unwrap();
        let part = BlockDevice::by_number(sys.path(), 259, 2).unwrap();
        assert_eq!(whole, part);
        assert_eq!(part.name, "nvme0n1");
        assert!(
            part.readahead_file()
                .ends_with("nvme0n1/queue/read_ahead_kb")
        );
        assert_eq!(part.read_bytes_total(), Some(2000 * 512));
        assert!(BlockDevice::by_number(sys.path(), 8, 0).is_err());
    }

    #[test]
    fn this_file_is_on_some_mount() {
        let mount = mount_of(&std::env::current_exe().unwrap()).unwrap();
        assert!(!mount.kind.is_empty());
    }
}
