//! A model as a user names it: one file, or the first part of a split set.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::shown;
use crate::value::Value;
use crate::{Error, Gguf, TensorInfo, part_path};

/// All files of a model.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The files, the first part first. Never empty.
    pub parts: Vec<Gguf>,
    own_output: bool,
}

/// What a model's bytes are used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Tensors that are read in full for every token.
    pub dense_bytes: u64,
    /// Tensors that are read by slices: experts, and the embedding where the output has its own
    /// tensor.
    pub sparse_bytes: u64,
    /// Headers and padding.
    pub other_bytes: u64,
}

impl ModelFiles {
    /// Opens a model. Where `path` is the first part of a split set, the other parts are opened
    /// too.
    ///
    /// # Errors
    /// As [`Gguf::open`]; [`Error::MissingPart`] names a file that is not there, [`Error::Split`] a
    /// file that is not the part that its name promises, or a `path` that is not the first part.
    pub fn open(path: &Path) -> Result<ModelFiles, Error> {
        let first = Gguf::open(path)?;
        let count = u16_key(&first, "split.count")?.unwrap_or(0);
        let mut parts = vec![first];
        if count > 1 {
            let prefix = split_prefix(&parts[0], path, count)?;
            for part in 2..=count {
                let part_file = part_path(&prefix, part, count);
                if !part_file.exists() {
                    return Err(Error::MissingPart {
                        path: part_file,
                        part,
                        count,
                    });
                }
                let gguf = Gguf::open(&part_file)?;
                check_part(&gguf, part, count)?;
                parts.push(gguf);
            }
            check_tensors(&parts)?;
        }
        let own_output = parts.iter().any(|p| p.tensor("output.weight").is_some());
        Ok(ModelFiles { parts, own_output })
    }

    /// As [`ModelFiles::open`], but `path` may be any part of a split set.
    ///
    /// # Errors
    /// As [`ModelFiles::open`].
    pub fn open_from_any_part(path: &Path) -> Result<ModelFiles, Error> {
        let part = Gguf::open(path)?;
        let number = u16_key(&part, "split.no")?.unwrap_or(0);
        let count = u16_key(&part, "split.count")?.unwrap_or(0);
        match strip_part(path, u32::from(number) + 1, count) {
            Some(prefix) if number > 0 => ModelFiles::open(&part_path(&prefix, 1, count)),
            _ => ModelFiles::open(path),
        }
    }

    /// The file that holds the model's metadata.
    pub fn metadata(&self) -> &Gguf {
        &self.parts[0]
    }

    /// All tensors with the index of the part that holds them.
    pub fn tensors(&self) -> impl Iterator<Item = (usize, &TensorInfo)> {
        self.parts
            .iter()
            .enumerate()
            .flat_map(|(i, p)| p.tensors().iter().map(move |t| (i, t)))
    }

    /// The tensor of this name, with the index of the part that holds it.
    pub fn tensor(&self, name: &str) -> Option<(usize, &TensorInfo)> {
        self.parts
            .iter()
            .enumerate()
            .find_map(|(i, p)| Some((i, p.tensor(name)?)))
    }

    /// The size of all files together.
    pub fn total_bytes(&self) -> u64 {
        self.parts.iter().map(Gguf::file_size).sum()
    }

    /// How the model's bytes divide into dense, sparse and other ones.
    pub fn dense_sparse(&self) -> Footprint {
        let mut sum = Footprint::default();
        for (_, t) in self.tensors() {
            match self.is_sparse(&t.name) {
                true => sum.sparse_bytes += t.size_bytes,
                false => sum.dense_bytes += t.size_bytes,
            }
        }
        sum.other_bytes = self.total_bytes() - sum.dense_bytes - sum.sparse_bytes;
        sum
    }

    /// True if the tensor of this name is read by slices: the experts of a layer, or
    /// `token_embd.weight` where the output has a tensor of its own. The patched llama.cpp decides
    /// by the same rule.
    pub fn is_sparse(&self, name: &str) -> bool {
        is_expert_name(name) || (name == "token_embd.weight" && self.own_output)
    }
}

/// True for the names of stacks of experts: `blk.N.` and one of `ffn_gate`, `ffn_up`, `ffn_down`,
/// `ffn_gate_up` with `_exps` or `_chexps`, or `attn_v_exps`; all with `.weight`.
pub fn is_expert_name(name: &str) -> bool {
    let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|n| n.split_once('.')) else {
        return false;
    };
    if layer.is_empty() || !layer.bytes().all(|b| b.is_ascii_digit()) {
        return false;
    }
    let Some(kind) = rest.strip_suffix(".weight") else {
        return false;
    };
    if kind == "attn_v_exps" {
        return true;
    }
    kind.strip_prefix("ffn_")
        .and_then(|k| {
            k.strip_suffix("_exps")
                .or_else(|| k.strip_suffix("_chexps"))
        })
        .is_some_and(|k| matches!(k, "gate" | "up" | "down" | "gate_up"))
}

/// The value of a key that llama.cpp insists is of type UINT16.
fn u16_key(file: &Gguf, key: &str) -> Result<Option<u16>, Error> {
    match file.get(key) {
        None => Ok(None),
        Some(Value::U16(v)) => Ok(Some(*v)),
        Some(other) => {
            let problem = format!("is of type {}, not UINT16", other.value_type().name());
            Err(Error::key(file.path(), key, problem))
        }
    }
}

/// The path of the first part without `-00001-of-0000N.gguf`.
fn split_prefix(first: &Gguf, path: &Path, count: u16) -> Result<PathBuf, Error> {
    let number = u16_key(first, "split.no")?
        .ok_or_else(|| Error::split(path, "has the key split.count but no split.no"))?;
    let part = u32::from(number) + 1;
    if number != 0 {
        let hint = match strip_part(path, part, count) {
            Some(prefix) => part_path(&prefix, 1, count).display().to_string(),
            None => "the first part".to_owned(),
        };
        return Err(Error::split(
            path,
            format!("is part {part} of {count}; open {hint} instead"),
        ));
    }
    strip_part(path, part, count).ok_or_else(|| {
        let problem = format!(
            "is part 1 of {count}, but its name does not end with \"-00001-of-{count:05}.gguf\", \
             so the other parts cannot be found"
        );
        Error::split(path, problem)
    })
}

/// The path of part `part` of `count` without what [`part_path`] adds, if that is how it ends.
fn strip_part(path: &Path, part: u32, count: u16) -> Option<PathBuf> {
    let suffix = format!("-{part:05}-of-{count:05}.gguf");
    let prefix = path.as_os_str().as_bytes().strip_suffix(suffix.as_bytes())?;
    let named = !prefix.is_empty() && !prefix.ends_with(b"/");
    named.then(|| PathBuf::from(OsString::from_vec(prefix.to_vec())))
}

/// Fails if a file is not the part that its name says.
fn check_part(file: &Gguf, part: u16, count: u16) -> Result<(), Error> {
    let number = u16_key(file, "split.no")?.ok_or_else(|| {
        Error::split(
            file.path(),
            "has no key split.no: it is not part of a split model",
        )
    })?;
    if number != part - 1 {
        let problem = format!(
            "should be part {part} of {count}, but its key split.no says {}",
            u32::from(number) + 1
        );
        return Err(Error::split(file.path(), problem));
    }
    match u16_key(file, "split.count")? {
        Some(stated) if stated != count => {
            let problem = format!("is a part of a model in {stated} parts, not in {count}");
            Err(Error::split(file.path(), problem))
        }
        _ => Ok(()),
    }
}

/// Fails if a tensor is in two parts, or if there are more or fewer tensors than the first part
/// says.
fn check_tensors(parts: &[Gguf]) -> Result<(), Error> {
    let mut seen = HashSet::new();
    for part in parts {
        for t in part.tensors() {
            if !seen.insert(t.name.as_str()) {
                return Err(Error::tensor(
                    part.path(),
                    &shown(&t.name),
                    "is in another part too",
                ));
            }
        }
    }
    let first = &parts[0];
    let stated = match first.get("split.tensors.count") {
        Some(Value::I32(v)) => i64::from(*v),
        Some(other) => {
            let problem = format!("is of type {}, not INT32", other.value_type().name());
            return Err(Error::key(first.path(), "split.tensors.count", problem));
        }
        None => return Err(Error::split(first.path(), "has no key split.tensors.count")),
    };
    if stated != seen.len() as i64 {
        let problem = format!(
            "the model should have {stated} tensors, its {} parts have {}",
            parts.len(),
            seen.len()
        );
        return Err(Error::split(first.path(), problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_expert_name;

    #[test]
    fn expert_names() {
        for name in [
            "blk.0.ffn_gate_exps.weight",
            "blk.12.ffn_up_exps.weight",
            "blk.3.ffn_down_exps.weight",
            "blk.3.ffn_gate_up_exps.weight",
            "blk.3.ffn_up_chexps.weight",
            "blk.3.attn_v_exps.weight",
        ] {
            assert!(is_expert_name(name), "{name}");
        }
        for name in [
            "blk.0.ffn_gate_exps.bias",
            "blk.0.ffn_gate_shexp.weight",
            "blk.0.ffn_gate_inp.weight",
            "blk.0.ffn_gate.weight",
            "blk..ffn_gate_exps.weight",
            "blk.x.ffn_gate_exps.weight",
            "ffn_gate_exps.weight",
            "token_embd.weight",
        ] {
            assert!(!is_expert_name(name), "{name}");
        }
    }
}
