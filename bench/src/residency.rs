//! Which bytes of the model's files are in the page cache: by `cachestat` where there are none, by `mincore` on a mapping that is never
//! touched where there are some.

use std::fs::File;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Bytes mapped at a time: bounds the result vector to 64 KiB for 4 KiB pages.
const WINDOW_BYTES: u64 = 256 << 20;

/// The size of a page in bytes.
pub(crate) fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

/// Calls `f(first_byte, bytes)` for each run of resident pages of `file`, in order, clipped to the file's length.
pub(crate) fn resident_runs(file: &File, mut f: impl FnMut(u64, u64)) -> io::Result<()> {
    let len = file.metadata()?.len();
    let page = page_bytes();
    let mut run: Option<(u64, u64)> = None;
    let mut flags = Vec::new();
    let mut window = 0;
    while window < len {
        let window_len = WINDOW_BYTES.min(len - window);
        // One flag for all of them, where none is there: asking for each takes 5 ms.
        flags.clear();
        if resident::cached_pages(file, window, window_len).ok() == Some(0) {
            flags.push(0);
        } else {
            resident::mincore_file(file, window, window_len, &mut flags)?;
        }
        for (index, flag) in flags.iter().enumerate() {
            let start = window + index as u64 * page;
            let end = (start + page).min(len);
            // Only the lowest bit is defined.
            if flag & 1 == 1 {
                match &mut run {
                    Some((_, run_end)) => *run_end = end,
                    None => run = Some((start, end)),
                }
            } else if let Some((start, end)) = run.take() {
                f(start, end - start);
            }
        }
        window += window_len;
    }
    if let Some((start, end)) = run {
        f(start, end - start);
    }
    Ok(())
}

/// Resident bytes of one file.
pub(crate) fn resident_bytes(path: &Path) -> io::Result<u64> {
    let mut total = 0;
    resident_runs(&File::open(path)?, |_, bytes| total += bytes)?;
    Ok(total)
}

/// Bytes of a model's files, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ByClass {
    pub(crate) dense_bytes: u64,
    pub(crate) sparse_bytes: u64,
    /// Header, metadata and padding between tensors.
    pub(crate) other_bytes: u64,
}

impl ByClass {
    pub(crate) fn total(self) -> u64 {
        self.dense_bytes + self.sparse_bytes + self.other_bytes
    }
}

/// A tensor's byte range in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
    sparse: bool,
}

/// The tensors of a model as byte ranges, for telling dense from sparse pages.
#[derive(Debug)]
pub(crate) struct ModelMap {
    parts: Vec<(std::path::PathBuf, Vec<Range>)>,
}

impl ModelMap {
    pub(crate) fn new(files: &gguf::ModelFiles) -> ModelMap {
        let mut parts: Vec<_> = files
            .parts
            .iter()
            .map(|part| (part.path().to_path_buf(), Vec::new()))
            .collect();
        for (part, tensor) in files.tensors() {
            parts[part].1.push(Range {
                start: tensor.offset,
                end: tensor.offset + tensor.size_bytes,
                sparse: files.is_sparse(&tensor.name),
            });
        }
        for (_, ranges) in &mut parts {
            ranges.sort_unstable_by_key(|range| range.start);
        }
        ModelMap { parts }
    }

    /// Resident bytes of all parts. A page that two tensors share counts for each with the bytes that are its own.
    pub(crate) fn resident(&self) -> io::Result<ByClass> {
        let mut sum = ByClass::default();
        for (path, ranges) in &self.parts {
            let mut next = 0;
            resident_runs(&File::open(path)?, |start, bytes| {
                let found = overlap(ranges, &mut next, start, start + bytes);
                sum.dense_bytes += found.dense_bytes;
                sum.sparse_bytes += found.sparse_bytes;
                sum.other_bytes += found.other_bytes;
            })?;
        }
        Ok(sum)
    }
}

/// Splits `start..end` by the sorted, disjoint `ranges`. `next` is the first range that may still overlap; runs must
/// come in ascending order.
fn overlap(ranges: &[Range], next: &mut usize, start: u64, end: u64) -> ByClass {
    while ranges.get(*next).is_some_and(|range| range.end <= start) {
        *next += 1;
    }
    let mut found = ByClass::default();
    for range in ranges[*next..].iter().take_while(|range| range.start < end) {
        let bytes = range.end.min(end) - range.start.max(start);
        if range.sparse {
            found.sparse_bytes += bytes;
        } else {
            found.dense_bytes += bytes;
        }
    }
    found.other_bytes = end - start - found.dense_bytes - found.sparse_bytes;
    found
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_freshly_written_file_is_resident_and_clipped_to_its_length() {
        let mut file = tempfile::tempfile().unwrap();
        let len = 5 * page_bytes() + 17;
        file.write_all(&vec![7; len as usize]).unwrap();
        let mut runs = Vec::new();
        resident_runs(&file, |start, bytes| runs.push((start, bytes))).unwrap();
        assert_eq!(runs, [(0, len)]);
    }

    #[test]
    fn an_empty_file_has_no_runs() {
        let file = tempfile::tempfile().unwrap();
        resident_runs(&file, |_, _| panic!("no run expected")).unwrap();
    }

    #[test]
    fn bytes_are_split_by_tensor() {
        let ranges = [
            Range {
                start: 100,
                end: 200,
                sparse: false,
            },
            Range {
                start: 224,
                end: 400,
                sparse: true,
            },
            Range {
                start: 400,
                end: 500,
                sparse: false,
            },
        ];
        let mut next = 0;
        let first = overlap(&ranges, &mut next, 0, 250);
        assert_eq!(
            first,
            ByClass {
                dense_bytes: 100,
                sparse_bytes: 26,
                other_bytes: 124
            }
        );
        let second = overlap(&ranges, &mut next, 300, 600);
        assert_eq!(
            second,
            ByClass {
                dense_bytes: 100,
                sparse_bytes: 100,
                other_bytes: 100
            }
        );
        assert_eq!(second.total(), 300);
        assert_eq!(next, 1);
    }
}
