//! What a program with a tokenizer takes, from metadata alone: an estimate.

use gguf::{Array, Gguf, Value};

/// The heap of a program without a model.
const PROGRAM_BYTES: u64 = 4 << 20;

/// Code and constants of the command line, as far as they are used, and the C and C++ libraries.
pub(super) const PROGRAM_FILE_BYTES: u64 = 10 << 20;

/// A token: in llama.cpp's list (40 bytes), in its table from texts to ids (a node of 56 and a bucket of 8), among the cached
/// texts (32), in the metadata of both readers.
const TOKEN_BYTES: u64 = 240;

/// A merge: a node of the map of ranks with two texts (104 bytes and what the allocator adds), and its text in the metadata.
const MERGE_BYTES: u64 = 190;

/// Tokens of the vocabulary.
pub(super) fn n_tokens(file: &Gguf) -> u64 {
    array(file, "tokenizer.ggml.tokens").map_or(0, Array::len)
}

/// Anonymous memory of a program that has read metadata and vocabulary.
pub(super) fn program_bytes(file: &Gguf) -> u64 {
    let n_merges = array(file, "tokenizer.ggml.merges").map_or(0, Array::len);
    PROGRAM_BYTES + n_tokens(file) * TOKEN_BYTES + n_merges * MERGE_BYTES
}

fn array<'a>(file: &'a Gguf, key: &str) -> Option<&'a Array> {
    file.get(key).and_then(Value::as_array)
}
