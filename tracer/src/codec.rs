//! Numbers and texts in little-endian bytes, with every length checked.

use std::fmt;

/// Why bytes are not what they should be: what was read, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) at: usize,
    pub(crate) what: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "byte {}: {}", self.at, self.what)
    }
}

/// Reads from the front of a byte slice.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Decoder<'a> {
        Decoder { bytes, at: 0 }
    }

    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn malformed(&self, what: impl Into<String>) -> Malformed {
        Malformed {
            at: self.at,
            what: what.into(),
        }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        if count > self.left() {
            return Err(self.malformed(format!(
                "{count} bytes are announced, {} are left",
                self.left()
            )));
        }
        let bytes = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn digest(&mut self) -> Result<[u8; 32], Malformed> {
        self.array()
    }

    /// A text with its length in front, as [`put_text`] writes it.
    pub(crate) fn text(&mut self) -> Result<String, Malformed> {
        let size_bytes = usize::from(self.u16()?);
        let bytes = self.bytes(size_bytes)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.malformed("a text is not UTF-8")),
        }
    }
}

/// Appends a text: its length as u16, then its bytes. Texts that are longer are cut between two
/// characters.
pub(crate) fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let text = cut(text, usize::from(u16::MAX));
    bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// The longest front of a text that has at most `max_bytes` bytes.
pub(crate) fn cut(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_and_long_ones_are_cut_between_characters() {
        let mut bytes = Vec::new();
        put_text(&mut bytes, "blk.0");
        put_text(&mut bytes, &"ä".repeat(40_000));
        let mut decoder = Decoder::new(&bytes);
        assert_eq!(decoder.text().unwrap(), "blk.0");
        assert_eq!(decoder.text().unwrap(), "ä".repeat(32_767));
        assert_eq!(decoder.left(), 0);
    }

    #[test]
    fn lengths_past_the_end_are_refused() {
        let mut decoder = Decoder::new(&[5, 0, b'a']);
        let error = decoder.text().unwrap_err();
        assert_eq!(
            error.to_string(),
            "byte 2: 5 bytes are announced, 1 are left"
        );
    }
}
