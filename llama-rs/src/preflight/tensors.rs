//! Types and places of tensors.
//!
//! llama.cpp takes the type from the file and asserts, or calls through a null pointer, when an operation of the running
//! graph has no code for it.

use gguf::{GgmlType, ModelFiles, TensorInfo};
use llama_sys as sys;

use super::Verdict;

/// llama.cpp maps tensors at multiples of this (`TENSOR_ALIGNMENT`).
const ALIGNMENT: u64 = 32;

pub(super) fn check(files: &ModelFiles) -> Verdict {
    let mut any = false;
    for (part, tensor) in files.tensors() {
        any = true;
        if !tensor.offset.is_multiple_of(ALIGNMENT) {
            let alignment = files.parts[part].alignment();
            return Err(format!(
                "tensor {} is at offset {}, which is not a multiple of {ALIGNMENT} (general.alignment is {alignment})",
                tensor.name, tensor.offset
            ));
        }
        check_type(tensor)?;
    }
    if any {
        Ok(())
    } else {
        Err("the file has no tensors: it holds a vocabulary only".to_owned())
    }
}

fn check_type(tensor: &TensorInfo) -> Verdict {
    let refuse = |expected: &str| {
        Err(format!(
            "tensor {} is of type {}, not {expected}",
            tensor.name, tensor.ggml_type
        ))
    };
    if tensor.name.contains("tid2eid") {
        // A table of expert numbers.
        return if tensor.ggml_type == GgmlType::I32 {
            Ok(())
        } else {
            refuse("i32")
        };
    }
    // Vectors are added to and multiplied with the hidden state, which is f32; so are all biases.
    let is_vector = tensor.dims.len() == 1
        || tensor.name.ends_with(".bias")
        || tensor.name.ends_with("_norm.weight");
    if is_vector {
        return if tensor.ggml_type == GgmlType::F32 {
            Ok(())
        } else {
            refuse("f32")
        };
    }
    if is_multipliable(tensor.ggml_type) {
        Ok(())
    } else {
        refuse("one that matrices can have")
    }
}

/// Whether the CPU backend can multiply a matrix of this type.
pub(super) fn is_multipliable(ggml_type: GgmlType) -> bool {
    if !ggml_type.is_usable() {
        return false;
    }
    // SAFETY: the function indexes a static table; a usable type is inside it (llama-sys holds both tables equal).
    let traits = unsafe { sys::ggml_get_type_traits_cpu(ggml_type.0).as_ref() };
    traits.is_some_and(|traits| traits.vec_dot.is_some())
}
