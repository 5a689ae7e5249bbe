//! Generation that fails: a clear error, and nothing under the final name.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use model_shapes::{Shape, generate};

/// A folder in memory where there is one: finished files are synced, and a busy disk takes its
/// time.
fn temporary() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

const FOLDER: &str = "MODEL_SHAPES_TEST_FOLDER";

/// Not a test of its own: what the others run in a process with limits. Prints the error.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let path = Path::new(&folder).join("model.gguf");
    let shape = Shape::by_name("tiny-gpt-oss").unwrap();
    match generate(&shape, &path, 1, &mut |_, _| ()) {
        Ok(()) => println!("generated"),
        Err(error) => println!("error: {error}"),
    }
    let left = fs::read_dir(&folder).unwrap().count();
    println!("files left: {left}");
}

/// Runs [`child`] with `folder` after a line of shell has set its limits.
fn run(shell: &str, folder: &Path) -> Output {
    let program = std::env::current_exe().unwrap();
    Command::new("sh")
        .args([
            "-c",
            &format!("{shell} && exec \"$0\" child --exact --nocapture"),
        ])
        .arg(program)
        .env(FOLDER, folder)
        .output()
        .unwrap()
}

#[test]
fn a_file_that_may_not_grow_leaves_nothing() {
    let folder = temporary();
    // With the signal ignored, a write beyond the limit is an error as from a full disk.
    let output = run("trap '' XFSZ && ulimit -f 1000", folder.path());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("error: "), "{text}");
    assert!(text.contains("model.gguf: cannot write"), "{text}");
    assert!(text.contains("files left: 0"), "{text}");
}

#[test]
fn a_full_disk_is_named_with_its_numbers() {
    let folder = temporary();
    let mount = format!("mount -t tmpfs -o size=2m tmpfs \"${FOLDER}\"");
    let wrapped = format!("unshare -rm sh -c '{mount}'");
    let possible = Command::new("sh")
        .args(["-c", &wrapped])
        .env(FOLDER, folder.path())
        .output();
    if !possible.is_ok_and(|o| o.status.success()) {
        println!("skipped: this user cannot mount a small file system");
        return;
    }
    let program = std::env::current_exe().unwrap();
    let inner = format!("{mount} && exec \"$0\" child --exact --nocapture");
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", &inner])
        .arg(program)
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let needed = Shape::by_name("tiny-gpt-oss").unwrap().total_bytes();
    assert!(text.contains("not enough disk space"), "{text}");
    assert!(
        text.contains(&format!("{needed} bytes are needed, 2097152 are free")),
        "{text}"
    );
    assert!(text.contains("files left: 0"), "{text}");
}

#[test]
fn an_interrupted_generation_leaves_nothing() {
    let folder = temporary();
    let path = folder.path().join("model.gguf");
    fs::write(&path, "what was there").unwrap();
    let shape = Shape::by_name("tiny-gpt-oss").unwrap();
    let mut seen = 0;
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        generate(&shape, &path, 1, &mut |done, total| {
            seen = done;
            assert!(done < total / 2, "interrupted");
        })
    }));
    assert!(result.is_err() && seen > 0);
    assert_eq!(fs::read(&path).unwrap(), b"what was there");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let folder = temporary();
    let path = folder.path().join("no/model.gguf");
    let shape = Shape::by_name("tiny-llama").unwrap();
    let message = generate(&shape, &path, 1, &mut |_, _| ())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("no/model.gguf: cannot create"),
        "{message}"
    );
}
