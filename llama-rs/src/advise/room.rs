//! How much memory the process could still use without anyone swapping or losing pages that are in use.

use std::fs;
use std::path::{Path, PathBuf};

/// The limits that apply to this process: the machine's memory, and its memory control group with all its parents.
#[derive(Debug, Default)]
pub(super) struct Room {
    groups: Vec<Group>,
}

/// A memory control group.
#[derive(Debug)]
struct Group {
    folder: PathBuf,
    files: &'static GroupFiles,
}

/// Names of a version's files (Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst).
#[derive(Debug)]
struct GroupFiles {
    limit: &'static str,
    usage: &'static str,
    /// The page cache's share, in `memory.stat`.
    cache: &'static str,
}

static V1: GroupFiles = GroupFiles {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: "total_cache",
};
static V2: GroupFiles = GroupFiles {
    limit: "memory.max",
    usage: "memory.current",
    cache: "file",
};

impl Room {
    /// The limits of this process as it is placed now.
    pub(super) fn new() -> Room {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Room {
            groups: find_groups(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup")),
        }
    }

    /// Whether `bytes` of files would stay in the page cache: the machine has as much available, and every control group
    /// allows as much beside what is not page cache. False if it cannot be known.
    pub(super) fn holds(&self, bytes: u64) -> bool {
        let available = fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| meminfo_bytes(&text, "MemAvailable:"));
        available.is_some_and(|available| available >= bytes)
            && self
                .groups
                .iter()
                .all(|group| group.room_bytes().is_none_or(|room| room >= bytes))
    }
}

impl Group {
    /// What the group's limit leaves for page cache; `None` without a limit.
    fn room_bytes(&self) -> Option<u64> {
        let number = |name: &str| -> Option<u64> {
            let text = fs::read_to_string(self.folder.join(name)).ok()?;
            text.trim().parse().ok()
        };
        let limit = number(self.files.limit)?;
        let usage = number(self.files.usage).unwrap_or(0);
        let stat = fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let cache = stat_bytes(&stat, self.files.cache).unwrap_or(0);
        Some(limit.saturating_sub(usage.saturating_sub(cache)))
    }
}

/// The process's memory group and its parents, up to the mount point.
fn find_groups(mountinfo: &str, own: &str) -> Vec<Group> {
    let v1 = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers
            .split(',')
            .any(|name| name == "memory")
            .then_some(path)
    });
    let v2 = own.lines().find_map(|line| line.strip_prefix("0::"));
    let (path, files, kind) = match (v1, v2) {
        (Some(path), _) => (path, &V1, "cgroup"),
        (None, Some(path)) => (path, &V2, "cgroup2"),
        (None, None) => return Vec::new(),
    };
    let mount = mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let is_kind = right.next()? == kind;
        let options = right.nth(1)?;
        if !is_kind || (kind == "cgroup" && !options.split(',').any(|name| name == "memory")) {
            return None;
        }
        let mut left = left.split(' ').skip(3);
        Some((left.next()?, left.next()?))
    });
    let Some((root, mount_point)) = mount else {
        return Vec::new();
    };
    let mount_point = Path::new(mount_point);
    // In a container the mount shows only what is below the container's own group.
    let below = Path::new(path)
        .strip_prefix(root)
        .unwrap_or(Path::new(path));
    let folder = mount_point.join(below.strip_prefix("/").unwrap_or(below));
    folder
        .ancestors()
        .take_while(|folder| folder.starts_with(mount_point))
        .filter(|folder| folder.join(files.limit).exists())
        .map(|folder| Group {
            folder: folder.to_owned(),
            files,
        })
        .collect()
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo_bytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// A line of a group's `memory.stat`.
fn stat_bytes(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(folder: &Path) -> Vec<Group> {
        let mountinfo = format!(
            "30 23 0:26 / {} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate",
            folder.display()
        );
        find_groups(&mountinfo, "0::/a/b\n")
    }

    #[test]
    fn every_parent_limits() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("a/b");
        fs::create_dir_all(&own).unwrap();
        for (folder, limit) in [(root.path().join("a"), "1000"), (own, "max")] {
            fs::write(folder.join("memory.max"), limit).unwrap();
            fs::write(folder.join("memory.current"), "700").unwrap();
            fs::write(folder.join("memory.stat"), "anon 300\nfile 400\n").unwrap();
        }
        let groups = group(root.path());
        let rooms: Vec<_> = groups.iter().map(Group::room_bytes).collect();
        assert_eq!(rooms, [None, Some(700)]);
        let room = Room { groups };
        assert!(room.holds(700));
        assert!(!room.holds(701));
        assert!(!Room::default().holds(u64::MAX));
    }

    #[test]
    fn version_1_is_preferred_where_it_has_the_controller() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("x")).unwrap();
        fs::write(root.path().join("x/memory.limit_in_bytes"), "5000").unwrap();
        let mountinfo = format!(
            "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n32 23 0:28 / {} rw - cgroup cgroup rw,memory",
            root.path().display()
        );
        let groups = find_groups(&mountinfo, "4:memory:/x\n0::/y\n");
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].room_bytes(), Some(5000));
        assert!(find_groups("", "4:memory:/x\n").is_empty());
        assert!(find_groups("garbage", "garbage").is_empty());
    }
}
