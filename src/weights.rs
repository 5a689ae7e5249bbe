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
            note(format_args!("{}\n{}", plan.trim_end(), pager.reads()));
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
                let total = counts.total;
                note(format_args!(
                    "pager: {:.1} % of {} slices were in memory, {:.1} MiB read, threads waited {:.0} ms",
                    100.0 * total.hit_rate(),
                    total.n_requests(),
                    reads.delivered_bytes as f64 / f64::from(1 << 20),
                    total.stall_ns as f64 / 1e6,
                ));
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
