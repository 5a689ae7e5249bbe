//! The configuration: which models there are, and within what limits they are served.
//!
//! `server/models.example.toml` in the repository documents every key.

mod file;
mod values;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use llama_rs::Prefetch;
use pager::Budget;

pub use values::{Bytes, Time, Ttl, shown_bytes};

/// Why a configuration cannot be used. The message names the file, and the line or the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read the configuration: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The text is not TOML, or has a key or a value that is not known.
    #[error("{}: {problem}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and reason, over several lines.
        problem: String,
    },
    /// Values that contradict each other or are outside their range.
    #[error("{}:{line}: {key}: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Where the table or the key begins, from 1.
        line: usize,
        /// The key, with the tables that it is in.
        key: String,
        /// What is wrong.
        problem: String,
    },
}

/// Everything that a server needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the configuration was read.
    pub path: PathBuf,
    /// Address to listen on.
    pub host: IpAddr,
    /// Port to listen on; 0: any that is free.
    pub port: u16,
    /// Keys that a request must have one of. None: no key is asked for.
    pub api_keys: Vec<String>,
    /// Bytes that all loaded models may hold together: a size, or `auto`.
    pub budget: Budget,
    /// Most models that are loaded at a time.
    pub max_loaded: usize,
    /// Most requests that wait, over all models.
    pub queue_limit: usize,
    /// Most bytes of a request's body.
    pub body_limit_bytes: u64,
    /// How long a request may take to arrive.
    pub receive_timeout: Duration,
    /// Time between two comments in a stream that has nothing else to say.
    pub ping_interval: Duration,
    /// Least time between two writes to a stream.
    pub stream_interval: Duration,
    /// How long running requests may go on after the server was asked to end.
    pub shutdown_timeout: Duration,
    /// Thresholds of `faultline check`.
    pub limits: Limits,
    /// The models, by name.
    pub models: BTreeMap<String, ModelConfig>,
}

/// Thresholds of `faultline check`; what is `None` is measured and not judged.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Resident memory of the process after a model was loaded.
    pub rss_before_first_token_bytes: Option<u64>,
    /// From the request, with the model unloaded, to its first token.
    pub first_token: Option<Duration>,
    /// Mean time of the tokens after it.
    pub next_token: Option<Duration>,
    /// Memory that is used while tokens are generated.
    pub working_set_bytes: Option<u64>,
    /// Highest resident memory.
    pub total_bytes: Option<u64>,
    /// Least factor by which zram compresses what it holds.
    pub zram_ratio: Option<f64>,
}

/// How the weights of a model get into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefetchMode {
    /// The files are mapped; [`Prefetch`] says what is read up front.
    Mapped(Prefetch),
    /// The pager keeps the model within a budget of its own.
    Pager,
}

impl PrefetchMode {
    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            PrefetchMode::Mapped(prefetch) => prefetch.as_str(),
            PrefetchMode::Pager => "pager",
        }
    }
}

/// What a request that does not say otherwise is sampled with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Spread; 0 takes the most probable token.
    pub temperature: f32,
    /// Most probable tokens that are kept; 0: all.
    pub top_k: u32,
    /// Probability that the kept tokens have together.
    pub top_p: f32,
    /// Probability relative to the most probable token.
    pub min_p: f32,
    /// Seed; `None`: another one for each request.
    pub seed: Option<u32>,
    /// Most new tokens; `None`: as many as the context holds.
    pub max_tokens: Option<u32>,
}

impl Default for Sampling {
    /// As `faultline run`.
    fn default() -> Sampling {
        Sampling {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            seed: None,
            max_tokens: None,
        }
    }
}

/// One model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The name that requests use.
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// The GGUF file, or the first file of a split one.
    pub path: PathBuf,
    /// Tokens that the KV cache holds, shared by the requests that run at a time. `None`: 4096, or what the model was
    /// trained for, if that is less; 0: what it was trained for.
    pub n_ctx: Option<u32>,
    /// Threads; `None`: one for each CPU.
    pub n_threads: Option<u32>,
    /// How weights get into memory.
    pub prefetch: PrefetchMode,
    /// Whether weights are brought into the layout that suits the CPU: mapped ones are copied for that, the pager's stay where they are.
    pub repack: bool,
    /// The pager's budget for this model.
    pub budget: Option<Budget>,
    /// Whether the pager keeps what was read first in the cache folder, and reads in that order when it loads the model again.
    pub replay: bool,
    /// Whether the mapped files are locked in memory.
    pub use_mlock: bool,
    /// How long it stays after its last request.
    pub ttl: Ttl,
    /// Of the models of a group one is loaded at a time.
    pub group: Option<String>,
    /// Whether it is loaded at the start.
    pub preload: bool,
    /// Whether what requests leave in the KV cache is kept for others that begin the same.
    pub cache_prompt: bool,
    /// Bytes of the files in which that is kept when the model leaves; 0: it is not.
    pub keep_state_bytes: u64,
    /// Most requests that are computed together.
    pub concurrency_limit: u32,
    /// Most requests that wait for it.
    pub queue_limit: usize,
    /// For requests that do not say otherwise.
    pub sampling: Sampling,
}

/// Context of a model for which none is asked, if it was trained for as much: `faultline run` has the same.
pub(crate) const CONTEXT_TOKENS_DEFAULT: u32 = 4096;

impl ModelConfig {
    /// Size of the context, for a model that was trained for `trained` tokens.
    pub fn context_tokens(&self, trained: u32) -> u32 {
        let trained = trained.max(1);
        match self.n_ctx {
            Some(0) => trained,
            Some(tokens) => tokens,
            None => CONTEXT_TOKENS_DEFAULT.min(trained),
        }
    }
}

impl Config {
    /// Reads a configuration. Paths in it are relative to its folder.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]; it says which line or key is wrong.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Config::parse(&text, path)
    }

    /// As [`load`](Config::load), of the text of the file `path`.
    ///
    /// # Errors
    ///
    /// As [`load`](Config::load).
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        file::parse(text, path)
    }

    /// The model that is called `name`, by its name or one of its aliases.
    pub fn model(&self, name: &str) -> Option<&ModelConfig> {
        self.models.get(name).or_else(|| {
            let mut models = self.models.values();
            models.find(|model| model.aliases.iter().any(|alias| alias == name))
        })
    }
}

#[cfg(test)]
mod tests;
