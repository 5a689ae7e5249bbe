//! The two ways to feed a model: a fixed text continued greedily, or llama-bench's random tokens.

use anyhow::{Context as _, Result, bail};
use llama_rs::{Batch, Context, Model, Token};

use super::fingerprint::Digests;
use super::marks::Marks;
use super::steps::StepMeter;
use crate::procfs::monotonic_ns;
use crate::protocol::{Fingerprint, Point, StepCounters};
use crate::spec::WorkerSpec;

/// The prompt, repeated as often as needed. Plain English with common words, so that a router sees what it would see in
/// use, and long enough that sixteen tokens are not one phrase.
pub(crate) const PROMPT: &str = "The capital of Germany is Berlin, a city on the river Spree. In the morning the markets open, trams \
                      fill with people, and the bakeries sell bread that was put into the oven at three o'clock. Whoever \
                      wants to see the city from above climbs the dome of the parliament and looks over the roofs. ";

/// What was computed and how long it took.
#[derive(Default)]
pub(super) struct Decoded {
    pub(super) prompt_ns: Option<u64>,
    pub(super) warm_up_ns: Vec<u64>,
    pub(super) step_ns: Vec<u64>,
    pub(super) steps: StepCounters,
    pub(super) loop_ns: u64,
    pub(super) fingerprint: Option<Fingerprint>,
}

/// The prompts, then at most `n_warm_up` and `n_gen` single tokens, each the most likely one. Every step's logits are fingerprinted.
/// `begin_counting` is called before those of `n_gen`.
pub(super) fn greedy(
    spec: &WorkerSpec,
    model: &Model,
    context: &mut Context<'_>,
    marks: &mut Marks,
    begin_counting: impl FnOnce(),
) -> Result<Decoded> {
    let prompt = prompt_tokens(spec, model)?;
    let mut batch = Batch::new(context.n_batch() as usize, 1);
    let mut digests = Digests::default();
    let mut chosen = 0;
    let mut choose = |context: &Context<'_>, marks: &mut Marks| -> Result<Token> {
        let logits = context.logits(-1)?;
        let token = most_likely(logits)?;
        marks.time_out(|| digests.add(token.0, logits));
        chosen += 1;
        match chosen {
            1 => marks.send(Point::FirstToken)?,
            16 => marks.send(Point::Token16)?,
            _ => {}
        }
        Ok(token)
    };

    let mut token = match model.vocab().bos() {
        Some(bos) => bos,
        None => Token(0),
    };
    let mut position = 0;
    let mut prompt_ns = None;
    if !prompt.is_empty() {
        for _ in 0..spec.n_prompts {
            context.clear_kv();
            position = 0;
            let begin_ns = monotonic_ns();
            for chunk in prompt.chunks(context.n_batch() as usize) {
                batch.clear();
                for prompt_token in chunk {
                    // Only the last token of the prompt needs logits.
                    batch.add(
                        *prompt_token,
                        position,
                        &[0],
                        position as usize + 1 == prompt.len(),
                    )?;
                    position += 1;
                }
                context.decode(&batch)?;
            }
            context.synchronize()?;
            prompt_ns = Some(monotonic_ns() - begin_ns);
        }
        token = choose(context, marks)?;
    }

    let limit_ns = spec.decode_limit_ns.unwrap_or(u64::MAX);
    let mut decode = |n_tokens: u32, meter: &mut StepMeter, marks: &mut Marks| {
        let mut step_ns = Vec::with_capacity(n_tokens as usize);
        let mut spent_ns = 0;
        for _ in 0..n_tokens {
            if spent_ns >= limit_ns {
                break;
            }
            meter.begin();
            let begin_ns = monotonic_ns();
            step(context, &mut batch, token, position)?;
            let ns = monotonic_ns() - begin_ns;
            meter.end();
            step_ns.push(ns);
            spent_ns += ns;
            position += 1;
            token = choose(context, marks)?;
        }
        anyhow::Ok(step_ns)
    };
    let mut unused = StepMeter::new(spec.n_warm_up as usize);
    let warm_up_ns = decode(spec.n_warm_up, &mut unused, marks)?;

    begin_counting();
    marks.send(Point::Counted)?;
    let mut meter = StepMeter::new(spec.n_gen as usize);
    let loop_begin_ns = monotonic_ns();
    let step_ns = decode(spec.n_gen, &mut meter, marks)?;
    let loop_ns = monotonic_ns() - loop_begin_ns;
    Ok(Decoded {
        prompt_ns,
        warm_up_ns,
        step_ns,
        steps: meter.finish(),
        loop_ns,
        fingerprint: Some(digests.finish()),
    })
}

/// What llama-bench does for `-n n_gen`: one token as warm-up, an emptied KV cache, then `n_gen` tokens. Its tokens come
/// from `rand()` without a seed, so both programs compute the same ones.
pub(super) fn like_llama_bench(
    spec: &WorkerSpec,
    model: &Model,
    context: &mut Context<'_>,
    marks: &mut Marks,
) -> Result<Decoded> {
    let n_vocab = model.vocab().n_tokens() as i32;
    let random = || {
        // SAFETY: no other thread of this process calls `rand` or `srand`.
        Token(unsafe { libc::rand() } % n_vocab)
    };
    let first = || match model.vocab().bos() {
        Some(bos) if model.vocab().adds_bos() => bos,
        _ => random(),
    };
    let mut batch = Batch::new(1, 1);
    let mut token = first();
    step(context, &mut batch, token, 0)?;
    marks.send(Point::FirstToken)?;
    // Drawn after each step, used or not.
    random();

    context.clear_kv();
    let mut step_ns = Vec::with_capacity(spec.n_gen as usize);
    let loop_begin_ns = monotonic_ns();
    token = first();
    for position in 0..spec.n_gen {
        let begin_ns = monotonic_ns();
        step(context, &mut batch, token, position as i32)?;
        step_ns.push(monotonic_ns() - begin_ns);
        token = random();
    }
    let loop_ns = monotonic_ns() - loop_begin_ns;
    Ok(Decoded {
        prompt_ns: None,
        warm_up_ns: Vec::new(),
        step_ns,
        steps: StepCounters::default(),
        loop_ns,
        fingerprint: None,
    })
}

/// Computes one token, to the end.
fn step(context: &mut Context<'_>, batch: &mut Batch, token: Token, position: i32) -> Result<()> {
    batch.clear();
    batch.add(token, position, &[0], true)?;
    context.decode(batch)?;
    context.synchronize()?;
    Ok(())
}

/// The first `n_prompt` tokens of the text. A model without a tokenizer gets ids spread over its vocabulary.
fn prompt_tokens(spec: &WorkerSpec, model: &Model) -> Result<Vec<Token>> {
    let wanted = spec.n_prompt as usize;
    let vocab = model.vocab();
    if !vocab.has_tokenizer() {
        let n_vocab = vocab.n_tokens().max(1);
        return Ok((0..spec.n_prompt)
            .map(|i| Token((i.wrapping_mul(7919) % n_vocab) as i32))
            .collect());
    }
    let mut tokens: Vec<Token> = Vec::new();
    while tokens.len() < wanted {
        let more = vocab
            .tokenize(PROMPT, tokens.is_empty(), false)
            .context("cannot tokenize the prompt")?;
        if more.is_empty() {
            bail!("the model's tokenizer gives no tokens for the prompt");
        }
        tokens.extend(more);
    }
    tokens.truncate(wanted);
    Ok(tokens)
}

/// The token with the highest logit, the first of equals.
fn most_likely(logits: &[f32]) -> Result<Token> {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            bail!("the logit of token {index} is not a number");
        }
        if *logit > logits[best] {
            best = index;
        }
    }
    Ok(Token(best as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_chosen() {
        assert_eq!(most_likely(&[1.0, 3.0, 3.0, -1.0]).unwrap().0, 1);
        assert_eq!(
            most_likely(&[f32::NEG_INFINITY, f32::NEG_INFINITY])
                .unwrap()
                .0,
            0
        );
        assert!(most_likely(&[0.0, f32::NAN]).is_err());
    }
}
