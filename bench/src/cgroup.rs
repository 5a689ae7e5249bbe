//! A fresh memory group for one run: the limit counts anonymous memory and the page cache together, swap is off.
//!
//! Version 1 is used where it has the memory controller, version 2 otherwise. Version 1 groups are made at the top of the
//! hierarchy where that is allowed: the group of this process may belong to a manager that wants it empty at the end.
//! Version 2 groups are made as near to this process as possible, which is where a delegated subtree permits it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::device::unescape;
use crate::size::format_bytes;

/// Prefix of the groups' names; the process id and a counter follow.
const PREFIX: &str = "faultline-bench";
/// How long a group may stay busy after its last process ended before it is given up.
const REMOVE_PATIENCE: Duration = Duration::from_secs(3);

static NEXT: AtomicU32 = AtomicU32::new(0);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A place where memory groups can be made.
#[derive(Debug)]
pub(crate) struct Controller {
    version: Version,
    parent: PathBuf,
    /// Set when this process had to leave its own group for a leaf of it (version 2 allows either processes or
    /// children with limits in one group, not both).
    moved: Option<Moved>,
}

impl Controller {
    /// Finds a place by trying: a group is made and removed again.
    pub(crate) fn detect() -> Result<Controller> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
        let Some(Hierarchy {
            version,
            mount_point,
            own_group,
        }) = Hierarchy::find(&mounts, &own)
        else {
            bail!(
                "no memory controller: neither a version 2 nor a version 1 memory hierarchy is mounted"
            );
        };
        let mut parents: Vec<_> = own_group
            .ancestors()
            .take_while(|folder| folder.starts_with(&mount_point))
            .collect();
        if version == Version::V1 {
            parents.reverse();
        }
        let mut refusals = Vec::new();
        for parent in parents {
            let controller = Controller {
                version,
                parent: parent.to_path_buf(),
                moved: None,
            };
            match controller.usable() {
                Ok(()) => {
                    controller.remove_abandoned();
                    return Ok(controller);
                }
                Err(error) => refusals.push(format!("{}: {error:#}", parent.display())),
            }
        }
        if version == Version::V2 {
            match Moved::into_leaf(&own_group) {
                Ok(moved) => {
                    return Ok(Controller {
                        version,
                        parent: own_group,
                        moved: Some(moved),
                    });
                }
                Err(error) => refusals.push(format!("{}: {error:#}", own_group.display())),
            }
        }
        bail!(
            "no memory group can be made here ({}); run as root, or in a delegated group: \
             systemd-run --user --scope -p Delegate=yes bench ...",
            refusals.join("; ")
        )
    }

    /// What is used, for the header: `cgroup v1 below /sys/fs/cgroup/memory`.
    pub(crate) fn describe(&self) -> String {
        let version = if self.version == Version::V1 { 1 } else { 2 };
        let moved = if self.moved.is_some() {
            ", delegated"
        } else {
            ""
        };
        format!("cgroup v{version}{moved}")
    }

    fn usable(&self) -> Result<()> {
        if self.version == Version::V2 {
            let enabled = fs::read_to_string(self.parent.join("cgroup.subtree_control"))?;
            if !enabled
                .split_ascii_whitespace()
                .any(|name| name == "memory")
            {
                bail!("the memory controller is not enabled for its children");
            }
        }
        self.create(1 << 30).map(drop)
    }

    /// Makes a group with a limit of `limit_bytes`, page cache included, and no swap.
    pub(crate) fn create(&self, limit_bytes: u64) -> Result<Group> {
        let name = group_name(std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = self.parent.join(name);
        fs::create_dir(&folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
        // From here on an error removes the group again.
        let group = Group {
            version: self.version,
            folder,
            limit_bytes,
        };
        group.set_limit().with_context(|| {
            format!(
                "a memory limit of {} cannot be set",
                format_bytes(limit_bytes)
            )
        })?;
        Ok(group)
    }

    /// Removes groups left behind by killed processes of this program. Groups in use refuse to be removed.
    fn remove_abandoned(&self) {
        let Ok(entries) = fs::read_dir(&self.parent) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(owner_of) else {
                continue;
            };
            if !Path::new("/proc").join(pid.to_string()).exists() {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

fn group_name(pid: u32, number: u32) -> String {
    format!("{PREFIX}-{pid}-{number}")
}

/// The process id in a group's name, `None` for a foreign name.
fn owner_of(name: &str) -> Option<u32> {
    let (pid, number) = name
        .strip_prefix(PREFIX)?
        .strip_prefix('-')?
        .split_once('-')?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

/// A memory group. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Group {
    version: Version,
    folder: PathBuf,
    limit_bytes: u64,
}

impl Group {
    fn set_limit(&self) -> io::Result<()> {
        match self.version {
            Version::V1 => {
                self.write("memory.limit_in_bytes", self.limit_bytes)?;
                // Memory and swap together may not exceed the same limit: no swap. The file is absent where the kernel
                // does not account swap.
                match self.write("memory.memsw.limit_in_bytes", self.limit_bytes) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                }
            }
            Version::V2 => {
                self.write("memory.max", self.limit_bytes)?;
                match self.write("memory.swap.max", 0) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                }
            }
        }
    }

    /// The file into which a process writes `0` to enter the group.
    pub(crate) fn procs_file(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// The highest charge so far, page cache included; `None` where the kernel does not keep it (version 2 before
    /// Linux 5.19).
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        self.read(match self.version {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        })
        .ok()?
        .trim()
        .parse()
        .ok()
    }

    /// Processes that the kernel killed because the group was over its limit.
    pub(crate) fn oom_kills(&self) -> u64 {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        self.read(file)
            .ok()
            .and_then(|text| flat_keyed(&text, "oom_kill"))
            .unwrap_or(0)
    }

    fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.folder.join(file))
    }

    fn write(&self, file: &str, value: u64) -> io::Result<()> {
        write_existing(&self.folder.join(file), &value.to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.version == Version::V1 {
            // Uncharges the page cache; otherwise the removed group lives on in the kernel until its pages go.
            let _ = self.write("memory.force_empty", 0);
        }
        let begin = Instant::now();
        while let Err(error) = fs::remove_dir(&self.folder) {
            // A killed process leaves its group a little after its parent has collected it.
            if error.kind() != io::ErrorKind::ResourceBusy || begin.elapsed() > REMOVE_PATIENCE {
                eprintln!(
                    "warning: {}: not removed: {error}; `rmdir` does it",
                    self.folder.display()
                );
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// This process moved from its own (version 2) group into a leaf of it. Dropping it moves back.
#[derive(Debug)]
struct Moved {
    own_group: PathBuf,
    leaf: PathBuf,
}

impl Moved {
    fn into_leaf(own_group: &Path) -> Result<Moved> {
        let procs = fs::read_to_string(own_group.join("cgroup.procs"))?;
        let others = procs
            .split_ascii_whitespace()
            .filter(|pid| *pid != std::process::id().to_string())
            .count();
        if others > 0 {
            bail!("{others} other processes are in this group, so its children cannot have limits");
        }
        let leaf = own_group.join(format!("{PREFIX}-{}", std::process::id()));
        fs::create_dir(&leaf)?;
        let moved = Moved {
            own_group: own_group.to_path_buf(),
            leaf,
        };
        write_existing(&moved.leaf.join("cgroup.procs"), "0")?;
        write_existing(&own_group.join("cgroup.subtree_control"), "+memory")?;
        Ok(moved)
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        let _ = write_existing(&self.own_group.join("cgroup.subtree_control"), "-memory");
        let _ = write_existing(&self.own_group.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(&self.leaf);
    }
}

/// Enters the group whose `cgroup.procs` file this is, with all threads.
pub(crate) fn enter(procs_file: &Path) -> Result<()> {
    write_existing(procs_file, "0")
        .with_context(|| format!("{}: cannot enter the memory group", procs_file.display()))
}

/// Writes to a file of the kernel; such files are never created by writing.
fn write_existing(path: &Path, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    io::Write::write_all(&mut file, value.as_bytes())
}

/// The value of `key` in lines of `key value`.
fn flat_keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

/// The hierarchy that has the memory controller.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    mount_point: PathBuf,
    /// The group of this process, as a folder below `mount_point`.
    own_group: PathBuf,
}

impl Hierarchy {
    /// From the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`. A version 1 hierarchy with the memory
    /// controller takes precedence: the controller can be in one hierarchy only, and version 2 then lacks it.
    fn find(mountinfo: &str, own_cgroup: &str) -> Option<Hierarchy> {
        let own_path = |is_it: &dyn Fn(&str, &str) -> bool| {
            own_cgroup.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':');
                let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
                is_it(id, controllers).then(|| path.to_string())
            })
        };
        let v1 = mount(mountinfo, "cgroup", "memory").and_then(|(mount_point, root)| {
            let path =
                own_path(&|_, controllers| controllers.split(',').any(|name| name == "memory"))?;
            Some(Hierarchy {
                version: Version::V1,
                own_group: below(&mount_point, &root, &path),
                mount_point,
            })
        });
        v1.or_else(|| {
            let (mount_point, root) = mount(mountinfo, "cgroup2", "")?;
            let path = own_path(&|id, controllers| id == "0" && controllers.is_empty())?;
            Some(Hierarchy {
                version: Version::V2,
                own_group: below(&mount_point, &root, &path),
                mount_point,
            })
        })
    }
}

/// Mount point and root of the first mount of type `kind` whose super options contain `option` (any, if empty).
fn mount(mountinfo: &str, kind: &str, option: &str) -> Option<(PathBuf, String)> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let found_kind = after.next()?;
        let options = after.nth(1)?;
        let has_option = option.is_empty() || options.split(',').any(|name| name == option);
        (found_kind == kind && has_option).then(|| (PathBuf::from(unescape(point)), unescape(root)))
    })
}

/// The folder of group `path` where the hierarchy's group `root` is mounted at `mount_point`. In a container the path may
/// lie outside of what is mounted; the mount point is then the nearest group that can be named.
fn below(mount_point: &Path, root: &str, path: &str) -> PathBuf {
    match Path::new(path).strip_prefix(root) {
        Ok(rest) if mount_point.join(rest).is_dir() => mount_point.join(rest),
        _ => mount_point.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1_MOUNTS: &str = "\
        30 24 0:26 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
        31 24 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        32 24 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const V2_MOUNTS: &str =
        "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn names_lead_back_to_their_process() {
        assert_eq!(owner_of(&group_name(4711, 3)), Some(4711));
        for foreign in [
            "faultline-bench",
            "faultline-bench-12",
            "faultline-bench-x-1",
            "user.slice",
            "faultline-bench-1-2-3",
        ] {
            assert_eq!(owner_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn version_1_wins_where_it_has_the_controller() {
        let own = "9:name=systemd:/\n4:memory:/box/7\n0::/\n";
        let found = Hierarchy::find(V1_MOUNTS, own).unwrap();
        assert_eq!(found.version, Version::V1);
        assert_eq!(found.mount_point, Path::new("/sys/fs/cgroup/memory"));
        // The group itself is not on this machine, so the mount point stands for it.
        assert!(found.own_group.starts_with("/sys/fs/cgroup/memory"));
    }

    #[test]
    fn version_2_alone() {
        let found = Hierarchy::find(V2_MOUNTS, "0::/user.slice/a.scope\n").unwrap();
        assert_eq!(found.version, Version::V2);
        assert_eq!(found.mount_point, Path::new("/sys/fs/cgroup"));
        assert_eq!(Hierarchy::find("", "0::/\n"), None);
    }

    /// A folder with files as a version 2 group has them.
    fn fake_group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn a_version_2_group_gets_its_limits_and_is_read() {
        let files = [
            ("memory.max", "max\n"),
            ("memory.swap.max", "max\n"),
            ("memory.peak", "123456\n"),
            ("memory.events", "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\n"),
        ];
        let folder = fake_group(&files);
        let group = Group {
            version: Version::V2,
            folder: folder.path().to_path_buf(),
            limit_bytes: 64 << 20,
        };
        group.set_limit().unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(read("memory.max").starts_with("67108864"));
        assert!(read("memory.swap.max").starts_with('0'));
        assert_eq!((group.peak_bytes(), group.oom_kills()), (Some(123_456), 1));
        // Kernels without swap accounting and without a peak.
        for name in ["memory.swap.max", "memory.peak"] {
            fs::remove_file(folder.path().join(name)).unwrap();
        }
        group.set_limit().unwrap();
        assert_eq!(group.peak_bytes(), None);
        fs::remove_file(folder.path().join("memory.max")).unwrap();
        assert!(group.set_limit().is_err());
        fs::remove_file(folder.path().join("memory.events")).unwrap();
        drop(group);
        assert!(!folder.path().exists());
    }

    #[test]
    fn a_version_2_parent_must_have_the_controller_for_its_children() {
        let folder = fake_group(&[("cgroup.subtree_control", "cpu io\n")]);
        let controller = Controller {
            version: Version::V2,
            parent: folder.path().to_path_buf(),
            moved: None,
        };
        let message = controller.usable().unwrap_err().to_string();
        assert!(
            message.contains("not enabled for its children"),
            "{message}"
        );
        // A group that refuses its limit is removed again.
        fs::write(
            folder.path().join("cgroup.subtree_control"),
            "cpu io memory\n",
        )
        .unwrap();
        assert!(controller.usable().is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        // Others in this process's group keep it from making room for children.
        fs::write(folder.path().join("cgroup.procs"), "1\n").unwrap();
        let message = Moved::into_leaf(folder.path()).unwrap_err().to_string();
        assert!(message.contains("1 other processes"), "{message}");
    }

    #[test]
    fn paths_below_a_mounted_subtree() {
        let mount_point = tempfile::tempdir().unwrap();
        fs::create_dir_all(mount_point.path().join("inner/leaf")).unwrap();
        assert_eq!(
            below(mount_point.path(), "/", "/inner/leaf"),
            mount_point.path().join("inner/leaf")
        );
        assert_eq!(
            below(mount_point.path(), "/docker/abc", "/docker/abc/inner"),
            mount_point.path().join("inner")
        );
        assert_eq!(
            below(mount_point.path(), "/docker/abc", "/elsewhere"),
            mount_point.path()
        );
    }

    #[test]
    fn out_of_memory_counts() {
        assert_eq!(
            flat_keyed("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "oom_kill"),
            Some(2)
        );
        assert_eq!(
            flat_keyed("low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n", "oom_kill"),
            Some(1)
        );
        assert_eq!(flat_keyed("", "oom_kill"), None);
    }

    #[test]
    fn a_real_group_is_made_and_removed_where_permitted() {
        let controller = match Controller::detect() {
            Ok(controller) => controller,
            Err(error) => return eprintln!("skipped: {error:#}"),
        };
        let group = controller.create(64 << 20).unwrap();
        let folder = group.folder.clone();
        assert!(folder.is_dir());
        assert_eq!(group.oom_kills(), 0);
        assert!(group.procs_file().exists());
        drop(group);
        assert!(!folder.exists());
    }
}
