//! The weights of a loaded model.

use std::ffi::CStr;

use llama_sys as sys;

use crate::model::Model;
use crate::packing::Packing;
use crate::tensors::TensorKey;

/// A tensor that a loaded model computes with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedWeight {
    /// Its name, as in the model's files: [`Model::files`] says where it is.
    pub name: String,
    /// What an observer sees of it: [`WeightRef::key`](crate::WeightRef::key).
    pub key: TensorKey,
    /// Address of its data: in the mapped file, or in memory when it was repacked or the model is not mapped.
    pub address: usize,
    /// Bytes of its data.
    pub size_bytes: u64,
    /// Whether operations read it where a [`SliceProvider`](crate::SliceProvider) says.
    pub is_lazy: bool,
    /// How it is repacked, if it is so where it was loaded, or slices of it have to be.
    pub packing: Option<Packing>,
}

impl Model {
    /// The tensors that the model computes with, in no particular order; the keys are distinct and valid while the model
    /// lives.
    ///
    /// With one hash table from key to tensor of the file, each access that an
    /// [observer](crate::NodeObserver) sees takes one lookup. A key that is not here belongs to no tensor of the
    /// files. A name can be here twice: an output that is tied to the token embedding has a copy of its own when
    /// weights are repacked.
    pub fn weights(&self) -> Vec<LoadedWeight> {
        // SAFETY: the model is alive; a capacity of 0 only counts.
        let count = unsafe { sys::faultline_model_tensors(self.raw(), std::ptr::null_mut(), 0) };
        let mut tensors = vec![std::ptr::null(); count];
        // SAFETY: the model is alive, and loaded, so that the list does not change; `tensors` is writable for its length.
        unsafe { sys::faultline_model_tensors(self.raw(), tensors.as_mut_ptr(), tensors.len()) };
        tensors.into_iter().filter_map(describe).collect()
    }
}

/// `tensor` is NULL or belongs to a model that is alive.
fn describe(tensor: *const sys::ggml_tensor) -> Option<LoadedWeight> {
    // SAFETY: by the contract above; a loaded model's tensors do not change.
    let fields = unsafe { tensor.as_ref() }?;
    // SAFETY: ggml keeps names NUL-terminated inside the fixed array.
    let name = unsafe { CStr::from_ptr(fields.name.as_ptr()) };
    Some(LoadedWeight {
        name: name.to_string_lossy().into_owned(),
        key: TensorKey::of(tensor),
        address: fields.data.expose_provenance(),
        // SAFETY: a valid tensor.
        size_bytes: unsafe { sys::ggml_nbytes(tensor) } as u64,
        is_lazy: fields.flags.cast_unsigned() & sys::GGML_TENSOR_FLAG_LAZY != 0,
        packing: Packing::of(fields),
    })
}
