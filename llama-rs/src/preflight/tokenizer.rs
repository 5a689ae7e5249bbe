//! The vocabulary.

use gguf::{Array, Gguf, Value, ValueType};

use super::Verdict;

/// Tokens of a vocabulary that are believed; the largest known one has 262,208.
const TOKENS_MAX: u64 = 1 << 24;

pub(super) fn check(metadata: &Gguf) -> Verdict {
    let model = match metadata.get("tokenizer.ggml.model") {
        None => {
            return Err(
                "the file has no tokenizer: the metadata key tokenizer.ggml.model is missing \
                        (\"none\" there marks a model that is used with token ids only)"
                    .to_owned(),
            );
        }
        Some(value) => value
            .as_str()
            .ok_or("the metadata key tokenizer.ggml.model is not text")?,
    };
    if matches!(model, "none" | "no_vocab") {
        return Ok(());
    }
    let tokens = required_array(metadata, "tokenizer.ggml.tokens", &[ValueType::String])?;
    if tokens.is_empty() || tokens.len() > TOKENS_MAX {
        return Err(format!(
            "tokenizer.ggml.tokens has {} tokens, outside 1..={TOKENS_MAX}",
            tokens.len()
        ));
    }
    for (key, types) in [
        (
            "tokenizer.ggml.scores",
            &[ValueType::F32, ValueType::I32][..],
        ),
        ("tokenizer.ggml.token_type", &[ValueType::I32]),
    ] {
        let Some(array) = optional_array(metadata, key, types)? else {
            continue;
        };
        if array.len() < tokens.len() {
            return Err(format!(
                "{key} has {} values for {} tokens",
                array.len(),
                tokens.len()
            ));
        }
    }
    optional_array(metadata, "tokenizer.ggml.merges", &[ValueType::String])?;
    if let Some(map) = optional_array(
        metadata,
        "tokenizer.ggml.precompiled_charsmap",
        &[ValueType::I8, ValueType::U8],
    )? {
        // Its last part is texts that llama.cpp reads up to the NUL behind each.
        let ends = matches!(map.iter().last(), Some(Value::I8(0) | Value::U8(0)));
        if !ends {
            return Err("tokenizer.ggml.precompiled_charsmap does not end with a NUL".to_owned());
        }
    }
    Ok(())
}

fn required_array<'a>(
    metadata: &'a Gguf,
    key: &str,
    types: &[ValueType],
) -> Result<&'a Array, String> {
    optional_array(metadata, key, types)?
        .ok_or_else(|| format!("the metadata key {key} is missing"))
}

fn optional_array<'a>(
    metadata: &'a Gguf,
    key: &str,
    types: &[ValueType],
) -> Result<Option<&'a Array>, String> {
    let Some(value) = metadata.get(key) else {
        return Ok(None);
    };
    match value.as_array() {
        Some(array) if types.contains(&array.element_type()) => Ok(Some(array)),
        Some(array) => Err(format!(
            "{key} is an array of {}",
            array.element_type().name()
        )),
        None => Err(format!(
            "{key} is a {}, not an array",
            value.value_type().name()
        )),
    }
}
