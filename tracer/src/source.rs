//! Where a log's bytes come from.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes with an address, such as a file.
///
/// Files are read and not mapped: a mapped file that another process shortens ends the reader with
/// SIGBUS.
pub trait Source {
    /// How many bytes there are now.
    ///
    /// # Errors
    ///
    /// The file cannot be asked.
    fn size_bytes(&self) -> io::Result<u64>;

    /// Fills the buffer with the bytes at `offset_bytes`.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::UnexpectedEof`] if there are fewer, and whatever the device answers.
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Source for File {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset_bytes)
    }
}

impl Source for &[u8] {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = usize::try_from(offset_bytes)
            .ok()
            .and_then(|begin| self.get(begin..begin.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}
