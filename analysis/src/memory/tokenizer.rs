//! What a program with a tokenizer takes, from metadata alone: an estimate.

use gguf::{Array, Gguf, Value};

/// The heap of a program without a model.
const PROGRAM_BYTES: u64 = 3 << 20;

/// Code and constants of the command line, as far as they are used, and the C and C++ libraries.
pub(super) const PROGRAM_FILE_BYTES: u64 = 13 << 20;

/// A token: in llama.cpp's list (40 bytes), in its table from texts to ids (a node of 56 and a bucket of 8), among the cached
/// texts (32), and its bytes in the metadata.
const TOKEN_BYTES: u64 = 160;

/// The longest text that a C++ string holds without memory of its own.
const SHORT_TEXT_BYTES: u64 = 15;

/// C++ strings of one token: in the list, in the table, among the cached texts.
const TEXTS: u64 = 3;

/// A merge: a node of the map of ranks with two texts (112 bytes, and what the allocator adds), and its bytes in the metadata.
const MERGE_BYTES: u64 = 185;

/// Tokens of the vocabulary.
pub(super) fn n_tokens(file: &Gguf) -> u64 {
    array(file, "tokenizer.ggml.tokens").map_or(0, Array::len)
}

/// Anonymous memory of a program that has read metadata and vocabulary.
pub(super) fn program_bytes(file: &Gguf) -> u64 {
    let tokens = array(file, "tokenizer.ggml.tokens");
    let lengths = tokens
        .into_iter()
        .flat_map(Array::strings)
        .map(|text| text.len() as u64);
    let texts: u64 = lengths
        .filter(|&length| length > SHORT_TEXT_BYTES)
        // Its end, the allocator's header, and its alignment.
        .map(|length| TEXTS * (length + 1 + 8).next_multiple_of(16))
        .sum();
    let n_merges = array(file, "tokenizer.ggml.merges").map_or(0, Array::len);
    PROGRAM_BYTES + n_tokens(file) * TOKEN_BYTES + texts + n_merges * MERGE_BYTES
}

fn array<'a>(file: &'a Gguf, key: &str) -> Option<&'a Array> {
    file.get(key).and_then(Value::as_array)
}
