//! The folder in which a flavor is built, and who may use it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{Result, io_error};

/// The folder of one flavor: `src` is the tree, `build` is cmake's. It is shared by all Cargo profiles and by everyone
/// who names the same base folder, so it may be used only while it is locked.
#[derive(Debug)]
pub struct Workdir {
    root: PathBuf,
    // Held until drop; the operating system releases it when the process ends.
    _lock: File,
}

impl Workdir {
    /// Opens `base/flavor`, creates it when needed, and waits until nobody else uses it.
    ///
    /// # Errors
    ///
    /// The folder cannot be created or locked.
    pub fn open(base: &Path, flavor: &str) -> Result<Workdir> {
        let root = base.join(flavor);
        fs::create_dir_all(&root).map_err(io_error("create", &root))?;
        let path = root.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        lock.lock().map_err(io_error("lock", &path))?;
        Ok(Workdir { root, _lock: lock })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The source tree.
    pub fn tree(&self) -> PathBuf {
        self.root.join("src")
    }

    /// cmake's build folder.
    pub fn build(&self) -> PathBuf {
        self.root.join("build")
    }
}

/// The base folder for a build script: two Cargo profiles have different `OUT_DIR`s but one target folder, and the C++
/// does not depend on the profile.
///
/// `out_dir` is `<target>[/<triple>]/<profile>/build/<package>-<hash>/out`.
pub fn base_for_out_dir(out_dir: &Path) -> PathBuf {
    match out_dir.ancestors().nth(4) {
        Some(target) => target.join("llama.cpp"),
        None => out_dir.join("llama.cpp"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_share_one_base() {
        let dev = base_for_out_dir(Path::new("/x/target/debug/build/llama-sys-0123/out"));
        let release = base_for_out_dir(Path::new("/x/target/release/build/llama-sys-4567/out"));
        assert_eq!(dev, Path::new("/x/target/llama.cpp"));
        assert_eq!(dev, release);
    }

    #[test]
    fn a_second_user_waits() {
        let dir = tempfile::tempdir().unwrap();
        let first = Workdir::open(dir.path(), "flavor").unwrap();
        let file = File::options()
            .write(true)
            .open(first.root().join("lock"))
            .unwrap();
        assert!(file.try_lock().is_err());
        drop(first);
        file.try_lock().unwrap();
    }
}
