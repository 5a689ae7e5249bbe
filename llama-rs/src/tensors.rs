//! Views of ggml's tensors that a callback is lent.

use std::ffi::CStr;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

use llama_sys as sys;

use crate::packing::Packing;
use crate::slices::{Dim, Which};

/// Tells tensors apart, as the key of a hash table: the address of the `ggml_tensor`.
///
/// The key of a weight is the same in every graph while its model lives; [`Model::weights`](crate::Model::weights) has
/// the keys of all of them. The keys of nodes are used again by other nodes of later graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorKey(usize);

impl TensorKey {
    pub(crate) fn of(tensor: *const sys::ggml_tensor) -> TensorKey {
        TensorKey(tensor.addr())
    }

    /// The address. A multiple of 16 in practice: hash it, or shift it, before taking its low bits.
    pub fn address(self) -> usize {
        self.0
    }
}

/// A view of a `ggml_tensor` during a callback. Transparent, so that an array of pointers is an array of views.
macro_rules! tensor_view {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        pub struct $name<'a> {
            raw: NonNull<sys::ggml_tensor>,
            _callback: PhantomData<&'a sys::ggml_tensor>,
        }

        impl<'a> $name<'a> {
            /// # Safety
            ///
            /// `raw` points at a tensor that stays valid, and whose description does not change, for 'a.
            pub(crate) unsafe fn from_raw(raw: *const sys::ggml_tensor) -> Option<Self> {
                NonNull::new(raw.cast_mut()).map(|raw| $name { raw, _callback: PhantomData })
            }

            pub(crate) fn tensor(&self) -> &'a sys::ggml_tensor {
                // SAFETY: `from_raw` was promised a valid tensor with a fixed description for 'a.
                unsafe { self.raw.as_ref() }
            }

            /// The tensor's name; at most 63 bytes. Bytes that are not UTF-8 give an empty name.
            pub fn name(&self) -> &'a str {
                // SAFETY: ggml keeps names NUL-terminated inside the fixed array, which lives for 'a.
                let name = unsafe { CStr::from_ptr(self.tensor().name.as_ptr()) };
                name.to_str().unwrap_or("")
            }

            /// The ggml type of the elements.
            pub fn ggml_type(&self) -> gguf::GgmlType {
                gguf::GgmlType(self.tensor().type_)
            }

            /// Elements in each dimension; the first is the contiguous one.
            pub fn ne(&self) -> [i64; 4] {
                self.tensor().ne
            }

            /// Stride of each dimension in bytes.
            pub fn nb(&self) -> [usize; 4] {
                self.tensor().nb.map(|stride| stride as usize)
            }

            /// Address of the tensor's data. For a weight this is where the model file maps it, unless it was repacked or
            /// read into memory.
            pub fn data(&self) -> *const u8 {
                self.tensor().data.cast_const().cast()
            }

            /// What tells this tensor from others.
            pub fn key(&self) -> TensorKey {
                TensorKey::of(self.raw.as_ptr())
            }
        }

        impl fmt::Debug for $name<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).field("name", &self.name()).field("ne", &self.ne()).finish()
            }
        }
    };
}

tensor_view! {
    /// An operation, during a callback.
    NodeRef
}

tensor_view! {
    /// A tensor that an operation reads, during a callback: a weight, a view of one, a part of the KV cache, an input of the
    /// graph, or the result of another operation.
    SourceRef
}

tensor_view! {
    /// A weight, during a callback.
    WeightRef
}

impl<'a> NodeRef<'a> {
    /// The operation's name in ggml, such as `MUL_MAT_ID`.
    pub fn op(&self) -> &'static str {
        // SAFETY: ggml_op_name returns a string literal for every operation that a tensor can have.
        unsafe { CStr::from_ptr(sys::ggml_op_name(self.tensor().op)) }
            .to_str()
            .unwrap_or("")
    }

    /// The operation's number in ggml, below 256: a short form of [`op`](NodeRef::op), valid for this build.
    pub fn op_id(&self) -> u32 {
        self.tensor().op
    }

    /// Tokens that the operation processes at once: 1 while decoding, the ubatch's size for a prompt.
    pub fn n_tokens(&self) -> u64 {
        let [_, ne1, ne2, ne3] = self.ne();
        // MUL_MAT_ID gives [rows, experts used, tokens]; GET_ROWS and everything else [row, tokens].
        let n = if self.tensor().op == sys::GGML_OP_MUL_MAT_ID {
            ne2 * ne3
        } else {
            ne1 * ne2 * ne3
        };
        u64::try_from(n).unwrap_or(0)
    }

    /// Whether there is nothing to compute: ggml skips the operation then, and reads none of its sources. This is so for
    /// what leads to the logits when no token of a ubatch asks for them.
    pub fn is_empty(&self) -> bool {
        self.tensor().ne.contains(&0)
    }

    /// Source `index` of the operation; `None` when it has no such source.
    pub fn source(&self, index: usize) -> Option<SourceRef<'a>> {
        let raw = *self.tensor().src.get(index)?;
        // SAFETY: NULL, or a tensor of the same graph, which is as valid as the node.
        unsafe { SourceRef::from_raw(raw) }
    }

    /// All sources, with their indices.
    pub fn sources(&self) -> impl Iterator<Item = (usize, SourceRef<'a>)> + use<'a> {
        let node = *self;
        (0..node.tensor().src.len()).filter_map(move |index| Some((index, node.source(index)?)))
    }
}

impl<'a> SourceRef<'a> {
    /// The weight that this is, or is a view of. `None` for results of operations, inputs and the KV cache.
    ///
    /// Weights are tensors without an operation in a buffer that llama.cpp marks as holding weights. Nearly all are tensors
    /// of the model's files. Those of adapters, and constants such as the rotation of a quantised KV cache, are not: their
    /// [keys](WeightRef::key) are not among those of [`Model::weights`](crate::Model::weights).
    pub fn weight(&self) -> Option<WeightRef<'a>> {
        let this = self.tensor();
        let raw = if this.view_src.is_null() {
            self.raw.as_ptr()
        } else {
            this.view_src
        };
        // SAFETY: not NULL; ggml resolves views of views, so this is the tensor that owns the data, which lives at least as
        // long as its view.
        let base = unsafe { WeightRef::from_raw(raw) }?;
        let tensor = base.tensor();
        if tensor.op != sys::GGML_OP_NONE || !tensor.view_src.is_null() || tensor.buffer.is_null() {
            return None;
        }
        // SAFETY: the buffer of a tensor in a graph that is being computed is alive.
        let usage = unsafe { sys::ggml_backend_buffer_get_usage(tensor.buffer) };
        (usage == sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS).then_some(base)
    }

    /// Whether this is a view into another tensor.
    pub fn is_view(&self) -> bool {
        !self.tensor().view_src.is_null()
    }

    /// Where this begins in the tensor that it is a view of, in bytes; 0 for what is no view.
    pub fn offset_bytes(&self) -> usize {
        self.tensor().view_offs
    }

    /// Bytes from the first element to the last.
    pub fn size_bytes(&self) -> usize {
        // SAFETY: a valid tensor.
        unsafe { sys::ggml_nbytes(self.raw.as_ptr()) }
    }
}

impl WeightRef<'_> {
    /// Bytes of one slice; for [`Dim::Whole`] of the whole tensor.
    pub fn slice_bytes(&self, dim: Dim) -> usize {
        let nb = self.nb();
        match dim {
            Dim::Rows => nb[1],
            Dim::Matrices => nb[2],
            Dim::Whole => nb[3] * usize::try_from(self.ne()[3]).unwrap_or(0),
        }
    }

    /// How slices of it have to be repacked before a [`SliceProvider`](crate::SliceProvider) gives their address; `None`: not
    /// at all.
    pub fn packing(&self) -> Option<Packing> {
        Packing::of(self.tensor())
    }

    /// Where the slice is in the mapped file.
    pub fn mapped(&self, which: Which) -> Option<NonNull<u8>> {
        let offset = match which {
            Which::Row(n) => n as usize * self.nb()[1],
            Which::Matrix(n) => n as usize * self.nb()[2],
            Which::Whole => 0,
        };
        NonNull::new(self.data().cast_mut().wrapping_add(offset))
    }
}
