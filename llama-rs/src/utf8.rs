//! Text from a stream of bytes that may be cut inside a character.

/// Turns pieces of bytes into text, holding back the bytes of a character that is not complete yet.
///
/// A token of a byte-level tokenizer may be a part of a character. Printing every piece at once would show
/// replacement characters; this keeps at most 3 bytes until the rest arrives.
///
/// ```
/// let mut text = llama_rs::Utf8Stream::new();
/// assert_eq!(text.push(b"caf\xc3"), "caf");
/// assert_eq!(text.held_bytes(), 1);
/// assert_eq!(text.push(b"\xa9"), "\u{e9}");
/// assert_eq!(text.finish(), "");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The start of a character, shorter than its length. At most 3 bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// An empty stream.
    pub fn new() -> Self {
        Utf8Stream::default()
    }

    /// Appends `bytes` and returns all characters that are now complete. Bytes that cannot be part of any
    /// character become U+FFFD, as in [`String::from_utf8_lossy`].
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut rest: &[u8] = &self.pending;
        let held_back = loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    break 0;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        Some(invalid) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &after[invalid..];
                        }
                        None => break after.len(),
                    }
                }
            }
        };
        self.pending.drain(..self.pending.len() - held_back);
        text
    }

    /// Bytes that are held back.
    pub fn held_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Ends the stream: what is still held back becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&rest).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_gives_the_same_text() {
        let text = "a\u{e9}\u{20ac}\u{1f980}z";
        for cut in 0..=text.len() {
            let mut stream = Utf8Stream::new();
            let (head, tail) = text.as_bytes().split_at(cut);
            let mut out = stream.push(head);
            assert!(!out.contains(char::REPLACEMENT_CHARACTER));
            out += &stream.push(tail);
            out += &stream.finish();
            assert_eq!(out, text, "cut at {cut}");
        }
    }

    #[test]
    fn byte_by_byte() {
        let text = "\u{1f980}\u{10ffff}x";
        let mut stream = Utf8Stream::new();
        let out: String = text.bytes().map(|byte| stream.push(&[byte])).collect();
        assert_eq!(out, text);
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn invalid_bytes_equal_the_lossy_conversion() {
        for bytes in [
            &b"a\xffb"[..],
            b"\xc3(",
            b"\xf0\x9f\xa6",
            b"\xed\xa0\x80",
            b"\x80\x80",
        ] {
            let mut stream = Utf8Stream::new();
            let mut out = stream.push(bytes);
            out += &stream.finish();
            assert_eq!(out, String::from_utf8_lossy(bytes), "{bytes:x?}");
        }
    }
}
