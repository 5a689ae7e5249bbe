//! Pictures of one colour as PNG, for what has too many cells to be drawn one by one.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::ZlibEncoder;

/// The colour: it stands out from white and from near black.
const COLOUR: [u8; 3] = [0x1f, 0x83, 0xd6];

/// A PNG of `width` x `height` pixels, each as opaque as its byte says, from the top left to the bottom right.
pub(crate) fn encode(width: u32, height: u32, opacity: &[u8]) -> Vec<u8> {
    assert_eq!(opacity.len() as u64, u64::from(width) * u64::from(height));
    let mut header = Vec::with_capacity(13);
    header.extend_from_slice(&width.to_be_bytes());
    header.extend_from_slice(&height.to_be_bytes());
    // 8 bits of a palette.
    header.extend_from_slice(&[8, 3, 0, 0, 0]);
    let mut rows = ZlibEncoder::new(Vec::new(), Compression::best());
    for row in opacity.chunks_exact(width.max(1) as usize) {
        // Filter 0: bytes as they are. Writing to a vector does not fail.
        let _ = rows.write_all(&[0]).and_then(|()| rows.write_all(row));
    }
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    chunk(&mut png, b"IHDR", &header);
    chunk(&mut png, b"PLTE", &COLOUR.repeat(256));
    let opacities: Vec<u8> = (0..=255).collect();
    chunk(&mut png, b"tRNS", &opacities);
    chunk(&mut png, b"IDAT", &rows.finish().unwrap_or_default());
    chunk(&mut png, b"IEND", &[]);
    png
}

fn chunk(png: &mut Vec<u8>, name: &[u8; 4], data: &[u8]) {
    png.extend_from_slice(&(data.len() as u32).to_be_bytes());
    let begin = png.len();
    png.extend_from_slice(name);
    png.extend_from_slice(data);
    let checksum = crc32fast::hash(&png[begin..]);
    png.extend_from_slice(&checksum.to_be_bytes());
}

/// As RFC 4648 writes it, with padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            if index <= group.len() {
                let letter = word >> (18 - 6 * index) & 63;
                text.push(char::from(LETTERS[letter as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        let encoded = ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes()));
        assert_eq!(encoded, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }

    #[test]
    fn a_png_has_its_chunks_and_pixels() {
        let png = encode(3, 2, &[0, 1, 2, 253, 254, 255]);
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
        assert_eq!(&png[12..24], b"IHDR\0\0\0\x03\0\0\0\x02");
        let at = png.windows(4).position(|name| name == b"IDAT").unwrap();
        let mut rows = Vec::new();
        let mut decoder = flate2::write::ZlibDecoder::new(&mut rows);
        decoder.write_all(&png[at + 4..png.len() - 16]).unwrap();
        decoder.finish().unwrap();
        assert_eq!(rows, [0, 0, 1, 2, 0, 253, 254, 255]);
    }
}
