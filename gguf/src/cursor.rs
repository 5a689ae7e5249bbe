//! Reads the header of a file front to back, never further than the file goes.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::reader::MAX_METADATA_BYTES;

/// Grow vectors by at most this much before the bytes have really been read.
const CHUNK_BYTES: u64 = 1 << 20;

/// A position in a file whose size is known.
///
/// Each read is checked against the file's size and against [`MAX_METADATA_BYTES`] before anything
/// is allocated.
pub(crate) struct Cursor<R> {
    reader: R,
    position: u64,
    file_size: u64,
    path: PathBuf,
}

impl<R: Read> Cursor<R> {
    pub(crate) fn new(reader: R, file_size: u64, path: &Path) -> Cursor<R> {
        Cursor {
            reader,
            position: 0,
            file_size,
            path: path.to_owned(),
        }
    }

    /// Bytes read so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Fails if `needed` more bytes are not in the file.
    pub(crate) fn require(&self, needed: u64, what: &str) -> Result<(), Error> {
        if needed > self.file_size - self.position {
            return Err(Error::Truncated {
                path: self.path.clone(),
                what: what.to_owned(),
                offset: self.position,
                needed,
                file_size: self.file_size,
            });
        }
        let end = self.position + needed;
        if end > MAX_METADATA_BYTES {
            return Err(Error::Limit {
                path: self.path.clone(),
                what: format!("the end of {what} in bytes"),
                value: end,
                limit: MAX_METADATA_BYTES,
            });
        }
        Ok(())
    }

    /// Fails if `count` things of at least `min_bytes` each cannot be in the rest of the file.
    pub(crate) fn require_count(
        &self,
        count: u64,
        min_bytes: u64,
        what: &str,
    ) -> Result<(), Error> {
        let limit = (self.file_size - self.position) / min_bytes;
        if count > limit {
            return Err(Error::Limit {
                path: self.path.clone(),
                what: format!("the number of {what}"),
                value: count,
                limit,
            });
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<(), Error> {
        match self.reader.read_exact(buffer) {
            Ok(()) => {
                self.position += buffer.len() as u64;
                Ok(())
            }
            // The file is shorter than it was when its size was asked for.
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(Error::Truncated {
                path: self.path.clone(),
                what: what.to_owned(),
                offset: self.position,
                needed: buffer.len() as u64,
                file_size: self.file_size,
            }),
            Err(e) => Err(Error::io(&self.path, "read", e)),
        }
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        self.require(N as u64, what)?;
        let mut buffer = [0; N];
        self.fill(&mut buffer, what)?;
        Ok(buffer)
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Appends the next `length` bytes to `out`. Memory grows as bytes arrive, not as a header
    /// promises.
    pub(crate) fn append(
        &mut self,
        out: &mut Vec<u8>,
        length: u64,
        what: &str,
    ) -> Result<(), Error> {
        self.require(length, what)?;
        let mut left = length;
        while left > 0 {
            let step = left.min(CHUNK_BYTES) as usize;
            let start = out.len();
            out.resize(start + step, 0);
            self.fill(&mut out[start..], what)?;
            left -= step as u64;
        }
        Ok(())
    }

    /// A string: its length in 8 bytes, then the bytes.
    pub(crate) fn string(&mut self, what: &str) -> Result<Vec<u8>, Error> {
        let length = self.u64(what)?;
        let mut out = Vec::new();
        self.append(&mut out, length, what)?;
        Ok(out)
    }
}
