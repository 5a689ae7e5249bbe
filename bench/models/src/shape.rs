//! The shapes by name.

use gguf::GgmlType;

use crate::Error;
use crate::arch::deepseek2::{self, DeepSeek2};
use crate::arch::gpt_oss::{self, GptOss};
use crate::arch::llama::{self, Llama, Vocabulary};
use crate::arch::qwen3moe::{self, Qwen3Moe};
use crate::plan::Plan;

/// A model's architecture, sizes and types: everything but its seed.
#[derive(Clone, Debug)]
pub struct Shape {
    name: String,
    plan: Plan,
}

/// The type of the experts of a tiny model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ExpertType {
    Mxfp4,
    Q4K,
    Q8_0,
    F16,
}

impl ExpertType {
    /// All of them.
    pub const ALL: [ExpertType; 4] = [
        ExpertType::Mxfp4,
        ExpertType::Q4K,
        ExpertType::Q8_0,
        ExpertType::F16,
    ];

    /// The type's name in a shape's name.
    pub fn name(self) -> &'static str {
        match self {
            ExpertType::Mxfp4 => "mxfp4",
            ExpertType::Q4K => "q4_k",
            ExpertType::Q8_0 => "q8_0",
            ExpertType::F16 => "f16",
        }
    }

    /// The type in a file.
    pub fn ggml_type(self) -> GgmlType {
        match self {
            ExpertType::Mxfp4 => GgmlType::MXFP4,
            ExpertType::Q4K => GgmlType::Q4_K,
            ExpertType::Q8_0 => GgmlType::Q8_0,
            ExpertType::F16 => GgmlType::F16,
        }
    }
}

/// Tokens of `tiny-gpt-oss-wide`.
const WIDE_VOCABULARY: u64 = 70_000;
/// Tokens of `tiny-gpt-oss-vast`.
const VAST_VOCABULARY: u64 = 300_000;
/// Layers of `tiny-deepseek2-deep`.
const DEEP_LAYERS: u64 = 6;

/// Names that stand for one shape each.
const NAMES: [&str; 16] = [
    "demo",
    "gpt-oss-20b",
    "qwen3-30b-a3b",
    "deepseek-v2-lite",
    "deepseek-v2-lite-mha",
    "llama-dense",
    "llama-2-7b",
    "llama-3b",
    "tiny-gpt-oss",
    "tiny-qwen3moe",
    "tiny-deepseek2",
    "tiny-deepseek2-mha",
    "tiny-llama",
    "tiny-llama-untied",
    "tiny-llama-no-vocab",
    "tiny-llama-no-tokenizer",
];

impl Shape {
    /// The shape of this name; [`Shape::names`] lists them.
    ///
    /// The tiny mixtures of experts also exist with other types of experts: `tiny-gpt-oss-q8_0`,
    /// `tiny-qwen3moe-mxfp4` and so on, with the names of [`ExpertType`]. `tiny-gpt-oss-wide` has an embedding of 34 MiB, which the
    /// pager reads by rows; `tiny-gpt-oss-vast` has a vocabulary that takes more of the heap than its layers take of memory;
    /// `tiny-deepseek2-deep` has more layers, so that its experts exceed the fewest slots that work.
    ///
    /// # Errors
    /// [`Error::UnknownShape`].
    pub fn by_name(name: &str) -> Result<Shape, Error> {
        let (base, experts) = ExpertType::ALL
            .iter()
            .find_map(|&t| {
                Some((
                    name.strip_suffix(t.name())?.strip_suffix('-')?,
                    t.ggml_type(),
                ))
            })
            .map_or((name, None), |(base, t)| (base, Some(t)));
        let plan = match (base, experts) {
            ("demo", None) => gpt_oss::DEMO.plan()?,
            ("gpt-oss-20b", None) => gpt_oss::GPT_OSS_20B.plan()?,
            ("qwen3-30b-a3b", None) => qwen3moe::QWEN3_30B_A3B.plan()?,
            ("deepseek-v2-lite", None) => deepseek2::V2_LITE.plan()?,
            ("deepseek-v2-lite-mha", None) => DeepSeek2 {
                latent: false,
                ..deepseek2::V2_LITE
            }
            .plan()?,
            ("llama-2-7b", None) => llama::LLAMA_2_7B.plan()?,
            ("llama-dense", None) => llama::DENSE_8B.plan()?,
            ("llama-3b", None) => llama::DENSE_3B.plan()?,
            ("tiny-gpt-oss", _) => {
                let tiny = gpt_oss::TINY;
                GptOss {
                    expert_type: experts.unwrap_or(tiny.expert_type),
                    ..tiny
                }
                .plan()?
            }
            ("tiny-gpt-oss-wide", None) => GptOss {
                vocab: WIDE_VOCABULARY,
                ..gpt_oss::TINY
            }
            .plan()?,
            ("tiny-gpt-oss-vast", None) => GptOss {
                vocab: VAST_VOCABULARY,
                ..gpt_oss::TINY
            }
            .plan()?,
            ("tiny-qwen3moe", _) => {
                let tiny = qwen3moe::TINY;
                let types = experts.map_or(tiny.types, qwen3moe::Types::Experts);
                Qwen3Moe { types, ..tiny }.plan()?
            }
            ("tiny-deepseek2" | "tiny-deepseek2-mha" | "tiny-deepseek2-deep", _) => {
                let tiny = deepseek2::TINY;
                let types = experts.map_or(tiny.types, deepseek2::Types::Experts);
                let layers = match base {
                    "tiny-deepseek2-deep" => DEEP_LAYERS,
                    _ => tiny.layers,
                };
                DeepSeek2 {
                    types,
                    latent: base != "tiny-deepseek2-mha",
                    layers,
                    ..tiny
                }
                .plan()?
            }
            ("tiny-llama", _) => {
                let tiny = llama::TINY;
                Llama {
                    weight_type: experts.unwrap_or(tiny.weight_type),
                    ..tiny
                }
                .plan()?
            }
            ("tiny-llama-untied", _) => {
                let tiny = llama::TINY;
                let weight_type = experts.unwrap_or(tiny.weight_type);
                Llama {
                    tied: false,
                    weight_type,
                    ..tiny
                }
                .plan()?
            }
            ("tiny-llama-no-vocab", None) => Llama {
                vocabulary: Vocabulary::None,
                ..llama::TINY
            }
            .plan()?,
            ("tiny-llama-no-tokenizer", None) => Llama {
                vocabulary: Vocabulary::Silent,
                ..llama::TINY
            }
            .plan()?,
            _ => {
                let known = Shape::names().join(", ");
                return Err(Error::UnknownShape {
                    name: name.to_owned(),
                    known,
                });
            }
        };
        Ok(Shape {
            name: name.to_owned(),
            plan,
        })
    }

    /// The names of all shapes, without those that differ only in the type of their weights, the size of their vocabulary or the number of their layers.
    pub fn names() -> &'static [&'static str] {
        &NAMES
    }

    /// A tiny mixture of experts (`tiny-gpt-oss`, `tiny-qwen3moe`, `tiny-deepseek2`) or a tiny
    /// dense model with this type of experts or weights.
    ///
    /// # Errors
    /// [`Error::UnknownShape`].
    pub fn tiny(name: &str, experts: ExpertType) -> Result<Shape, Error> {
        Shape::by_name(&format!("{name}-{}", experts.name()))
    }

    /// The name it was asked for by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The size of the file in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.plan.layout.total_bytes()
    }

    /// The tensors that the file will have. Their offsets count from the start of the data, not of
    /// the file.
    pub fn tensors(&self) -> &[gguf::TensorInfo] {
        self.plan.layout.tensors()
    }

    /// What the file is called in a cache folder. The number changes whenever the content does.
    pub fn demo_file_name(&self) -> String {
        format!("faultline-{}-v{CONTENT_VERSION}.gguf", self.name)
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// Raised whenever the same shape and seed give another file than before.
const CONTENT_VERSION: u32 = 1;
