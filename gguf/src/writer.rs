//! Writes a GGUF file piece by piece.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::shown;
use crate::pending::PendingFile;
use crate::reader::{MAX_NAME_BYTES, MIN_ALIGNMENT, tensor_bytes};
use crate::value::Value;
use crate::{Error, GgmlType, TensorInfo};

/// Bytes copied at a time from a reader.
const CHUNK_BYTES: usize = 1 << 20;

/// What a file will contain: metadata and the shapes of its tensors.
#[derive(Clone, Debug)]
pub struct Layout {
    kv: Vec<(String, Value)>,
    /// Offsets are relative to the data section until the header's size is known.
    tensors: Vec<TensorInfo>,
    names: HashSet<String>,
    alignment: u64,
    data_bytes: u64,
}

impl Default for Layout {
    fn default() -> Layout {
        Layout::new()
    }
}

impl Layout {
    /// A file with nothing in it.
    pub fn new() -> Layout {
        Layout {
            kv: Vec::new(),
            tensors: Vec::new(),
            names: HashSet::new(),
            alignment: MIN_ALIGNMENT,
            data_bytes: 0,
        }
    }

    /// Adds a metadata entry. `general.alignment` must come before the first tensor.
    ///
    /// # Errors
    /// [`Error::Layout`] if the key is empty, has a zero byte, is there already, or is an alignment
    /// that no reader takes.
    pub fn kv(&mut self, key: &str, value: impl Into<Value>) -> Result<&mut Layout, Error> {
        let value = value.into();
        if key.is_empty() || key.contains('\0') {
            return Err(Error::layout(format!("\"{}\" cannot be a key", shown(key))));
        }
        if self.kv.iter().any(|(k, _)| k == key) {
            return Err(Error::layout(format!(
                "key \"{}\" appears twice",
                shown(key)
            )));
        }
        if key == "general.alignment" {
            self.alignment = match value {
                Value::U32(v) if v.is_power_of_two() && u64::from(v) % MIN_ALIGNMENT == 0 => {
                    v.into()
                }
                _ => return Err(Error::layout(format!("{value:?} cannot be the alignment"))),
            };
            if !self.tensors.is_empty() {
                return Err(Error::layout(
                    "the alignment must be set before the first tensor",
                ));
            }
        }
        self.kv.push((key.to_owned(), value));
        Ok(self)
    }

    /// Adds a tensor behind the ones that are there. `dims` is ggml's `ne`: the fastest dimension
    /// first.
    ///
    /// # Errors
    /// [`Error::Layout`] if the name is empty, too long or there already, or the shape is
    /// impossible.
    pub fn tensor(
        &mut self,
        name: &str,
        ggml_type: GgmlType,
        dims: &[u64],
    ) -> Result<&mut Layout, Error> {
        let wrong =
            |problem: String| Error::layout(format!("tensor \"{}\": {problem}", shown(name)));
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains('\0') {
            return Err(wrong(format!(
                "the name must have 1 to {MAX_NAME_BYTES} bytes, none 0"
            )));
        }
        if !(1..=4).contains(&dims.len()) {
            return Err(wrong(format!(
                "has {} dimensions, 1 to 4 are possible",
                dims.len()
            )));
        }
        let size_bytes = tensor_bytes(ggml_type, dims).map_err(wrong)?;
        let end = self
            .data_bytes
            .checked_add(size_bytes)
            .and_then(|end| end.checked_next_multiple_of(self.alignment))
            .filter(|&end| end <= i64::MAX as u64)
            .ok_or_else(|| wrong("makes the file larger than files can be".to_owned()))?;
        if !self.names.insert(name.to_owned()) {
            return Err(wrong("appears twice".to_owned()));
        }
        self.tensors.push(TensorInfo {
            name: name.to_owned(),
            ggml_type,
            dims: dims.to_vec(),
            offset: self.data_bytes,
            size_bytes,
        });
        self.data_bytes = end;
        Ok(self)
    }

    /// The tensors so far, in order. Their offsets count from the start of the data, not of the
    /// file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The metadata so far, in order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.kv
    }

    /// The size of the file in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.header().len() as u64 + self.data_bytes
    }

    /// Writes a file whose tensors are holes: they read as zeros and take no disk, where the file system has holes.
    ///
    /// # Errors
    /// [`Error::DiskFull`] and [`Error::Io`].
    pub fn write_hollow(self, path: &Path) -> Result<(), Error> {
        let header = self.header();
        let size_bytes = header.len() as u64 + self.data_bytes;
        let pending = PendingFile::create_hollow(path, size_bytes)?;
        pending.write_at(&header, 0)?;
        pending.finish()
    }

    /// Header, metadata and tensor table, padded to where the data starts.
    fn header(&self) -> Vec<u8> {
        let string = |out: &mut Vec<u8>, s: &str| {
            out.extend((s.len() as u64).to_le_bytes());
            out.extend(s.as_bytes());
        };
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.kv.len() as u64).to_le_bytes());
        for (key, value) in &self.kv {
            string(&mut out, key);
            out.extend((value.value_type() as u32).to_le_bytes());
            value.encode(&mut out);
        }
        for t in &self.tensors {
            string(&mut out, &t.name);
            out.extend((t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.ggml_type.0.to_le_bytes());
            out.extend(t.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
        out
    }
}

/// Writes one file: first the header, then the tensors' data in any order.
///
/// The file appears under its name only by [`GgufWriter::finish`]. Dropped before that, the writer
/// leaves nothing.
#[derive(Debug)]
pub struct GgufWriter {
    pending: PendingFile,
    path: PathBuf,
    tensors: Vec<TensorInfo>,
    /// The tensor that [`GgufWriter::write_tensor`] writes next.
    next: usize,
    written_bytes: AtomicU64,
}

impl GgufWriter {
    /// Reserves the space of the whole file and writes its header.
    ///
    /// # Errors
    /// [`Error::DiskFull`] if the file does not fit, [`Error::Io`] if it cannot be created.
    pub fn create(path: &Path, layout: Layout) -> Result<GgufWriter, Error> {
        let header = layout.header();
        let data_offset = header.len() as u64;
        let pending = PendingFile::create(path, data_offset + layout.data_bytes)?;
        pending.write_at(&header, 0)?;
        let mut tensors = layout.tensors;
        tensors.iter_mut().for_each(|t| t.offset += data_offset);
        let written_bytes = AtomicU64::new(0);
        Ok(GgufWriter {
            pending,
            path: path.to_owned(),
            tensors,
            next: 0,
            written_bytes,
        })
    }

    /// The tensors in order, with their offsets in the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Writes the next tensor in order. `data` must hold at least its bytes; no more are taken.
    ///
    /// # Errors
    /// [`Error::Layout`] if all tensors are written or `data` ends early, [`Error::DiskFull`] and
    /// [`Error::Io`].
    pub fn write_tensor(&mut self, data: &mut dyn Read) -> Result<(), Error> {
        let Some(tensor) = self.tensors.get(self.next) else {
            return Err(Error::layout("all tensors have been written"));
        };
        let size = tensor.size_bytes;
        let mut buffer = vec![0; CHUNK_BYTES.min(size as usize)];
        let mut done = 0;
        while done < size {
            let step = (size - done).min(CHUNK_BYTES as u64) as usize;
            data.read_exact(&mut buffer[..step]).map_err(|e| {
                let name = shown(&self.tensors[self.next].name);
                Error::layout(format!(
                    "the data of tensor \"{name}\" ends after {done} of {size} bytes: {e}"
                ))
            })?;
            self.write_at(self.next, done, &buffer[..step])?;
            done += step as u64;
        }
        self.next += 1;
        Ok(())
    }

    /// Writes a piece of a tensor. Pieces may come in any order and from several threads; no byte
    /// may be written twice.
    ///
    /// # Errors
    /// [`Error::Layout`] if the piece is not inside the tensor, [`Error::DiskFull`] and
    /// [`Error::Io`].
    pub fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let Some(t) = self.tensors.get(tensor) else {
            return Err(Error::layout(format!("there is no tensor {tensor}")));
        };
        let length = bytes.len() as u64;
        if offset
            .checked_add(length)
            .is_none_or(|end| end > t.size_bytes)
        {
            let name = shown(&t.name);
            return Err(Error::layout(format!(
                "tensor \"{name}\": {length} bytes at {offset} are beyond its {} bytes",
                t.size_bytes
            )));
        }
        self.pending.write_at(bytes, t.offset + offset)?;
        self.written_bytes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// [`Error::Layout`] if not every tensor has been written in full, [`Error::DiskFull`] and
    /// [`Error::Io`].
    pub fn finish(self) -> Result<(), Error> {
        let needed: u64 = self.tensors.iter().map(|t| t.size_bytes).sum();
        let written = self.written_bytes.load(Ordering::Relaxed);
        if written != needed {
            return Err(Error::layout(format!(
                "{} of {needed} bytes of tensor data were written to {}",
                written,
                self.path.display()
            )));
        }
        self.pending.finish()
    }
}
