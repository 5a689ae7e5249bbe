//! One private owner per C object.
//!
//! Each owns exactly one pointer and frees it once. Lifetimes and thread rules are stated by the public types that
//! hold these.

use std::ptr::NonNull;

use llama_sys as sys;

/// Owns a `llama_model`.
#[derive(Debug)]
pub(crate) struct InnerModel(NonNull<sys::llama_model>);

impl InnerModel {
    /// Takes ownership of `model`; `None` for NULL.
    ///
    /// # Safety
    ///
    /// `model` is NULL or was returned by a load function and is owned by nobody else.
    pub(crate) unsafe fn from_raw(model: *mut sys::llama_model) -> Option<Self> {
        NonNull::new(model).map(InnerModel)
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::llama_model {
        self.0.as_ptr()
    }
}

impl Drop for InnerModel {
    fn drop(&mut self) {
        // SAFETY: `self` owns the model, and every context borrows the `Model` around `self`, so none is left.
        unsafe { sys::llama_model_free(self.0.as_ptr()) }
    }
}

// SAFETY: a llama_model is not bound to the thread that loaded it: it holds no thread-local state, and
// llama_model_free may run anywhere.
unsafe impl Send for InnerModel {}
// SAFETY: after loading, llama.cpp only reads the model; tokenizers keep their working state on the caller's stack.
// Loading an adapter adds it to the model's list, and needs `&mut Model`.
// The one write, the training context that llama_init_from_model adjusts, happens only for a frequency scale given by
// the caller, which `ContextParams` does not offer.
unsafe impl Sync for InnerModel {}

/// Points at a `llama_adapter_lora`, which its model owns and frees.
#[derive(Debug)]
pub(crate) struct InnerLora(NonNull<sys::llama_adapter_lora>);

impl InnerLora {
    /// `None` for NULL.
    pub(crate) fn from_raw(adapter: *mut sys::llama_adapter_lora) -> Option<Self> {
        NonNull::new(adapter).map(InnerLora)
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::llama_adapter_lora {
        self.0.as_ptr()
    }
}

// SAFETY: an adapter is plain memory, as much bound to a thread as its model is: not at all.
unsafe impl Send for InnerLora {}
// SAFETY: once loaded, an adapter is only read: which contexts use it, and with which scale, is kept in the contexts.
unsafe impl Sync for InnerLora {}

/// Owns a `llama_context`.
#[derive(Debug)]
pub(crate) struct InnerContext(NonNull<sys::llama_context>);

impl InnerContext {
    /// Takes ownership of `context`; `None` for NULL.
    ///
    /// # Safety
    ///
    /// `context` is NULL or was returned by `llama_init_from_model` and is owned by nobody else.
    pub(crate) unsafe fn from_raw(context: *mut sys::llama_context) -> Option<Self> {
        NonNull::new(context).map(InnerContext)
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::llama_context {
        self.0.as_ptr()
    }
}

impl Drop for InnerContext {
    fn drop(&mut self) {
        // SAFETY: `self` owns the context. No decode runs, since that borrows the `Context` mutably.
        unsafe { sys::llama_free(self.0.as_ptr()) }
    }
}

// SAFETY: a llama_context may be used from any thread, one at a time: its worker threads are started and joined (or
// kept by OpenMP per calling thread) inside each compute. It is not Sync: even reading logits synchronises and
// reorders buffers.
unsafe impl Send for InnerContext {}

/// Owns a `llama_sampler`, for a chain with all its members.
#[derive(Debug)]
pub(crate) struct InnerSampler(NonNull<sys::llama_sampler>);

impl InnerSampler {
    /// Takes ownership of `sampler`; `None` for NULL.
    ///
    /// # Safety
    ///
    /// `sampler` is NULL or was returned by a `llama_sampler_*_init` function and is owned by nobody else.
    pub(crate) unsafe fn from_raw(sampler: *mut sys::llama_sampler) -> Option<Self> {
        NonNull::new(sampler).map(InnerSampler)
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::llama_sampler {
        self.0.as_ptr()
    }
}

impl Drop for InnerSampler {
    fn drop(&mut self) {
        // SAFETY: `self` owns the sampler, and no chain holds it: members are given to the chain for good.
        unsafe { sys::llama_sampler_free(self.0.as_ptr()) }
    }
}

// SAFETY: a sampler is plain memory (options, a random generator, a candidate buffer) without thread-local state.
unsafe impl Send for InnerSampler {}
