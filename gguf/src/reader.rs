//! Reads and checks the header of one GGUF file.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::cursor::Cursor;
use crate::error::shown;
use crate::value::{Array, Payload, Value, ValueType};
use crate::{Error, GgmlType};

/// The header, metadata and tensor table together may have at most this many bytes. Real ones stay
/// below 50 MB.
pub const MAX_METADATA_BYTES: u64 = 256 << 20;

/// A tensor's name has at most this many bytes (ggml's `GGML_MAX_NAME` less the closing zero).
pub const MAX_NAME_BYTES: usize = 63;

/// Arrays may hold arrays this deep. llama.cpp refuses any array in an array.
pub const MAX_ARRAY_DEPTH: u32 = 4;

/// Files without `general.alignment` use this.
const DEFAULT_ALIGNMENT: u64 = 32;

/// llama.cpp places tensors in its mapping of the file and asserts this alignment.
pub(crate) const MIN_ALIGNMENT: u64 = 32;

/// Fewest bytes a metadata entry can have: length of the key, one byte of key, type, one byte of
/// value.
const MIN_KEY_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;

/// Fewest bytes an entry of the tensor table can have: name, number of dimensions, one dimension,
/// type, offset.
const MIN_TENSOR_ENTRY_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, unique in the model.
    pub name: String,
    /// The type of the elements.
    pub ggml_type: GgmlType,
    /// The number of elements in each dimension, the fastest first (ggml's `ne`); 1 to 4 entries,
    /// none 0.
    pub dims: Vec<u64>,
    /// Where the data starts, in bytes from the start of the file.
    pub offset: u64,
    /// Bytes of data, without padding.
    pub size_bytes: u64,
}

impl TensorInfo {
    /// The number of elements.
    pub fn n_elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Bytes from one slice along the last dimension to the next: of one expert in a stack of
    /// experts, of one row in a matrix.
    pub fn slice_bytes(&self) -> u64 {
        self.size_bytes / self.dims.last().copied().unwrap_or(1)
    }
}

/// The header, metadata and tensor table of one file, checked against the file's size.
#[derive(Clone, Debug)]
pub struct Gguf {
    path: PathBuf,
    version: u32,
    alignment: u64,
    data_offset: u64,
    file_size: u64,
    kv: Vec<(String, Value)>,
    kv_index: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    tensor_index: HashMap<String, usize>,
    packed: bool,
}

impl Gguf {
    /// Opens a file and checks everything but the tensors' data.
    ///
    /// What holds afterwards: every tensor's range lies inside the file, is aligned, and overlaps
    /// no other; every dimension is at least 1; names and keys are unique UTF-8; types are ones
    /// that ggml has.
    ///
    /// # Errors
    /// Any [`Error`] but those of writing and of split sets.
    pub fn open(path: &Path) -> Result<Gguf, Error> {
        // Asked before opening: to open a named pipe would block.
        let found = fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
        if !found.is_file() {
            let kind = found.file_type();
            let kind = match () {
                () if kind.is_dir() => "a folder",
                () if kind.is_fifo() => "a pipe",
                () if kind.is_socket() => "a socket",
                () => "a device",
            };
            return Err(Error::NotAFile {
                path: path.to_owned(),
                kind,
            });
        }
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let file_size = file
            .metadata()
            .map_err(|e| Error::io(path, "read the size", e))?
            .len();
        Gguf::parse(BufReader::with_capacity(256 << 10, file), file_size, path)
    }

    /// Reads a header from `reader`, as the start of a file of `file_size` bytes. `path` is only
    /// for messages.
    ///
    /// `reader` should be buffered: it is asked for a few bytes at a time.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn parse(reader: impl Read, file_size: u64, path: &Path) -> Result<Gguf, Error> {
        if file_size == 0 {
            return Err(Error::Empty {
                path: path.to_owned(),
            });
        }
        // Files are no larger than this; sums of offsets and sizes then stay inside 64 bits.
        let limit = i64::MAX as u64;
        if file_size > limit {
            let what = "the file's size in bytes".to_owned();
            return Err(Error::Limit {
                path: path.to_owned(),
                what,
                value: file_size,
                limit,
            });
        }
        let mut cursor = Cursor::new(reader, file_size, path);
        let version = preamble(&mut cursor, file_size, path)?;
        let n_tensors = cursor.u64("the number of tensors")?;
        let n_kv = cursor.u64("the number of metadata keys")?;
        cursor.require_count(n_kv, MIN_KEY_ENTRY_BYTES, "metadata keys")?;
        cursor.require_count(n_tensors, MIN_TENSOR_ENTRY_BYTES, "tensors")?;

        let (mut kv, mut kv_index) = (Vec::new(), HashMap::new());
        for i in 0..n_kv {
            let (key, value) = read_entry(&mut cursor, i, path)?;
            if kv_index.insert(key.clone(), kv.len()).is_some() {
                return Err(Error::key(path, &key, "appears twice"));
            }
            kv.push((key, value));
        }
        let alignment = alignment(kv_index.get("general.alignment").map(|&i| &kv[i].1), path)?;

        let (mut tensors, mut tensor_index) = (Vec::new(), HashMap::new());
        for i in 0..n_tensors {
            let tensor = read_tensor(&mut cursor, i, path)?;
            if tensor_index
                .insert(tensor.name.clone(), tensors.len())
                .is_some()
            {
                return Err(Error::tensor(path, &tensor.name, "appears twice"));
            }
            tensors.push(tensor);
        }

        let header_end = cursor.position();
        let data_offset = match n_tensors {
            0 => header_end,
            _ => header_end.next_multiple_of(alignment),
        };
        if data_offset > file_size {
            return Err(Error::Truncated {
                path: path.to_owned(),
                what: "the padding before the tensor data".to_owned(),
                offset: header_end,
                needed: data_offset - header_end,
                file_size,
            });
        }
        place_tensors(&mut tensors, data_offset, alignment, file_size, path)?;
        let packed = check_overlaps(&tensors, data_offset, alignment, path)?;
        Ok(Gguf {
            path: path.to_owned(),
            version,
            alignment,
            data_offset,
            file_size,
            kv,
            kv_index,
            tensors,
            tensor_index,
            packed,
        })
    }

    /// The format's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Tensor data starts at multiples of this many bytes, counted from [`Gguf::data_offset`].
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where the tensor data starts, in bytes from the start of the file.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// The file's size in bytes when it was opened.
    pub fn file_size(&self) -> u64 {
        self.file_size
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if the tensors lie in table order with no gap but padding, which llama.cpp demands.
    pub fn is_packed(&self) -> bool {
        self.packed
    }

    /// The value of a metadata key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.kv_index.get(key).map(|&i| &self.kv[i].1)
    }

    /// The string of a key; `None` if it is absent, of another type, or not UTF-8.
    pub fn str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// The number of a key; `None` if it is absent, not an integer, negative, or larger than 32
    /// bits.
    pub fn u32(&self, key: &str) -> Option<u32> {
        self.u64(key)?.try_into().ok()
    }

    /// The number of a key; `None` if it is absent, not an integer, or negative.
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    /// The number of a key; `None` if it is absent or not a floating point number.
    pub fn f32(&self, key: &str) -> Option<f32> {
        self.get(key)?.as_f32()
    }

    /// The truth value of a key; `None` if it is absent or of another type.
    pub fn bool(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    /// `general.architecture`, the model family, for example `llama`.
    pub fn architecture(&self) -> Option<&str> {
        self.str("general.architecture")
    }

    /// All metadata in the file's order.
    pub fn kv(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.kv.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// All tensors in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_index.get(name).map(|&i| &self.tensors[i])
    }
}

/// Magic and version.
fn preamble(cursor: &mut Cursor<impl Read>, file_size: u64, path: &Path) -> Result<u32, Error> {
    let mut magic = Vec::new();
    cursor.append(&mut magic, file_size.min(4), "the magic")?;
    if magic != b"GGUF" {
        let found = shown(&String::from_utf8_lossy(&magic));
        return Err(Error::NotGguf {
            path: path.to_owned(),
            found,
        });
    }
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => Ok(version),
        // A small number read in the wrong byte order has its low half empty.
        _ if version != 0 && version & 0xffff == 0 => Err(Error::BigEndian {
            path: path.to_owned(),
            version,
        }),
        _ => Err(Error::Version {
            path: path.to_owned(),
            version,
        }),
    }
}

/// Text that must be UTF-8 without zero bytes: llama.cpp would cut it at a zero.
fn text(bytes: Vec<u8>) -> Result<String, (String, &'static str)> {
    if bytes.is_empty() {
        return Err((String::new(), "is empty"));
    }
    if bytes.contains(&0) {
        return Err((
            String::from_utf8_lossy(&bytes).into_owned(),
            "contains a zero byte",
        ));
    }
    String::from_utf8(bytes).map_err(|e| {
        (
            String::from_utf8_lossy(e.as_bytes()).into_owned(),
            "is not UTF-8",
        )
    })
}

fn read_entry(
    cursor: &mut Cursor<impl Read>,
    index: u64,
    path: &Path,
) -> Result<(String, Value), Error> {
    let key = text(cursor.string(&format!("metadata key {index}"))?)
        .map_err(|(key, problem)| Error::key(path, &key, format!("name {index} {problem}")))?;
    let kind = read_type(cursor, &key, path)?;
    let value = match (kind, kind.size_bytes()) {
        (ValueType::Array, _) => Value::Array(read_array(cursor, &key, 1, path)?),
        (_, None) => {
            Value::String(cursor.string(&format!("the string of key \"{}\"", shown(&key)))?)
        }
        (_, Some(size)) => {
            let mut bytes = Vec::new();
            cursor.append(
                &mut bytes,
                size,
                &format!("the value of key \"{}\"", shown(&key)),
            )?;
            Value::from_fixed(kind, &bytes)
                .ok_or_else(|| Error::key(path, &key, "has a value of the wrong size"))?
        }
    };
    Ok((key, value))
}

fn read_type(cursor: &mut Cursor<impl Read>, key: &str, path: &Path) -> Result<ValueType, Error> {
    let id = cursor.u32("the type of a metadata value")?;
    ValueType::from_id(id)
        .ok_or_else(|| Error::key(path, key, format!("has a value of unknown type {id}")))
}

fn read_array(
    cursor: &mut Cursor<impl Read>,
    key: &str,
    depth: u32,
    path: &Path,
) -> Result<Array, Error> {
    if depth > MAX_ARRAY_DEPTH {
        let problem = format!("has arrays nested more than {MAX_ARRAY_DEPTH} deep");
        return Err(Error::key(path, key, problem));
    }
    let element_type = read_type(cursor, key, path)?;
    let len = cursor.u64("the length of an array")?;
    let what = format!("the array of key \"{}\"", shown(key));
    let too_long = || Error::key(path, key, format!("has an array of {len} elements"));
    let payload = match (element_type, element_type.size_bytes()) {
        (_, Some(size)) => {
            let mut bytes = Vec::new();
            cursor.append(
                &mut bytes,
                len.checked_mul(size).ok_or_else(too_long)?,
                &what,
            )?;
            Payload::Bytes(bytes)
        }
        (ValueType::Array, None) => {
            // Element type and length: the least an inner array can have.
            cursor.require(len.checked_mul(12).ok_or_else(too_long)?, &what)?;
            let mut items = Vec::new();
            for _ in 0..len {
                items.push(read_array(cursor, key, depth + 1, path)?);
            }
            Payload::Arrays(items)
        }
        (_, None) => {
            cursor.require(len.checked_mul(8).ok_or_else(too_long)?, &what)?;
            let mut bytes = Vec::new();
            for _ in 0..len {
                let length = cursor.u64(&what)?;
                bytes.extend(length.to_le_bytes());
                cursor.append(&mut bytes, length, &what)?;
            }
            Payload::Bytes(bytes)
        }
    };
    Ok(Array {
        element_type,
        len,
        payload,
    })
}

/// `general.alignment`, or the default.
fn alignment(value: Option<&Value>, path: &Path) -> Result<u64, Error> {
    let key = "general.alignment";
    let alignment = match value {
        None => return Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(v)) => u64::from(*v),
        Some(other) => {
            let problem = format!("is of type {}, not UINT32", other.value_type().name());
            return Err(Error::key(path, key, problem));
        }
    };
    if !alignment.is_power_of_two() {
        return Err(Error::key(
            path,
            key,
            format!("{alignment} is not a power of two"),
        ));
    }
    if alignment % MIN_ALIGNMENT != 0 {
        let problem =
            format!("{alignment} is not a multiple of {MIN_ALIGNMENT}, which llama.cpp needs");
        return Err(Error::key(path, key, problem));
    }
    Ok(alignment)
}

/// One entry of the tensor table; `offset` is still relative to the data section.
fn read_tensor(
    cursor: &mut Cursor<impl Read>,
    index: u64,
    path: &Path,
) -> Result<TensorInfo, Error> {
    let name = text(cursor.string(&format!("the name of tensor {index}"))?)
        .map_err(|(name, problem)| Error::tensor(path, &name, format!("name {index} {problem}")))?;
    let wrong = |problem: String| Error::tensor(path, &name, problem);
    if name.len() > MAX_NAME_BYTES {
        return Err(wrong(format!(
            "the name has {} bytes, at most {MAX_NAME_BYTES} are possible",
            name.len()
        )));
    }
    let n_dims = cursor.u32("the number of a tensor's dimensions")?;
    if !(1..=4).contains(&n_dims) {
        return Err(wrong(format!(
            "has {n_dims} dimensions, 1 to 4 are possible"
        )));
    }
    let mut dims = Vec::with_capacity(n_dims as usize);
    for _ in 0..n_dims {
        dims.push(cursor.u64("a tensor's dimensions")?);
    }
    let ggml_type = GgmlType(cursor.u32("a tensor's type")?);
    let offset = cursor.u64("a tensor's offset")?;
    let size_bytes = tensor_bytes(ggml_type, &dims).map_err(wrong)?;
    Ok(TensorInfo {
        name,
        ggml_type,
        dims,
        offset,
        size_bytes,
    })
}

/// Bytes of a tensor's data, or what is wrong with its shape.
pub(crate) fn tensor_bytes(ggml_type: GgmlType, dims: &[u64]) -> Result<u64, String> {
    if !ggml_type.is_usable() {
        return Err(format!(
            "is of {ggml_type} (id {}), which has no layout",
            ggml_type.0
        ));
    }
    if dims.contains(&0) {
        return Err(format!("a dimension of {dims:?} is 0"));
    }
    // ggml counts elements in signed 64 bits.
    let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    if elements.is_none_or(|n| n > i64::MAX as u64) {
        return Err(format!(
            "dimensions {dims:?} have more than {} elements",
            i64::MAX
        ));
    }
    let row = ggml_type.row_bytes(dims[0]).ok_or_else(|| {
        let block = ggml_type.block_elements().unwrap_or(1);
        format!(
            "a row of {} elements is not a whole number of {ggml_type} blocks of {block}",
            dims[0]
        )
    })?;
    dims[1..]
        .iter()
        .try_fold(row, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= i64::MAX as u64)
        .ok_or_else(|| {
            format!(
                "{ggml_type} data of dimensions {dims:?} has more than {} bytes",
                i64::MAX
            )
        })
}

/// Makes offsets absolute and checks that each tensor is aligned and inside the file.
fn place_tensors(
    tensors: &mut [TensorInfo],
    data_offset: u64,
    alignment: u64,
    file_size: u64,
    path: &Path,
) -> Result<(), Error> {
    for t in tensors {
        if t.offset % alignment != 0 {
            let problem = format!(
                "offset {} is not a multiple of the alignment {alignment}",
                t.offset
            );
            return Err(Error::tensor(path, &t.name, problem));
        }
        let end = data_offset
            .checked_add(t.offset)
            .and_then(|start| start.checked_add(t.size_bytes))
            .filter(|&end| end <= file_size);
        if end.is_none() {
            let problem = format!(
                "its {} bytes at offset {} of the data (which starts at {data_offset}) \
                 reach beyond the file's {file_size} bytes: \
                 the file is cut short or damaged",
                t.size_bytes, t.offset
            );
            return Err(Error::tensor(path, &t.name, problem));
        }
        t.offset += data_offset;
    }
    Ok(())
}

/// Fails if two tensors share bytes; else tells if they lie in table order without gaps.
fn check_overlaps(
    tensors: &[TensorInfo],
    data_offset: u64,
    alignment: u64,
    path: &Path,
) -> Result<bool, Error> {
    let mut sorted: Vec<&TensorInfo> = tensors.iter().collect();
    sorted.sort_by_key(|t| t.offset);
    for pair in sorted.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        if a.offset + a.size_bytes > b.offset {
            let problem = format!(
                "shares bytes with tensor \"{}\" (at offset {})",
                shown(&a.name),
                b.offset
            );
            return Err(Error::tensor(path, &b.name, problem));
        }
    }
    let mut next = data_offset;
    Ok(tensors.iter().all(|t| {
        let fits = t.offset == next;
        next = (t.offset + t.size_bytes).next_multiple_of(alignment);
        fits
    }))
}
