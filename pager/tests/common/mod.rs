//! What the tests and the example share.

use gguf::TensorInfo;
use model_shapes::Shape;
use pager::Slices;

/// The tables of a model of this shape, without the file. `n_used`: experts that a token uses.
pub(crate) fn slices_of(shape: &Shape, n_used: u32) -> Slices {
    let mut tensors: Vec<TensorInfo> = shape.tensors().to_vec();
    let end = tensors
        .iter()
        .map(|tensor| tensor.offset + tensor.size_bytes)
        .max();
    let data_offset = shape.total_bytes() - end.unwrap_or(0).next_multiple_of(32);
    tensors
        .iter_mut()
        .for_each(|tensor| tensor.offset += data_offset);
    Slices::from_tables(&[&tensors], Some(n_used)).expect("a shape has few slices")
}
