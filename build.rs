//! Stamps the commit into the binary. Version comes from Cargo, the upstream build and the patch-set digest from
//! llama-rs, so that they name what was really linked.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=FAULTLINE_GIT_COMMIT={commit}");
    // The log of HEAD changes with every commit and every checkout. A path that does not exist would make Cargo run
    // this script on every build.
    for name in ["logs/HEAD", "HEAD"] {
        if let Some(path) =
            git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists())
        {
            println!("cargo::rerun-if-changed={path}");
            break;
        }
    }
}

/// What git prints, or nothing: without git, or outside of a repository, the build goes on.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
