//! What a log says about the model: its files, its tensors, and how the run was set up.

use sha2::{Digest, Sha256};

use crate::codec::{Decoder, Malformed, cut, put_text};

/// Limit of one table in the file: 64 MiB, several hundred thousand tensors.
pub const MAX_TABLE_BYTES: u64 = 64 << 20;

/// Longest name of an extra tensor, in bytes; ggml's limit is 63. Longer ones are cut.
pub const EXTRA_NAME_BYTES_MAX: usize = 72;

/// Longest name of the type of an extra tensor.
const EXTRA_TYPE_NAME_BYTES_MAX: usize = 16;

/// Size of one entry of the region for extra tensors.
pub(crate) const EXTRA_BYTES: usize = 128;

/// What a log knows about the model before the first record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// The parts of the model, in their order.
    pub files: Vec<ModelFile>,
    /// The tensors; records name them by their index here.
    pub tensors: Vec<Tensor>,
    /// Anything else worth knowing about the run, such as version, threads, batch sizes.
    pub properties: Vec<(String, String)>,
    /// Room for tensors that are met only at run time.
    pub extra_capacity: u32,
}

impl Default for Tables {
    fn default() -> Tables {
        Tables {
            files: Vec::new(),
            tensors: Vec::new(),
            properties: Vec::new(),
            extra_capacity: 1024,
        }
    }
}

/// One part of the model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelFile {
    /// The path as the user gave it.
    pub path: String,
    /// Size of the file.
    pub size_bytes: u64,
}

/// One tensor of the model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tensor {
    /// The name in the file.
    pub name: String,
    /// Index of its part in [`Tables::files`].
    pub file: u32,
    /// Where its data begins, from the beginning of that file.
    pub offset_bytes: u64,
    /// Size of its data.
    pub size_bytes: u64,
    /// Number of the type in ggml (`enum ggml_type`).
    pub ggml_type: u32,
    /// Name of the type, such as `q4_K`.
    pub type_name: String,
    /// Distance between two slices; the size of the tensor where it is not read by slices.
    pub slice_stride_bytes: u64,
    /// Number of slices; 1 where it is not read by slices.
    pub n_slices: u32,
    /// Number of the layer, or -1 for none.
    pub layer: i32,
    /// What it is for: its name without layer and suffix, such as `attn_q`, `ffn_down_exps`.
    pub component: String,
}

/// A tensor that weights are read from and that is not in the model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// Where it comes from.
    pub kind: ExtraKind,
    /// Its name at run time; at most [`EXTRA_NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Number of the type in ggml.
    pub ggml_type: u32,
    /// Name of the type.
    pub type_name: String,
    /// Size of its data.
    pub size_bytes: u64,
    /// Distance between two slices.
    pub slice_stride_bytes: u64,
    /// Number of slices.
    pub n_slices: u32,
    /// Number of the layer, or -1 for none.
    pub layer: i32,
}

/// Where an extra tensor comes from. Numbers are those of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExtraKind(pub u32);

impl ExtraKind {
    /// None of the others.
    pub const OTHER: ExtraKind = ExtraKind(0);
    /// A tensor of a LoRA adapter.
    pub const LORA: ExtraKind = ExtraKind(1);
    /// A matrix that rotates keys or values for a quantized KV cache. Where it is recorded it is an operand; ggml's CPU code
    /// computes the rotation without reading it.
    pub const KV_ROTATION: ExtraKind = ExtraKind(2);
    /// A copy of a tensor of the file that is laid out for the CPU's kernels.
    pub const REPACKED: ExtraKind = ExtraKind(3);
    /// A control vector.
    pub const CONTROL_VECTOR: ExtraKind = ExtraKind(4);

    /// A word for people, or `None` for a number that this version does not know.
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            ExtraKind::OTHER => "other",
            ExtraKind::LORA => "lora",
            ExtraKind::KV_ROTATION => "kv_rotation",
            ExtraKind::REPACKED => "repacked",
            ExtraKind::CONTROL_VECTOR => "control_vector",
            _ => return None,
        })
    }
}

impl Tables {
    /// Names the model: SHA-256 over what each tensor is and where it stands, and nothing that
    /// depends on the path of a file or on the version of this program. `docs/format.md` gives the
    /// bytes.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for tensor in &self.tensors {
            let mut bytes = Vec::with_capacity(tensor.name.len() + 26);
            put_text(&mut bytes, &tensor.name);
            bytes.extend_from_slice(&tensor.file.to_le_bytes());
            bytes.extend_from_slice(&tensor.offset_bytes.to_le_bytes());
            bytes.extend_from_slice(&tensor.size_bytes.to_le_bytes());
            bytes.extend_from_slice(&tensor.ggml_type.to_le_bytes());
            hash.update(&bytes);
        }
        hash.finalize().into()
    }

    pub(crate) fn encode_files(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for file in &self.files {
            bytes.extend_from_slice(&file.size_bytes.to_le_bytes());
            put_text(&mut bytes, &file.path);
        }
        bytes
    }

    pub(crate) fn encode_tensors(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for tensor in &self.tensors {
            bytes.extend_from_slice(&tensor.offset_bytes.to_le_bytes());
            bytes.extend_from_slice(&tensor.size_bytes.to_le_bytes());
            bytes.extend_from_slice(&tensor.slice_stride_bytes.to_le_bytes());
            bytes.extend_from_slice(&tensor.n_slices.to_le_bytes());
            bytes.extend_from_slice(&tensor.file.to_le_bytes());
            bytes.extend_from_slice(&tensor.ggml_type.to_le_bytes());
            bytes.extend_from_slice(&tensor.layer.to_le_bytes());
            put_text(&mut bytes, &tensor.name);
            put_text(&mut bytes, &tensor.type_name);
            put_text(&mut bytes, &tensor.component);
        }
        bytes
    }

    pub(crate) fn encode_properties(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (key, value) in &self.properties {
            put_text(&mut bytes, key);
            put_text(&mut bytes, value);
        }
        bytes
    }
}

/// Decodes `count` entries that fill `bytes` exactly. Entries are at least 4 bytes long, so that
/// memory is bounded by the size of the input whatever the count says.
fn decode_all<T>(
    bytes: &[u8],
    count: u32,
    one: impl Fn(&mut Decoder<'_>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let mut decoder = Decoder::new(bytes);
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(one(&mut decoder)?);
    }
    if decoder.left() > 0 {
        return Err(decoder.malformed(format!(
            "{} bytes are left after {count} entries",
            decoder.left()
        )));
    }
    Ok(entries)
}

pub(crate) fn decode_files(bytes: &[u8], count: u32) -> Result<Vec<ModelFile>, Malformed> {
    decode_all(bytes, count, |decoder| {
        Ok(ModelFile {
            size_bytes: decoder.u64()?,
            path: decoder.text()?,
        })
    })
}

pub(crate) fn decode_tensors(bytes: &[u8], count: u32) -> Result<Vec<Tensor>, Malformed> {
    decode_all(bytes, count, |decoder| {
        Ok(Tensor {
            offset_bytes: decoder.u64()?,
            size_bytes: decoder.u64()?,
            slice_stride_bytes: decoder.u64()?,
            n_slices: decoder.u32()?,
            file: decoder.u32()?,
            ggml_type: decoder.u32()?,
            layer: decoder.i32()?,
            name: decoder.text()?,
            type_name: decoder.text()?,
            component: decoder.text()?,
        })
    })
}

pub(crate) fn decode_properties(
    bytes: &[u8],
    count: u32,
) -> Result<Vec<(String, String)>, Malformed> {
    decode_all(bytes, count, |decoder| {
        Ok((decoder.text()?, decoder.text()?))
    })
}

impl Extra {
    pub(crate) fn encode(&self) -> [u8; EXTRA_BYTES] {
        let name = cut(&self.name, EXTRA_NAME_BYTES_MAX);
        let type_name = cut(&self.type_name, EXTRA_TYPE_NAME_BYTES_MAX);
        let mut bytes = [0; EXTRA_BYTES];
        bytes[4..8].copy_from_slice(&self.kind.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.ggml_type.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.layer.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.size_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.slice_stride_bytes.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.n_slices.to_le_bytes());
        bytes[36] = name.len() as u8;
        bytes[37] = type_name.len() as u8;
        bytes[40..40 + name.len()].copy_from_slice(name.as_bytes());
        bytes[112..112 + type_name.len()].copy_from_slice(type_name.as_bytes());
        let checksum = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Extra, Malformed> {
        let mut decoder = Decoder::new(bytes);
        let checksum = decoder.u32()?;
        let found = crc32fast::hash(&bytes[4..]);
        if checksum != found {
            return Err(decoder.malformed(format!(
                "checksum {checksum:#010x}, but the bytes give {found:#010x}"
            )));
        }
        let kind = ExtraKind(decoder.u32()?);
        let ggml_type = decoder.u32()?;
        let layer = decoder.i32()?;
        let size_bytes = decoder.u64()?;
        let slice_stride_bytes = decoder.u64()?;
        let n_slices = decoder.u32()?;
        let name_bytes = usize::from(decoder.u8()?);
        let type_name_bytes = usize::from(decoder.u8()?);
        decoder.u16()?;
        let mut text = |room: usize, size_bytes: usize| {
            let field = decoder.bytes(room)?;
            match field.get(..size_bytes).map(str::from_utf8) {
                Some(Ok(text)) => Ok(text.to_owned()),
                _ => Err(decoder.malformed("the name of an extra tensor is not a text")),
            }
        };
        Ok(Extra {
            kind,
            ggml_type,
            layer,
            size_bytes,
            slice_stride_bytes,
            n_slices,
            name: text(EXTRA_NAME_BYTES_MAX, name_bytes)?,
            type_name: text(EXTRA_TYPE_NAME_BYTES_MAX, type_name_bytes)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extra(name: &str) -> Extra {
        Extra {
            kind: ExtraKind::LORA,
            name: name.into(),
            ggml_type: 1,
            type_name: "f16".into(),
            size_bytes: 1 << 40,
            slice_stride_bytes: 7,
            n_slices: 3,
            layer: -1,
        }
    }

    #[test]
    fn extra_tensors_come_back_and_long_names_are_cut() {
        let short = extra("blk.0.attn_q.weight.lora_a");
        assert_eq!(Extra::decode(&short.encode()), Ok(short));
        let long = Extra::decode(&extra(&"n".repeat(300)).encode()).unwrap();
        assert_eq!(long.name, "n".repeat(EXTRA_NAME_BYTES_MAX));
    }

    #[test]
    fn every_flipped_bit_of_an_extra_tensor_is_noticed() {
        let bytes = extra("x").encode();
        for bit in 0..EXTRA_BYTES * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Extra::decode(&changed).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_digest_is_of_the_model_and_not_of_the_run() {
        let tensor = Tensor {
            name: "output.weight".into(),
            size_bytes: 64,
            ..Tensor::default()
        };
        let one = Tables {
            tensors: vec![tensor.clone()],
            ..Tables::default()
        };
        let mut other = one.clone();
        other.files.push(ModelFile::default());
        other.tensors[0].component = "output".into();
        assert_eq!(one.digest(), other.digest());
        other.tensors[0].size_bytes = 65;
        assert_ne!(one.digest(), other.digest());
    }

    #[test]
    fn a_count_that_does_not_fit_the_bytes_is_refused() {
        let tables = Tables {
            files: vec![ModelFile::default()],
            ..Tables::default()
        };
        let bytes = tables.encode_files();
        assert!(decode_files(&bytes, 1).is_ok());
        assert!(decode_files(&bytes, 2).is_err());
        assert!(decode_files(&bytes, 0).is_err());
        assert!(decode_files(&bytes, u32::MAX).is_err());
    }
}
