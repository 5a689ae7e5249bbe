//! A model as `--prefetch` wants it.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use llama_rs::{Advise, Backend, Context, LoraAdapter, Model, ModelParams, Prefetch};
use pager::{PagedModel, Pager, PagerOptions};

use crate::cli::Loading;
use crate::output::note;

/// A model and who brings its weights into memory.
pub(crate) enum Weights {
    Mapped(Model),
    Paged(Box<PagedModel>),
}

/// What reads slices for a context.
pub(crate) enum Provider {
    /// The kernel, without advice.
    Kernel,
    Advise(Arc<Advise>),
    Pager(Box<Pager>),
}

impl Weights {
    /// Loads a model; `options` are there if a pager does it.
    pub(crate) fn load(
        path: &Path,
        loading: Loading,
        repack: bool,
        options: Option<PagerOptions>,
        progress: impl FnMut(f32) -> ControlFlow<()>,
    ) -> anyhow::Result<Weights> {
        let backend = Backend::init();
        let mut params = ModelParams {
            repack,
            ..ModelParams::default()
        };
        if let Some(options) = options {
            let model = PagedModel::load_with(&backend, path, &params, options, progress)?;
            return Ok(Weights::Paged(Box::new(model)));
        }
        if let Loading::Mapped(prefetch) = loading {
            params.prefetch = prefetch;
        }
        let model = Model::load_with(&backend, path, &params, progress)?;
        Ok(Weights::Mapped(model))
    }

    pub(crate) fn model(&self) -> &Model {
        match self {
            Weights::Mapped(model) => model,
            Weights::Paged(paged) => paged.model(),
        }
    }

    pub(crate) fn load_adapter(&mut self, path: &Path) -> anyhow::Result<LoraAdapter> {
        Ok(match self {
            Weights::Mapped(model) => LoraAdapter::load(model, path)?,
            Weights::Paged(paged) => paged.load_adapter(path)?,
        })
    }

    /// Gives the context what reads its slices.
    pub(crate) fn attach(
        &self,
        loading: Loading,
        context: &mut Context<'_>,
    ) -> anyhow::Result<Provider> {
        Ok(match self {
            Weights::Paged(paged) => Provider::Pager(Box::new(paged.attach(context)?)),
            Weights::Mapped(model) if loading == Loading::Mapped(Prefetch::Selective) => {
                let advise = Arc::new(Advise::new(model)?);
                context.set_slice_provider(Arc::clone(&advise))?;
                Provider::Advise(advise)
            }
            Weights::Mapped(_) => Provider::Kernel,
        })
    }
}

impl Provider {
    /// What will be where, and how it is read.
    pub(crate) fn print_plan(&self) {
        if let Provider::Pager(pager) = self {
            let plan = pager.plan().to_string();
            note(format_args!(
                "{}\n{}\n{}",
                plan.trim_end(),
                pager.reads(),
                pager.replay()
            ));
        }
    }

    /// What was done.
    pub(crate) fn print_counters(&self, verbose: u8) {
        match self {
            Provider::Advise(advise) if verbose > 0 => {
                note(format_args!("advice: {:?}", advise.counters()));
            }
            Provider::Pager(pager) => {
                let (counts, reads) = (pager.counters(), pager.read_counters());
                let (total, stream) = (counts.total, counts.stream);
                let n_streamed = stream.n_ready + stream.n_late + stream.n_missed;
                let mut parts = Vec::new();
                if total.n_requests() > 0 {
                    let (percent, count) = (100.0 * total.hit_rate(), total.n_requests());
                    parts.push(format!("{percent:.1} % of {count} slices were in memory"));
                }
                if n_streamed > 0 {
                    let percent = 100.0 * stream.n_ready as f64 / n_streamed as f64;
                    parts.push(format!(
                        "{percent:.1} % of {n_streamed} streamed matrices were there in time"
                    ));
                }
                parts.push(format!(
                    "{:.1} MiB read",
                    reads.delivered_bytes as f64 / f64::from(1 << 20)
                ));
                let stall_ns = total.stall_ns + stream.stall_ns;
                parts.push(format!("threads waited {:.0} ms", stall_ns as f64 / 1e6));
                note(format_args!("pager: {}", parts.join(", ")));
                if reads.n_retries > 0 {
                    note(format_args!(
                        "pager: {} reads were short or failed and were made again",
                        reads.n_retries
                    ));
                }
            }
            Provider::Kernel | Provider::Advise(_) => {}
        }
    }
}
