//! What loading a model takes of the heap.

use gguf::{ModelFiles, Value};

/// Tensors, layers and buffers of llama.cpp and of the pager.
const BASE_BYTES: u64 = 4 << 20;
/// A token is in two tables of the vocabulary, its text in both and once more as a piece.
const TOKEN_BYTES: u64 = 300;
/// A merge is a pair of texts in a table of its own.
const MERGE_BYTES: u64 = 128;
/// Copies of the metadata as they are in the file: one stays, llama.cpp has the other until it has made the vocabulary.
const METADATA_COPIES: u64 = 2;

/// Most bytes of the heap while llama.cpp loads the model, as far as the metadata tells; most of them stay.
pub(crate) fn loading_bytes(model: &ModelFiles) -> u64 {
    let metadata = model.metadata();
    let len = |key| {
        let array = metadata.get(key).and_then(Value::as_array);
        array.map_or(0, gguf::Array::len)
    };
    let metadata_bytes: u64 = model.parts.iter().map(|part| part.data_offset()).sum();
    BASE_BYTES
        + TOKEN_BYTES * len("tokenizer.ggml.tokens")
        + MERGE_BYTES * len("tokenizer.ggml.merges")
        + METADATA_COPIES * metadata_bytes
}

/// Gives memory back that was freed: otherwise it stays with the process, in holes that no plan can use.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks; what is allocated stays where it is (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model_shapes::{Shape, generate_hollow};

    #[test]
    fn a_vocabulary_takes_heap() {
        let folder = tempfile::tempdir().unwrap();
        let bytes_of = |name: &str| {
            let path = folder.path().join(name);
            generate_hollow(&Shape::by_name(name).unwrap(), &path).unwrap();
            loading_bytes(&ModelFiles::open(&path).unwrap())
        };
        let (narrow, wide) = (bytes_of("tiny-gpt-oss"), bytes_of("tiny-gpt-oss-wide"));
        assert!(narrow < 2 * BASE_BYTES, "{narrow}");
        // 70,000 tokens.
        assert!(wide > narrow + 69_000 * TOKEN_BYTES, "{wide}");
    }
}
