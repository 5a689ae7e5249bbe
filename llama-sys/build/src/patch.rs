//! The patch series: reading it, applying it in process, checking the result.
//!
//! `git apply` is not used: in an ignored folder of another repository it skips every file and still succeeds. Whatever
//! applies a series, the result is checked against `SHA256SUMS`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use diffy::patch_set::{FileMode, FileOperation, FilePatch, ParseOptions, PatchSet};
use sha2::{Digest, Sha256};

use crate::digest;
use crate::error::{Error, Result, io_error};

/// The file that names the patches in order, one a line; `#` starts a comment.
pub const SERIES_FILE: &str = "series";

/// The file with `sha256  path` of every file of the patched tree that the series touches.
pub const SUMS_FILE: &str = "SHA256SUMS";

/// One patch: a mail as `git format-patch` writes it.
#[derive(Clone, Debug)]
pub struct Patch {
    /// Its file name.
    pub name: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// The patches in order.
#[derive(Clone, Debug)]
pub struct Series {
    folder: PathBuf,
    patches: Vec<Patch>,
}

/// What the series makes of the files that it touches. Paths are relative to the tree, with `/`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    files: BTreeMap<String, Option<Vec<u8>>>,
}

impl Overlay {
    /// No changes.
    pub fn empty() -> Overlay {
        Overlay::default()
    }

    /// The new content of the file at `path`, `Some(None)` when it is deleted, `None` when it is not touched.
    pub fn get(&self, path: &str) -> Option<Option<&[u8]>> {
        self.files.get(path).map(|content| content.as_deref())
    }

    /// All touched files in order of their paths, with their content or `None` when deleted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.files
            .iter()
            .map(|(path, content)| (path.as_str(), content.as_deref()))
    }

    /// Whether nothing is touched.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

impl Series {
    /// Reads `series` and every patch that it names.
    ///
    /// # Errors
    ///
    /// `series` is missing, names a file twice or one that does not exist, or the folder holds a `*.patch` file that it
    /// does not name.
    pub fn load(folder: &Path) -> Result<Series> {
        let series = folder.join(SERIES_FILE);
        let text = fs::read_to_string(&series).map_err(io_error("read", &series))?;
        let wrong = |reason: String| Error::Series {
            path: series.clone(),
            reason,
        };
        let mut patches: Vec<Patch> = Vec::new();
        let mut names = BTreeSet::new();
        for line in text.lines() {
            let name = line.split('#').next().unwrap_or_default().trim();
            if name.is_empty() {
                continue;
            }
            if name.contains(['/', '\\']) {
                return Err(wrong(format!("{name:?} is not a file name")));
            }
            if !names.insert(name) {
                return Err(wrong(format!("{name} is listed twice")));
            }
            let path = folder.join(name);
            if !path.is_file() {
                return Err(wrong(format!("{name} is listed but is not in the folder")));
            }
            let content = fs::read(&path).map_err(io_error("read", &path))?;
            patches.push(Patch {
                name: name.to_owned(),
                content,
            });
        }
        for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
            let name = entry
                .map_err(io_error("list", folder))?
                .file_name()
                .to_string_lossy()
                .into_owned();
            if name.ends_with(".patch") && !names.contains(name.as_str()) {
                return Err(wrong(format!("{name} is in the folder but is not listed")));
            }
        }
        Ok(Series {
            folder: folder.to_owned(),
            patches,
        })
    }

    /// The patches in order.
    pub fn patches(&self) -> &[Patch] {
        &self.patches
    }

    /// Where `SHA256SUMS` is.
    pub fn sums_file(&self) -> PathBuf {
        self.folder.join(SUMS_FILE)
    }

    /// The SHA-256 over names and contents in order, 64 hexadecimal digits, or `none` when the series is empty.
    pub fn digest(&self) -> String {
        if self.patches.is_empty() {
            return "none".to_owned();
        }
        let mut hash = Sha256::new();
        for patch in &self.patches {
            // Lengths keep the boundaries of names and contents apart.
            hash.update((patch.name.len() as u64).to_le_bytes());
            hash.update(patch.name.as_bytes());
            hash.update((patch.content.len() as u64).to_le_bytes());
            hash.update(&patch.content);
        }
        digest::hex(&hash.finalize())
    }
}

/// Applies `series` to the files of `tree` in memory; `tree` is only read.
///
/// Context must match exactly; the lines of a hunk may have moved.
///
/// # Errors
///
/// A patch cannot be parsed, does something else than create, change or delete text files, or does not apply: the error
/// names patch, file and hunk.
pub fn apply(tree: &Path, series: &Series) -> Result<Overlay> {
    let mut overlay = Overlay::empty();
    for patch in series.patches() {
        for file in PatchSet::parse_bytes(&patch.content, ParseOptions::gitdiff()) {
            let file = file.map_err(|error| Error::Apply {
                patch: patch.name.clone(),
                file: "(not parsed)".to_owned(),
                reason: error.to_string(),
            })?;
            apply_file(tree, &patch.name, &file, &mut overlay)?;
        }
    }
    Ok(overlay)
}

fn apply_file(
    tree: &Path,
    patch: &str,
    change: &FilePatch<'_, [u8]>,
    overlay: &mut Overlay,
) -> Result<()> {
    let operation = change.operation().strip_prefix(1);
    let (path, exists_before, exists_after) = match &operation {
        FileOperation::Create(path) => (path, false, true),
        FileOperation::Delete(path) => (path, true, false),
        FileOperation::Modify { original, modified } if original == modified => {
            (modified, true, true)
        }
        FileOperation::Modify { modified: path, .. }
        | FileOperation::Rename { to: path, .. }
        | FileOperation::Copy { to: path, .. } => {
            let file = String::from_utf8_lossy(path).into_owned();
            let reason =
                "renames and copies are not supported: make the patch with --no-renames".to_owned();
            return Err(Error::Apply {
                patch: patch.to_owned(),
                file,
                reason,
            });
        }
    };
    let file = String::from_utf8_lossy(path).into_owned();
    let fail = |reason: String| Error::Apply {
        patch: patch.to_owned(),
        file: file.clone(),
        reason,
    };
    if !is_plain_relative(&file) {
        return Err(fail("is not a path inside the tree".to_owned()));
    }
    if matches!(
        change.new_mode(),
        Some(FileMode::Symlink | FileMode::Gitlink)
    ) {
        return Err(fail(
            "symbolic links and submodules are not supported".to_owned(),
        ));
    }
    let Some(text) = change.patch().as_text() else {
        return Err(fail("binary patches are not supported".to_owned()));
    };

    let before = match overlay.get(&file) {
        Some(content) => content.map(<[u8]>::to_vec),
        None => match fs::read(tree.join(&file)) {
            Ok(content) => Some(content),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(fail(error.to_string())),
        },
    };
    match (&before, exists_before) {
        (None, true) => return Err(fail("does not exist in the tree".to_owned())),
        (Some(_), false) => return Err(fail("is to be created but exists already".to_owned())),
        _ => {}
    }
    let after = diffy::apply_bytes(&before.unwrap_or_default(), text).map_err(|error| {
        fail(format!(
            "{error} of {}: its context is not in the file",
            text.hunks().len()
        ))
    })?;
    if !exists_after && !after.is_empty() {
        return Err(fail(
            "is to be deleted but has more lines than the patch removes".to_owned(),
        ));
    }
    overlay.files.insert(file, exists_after.then_some(after));
    Ok(())
}

fn is_plain_relative(path: &str) -> bool {
    !path.is_empty()
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}

/// The sums of `overlay` as the text of `SHA256SUMS`: `sha256  path`, sorted by path; deleted files have no line.
pub fn sums_text(overlay: &Overlay) -> String {
    let lines = overlay.iter().filter_map(|(path, content)| {
        let content = content?;
        Some(format!("{}  {path}\n", digest::sha256_hex(content)))
    });
    lines.collect()
}

/// Writes `SHA256SUMS` of the series (under a temporary name first).
///
/// # Errors
///
/// The file cannot be written.
pub fn write_sums(series: &Series, overlay: &Overlay) -> Result<()> {
    let sums = series.sums_file();
    let fresh = sums.with_extension("new");
    fs::write(&fresh, sums_text(overlay)).map_err(io_error("write", &fresh))?;
    fs::rename(&fresh, &sums).map_err(io_error("rename", &fresh))
}

/// Checks that the files which the series touches are in `tree` what `SHA256SUMS` says.
///
/// The files are read from `tree` again: this is the proof that the series was applied, not a repetition of it.
///
/// # Errors
///
/// [`Error::Verify`] lists every file that differs, is missing, is in only one of the two lists, or should have been deleted.
pub fn verify(tree: &Path, series: &Series, overlay: &Overlay) -> Result<()> {
    compare(series, overlay, |path| {
        let file = tree.join(path);
        match fs::read(&file) {
            Ok(content) => Ok(Some(digest::sha256_hex(&content))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &file)(error)),
        }
    })
}

/// Checks what the series makes against `SHA256SUMS`, without a tree: whether series and sums belong together.
///
/// # Errors
///
/// As [`verify`].
pub fn check(series: &Series, overlay: &Overlay) -> Result<()> {
    compare(series, overlay, |path| {
        Ok(overlay.get(path).flatten().map(digest::sha256_hex))
    })
}

/// `sum_of` gives the sum of a file of the patched tree, `None` when there is no such file.
fn compare(
    series: &Series,
    overlay: &Overlay,
    sum_of: impl Fn(&str) -> Result<Option<String>>,
) -> Result<()> {
    let sums = series.sums_file();
    let mut differences = Vec::new();
    let mut listed = read_sums(&sums)?;
    for (path, content) in overlay.iter() {
        let found = sum_of(path)?;
        let expected = listed.remove(path);
        let difference = match (content.is_some(), found, expected) {
            (false, None, None) => continue,
            (false, Some(_), _) => "is deleted by the series but exists".to_owned(),
            (false, None, Some(_)) => "is deleted by the series but has a sum".to_owned(),
            (true, None, _) => "is missing".to_owned(),
            (true, Some(_), None) => "is changed by the series but has no sum".to_owned(),
            (true, Some(found), Some(expected)) if found == expected => continue,
            (true, Some(found), Some(expected)) => format!("expected {expected}, found {found}"),
        };
        differences.push(format!("{path}: {difference}"));
    }
    differences.extend(
        listed
            .into_keys()
            .map(|path| format!("{path}: has a sum but is not touched by the series")),
    );
    if differences.is_empty() {
        Ok(())
    } else {
        Err(Error::Verify { sums, differences })
    }
}

/// Reads `SHA256SUMS` into path -> sum; a missing file is an empty list.
fn read_sums(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let mut sums = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let wrong = |reason: &str| Error::Series {
            path: path.to_owned(),
            reason: format!("line {}: {reason}", index + 1),
        };
        let (sum, file) = line
            .split_once("  ")
            .ok_or_else(|| wrong("expected `sha256  path`"))?;
        if sum.len() != 64
            || !sum
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(wrong("the sum is not 64 lower-case hexadecimal digits"));
        }
        if sums.insert(file.to_owned(), sum.to_owned()).is_some() {
            return Err(wrong("this file has a sum already"));
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests;
