//! What a generated file contains: metadata, tensors, and what each tensor is filled with.

use gguf::{GgmlType, Layout, Value};

use crate::Error;
use crate::fill::{BIAS_CHANNELS, RowStyle, Style};
use crate::rng::{BELL_ENTRIES, Rng, bell};
use crate::{tokenizer, topics};

/// What a tensor is filled with. All but `Values` are random and follow the seed.
#[derive(Clone, Debug)]
pub(crate) enum Fill {
    /// The same style in every row.
    Rows(RowStyle),
    /// Rows of a vocabulary: one style for tokens that may be generated, one for the others.
    Vocabulary { spoken: RowStyle, silent: RowStyle },
    /// F16 rows of noise whose second half is the vector of the token's topic.
    TopicEmbedding(RowStyle),
    /// As `Vocabulary` in F16; the second half of spoken rows leans towards the token's topic, with
    /// this root mean square.
    TopicOutput {
        spoken: RowStyle,
        silent: RowStyle,
        lean_rms: f32,
    },
    /// F32 rows of noise, one for each expert; its number is added to the bias channels.
    Router { rms: f32, lifts: Vec<f32> },
    /// These F32 numbers.
    Values(Vec<f32>),
}

/// A file to generate.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) layout: Layout,
    /// One for each tensor of the layout.
    pub(crate) fills: Vec<Fill>,
    arch: &'static str,
}

/// Root mean square of a matrix that keeps the size of what it is applied to.
pub(crate) fn unit(n_in: u64) -> f32 {
    1.0 / (n_in as f32).sqrt()
}

impl Plan {
    /// A file with the metadata that all have.
    pub(crate) fn new(arch: &'static str, name: &str, file_type: u32) -> Result<Plan, Error> {
        let mut layout = Layout::new();
        layout.kv("general.architecture", arch)?;
        layout.kv("general.type", "model")?;
        layout.kv("general.name", name)?;
        layout.kv(
            "general.description",
            "random weights in the shape of a real model",
        )?;
        layout.kv("general.file_type", file_type)?;
        layout.kv("general.quantization_version", 2u32)?;
        Ok(Plan {
            layout,
            fills: Vec::new(),
            arch,
        })
    }

    /// Metadata under the architecture's own name.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) -> Result<(), Error> {
        self.layout.kv(&format!("{}.{key}", self.arch), value)?;
        Ok(())
    }

    /// A tensor with any fill.
    pub(crate) fn tensor(
        &mut self,
        name: &str,
        ggml_type: GgmlType,
        dims: &[u64],
        fill: Fill,
    ) -> Result<(), Error> {
        self.layout.tensor(name, ggml_type, dims)?;
        self.fills.push(fill);
        Ok(())
    }

    /// A weight that multiplies the size of what it is applied to by `gain`.
    pub(crate) fn weight(
        &mut self,
        name: &str,
        ggml_type: GgmlType,
        dims: &[u64],
        gain: f32,
    ) -> Result<(), Error> {
        let rms = gain * unit(dims[0]);
        self.tensor(name, ggml_type, dims, Fill::Rows(RowStyle::noise(rms)))
    }

    /// An F32 tensor of noise.
    pub(crate) fn noise(&mut self, name: &str, dims: &[u64], rms: f32) -> Result<(), Error> {
        self.tensor(name, GgmlType::F32, dims, Fill::Rows(RowStyle::noise(rms)))
    }

    /// The weight of a norm: numbers around 1.
    pub(crate) fn norm(&mut self, name: &str, length: u64) -> Result<(), Error> {
        let values = around(name, length, 1.0, 0.1);
        self.tensor(name, GgmlType::F32, &[length], Fill::Values(values))
    }

    /// The weight of a norm before attention or experts: numbers around 1, 0 for the bias channels,
    /// which are the output's business alone, and around `topic_gain` for the half that carries the
    /// topic.
    pub(crate) fn inner_norm(
        &mut self,
        name: &str,
        length: u64,
        topic_gain: f32,
    ) -> Result<(), Error> {
        let mut values = around(name, length, 1.0, 0.1);
        values[..BIAS_CHANNELS].fill(0.0);
        values[length as usize / 2..]
            .iter_mut()
            .for_each(|v| *v *= topic_gain);
        self.tensor(name, GgmlType::F32, &[length], Fill::Values(values))
    }

    /// Embedding and output in F16 for tokens that have topics; see [`crate::topics`].
    pub(crate) fn topic_embedding(&mut self, n_embd: u64, n_vocab: u64) -> Result<(), Error> {
        let dims = [n_embd, n_vocab];
        self.tensor(
            "token_embd.weight",
            GgmlType::F16,
            &dims,
            Fill::TopicEmbedding(EMBEDDED),
        )
    }

    /// The output that belongs to [`Plan::topic_embedding`].
    pub(crate) fn topic_output(&mut self, n_embd: u64, n_vocab: u64) -> Result<(), Error> {
        let fill = Fill::TopicOutput {
            spoken: RowStyle::noise(LOGIT_RMS * unit(n_embd)),
            silent: SILENT,
            lean_rms: topics::LEAN * unit(n_embd),
        };
        self.tensor("output.weight", GgmlType::F16, &[n_embd, n_vocab], fill)
    }

    /// The embedding of a model whose output has its own tensor.
    pub(crate) fn embedding(
        &mut self,
        ggml_type: GgmlType,
        n_embd: u64,
        n_vocab: u64,
    ) -> Result<(), Error> {
        self.tensor(
            "token_embd.weight",
            ggml_type,
            &[n_embd, n_vocab],
            Fill::Rows(EMBEDDED),
        )
    }

    /// The output of a model whose tokens have no topics.
    pub(crate) fn output(
        &mut self,
        ggml_type: GgmlType,
        n_embd: u64,
        n_vocab: u64,
    ) -> Result<(), Error> {
        let fill = Fill::Vocabulary {
            spoken: RowStyle::noise(LOGIT_RMS * unit(n_embd)),
            silent: SILENT,
        };
        self.tensor("output.weight", ggml_type, &[n_embd, n_vocab], fill)
    }

    /// The embedding of a model that uses it for its output too.
    pub(crate) fn tied_embedding(
        &mut self,
        ggml_type: GgmlType,
        n_embd: u64,
        n_vocab: u64,
    ) -> Result<(), Error> {
        let fill = Fill::Vocabulary {
            spoken: EMBEDDED,
            silent: SILENT,
        };
        self.tensor("token_embd.weight", ggml_type, &[n_embd, n_vocab], fill)
    }

    /// The last norm of a model with tied embeddings. A token's embedding is still in its hidden
    /// state; random signs keep the output from finding it again and saying the same token for
    /// ever. The bias channels, positive in all of them, count little.
    pub(crate) fn scrambling_norm(&mut self, name: &str, length: u64) -> Result<(), Error> {
        let mut rng = Rng::new(0, name, 1);
        let mut values = around(name, length, 1.0, 0.1);
        for (i, value) in values.iter_mut().enumerate() {
            // Embeddings have mean square 1: this makes logits of mean square 4.
            *value *= 2.0 * unit(length);
            if i < BIAS_CHANNELS {
                *value *= 0.25;
            } else if rng.next() & 1 == 1 {
                *value = -*value;
            }
        }
        self.tensor(name, GgmlType::F32, &[length], Fill::Values(values))
    }
}

/// Rows of embeddings.
const EMBEDDED: RowStyle = RowStyle {
    first: Style::Positive(2.0),
    rest_rms: 1.0,
};

/// Spread of the logits of tokens that may be generated.
const LOGIT_RMS: f32 = 2.5;

/// Rows of tokens that are never generated.
const SILENT: RowStyle = RowStyle {
    first: Style::Negative(-1.0),
    rest_rms: 0.002,
};

/// `length` numbers around `mean`, the same for every seed.
pub(crate) fn around(name: &str, length: u64, mean: f32, rms: f32) -> Vec<f32> {
    let (bell, mut rng) = (bell(), Rng::new(0, name, 0));
    (0..length)
        .map(|_| mean + rms * bell[rng.next() as usize % BELL_ENTRIES])
        .collect()
}

/// True if this row of a vocabulary's tensor belongs to a token that may be generated.
pub(crate) fn is_spoken_row(row: u64) -> bool {
    tokenizer::is_spoken(row)
}
