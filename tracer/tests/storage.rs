//! Disks that are full or read-only, and sizes that cannot be.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{size_for, tables};
use tracer::{Error, LogReader, LogWriter, OnFull};

const FOLDER: &str = "TRACER_TEST_STORAGE_FOLDER";

/// Runs one of this file's tests on a tmpfs that only it sees, and says whether that was possible.
fn on_tmpfs(options: &str, test: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o "$1" none "$2" || exit 77; shift 2; exec "$@""#;
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script, "sh"])
        .args([options.as_ref(), folder.path().as_os_str()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(FOLDER, folder.path())
        .output();
    let output = match output {
        Ok(output) if output.status.code() != Some(77) => output,
        _ => {
            println!("skipped: no mount namespace with a tmpfs can be made here");
            return false;
        }
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.starts_with("unshare:") {
        println!("skipped: {stderr}");
        return false;
    }
    assert!(
        output.status.success(),
        "{}{stderr}",
        String::from_utf8_lossy(&output.stdout)
    );
    true
}

fn n_files(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn child_on_a_small_disk() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let folder = Path::new(&folder);
    let path = folder.join("run.ftrace");
    let error = LogWriter::create(&path, &tables(), 1 << 20, OnFull::Wrap).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NoSpace { needed_bytes, .. } if needed_bytes <= 1 << 20
        ),
        "{error}"
    );
    assert_eq!(n_files(folder), 0);
    LogWriter::create(&path, &tables(), 64 << 10, OnFull::Wrap).unwrap();
    assert_eq!(n_files(folder), 1);
}

#[test]
fn a_full_disk_is_an_error_at_the_beginning_and_leaves_nothing() {
    on_tmpfs("size=128k", "child_on_a_small_disk");
}

#[test]
fn child_on_a_read_only_disk() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let path = Path::new(&folder).join("run.ftrace");
    let error = LogWriter::create(path, &tables(), 1 << 20, OnFull::Wrap).unwrap_err();
    assert!(error.to_string().contains("Read-only"), "{error}");
}

#[test]
fn a_read_only_disk_is_an_error() {
    on_tmpfs("ro", "child_on_a_read_only_disk");
}

#[test]
fn child_with_a_limit_on_file_sizes() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let folder = Path::new(&folder);
    let path = folder.join("run.ftrace");
    let error = LogWriter::create(&path, &tables(), 1 << 20, OnFull::Wrap).unwrap_err();
    assert!(matches!(error, Error::FileSizeLimit { .. }), "{error}");
    assert_eq!(n_files(folder), 0);
}

#[test]
fn a_limit_on_file_sizes_is_an_error_and_not_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args(["-c", r#"ulimit -f 16 && exec "$@""#, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_with_a_limit_on_file_sizes", "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_size_without_room_for_a_record_names_the_smallest_that_works() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    for capacity_bytes in [0, 4096, size_for(1) - 1, u64::MAX] {
        let error = LogWriter::create(&path, &tables(), capacity_bytes, OnFull::Wrap).unwrap_err();
        let Error::Capacity { minimum_bytes, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(minimum_bytes, size_for(1));
    }
    assert_eq!(n_files(folder.path()), 0);
    LogWriter::create(&path, &tables(), size_for(1), OnFull::Wrap).unwrap();
}

#[test]
fn only_files_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path(), Path::new("/dev/null"), Path::new("/")] {
        let error = LogWriter::create(path, &tables(), 1 << 20, OnFull::Wrap).unwrap_err();
        assert!(matches!(error, Error::NotAFile { .. }), "{error}");
    }
    let missing = folder.path().join("missing/run.ftrace");
    let error = LogWriter::create(missing, &tables(), 1 << 20, OnFull::Wrap).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn a_log_replaces_the_one_of_its_name_and_follows_links() {
    let folder = tempfile::tempdir().unwrap();
    let (path, link) = (folder.path().join("run.ftrace"), folder.path().join("last"));
    fs::write(&path, b"old").unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    LogWriter::create(&link, &tables(), 1 << 20, OnFull::Wrap).unwrap();
    assert!(link.is_symlink());
    assert_eq!(LogReader::open(&path).unwrap().n_records(), 0);
    assert_eq!(n_files(folder.path()), 2);
}
