//! `faultline run`: text from a prompt.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use llama_rs::{
    ChatMessage, Context, ContextParams, Error, Generated, LoraAdapter, Model, Sampler, Stop,
    Token, Utf8Stream,
};
use pager::{PagerError, PagerOptions};

use crate::cli::{RecordArgs, RunArgs, Switch};
use crate::exit::{BadInput, Outcome};
use crate::output::{self, Output, note};
use crate::progress::LoadBar;
use crate::record::Recording;
use crate::signals;
use crate::weights::{Provider, Weights};

/// Context size when none is asked for: the KV cache is resident at once, and many models are trained for far more.
const CONTEXT_TOKENS_DEFAULT: u32 = 4096;

/// Most tokens of a prompt that are computed at once: llama.cpp's default for a ubatch.
pub(crate) const BATCH_TOKENS: u32 = 512;

/// When what happened, seen from the start of the process.
struct Times {
    started: Instant,
    loaded: Duration,
    first_token: Option<Duration>,
}

/// Generates; `recording` says where accesses are recorded, if they are.
pub(crate) fn run(
    args: &RunArgs,
    started: Instant,
    recording: Option<&RecordArgs>,
) -> anyhow::Result<Outcome> {
    let stop = Arc::new(AtomicBool::new(false));
    signals::on_interrupt(&stop).context("cannot handle Ctrl-C")?;
    signals::on_native_failure(&args.model).context("cannot handle signals")?;
    output::show_logs(args.verbose);

    let pager = args.pager.options(args.prefetch)?;
    let prompt = prompt_text(args)?;
    let seed = args.seed.unwrap_or_else(random_seed);
    let mut sampler = sampler(args, seed)?;

    // First: a log that cannot be written is an error before minutes of loading, and the kernel is watched while loading.
    let mut recording = recording.map(Recording::create).transpose()?;

    let mut on_progress = || {
        if let Some(recording) = &mut recording {
            recording.collect();
        }
    };
    let mut weights = match load(args, pager, &stop, &mut on_progress) {
        Err(error) if is_cancelled(&error) => return Ok(Outcome::Interrupted),
        weights => weights?,
    };
    let adapters = adapters(args, &mut weights)?;
    let model = weights.model();
    if let Some(recording) = &mut recording {
        recording.model_loaded(model);
    }
    let mut times = Times {
        started,
        loaded: started.elapsed(),
        first_token: None,
    };
    let tokens = prompt_tokens(args, model, &prompt)?;
    let mut context = context(args, model)?;
    let scaled: Vec<_> = adapters.iter().map(|(a, scale)| (a, *scale)).collect();
    context.set_lora(&scaled)?;
    context.set_abort(Arc::clone(&stop));
    let provider = weights.attach(args.prefetch, &mut context)?;
    if let Provider::Pager(_) = provider {
        // It may read dense weights only now.
        times.loaded = started.elapsed();
    }
    if !args.quiet {
        print_configuration(args, model, &context, seed);
        provider.print_plan();
    }
    if let Some(recording) = &mut recording {
        recording.attach(&mut context)?;
    }
    let generated = stream(
        args,
        &mut context,
        &tokens,
        &mut sampler,
        &stop,
        recording.as_ref(),
        &mut times,
    );
    // The log is closed, and what it holds is said, also when the generation failed.
    let finished = recording.map(|recording| recording.finish(&mut context));
    let generated = generated?;
    if !args.quiet {
        print_summary(&context, &tokens, generated.as_ref(), &times);
        provider.print_counters(args.verbose);
    }
    finished.transpose()?;
    Ok(if stop.load(Ordering::Relaxed) {
        Outcome::Interrupted
    } else {
        Outcome::Done
    })
}

fn prompt_text(args: &RunArgs) -> anyhow::Result<String> {
    let Some(path) = &args.file else {
        return Ok(args.prompt.clone().unwrap_or_default());
    };
    let bytes = read(path).map_err(|error| {
        BadInput(format!(
            "{}: cannot read the prompt: {error}",
            path.display()
        ))
    })?;
    let mut text = String::from_utf8(bytes).map_err(|error| {
        BadInput(format!(
            "{}: the prompt is not UTF-8: {}",
            path.display(),
            error.utf8_error()
        ))
    })?;
    // Editors end a file with a newline that is no part of the prompt.
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes)?;
        Ok(bytes)
    } else {
        fs::read(path)
    }
}

/// Differs from run to run; no secret depends on it.
fn random_seed() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}

fn sampler(args: &RunArgs, seed: u32) -> llama_rs::Result<Sampler> {
    if args.temp == 0.0 {
        return Ok(Sampler::greedy());
    }
    let builder = Sampler::builder()
        .temperature(args.temp)
        .top_k(args.top_k)
        .top_p(args.top_p);
    builder.min_p(args.min_p).seed(seed).build()
}

fn load(
    args: &RunArgs,
    pager: Option<PagerOptions>,
    stop: &AtomicBool,
    on_progress: &mut dyn FnMut(),
) -> anyhow::Result<Weights> {
    let name = args
        .model
        .file_name()
        .unwrap_or(args.model.as_os_str())
        .to_string_lossy();
    let bar = LoadBar::new(&name, args.quiet);
    let repack = args.repack == Switch::On;
    Weights::load(&args.model, args.prefetch, repack, pager, |fraction| {
        bar.set(fraction);
        on_progress();
        if stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
}

fn is_cancelled(error: &anyhow::Error) -> bool {
    let paged = match error.downcast_ref() {
        Some(PagerError::Llama(error)) => Some(error),
        _ => None,
    };
    matches!(paged.or(error.downcast_ref()), Some(Error::Cancelled))
}

fn adapters(args: &RunArgs, weights: &mut Weights) -> anyhow::Result<Vec<(LoraAdapter, f32)>> {
    let plain = args.lora.iter().map(|file| (file, 1.0));
    let scaled = args.lora_scaled.iter().map(|(file, scale)| (file, *scale));
    plain
        .chain(scaled)
        .map(|(file, scale)| Ok((weights.load_adapter(file)?, scale)))
        .collect()
}

fn prompt_tokens(args: &RunArgs, model: &Model, prompt: &str) -> anyhow::Result<Vec<Token>> {
    let with_template =
        args.chat || args.system.is_some() || (!args.raw && model.chat_template().is_some());
    let text = if with_template {
        let system = args
            .system
            .iter()
            .map(|text| ChatMessage::new("system", text));
        let messages: Vec<ChatMessage> = system.chain([ChatMessage::new("user", prompt)]).collect();
        model
            .apply_chat_template(&messages, true)
            .context("cannot put the prompt into the model's chat template; --raw continues it as plain text")?
    } else {
        prompt.to_owned()
    };
    let tokens = model
        .vocab()
        .tokenize(&text, true, true)
        .with_context(|| args.model.display().to_string())?;
    if tokens.is_empty() {
        return Err(BadInput("the prompt has no tokens".to_owned()).into());
    }
    Ok(tokens)
}

/// The size of the context that is made for a wish.
pub(crate) fn context_tokens(wish: Option<u32>, n_ctx_train: u32) -> u32 {
    let trained = n_ctx_train.max(1);
    match wish {
        Some(0) => trained,
        Some(tokens) => tokens,
        None => CONTEXT_TOKENS_DEFAULT.min(trained),
    }
}

fn context<'m>(args: &RunArgs, model: &'m Model) -> llama_rs::Result<Context<'m>> {
    let mut params = ContextParams {
        n_ctx: context_tokens(args.ctx_size, model.n_ctx_train()),
        n_batch: BATCH_TOKENS,
        n_ubatch: BATCH_TOKENS,
        type_k: args.cache_type_k,
        type_v: args.cache_type_v,
        ..ContextParams::default()
    };
    if let Some(threads) = args.threads {
        params.n_threads = threads;
        params.n_threads_batch = threads;
    }
    Context::new(model, &params)
}

/// Generates, and writes each token as it comes. `None` when Ctrl-C came while a token was being computed.
fn stream(
    args: &RunArgs,
    context: &mut Context<'_>,
    prompt: &[Token],
    sampler: &mut Sampler,
    stop: &AtomicBool,
    recording: Option<&Recording<'_>>,
    times: &mut Times,
) -> anyhow::Result<Option<Generated>> {
    let vocab = context.model().vocab();
    let mut output = Output::new();
    let mut text = Utf8Stream::new();
    let mut failure = None;
    let is_full = || recording.is_some_and(Recording::is_full);
    let text_comes = || recording.into_iter().for_each(Recording::text_comes);
    if args.ids {
        text_comes();
        let ids: String = prompt.iter().map(|token| format!(" {token}")).collect();
        if output
            .write(format!("prompt{ids}\ngenerated").as_bytes())?
            .is_break()
        {
            return Ok(None);
        }
    }
    let on_token = |token: Token| {
        times
            .first_token
            .get_or_insert_with(|| times.started.elapsed());
        let piece = if args.ids {
            format!(" {token}")
        } else {
            text.push(&vocab.piece(token, false))
        };
        text_comes();
        match output.write(piece.as_bytes()) {
            Ok(ControlFlow::Continue(())) if !stop.load(Ordering::Relaxed) && !is_full() => {
                ControlFlow::Continue(())
            }
            Ok(_) => ControlFlow::Break(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    };
    let max_new = usize::try_from(args.n_predict).unwrap_or(usize::MAX);
    let result = llama_rs::generate(context, prompt, sampler, max_new, on_token);
    if let Some(error) = failure {
        return Err(error).context("cannot write to standard output");
    }
    if result.is_ok() || stop.load(Ordering::Relaxed) {
        // What was held back of a character that never became complete.
        let _ = output.write(text.finish().as_bytes())?;
    }
    // Also before an error message: the text so far ends with a whole line.
    output.end_line()?;
    match result {
        Err(Error::Aborted) if stop.load(Ordering::Relaxed) => Ok(None),
        Err(error @ Error::KvCacheFull { .. }) => Err(error).with_context(|| {
            format!(
                "the prompt has {} tokens; --ctx-size sets the limit",
                prompt.len()
            )
        }),
        result => Ok(Some(result?)),
    }
}

fn print_configuration(args: &RunArgs, model: &Model, context: &Context<'_>, seed: u32) {
    let threads = args.threads.unwrap_or_else(llama_rs::default_threads);
    let repack = match args.repack {
        Switch::On => "on",
        Switch::Off => "off",
    };
    let sampling = if args.temp == 0.0 {
        "greedy".to_owned()
    } else {
        format!("seed {seed}")
    };
    note(format_args!(
        "{}, {:.1} MiB; prefetch {}, repack {repack}; context {} tokens, {threads} threads, {sampling}",
        model.desc(),
        model.size_bytes() as f64 / f64::from(1 << 20),
        args.prefetch,
        context.n_ctx(),
    ));
}

fn print_summary(
    context: &Context<'_>,
    prompt: &[Token],
    generated: Option<&Generated>,
    times: &Times,
) {
    let perf = context.perf();
    let speed = |count: u32, ms: f64| {
        if count > 0 && ms > 0.0 {
            format!(" at {:.1} tokens/s", 1000.0 * f64::from(count) / ms)
        } else {
            String::new()
        }
    };
    let first_token = match times.first_token {
        Some(time) => format!("first token after {:.0} ms", 1000.0 * time.as_secs_f64()),
        None => "no token".to_owned(),
    };
    let end = match generated.map(|generated| generated.stop) {
        Some(Stop::EndOfText) => "end of text",
        Some(Stop::Length) => "length",
        Some(Stop::ContextFull) => "context full",
        Some(Stop::Callback) | None => "stopped",
    };
    note(format_args!(
        "loaded after {:.0} ms, {first_token}; prompt {} tokens{}; decode {} tokens{}; {end}",
        1000.0 * times.loaded.as_secs_f64(),
        prompt.len(),
        speed(perf.n_prompt, perf.prompt_ms),
        perf.n_decode,
        speed(perf.n_decode, perf.decode_ms),
    ));
}
