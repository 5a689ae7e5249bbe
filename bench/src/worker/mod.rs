//! The process that is measured: loads the model, computes a prompt and some tokens, and reports.
//!
//! It is started by the parent with a [`WorkerSpec`] as its only argument and does nothing else, so that its memory, its
//! page faults and its reads are those of the run.

pub(crate) mod blocks;
mod decode;
mod fingerprint;
mod marks;
mod paging;
mod replay;
mod steps;

use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use llama_rs::{
    Advise, Backend, Context, ContextParams, FlashAttention, Model, ModelParams, Prefetch,
};
use pager::{PagedModel, Pager};

use crate::cgroup;
use crate::procfs::monotonic_ns;
use crate::protocol::{BufferFacts, BuildFacts, Event, ModelFacts, Outcome, Point};
use crate::residency::ModelMap;
use crate::spec::{FlashAttn, Mode, Routing, TokenSource, WorkerSpec};
pub(crate) use decode::PROMPT;
use marks::Marks;
use replay::{Checker, Choices, Own, Replay};

/// Runs the worker; errors go to the parent as an event.
pub(crate) fn main(spec_json: &str) -> ExitCode {
    let mut marks = Marks::start();
    match serde_json::from_str(spec_json)
        .context("the worker's specification")
        .and_then(|spec| run(&spec, &mut marks))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If the parent is gone nobody reads the reason; the exit status remains.
            let _ = send(&Event::Error {
                message: format!("{error:#}"),
            });
            ExitCode::from(2)
        }
    }
}

fn run(spec: &WorkerSpec, marks: &mut Marks) -> Result<()> {
    // A parent that is killed cannot end its worker any more.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("cannot tie the worker to its parent")?;
    if let Some(procs) = &spec.cgroup_procs {
        cgroup::enter(procs)?;
    }
    marks.send(Point::Start)?;

    let backend = Backend::init();
    let choices = replay::choices(spec.routing.as_ref())?;
    let begin_ns = monotonic_ns();
    let weights = Weights::load(&backend, spec, choices.as_ref())?;
    let model = weights.model();
    let mut load_ns = monotonic_ns() - begin_ns;
    marks.send(Point::Loaded)?;
    let map = ModelMap::new(model.files());
    let resident_after_load = match &weights {
        Weights::Plain(_) => marks.probe(|| map.resident()),
        // Reads go on meanwhile: this is time of the run.
        Weights::Paged(_) => map.resident(),
    };
    let resident_after_load = resident_after_load.context("cannot ask which pages are resident")?;

    let params = context_params(spec);
    let mut context = match (&spec.routing, &choices) {
        (_, Some(choices)) => {
            Context::with_router(model, &params, Replay::new(Arc::clone(choices)))?
        }
        (Some(Routing::Own), _) => Context::with_router(model, &params, Own)?,
        _ => Context::new(model, &params)?,
    };
    if let Some(choices) = choices.filter(|_| spec.check_routing) {
        context.set_observer(Checker::new(model, choices))?;
    }
    let advise = if spec.advise {
        let advise = Arc::new(Advise::new(model)?);
        context.set_slice_provider(Arc::clone(&advise))?;
        Some(advise)
    } else {
        None
    };
    // What a pager reads only now is part of loading.
    let begin_ns = monotonic_ns();
    let pager = weights.attach(&mut context)?;
    if pager.is_some() {
        load_ns += monotonic_ns() - begin_ns;
    }
    let mut before = None;
    let begin_counting = || before = pager.as_ref().map(Pager::counters);
    let run = match spec.tokens {
        TokenSource::Greedy => decode::greedy(spec, model, &mut context, marks, begin_counting)?,
        TokenSource::LlamaBench => decode::like_llama_bench(spec, model, &mut context, marks)?,
        TokenSource::Nowhere => decode::Decoded::default(),
    };
    marks.send(Point::End)?;
    let routing_checked = context.take_observer().map(Checker::finish).transpose()?;
    let resident_end = map
        .resident()
        .context("cannot ask which pages are resident")?;

    let outcome = Outcome {
        model: ModelFacts {
            description: model.desc(),
            size_bytes: model.size_bytes(),
            n_params: model.n_params(),
            n_vocab: model.vocab().n_tokens(),
            n_layer: model.n_layer(),
        },
        build: build_facts(),
        load_ns,
        prompt_ns: run.prompt_ns,
        warm_up_ns: run.warm_up_ns,
        step_ns: run.step_ns,
        steps: run.steps,
        decode_loop_ns: run.loop_ns,
        fingerprint: run.fingerprint,
        resident_after_load: Some(resident_after_load),
        resident_end: Some(resident_end),
        routing_checked,
        n_ctx: context.n_ctx(),
        advise: advise.map(|advise| advise_counters(&advise)),
        pager: pager
            .map(|found| paging::facts(&found, before.unwrap_or_default(), spec, model))
            .transpose()?,
        buffers: buffers(&context)?,
    };
    send(&Event::Done(Box::new(outcome)))?;
    // The parent reads this process's memory figures before it lets it go.
    io::stdin()
        .lock()
        .read_line(&mut String::new())
        .context("the parent is gone")?;
    Ok(())
}

/// A model, with or without a pager.
enum Weights {
    Plain(Box<Model>),
    Paged(Box<PagedModel>),
}

impl Weights {
    fn load(
        backend: &Backend,
        spec: &WorkerSpec,
        choices: Option<&Arc<Choices>>,
    ) -> Result<Weights> {
        if spec.mode != Mode::Pager {
            let model = Model::load(backend, &spec.model, &model_params(spec))?;
            return Ok(Weights::Plain(Box::new(model)));
        }
        let options = paging::options(spec, choices)?;
        let paged = PagedModel::load(backend, &spec.model, &model_params(spec), options)?;
        Ok(Weights::Paged(Box::new(paged)))
    }

    fn model(&self) -> &Model {
        match self {
            Weights::Plain(model) => model,
            Weights::Paged(paged) => paged.model(),
        }
    }

    fn attach(&self, context: &mut Context<'_>) -> Result<Option<Pager>> {
        match self {
            Weights::Plain(_) => Ok(None),
            Weights::Paged(paged) => Ok(Some(paged.attach(context)?)),
        }
    }
}

fn send(event: &Event) -> Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(&line)
        .and_then(|()| stdout.flush())
        .context("the parent is gone")
}

fn model_params(spec: &WorkerSpec) -> ModelParams {
    ModelParams {
        prefetch: match spec.mode {
            Mode::Eager => Prefetch::Eager,
            Mode::None => Prefetch::None,
            Mode::Selective | Mode::Pager => Prefetch::Selective,
        },
        repack: spec.repack,
        ..ModelParams::default()
    }
}

fn context_params(spec: &WorkerSpec) -> ContextParams {
    let n_batch = spec.n_batch.max(1);
    ContextParams {
        // llama-bench's choice: as much as the test needs.
        n_ctx: (spec.n_prompt + spec.n_warm_up + spec.n_gen).max(1),
        n_batch,
        n_ubatch: spec.n_ubatch.clamp(1, n_batch),
        n_threads: spec.n_threads,
        n_threads_batch: spec.n_threads,
        flash_attn: match spec.flash_attn {
            FlashAttn::Auto => FlashAttention::Auto,
            FlashAttn::On => FlashAttention::Enabled,
            FlashAttn::Off => FlashAttention::Disabled,
        },
        ..ContextParams::default()
    }
}

fn advise_counters(advise: &Advise) -> serde_json::Value {
    let counters = advise.counters();
    serde_json::json!({
        "slices": counters.slices,
        "slices_resident": counters.slices_resident,
        "checks": counters.checks,
        "advised_bytes": counters.advised_bytes,
        "advise_calls": counters.advise_calls,
        "streamed_bytes": counters.streamed_bytes,
    })
}

fn build_facts() -> BuildFacts {
    let info = Backend::build_info();
    BuildFacts {
        llama_build: info.llama_build.to_string(),
        ggml_version: info.ggml_version.to_string(),
        patch_set_digest: info.patch_set_digest.to_string(),
        cpu_features: info.cpu_features,
    }
}

fn buffers(context: &Context<'_>) -> Result<Vec<BufferFacts>> {
    let facts = |buffer: llama_rs::BufferUse| BufferFacts {
        name: buffer.name,
        model_bytes: buffer.model_bytes,
        context_bytes: buffer.context_bytes,
        compute_bytes: buffer.compute_bytes,
    };
    Ok(context.memory_breakdown()?.into_iter().map(facts).collect())
}
