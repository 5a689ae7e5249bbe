//! Copying a tree so that cmake rebuilds only what changed.
//!
//! The first copy is made under a temporary name and renamed, so that the destination is either absent or complete.
//! Later copies go file by file: a file whose content is already right keeps its modification time.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Result, io_error};
use crate::patch::Overlay;

/// What a copy did, in files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// New in the destination.
    pub created: usize,
    /// Had another content.
    pub changed: usize,
    /// Were right already.
    pub kept: usize,
    /// Were in the destination only.
    pub removed: usize,
}

/// Makes `destination` equal to `source` with `overlay` laid over it, without the folders `skipped` (relative paths;
/// files of the overlay below them are written all the same).
///
/// Nobody else may use `destination` meanwhile.
///
/// # Errors
///
/// A file cannot be read or written. The destination is then absent, when it was absent before, or partly updated; the
/// next call completes it.
pub fn tree(
    source: &Path,
    overlay: &Overlay,
    skipped: &[&str],
    destination: &Path,
) -> Result<Report> {
    if destination.exists() {
        return update(source, overlay, skipped, destination);
    }
    let mut name = destination.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = destination.with_file_name(name);
    remove_dir(&fresh)?;
    fs::create_dir_all(&fresh).map_err(io_error("create", &fresh))?;
    let report = update(source, overlay, skipped, &fresh)?;
    fs::rename(&fresh, destination).map_err(io_error("rename", &fresh))?;
    Ok(report)
}

fn update(
    source: &Path,
    overlay: &Overlay,
    skipped: &[&str],
    destination: &Path,
) -> Result<Report> {
    let mut report = Report::default();
    let mut wanted = BTreeSet::new();
    for path in list(source, skipped)? {
        if overlay.get(&path).is_none() {
            let from = source.join(&path);
            let content = fs::read(&from).map_err(io_error("read", &from))?;
            put(&destination.join(&path), &content, &mut report)?;
            wanted.insert(path);
        }
    }
    for (path, content) in overlay.iter() {
        if let Some(content) = content {
            put(&destination.join(path), content, &mut report)?;
            wanted.insert(path.to_owned());
        }
    }
    for path in list(destination, &[])? {
        if !wanted.contains(&path) {
            let extra = destination.join(&path);
            fs::remove_file(&extra).map_err(io_error("remove", &extra))?;
            report.removed += 1;
        }
    }
    Ok(report)
}

/// Writes `content` unless the file holds it already.
fn put(path: &Path, content: &[u8], report: &mut Report) -> Result<()> {
    match fs::read(path) {
        Ok(old) if old == content => {
            report.kept += 1;
            return Ok(());
        }
        Ok(_) => report.changed += 1,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            report.created += 1;
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(io_error("create", parent))?;
            }
        }
        Err(error) => return Err(io_error("read", path)(error)),
    }
    fs::write(path, content).map_err(io_error("write", path))
}

/// The files below `root`, relative with `/`, sorted; version control and the folders `skipped` are left out.
pub(crate) fn list(root: &Path, skipped: &[&str]) -> Result<Vec<String>> {
    let mut files = Vec::new();
    let mut folders: Vec<(PathBuf, String)> = vec![(root.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(io_error("list", &folder))? {
            let entry = entry.map_err(io_error("list", &folder))?;
            let name = entry.file_name();
            if name == ".git" {
                continue;
            }
            let path = format!("{prefix}{}", name.to_string_lossy());
            // Follows symbolic links, which a tree of the user may contain.
            let full = entry.path();
            if fs::metadata(&full)
                .map_err(io_error("read", &full))?
                .is_dir()
            {
                if !skipped.contains(&path.as_str()) {
                    folders.push((full, format!("{path}/")));
                }
            } else {
                files.push(path);
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Removes a folder with all it holds; a missing one is fine.
pub(crate) fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::test_files::{read, write};

    fn set_old(path: &Path) -> SystemTime {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(time)
            .unwrap();
        time
    }

    #[test]
    fn the_first_copy_is_complete_and_without_what_is_not_needed() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        write(&from.join("a/b.txt"), "b");
        write(&from.join("gpu/k.cu"), "k");
        write(&from.join("gpu2/k.cu"), "k");
        write(&from.join(".git/HEAD"), "x");
        // Left over from a copy that was interrupted.
        write(&dir.path().join("to.new/junk"), "x");
        let report = tree(&from, &Overlay::empty(), &["gpu"], &to).unwrap();
        assert_eq!(
            report,
            Report {
                created: 2,
                ..Report::default()
            }
        );
        assert_eq!(list(&to, &[]).unwrap(), ["a/b.txt", "gpu2/k.cu"]);
        assert!(!dir.path().join("to.new").exists());
    }

    #[test]
    fn equal_files_keep_their_times_and_others_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        write(&from.join("same.txt"), "same");
        write(&from.join("other.txt"), "old");
        write(&from.join("gone.txt"), "gone");
        tree(&from, &Overlay::empty(), &[], &to).unwrap();
        let time = set_old(&to.join("same.txt"));
        set_old(&to.join("other.txt"));

        write(&from.join("other.txt"), "new");
        fs::remove_file(from.join("gone.txt")).unwrap();
        let report = tree(&from, &Overlay::empty(), &[], &to).unwrap();

        assert_eq!(
            report,
            Report {
                created: 0,
                changed: 1,
                kept: 1,
                removed: 1
            }
        );
        assert_eq!(
            fs::metadata(to.join("same.txt"))
                .unwrap()
                .modified()
                .unwrap(),
            time
        );
        assert_ne!(
            fs::metadata(to.join("other.txt"))
                .unwrap()
                .modified()
                .unwrap(),
            time
        );
        assert_eq!(read(&to.join("other.txt")), "new");
    }
}
