//! `faultline check`: loads each model as the server would, measures, and compares with the configuration's thresholds.

mod report;

use std::sync::Arc;
use std::time::{Duration, Instant};

use llama_rs::Prefetch;

use crate::config::{Config, Limits, ModelConfig, PrefetchMode, Sampling, Ttl, shown_bytes};
use crate::engine::Holding;
use crate::generate::{Event, Finished, Prompt, Request};
use crate::host::Host;
use crate::lifecycle::ModelId;
use crate::memory::{self, ProcessMemory, Smaps, Zram};

pub use report::{Measure, Report, Row, Verdict};

/// Long enough that most models do not end before [`TOKENS`].
const PROMPT: &str =
    "Once upon a time, in a small village by the sea, there lived an old fisherman who";
const TOKENS: u32 = 33;

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
#[error("models.{model}: {reason}")]
pub struct CheckError {
    model: String,
    reason: String,
}

/// What was seen of a model, from unloaded to unloaded.
struct Seen {
    before: ProcessMemory,
    loaded: ProcessMemory,
    mappings: memory::Mappings,
    holding: Arc<Holding>,
    first_token: Duration,
    finished: Finished,
    working_set_bytes: Option<u64>,
    peak_bytes: u64,
    after: ProcessMemory,
}

/// Measures every model of the configuration, one after another. `on_model` is told each one's name before its turn.
///
/// # Errors
///
/// [`CheckError`] when a model cannot be loaded, or the kernel does not tell what it holds.
pub async fn run(
    config: &Config,
    host: &Host,
    mut on_model: impl FnMut(&str),
) -> Result<Report, CheckError> {
    let mut rows = Vec::new();
    let models: Vec<(ModelId, &ModelConfig)> = host.models().collect();
    for (id, model) in models {
        on_model(&model.name);
        let failed = |reason: String| CheckError {
            model: model.name.clone(),
            reason,
        };
        let seen = measure(host, id).await.map_err(failed)?;
        rows.extend(judge(model, &config.limits, &seen));
    }
    rows.push(zram_row(&config.limits, Zram::read()));
    Ok(Report { rows })
}

async fn measure(host: &Host, model: ModelId) -> Result<Seen, String> {
    let io = |error: std::io::Error| format!("/proc/self: {error}");
    memory::trim_heap();
    let before = ProcessMemory::read().map_err(io)?;
    // Kernels without page monitoring do not know these.
    let has_peak = memory::reset_peak().is_ok();
    let started = Instant::now();
    let lease = host
        .acquire(model, Some(Ttl::Never))
        .await
        .map_err(|refusal| refusal.to_string())?;
    let loaded = ProcessMemory::read().map_err(io)?;
    let holding = host
        .list(model)
        .holding
        .ok_or("it was unloaded while it was measured")?;
    let mappings = Smaps::read().map_err(io)?.of_files(&holding.files);

    let sampling = Sampling {
        temperature: 0.0,
        max_tokens: Some(TOKENS),
        ..Sampling::default()
    };
    let request = Request {
        prompt: Prompt::Text(PROMPT.to_owned()),
        sampling,
        stop: Vec::new(),
        reuses: false,
        text_interval: Duration::ZERO,
        probabilities: None,
    };
    let mut events = lease.submit(request);
    let mut first_token = None;
    let mut is_cleared = false;
    let finished = loop {
        match events.recv().await {
            Some(Event::Started { .. }) => {}
            Some(Event::Text(_)) => {
                if first_token.is_none() {
                    first_token = Some(started.elapsed());
                    is_cleared = memory::clear_referenced().is_ok();
                }
            }
            Some(Event::Done(finished)) => break finished,
            Some(Event::Failed(failure)) => return Err(failure.to_string()),
            None => return Err("it was unloaded while it was measured".to_owned()),
        }
    };
    let smaps = Smaps::read().map_err(io)?;
    let peak_bytes = ProcessMemory::read().map_err(io)?.peak_bytes;
    host.unload(model);
    while host.list(model).is_loaded() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let after = ProcessMemory::read().map_err(io)?;
    Ok(Seen {
        before,
        loaded,
        mappings,
        holding,
        first_token: first_token.ok_or("it generated no text")?,
        finished,
        working_set_bytes: is_cleared.then(|| smaps.total().referenced_bytes),
        peak_bytes: if has_peak {
            peak_bytes
        } else {
            loaded.resident_bytes()
        },
        after,
    })
}

fn judge(model: &ModelConfig, limits: &Limits, seen: &Seen) -> Vec<Row> {
    let row = |what: &'static str, value: Measure, limit: Option<Measure>| {
        Row::at_most(&model.name, what, value, limit)
    };
    let bytes = Measure::Bytes;
    let next_token = match seen.finished.n_generated {
        0 | 1 => Row::unknown(
            &model.name,
            "next token",
            limits.next_token.map(Measure::Time),
        ),
        count => row(
            "next token",
            Measure::Time(seen.finished.generate_time / (count - 1)),
            limits.next_token.map(Measure::Time),
        ),
    };
    let working_set = limits.working_set_bytes.map(bytes);
    vec![
        row(
            "RSS before first token",
            bytes(seen.loaded.resident_bytes()),
            limits.rss_before_first_token_bytes.map(bytes),
        ),
        row(
            "first token",
            Measure::Time(seen.first_token),
            limits.first_token.map(Measure::Time),
        ),
        next_token,
        match seen.working_set_bytes {
            Some(size) => row("working set", bytes(size), working_set),
            None => Row::unknown(&model.name, "working set", working_set),
        },
        row(
            "total",
            bytes(seen.peak_bytes),
            limits.total_bytes.map(bytes),
        ),
        mapping_row(model, seen),
        row(
            "left after unloading",
            bytes(grown(&seen.before, &seen.after)),
            None,
        ),
    ]
}

fn grown(before: &ProcessMemory, after: &ProcessMemory) -> u64 {
    after
        .resident_bytes()
        .saturating_sub(before.resident_bytes())
}

/// Whether the weights are in memory once: mapped, or in the pager's slots, and not copied beside.
fn mapping_row(model: &ModelConfig, seen: &Seen) -> Row {
    let (verdict, value) = match model.prefetch {
        PrefetchMode::Pager => paged(seen),
        PrefetchMode::Mapped(prefetch) => mapped(model, prefetch, seen),
    };
    Row {
        model: model.name.clone(),
        what: "mapping",
        value: Measure::Text(value),
        limit: None,
        verdict,
    }
}

/// The pager's memory is its own: the file must not be in memory beside it.
fn paged(seen: &Seen) -> (Verdict, String) {
    let resident = seen.mappings.resident_bytes;
    match resident {
        0 => (
            Verdict::Pass,
            "pager, no page of the file mapped".to_owned(),
        ),
        _ => (
            Verdict::Fail,
            format!(
                "pager, and {} of the file mapped beside",
                shown_bytes(resident)
            ),
        ),
    }
}

fn mapped(model: &ModelConfig, prefetch: Prefetch, seen: &Seen) -> (Verdict, String) {
    let mappings = &seen.mappings;
    if mappings.size_bytes == 0 {
        return (Verdict::Fail, "the file is not mapped".to_owned());
    }
    if mappings.anonymous_bytes > 0 {
        let copied = shown_bytes(mappings.anonymous_bytes);
        return (Verdict::Fail, format!("{copied} of the mapping are copies"));
    }
    let own = seen.holding.weights_bytes - seen.holding.mapped_bytes;
    if own > 0 {
        let hint = if model.repack {
            " (repack = false)"
        } else {
            ""
        };
        return (
            Verdict::Fail,
            format!("{} of weights are copies{hint}", shown_bytes(own)),
        );
    }
    // What cache and buffers do not explain must not be the size of weights.
    let anonymous = seen
        .loaded
        .anonymous_bytes
        .saturating_sub(seen.before.anonymous_bytes);
    let explained = seen.holding.kv_bytes + seen.holding.compute_bytes;
    let unexplained = anonymous.saturating_sub(explained);
    if unexplained > seen.holding.weights_bytes / 2 && unexplained > 64 << 20 {
        return (
            Verdict::Fail,
            format!(
                "{} of memory that nothing explains",
                shown_bytes(unexplained)
            ),
        );
    }
    let resident = shown_bytes(mappings.resident_bytes);
    let size = shown_bytes(mappings.size_bytes);
    (
        Verdict::Pass,
        format!("{prefetch}, {size} mapped, {resident} of it in memory"),
    )
}

fn zram_row(limits: &Limits, zram: Option<Zram>) -> Row {
    let limit = limits.zram_ratio.map(Measure::Ratio);
    let (value, verdict) = match zram {
        None => (
            Measure::Text("no zram device".to_owned()),
            Verdict::Measured,
        ),
        Some(zram) => match zram.ratio() {
            None => (
                Measure::Text("zram holds nothing".to_owned()),
                Verdict::Measured,
            ),
            Some(ratio) => {
                let verdict = match limits.zram_ratio {
                    None => Verdict::Measured,
                    Some(least) if ratio >= least => Verdict::Pass,
                    Some(_) => Verdict::Fail,
                };
                (Measure::Ratio(ratio), verdict)
            }
        },
    };
    Row {
        model: String::new(),
        what: "zram ratio, at least",
        value,
        limit,
        verdict,
    }
}

#[cfg(test)]
mod tests;
