//! How a model would be used: what a prediction depends on besides the model.

use std::fmt;
use std::str::FromStr;

use gguf::GgmlType;
use serde::{Serialize, Serializer};

use crate::{Error, Result};

/// What of the weights is read when the model is loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefetch {
    /// All of the file.
    #[default]
    Eager,
    /// Dense tensors; sparse ones when they are first used.
    Selective,
    /// Nothing.
    None,
}

impl Prefetch {
    const ALL: [Prefetch; 3] = [Prefetch::Eager, Prefetch::None, Prefetch::Selective];

    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Prefetch::Eager => "eager",
            Prefetch::Selective => "selective",
            Prefetch::None => "none",
        }
    }
}

/// Types of the values in the KV cache that llama.cpp takes.
pub const KV_TYPES: [GgmlType; 9] = [
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::IQ4_NL,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
];

/// What of a CPU decides which weights ggml copies into another layout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// AVX2.
    pub avx2: bool,
    /// The foundation of AVX-512.
    pub avx512: bool,
    /// AMX on bytes, together with AVX512-VNNI, which ggml's AMX code needs as well.
    pub amx: bool,
}

impl Cpu {
    /// From ggml's own list of what it was compiled for, such as `CPU : AVX2 = 1 | AVX512 = 1 | REPACK = 1`.
    pub fn from_system_info(text: &str) -> Cpu {
        let has = |name: &str| {
            text.split(['|', ':'])
                .filter_map(|item| item.split_once('='))
                .any(|(key, value)| key.trim() == name && value.trim() == "1")
        };
        Cpu {
            avx2: has("AVX2"),
            avx512: has("AVX512"),
            amx: has("AMX_INT8") && has("AVX512_VNNI"),
        }
    }
}

/// How a model would be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Options {
    /// Tokens of the context; 0 stands for as many as the model was trained for.
    pub n_ctx: u32,
    /// Most tokens computed in one graph.
    pub n_ubatch: u32,
    /// Type of the keys in the KV cache.
    #[serde(serialize_with = "type_name")]
    pub type_k: GgmlType,
    /// Type of the values in the KV cache.
    #[serde(serialize_with = "type_name")]
    pub type_v: GgmlType,
    /// Whether weights may be copied into a layout that suits the CPU.
    pub repack: bool,
    /// What is read at load.
    pub prefetch: Prefetch,
    /// Whether attention uses the fused kernel.
    pub flash_attention: bool,
    /// Threads.
    pub n_threads: u32,
    /// The CPU.
    pub cpu: Cpu,
}

fn type_name<S: Serializer>(
    kind: &GgmlType,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.name().unwrap_or("unknown"))
}

impl Default for Options {
    /// Those of `faultline run`, without a CPU that repacks.
    fn default() -> Options {
        Options {
            n_ctx: 4096,
            n_ubatch: 512,
            type_k: GgmlType::F16,
            type_v: GgmlType::F16,
            repack: true,
            prefetch: Prefetch::Eager,
            flash_attention: true,
            n_threads: 1,
            cpu: Cpu::default(),
        }
    }
}

/// One change of the options: `n_ctx=2048`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// `n_ctx`: 0 stands for the trained length.
    Ctx(u32),
    /// `n_ubatch`.
    Ubatch(u32),
    /// `type_k`.
    TypeK(GgmlType),
    /// `type_v`.
    TypeV(GgmlType),
    /// `repack`.
    Repack(bool),
    /// `prefetch`.
    Prefetch(Prefetch),
    /// `flash_attn`.
    FlashAttention(bool),
    /// `threads`.
    Threads(u32),
}

/// The keys of a change, with what they take.
const KEYS: [(&str, &str); 8] = [
    (
        "n_ctx",
        "a number of tokens, or 0 for as many as the model was trained for",
    ),
    ("n_ubatch", "a number of tokens from 1"),
    ("type_k", "a type of the KV cache"),
    ("type_v", "a type of the KV cache"),
    ("repack", "on or off"),
    ("prefetch", "eager, none or selective"),
    ("flash_attn", "on or off"),
    ("threads", "a number from 1 to 512"),
];

/// Most tokens that llama-rs accepts as a context.
const CTX_TOKENS_MAX: u32 = 1 << 27;
/// Most threads that ggml accepts.
const THREADS_MAX: u32 = 512;

impl FromStr for Change {
    type Err = Error;

    fn from_str(text: &str) -> Result<Change> {
        let error = |problem: String| Error::Change { problem };
        let keys = || KEYS.map(|(key, _)| key).join(", ");
        let (key, value) = text.split_once('=').ok_or_else(|| {
            error(format!(
                "\"{text}\" is not KEY=VALUE; the keys are {}",
                keys()
            ))
        })?;
        let (_, takes) = KEYS
            .into_iter()
            .find(|(known, _)| *known == key)
            .ok_or_else(|| error(format!("unknown key \"{key}\"; the keys are {}", keys())))?;
        let wrong = || {
            let mut problem = format!("{key} takes {takes}, not \"{value}\"");
            if key.starts_with("type_") {
                let names: Vec<_> = KV_TYPES.iter().filter_map(|kind| kind.name()).collect();
                problem = format!("{problem}: {}", names.join(", "));
            }
            error(problem)
        };
        let number = |least: u32, most: u32| {
            let number = value.parse::<u32>().map_err(|_| wrong())?;
            (least..=most)
                .contains(&number)
                .then_some(number)
                .ok_or_else(wrong)
        };
        let switch = || match value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(wrong()),
        };
        let kv_type = || {
            let named = |kind: &GgmlType| kind.name() == Some(value);
            KV_TYPES.into_iter().find(named).ok_or_else(wrong)
        };
        let prefetch = || {
            let mut modes = Prefetch::ALL.into_iter();
            modes.find(|mode| mode.as_str() == value).ok_or_else(wrong)
        };
        Ok(match key {
            "n_ctx" => Change::Ctx(number(0, CTX_TOKENS_MAX)?),
            "n_ubatch" => Change::Ubatch(number(1, CTX_TOKENS_MAX)?),
            "type_k" => Change::TypeK(kv_type()?),
            "type_v" => Change::TypeV(kv_type()?),
            "repack" => Change::Repack(switch()?),
            "prefetch" => Change::Prefetch(prefetch()?),
            "flash_attn" => Change::FlashAttention(switch()?),
            _ => Change::Threads(number(1, THREADS_MAX)?),
        })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switch = |on: bool| if on { "on" } else { "off" };
        let kind = |kind: GgmlType| kind.name().unwrap_or("unknown");
        match *self {
            Change::Ctx(tokens) => write!(f, "n_ctx={tokens}"),
            Change::Ubatch(tokens) => write!(f, "n_ubatch={tokens}"),
            Change::TypeK(of) => write!(f, "type_k={}", kind(of)),
            Change::TypeV(of) => write!(f, "type_v={}", kind(of)),
            Change::Repack(on) => write!(f, "repack={}", switch(on)),
            Change::Prefetch(mode) => write!(f, "prefetch={}", mode.as_str()),
            Change::FlashAttention(on) => write!(f, "flash_attn={}", switch(on)),
            Change::Threads(number) => write!(f, "threads={number}"),
        }
    }
}

impl Options {
    /// These options with a change.
    #[must_use]
    pub fn with(mut self, change: Change) -> Options {
        match change {
            Change::Ctx(tokens) => self.n_ctx = tokens,
            Change::Ubatch(tokens) => self.n_ubatch = tokens,
            Change::TypeK(kind) => self.type_k = kind,
            Change::TypeV(kind) => self.type_v = kind,
            Change::Repack(on) => self.repack = on,
            Change::Prefetch(mode) => self.prefetch = mode,
            Change::FlashAttention(on) => self.flash_attention = on,
            Change::Threads(number) => self.n_threads = number,
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_round_trip() {
        for text in [
            "n_ctx=0",
            "n_ubatch=64",
            "type_k=q8_0",
            "type_v=iq4_nl",
            "repack=off",
            "prefetch=selective",
            "flash_attn=on",
            "threads=512",
        ] {
            assert_eq!(text.parse::<Change>().unwrap().to_string(), text);
        }
        let changed = Options::default()
            .with(Change::Ctx(7))
            .with(Change::Repack(false));
        assert_eq!((changed.n_ctx, changed.repack), (7, false));
    }

    #[test]
    fn a_wrong_change_names_what_would_be_right() {
        let message = |text: &str| text.parse::<Change>().unwrap_err().to_string();
        for (key, _) in KEYS {
            assert!(message("ctx=1").contains(key), "{}", message("ctx=1"));
            assert!(message(key).contains("KEY=VALUE"), "{}", message(key));
            let wrong = format!("{key}=-");
            assert!(message(&wrong).contains("takes"), "{}", message(&wrong));
        }
        assert!(message("ctx=1").contains("\"ctx\""));
        assert!(message("type_k=q6_K").contains("iq4_nl"));
        for out_of_range in ["n_ubatch=0", "threads=513", "n_ctx=4294967295"] {
            assert!(message(out_of_range).contains("takes"), "{out_of_range}");
        }
    }

    #[test]
    fn the_cpu_is_what_ggml_was_compiled_for() {
        let text = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | AVX512_VNNI = 1 | AMX_INT8 = 1 | REPACK = 1 | ";
        let expected = Cpu {
            avx2: true,
            avx512: false,
            amx: true,
        };
        assert_eq!(Cpu::from_system_info(text), expected);
        assert_eq!(Cpu::from_system_info("CPU : NEON = 1"), Cpu::default());
    }
}
