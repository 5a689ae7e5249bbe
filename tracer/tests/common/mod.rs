//! What the tests of this crate share.
#![allow(dead_code, reason = "each test file uses its part")]

use tracer::{Extra, ExtraKind, Flags, ModelFile, Op, Record, Tables, Tensor};

/// Tables of a small model, with room for two extra tensors.
pub(crate) fn tables() -> Tables {
    let tensor = |name: &str, n_slices: u32, layer: i32| Tensor {
        name: name.into(),
        file: 0,
        offset_bytes: 4096,
        size_bytes: 64 * u64::from(n_slices),
        ggml_type: 39,
        type_name: "mxfp4".into(),
        slice_stride_bytes: 64,
        n_slices,
        layer,
        component: "expert".into(),
    };
    Tables {
        files: vec![ModelFile {
            path: "model.gguf".into(),
            size_bytes: 1 << 30,
        }],
        tensors: vec![
            tensor("token_embd.weight", 1000, -1),
            tensor("blk.0.ffn_up_exps.weight", 32, 0),
        ],
        properties: vec![("n_threads".into(), "2".into())],
        extra_capacity: 2,
    }
}

pub(crate) fn extra() -> Extra {
    Extra {
        kind: ExtraKind::LORA,
        name: "blk.0.attn_q.weight.lora_a".into(),
        ggml_type: 1,
        type_name: "f16".into(),
        size_bytes: 128,
        slice_stride_bytes: 128,
        n_slices: 1,
        layer: 0,
    }
}

/// The record of this number in tests: every field follows from it, so that halves of two records
/// are never a third.
pub(crate) fn numbered(sequence: u64) -> Record {
    let mixed = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Record {
        time_ns: sequence,
        duration_ns: mixed as u32,
        tensor: (mixed >> 32) as u32,
        slice: (mixed >> 8) as u32,
        step: (mixed >> 16) as u32,
        n_used: (mixed >> 24) as u16,
        ubatch: (mixed >> 40) as u16,
        node: (mixed >> 48) as u16,
        op: Op((mixed >> 56) as u8),
        flags: Flags(sequence as u8),
    }
}

/// Size of a log with [`tables`] that holds this many records.
pub(crate) fn size_for(capacity: u64) -> u64 {
    8192 + (capacity + 1) * 32
}
