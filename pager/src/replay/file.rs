//! Where patterns are kept.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::{Pattern, Replay, ReplayReport};
use crate::engine::ModelFiles;
use crate::slices::Slices;

/// Longer files are not read: that of a model with a million experts has 8 MB.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// Models whose patterns are kept; those that ran longest ago go first.
const FILES_MAX: usize = 64;

/// What tells a model, in one state, from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Of each part: size, time of modification in seconds and nanoseconds.
    pub(super) parts: Vec<(u64, i64, u32)>,
    pub(super) n_dense: u32,
    pub(super) n_slices: u32,
}

impl Identity {
    pub(super) fn words(&self) -> Vec<u32> {
        let halves = |number: u64| [number as u32, (number >> 32) as u32];
        let mut words = vec![self.n_dense, self.n_slices];
        for (size_bytes, seconds, nanoseconds) in &self.parts {
            words.extend(halves(*size_bytes));
            words.extend(halves(seconds.cast_unsigned()));
            words.push(*nanoseconds);
        }
        words
    }
}

/// The file of a model.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    path: PathBuf,
    identity: Identity,
}

/// What a start finds.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) pattern: Option<Pattern>,
    pub(crate) report: ReplayReport,
    /// Where the next pattern goes.
    pub(crate) store: Option<Store>,
}

impl Store {
    /// The file of the model whose first part is at `model`.
    fn new(folder: &Path, model: &Path, files: &ModelFiles, slices: &Slices) -> Store {
        let absolute = fs::canonicalize(model).unwrap_or_else(|_| model.to_owned());
        let stem = absolute.file_stem().unwrap_or_default().to_string_lossy();
        let hash = crc32fast::hash(absolute.as_os_str().as_bytes());
        let parts = files.files().iter().map(|file| {
            let (seconds, nanoseconds) = file.modified();
            (file.size_bytes(), seconds, nanoseconds as u32)
        });
        Store {
            path: folder.join(format!("{stem}-{hash:08x}.replay")),
            identity: Identity {
                parts: parts.collect(),
                n_dense: slices.dense_tensors().len() as u32,
                n_slices: slices.len() as u32,
            },
        }
    }

    fn read(&self) -> Result<Pattern, String> {
        let name = self.path.display();
        let mut bytes = Vec::new();
        let file = match fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err("this model has not run yet".to_owned());
            }
            Err(error) => return Err(format!("{name}: {error}")),
        };
        let read = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
        read.map_err(|error| format!("{name}: {error}"))?;
        Pattern::decode(&bytes, &self.identity).map_err(|error| format!("{name}: {error}"))
    }

    /// Keeps a pattern in place of the one before: whoever reads sees the one or the other.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn write(&self, pattern: &Pattern) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        // Of one process: several runs of a model may end at the same time.
        let temporary = self
            .path
            .with_extension(format!("{}.tmp", std::process::id()));
        let result = fs::File::create(&temporary)
            .and_then(|mut file| file.write_all(&pattern.encode(&self.identity)))
            .and_then(|()| fs::rename(&temporary, &self.path));
        match result {
            Ok(()) => forget_old(folder),
            Err(_) => {
                let _ = fs::remove_file(&temporary);
            }
        }
        result
    }
}

/// Removes what is more than [`FILES_MAX`] files; what cannot be removed stays.
fn forget_old(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let is_ours = |path: &PathBuf| {
        let extension = path.extension();
        extension.is_some_and(|extension| extension == "replay" || extension == "tmp")
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<_> = paths
        .filter(is_ours)
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    files.sort_unstable();
    for (_, path) in files.iter().rev().skip(FILES_MAX) {
        let _ = fs::remove_file(path);
    }
}

impl Kept {
    /// What is known of a model.
    pub(crate) fn of(replay: &Replay, model: &Path, files: &ModelFiles, slices: &Slices) -> Kept {
        let Some(folder) = replay.folder() else {
            return Kept {
                pattern: None,
                report: ReplayReport::Off,
                store: None,
            };
        };
        let store = Store::new(folder, model, files, slices);
        let (pattern, report) = match store.read() {
            Ok(pattern) => {
                let report = ReplayReport::Known {
                    n_first: pattern.n_first(),
                    n_slices: pattern.program().len(),
                };
                (Some(pattern), report)
            }
            Err(reason) => (None, ReplayReport::Unknown { reason }),
        };
        Kept {
            pattern,
            report,
            store: Some(store),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(folder: &Path, model: &Path) -> Kept {
        let files = ModelFiles::open([model]).unwrap();
        let slices = Slices::from_tables(&[], None).unwrap();
        let replay = Replay::In(folder.join("not/yet/there"));
        Kept::of(&replay, model, &files, &slices)
    }

    #[test]
    fn a_pattern_is_found_again_until_the_model_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("some model.gguf");
        fs::write(&model, [7; 8192]).unwrap();
        let first = kept(folder.path(), &model);
        assert!(first.report.to_string().contains("has not run yet"));
        let store = first.store.unwrap();
        store.write(&Pattern::default()).unwrap();
        assert_eq!(
            kept(folder.path(), &model).pattern,
            Some(Pattern::default())
        );
        // Another path has another file.
        let copy = folder.path().join("copy.gguf");
        fs::copy(&model, &copy).unwrap();
        assert!(kept(folder.path(), &copy).pattern.is_none());

        fs::write(&model, [7; 8193]).unwrap();
        let later = kept(folder.path(), &model);
        let report = later.report.to_string();
        assert!(
            later.pattern.is_none() && report.contains("written to since"),
            "{report}"
        );
        let names: Vec<_> = fs::read_dir(folder.path().join("not/yet/there"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 1, "nothing temporary is left: {names:?}");
    }

    #[test]
    fn the_oldest_files_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let replays = folder.path().join("not/yet/there");
        fs::create_dir_all(&replays).unwrap();
        for number in 0..FILES_MAX + 3 {
            let file = fs::File::create(replays.join(format!("{number}.replay"))).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            file.set_modified(time).unwrap();
        }
        fs::write(replays.join("other"), "stays").unwrap();
        let model = folder.path().join("model.gguf");
        fs::write(&model, [7; 8192]).unwrap();
        let store = kept(folder.path(), &model).store.unwrap();
        store.write(&Pattern::default()).unwrap();
        assert!(kept(folder.path(), &model).pattern.is_some());
        let is_there = |name: &str| replays.join(name).exists();
        assert!(!is_there("3.replay") && is_there("4.replay") && is_there("other"));
        assert_eq!(fs::read_dir(&replays).unwrap().count(), FILES_MAX + 1);
    }

    #[test]
    fn a_folder_that_cannot_be_is_no_error_of_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model.gguf");
        fs::write(&model, [7; 8192]).unwrap();
        let files = ModelFiles::open([&model]).unwrap();
        let slices = Slices::from_tables(&[], None).unwrap();
        // A file is in the place of the folder.
        let kept = Kept::of(&Replay::In(model.clone()), &model, &files, &slices);
        assert!(matches!(kept.report, ReplayReport::Unknown { .. }));
        assert!(kept.store.unwrap().write(&Pattern::default()).is_err());
    }
}
