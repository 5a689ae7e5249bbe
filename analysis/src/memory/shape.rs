//! What of a model's metadata decides how much memory it takes.

use gguf::{Gguf, ModelFiles, Value};

/// Sizes of a model, in elements unless a name says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) architecture: String,
    pub(super) n_layer: usize,
    pub(super) n_embd: u64,
    pub(super) n_vocab: u64,
    pub(super) n_ctx_train: u64,
    pub(super) n_head: u64,
    /// One for each layer.
    pub(super) n_head_kv: Vec<u64>,
    /// Of one head's key and value, as the KV cache has them.
    pub(super) key_length: u64,
    pub(super) value_length: u64,
    /// Layers share one compressed key, of which the value is a part.
    pub(super) is_mla: bool,
    pub(super) window: Option<Window>,
    /// The widest feed-forward layer that is not divided into experts; 0 if there is none.
    pub(super) n_ff: u64,
    pub(super) experts: Option<Experts>,
}

/// A sliding window of attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) n_tokens: u64,
    /// One for each layer: whether it sees the window only.
    pub(super) is_windowed: Vec<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Experts {
    pub(super) n: u64,
    pub(super) n_used: u64,
    pub(super) n_ff: u64,
}

/// Every so many layers, one sees all tokens; llama.cpp's own number where the file does not say.
const GPT_OSS_WINDOW_PERIOD: u64 = 2;

impl Shape {
    /// `None` for a model without the keys that every language model has.
    pub(super) fn of(files: &ModelFiles) -> Option<Shape> {
        let file = files.metadata();
        let architecture = file.architecture()?.to_owned();
        let key = |name: &str| format!("{architecture}.{name}");
        let number = |name: &str| file.u64(&key(name));
        let n_layer_all = number("block_count")?;
        let n_layer = n_layer_all.checked_sub(number("nextn_predict_layers").unwrap_or(0))?;
        let n_layer = usize::try_from(n_layer).ok()?;
        let n_embd = number("embedding_length")?;
        let n_heads = per_layer(file, &key("attention.head_count"), n_layer)?;
        let n_head = n_heads.iter().copied().max()?;
        let head_length = n_embd.checked_div(*n_heads.first()?)?;
        let is_mla = number("attention.key_length_mla").is_some_and(|length| length > 0)
            && number("attention.value_length_mla").is_some_and(|length| length > 0);
        let width = |suffix: &str, dim: usize| {
            let tensors = files.tensors().map(|(_, tensor)| tensor);
            tensors
                .filter(|tensor| tensor.name.ends_with(suffix))
                .filter_map(|tensor| tensor.dims.get(dim).copied())
                .max()
        };
        let experts = number("expert_count").filter(|&n| n > 0).and_then(|n| {
            Some(Experts {
                n,
                n_used: number("expert_used_count")?,
                n_ff: width(".ffn_down_exps.weight", 0)?,
            })
        });
        Some(Shape {
            n_layer,
            n_embd,
            n_vocab: files
                .tensor("token_embd.weight")
                .and_then(|(_, tensor)| tensor.dims.get(1).copied())?,
            n_ctx_train: number("context_length")?,
            n_head,
            n_head_kv: per_layer(file, &key("attention.head_count_kv"), n_layer).unwrap_or(n_heads),
            key_length: number("attention.key_length").unwrap_or(head_length),
            value_length: number("attention.value_length").unwrap_or(head_length),
            is_mla,
            window: window(file, &architecture, n_layer),
            n_ff: [".ffn_down.weight", ".ffn_down_shexp.weight"]
                .into_iter()
                .filter_map(|suffix| width(suffix, 0))
                .max()
                .unwrap_or(0),
            experts,
            architecture,
        })
    }

    /// Tokens that llama.cpp gives the KV cache for a wish: 0 stands for the trained length, and it rounds up.
    pub(super) fn n_cells(&self, n_ctx: u32) -> u64 {
        self.n_ctx(n_ctx).next_multiple_of(CELLS)
    }

    fn n_ctx(&self, n_ctx: u32) -> u64 {
        match n_ctx {
            0 => self.n_ctx_train.max(1),
            n_ctx => n_ctx.into(),
        }
    }

    /// Tokens of a full ubatch: never more than the context.
    pub(super) fn n_ubatch(&self, n_ctx: u32, n_ubatch: u32) -> u64 {
        self.n_ctx(n_ctx).min(n_ubatch.into())
    }
}

/// The KV cache has a multiple of so many cells (`llama_context`, and `llama_kv_cache_iswa` for windows).
pub(super) const CELLS: u64 = 256;

/// A number that a file may give once or for each layer.
fn per_layer(file: &Gguf, key: &str, n_layer: usize) -> Option<Vec<u64>> {
    match file.get(key)? {
        Value::Array(array) => {
            let values: Option<Vec<u64>> = array.iter().map(|value| value.as_u64()).collect();
            values
                .filter(|values| values.len() >= n_layer && n_layer > 0)
                .map(|mut values| {
                    values.truncate(n_layer);
                    values
                })
        }
        value => Some(vec![value.as_u64()?; n_layer.max(1)]),
    }
}

/// The window of an architecture that is known to have one.
fn window(file: &Gguf, architecture: &str, n_layer: usize) -> Option<Window> {
    if architecture != "gpt-oss" {
        return None;
    }
    let n_tokens = file.u64(&format!("{architecture}.attention.sliding_window"))?;
    let pattern = file.get(&format!("{architecture}.attention.sliding_window_pattern"));
    let is_windowed = match pattern {
        Some(Value::Array(array)) => array
            .iter()
            .map(|value| value.as_bool().or(value.as_u64().map(|number| number != 0)))
            .collect::<Option<Vec<bool>>>()
            .filter(|layers| layers.len() >= n_layer)?,
        other => {
            let period = other
                .and_then(Value::as_u64)
                .unwrap_or(GPT_OSS_WINDOW_PERIOD);
            (0..n_layer as u64)
                .map(|layer| period == 0 || layer % period < period - 1)
                .collect()
        }
    };
    Some(Window {
        n_tokens,
        is_windowed,
    })
}
