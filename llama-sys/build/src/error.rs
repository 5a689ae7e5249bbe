//! The one error type of the build.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why a stage of the build failed. Messages name the object and, where one exists, the command that helps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A variable that Cargo sets for build scripts is absent.
    #[error("environment variable {0} is not set: this runs inside a Cargo build script")]
    MissingEnv(&'static str),
    /// A `LLAMA_SYS_*` variable holds a value that it cannot have.
    #[error("environment variable {name} is {value:?}, expected {expected}")]
    BadEnv {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        expected: &'static str,
    },
    /// Two settings exclude each other.
    #[error("{0}")]
    BadCombination(String),
    /// A file operation failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `write`.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The package that carries the upstream source could not be found.
    #[error(
        "cannot locate the llama.cpp source: {reason}\nfetch it with: {fetch}\nor name a tree with LLAMA_SYS_SOURCE"
    )]
    Locate {
        /// What Cargo said, or what its answer lacks.
        reason: String,
        /// The command that fetches the package.
        fetch: String,
    },
    /// A folder is not the expected upstream tree.
    #[error("{} is not the expected llama.cpp tree: {reason}{}", path.display(), hint(.fetch))]
    NotTheTree {
        /// The folder.
        path: PathBuf,
        /// What is missing or different.
        reason: String,
        /// The command that fetches the package again, when the folder is Cargo's.
        fetch: Option<String>,
    },
    /// The patch folder does not hold a consistent series.
    #[error("patch series {}: {reason}", path.display())]
    Series {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// One patch of the series does not apply.
    #[error("patch {patch}: {file}: {reason}")]
    Apply {
        /// File name of the patch.
        patch: String,
        /// The file of the tree that it changes.
        file: String,
        /// The hunk and the cause.
        reason: String,
    },
    /// The patched tree is not what `SHA256SUMS` says.
    #[error(
        "the patched tree does not match {}:\n{}\nafter changing a patch on purpose, run: cargo run -p llama-build -- refresh-sums",
        sums.display(), differences.join("\n")
    )]
    Verify {
        /// The list of sums.
        sums: PathBuf,
        /// One line a difference.
        differences: Vec<String>,
    },
    /// A program could not be started or failed.
    #[error("{command}\n{}{}", outcome(.status, .start), tail(.output))]
    Command {
        /// The whole command line.
        command: String,
        /// How it ended, when it started.
        status: Option<ExitStatus>,
        /// Why it did not start.
        start: Option<io::Error>,
        /// The end of what it printed, when that was captured.
        output: String,
    },
    /// A program or library of the system is missing.
    #[error(
        "{what}\ninstall it with: scripts/setup.sh (Debian and Ubuntu: apt-get install {package})"
    )]
    MissingTool {
        /// What is missing and what it is needed for.
        what: String,
        /// The package that holds it.
        package: &'static str,
    },
    /// A result of the build is not where it must be.
    #[error("the build succeeded, but {} is missing", .0.display())]
    MissingOutput(PathBuf),
    /// bindgen refused the headers.
    #[error("cannot generate bindings: {0}")]
    Bindings(String),
    /// The shim does not compile.
    #[error("cannot compile {}: {reason}", path.display())]
    Shim {
        /// The C++ file.
        path: PathBuf,
        /// What the compiler said.
        reason: String,
    },
}

/// A result of a stage.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Turns an [`io::Error`] into [`Error::Io`], for `map_err`.
pub(crate) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}

fn hint(fetch: &Option<String>) -> String {
    match fetch {
        Some(command) => format!("\nremove that folder and fetch it again with: {command}"),
        None => String::new(),
    }
}

fn outcome(status: &Option<ExitStatus>, start: &Option<io::Error>) -> String {
    match (status, start) {
        (Some(status), _) => format!("failed: {status}"),
        (None, Some(error)) => format!("cannot be started: {error}"),
        (None, None) => "failed".to_owned(),
    }
}

fn tail(output: &str) -> String {
    const LINES: usize = 60;
    let lines: Vec<&str> = output.trim_end().lines().collect();
    if lines.is_empty() {
        return String::new();
    }
    let from = lines.len().saturating_sub(LINES);
    format!("\n{}", lines[from..].join("\n"))
}
