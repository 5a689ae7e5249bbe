//! Why a model needs more memory than its file has, and what removes how much of it, in words.

use super::{Change, Model, Options, PartKind, Prediction, Prefetch};
use crate::text::size;
use gguf::GgmlType;

/// A context above this is worth halving.
const CTX_SMALL: u64 = 1024;
/// A smaller ubatch, for less memory.
const UBATCH_SMALL: u32 = 128;
/// A smaller type for the KV cache.
const KV_SMALL: GgmlType = GgmlType::Q8_0;

/// What could be changed to need less memory: each is one step, made of one or more changes. Only those that apply.
pub fn alternatives(model: &Model, base: &Prediction) -> Vec<Vec<Change>> {
    let options = &base.options;
    let mut steps = Vec::new();
    if base.part_bytes(PartKind::RepackedWeights) > 0 {
        steps.push(vec![Change::Repack(false)]);
    }
    let Some(shape) = &model.shape else {
        return steps;
    };
    let n_ctx = shape.n_cells(options.n_ctx);
    if n_ctx > CTX_SMALL {
        steps.push(vec![Change::Ctx((n_ctx / 2) as u32)]);
    }
    let fits = |length: u64| length.is_multiple_of(KV_SMALL.block_elements().unwrap_or(1));
    let is_large = |kind: GgmlType| kind.row_bytes(256) > KV_SMALL.row_bytes(256);
    if is_large(options.type_k)
        && is_large(options.type_v)
        && fits(shape.key_length)
        && fits(shape.value_length)
    {
        steps.push(vec![Change::TypeK(KV_SMALL), Change::TypeV(KV_SMALL)]);
    }
    if options.n_ubatch > UBATCH_SMALL {
        steps.push(vec![Change::Ubatch(UBATCH_SMALL)]);
    }
    if options.prefetch == Prefetch::Eager && base.weights.experts_bytes > 0 {
        steps.push(vec![Change::Prefetch(Prefetch::Selective)]);
    }
    steps
}

/// The option of the command line that makes a change.
fn option(change: Change) -> String {
    match change {
        Change::Ctx(tokens) => format!("--ctx-size {tokens}"),
        Change::Ubatch(tokens) => format!("--ubatch-size {tokens}"),
        Change::TypeK(kind) => format!("--cache-type-k {}", kind.name().unwrap_or_default()),
        Change::TypeV(kind) => format!("--cache-type-v {}", kind.name().unwrap_or_default()),
        Change::Repack(on) => format!("--repack {}", if on { "on" } else { "off" }),
        Change::Prefetch(mode) => format!("--prefetch {}", mode.as_str()),
        Change::FlashAttention(on) => format!("--flash-attn {}", if on { "on" } else { "off" }),
        Change::Threads(number) => format!("--threads {number}"),
    }
}

/// What a step costs, so that nobody takes it for free.
fn price(steps: &[Change]) -> &'static str {
    match steps.first() {
        Some(Change::Repack(_)) => "computing is slower",
        Some(Change::Ctx(_)) => "conversations end earlier",
        Some(Change::TypeK(_) | Change::TypeV(_)) => "keys and values are rounded",
        Some(Change::Ubatch(_)) => "prompts are slower",
        Some(Change::Prefetch(_)) => "the first tokens wait for the experts that they use",
        _ => "",
    }
}

/// Paragraphs about `base`; `steps` are the alternatives with their predictions.
pub(super) fn paragraphs(
    file_bytes: u64,
    base: &Prediction,
    steps: &[(Vec<Change>, Prediction)],
) -> Vec<String> {
    let options = &base.options;
    let mut text = vec![headline(file_bytes, base)];
    let mut parts: Vec<_> = base
        .parts
        .iter()
        .filter(|part| !part.kind.is_file())
        .collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.size_bytes));
    let own = base.anonymous_bytes().max(1);
    // What is less than a hundredth is said together.
    let (large, small): (Vec<_>, Vec<_>) = parts
        .into_iter()
        .partition(|part| part.size_bytes * 100 >= own);
    for part in large {
        text.push(format!(
            "{}: {}. {}.",
            capital(part.kind.name()),
            size(part.size_bytes),
            capital(&part.reason)
        ));
    }
    if !small.is_empty() {
        let names: Vec<_> = small.iter().map(|part| part.kind.name()).collect();
        let bytes = small.iter().map(|part| part.size_bytes).sum();
        text.push(format!(
            "{}: {} together.",
            capital(&names.join("; ")),
            size(bytes)
        ));
    }
    text.push(mapped(base, options));
    for (changes, changed) in steps {
        text.push(saving(base, changes, changed));
    }
    text.push(
        "Compare like with like: `top` and `ps` count mapped pages of the file as the process's (RES, RSS), `free` counts them as \
         page cache, and a limit of a control group counts both, page tables too."
            .to_owned(),
    );
    text
}

fn headline(file_bytes: u64, base: &Prediction) -> String {
    let held = base.held_bytes();
    let verb = if held > file_bytes { "more" } else { "less" };
    format!(
        "The file has {}; a process that runs it holds up to {}, {} {verb}: {} of the file's pages (and the program's), and {} of its own, \
         which no kernel can take back without swap.",
        size(file_bytes),
        size(held),
        size(held.abs_diff(file_bytes)),
        size(base.file_bytes()),
        size(base.anonymous_bytes()),
    )
}

fn mapped(base: &Prediction, options: &Options) -> String {
    let weights = &base.weights;
    let unused = match weights.mapped_unused_bytes {
        0 => String::new(),
        bytes => format!(
            " {} of them belong to tensors that were repacked: nothing reads them any more, so the kernel can take them for nothing.",
            size(bytes)
        ),
    };
    let use_ = match (weights.experts_bytes, weights.sparse_bytes) {
        (0, 0) => "Every token reads every weight: what does not fit is read again for each token."
            .to_owned(),
        (0, rows) => format!(
            "Every token reads every weight but the embedding, of whose {} it reads a row: what does not fit is read again for each token.",
            size(rows)
        ),
        (experts, _) => format!(
            "Every token reads the dense tensors in full, and of the {} of experts those that its router picks.",
            size(experts)
        ),
    };
    let when = match options.prefetch {
        Prefetch::Eager => "They are read at load.".to_owned(),
        Prefetch::Selective | Prefetch::None => {
            format!(
                "{} of them are read at load.",
                size(weights.mapped_at_load_bytes)
            )
        }
    };
    format!(
        "Mapped weights: {} of page cache. {when} {use_}{unused}",
        size(weights.mapped_bytes)
    )
}

fn saving(base: &Prediction, changes: &[Change], changed: &Prediction) -> String {
    let flags: Vec<String> = changes.iter().copied().map(option).collect();
    let flags = flags.join(" ");
    let own = base.anonymous_bytes() as i128 - changed.anonymous_bytes() as i128;
    let at_load = base.held_at_load_bytes() as i128 - changed.held_at_load_bytes() as i128;
    let signed = |bytes: i128| {
        let sign = if bytes < 0 { "more" } else { "less" };
        format!("{} {sign}", size(bytes.unsigned_abs() as u64))
    };
    let effect = match changes {
        [Change::Prefetch(_)] => format!(
            "{} after loading, and {} of its own",
            signed(at_load),
            signed(own)
        ),
        _ => format!("{} of its own", signed(own)),
    };
    format!("`{flags}`: {effect}; {}.", price(changes))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| {
        first.to_uppercase().chain(letters).collect()
    })
}
