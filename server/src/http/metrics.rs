//! `GET /metrics`, in Prometheus's text format: llama-server's names over all models, and ours for each model.
//!
//! Format: "Prometheus exposition formats", text version 0.0.4.

use std::fmt::Write;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, header};
use axum::response::IntoResponse;

use super::App;
use super::error::ApiError;
use super::models::{beside, resident_bytes};
use crate::counters::CountersSnapshot;
use crate::host::Listed;
use crate::memory::{ProcessMemory, Smaps};

pub(super) async fn get(State(app): State<Arc<App>>) -> Result<Response<Body>, ApiError> {
    beside(move || metrics(&app)).await
}

fn metrics(app: &App) -> Response<Body> {
    let smaps = Smaps::read().ok();
    let models: Vec<Row> = app
        .host
        .models()
        .map(|(model, config)| {
            let listed = app.host.list(model);
            Row {
                name: config.name.clone(),
                resident_bytes: resident_bytes(&listed, smaps.as_ref()),
                counters: app.host.counters(model).snapshot(),
                listed,
            }
        })
        .collect();
    let memory = ProcessMemory::read().unwrap_or_default();
    let text = text(&models, app.host.budget(), &memory);
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response()
}

struct Row {
    name: String,
    listed: Listed,
    resident_bytes: u64,
    counters: CountersSnapshot,
}

fn text(models: &[Row], (held, budget): (u64, u64), memory: &ProcessMemory) -> String {
    let mut text = Text::default();
    let sum = |get: fn(&CountersSnapshot) -> u64| {
        models.iter().map(|row| get(&row.counters)).sum::<u64>()
    };
    let seconds = |ns: u64| ns as f64 / 1e9;
    let rate = |count: u64, ns: u64| {
        if ns == 0 {
            0.0
        } else {
            count as f64 / seconds(ns)
        }
    };
    let (prompt, generated) = (sum(|c| c.prompt_tokens), sum(|c| c.generated_tokens));
    let (prompt_ns, generate_ns) = (sum(|c| c.prompt_ns), sum(|c| c.generate_ns));
    let steps = sum(|c| c.steps);

    text.one(
        "llamacpp:prompt_tokens_total",
        "counter",
        "Tokens of prompts that were computed.",
        prompt as f64,
    );
    text.one(
        "llamacpp:prompt_seconds_total",
        "counter",
        "Time for prompts.",
        seconds(prompt_ns),
    );
    text.one(
        "llamacpp:tokens_predicted_total",
        "counter",
        "Tokens generated.",
        generated as f64,
    );
    text.one(
        "llamacpp:tokens_predicted_seconds_total",
        "counter",
        "Time for generated tokens.",
        seconds(generate_ns),
    );
    text.one(
        "llamacpp:n_decode_total",
        "counter",
        "Batches computed.",
        steps as f64,
    );
    let busy = if steps == 0 {
        0.0
    } else {
        sum(|c| c.decoding_sequences) as f64 / steps as f64
    };
    text.one(
        "llamacpp:n_busy_slots_per_decode",
        "gauge",
        "Requests that generate, per batch.",
        busy,
    );
    text.one(
        "llamacpp:prompt_tokens_seconds",
        "gauge",
        "Tokens of prompts per second.",
        rate(prompt, prompt_ns),
    );
    text.one(
        "llamacpp:predicted_tokens_seconds",
        "gauge",
        "Generated tokens per second.",
        rate(generated, generate_ns),
    );
    let running: usize = models.iter().map(|row| row.listed.status.running).sum();
    let waiting: usize = models.iter().map(|row| row.listed.status.waiting).sum();
    text.one(
        "llamacpp:requests_processing",
        "gauge",
        "Requests that run.",
        running as f64,
    );
    text.one(
        "llamacpp:requests_deferred",
        "gauge",
        "Requests that wait.",
        waiting as f64,
    );

    text.one(
        "faultline_budget_bytes",
        "gauge",
        "Most that all models may hold.",
        budget as f64,
    );
    text.one(
        "faultline_budget_used_bytes",
        "gauge",
        "What counts in the budget.",
        held as f64,
    );
    text.one(
        "faultline_process_resident_bytes",
        "gauge",
        "Resident memory of the server.",
        memory.resident_bytes() as f64,
    );
    type Value = fn(&Row) -> f64;
    let rows: [(&str, &str, &str, Value); 19] = [
        ("model_loaded", "gauge", "Whether it is in memory.", |row| {
            f64::from(u8::from(row.listed.is_loaded()))
        }),
        (
            "model_held_bytes",
            "gauge",
            "What counts in the budget.",
            |row| row.listed.status.counted_bytes as f64,
        ),
        (
            "model_resident_bytes",
            "gauge",
            "What is in memory.",
            |row| row.resident_bytes as f64,
        ),
        (
            "model_running_requests",
            "gauge",
            "Requests that run.",
            |row| row.listed.status.running as f64,
        ),
        (
            "model_waiting_requests",
            "gauge",
            "Requests that wait.",
            |row| row.listed.status.waiting as f64,
        ),
        (
            "model_cached_tokens_total",
            "counter",
            "Tokens of prompts that were in the KV cache.",
            |row| row.counters.cached_tokens as f64,
        ),
        (
            "model_loads_total",
            "counter",
            "Loads that ended well.",
            |row| row.counters.loads as f64,
        ),
        (
            "model_load_failures_total",
            "counter",
            "Loads that failed.",
            |row| row.counters.load_failures as f64,
        ),
        (
            "model_load_seconds_total",
            "counter",
            "Time of loads.",
            |row| row.counters.load_ns as f64 / 1e9,
        ),
        (
            "model_unloads_total",
            "counter",
            "Times that it left.",
            |row| row.counters.unloads as f64,
        ),
        (
            "model_requests_total",
            "counter",
            "Requests that were answered.",
            |row| row.counters.requests as f64,
        ),
        (
            "model_cancelled_total",
            "counter",
            "Requests whose client left.",
            |row| row.counters.cancelled as f64,
        ),
        (
            "model_suspended_total",
            "counter",
            "Requests that made room for others.",
            |row| row.counters.suspended as f64,
        ),
        (
            "model_saved_states_total",
            "counter",
            "Sequences that were kept in files.",
            |row| row.counters.saved_states as f64,
        ),
        (
            "model_restored_states_total",
            "counter",
            "Requests that began with one of those.",
            |row| row.counters.restored_states as f64,
        ),
        (
            "model_hits_total",
            "counter",
            "Slices found in memory.",
            |row| row.counters.hits as f64,
        ),
        (
            "model_misses_total",
            "counter",
            "Slices that were not.",
            |row| row.counters.misses as f64,
        ),
        (
            "model_delivered_bytes_total",
            "counter",
            "Bytes read for them.",
            |row| row.counters.delivered_bytes as f64,
        ),
        (
            "model_stall_seconds_total",
            "counter",
            "Time that threads waited for them.",
            |row| row.counters.stall_ns as f64 / 1e9,
        ),
    ];
    for (name, kind, help, value) in rows {
        text.head(&format!("faultline_{name}"), kind, help);
        for row in models {
            let label = escaped(&row.name);
            text.line(
                &format!("faultline_{name}{{model=\"{label}\"}}"),
                value(row),
            );
        }
    }
    text.0
}

/// The exposition while it is written. Writing to a `String` cannot fail.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, value: f64) {
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.line(name, value);
    }
}

/// A label's value: backslash, quote and newline are escaped.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
