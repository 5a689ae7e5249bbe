//! Sequences of the KV cache in files, from when a model leaves until a request begins as one of them does.
//!
//! They are copies of text that users wrote, so nothing is kept unless the configuration asks for it (`keep_state`), and nobody but the
//! owner may read it. The files of a model have names that begin with its own and a hash of its path; the rest of the name is a hash of
//! the tokens, so the same sequence is never there twice. A file that is broken, or of a model that was written to since, of
//! other settings or of another program, is removed and never an error.

mod file;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use llama_rs::{Backend, Token};
use sha2::{Digest, Sha256};

use crate::config::ModelConfig;
use crate::memory::MappedFile;

pub(crate) use file::Identity;

use file::Head;

/// Files of all models; those that were used longest ago go first.
const FILES_MAX: usize = 64;

/// Bytes of all models' files, unless a model may have more.
const BYTES_MAX: u64 = 1 << 30;

/// A temporary file that is older was left by a process that ended.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(60);

/// A state is read for this share of its tokens or more: reading one takes far less time than computing it.
const SHARE_MIN: usize = 32;

/// The states of a model.
#[derive(Debug)]
pub(crate) struct States {
    folder: PathBuf,
    /// What the names of its files begin with.
    prefix: String,
    identity: Identity,
    limit_bytes: u64,
    stored: Vec<Stored>,
}

/// A file.
#[derive(Debug)]
struct Stored {
    path: PathBuf,
    head: Head,
}

impl States {
    /// The states of a model, where the configuration says that they are kept and there is a cache folder.
    pub(crate) fn of(config: &ModelConfig, files: &[MappedFile]) -> Option<States> {
        if config.keep_state_bytes == 0 {
            return None;
        }
        let Some(cache) = pager::cache_folder() else {
            tracing::warn!(
                model = config.name,
                "keep_state: there is no cache folder: set FAULTLINE_CACHE"
            );
            return None;
        };
        let identity = identity(config, files).ok()?;
        let first = files.first()?.path.as_path();
        Some(States::open(
            &cache.join("state"),
            first,
            identity,
            config.keep_state_bytes,
        ))
    }

    /// Looks for the files of the model at `model`, and removes those that are of no use.
    pub(crate) fn open(
        folder: &Path,
        model: &Path,
        identity: Identity,
        limit_bytes: u64,
    ) -> States {
        let stem = model.file_stem().unwrap_or_default().to_string_lossy();
        let hash = crc32fast::hash(model.as_os_str().as_bytes());
        let mut states = States {
            folder: folder.to_owned(),
            prefix: format!("{stem}-{hash:08x}."),
            identity,
            limit_bytes,
            stored: Vec::new(),
        };
        for entry in entries(folder) {
            if !states.is_own(&entry.path) {
                continue;
            }
            let head =
                file::read_head(&entry.path).and_then(|head| match head.identity == identity {
                    true => Ok(head),
                    false => {
                        Err("it is of another state of the model, or of other settings".to_owned())
                    }
                });
            match head {
                Ok(head) => states.stored.push(Stored {
                    path: entry.path,
                    head,
                }),
                Err(reason) => forget(&entry.path, &reason),
            }
        }
        states
    }

    fn is_own(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().as_bytes();
        is_state(path) && name.starts_with(self.prefix.as_bytes())
    }

    /// Most bytes that the model's files may have.
    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// The state that shares the longest beginning with `tokens`, and how many tokens of it are of use: more than `floor`, and fewer than
    /// there are, since the last one gives the next. States of more than `room` tokens do not count. `cuts`: a part of one is of
    /// use, too.
    pub(crate) fn best(
        &self,
        tokens: &[Token],
        floor: usize,
        room: usize,
        cuts: bool,
    ) -> Option<(usize, usize)> {
        let usable = |stored: &Stored| {
            let stored = &stored.head.tokens;
            let count = n_shared(stored, tokens).min(tokens.len().saturating_sub(1));
            let is_worth_it = match cuts {
                true => count * SHARE_MIN >= stored.len(),
                false => count == stored.len(),
            };
            (stored.len() <= room && is_worth_it).then_some(count)
        };
        let counts = self.stored.iter().enumerate();
        counts
            .filter_map(|(index, stored)| Some((index, usable(stored)?)))
            .filter(|(_, count)| *count > floor)
            .max_by_key(|(_, count)| *count)
    }

    /// Tokens of a state.
    pub(crate) fn tokens(&self, index: usize) -> &[Token] {
        &self.stored[index].head.tokens
    }

    /// The bytes of a state. `None`, and it is gone, if its file is broken.
    pub(crate) fn read(&mut self, index: usize) -> Option<Vec<u8>> {
        let Stored { path, head } = &self.stored[index];
        match file::read_state(path, head) {
            Ok(state) => {
                mark_used(path);
                Some(state)
            }
            Err(reason) => {
                self.forget(index, &reason);
                None
            }
        }
    }

    /// Removes a state.
    pub(crate) fn forget(&mut self, index: usize, reason: &str) {
        forget(&self.stored.remove(index).path, reason);
    }

    /// The length of the file of these tokens, if there is one; it then counts as used now.
    pub(crate) fn renew(&mut self, tokens: &[Token]) -> Option<u64> {
        let stored = self
            .stored
            .iter()
            .find(|stored| stored.head.tokens == tokens)?;
        mark_used(&stored.path);
        Some(stored.head.file_bytes())
    }

    /// Writes a state, and gives the length of its file. `Ok(None)` if `may_go_on` said no in between.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn write(
        &mut self,
        tokens: &[Token],
        state: &[u8],
        may_go_on: &dyn Fn() -> bool,
    ) -> io::Result<Option<u64>> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.folder)?;
        let head = Head {
            identity: self.identity,
            tokens: tokens.to_vec(),
            state_bytes: state.len() as u64,
        };
        let mut hash = Sha256::new();
        hash.update(self.identity);
        tokens
            .iter()
            .for_each(|token| hash.update(token.0.to_le_bytes()));
        let hash = hash.finalize();
        let hash: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let path = self.folder.join(format!("{}{hash}.state", self.prefix));
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        if !file::write(&path, &temporary, &head, state, may_go_on)? {
            return Ok(None);
        }
        let file_bytes = head.file_bytes();
        self.stored.push(Stored { path, head });
        Ok(Some(file_bytes))
    }

    /// Removes what is older than others and exceeds the limits: of this model, and of all. Also what a longer one of `written`
    /// has made superfluous, which begins with it.
    pub(crate) fn tidy(&mut self, written: &[Vec<Token>]) {
        let is_covered = |tokens: &[Token]| {
            let is_longer = |new: &Vec<Token>| new.len() > tokens.len() && new.starts_with(tokens);
            written.iter().any(is_longer) && written.iter().all(|new| new != tokens)
        };
        for stored in self
            .stored
            .iter()
            .filter(|stored| is_covered(&stored.head.tokens))
        {
            let _ = fs::remove_file(&stored.path);
        }
        let mut files = entries(&self.folder);
        files.sort_unstable_by_key(|file| std::cmp::Reverse(file.used));
        let (mut own_bytes, mut all_bytes, mut count) = (0, 0, 0);
        for file in files {
            if !is_state(&file.path) {
                let age = SystemTime::now()
                    .duration_since(file.used)
                    .unwrap_or_default();
                if is_temporary(&file.path) && age > TEMPORARY_AGE_MAX {
                    let _ = fs::remove_file(&file.path);
                }
                continue;
            }
            let own = if self.is_own(&file.path) {
                file.bytes
            } else {
                0
            };
            let has_room = own_bytes + own <= self.limit_bytes
                && all_bytes + file.bytes <= BYTES_MAX.max(self.limit_bytes)
                && count < FILES_MAX;
            if has_room {
                own_bytes += own;
                all_bytes += file.bytes;
                count += 1;
            } else {
                let _ = fs::remove_file(&file.path);
            }
        }
    }
}

/// Tokens with which both begin.
pub(crate) fn n_shared(left: &[Token], right: &[Token]) -> usize {
    let pairs = left.iter().zip(right);
    pairs.take_while(|(left, right)| left == right).count()
}

/// What a state is of: nothing that decides on its numbers or its form may be another.
fn identity(config: &ModelConfig, files: &[MappedFile]) -> io::Result<Identity> {
    let info = Backend::build_info();
    let mut hash = Sha256::new();
    let settings = format!(
        "{} {} {} n_ctx {:?} repack {} prefetch {}",
        env!("CARGO_PKG_VERSION"),
        info.llama_build,
        info.patch_set_digest,
        config.n_ctx,
        config.repack,
        config.prefetch.as_str(),
    );
    hash.update(settings);
    for file in files {
        // The time of change cannot be set, so a file that was copied over with its old time of modification is noticed, too.
        let metadata = fs::metadata(&file.path)?;
        let times = [
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ];
        hash.update(metadata.size().to_le_bytes());
        hash.update(metadata.ino().to_le_bytes());
        times
            .iter()
            .for_each(|time| hash.update(time.to_le_bytes()));
    }
    Ok(hash.finalize().into())
}

/// A file of the folder.
struct Entry {
    path: PathBuf,
    used: SystemTime,
    bytes: u64,
}

fn entries(folder: &Path) -> Vec<Entry> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let entry = |entry: fs::DirEntry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some(Entry {
            path: entry.path(),
            used: metadata.modified().ok()?,
            bytes: metadata.len(),
        })
    };
    entries.filter_map(entry).collect()
}

fn is_state(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("state"))
}

fn is_temporary(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("tmp"))
}

fn forget(path: &Path, reason: &str) {
    tracing::info!("{}: {reason}; removed", path.display());
    let _ = fs::remove_file(path);
}

/// Those that were used last stay longest.
fn mark_used(path: &Path) {
    if let Ok(file) = fs::File::open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}
