//! Where files are mapped in this process.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A part of a file that is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// Index of the file.
    pub(crate) file: u32,
    /// Where it begins in the file.
    pub(crate) offset_bytes: u64,
}

impl Mapping {
    /// Where byte 0 of the file is, or would be, mapped.
    pub(crate) fn base(&self) -> u64 {
        self.begin.wrapping_sub(self.offset_bytes)
    }
}

/// What tells a file in the list of mappings. Some file systems (btrfs, overlays) show another device there than `stat(2)`
/// gives, so a path counts as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileIdentity {
    device: (u32, u32),
    inode: u64,
    path: Vec<u8>,
}

impl FileIdentity {
    pub(crate) fn of(path: &Path) -> io::Result<FileIdentity> {
        let metadata = fs::metadata(path)?;
        let device = metadata.dev();
        Ok(FileIdentity {
            device: (rustix::fs::major(device), rustix::fs::minor(device)),
            inode: metadata.ino(),
            path: fs::canonicalize(path)?.as_os_str().as_bytes().to_vec(),
        })
    }
}

/// All mappings of the files, by address.
pub(crate) fn mappings(files: &[FileIdentity]) -> io::Result<Vec<Mapping>> {
    Ok(parse(&fs::read("/proc/self/maps")?, files))
}

/// The file that is mapped at an address, and the byte of it that is there.
pub(crate) fn find(mappings: &[Mapping], address: u64) -> Option<(u32, u64)> {
    let after = mappings.partition_point(|mapping| mapping.begin <= address);
    let mapping = mappings[..after].last()?;
    (address < mapping.end).then(|| (mapping.file, mapping.offset_bytes + address - mapping.begin))
}

/// Lines that are not understood are passed over.
fn parse(text: &[u8], files: &[FileIdentity]) -> Vec<Mapping> {
    let lines = text.split(|&byte| byte == b'\n');
    lines.filter_map(|line| parse_line(line, files)).collect()
}

/// Such as `7f1c4a000000-7f1c4b000000 r--s 00000000 fe:00 1234    /models/a.gguf`; numbers are hexadecimal, except the inode.
fn parse_line(line: &[u8], files: &[FileIdentity]) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let end = rest.iter().position(|&byte| byte == b' ')?;
        let (field, after) = rest.split_at(end);
        rest = &after[1..];
        std::str::from_utf8(field).ok()
    };
    let (begin, end) = field()?.split_once('-')?;
    field()?;
    let offset = field()?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?.parse::<u64>().ok()?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let device = (hex(major)? as u32, hex(minor)? as u32);
    let path = rest.trim_ascii_start();
    let file = files.iter().position(|file| {
        file.inode == inode && file.device == device || !path.is_empty() && file.path == path
    })?;
    Some(Mapping {
        begin: hex(begin)?,
        end: hex(end)?,
        file: file as u32,
        offset_bytes: hex(offset)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_lead_to_files_by_device_and_inode_or_by_path() {
        let file = |device, inode, path: &[u8]| FileIdentity {
            device,
            inode,
            path: path.to_vec(),
        };
        let files = [
            file((254, 0), 77, b"/models/a.gguf"),
            file((0, 50), 5, b"/models/with a space.gguf"),
        ];
        let text = b"\
1000-3000 r--s 00000000 fe:00 77                         /models/renamed.gguf\n\
4000-5000 rw-p 00000000 00:00 0 \n\
5000-6000 rw-p 00000000 00:00 0                          [heap]\n\
8000-9000 r--s 0001f000 00:2a 6                          /models/with a space.gguf\n\
9000-a000 r--s 00000000 fe:00 78                         /models/other.gguf\n\
nonsense\n";
        let mappings = parse(text, &files);
        assert_eq!(mappings.len(), 2);
        assert_eq!(find(&mappings, 0x0fff), None);
        assert_eq!(find(&mappings, 0x2abc), Some((0, 0x1abc)));
        assert_eq!(find(&mappings, 0x3000), None);
        assert_eq!(find(&mappings, 0x8001), Some((1, 0x1f001)));
        assert_eq!(mappings[0].base(), 0x1000);
    }

    #[test]
    fn the_program_itself_is_mapped() {
        let program = std::env::current_exe().unwrap();
        let files = [FileIdentity::of(&program).unwrap()];
        let mappings = mappings(&files).unwrap();
        assert!(!mappings.is_empty());
        let function = the_program_itself_is_mapped as fn() as usize as u64;
        assert!(find(&mappings, function).is_some());
    }
}
