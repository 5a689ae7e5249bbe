//! Files that are not in the repository, and may be on this machine: real models, and data that tests share.

use std::env;
use std::path::{Path, PathBuf};

/// The value of an environment variable that is set and not empty.
fn variable(name: &str) -> Option<PathBuf> {
    let value = env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

/// `$FAULTLINE_CACHE`, or `faultline` in `$XDG_CACHE_HOME` or `~/.cache`; `None` where none of these is known.
pub fn cache_folder() -> Option<PathBuf> {
    variable("FAULTLINE_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("faultline")))
        .or_else(|| Some(variable("HOME")?.join(".cache/faultline")))
}

/// A real model of the cache folder by its name, such as `smollm2-135m`; `None` after a line on standard error that says what is
/// skipped without it.
pub fn real_model(name: &str) -> Option<PathBuf> {
    let path = cache_folder()?.join("models").join(format!("{name}.gguf"));
    there(path, "scripts/fetch-models.sh downloads it")
}

/// A file or folder of the data that tests share, by its path in `$FAULTLINE_SHARED_DATA` or in the folder `shared/data` beside the
/// project; `None` as for [`real_model`].
pub fn shared_data(path: impl AsRef<Path>) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let folder = variable("FAULTLINE_SHARED_DATA").unwrap_or_else(beside);
    there(
        folder.join(path),
        "FAULTLINE_SHARED_DATA names another folder",
    )
}

fn there(path: PathBuf, remedy: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent; {remedy}", path.display());
    None
}
