//! A safe wrapper around the patched llama.cpp.
//!
//! | type | wraps | rules |
//! |---|---|---|
//! | [`Backend`] | the library | initialise once, copy freely |
//! | [`Model`] | `llama_model` | `Send + Sync`; outlives its contexts |
//! | [`DryModel`] | `llama_model` without weights | says what contexts would take |
//! | [`Vocab`] | `llama_vocab` | borrows the model |
//! | [`Context`] | `llama_context` | `Send`; borrows the model; owns the state of its callbacks |
//! | [`LoraAdapter`] | `llama_adapter_lora` | names an adapter; its model owns it |
//! | [`Batch`] | `llama_batch` | plain memory |
//! | [`Sampler`] | `llama_sampler` | `Send` |
//! | [`SliceProvider`] | `ggml_backend_cpu_lazy_i` | gives the bytes of weights that are loaded on demand |
//! | [`ModelMemory`] | `llama_model_mapping_i` | provides the memory in which the files of a model are read |
//! | [`NodeObserver`] | `ggml_backend_cpu_trace_i` | watches the nodes, and with [`AccessReader`] the weights that they read |
//! | [`Router`] | `ggml_backend_sched_eval_callback` | replaces the experts that the model picks |
//!
//! A file is examined in Rust before llama.cpp sees it, arguments are checked, C++ exceptions are caught in a shim, and a
//! panic in a callback becomes [`Error::CallbackPanicked`]. `docs/safety.md` in the repository has the reasoning and says
//! what is not covered.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use llama_rs::{Backend, Context, ContextParams, Model, ModelParams, Prefetch, Sampler, Utf8Stream, generate};
//!
//! # fn main() -> llama_rs::Result<()> {
//! let params = ModelParams { prefetch: Prefetch::Selective, ..Default::default() };
//! let model = Model::load(&Backend::init(), "model.gguf", &params)?;
//! let vocab = model.vocab();
//! let prompt = vocab.tokenize("The capital of Germany is", true, false)?;
//!
//! let mut context = Context::new(&model, &ContextParams::default())?;
//! let mut text = Utf8Stream::new();
//! generate(&mut context, &prompt, &mut Sampler::greedy(), 32, |token| {
//!     print!("{}", text.push(&vocab.piece(token, false)));
//!     ControlFlow::Continue(())
//! })?;
//! # Ok(())
//! # }
//! ```
#![deny(missing_docs)]

mod accesses;
mod advise;
mod assertions;
mod backend;
mod batch;
mod chat;
mod context;
mod dry;
mod error;
mod failure;
mod files;
mod generate;
mod huge;
mod inner;
mod kv_type;
mod logs;
mod lora;
mod memory;
mod memory_map;
mod model;
mod observer;
mod packing;
mod params;
mod preflight;
mod router;
mod sampler;
mod shim;
mod slices;
mod stack;
mod state;
mod step;
mod tensors;
mod utf8;
mod vocab;
mod warm;
mod weights;

pub use accesses::{Access, AccessReader, Indices};
pub use advise::{Advise, AdviseCounters};
pub use backend::{Backend, BuildInfo};
pub use batch::Batch;
pub use chat::ChatMessage;
pub use context::Context;
pub use dry::{DryContext, DryModel};
pub use error::{Error, Result};
pub use generate::{Generated, Generation, Stop, generate};
pub use kv_type::KvType;
pub use logs::route_logs;
pub use lora::LoraAdapter;
pub use memory::{BufferUse, MemoryExtras, Perf, repacked_bytes};
pub use memory_map::ModelMemory;
pub use model::Model;
pub use observer::{GraphRef, NodeObserver, Pending};
pub use packing::Packing;
pub use params::{
    ContextParams, FlashAttention, LoadMode, MAX_CONTEXT_TOKENS, MAX_SEQUENCES, MAX_THREADS,
    ModelParams, Prefetch, default_threads,
};
pub use router::{Pick, Router};
pub use sampler::{Sampler, SamplerBuilder};
pub use slices::{Begin, Dim, Ids, SliceProvider, Which};
pub use step::{Phase, Step};
pub use tensors::{NodeRef, SourceRef, TensorKey, WeightRef};
pub use utf8::Utf8Stream;
pub use vocab::{Token, Vocab};
pub use weights::LoadedWeight;
