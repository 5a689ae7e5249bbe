//! What the requests for text have in common.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::App;
use super::error::ApiError;
use crate::config::{Sampling, Ttl};
use crate::generate::{Prompt, Request};
use crate::host::Lease;
use crate::lifecycle::ModelId;

const STOP_STRINGS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 1024;
/// OpenAI's bound for `top_logprobs`.
const CANDIDATES_MAX: i64 = 20;

/// Keys of a request that decide how text is generated. Keys that are not known are ignored, as OpenAI's server does.
#[derive(Debug, Deserialize)]
pub(super) struct Options {
    pub(super) model: String,
    stop: Option<Stop>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    seed: Option<i64>,
    /// Ollama's: how long the model stays after this request.
    keep_alive: Option<Ttl>,
    /// llama-server's.
    cache_prompt: Option<bool>,
    #[serde(default)]
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    #[serde(flatten)]
    unsupported: Unsupported,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "`stop` must be a text or a list of texts")]
enum Stop {
    One(String),
    Several(Vec<String>),
}

/// Keys that are understood; all but their neutral values are refused, since an answer without their effect would be a wrong one.
#[derive(Debug, Default, Deserialize)]
struct Unsupported {
    n: Option<Value>,
    best_of: Option<Value>,
    echo: Option<Value>,
    suffix: Option<Value>,
    logit_bias: Option<Value>,
    frequency_penalty: Option<Value>,
    presence_penalty: Option<Value>,
    tools: Option<Value>,
    tool_choice: Option<Value>,
    functions: Option<Value>,
    function_call: Option<Value>,
    response_format: Option<Value>,
    audio: Option<Value>,
    modalities: Option<Value>,
}

impl Unsupported {
    fn check(&self) -> Result<(), ApiError> {
        let number = |value: &Value, neutral: f64| value.as_f64() == Some(neutral);
        let is_empty = |value: &Value| {
            value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(serde_json::Map::is_empty)
                || value.as_str().is_some_and(str::is_empty)
        };
        let is_text = |value: &Value| value.get("type").and_then(Value::as_str) == Some("text");
        let modalities = |value: &Value| *value == serde_json::json!(["text"]);
        let (one, zero) = (|v: &Value| number(v, 1.0), |v: &Value| number(v, 0.0));
        let none = |value: &Value| matches!(value.as_str(), Some("none" | "auto"));
        type Neutral<'a> = &'a dyn Fn(&Value) -> bool;
        let keys: [(&str, &Option<Value>, Neutral<'_>); 14] = [
            ("n", &self.n, &one),
            ("best_of", &self.best_of, &one),
            ("echo", &self.echo, &|value| *value == Value::Bool(false)),
            ("suffix", &self.suffix, &is_empty),
            ("logit_bias", &self.logit_bias, &is_empty),
            ("frequency_penalty", &self.frequency_penalty, &zero),
            ("presence_penalty", &self.presence_penalty, &zero),
            ("tools", &self.tools, &is_empty),
            ("tool_choice", &self.tool_choice, &none),
            ("functions", &self.functions, &is_empty),
            ("function_call", &self.function_call, &none),
            ("response_format", &self.response_format, &is_text),
            ("audio", &self.audio, &is_empty),
            ("modalities", &self.modalities, &modalities),
        ];
        for (key, value, is_neutral) in keys {
            if let Some(value) = value
                .as_ref()
                .filter(|value| !value.is_null() && !is_neutral(value))
            {
                let shown: String = value.to_string().chars().take(60).collect();
                return Err(ApiError::unsupported(key, &shown));
            }
        }
        Ok(())
    }
}

impl Options {
    pub(super) fn is_stream(&self) -> bool {
        self.stream == Some(true)
    }

    pub(super) fn includes_usage(&self) -> bool {
        self.stream_options.unwrap_or_default().include_usage == Some(true)
    }

    /// The model that is asked for.
    pub(super) fn find(&self, app: &App) -> Result<ModelId, ApiError> {
        app.host
            .find(&self.model)
            .ok_or_else(|| ApiError::no_model(&self.model))
    }

    /// The request for a model's thread, with the model's own defaults.
    pub(super) fn request(
        &self,
        app: &App,
        model: ModelId,
        prompt: Prompt,
        probabilities: Option<u32>,
    ) -> Result<Request, ApiError> {
        self.unsupported.check()?;
        let config = app.host.config(model);
        let defaults = config.sampling;
        let sampling = Sampling {
            temperature: at_least_0("temperature", self.temperature)?
                .unwrap_or(defaults.temperature),
            top_p: share("top_p", self.top_p)?.unwrap_or(defaults.top_p),
            min_p: share("min_p", self.min_p)?.unwrap_or(defaults.min_p),
            top_k: self.top_k()?.unwrap_or(defaults.top_k),
            // Any number is a seed; the sampler's have 32 bits.
            seed: Some(self.seed.map_or_else(
                || defaults.seed.unwrap_or_else(random_seed),
                |seed| seed as u32,
            )),
            max_tokens: self.max_tokens()?.or(defaults.max_tokens),
        };
        // Who asks for the same text each time gets the same numbers each time.
        let is_repeatable = sampling.temperature == 0.0
            || self.seed.or_else(|| defaults.seed.map(i64::from)).is_some();
        Ok(Request {
            prompt,
            reuses: config.cache_prompt && self.cache_prompt.unwrap_or(!is_repeatable),
            sampling,
            stop: self.stop()?,
            text_interval: match self.is_stream() {
                true => app.config.stream_interval,
                // Nobody sees it before its end.
                false => Duration::MAX,
            },
            probabilities,
        })
    }

    /// Waits for the model.
    pub(super) async fn acquire(&self, app: &App, model: ModelId) -> Result<Lease, ApiError> {
        Ok(app.host.acquire(model, self.keep_alive).await?)
    }

    fn max_tokens(&self) -> Result<Option<u32>, ApiError> {
        let newer = self
            .max_completion_tokens
            .map(|count| ("max_completion_tokens", count));
        match newer.or(self.max_tokens.map(|count| ("max_tokens", count))) {
            // llama.cpp's and Ollama's "no limit".
            None | Some((_, -1)) => Ok(None),
            Some((_, count @ 1..)) => Ok(Some(u32::try_from(count).unwrap_or(u32::MAX))),
            Some((key, count)) => Err(ApiError::parameter(
                key,
                format!("`{key}`: {count} is not a number of at least 1"),
            )),
        }
    }

    fn top_k(&self) -> Result<Option<u32>, ApiError> {
        match self.top_k {
            None => Ok(None),
            Some(count @ 0..=0x7fff_ffff) => Ok(Some(count as u32)),
            Some(count) => Err(ApiError::parameter(
                "top_k",
                format!("`top_k`: {count} is outside 0..=2147483647"),
            )),
        }
    }

    fn stop(&self) -> Result<Vec<String>, ApiError> {
        let stop = match &self.stop {
            None => Vec::new(),
            Some(Stop::One(text)) => vec![text.clone()],
            Some(Stop::Several(texts)) => texts.clone(),
        };
        if stop.len() > STOP_STRINGS_MAX || stop.iter().any(|text| text.len() > STOP_BYTES_MAX) {
            let message = format!(
                "`stop`: at most {STOP_STRINGS_MAX} texts of at most {STOP_BYTES_MAX} bytes"
            );
            return Err(ApiError::parameter("stop", message));
        }
        Ok(stop)
    }
}

/// How many candidates a request wants to see for each token.
pub(super) fn candidates(key: &'static str, count: Option<i64>) -> Result<Option<u32>, ApiError> {
    match count {
        None => Ok(None),
        Some(count @ 0..=CANDIDATES_MAX) => Ok(Some(count as u32)),
        Some(count) => Err(ApiError::parameter(
            key,
            format!("`{key}`: {count} is outside 0..={CANDIDATES_MAX}"),
        )),
    }
}

fn at_least_0(key: &'static str, value: Option<f32>) -> Result<Option<f32>, ApiError> {
    match value {
        Some(value) if !(value.is_finite() && value >= 0.0) => Err(ApiError::parameter(
            key,
            format!("`{key}`: {value} is not a number of at least 0"),
        )),
        value => Ok(value),
    }
}

fn share(key: &'static str, value: Option<f32>) -> Result<Option<f32>, ApiError> {
    match value {
        Some(value) if !(0.0..=1.0).contains(&value) => Err(ApiError::parameter(
            key,
            format!("`{key}`: {value} is outside 0..=1"),
        )),
        value => Ok(value),
    }
}

/// Differs from request to request; no secret depends on it.
pub(super) fn random_seed() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() as u32
}
