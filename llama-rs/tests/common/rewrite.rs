//! Writes a changed copy of a GGUF file.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use gguf::{GgmlType, Gguf, GgufWriter, Layout, TensorInfo, Value};

/// What to change.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Set or add a key.
    Set(String, Value),
    /// Leave a key out.
    Remove(String),
    /// Leave a tensor out.
    RemoveTensor(String),
    /// Give a tensor another type; its data are zeros then.
    Retype(String, GgmlType),
    /// Give a tensor other dimensions; its data are zeros then.
    Reshape(String, Vec<u64>),
}

/// Writes `source` with `changes` as `target`. False when the writer refuses the result.
pub(crate) fn rewrite(source: &Path, target: &Path, changes: &[Change]) -> bool {
    let file = Gguf::open(source).unwrap();
    let mut layout = Layout::new();
    for (key, value) in file.kv() {
        let replaced = changes
            .iter()
            .any(|change| matches!(change, Change::Set(k, _) | Change::Remove(k) if k == key));
        if !replaced && layout.kv(key, value.clone()).is_err() {
            return false;
        }
    }
    for change in changes {
        if let Change::Set(key, value) = change
            && layout.kv(key, value.clone()).is_err()
        {
            return false;
        }
    }
    let mut written: Vec<(&TensorInfo, bool)> = Vec::new();
    for tensor in file.tensors() {
        let (mut ggml_type, mut dims) = (tensor.ggml_type, tensor.dims.clone());
        let mut removed = false;
        for change in changes {
            match change {
                Change::RemoveTensor(name) if *name == tensor.name => removed = true,
                Change::Retype(name, to) if *name == tensor.name => ggml_type = *to,
                Change::Reshape(name, to) if *name == tensor.name => dims = to.clone(),
                _ => {}
            }
        }
        if removed {
            continue;
        }
        if layout.tensor(&tensor.name, ggml_type, &dims).is_err() {
            return false;
        }
        written.push((tensor, ggml_type == tensor.ggml_type && dims == tensor.dims));
    }
    let mut data = File::open(source).unwrap();
    let Ok(mut writer) = GgufWriter::create(target, layout) else {
        return false;
    };
    let sizes: Vec<u64> = writer
        .tensors()
        .iter()
        .map(|tensor| tensor.size_bytes)
        .collect();
    for ((tensor, same), size) in written.into_iter().zip(sizes) {
        let done = if same {
            data.seek(SeekFrom::Start(tensor.offset)).unwrap();
            writer.write_tensor(&mut (&mut data).take(size))
        } else {
            writer.write_tensor(&mut std::io::repeat(0).take(size))
        };
        if done.is_err() {
            return false;
        }
    }
    writer.finish().is_ok()
}
