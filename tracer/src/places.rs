//! From a byte of a model file to the tensor and slice that it belongs to.

use std::ops::Range;

use crate::{Access, Tables, Tensor, WHOLE};

/// Where the tensors of a model are in its files.
#[derive(Debug, Clone)]
pub struct Places {
    /// For each file, its tensors by their offset.
    files: Vec<Vec<Place>>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    begin: u64,
    end: u64,
    tensor: u32,
    stride_bytes: u64,
    n_slices: u32,
}

impl Places {
    /// The places of all tensors. Tensors of files that the tables do not have are left out.
    pub fn new(tables: &Tables) -> Places {
        let mut files = vec![Vec::new(); tables.files.len()];
        for (id, tensor) in (0..).zip(&tables.tensors) {
            if let Some(places) = files.get_mut(tensor.file as usize) {
                places.push(Place {
                    begin: tensor.offset_bytes,
                    end: tensor.offset_bytes.saturating_add(tensor.size_bytes),
                    tensor: id,
                    stride_bytes: tensor.slice_stride_bytes.max(1),
                    n_slices: tensor.n_slices,
                });
            }
        }
        for places in &mut files {
            places.sort_by_key(|place| (place.begin, place.tensor));
        }
        Places { files }
    }

    /// The tensor that has this byte, and the slice of it ([`WHOLE`] where it is not read by slices). Where tensors share
    /// their bytes it is the first of them.
    pub fn find(&self, file: u32, offset_bytes: u64) -> Option<(u32, u32)> {
        let places = self.files.get(file as usize)?;
        let after = places.partition_point(|place| place.begin <= offset_bytes);
        let begin = places[..after].last()?.begin;
        let same = places[..after].partition_point(|place| place.begin < begin);
        let place = places[same..after]
            .iter()
            .find(|place| offset_bytes < place.end)?;
        let slice = if place.n_slices > 1 {
            ((offset_bytes - place.begin) / place.stride_bytes) as u32
        } else {
            WHOLE
        };
        Some((place.tensor, slice))
    }

    /// Calls `each` for the tensors that have bytes in the range, with these bytes, in their order. Bytes that tensors share
    /// count for the first of them. Returns how many bytes belong to none.
    pub fn split(
        &self,
        file: u32,
        range: Range<u64>,
        mut each: impl FnMut(u32, Range<u64>),
    ) -> u64 {
        let size_bytes = range.end.saturating_sub(range.start);
        let Some(places) = self.files.get(file as usize) else {
            return size_bytes;
        };
        let mut n_inside = 0;
        let mut at = range.start;
        // The tensor before the range may reach into it.
        let after = places.partition_point(|place| place.begin <= range.start);
        let first = match places[..after].last() {
            Some(last) => places[..after].partition_point(|place| place.begin < last.begin),
            None => 0,
        };
        for place in &places[first..] {
            if place.begin >= range.end {
                break;
            }
            let part = place.begin.max(at)..place.end.min(range.end);
            if part.start < part.end {
                at = part.end;
                n_inside += part.end - part.start;
                each(place.tensor, part);
            }
        }
        size_bytes - n_inside
    }
}

/// The bytes of its file that an access of this tensor reads. Slices that the tensor does not have are empty.
pub fn bytes_of(tensor: &Tensor, access: Access) -> Range<u64> {
    let end = tensor.offset_bytes.saturating_add(tensor.size_bytes);
    if access.slice == WHOLE {
        return tensor.offset_bytes..end;
    }
    let at = |slice: u64| {
        let distance = slice.saturating_mul(tensor.slice_stride_bytes);
        tensor.offset_bytes.saturating_add(distance).min(end)
    };
    at(u64::from(access.slice))..at(u64::from(access.slice) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelFile;

    fn tables() -> Tables {
        let tensor = |file, offset_bytes, size_bytes, n_slices| Tensor {
            file,
            offset_bytes,
            size_bytes,
            slice_stride_bytes: size_bytes / u64::from(n_slices),
            n_slices,
            ..Tensor::default()
        };
        Tables {
            files: vec![ModelFile::default(); 2],
            tensors: vec![
                tensor(0, 1000, 400, 4),
                tensor(0, 100, 200, 1),
                tensor(1, 0, 50, 1),
                // Shares the bytes of the second.
                tensor(0, 100, 200, 1),
            ],
            ..Tables::default()
        }
    }

    #[test]
    fn bytes_lead_to_tensors_and_slices() {
        let places = Places::new(&tables());
        for (file, offset_bytes, expected) in [
            (0, 99, None),
            (0, 100, Some((1, WHOLE))),
            (0, 299, Some((1, WHOLE))),
            (0, 300, None),
            (0, 1000, Some((0, 0))),
            (0, 1399, Some((0, 3))),
            (0, 1400, None),
            (1, 49, Some((2, WHOLE))),
            (2, 0, None),
        ] {
            assert_eq!(
                places.find(file, offset_bytes),
                expected,
                "{file} {offset_bytes}"
            );
        }
    }

    #[test]
    fn a_range_is_split_without_counting_a_byte_twice() {
        let places = Places::new(&tables());
        let split = |file, range| {
            let mut parts = Vec::new();
            let outside = places.split(file, range, |tensor, part| parts.push((tensor, part)));
            (parts, outside)
        };
        assert_eq!(
            split(0, 0..4096),
            (vec![(1, 100..300), (0, 1000..1400)], 4096 - 600)
        );
        assert_eq!(
            split(0, 200..1100),
            (vec![(1, 200..300), (0, 1000..1100)], 700)
        );
        assert_eq!(split(0, 1100..1200), (vec![(0, 1100..1200)], 0));
        assert_eq!(split(3, 5..15), (vec![], 10));
    }

    #[test]
    fn an_access_reads_its_slice_or_all() {
        let tensor = &tables().tensors[0];
        let bytes = |slice| {
            bytes_of(
                tensor,
                Access {
                    tensor: 0,
                    slice,
                    n_used: 1,
                },
            )
        };
        assert_eq!(bytes(WHOLE), 1000..1400);
        assert_eq!(bytes(3), 1300..1400);
        assert!(bytes(4).is_empty());
    }
}
