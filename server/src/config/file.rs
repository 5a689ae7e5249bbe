//! The configuration as it is written, and what of it is refused.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use llama_rs::{MAX_CONTEXT_TOKENS, MAX_SEQUENCES, MAX_THREADS, Prefetch};
use pager::Budget;
use serde::Deserialize;
use toml::Spanned;

use super::values::{BudgetValue, Bytes, KeepState, Time, Ttl};
use super::{Config, ConfigError, Limits, ModelConfig, PrefetchMode, Sampling};

/// llama-server's.
const PORT_DEFAULT: u16 = 9931;
/// A text that comes faster than a screen changes has the same effect.
const STREAM_INTERVAL_DEFAULT: Duration = Duration::from_millis(10);
const NAME_BYTES_MAX: usize = 128;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerFile {
    host: Option<IpAddr>,
    port: Option<u16>,
    #[serde(default)]
    api_keys: Vec<String>,
    budget: Option<Spanned<BudgetValue>>,
    max_loaded: Option<Spanned<usize>>,
    ttl: Option<Ttl>,
    queue_limit: Option<usize>,
    body_limit: Option<Bytes>,
    receive_timeout: Option<Time>,
    ping_interval: Option<Spanned<Time>>,
    stream_interval: Option<Time>,
    shutdown_timeout: Option<Time>,
    #[serde(default)]
    limits: LimitsFile,
    #[serde(default)]
    models: BTreeMap<String, Spanned<ModelFile>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsFile {
    rss_before_first_token: Option<Bytes>,
    first_token: Option<Time>,
    next_token: Option<Time>,
    working_set: Option<Bytes>,
    total: Option<Bytes>,
    zram_ratio: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    path: std::path::PathBuf,
    #[serde(default)]
    aliases: Vec<String>,
    n_ctx: Option<u32>,
    n_threads: Option<u32>,
    prefetch: Option<PrefetchName>,
    repack: Option<bool>,
    budget: Option<BudgetValue>,
    replay: Option<bool>,
    #[serde(default)]
    use_mlock: bool,
    ttl: Option<Ttl>,
    group: Option<String>,
    #[serde(default)]
    preload: bool,
    cache_prompt: Option<bool>,
    keep_state: Option<KeepState>,
    concurrency_limit: Option<u32>,
    queue_limit: Option<usize>,
    #[serde(default)]
    sampling: SamplingFile,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PrefetchName {
    Eager,
    None,
    Selective,
    Pager,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SamplingFile {
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    seed: Option<u32>,
    max_tokens: Option<u32>,
}

/// What names the place of an error.
struct Source<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Source<'_> {
    fn error(&self, offset: usize, key: String, problem: impl Into<String>) -> ConfigError {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        ConfigError::Value {
            path: self.path.to_owned(),
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            key,
            problem: problem.into(),
        }
    }
}

pub(super) fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let file: ServerFile = toml::from_str(text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        problem: error.to_string().trim_end().to_owned(),
    })?;
    let source = Source { text, path };
    let budget = file.budget.as_ref();
    if let Some(budget) = budget
        && matches!(budget.get_ref().0, Budget::Percent(_))
    {
        return Err(source.error(
            budget.span().start,
            "budget".to_owned(),
            "a share of what? give a size such as \"5GiB\", or \"auto\"",
        ));
    }
    if let Some(count) = file
        .max_loaded
        .as_ref()
        .filter(|count| *count.get_ref() == 0)
    {
        let problem = "0 models cannot serve anybody; leave it out for no limit";
        return Err(source.error(count.span().start, "max_loaded".to_owned(), problem));
    }
    if let Some(interval) = file
        .ping_interval
        .as_ref()
        .filter(|time| time.get_ref().0.is_zero())
    {
        let problem = "must be longer than nothing";
        return Err(source.error(interval.span().start, "ping_interval".to_owned(), problem));
    }
    if let Some(key) = file.api_keys.iter().find(|key| !is_header_text(key)) {
        let problem = format!("{key:?} cannot be sent in a header: use visible ASCII characters");
        return Err(source.error(0, "api_keys".to_owned(), problem));
    }
    let limits = limits(&source, &file.limits)?;
    let ttl = file.ttl.unwrap_or(Ttl::DEFAULT);
    let models = models(&source, file.models, ttl)?;
    if models.is_empty() {
        let problem = "there is no [models.NAME] table, so there is nothing to serve";
        return Err(source.error(0, "models".to_owned(), problem));
    }
    let time = |time: Option<Time>, default_s| time.map_or(Duration::from_secs(default_s), |t| t.0);
    Ok(Config {
        path: path.to_owned(),
        host: file.host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        port: file.port.unwrap_or(PORT_DEFAULT),
        api_keys: file.api_keys,
        budget: budget.map_or(Budget::Auto, |budget| budget.get_ref().0),
        max_loaded: file.max_loaded.map_or(usize::MAX, |count| *count.get_ref()),
        queue_limit: file.queue_limit.unwrap_or(512),
        body_limit_bytes: file.body_limit.map_or(4 << 20, |bytes| bytes.0),
        receive_timeout: time(file.receive_timeout, 30),
        ping_interval: time(file.ping_interval.map(|time| *time.get_ref()), 15),
        stream_interval: file
            .stream_interval
            .map_or(STREAM_INTERVAL_DEFAULT, |time| time.0),
        shutdown_timeout: time(file.shutdown_timeout, 10),
        limits,
        models,
    })
}

fn is_header_text(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic())
}

fn limits(source: &Source<'_>, file: &LimitsFile) -> Result<Limits, ConfigError> {
    if let Some(ratio) = file
        .zram_ratio
        .filter(|ratio| ratio.is_nan() || *ratio <= 0.0)
    {
        let problem = format!("{ratio} is not a number above 0");
        return Err(source.error(0, "limits.zram_ratio".to_owned(), problem));
    }
    Ok(Limits {
        rss_before_first_token_bytes: file.rss_before_first_token.map(|bytes| bytes.0),
        first_token: file.first_token.map(|time| time.0),
        next_token: file.next_token.map(|time| time.0),
        working_set_bytes: file.working_set.map(|bytes| bytes.0),
        total_bytes: file.total.map(|bytes| bytes.0),
        zram_ratio: file.zram_ratio,
    })
}

fn models(
    source: &Source<'_>,
    tables: BTreeMap<String, Spanned<ModelFile>>,
    ttl: Ttl,
) -> Result<BTreeMap<String, ModelConfig>, ConfigError> {
    let mut names: HashMap<String, String> = tables
        .keys()
        .map(|name| (name.clone(), name.clone()))
        .collect();
    let mut models = BTreeMap::new();
    for (name, table) in tables {
        let offset = table.span().start;
        let table = table.into_inner();
        let refused = |key: &str, problem: String| {
            Err(source.error(offset, format!("models.{name}.{key}"), problem))
        };
        for called in std::iter::once(&name).chain(&table.aliases) {
            if let Err(problem) = check_name(called) {
                return refused("aliases", problem);
            }
        }
        for alias in &table.aliases {
            if let Some(other) = names.insert(alias.clone(), name.clone()) {
                return refused("aliases", format!("{alias:?} is a name of {other} already"));
            }
        }
        if let Err((key, problem)) = check(&table) {
            return refused(key, problem);
        }
        let model = resolve(source.path, &name, table, ttl);
        models.insert(name, model);
    }
    Ok(models)
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(format!(
            "{name:?} is not a name of 1 to {NAME_BYTES_MAX} bytes without control characters"
        ));
    }
    Ok(())
}

/// Values that are outside their range, or contradict each other.
fn check(table: &ModelFile) -> Result<(), (&'static str, String)> {
    let outside = |key, value: u32, low: u32, high: u32| match (low..=high).contains(&value) {
        true => Ok(()),
        false => Err((key, format!("{value} is outside {low}..={high}"))),
    };
    let limit = table.concurrency_limit.unwrap_or(1);
    outside("concurrency_limit", limit, 1, MAX_SEQUENCES)?;
    outside("n_threads", table.n_threads.unwrap_or(1), 1, MAX_THREADS)?;
    outside("n_ctx", table.n_ctx.unwrap_or(0), 0, MAX_CONTEXT_TOKENS)?;
    if table
        .n_ctx
        .is_some_and(|tokens| tokens > 0 && tokens < limit)
    {
        return Err(("n_ctx", format!("fewer tokens than {limit} requests")));
    }
    let pages = matches!(table.prefetch, Some(PrefetchName::Pager));
    if table.budget.is_some() && !pages {
        let problem = "only prefetch = \"pager\" keeps a model within a budget of its own";
        return Err(("budget", problem.to_owned()));
    }
    if table.replay.is_some() && !pages {
        let problem = "only prefetch = \"pager\" reads what the last run needed in its order";
        return Err(("replay", problem.to_owned()));
    }
    if table.keep_state.is_some_and(|keep| keep.bytes() > 0) && table.cache_prompt == Some(false) {
        let problem = "keeps what cache_prompt = false says is not to be kept";
        return Err(("keep_state", problem.to_owned()));
    }
    if table.use_mlock && !matches!(table.prefetch, None | Some(PrefetchName::Eager)) {
        let problem = "locks all of a mapped model in memory, which needs prefetch = \"eager\"";
        return Err(("use_mlock", problem.to_owned()));
    }
    if table.use_mlock && table.repack == Some(true) {
        let problem = "locks the mapped weights, and repack = true computes with copies of them";
        return Err(("use_mlock", problem.to_owned()));
    }
    check_sampling(&table.sampling)
}

fn check_sampling(sampling: &SamplingFile) -> Result<(), (&'static str, String)> {
    let in_range = |key, value: Option<f32>, high: f32| match value {
        Some(value) if !(0.0..=high).contains(&value) => {
            Err((key, format!("{value} is not in 0..={high}")))
        }
        _ => Ok(()),
    };
    in_range("sampling.temperature", sampling.temperature, f32::MAX)?;
    in_range("sampling.top_p", sampling.top_p, 1.0)?;
    in_range("sampling.min_p", sampling.min_p, 1.0)?;
    match sampling.max_tokens {
        Some(0) => Err(("sampling.max_tokens", "0 tokens are no answer".to_owned())),
        _ => Ok(()),
    }
}

/// The table with its defaults. It was checked.
fn resolve(config_path: &Path, name: &str, table: ModelFile, ttl: Ttl) -> ModelConfig {
    let prefetch = match table.prefetch {
        None | Some(PrefetchName::Eager) => PrefetchMode::Mapped(Prefetch::Eager),
        Some(PrefetchName::None) => PrefetchMode::Mapped(Prefetch::None),
        Some(PrefetchName::Selective) => PrefetchMode::Mapped(Prefetch::Selective),
        Some(PrefetchName::Pager) => PrefetchMode::Pager,
    };
    let folder = config_path.parent().unwrap_or(Path::new(""));
    let defaults = Sampling::default();
    let sampling = table.sampling;
    ModelConfig {
        name: name.to_owned(),
        aliases: table.aliases,
        path: folder.join(table.path),
        n_ctx: table.n_ctx,
        n_threads: table.n_threads,
        prefetch,
        repack: table.repack.unwrap_or(!table.use_mlock),
        budget: table.budget.map(|budget| budget.0),
        replay: table.replay.unwrap_or(true),
        use_mlock: table.use_mlock,
        ttl: table.ttl.unwrap_or(ttl),
        group: table.group,
        preload: table.preload,
        cache_prompt: table.cache_prompt.unwrap_or(true),
        keep_state_bytes: table.keep_state.map_or(0, KeepState::bytes),
        concurrency_limit: table.concurrency_limit.unwrap_or(4),
        queue_limit: table.queue_limit.unwrap_or(256),
        sampling: Sampling {
            temperature: sampling.temperature.unwrap_or(defaults.temperature),
            top_k: sampling.top_k.unwrap_or(defaults.top_k),
            top_p: sampling.top_p.unwrap_or(defaults.top_p),
            min_p: sampling.min_p.unwrap_or(defaults.min_p),
            seed: sampling.seed,
            max_tokens: sampling.max_tokens,
        },
    }
}
