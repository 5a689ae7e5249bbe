//! The type table of the crate `gguf`, which does not link ggml, is ggml's own.

use std::ffi::CStr;
use std::mem::MaybeUninit;

use gguf::GgmlType;
use llama_sys::*;

/// Name, elements of a block and bytes of a block, as ggml has them.
fn traits(id: u32) -> Option<(String, u64, u64)> {
    let mut traits = MaybeUninit::uninit();
    // SAFETY: `traits` is a valid place; it is initialized when the function returns true, and the name is static.
    unsafe {
        if !faultline_type_traits(id, traits.as_mut_ptr()) {
            return None;
        }
        let traits: faultline_type_traits = traits.assume_init();
        let name = CStr::from_ptr(traits.name).to_str().unwrap().to_owned();
        Some((
            name,
            traits.block_elements as u64,
            traits.block_bytes as u64,
        ))
    }
}

#[test]
fn both_tables_know_the_same_types() {
    let known: Vec<u32> = GgmlType::all().map(|ggml_type| ggml_type.0).collect();
    assert_eq!(known, (0..GGML_TYPE_COUNT).collect::<Vec<u32>>());
    assert_eq!(traits(GGML_TYPE_COUNT), None);
    assert_eq!(traits(u32::MAX), None);
}

#[test]
fn blocks_have_the_same_sizes() {
    for ggml_type in GgmlType::all() {
        let (name, elements, bytes) = traits(ggml_type.0).unwrap();
        assert_eq!(ggml_type.is_usable(), bytes > 0, "{name}");
        if ggml_type.is_usable() {
            assert_eq!(ggml_type.name(), Some(name.as_str()));
            assert_eq!(ggml_type.block_elements(), Some(elements), "{name}");
            assert_eq!(ggml_type.block_bytes(), Some(bytes), "{name}");
            // SAFETY: the type exists and has blocks.
            let row = unsafe { ggml_row_size(ggml_type.0, 3 * elements as i64) };
            assert_eq!(
                ggml_type.row_bytes(3 * elements),
                Some(row as u64),
                "{name}"
            );
        } else {
            assert_eq!(elements, 0, "{name}");
        }
    }
}
