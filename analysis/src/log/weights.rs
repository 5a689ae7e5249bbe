//! The tensors of a log, as accesses name them.

use tracer::{Record, SliceKind, Source, WHOLE};

/// A tensor that accesses read, from the model's files or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    /// The name in the file, or at run time for a tensor that is in none.
    pub name: String,
    /// What it is for, such as `ffn_down_exps`; for a tensor that is in no file, where it comes from.
    pub component: String,
    /// Number of the layer.
    pub layer: Option<i32>,
    /// Where it is in the model's files.
    pub place: Option<FilePlace>,
    /// Size of its data.
    pub size_bytes: u64,
    /// Distance between two slices.
    pub slice_stride_bytes: u64,
    /// Number of slices.
    pub n_slices: u32,
    kind: SliceKind,
}

/// Where a tensor is in the model's files, and where that was in the recorded process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilePlace {
    /// Index of the file.
    pub file: u32,
    /// From the beginning of that file.
    pub offset_bytes: u64,
    /// Address of the first byte of the file in the recorded process, if the log has it.
    pub mapping: Option<u64>,
}

/// The bytes that an access reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bytes {
    /// How many. `None` if the record contradicts the table of tensors.
    pub size_bytes: Option<u64>,
    /// Index of the file, and where in it.
    pub in_file: Option<(u32, u64)>,
    /// Address in the recorded process.
    pub address: Option<u64>,
}

impl Weight {
    /// What the record's slice is: `whole`, `expert` or `row`.
    pub fn slice_kind(&self, record: &Record) -> &'static str {
        if record.slice == WHOLE {
            "whole"
        } else {
            self.kind.name()
        }
    }

    /// The bytes that an access of this tensor reads.
    pub fn bytes(&self, record: &Record) -> Bytes {
        let (begin, size_bytes) = match record.slice {
            WHOLE => (0, self.size_bytes),
            slice if slice < self.n_slices => (
                u64::from(slice).saturating_mul(self.slice_stride_bytes),
                self.slice_stride_bytes,
            ),
            _ => return Bytes::default(),
        };
        let in_file = self.place.and_then(|place| {
            let offset_bytes = place.offset_bytes.checked_add(begin)?;
            Some((place.file, offset_bytes))
        });
        let address = in_file.and_then(|(_, offset_bytes)| {
            let mapping = self.place?.mapping?;
            mapping.checked_add(offset_bytes)
        });
        Bytes {
            size_bytes: Some(size_bytes),
            in_file,
            address,
        }
    }
}

/// All tensors of a log, by the numbers of its records.
#[derive(Debug, Clone)]
pub struct Weights(Vec<Weight>);

impl Weights {
    /// The tensors that a log knows.
    pub fn of<S: Source>(log: &tracer::LogReader<S>) -> Weights {
        let tables = log.tables();
        let layer = |layer: i32| (layer >= 0).then_some(layer);
        let tensors = tables.tensors.iter().map(|tensor| Weight {
            name: tensor.name.clone(),
            component: tensor.component.clone(),
            layer: layer(tensor.layer),
            place: Some(FilePlace {
                file: tensor.file,
                offset_bytes: tensor.offset_bytes,
                mapping: log.address(tensor.file),
            }),
            size_bytes: tensor.size_bytes,
            slice_stride_bytes: tensor.slice_stride_bytes,
            n_slices: tensor.n_slices,
            kind: SliceKind::of(&tensor.name).unwrap_or(SliceKind::Row),
        });
        let extras = log.extras().iter().map(|extra| Weight {
            name: extra.name.clone(),
            component: extra.kind.name().unwrap_or("other").to_owned(),
            layer: layer(extra.layer),
            place: None,
            size_bytes: extra.size_bytes,
            slice_stride_bytes: extra.slice_stride_bytes,
            n_slices: extra.n_slices,
            kind: SliceKind::of(&extra.name).unwrap_or(SliceKind::Row),
        });
        Weights(tensors.chain(extras).collect())
    }

    /// The tensor of this number; none if the log is damaged there.
    pub fn get(&self, id: u32) -> Option<&Weight> {
        self.0.get(id as usize)
    }

    /// In the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &Weight> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(mapping: Option<u64>) -> Weight {
        Weight {
            name: "blk.0.ffn_up_exps.weight".into(),
            component: "ffn_up_exps".into(),
            layer: Some(0),
            place: Some(FilePlace {
                file: 1,
                offset_bytes: 4096,
                mapping,
            }),
            size_bytes: 80,
            slice_stride_bytes: 10,
            n_slices: 8,
            kind: SliceKind::Expert,
        }
    }

    fn record(slice: u32) -> Record {
        Record {
            slice,
            ..Record::default()
        }
    }

    #[test]
    fn a_slice_is_stride_bytes_at_its_number() {
        let bytes = weight(Some(0x7000_0000)).bytes(&record(3));
        assert_eq!(bytes.size_bytes, Some(10));
        assert_eq!(bytes.in_file, Some((1, 4126)));
        assert_eq!(bytes.address, Some(0x7000_0000 + 4126));
        assert_eq!(weight(None).bytes(&record(WHOLE)).size_bytes, Some(80));
        assert_eq!(weight(None).bytes(&record(3)).address, None);
    }

    #[test]
    fn a_slice_that_the_tensor_does_not_have_has_no_bytes() {
        assert_eq!(weight(Some(1)).bytes(&record(8)), Bytes::default());
        let mut huge = weight(Some(u64::MAX));
        huge.slice_stride_bytes = u64::MAX;
        assert_eq!(huge.bytes(&record(7)).in_file, None);
        assert_eq!(huge.bytes(&record(0)).address, None);
    }
}
