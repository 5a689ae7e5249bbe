//! Writes a model as a set of files, as llama.cpp splits them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::{Error, GgufWriter, Layout, ModelFiles, TensorInfo};

/// The name of part `part` (from 1) of `count`: `prefix-00001-of-00003.gguf`.
pub fn part_path(prefix: &Path, part: u16, count: u16) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(format!("-{part:05}-of-{count:05}.gguf"));
    name.into()
}

/// Writes a model as `count` files, named by [`part_path`], with about the same number of tensor
/// bytes in each. The metadata goes to the first. Returns the files' paths. On failure none of them
/// is left.
///
/// # Errors
/// [`Error::Layout`] if `count` is 0 or larger than the number of tensors; errors of reading and
/// writing.
pub fn split_model(model: &ModelFiles, prefix: &Path, count: u16) -> Result<Vec<PathBuf>, Error> {
    let tensors: Vec<(usize, &TensorInfo)> = model.tensors().collect();
    if count == 0 || tensors.len() < usize::from(count) {
        let n = tensors.len();
        return Err(Error::layout(format!(
            "a model of {n} tensors cannot be split into {count} files"
        )));
    }
    let mut written = Vec::new();
    let mut rest = tensors.as_slice();
    for part in 1..=count {
        let (mine, others) = rest.split_at(take(rest, count - part));
        rest = others;
        let path = part_path(prefix, part, count);
        if let Err(e) = write_part(model, mine, &path, (part, count), tensors.len()) {
            written
                .iter()
                .for_each(|p: &PathBuf| drop(fs::remove_file(p)));
            return Err(e);
        }
        written.push(path);
    }
    Ok(written)
}

/// How many of `tensors` go into the next file if `files_after` files follow: its fair share of the
/// bytes, at least one tensor, and at least one left for each file that follows.
fn take(tensors: &[(usize, &TensorInfo)], files_after: u16) -> usize {
    let total: u64 = tensors.iter().map(|(_, t)| t.size_bytes).sum();
    let share = total / (u64::from(files_after) + 1);
    let most = tensors.len() - usize::from(files_after);
    let mut bytes = 0;
    let fitting = tensors.iter().take_while(|(_, t)| {
        bytes += t.size_bytes;
        bytes <= share
    });
    if files_after == 0 {
        tensors.len()
    } else {
        fitting.count().clamp(1, most)
    }
}

fn write_part(
    model: &ModelFiles,
    tensors: &[(usize, &TensorInfo)],
    path: &Path,
    (part, count): (u16, u16),
    n_tensors: usize,
) -> Result<(), Error> {
    let mut layout = Layout::new();
    if part == 1 {
        for (key, value) in model
            .metadata()
            .kv()
            .filter(|(key, _)| !key.starts_with("split."))
        {
            layout.kv(key, value.clone())?;
        }
    }
    layout.kv("split.no", part - 1)?;
    layout.kv("split.count", count)?;
    layout.kv("split.tensors.count", n_tensors as i32)?;
    for (_, t) in tensors {
        layout.tensor(&t.name, t.ggml_type, &t.dims)?;
    }
    let mut writer = GgufWriter::create(path, layout)?;
    for (source, t) in tensors {
        let source = model.parts[*source].path();
        let mut file = File::open(source).map_err(|e| Error::io(source, "open", e))?;
        file.seek(SeekFrom::Start(t.offset))
            .map_err(|e| Error::io(source, "seek", e))?;
        writer.write_tensor(&mut file.take(t.size_bytes))?;
    }
    writer.finish()
}
