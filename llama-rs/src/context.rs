//! A context: KV cache, compute buffers, and decoding.

use std::any::TypeId;
use std::ffi::c_void;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_sys as sys;

use crate::assertions;
use crate::batch::{Batch, RowPointers};
use crate::error::{Error, Result};
use crate::inner::InnerContext;
use crate::kv_type;
use crate::logs;
use crate::lora::LoraAdapter;
use crate::memory::{BufferUse, MemoryExtras, Perf};
use crate::model::Model;
use crate::observer::{AnyObserver, NodeObserver, ObserverState};
use crate::params::{ContextParams, FlashAttention};
use crate::router::{Router, RouterState};
use crate::shim;
use crate::slices::{ProviderState, SliceProvider};
use crate::step::Step;

/// What a sequence of decodes needs beside the model. Wraps `llama_context`.
///
/// A context may move to another thread, but only one thread uses it at a time.
#[derive(Debug)]
pub struct Context<'model> {
    // Field order is drop order: the C context goes first, then the Rust state that its callbacks use.
    inner: InnerContext,
    provider: Option<Pin<Box<ProviderState>>>,
    observer: Option<Pin<Box<dyn AnyObserver>>>,
    router: Option<Pin<Box<RouterState>>>,
    abort: Option<Arc<AtomicBool>>,
    model: &'model Model,
    n_vocab: usize,
    n_batch: usize,
    n_ubatch: usize,
    n_seq_max: u32,
    n_outputs_max: usize,
    /// Adapters could neither be set nor taken away: it cannot decode.
    is_broken: bool,
    /// One entry a row of the last batch: 1 when it has logits. Empty after a failed decode.
    outputs: Vec<i8>,
    seq_rows: RowPointers,
}

impl<'model> Context<'model> {
    /// Makes a context on `model`. Wraps `llama_init_from_model`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] for values outside their ranges, or a model that cannot decode;
    /// [`Error::ContextCreation`] with llama.cpp's reason, for example when memory for the KV cache is missing.
    pub fn new(model: &'model Model, params: &ContextParams) -> Result<Context<'model>> {
        Context::make(model, params, None)
    }

    /// Makes a context in which `router` decides which experts are used. Wraps `cb_eval` of `llama_context_params`, which
    /// is fixed for the context's life.
    ///
    /// # Errors
    ///
    /// As [`new`](Context::new); [`Error::InvalidParameter`] for more than one sequence, whose tokens llama.cpp reorders.
    pub fn with_router(
        model: &'model Model,
        params: &ContextParams,
        router: impl Router + 'static,
    ) -> Result<Context<'model>> {
        if params.n_seq_max > 1 {
            return Err(Error::parameter(
                "n_seq_max",
                format!("{} sequences, but a router needs 1", params.n_seq_max),
            ));
        }
        Context::make(model, params, Some(RouterState::new(Box::new(router))))
    }

    fn make(
        model: &'model Model,
        params: &ContextParams,
        router: Option<Pin<Box<RouterState>>>,
    ) -> Result<Context<'model>> {
        params.check()?;
        require_decoder(model)?;
        kv_type::check_heads(model, params)?;
        // SAFETY: takes no arguments.
        let mut raw = unsafe { sys::llama_context_default_params() };
        raw.n_ctx = params.n_ctx;
        raw.n_batch = params.n_batch.min(params.n_ctx);
        raw.n_ubatch = params.n_ubatch.min(raw.n_batch);
        raw.n_seq_max = params.n_seq_max;
        raw.kv_unified = params.kv_unified;
        raw.n_outputs_max = params.n_outputs_max.min(raw.n_batch);
        // In range by `check`, which allows at most 512.
        raw.n_threads = params.n_threads as i32;
        raw.n_threads_batch = params.n_threads_batch as i32;
        raw.type_k = params.type_k.ggml_type().0;
        raw.type_v = params.type_v.ggml_type().0;
        raw.swa_full = params.swa_full;
        raw.no_perf = params.no_perf;
        raw.offload_kqv = false;
        raw.op_offload = false;
        raw.flash_attn_type = match params.flash_attn {
            FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            FlashAttention::Disabled => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
            FlashAttention::Enabled => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        };
        if let Some(router) = &router {
            raw.cb_eval = RouterState::callback();
            raw.cb_eval_user_data = router.user_data();
        }
        let n_outputs_max = raw.n_outputs_max as usize;

        logs::clear_reasons();
        let mut context = std::ptr::null_mut();
        // SAFETY: the model is alive for 'model, which the result carries. The only pointer in `raw` is to the router's state, pinned in
        // `router`, which the result keeps until after the C context is freed; no callback of it runs here.
        let status = assertions::as_errors(|| unsafe {
            sys::faultline_context_init(model.raw(), raw, &mut context)
        });
        // SAFETY: a context that llama.cpp returned is ours; a failed call leaves NULL.
        let inner = unsafe { InnerContext::from_raw(context) };
        let inner = match inner {
            Some(inner) if shim::is_ok(status) => inner,
            _ => {
                return Err(Error::ContextCreation {
                    reason: shim::reason(status),
                });
            }
        };

        let context = inner.as_ptr();
        // SAFETY: the context is alive.
        let (n_batch, n_ubatch, n_seq_max) = unsafe {
            (
                sys::llama_n_batch(context),
                sys::llama_n_ubatch(context),
                sys::llama_n_seq_max(context),
            )
        };
        Ok(Context {
            inner,
            provider: None,
            observer: None,
            router,
            abort: None,
            model,
            n_vocab: model.vocab().n_tokens() as usize,
            n_batch: n_batch as usize,
            n_ubatch: n_ubatch as usize,
            n_seq_max,
            n_outputs_max,
            is_broken: false,
            outputs: Vec::new(),
            seq_rows: RowPointers::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> &'model Model {
        self.model
    }

    /// The C object. Valid while `self` lives.
    pub(crate) fn raw(&self) -> *mut sys::llama_context {
        self.inner.as_ptr()
    }

    /// Tokens that the KV cache holds, after rounding.
    pub fn n_ctx(&self) -> u32 {
        // SAFETY: the context is alive.
        unsafe { sys::llama_n_ctx(self.raw()) }
    }

    /// Tokens that the KV cache holds for one sequence.
    pub fn n_ctx_seq(&self) -> u32 {
        // SAFETY: the context is alive.
        unsafe { sys::llama_n_ctx_seq(self.raw()) }
    }

    /// Most tokens in one [`decode`](Context::decode).
    pub fn n_batch(&self) -> u32 {
        self.n_batch as u32
    }

    /// Most tokens computed in one graph.
    pub fn n_ubatch(&self) -> u32 {
        self.n_ubatch as u32
    }

    /// Most rows with logits in one decode.
    pub fn n_outputs_max(&self) -> u32 {
        self.n_outputs_max as u32
    }

    /// Computes the batch and adds its tokens to the KV cache. Wraps `llama_decode`.
    ///
    /// After an error the tokens of the ubatch that failed, and of those after it, are not in the KV cache; those of
    /// ubatches before it are. A failure of an observer or a router fails no ubatch. After [`Error::CallbackPanicked`] and [`Error::SliceUnavailable`] the context can be used
    /// again.
    ///
    /// # Errors
    ///
    /// - [`Error::Batch`], [`Error::TokenOutOfRange`]: the batch is empty, too large, asks for too many rows of logits, or
    ///   names a token or a sequence that does not exist. Nothing was computed.
    /// - [`Error::ModelChanged`]: a mapped file was shortened or written to, before or while this was computed. There are no logits, and
    ///   what is in the KV cache is not to be used.
    /// - [`Error::KvCacheFull`], [`Error::Aborted`], [`Error::Decode`], [`Error::Native`]: as llama.cpp reports.
    /// - [`Error::CallbackPanicked`], [`Error::SliceUnavailable`], [`Error::Misrouted`]: from the slice provider, the observer or
    ///   the router.
    pub fn decode(&mut self, batch: &Batch) -> Result<()> {
        self.outputs.clear();
        self.check_graphs()?;
        self.check_batch(batch)?;
        self.model.check_contents()?;
        if self.model.needs_provider() && self.provider.is_none() {
            return Err(Error::NoProvider);
        }

        let step = Step::new(batch);
        self.step_begin(&step)?;
        let result = self.decode_checked(batch);
        // An earlier failure of something else is the cause of what the caller sees.
        let ended = self.step_end(&step, result.is_ok());
        result?;
        ended?;
        // What was read of a file that changed meanwhile may be of before and after.
        self.model.check_contents()?;
        self.outputs.extend_from_slice(batch.outputs());
        Ok(())
    }

    /// Tells observer and router that a decode begins.
    fn step_begin(&mut self, step: &Step<'_>) -> Result<()> {
        if let Some(observer) = &self.observer {
            // SAFETY: `self` is borrowed mutably and computes nothing now, so no callback is running.
            unsafe { observer.step_begin(step) };
            observer.take_error().map_or(Ok(()), Err)?;
        }
        if let Some(router) = &self.router {
            // SAFETY: as above.
            unsafe { router.step_begin(step, self.n_ubatch) };
            router.take_error().map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    /// Tells router and observer that a decode ended, and collects the first failure of any of their callbacks.
    fn step_end(&mut self, step: &Step<'_>, is_complete: bool) -> Result<()> {
        let mut first = None;
        if let Some(router) = &self.router {
            // SAFETY: `self` is borrowed mutably and llama_decode has returned, so no callback is running.
            unsafe { router.step_end(step, is_complete) };
            first = router.take_error();
        }
        if let Some(observer) = &self.observer {
            // SAFETY: as above.
            unsafe { observer.step_end(step, is_complete) };
            first = first.or(observer.take_error());
        }
        first.map_or(Ok(()), Err)
    }

    /// `llama_decode`, on a batch that was checked.
    fn decode_checked(&mut self, batch: &Batch) -> Result<()> {
        logs::clear_reasons();
        let raw_batch = batch.raw(&mut self.seq_rows);
        let mut decoded = 0;
        // SAFETY: the context is alive and borrowed mutably; `raw_batch` borrows from `batch` and `seq_rows`, which
        // outlive the call, and llama_decode only reads it. Its contents were checked above.
        let status = assertions::as_aborts(|| unsafe {
            sys::faultline_decode(self.inner.as_ptr(), raw_batch, &mut decoded)
        });
        // A callback's failure is the cause of whatever llama.cpp reports, so it comes first.
        if let Some(error) = self
            .provider
            .as_ref()
            .and_then(|provider| provider.take_error())
        {
            return Err(error);
        }
        shim::check("llama_decode", status)?;
        match decoded {
            0 => Ok(()),
            1 => Err(Error::KvCacheFull {
                n_tokens: batch.len(),
                n_ctx: self.n_ctx(),
            }),
            2 => Err(Error::Aborted),
            status => Err(Error::Decode {
                status,
                reason: logs::take_reason("llama.cpp gave no reason"),
            }),
        }
    }

    fn check_graphs(&self) -> Result<()> {
        if !self.is_broken {
            return Ok(());
        }
        Err(Error::Native {
            call: "llama_set_adapters_lora",
            message: "the context could neither use its adapters nor go back; make another one"
                .to_owned(),
        })
    }

    fn check_batch(&self, batch: &Batch) -> Result<()> {
        if batch.is_empty() {
            return Err(Error::Batch("it has no tokens".to_owned()));
        }
        if batch.len() > self.n_batch {
            return Err(Error::Batch(format!(
                "{} tokens, but n_batch is {}",
                batch.len(),
                self.n_batch
            )));
        }
        if !self.model.has_causal_attention() && batch.len() > self.n_ubatch {
            return Err(Error::Batch(format!(
                "{} tokens, but a model without causal attention takes n_ubatch = {} at once",
                batch.len(),
                self.n_ubatch
            )));
        }
        if batch.output_count() > self.n_outputs_max {
            return Err(Error::Batch(format!(
                "{} rows ask for logits, but n_outputs_max is {}",
                batch.output_count(),
                self.n_outputs_max
            )));
        }
        if let Some(sequence) = batch.max_sequence().filter(|&s| s >= self.n_seq_max) {
            return Err(Error::Batch(format!(
                "sequence {sequence}, but n_seq_max is {}",
                self.n_seq_max
            )));
        }
        let in_range = |&token: &i32| usize::try_from(token).is_ok_and(|id| id < self.n_vocab);
        match batch.tokens().iter().find(|&token| !in_range(token)) {
            Some(&token) => Err(Error::TokenOutOfRange {
                token,
                n_tokens: self.n_vocab as u32,
            }),
            None => Ok(()),
        }
    }

    /// The logits of row `row` of the last batch: `[n_vocab]` f32, one per token of the vocabulary. A negative `row`
    /// counts the rows with logits from the end: -1 is the last one. Wraps `llama_get_logits_ith`.
    ///
    /// # Errors
    ///
    /// [`Error::NoLogits`] when there is no such row, or it did not ask for logits, or the last decode failed.
    pub fn logits(&self, row: i32) -> Result<&[f32]> {
        let none = |reason: String| Error::NoLogits { row, reason };
        if self.outputs.is_empty() {
            return Err(none("no batch was decoded".to_owned()));
        }
        match usize::try_from(row) {
            Ok(i) => match self.outputs.get(i) {
                Some(0) => return Err(none("it did not ask for logits".to_owned())),
                Some(_) => {}
                None => {
                    return Err(none(format!(
                        "the last batch had {} rows",
                        self.outputs.len()
                    )));
                }
            },
            Err(_) => {
                let rows = self.outputs.iter().filter(|&&output| output != 0).count();
                if row.unsigned_abs() as usize > rows {
                    return Err(none(format!("the last batch had {rows} rows with logits")));
                }
            }
        }
        // SAFETY: the context is alive. It is not Sync, so no other thread is in here.
        let logits = unsafe { sys::llama_get_logits_ith(self.raw(), row) };
        if logits.is_null() {
            return Err(none(logs::take_reason("llama.cpp has none")));
        }
        // SAFETY: llama.cpp keeps n_vocab values a row, valid until the next decode, which needs `&mut self`. A second
        // call for another row only reads: reordering happens in the first call after a decode.
        Ok(unsafe { std::slice::from_raw_parts(logits, self.n_vocab) })
    }

    /// Lets `provider` give the addresses of slices of weights that are loaded on demand. Replaces an earlier one. Share
    /// it with an [`Arc`] to keep reading its counters. Wraps `llama_set_lazy`.
    ///
    /// # Errors
    ///
    /// [`Error::ContextCreation`] when the CPU backend lacks the function.
    pub fn set_slice_provider(&mut self, provider: impl SliceProvider + 'static) -> Result<()> {
        let state = ProviderState::new(provider);
        let interface = ProviderState::interface();
        // SAFETY: the context is alive and computes nothing now; llama.cpp copies the interface; its user data is pinned in `state`, which is
        // kept in `self` until after the C context is freed or another provider is set.
        let known = unsafe { sys::llama_set_lazy(self.raw(), &interface, state.user_data()) };
        if !known {
            return Err(Error::ContextCreation {
                reason: "the CPU backend cannot read weights through a slice provider".to_owned(),
            });
        }
        self.provider = Some(state);
        Ok(())
    }

    /// Goes back to reading weights where they are mapped, and drops the provider.
    pub fn clear_slice_provider(&mut self) {
        // SAFETY: the context is alive; NULL turns the interface off. The CPU backend has finished when llama_decode
        // returns, so no callback is running.
        unsafe { sys::llama_set_lazy(self.raw(), std::ptr::null(), std::ptr::null_mut()) };
        self.provider = None;
    }

    /// Shows `observer` every node that is computed from now on. Replaces an earlier observer, which is dropped. Wraps
    /// `llama_set_tensor_trace`.
    ///
    /// # Errors
    ///
    /// [`Error::ContextCreation`] when the CPU backend lacks the function.
    pub fn set_observer<O: NodeObserver + 'static>(&mut self, observer: O) -> Result<()> {
        let state = ObserverState::new(observer);
        let interface = ObserverState::<O>::interface();
        // SAFETY: the context is alive and computes nothing now; llama.cpp copies the interface; its user data is pinned in
        // `state`, which is kept in `self` until after the C context is freed or another observer is set.
        let known =
            unsafe { sys::llama_set_tensor_trace(self.raw(), &interface, state.user_data()) };
        if !known {
            return Err(Error::ContextCreation {
                reason: "the CPU backend has no tensor trace".to_owned(),
            });
        }
        self.observer = Some(state);
        Ok(())
    }

    /// Ends the observation and gives the observer back. `None`, and nothing changes, when there is none or it has
    /// another type.
    pub fn take_observer<O: NodeObserver + 'static>(&mut self) -> Option<O> {
        let state = self
            .observer
            .take_if(|state| state.observer_type() == TypeId::of::<O>())?;
        self.stop_trace();
        Some(*state.into_observer().downcast().ok()?)
    }

    /// Ends the observation and drops the observer.
    pub fn clear_observer(&mut self) {
        self.stop_trace();
        self.observer = None;
    }

    fn stop_trace(&mut self) {
        // SAFETY: the context is alive; NULL turns the trace off. The CPU backend has finished when llama_decode returns, so
        // no callback is running.
        unsafe { sys::llama_set_tensor_trace(self.raw(), std::ptr::null(), std::ptr::null_mut()) };
    }

    /// Computes with these adapters, each times its scale, from now on; instead of those that were set before. What the KV
    /// cache holds stays as it was computed. An adapter with scale 0 is not used at all. Wraps `llama_set_adapters_lora`.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidParameter`]: an adapter of another model or twice the same one, or a scale that is not finite;
    ///   nothing has changed then.
    /// - [`Error::Native`]: llama.cpp cannot build this model's graph with these adapters. No adapter is set then; if memory is
    ///   missing even for that, every later call fails with this error.
    pub fn set_lora(&mut self, adapters: &[(&LoraAdapter, f32)]) -> Result<()> {
        let mut raw = Vec::with_capacity(adapters.len());
        let mut scales = Vec::with_capacity(adapters.len());
        for (index, &(adapter, scale)) in adapters.iter().enumerate() {
            let reason = if !scale.is_finite() {
                Some(format!("the scale {scale} is not finite"))
            } else if adapters[..index].iter().any(|&(other, _)| other == adapter) {
                Some("it is given twice".to_owned())
            } else {
                None
            };
            if let Some(reason) = reason {
                return Err(Error::parameter(
                    "adapters",
                    format!("number {}: {reason}", index + 1),
                ));
            }
            raw.push(self.model.loras().raw(adapter)?);
            scales.push(scale);
        }
        self.check_graphs()?;
        self.outputs.clear();
        let result = self.set_raw_lora(&mut raw, &mut scales);
        if result.is_err() {
            // llama.cpp plans its graphs only when the adapters change, those with scale 0 not counted.
            let is_none = scales.iter().all(|&scale| scale == 0.0);
            self.is_broken = is_none || self.set_raw_lora(&mut [], &mut []).is_err();
        }
        result
    }

    fn set_raw_lora(
        &mut self,
        adapters: &mut [*mut sys::llama_adapter_lora],
        scales: &mut [f32],
    ) -> Result<()> {
        debug_assert_eq!(adapters.len(), scales.len());
        // SAFETY: the context is alive and borrowed mutably. The adapters belong to its model, which frees them after the
        // context; both lists have the given length, and are copied.
        let status = assertions::as_errors(|| unsafe {
            sys::faultline_set_adapters_lora(
                self.raw(),
                adapters.as_mut_ptr(),
                adapters.len(),
                scales.as_mut_ptr(),
            )
        });
        shim::check("llama_set_adapters_lora", status)
    }

    /// Ends a running [`decode`](Context::decode) with [`Error::Aborted`] soon after `flag` becomes true, and every later
    /// one while it stays true. Replaces an earlier flag. Wraps `llama_set_abort_callback`.
    pub fn set_abort(&mut self, flag: Arc<AtomicBool>) {
        let user_data: *const AtomicBool = Arc::as_ptr(&flag);
        // SAFETY: the context is alive; the flag stays at its address as long as `self.abort` holds it, which is until
        // after the C context is freed or the callback replaced.
        unsafe {
            sys::llama_set_abort_callback(self.raw(), Some(on_abort), user_data.cast_mut().cast())
        };
        self.abort = Some(flag);
    }

    /// Waits until everything that was submitted has been computed. Wraps `llama_synchronize`.
    ///
    /// # Errors
    ///
    /// [`Error::Native`] when llama.cpp fails.
    pub fn synchronize(&mut self) -> Result<()> {
        // SAFETY: the context is alive and borrowed mutably.
        shim::check("llama_synchronize", unsafe {
            sys::faultline_synchronize(self.raw())
        })
    }

    /// Time and counts since the context was made or [`reset_perf`](Context::reset_perf). Wraps `llama_perf_context`.
    pub fn perf(&self) -> Perf {
        // SAFETY: the context is alive.
        Perf::from_raw(&unsafe { sys::llama_perf_context(self.raw()) })
    }

    /// Sets the counters of [`perf`](Context::perf) back.
    pub fn reset_perf(&mut self) {
        // SAFETY: the context is alive and borrowed mutably.
        unsafe { sys::llama_perf_context_reset(self.raw()) }
    }

    /// What llama.cpp has allocated or mapped, by kind of buffer.
    ///
    /// # Errors
    ///
    /// [`Error::Native`] when llama.cpp fails to tell.
    pub fn memory_breakdown(&self) -> Result<Vec<BufferUse>> {
        crate::memory::breakdown(self.raw())
    }

    /// What it allocates besides the buffers of [`memory_breakdown`](Context::memory_breakdown).
    ///
    /// # Errors
    ///
    /// [`Error::Native`] when llama.cpp fails to tell.
    pub fn memory_extras(&self) -> Result<MemoryExtras> {
        // SAFETY: the context is alive.
        let n_threads = unsafe { sys::llama_n_threads_batch(self.raw()) };
        let n_outputs = self.n_outputs_max as u64;
        crate::memory::extras(self.raw(), n_threads, n_outputs * self.n_vocab as u64)
    }

    /// Empties the KV cache. Wraps `llama_memory_clear`.
    pub fn clear_kv(&mut self) {
        if self.memory().is_null() {
            return;
        }
        // SAFETY: the context is alive and borrowed mutably.
        let status = unsafe { sys::faultline_memory_clear(self.raw(), false) };
        // Forgetting cells allocates nothing and reads no file: there is nothing that could throw.
        debug_assert!(shim::is_ok(status));
    }

    /// Removes the tokens of `sequence` at positions in `from..to` from the KV cache; `to` of `None` is the end. `false`
    /// when this kind of cache cannot remove a part of a sequence; nothing has changed then. Wraps
    /// `llama_memory_seq_rm`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] when there is no such sequence or a position is out of range; [`Error::Native`] when
    /// llama.cpp fails.
    pub fn memory_seq_rm(&mut self, sequence: u32, from: u32, to: Option<u32>) -> Result<bool> {
        self.check_sequence(sequence)?;
        let position = |name, value: u32| {
            i32::try_from(value).map_err(|_| {
                Error::parameter(name, format!("position {value} is above 2147483647"))
            })
        };
        let from = position("from", from)?;
        let to = to.map_or(Ok(-1), |to| position("to", to))?;
        let mut removed = true;
        if !self.memory().is_null() {
            // SAFETY: the context is alive and borrowed mutably; the sequence exists.
            shim::check("llama_memory_seq_rm", unsafe {
                sys::faultline_memory_seq_rm(self.raw(), sequence as i32, from, to, &mut removed)
            })?;
        }
        Ok(removed)
    }

    /// Position of the first token of `sequence` in the KV cache; all from there to the last one are in it. Only caches for a
    /// sliding window begin later than at 0. Wraps `llama_memory_seq_pos_min`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] when there is no such sequence.
    pub fn memory_seq_pos_min(&self, sequence: u32) -> Result<Option<u32>> {
        self.check_sequence(sequence)?;
        let memory = self.memory();
        if memory.is_null() {
            return Ok(None);
        }
        // SAFETY: the memory belongs to the context, which is alive; the sequence exists.
        Ok(u32::try_from(unsafe { sys::llama_memory_seq_pos_min(memory, sequence as i32) }).ok())
    }

    /// Position of the last token of `sequence` in the KV cache. Wraps `llama_memory_seq_pos_max`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] when there is no such sequence.
    pub fn memory_seq_pos_max(&self, sequence: u32) -> Result<Option<u32>> {
        self.check_sequence(sequence)?;
        let memory = self.memory();
        if memory.is_null() {
            return Ok(None);
        }
        // SAFETY: the memory belongs to the context, which is alive; the sequence exists.
        Ok(u32::try_from(unsafe { sys::llama_memory_seq_pos_max(memory, sequence as i32) }).ok())
    }

    /// NULL for a model that keeps no state between batches.
    pub(crate) fn memory(&self) -> sys::llama_memory_t {
        // SAFETY: the context is alive.
        unsafe { sys::llama_get_memory(self.raw()) }
    }

    pub(crate) fn check_sequence(&self, sequence: u32) -> Result<()> {
        if sequence < self.n_seq_max {
            return Ok(());
        }
        Err(Error::parameter(
            "sequence",
            format!("{sequence} is not below n_seq_max {}", self.n_seq_max),
        ))
    }
}

/// Refuses models that llama_decode does not work on.
fn require_decoder(model: &Model) -> Result<()> {
    if model.params().vocab_only {
        return Err(Error::parameter(
            "model",
            "only its vocabulary was loaded; load it without vocab_only",
        ));
    }
    if !model.has_decoder() || model.has_encoder() {
        return Err(Error::parameter(
            "model",
            format!(
                "{} needs an encoder run, which is not supported",
                model.desc()
            ),
        ));
    }
    Ok(())
}

unsafe extern "C" fn on_abort(user_data: *mut c_void) -> bool {
    // SAFETY: the flag of `Context::set_abort`, alive as long as the C context knows it. Relaxed: the flag carries no
    // other data.
    unsafe { user_data.cast::<AtomicBool>().as_ref() }
        .is_some_and(|flag| flag.load(Ordering::Relaxed))
}
