//! The process that runs the model: what it holds is not mixed with what asking took.

use std::process::{Command, Stdio};
use std::sync::Arc;

use analysis::memory::{Held, Measured, Options};
use anyhow::Context as _;
use llama_rs::{Advise, Backend, Batch, Context, Model, ModelParams, Prefetch, Token};

use super::{answers, context_params, is_repacked, options};
use crate::cli::MemoryArgs;
use crate::exit::{BadInput, Outcome};
use crate::output::Output;

/// Single tokens after the prompt: decoding has a graph of its own.
const SINGLE_TOKENS: u32 = 4;

/// Steps through the vocabulary, so that rows and experts vary. A prime, so that it visits all tokens.
const TOKEN_STRIDE: u64 = 7919;

/// Runs this program again, as the process to measure.
pub(super) fn in_child(args: &MemoryArgs, options: &Options) -> anyhow::Result<Measured> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command
        .args(["memory", "--worker", "--model"])
        .arg(&args.model);
    for (flag, value) in [
        ("--ctx-size", options.n_ctx.to_string()),
        ("--ubatch-size", options.n_ubatch.to_string()),
        ("--cache-type-k", args.cache_type_k.to_string()),
        ("--cache-type-v", args.cache_type_v.to_string()),
        (
            "--repack",
            if options.repack { "on" } else { "off" }.to_owned(),
        ),
        ("--prefetch", args.prefetch.to_string()),
        ("--threads", options.n_threads.to_string()),
    ] {
        command.arg(flag).arg(value);
    }
    let child = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the process to measure")?;
    let line = String::from_utf8_lossy(&child.stdout);
    match Measured::from_line(&line) {
        Ok(measured) if child.status.success() => Ok(measured),
        // It has said what is wrong.
        _ if child.status.code() == Some(i32::from(crate::exit::BAD_INPUT)) => {
            Err(BadInput("the model could not be run to be measured".to_owned()).into())
        }
        _ => anyhow::bail!(
            "the process that ran the model ended early ({}); if memory was too little, a smaller --ctx-size or --repack off needs less",
            child.status
        ),
    }
}

/// Loads the model, computes, and writes what the process then holds.
pub(super) fn work(args: &MemoryArgs) -> anyhow::Result<Outcome> {
    let params = ModelParams {
        prefetch: args.prefetch,
        repack: is_repacked(args),
        ..ModelParams::default()
    };
    let model = Model::load(&Backend::init(), &args.model, &params)?;
    let options = options(args, model.n_ctx_train());
    let mut context = Context::new(&model, &context_params(&options)?)?;
    if args.prefetch == Prefetch::Selective {
        context.set_slice_provider(Arc::new(Advise::new(&model)?))?;
    }
    let files = model.files().parts.iter();
    let paths: Vec<_> = files.map(|part| part.path().to_owned()).collect();
    let at_load = Held::now(&paths)?;
    let n_tokens = compute(&mut context)?;
    let held = Held::now(&paths)?;
    let cached: Result<Vec<u64>, _> = paths
        .iter()
        .map(|path| tracer::page_cache_bytes(path))
        .collect();
    let measured = Measured {
        at_load,
        held,
        page_cache_bytes: cached.ok().map(|bytes| bytes.iter().sum()),
        allocated: answers(&context.memory_breakdown()?, context.memory_extras()?),
        n_tokens,
    };
    let line = measured.to_line()? + "\n";
    let _ = Output::new().write(line.as_bytes())?;
    Ok(Outcome::Done)
}

/// A full ubatch, as far as the context has room for it, and single tokens. Returns how many tokens that were.
fn compute(context: &mut Context<'_>) -> anyhow::Result<u32> {
    let n_vocab = context.model().vocab().n_tokens();
    if n_vocab == 0 {
        return Err(BadInput("a model without a vocabulary cannot be measured".to_owned()).into());
    }
    let token = |index: u32| {
        let id = u64::from(index) * TOKEN_STRIDE % u64::from(n_vocab);
        // Below the number of tokens, which llama.cpp has as i32.
        Token(id as i32)
    };
    let n_single = SINGLE_TOKENS.min(context.n_ctx().saturating_sub(1));
    let n_prompt = context.n_ubatch().min(context.n_ctx() - n_single);
    let mut batch = Batch::new(n_prompt as usize, 1);
    for index in 0..n_prompt {
        batch.add(token(index), index as i32, &[0], index + 1 == n_prompt)?;
    }
    context.decode(&batch)?;
    for index in n_prompt..n_prompt + n_single {
        batch.clear();
        batch.add(token(index), index as i32, &[0], true)?;
        context.decode(&batch)?;
    }
    Ok(n_prompt + n_single)
}
