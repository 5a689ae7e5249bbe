//! Who provides the bytes of weights that are read slice by slice.
//!
//! A tensor loaded on demand ([`Prefetch::Selective`](crate::Prefetch::Selective) or
//! [`Prefetch::None`](crate::Prefetch::None)) is announced before an operation reads it and asked for its address slice
//! by slice. [`SliceProvider`] is the Rust side of that; `docs/safety.md` has the whole contract.

use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomPinned;
use std::ops::Deref;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::Arc;

use llama_sys as sys;

use crate::failure::{Failure, FailureSlot};
pub(crate) use crate::tensors::{NodeRef, WeightRef};

/// Which dimension of a weight an operation selects slices from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// Rows: `GET_ROWS`, as for the token embedding.
    Rows,
    /// Matrices: `MUL_MAT_ID`, one expert each.
    Matrices,
    /// The whole tensor: any other operation.
    Whole,
}

impl Dim {
    fn from_raw(dim: i32) -> Dim {
        match dim {
            1 => Dim::Rows,
            2 => Dim::Matrices,
            _ => Dim::Whole,
        }
    }
}

/// One slice of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    /// Row `n` of dimension 1.
    Row(u32),
    /// Matrix `n` of dimension 2, which is one expert.
    Matrix(u32),
    /// All of the tensor.
    Whole,
}

impl Which {
    fn from_raw(dim: i32, id: i32) -> Which {
        match Dim::from_raw(dim) {
            Dim::Rows => Which::Row(id as u32),
            Dim::Matrices => Which::Matrix(id as u32),
            Dim::Whole => Which::Whole,
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Row(n) => write!(f, "row {n}"),
            Which::Matrix(n) => write!(f, "matrix {n}"),
            Which::Whole => f.write_str("the whole"),
        }
    }
}

/// The slices that an operation is about to read, in the order in which they will be read: distinct indices of rows or
/// matrices; empty for [`Dim::Whole`].
///
/// They can be read as a slice of `i32` and brought into another order. They cannot be changed otherwise, since the
/// operation computes exactly what is listed.
#[derive(Debug)]
pub struct Ids<'a>(&'a mut [i32]);

impl Ids<'_> {
    /// Swaps the positions `a` and `b`.
    ///
    /// # Panics
    ///
    /// If either is out of range.
    pub fn swap(&mut self, a: usize, b: usize) {
        self.0.swap(a, b);
    }

    /// Stable sort by `key`.
    pub fn sort_by_key<K: Ord>(&mut self, mut key: impl FnMut(i32) -> K) {
        // If `key` panics the slice still holds the same indices in some order.
        self.0.sort_by_key(|&id| key(id));
    }

    /// Reverses the order.
    pub fn reverse(&mut self) {
        self.0.reverse();
    }
}

impl Deref for Ids<'_> {
    type Target = [i32];

    fn deref(&self) -> &[i32] {
        self.0
    }
}

/// What [`SliceProvider::begin`] is told.
#[derive(Debug)]
pub struct Begin<'a> {
    /// The operation.
    pub node: NodeRef<'a>,
    /// The weight that it is about to read.
    pub weight: WeightRef<'a>,
    /// What it selects from.
    pub dim: Dim,
    /// The slices, which may be reordered: results do not depend on the order.
    pub ids: Ids<'a>,
}

impl Begin<'_> {
    /// What the operation multiplies its matrices with for the first token: the hidden state that the experts of a layer are given
    /// (gate and up), or what they have made of it (down). `[ne0]` f32, ne0 being the length of a row of the weight. `None` for other
    /// operations than `MUL_MAT_ID`, and if it is not f32.
    pub fn input(&self) -> Option<&[f32]> {
        let input = self.node.source(1)?;
        let length = usize::try_from(input.ne()[0]).ok()?;
        let is_row = self.dim == Dim::Matrices
            && input.ggml_type() == gguf::GgmlType::F32
            && input.nb()[0] == size_of::<f32>()
            && !input.ne().contains(&0)
            && input.data().cast::<f32>().is_aligned();
        if !is_row || input.data().is_null() {
            return None;
        }
        // SAFETY: only `on_begin` makes a `Begin`, since `Ids` has no other maker. Thread 0 is in it, so all sources of the operation
        // are computed, and nothing writes to them before the operation ends. The first row has `length` contiguous f32.
        Some(unsafe { std::slice::from_raw_parts(input.data().cast(), length) })
    }
}

/// Provides the bytes of weights that are loaded on demand.
///
/// For every operation that reads such a weight, ggml calls
///
/// 1. [`begin`](SliceProvider::begin) once, on thread 0 (the thread that called [`Context::decode`](crate::Context::decode)),
/// 2. [`get`](SliceProvider::get) before each slice is read, on every worker thread that reads it, so several times for
///    one slice and at the same time,
/// 3. [`end`](SliceProvider::end) once, on thread 0, after all threads have finished the operation, also when it failed.
///
/// `begin` must not wait for I/O: while thread 0 is in it, the other threads spin in a barrier. Waiting belongs into
/// `get`. None of the three may call into the [`Context`](crate::Context) that is decoding.
///
/// A panic in any of them is caught: the decode ends with [`Error::CallbackPanicked`](crate::Error::CallbackPanicked),
/// and until it returns none of the three is called again. A `get` that returns `None` ends the decode with
/// [`Error::SliceUnavailable`](crate::Error::SliceUnavailable).
///
/// # Safety
///
/// For every `get` between a `begin` and its `end`, the returned address must point at the slice's bytes as in the
/// model file ([`WeightRef::slice_bytes`] of them), readable and unchanged until `end` for that operation has been
/// called. [`WeightRef::mapped`], the default, is such an address. Of a weight with a [`packing`](WeightRef::packing), which only
/// memory that [`repacks`](crate::ModelMemory::repacks) has, it must point at those bytes after
/// [`Packing::repack`](crate::Packing::repack).
pub unsafe trait SliceProvider: Send + Sync {
    /// The operation is about to read the slices in `access.ids`. May reorder them and start I/O; must not wait.
    fn begin(&self, access: &mut Begin<'_>);

    /// The address of a slice, which is about to be read; waits until the bytes are there. `None` when they cannot be
    /// had. The default is the mapped file.
    fn get(&self, weight: WeightRef<'_>, which: Which) -> Option<NonNull<u8>> {
        weight.mapped(which)
    }

    /// All threads have finished the operation.
    fn end(&self, node: NodeRef<'_>, weight: WeightRef<'_>) {
        let _ = (node, weight);
    }

    /// Why `get` returned `None`; asked once by the decode that failed, on its own thread.
    fn take_reason(&self) -> Option<String> {
        None
    }
}

// SAFETY: forwards to the same provider, which keeps the contract.
unsafe impl<P: SliceProvider + ?Sized> SliceProvider for Arc<P> {
    fn begin(&self, access: &mut Begin<'_>) {
        (**self).begin(access);
    }

    fn get(&self, weight: WeightRef<'_>, which: Which) -> Option<NonNull<u8>> {
        (**self).get(weight, which)
    }

    fn end(&self, node: NodeRef<'_>, weight: WeightRef<'_>) {
        (**self).end(node, weight);
    }

    fn take_reason(&self) -> Option<String> {
        (**self).take_reason()
    }
}

/// A provider with the failures of its callbacks: the `user_data` of the C interface.
pub(crate) struct ProviderState {
    provider: Box<dyn SliceProvider>,
    failure: FailureSlot,
    /// C holds the address.
    _pinned: PhantomPinned,
}

impl fmt::Debug for ProviderState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderState")
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl ProviderState {
    pub(crate) fn new(provider: impl SliceProvider + 'static) -> Pin<Box<Self>> {
        Box::pin(ProviderState {
            provider: Box::new(provider),
            failure: FailureSlot::new(),
            _pinned: PhantomPinned,
        })
    }

    /// The C interface; its functions expect [`user_data`](ProviderState::user_data).
    pub(crate) fn interface() -> sys::ggml_backend_cpu_lazy_i {
        sys::ggml_backend_cpu_lazy_i {
            begin: Some(on_begin),
            get: Some(on_get),
            end: Some(on_end),
        }
    }

    /// What C passes back to the callbacks. Valid while `self` lives.
    pub(crate) fn user_data(self: &Pin<Box<Self>>) -> *mut c_void {
        std::ptr::from_ref::<Self>(self).cast_mut().cast()
    }

    /// The first failure since the last call, as an error.
    pub(crate) fn take_error(&self) -> Option<crate::Error> {
        let failure = self.failure.take()?;
        let reason = match failure {
            Failure::Unavailable { .. } => self
                .failure
                .catch("SliceProvider::take_reason", || self.provider.take_reason())
                .flatten(),
            Failure::Panicked { .. } | Failure::Misrouted { .. } => None,
        };
        // A panic in take_reason has nothing to add to the failure that it was asked about.
        let _ = self.failure.take();
        Some(failure.into_error(reason))
    }
}

/// # Safety
///
/// `user_data` is a [`ProviderState::user_data`] whose state is alive.
unsafe fn state<'a>(user_data: *mut c_void) -> Option<&'a ProviderState> {
    // SAFETY: the caller promises a live ProviderState, which is pinned, Sync, and never borrowed mutably.
    unsafe { user_data.cast::<ProviderState>().as_ref() }
}

unsafe extern "C" fn on_begin(
    node: *const sys::ggml_tensor,
    weight: *const sys::ggml_tensor,
    dim: i32,
    ids: *mut i32,
    n_ids: i32,
    user_data: *mut c_void,
) {
    // SAFETY: registered together with its state, which the `Context` frees only after the C context.
    let Some(state) = (unsafe { state(user_data) }) else {
        return;
    };
    if state.failure.is_set() {
        return;
    }
    state.failure.catch("SliceProvider::begin", || {
        // SAFETY: ggml passes the node that it is about to compute and its weight; both outlive this call, and no
        // thread changes a tensor's description during a compute.
        let (node, weight) = unsafe { (NodeRef::from_raw(node), WeightRef::from_raw(weight)) };
        let (Some(node), Some(weight)) = (node, weight) else {
            return;
        };
        let ids: &mut [i32] = match usize::try_from(n_ids) {
            // SAFETY: ggml passes `n_ids` initialised indices that only this call may touch until it returns.
            Ok(n) if n > 0 && !ids.is_null() => unsafe { std::slice::from_raw_parts_mut(ids, n) },
            _ => &mut [],
        };
        let mut access = Begin {
            node,
            weight,
            dim: Dim::from_raw(dim),
            ids: Ids(ids),
        };
        state.provider.begin(&mut access);
    });
}

unsafe extern "C" fn on_get(
    weight: *const sys::ggml_tensor,
    dim: i32,
    id: i32,
    user_data: *mut c_void,
) -> *const c_void {
    // SAFETY: as in on_begin.
    let Some(state) = (unsafe { state(user_data) }) else {
        return std::ptr::null();
    };
    if state.failure.is_set() {
        return std::ptr::null();
    }
    // SAFETY: as in on_begin.
    let Some(weight) = (unsafe { WeightRef::from_raw(weight) }) else {
        return std::ptr::null();
    };
    let which = Which::from_raw(dim, id);
    match state
        .failure
        .catch("SliceProvider::get", || state.provider.get(weight, which))
    {
        Some(Some(address)) => address.as_ptr().cast_const().cast(),
        Some(None) => {
            state.failure.record(Failure::Unavailable {
                tensor: weight.name().to_owned(),
                slice: which.to_string(),
            });
            std::ptr::null()
        }
        None => std::ptr::null(),
    }
}

unsafe extern "C" fn on_end(
    node: *const sys::ggml_tensor,
    weight: *const sys::ggml_tensor,
    user_data: *mut c_void,
) {
    // SAFETY: as in on_begin.
    let Some(state) = (unsafe { state(user_data) }) else {
        return;
    };
    // After a missing slice the provider still hears the end, so that it can release what begin took.
    if state.failure.has_panicked() {
        return;
    }
    state.failure.catch("SliceProvider::end", || {
        // SAFETY: as in on_begin.
        let (node, weight) = unsafe { (NodeRef::from_raw(node), WeightRef::from_raw(weight)) };
        if let (Some(node), Some(weight)) = (node, weight) {
            state.provider.end(node, weight);
        }
    });
}
