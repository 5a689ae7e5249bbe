//! `faultline memory`: what a model takes, before it is loaded, and what a process that runs it holds.

mod measure;

use std::collections::HashMap;

use analysis::Target;
use analysis::memory::{
    Answers, Change, Cpu, Format, GRAPH_ARENAS, Held, Model, Options, Prediction, Report, Scenario,
    alternatives,
};
use anyhow::Context as _;
use llama_rs::{
    Backend, BufferUse, ContextParams, DryContext, DryModel, FlashAttention, KvType,
    MAX_CONTEXT_TOKENS, MemoryExtras, ModelParams, Prefetch,
};

use crate::cli::{MemoryArgs, MemoryFormat, Switch};
use crate::exit::{BadInput, Outcome, answered};
use crate::run::{BATCH_TOKENS, context_tokens};
use crate::signals;

pub(crate) fn run(args: &MemoryArgs) -> anyhow::Result<Outcome> {
    if args.explain && args.output == MemoryFormat::Csv {
        let message = "--explain has no place in CSV; use -o md or -o json";
        return Err(BadInput(message.to_owned()).into());
    }
    signals::on_native_failure(&args.model).context("cannot handle signals")?;
    if args.worker {
        return measure::work(args);
    }
    let (mut asked, options) = match args.metadata_only {
        true => Asked::nothing(args)?,
        false => Asked::begin(args)?,
    };
    let base = asked.predict(&options)?;
    let mut report = Report::new(&asked.model, base.clone());

    for &change in &args.what_if {
        report.what_if.push(Scenario {
            name: change.to_string(),
            prediction: asked.predict(&options.with(change))?,
        });
    }
    if args.what_if.len() > 1 {
        report.what_if.push(Scenario {
            name: "all of these".to_owned(),
            prediction: asked.predict(&with_all(options, &args.what_if))?,
        });
    }
    if args.explain {
        let mut steps = Vec::new();
        for changes in alternatives(&asked.model, &base) {
            let changed = asked.predict(&with_all(options, &changes))?;
            steps.push((changes, changed));
        }
        report.explain(&steps);
    }
    if args.measure {
        report.measured = Some(measure::in_child(args, &options)?);
    }
    let format = match args.output {
        MemoryFormat::Md => Format::Markdown,
        MemoryFormat::Csv => Format::Csv,
        MemoryFormat::Json => Format::Json,
    };
    answered(report.write(format, &Target::Stdout))
}

fn with_all(options: Options, changes: &[Change]) -> Options {
    changes
        .iter()
        .fold(options, |options, &change| options.with(change))
}

/// The model, and what llama.cpp said about it so far.
struct Asked<'a> {
    args: &'a MemoryArgs,
    model: Model,
    n_ctx_train: u32,
    /// By what decides which weights are repacked. Empty if llama.cpp is not asked.
    dry: HashMap<(Prefetch, bool), DryModel>,
    /// What the process held when only vocabulary and graphs were there; `None` if llama.cpp is not asked.
    program: Option<Held>,
}

impl<'a> Asked<'a> {
    fn nothing(args: &'a MemoryArgs) -> anyhow::Result<(Asked<'a>, Options)> {
        let model = Model::open(&args.model)?;
        let n_ctx_train = model
            .n_ctx_train()
            .and_then(|tokens| u32::try_from(tokens).ok());
        let asked = Asked {
            args,
            model,
            n_ctx_train: n_ctx_train.unwrap_or(MAX_CONTEXT_TOKENS),
            dry: HashMap::new(),
            program: None,
        };
        let options = options(args, asked.n_ctx_train);
        Ok((asked, options))
    }

    /// Asks about the options that were given. First of all, so that nothing else is in the heap.
    fn begin(args: &'a MemoryArgs) -> anyhow::Result<(Asked<'a>, Options)> {
        let repack = is_repacked(args);
        let dry = dry_model(args, args.prefetch, repack)?;
        let options = options(args, dry.n_ctx_train());
        let (context, program) = dry.context_with(&context_params(&options)?, || Held::now(&[]))?;
        let mut program = program?;
        // A context has its logits and one description of a graph already.
        let counted = context.extras.outputs_bytes + context.extras.graphs_bytes / GRAPH_ARENAS;
        program.anonymous_bytes = program.anonymous_bytes.saturating_sub(counted);
        let asked = Asked {
            args,
            model: Model::open(&args.model)?,
            n_ctx_train: dry.n_ctx_train(),
            dry: HashMap::from([((args.prefetch, repack), dry)]),
            program: Some(program),
        };
        Ok((asked, options))
    }

    fn predict(&mut self, options: &Options) -> anyhow::Result<Prediction> {
        let options = &Options {
            n_ctx: context_tokens(Some(options.n_ctx), self.n_ctx_train),
            ..*options
        };
        let Some(program) = self.program else {
            return Ok(self.model.predict(options, None));
        };
        let prefetch = prefetch_of(options.prefetch);
        let key = (prefetch, options.repack);
        if !self.dry.contains_key(&key) {
            self.dry
                .insert(key, dry_model(self.args, prefetch, options.repack)?);
        }
        let context = self.dry[&key].context(&context_params(options)?)?;
        let answers = answers_of_dry(&context, &program);
        Ok(self.model.predict(options, Some(&answers)))
    }
}

fn dry_model(args: &MemoryArgs, prefetch: Prefetch, repack: bool) -> llama_rs::Result<DryModel> {
    let params = ModelParams {
        prefetch,
        repack,
        ..ModelParams::default()
    };
    DryModel::load(&Backend::init(), &args.model, &params)
}

fn answers_of_dry(context: &DryContext, program: &Held) -> Answers {
    Answers {
        program_bytes: program.anonymous_bytes,
        program_file_bytes: program.file_bytes,
        ..answers(&context.buffers, context.extras)
    }
}

/// What llama.cpp has allocated, or would.
fn answers(buffers: &[BufferUse], extras: MemoryExtras) -> Answers {
    Answers {
        kv_bytes: buffers.iter().map(|buffer| buffer.context_bytes).sum(),
        compute_bytes: buffers.iter().map(|buffer| buffer.compute_bytes).sum(),
        repacked_bytes: llama_rs::repacked_bytes(buffers),
        work_bytes: extras.work_bytes,
        outputs_bytes: extras.outputs_bytes,
        graphs_bytes: extras.graphs_bytes,
        flash_attention: extras.flash_attention,
        program_bytes: 0,
        program_file_bytes: 0,
    }
}

fn is_repacked(args: &MemoryArgs) -> bool {
    args.repack == Switch::On && !args.no_repack
}

fn options(args: &MemoryArgs, n_ctx_train: u32) -> Options {
    Options {
        n_ctx: context_tokens(args.ctx_size, n_ctx_train),
        n_ubatch: args.ubatch_size,
        type_k: args.cache_type_k.ggml_type(),
        type_v: args.cache_type_v.ggml_type(),
        repack: is_repacked(args),
        prefetch: match args.prefetch {
            Prefetch::Eager => analysis::memory::Prefetch::Eager,
            Prefetch::Selective => analysis::memory::Prefetch::Selective,
            Prefetch::None => analysis::memory::Prefetch::None,
        },
        flash_attention: true,
        n_threads: args.threads.unwrap_or_else(llama_rs::default_threads),
        cpu: Cpu::from_system_info(&Backend::build_info().cpu_features),
    }
}

fn prefetch_of(mode: analysis::memory::Prefetch) -> Prefetch {
    match mode {
        analysis::memory::Prefetch::Eager => Prefetch::Eager,
        analysis::memory::Prefetch::Selective => Prefetch::Selective,
        analysis::memory::Prefetch::None => Prefetch::None,
    }
}

/// The context that `faultline run` would make.
fn context_params(options: &Options) -> anyhow::Result<ContextParams> {
    let kv_type = |kind: gguf::GgmlType| {
        let mut types = KvType::ALL.into_iter();
        types
            .find(|known| known.ggml_type() == kind)
            .ok_or_else(|| BadInput(format!("type {} is none of the KV cache", kind.0)))
    };
    Ok(ContextParams {
        n_ctx: options.n_ctx,
        n_batch: BATCH_TOKENS.max(options.n_ubatch),
        n_ubatch: options.n_ubatch,
        n_threads: options.n_threads,
        n_threads_batch: options.n_threads,
        type_k: kv_type(options.type_k)?,
        type_v: kv_type(options.type_v)?,
        flash_attn: match options.flash_attention {
            true => FlashAttention::Auto,
            false => FlashAttention::Disabled,
        },
        ..ContextParams::default()
    })
}
