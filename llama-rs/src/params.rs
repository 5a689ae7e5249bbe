//! Parameters of models and contexts: plain values, checked before llama.cpp sees them.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::kv_type::{self, KvType};

/// What happens to a weight when the model is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Prefetch {
    /// The whole file is read up front: llama.cpp's default.
    #[default]
    Eager,
    /// Nothing is read up front; every page is read when it is first used.
    None,
    /// Dense tensors are read up front, sparse ones (experts, and the token embedding where the output has
    /// a tensor of its own) when they are first used.
    Selective,
}

impl Prefetch {
    /// All modes, in the order in which they are documented.
    pub const ALL: [Prefetch; 3] = [Prefetch::Eager, Prefetch::None, Prefetch::Selective];

    /// The name that [`FromStr`] accepts.
    pub fn as_str(self) -> &'static str {
        match self {
            Prefetch::Eager => "eager",
            Prefetch::None => "none",
            Prefetch::Selective => "selective",
        }
    }
}

impl fmt::Display for Prefetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Prefetch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Prefetch::ALL
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| {
                Error::parameter(
                    "prefetch",
                    format!("{text:?} is not a prefetch mode; use eager, none or selective"),
                )
            })
    }
}

/// How the bytes of the model files get into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LoadMode {
    /// The files are mapped; weights are read in place.
    #[default]
    Mmap,
    /// The files are read into anonymous memory.
    None,
    /// The files are read into anonymous memory with `O_DIRECT`.
    DirectIo,
}

impl LoadMode {
    /// All modes.
    pub const ALL: [LoadMode; 3] = [LoadMode::Mmap, LoadMode::None, LoadMode::DirectIo];

    /// The name that [`FromStr`] accepts; the same words as llama.cpp's `--load-mode`.
    pub fn as_str(self) -> &'static str {
        match self {
            LoadMode::Mmap => "mmap",
            LoadMode::None => "none",
            LoadMode::DirectIo => "dio",
        }
    }
}

impl fmt::Display for LoadMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for LoadMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        LoadMode::ALL
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| {
                Error::parameter(
                    "load_mode",
                    format!("{text:?} is not a load mode; use mmap, none or dio"),
                )
            })
    }
}

/// Parameters of [`Model::load`](crate::Model::load).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelParams {
    /// What is read up front. [`Prefetch::None`] and [`Prefetch::Selective`] need [`LoadMode::Mmap`].
    pub prefetch: Prefetch,
    /// Whether weights may be copied into a layout that suits the CPU's vector units (llama.cpp's
    /// `use_extra_bufts`). The copies are anonymous memory beside the file; sparse tensors that are read on
    /// demand are repacked only in memory that [`repacks`](crate::ModelMemory::repacks).
    pub repack: bool,
    /// How the files get into memory.
    pub load_mode: LoadMode,
    /// Whether every tensor's values are checked while loading; reads the whole file.
    pub check_tensors: bool,
    /// Load the vocabulary only. Such a model tokenizes, but no context can be made from it.
    pub vocab_only: bool,
}

impl Default for ModelParams {
    fn default() -> Self {
        ModelParams {
            prefetch: Prefetch::Eager,
            repack: true,
            load_mode: LoadMode::Mmap,
            check_tensors: false,
            vocab_only: false,
        }
    }
}

impl ModelParams {
    /// Refuses combinations that have no meaning.
    pub(crate) fn check(&self) -> Result<()> {
        if self.prefetch != Prefetch::Eager && self.load_mode != LoadMode::Mmap {
            return Err(Error::parameter(
                "prefetch",
                format!(
                    "{} needs load mode mmap, but load mode {} reads every byte up front",
                    self.prefetch, self.load_mode
                ),
            ));
        }
        if self.prefetch != Prefetch::Eager && self.check_tensors {
            return Err(Error::parameter(
                "check_tensors",
                format!(
                    "checking reads every byte up front, which contradicts prefetch {}",
                    self.prefetch
                ),
            ));
        }
        Ok(())
    }
}

/// Whether attention uses the fused kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FlashAttention {
    /// llama.cpp decides.
    #[default]
    Auto,
    /// Never.
    Disabled,
    /// Always.
    Enabled,
}

/// Largest number of threads that ggml accepts (`GGML_MAX_N_THREADS`).
pub const MAX_THREADS: u32 = 512;
/// Largest number of sequences that llama.cpp accepts (`LLAMA_MAX_SEQ`).
pub const MAX_SEQUENCES: u32 = 256;
/// Largest context in tokens that is accepted; positions are 32-bit in llama.cpp.
pub const MAX_CONTEXT_TOKENS: u32 = 1 << 27;

/// Parameters of [`Context::new`](crate::Context::new).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextParams {
    /// Tokens that the KV cache holds; llama.cpp rounds up to a multiple of 256. In `1..=`[`MAX_CONTEXT_TOKENS`].
    /// All of it is resident memory as soon as the context exists.
    pub n_ctx: u32,
    /// Most tokens in one [`Context::decode`](crate::Context::decode). At least 1; more than `n_ctx` is cut to `n_ctx`.
    pub n_batch: u32,
    /// Most tokens computed in one graph. In `1..=n_batch`.
    pub n_ubatch: u32,
    /// Most sequences. In `1..=`[`MAX_SEQUENCES`].
    pub n_seq_max: u32,
    /// Whether sequences share the KV cache, so that one may use all of `n_ctx`. Otherwise each has `n_ctx / n_seq_max` tokens of its
    /// own.
    pub kv_unified: bool,
    /// Threads for single tokens. In `1..=`[`MAX_THREADS`].
    pub n_threads: u32,
    /// Threads for prompts. In `1..=`[`MAX_THREADS`].
    pub n_threads_batch: u32,
    /// Most batch rows with logits in one decode. Each needs `4 * n_vocab` bytes twice; 1 is enough to
    /// generate one sequence. In `1..=n_batch`.
    pub n_outputs_max: u32,
    /// Keep the full KV cache for layers with a sliding window.
    pub swa_full: bool,
    /// Fused attention.
    pub flash_attn: FlashAttention,
    /// Type of the keys in the KV cache.
    pub type_k: KvType,
    /// Type of the values in the KV cache. A quantized one needs flash attention, which [`FlashAttention::Auto`] then
    /// turns on. Some models, those with latent attention, need the same type for both.
    pub type_v: KvType,
    /// Do not measure time inside llama.cpp; [`Context::perf`](crate::Context::perf) is then all zeros.
    pub no_perf: bool,
}

impl Default for ContextParams {
    fn default() -> Self {
        let n_threads = default_threads();
        ContextParams {
            n_ctx: 512,
            n_batch: 512,
            n_ubatch: 512,
            n_seq_max: 1,
            kv_unified: false,
            n_threads,
            n_threads_batch: n_threads,
            n_outputs_max: 1,
            swa_full: false,
            flash_attn: FlashAttention::Auto,
            type_k: KvType::F16,
            type_v: KvType::F16,
            no_perf: false,
        }
    }
}

/// The CPUs that this process may use, within what ggml accepts.
pub fn default_threads() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    u32::try_from(cpus)
        .unwrap_or(MAX_THREADS)
        .clamp(1, MAX_THREADS)
}

impl ContextParams {
    /// Refuses values outside the documented ranges.
    pub(crate) fn check(&self) -> Result<()> {
        in_range("n_ctx", self.n_ctx, 1, MAX_CONTEXT_TOKENS)?;
        in_range("n_batch", self.n_batch, 1, MAX_CONTEXT_TOKENS)?;
        in_range("n_ubatch", self.n_ubatch, 1, self.n_batch)?;
        in_range("n_seq_max", self.n_seq_max, 1, MAX_SEQUENCES)?;
        in_range("n_threads", self.n_threads, 1, MAX_THREADS)?;
        in_range("n_threads_batch", self.n_threads_batch, 1, MAX_THREADS)?;
        in_range("n_outputs_max", self.n_outputs_max, 1, self.n_batch)?;
        kv_type::check_attention(self)?;
        if self.n_seq_max > self.n_ctx {
            return Err(Error::parameter(
                "n_seq_max",
                format!(
                    "{} sequences cannot share {} tokens",
                    self.n_seq_max, self.n_ctx
                ),
            ));
        }
        Ok(())
    }
}

fn in_range(name: &'static str, value: u32, min: u32, max: u32) -> Result<()> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::parameter(
        name,
        format!("{value} is outside {min}..={max}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefetch_names_round_trip() {
        for mode in Prefetch::ALL {
            assert_eq!(mode.to_string().parse::<Prefetch>().unwrap(), mode);
        }
        let error = "lazy".parse::<Prefetch>().unwrap_err().to_string();
        assert!(
            error.contains("\"lazy\"") && error.contains("selective"),
            "{error}"
        );
    }

    #[test]
    fn load_mode_names_round_trip() {
        for mode in LoadMode::ALL {
            assert_eq!(mode.to_string().parse::<LoadMode>().unwrap(), mode);
        }
        assert!("mlock".parse::<LoadMode>().is_err());
    }

    #[test]
    fn on_demand_modes_need_a_mapping() {
        for load_mode in [LoadMode::None, LoadMode::DirectIo] {
            let params = ModelParams {
                prefetch: Prefetch::Selective,
                load_mode,
                ..Default::default()
            };
            let error = params.check().unwrap_err().to_string();
            assert!(error.contains("mmap"), "{error}");
            ModelParams {
                load_mode,
                ..Default::default()
            }
            .check()
            .unwrap();
        }
        let params = ModelParams {
            prefetch: Prefetch::None,
            check_tensors: true,
            ..Default::default()
        };
        assert!(params.check().is_err());
    }

    #[test]
    fn context_ranges_are_checked() {
        ContextParams::default().check().unwrap();
        let bad = [
            ContextParams {
                n_ctx: 0,
                ..Default::default()
            },
            ContextParams {
                n_ctx: u32::MAX,
                ..Default::default()
            },
            ContextParams {
                n_batch: 0,
                ..Default::default()
            },
            ContextParams {
                n_ubatch: 0,
                ..Default::default()
            },
            ContextParams {
                n_ubatch: 513,
                ..Default::default()
            },
            ContextParams {
                n_seq_max: 0,
                ..Default::default()
            },
            ContextParams {
                n_seq_max: 257,
                ..Default::default()
            },
            ContextParams {
                n_threads: 0,
                ..Default::default()
            },
            ContextParams {
                n_threads_batch: 513,
                ..Default::default()
            },
            ContextParams {
                n_outputs_max: 0,
                ..Default::default()
            },
            ContextParams {
                n_outputs_max: 513,
                ..Default::default()
            },
            ContextParams {
                n_ctx: 2,
                n_seq_max: 3,
                ..Default::default()
            },
        ];
        for params in bad {
            assert!(params.check().is_err(), "{params:?}");
        }
    }
}
