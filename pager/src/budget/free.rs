//! What is free: in the machine, and in every memory group around this process.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// A limit and what is left below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `the machine`, or the folder of a memory group.
    pub name: String,
    /// What may still be used without swapping or killing, page cache that can be given up included.
    pub free_bytes: u64,
}

/// What is free below each limit that applies to this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeMemory {
    /// The machine first, then the memory groups from the innermost out, those without a limit left out.
    pub limits: Vec<Limit>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl FreeMemory {
    /// Reads `/proc` and the memory groups below `root`, which is `/` but in tests.
    ///
    /// `MemAvailable` of `/proc/meminfo` is the kernel's own estimate (`proc_meminfo(5)`). A group has its limit less its
    /// usage, plus the page cache in it; groups of version 1 (`memory.limit_in_bytes`) and 2 (`memory.max` and
    /// `memory.high`) are nested, and each one applies. See the kernel's Documentation/admin-guide/cgroup-v1/memory.rst
    /// and cgroup-v2.rst.
    ///
    /// # Errors
    ///
    /// If `/proc/meminfo` cannot be read or has no `MemAvailable`. Groups that cannot be read are taken to have no limit.
    pub fn read(root: &Path) -> io::Result<FreeMemory> {
        let path = root.join("proc/meminfo");
        let text = fs::read_to_string(&path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        let available = text
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"))
            .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
            .ok_or_else(|| {
                let problem = format!("{}: it has no MemAvailable in kB", path.display());
                io::Error::new(io::ErrorKind::InvalidData, problem)
            })?;
        let mut limits = vec![Limit {
            name: "the machine".to_owned(),
            free_bytes: available * 1024,
        }];
        for (version, mount_point, own_group) in groups(root) {
            let folders = own_group.ancestors();
            limits.extend(
                folders
                    .take_while(|folder| folder.starts_with(&mount_point))
                    .filter_map(|folder| limit_of(folder, version)),
            );
        }
        Ok(FreeMemory { limits })
    }

    /// The tightest of the limits.
    pub fn tightest(&self) -> Option<&Limit> {
        self.limits.iter().min_by_key(|limit| limit.free_bytes)
    }

    /// What is free below all of the limits.
    pub fn free_bytes(&self) -> u64 {
        self.tightest().map_or(0, |limit| limit.free_bytes)
    }
}

fn limit_of(folder: &Path, version: Version) -> Option<Limit> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(folder.join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let (limit, usage, prefix) = match version {
        Version::V1 => (
            number("memory.limit_in_bytes"),
            number("memory.usage_in_bytes"),
            "total_",
        ),
        // `max` is not a number: no limit.
        Version::V2 => {
            let limits = [number("memory.max"), number("memory.high")];
            (
                limits.into_iter().flatten().min(),
                number("memory.current"),
                "",
            )
        }
    };
    // Version 1 writes "no limit" as the largest number of whole pages.
    let limit = limit.filter(|limit| *limit < i64::MAX as u64 / 2)?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cache_bytes: u64 = stat
        .lines()
        .filter_map(|line| line.strip_prefix(prefix)?.split_once(' '))
        .filter(|(name, _)| ["inactive_file", "active_file"].contains(name))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum();
    let used_bytes = usage?.saturating_sub(cache_bytes);
    Some(Limit {
        name: folder.display().to_string(),
        free_bytes: limit.saturating_sub(used_bytes),
    })
}

/// Each hierarchy with memory limits: its mount point, and the group of this process in it.
fn groups(root: &Path) -> Vec<(Version, PathBuf, PathBuf)> {
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
    let (mounts, own) = (read("proc/self/mountinfo"), read("proc/self/cgroup"));
    mounts
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut before = before.split(' ').skip(3);
            let (mounted, point) = (before.next()?, before.next()?);
            let mut after = after.split(' ');
            let kind = after.next()?;
            let options = after.nth(1)?;
            let version = match kind {
                "cgroup" if options.split(',').any(|option| option == "memory") => Version::V1,
                "cgroup2" => Version::V2,
                _ => return None,
            };
            let path = own.lines().find_map(|line| {
                let (id, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                let is_it = match version {
                    Version::V1 => controllers.split(',').any(|name| name == "memory"),
                    Version::V2 => id == "0" && controllers.is_empty(),
                };
                is_it.then_some(path)
            })?;
            let mount_point = below(root, Path::new(point));
            let own_group = match Path::new(path).strip_prefix(mounted) {
                Ok(rest) => below(&mount_point, rest),
                // In a container the path may lie outside of what is mounted.
                Err(_) => mount_point.clone(),
            };
            Some((version, mount_point, own_group))
        })
        .collect()
}

/// `path` below `folder`, without leaving it.
fn below(folder: &Path, path: &Path) -> PathBuf {
    let names = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_)));
    names.fold(folder.to_owned(), |folder, name| folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal: 16000 kB\nMemAvailable:   9000 kB\n",
    );

    #[test]
    fn the_machine_alone() {
        let root = tempfile::tempdir().unwrap();
        assert!(
            FreeMemory::read(root.path())
                .unwrap_err()
                .to_string()
                .contains("meminfo")
        );
        write(root.path(), &[("proc/meminfo", "MemTotal: 16000 kB\n")]);
        let message = FreeMemory::read(root.path()).unwrap_err().to_string();
        assert!(message.contains("MemAvailable"), "{message}");
        write(root.path(), &[MEMINFO]);
        let free = FreeMemory::read(root.path()).unwrap();
        assert_eq!((free.limits.len(), free.free_bytes()), (1, 9000 * 1024));
        // The real files can be read.
        assert!(FreeMemory::read(Path::new("/")).unwrap().free_bytes() > 0);
    }

    #[test]
    fn the_tightest_of_nested_groups_of_version_2() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                MEMINFO,
                ("proc/self/cgroup", "0::/a/b\n"),
                (
                    "proc/self/mountinfo",
                    "31 24 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
                ),
                ("sys/fs/cgroup/a/memory.max", "8000000\n"),
                ("sys/fs/cgroup/a/memory.high", "6000000\n"),
                ("sys/fs/cgroup/a/memory.current", "5000000\n"),
                (
                    "sys/fs/cgroup/a/memory.stat",
                    "anon 1\nfile 7\ninactive_file 300000\nactive_file 200000\n",
                ),
                ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                ("sys/fs/cgroup/a/b/memory.high", "max\n"),
                ("sys/fs/cgroup/a/b/memory.current", "4000000\n"),
            ],
        );
        let free = FreeMemory::read(root.path()).unwrap();
        assert_eq!(free.limits.len(), 2);
        let tightest = free.tightest().unwrap();
        assert!(tightest.name.ends_with("cgroup/a"), "{}", tightest.name);
        assert_eq!(tightest.free_bytes, 1_500_000);
    }

    #[test]
    fn groups_of_version_1_and_a_group_mounted_as_root() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                MEMINFO,
                (
                    "proc/self/cgroup",
                    "4:cpu,memory:/docker/x/inner\n1:name=systemd:/\n0::/\n",
                ),
                (
                    "proc/self/mountinfo",
                    "35 31 0:32 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
                ),
                (
                    "sys/fs/cgroup/memory/memory.limit_in_bytes",
                    "9223372036854771712\n",
                ),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "100\n"),
                (
                    "sys/fs/cgroup/memory/inner/memory.limit_in_bytes",
                    "4000000\n",
                ),
                (
                    "sys/fs/cgroup/memory/inner/memory.usage_in_bytes",
                    "3000000\n",
                ),
                (
                    "sys/fs/cgroup/memory/inner/memory.stat",
                    "inactive_file 5\ntotal_inactive_file 100000\ntotal_active_file 50000\ntotal_shmem 9\n",
                ),
            ],
        );
        let free = FreeMemory::read(root.path()).unwrap();
        assert_eq!(free.limits.len(), 2);
        assert_eq!(free.free_bytes(), 1_150_000);
    }
}
