//! What a model and its contexts would take, asked of llama.cpp without reading a weight.

use std::path::Path;

use crate::backend::Backend;
use crate::context::Context;
use crate::error::Result;
use crate::memory::{BufferUse, MemoryExtras};
use crate::model::Model;
use crate::params::{ContextParams, ModelParams};

/// A model of which llama.cpp read metadata and vocabulary, and counts what its weights would take (`no_alloc` of
/// `llama_model_params`). It takes milliseconds, and no memory but the vocabulary's.
///
/// ```no_run
/// use llama_rs::{Backend, ContextParams, DryModel, ModelParams};
///
/// # fn main() -> llama_rs::Result<()> {
/// let model = DryModel::load(&Backend::init(), "model.gguf", &ModelParams::default())?;
/// let context = model.context(&ContextParams { n_ctx: 8192, ..Default::default() })?;
/// println!("KV cache: {} bytes", context.kv_bytes());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DryModel {
    /// Never leaves this struct: there are no weights to compute with.
    model: Model,
}

/// What a context would take, the model's weights included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryContext {
    /// By kind of buffer. Weights that would be mapped count as anonymous ones, under `CPU`.
    pub buffers: Vec<BufferUse>,
    /// Besides the buffers.
    pub extras: MemoryExtras,
    /// Tokens that the KV cache would hold, after rounding.
    pub n_ctx: u32,
    /// Most tokens that would be computed in one graph.
    pub n_ubatch: u32,
}

impl DryModel {
    /// Reads metadata and vocabulary. Of `params`, prefetch and repacking decide which weights would be repacked.
    ///
    /// # Errors
    ///
    /// As [`Model::load`].
    pub fn load(
        backend: &Backend,
        path: impl AsRef<Path>,
        params: &ModelParams,
    ) -> Result<DryModel> {
        let model = Model::load_nothing(backend, path.as_ref(), params)?;
        Ok(DryModel { model })
    }

    /// Plans a context. Only the buffer of logits is allocated, and freed again.
    ///
    /// # Errors
    ///
    /// As [`Context::new`].
    pub fn context(&self, params: &ContextParams) -> Result<DryContext> {
        self.context_with(params, || ())
            .map(|(context, ())| context)
    }

    /// As [`context`](DryModel::context), and calls `look` while the context exists: what the process then holds is what a
    /// real one holds besides its buffers.
    ///
    /// # Errors
    ///
    /// As [`Context::new`].
    pub fn context_with<T>(
        &self,
        params: &ContextParams,
        look: impl FnOnce() -> T,
    ) -> Result<(DryContext, T)> {
        let context = Context::new(&self.model, params)?;
        let seen = look();
        let dry = DryContext {
            buffers: context.memory_breakdown()?,
            extras: context.memory_extras()?,
            n_ctx: context.n_ctx(),
            n_ubatch: context.n_ubatch(),
        };
        Ok((dry, seen))
    }

    /// Context length that the model was trained with, in tokens.
    pub fn n_ctx_train(&self) -> u32 {
        self.model.n_ctx_train()
    }
}

impl DryContext {
    /// KV cache and other state.
    pub fn kv_bytes(&self) -> u64 {
        self.buffers.iter().map(|buffer| buffer.context_bytes).sum()
    }

    /// Compute buffers.
    pub fn compute_bytes(&self) -> u64 {
        self.buffers.iter().map(|buffer| buffer.compute_bytes).sum()
    }
}
