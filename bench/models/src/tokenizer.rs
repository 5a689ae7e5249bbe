//! A vocabulary of bytes: any text becomes tokens and comes back unchanged.

use gguf::{Array, Layout};

use crate::Error;

/// Tokens that can be written: the 256 bytes and three special ones.
pub(crate) const MIN_TOKENS: u32 = 259;

/// `<|startoftext|>`.
const BOS: u32 = 256;
/// `<|endoftext|>`.
const EOS: u32 = 257;
/// `<|pad|>`.
const PAD: u32 = 258;

/// llama.cpp's numbers for kinds of tokens.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;

/// Adds the tokenizer's metadata: GPT-2's byte-level scheme without a single merge, so that token
/// `b` is the byte `b`. Tokens beyond the special ones exist only for the size of the embedding.
pub(crate) fn write(layout: &mut Layout, n_tokens: u32) -> Result<(), Error> {
    let special = ["<|startoftext|>", "<|endoftext|>", "<|pad|>"].map(str::to_owned);
    let tokens = (0..=255)
        .map(|byte| letter(byte).to_string())
        .chain(special)
        .chain((MIN_TOKENS..n_tokens).map(|i| format!("<|unused_{i}|>")));
    let kinds: Vec<i32> = (0..n_tokens)
        .map(|id| match id {
            0..BOS => NORMAL,
            BOS..MIN_TOKENS => CONTROL,
            _ => UNUSED,
        })
        .collect();
    layout.kv("tokenizer.ggml.model", "gpt2")?;
    layout.kv("tokenizer.ggml.pre", "gpt-4o")?;
    layout.kv("tokenizer.ggml.tokens", Array::from_strings(tokens))?;
    layout.kv("tokenizer.ggml.token_type", kinds.as_slice())?;
    layout.kv("tokenizer.ggml.merges", Array::from_strings::<&str>([]))?;
    layout.kv("tokenizer.ggml.bos_token_id", BOS)?;
    layout.kv("tokenizer.ggml.eos_token_id", EOS)?;
    layout.kv("tokenizer.ggml.padding_token_id", PAD)?;
    layout.kv("tokenizer.ggml.add_bos_token", true)?;
    layout.kv("tokenizer.ggml.clean_spaces", false)?;
    Ok(())
}

/// The letter that stands for a byte in GPT-2's scheme: printable bytes for themselves, the others,
/// in order, for the letters from U+0100 on.
fn letter(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// True for tokens that a generated text may contain: printable ASCII and the line feed. Whatever
/// is generated is then text, and it does not end by itself.
pub(crate) fn is_spoken(token: u64) -> bool {
    matches!(token, 0x0a | 0x20..=0x7e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_those_of_gpt2() {
        assert_eq!(letter(b'a'), 'a');
        assert_eq!(letter(b' '), '\u{120}');
        assert_eq!(letter(b'\n'), '\u{10a}');
        assert_eq!(letter(0), '\u{100}');
        assert_eq!(letter(0xad), '\u{143}');
        let mut all: Vec<char> = (0..=255).map(letter).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 256);
    }
}
