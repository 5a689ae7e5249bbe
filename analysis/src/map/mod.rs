//! The structure of a model: where each tensor is in its files, and on the device.

mod write;

use std::path::Path;

use gguf::ModelFiles;
use tracer::{Extent, SliceKind, Tables, Tensor};

use crate::Result;

pub use write::Format;

/// The structure of a model's files, as [`tracer::tables`] divides it into slices.
#[derive(Debug, Clone)]
pub struct ModelMap {
    architecture: Option<String>,
    tables: Tables,
    files: ModelFiles,
    /// By file, in the order of the file; empty if nobody asked.
    extents: Vec<Vec<Extent>>,
}

impl ModelMap {
    /// Reads the headers of all parts of a model. `path` may be any part of a split set.
    ///
    /// # Errors
    ///
    /// [`Error::Gguf`](crate::Error::Gguf) says what is wrong with a file.
    pub fn open(path: &Path) -> Result<ModelMap> {
        let files = ModelFiles::open_from_any_part(path)?;
        Ok(ModelMap {
            architecture: files.metadata().architecture().map(str::to_owned),
            tables: tracer::tables(&files),
            files,
            extents: Vec::new(),
        })
    }

    /// Asks the file system where the files are on their device; see [`tracer::extents`].
    ///
    /// # Errors
    ///
    /// [`Error::Log`](crate::Error::Log) if it cannot tell.
    pub fn read_extents(&mut self) -> Result<()> {
        let of_part = |part: &gguf::Gguf| tracer::extents(part.path());
        self.extents = self
            .files
            .parts
            .iter()
            .map(of_part)
            .collect::<tracer::Result<_>>()?;
        Ok(())
    }

    /// Files and tensors.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Whether the tensor is read by slices, rather than in full for every token.
    pub fn is_sparse(&self, tensor: &Tensor) -> bool {
        self.files.is_sparse(&tensor.name)
    }

    /// The parts of the extents that hold the tensor's data, in the order of the file; nothing
    /// before [`ModelMap::read_extents`].
    pub fn extents(&self, tensor: &Tensor) -> Vec<Extent> {
        let extents = self.extents.get(tensor.file as usize);
        let extents = extents.map_or(&[][..], Vec::as_slice);
        within(extents, tensor.offset_bytes, tensor.size_bytes)
    }

    fn has_extents(&self) -> bool {
        !self.extents.is_empty()
    }

    /// What the dimensions of a tensor are, the fastest first.
    fn dims(&self, tensor: &Tensor) -> &[u64] {
        let part = self.files.parts.get(tensor.file as usize);
        part.and_then(|part| part.tensor(&tensor.name))
            .map_or(&[], |info| info.dims.as_slice())
    }

    /// Totals by component, in the order in which components first appear.
    fn components(&self) -> Vec<Component> {
        let mut components: Vec<Component> = Vec::new();
        for tensor in &self.tables.tensors {
            let index = components
                .iter()
                .position(|component| component.component == tensor.component);
            let index = index.unwrap_or_else(|| {
                components.push(Component {
                    component: tensor.component.clone(),
                    n_tensors: 0,
                    size_bytes: 0,
                    sparse_bytes: 0,
                });
                components.len() - 1
            });
            let component = &mut components[index];
            component.n_tensors += 1;
            component.size_bytes += tensor.size_bytes;
            if self.is_sparse(tensor) {
                component.sparse_bytes += tensor.size_bytes;
            }
        }
        components
    }
}

/// What a tensor's slices are, in a word: `whole` where it is not read by slices.
fn slice_kind(tensor: &Tensor) -> &'static str {
    match SliceKind::of(&tensor.name) {
        Some(kind) if tensor.n_slices > 1 => kind.name(),
        _ => "whole",
    }
}

/// Totals of the tensors of one component.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
struct Component {
    component: String,
    n_tensors: u64,
    size_bytes: u64,
    /// Of these, bytes of tensors that are read by slices.
    sparse_bytes: u64,
}

/// The parts of `extents`, which are in the order of the file, that lie in a range of the file.
fn within(extents: &[Extent], offset_bytes: u64, size_bytes: u64) -> Vec<Extent> {
    let end_bytes = offset_bytes.saturating_add(size_bytes);
    let first = extents.partition_point(|extent| {
        extent.file_offset_bytes.saturating_add(extent.size_bytes) <= offset_bytes
    });
    extents[first..]
        .iter()
        .take_while(|extent| extent.file_offset_bytes < end_bytes)
        .map(|extent| {
            let begin = extent.file_offset_bytes.max(offset_bytes);
            let end = extent
                .file_offset_bytes
                .saturating_add(extent.size_bytes)
                .min(end_bytes);
            let skipped = begin - extent.file_offset_bytes;
            Extent {
                file_offset_bytes: begin,
                device_offset_bytes: extent.device_offset_bytes.saturating_add(skipped),
                size_bytes: end - begin,
                flags: extent.flags,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(file_offset_bytes: u64, device_offset_bytes: u64, size_bytes: u64) -> Extent {
        Extent {
            file_offset_bytes,
            device_offset_bytes,
            size_bytes,
            flags: tracer::ExtentFlags::default(),
        }
    }

    #[test]
    fn a_range_gets_its_parts_of_the_extents() {
        // A hole from 300 to 400.
        let file = [
            extent(0, 1000, 100),
            extent(100, 5000, 200),
            extent(400, 9000, 100),
        ];
        assert_eq!(within(&file, 0, 100), [extent(0, 1000, 100)]);
        assert_eq!(
            within(&file, 50, 100),
            [extent(50, 1050, 50), extent(100, 5000, 50)]
        );
        assert_eq!(
            within(&file, 250, 200),
            [extent(250, 5150, 50), extent(400, 9000, 50)]
        );
        assert_eq!(within(&file, 300, 100), []);
        assert_eq!(within(&file, 450, 1 << 40), [extent(450, 9050, 50)]);
        assert_eq!(within(&file, u64::MAX, u64::MAX), []);
    }
}
