//! What is measured: modes, rows and the order in which they run.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::size::format_bytes;

/// What happens to a weight when the model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// All of the file up front: upstream's default.
    Eager,
    /// Everything on demand.
    None,
    /// Dense weights up front, sparse ones on demand.
    Selective,
    /// Dense weights in memory, experts in as many slots as the budget has room for.
    Pager,
}

impl Mode {
    pub(crate) const ALL: [Mode; 3] = [Mode::Eager, Mode::None, Mode::Selective];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Mode::Eager => "eager",
            Mode::None => "none",
            Mode::Selective => "selective",
            Mode::Pager => "pager",
        }
    }

    /// The `lazy_mode` that gives the same loading in the patched llama-bench.
    pub(crate) fn lazy_mode(self) -> &'static str {
        match self {
            Mode::Eager => "off",
            Mode::None => "all",
            Mode::Selective | Mode::Pager => "sparse",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The modes of `--prefetch`: a list in the order of the rows, without duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Modes(pub(crate) Vec<Mode>);

impl FromStr for Modes {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Modes> {
        let mut modes = Vec::new();
        for name in text.split(',').map(str::trim) {
            let named: &[Mode] = match name {
                "eager" => &[Mode::Eager],
                "none" => &[Mode::None],
                "selective" => &[Mode::Selective],
                "pager" => &[Mode::Pager],
                "all" => &Mode::ALL,
                _ => bail!(
                    "`{name}` is not a prefetch mode; valid modes are eager, none, selective, pager, all (the first three), or a list"
                ),
            };
            for mode in named {
                if !modes.contains(mode) {
                    modes.push(*mode);
                }
            }
        }
        Ok(Modes(modes))
    }
}

/// Which program is measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Engine {
    /// This project's wrapper around the patched llama.cpp.
    #[default]
    Faultline,
    /// The same llama.cpp without patches, in a program that uses nothing but its C interface.
    Stock(LoadMode),
    /// Another program, by the name it was given.
    Command(String),
}

impl Engine {
    /// The word of the column `engine`.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Engine::Faultline => "faultline",
            Engine::Stock(_) => "stock",
            Engine::Command(name) => name,
        }
    }
}

/// How stock llama.cpp brings the model's files into memory: its own `--load-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LoadMode {
    /// Mapped, and read up front.
    Mmap,
    /// Read into anonymous memory.
    None,
    /// The same with O_DIRECT.
    Dio,
}

impl LoadMode {
    pub(crate) const ALL: [LoadMode; 3] = [LoadMode::Mmap, LoadMode::None, LoadMode::Dio];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            LoadMode::Mmap => "mmap",
            LoadMode::None => "none",
            LoadMode::Dio => "dio",
        }
    }
}

/// One `--baseline`: `stock`, `stock:MODE` or `stock:all`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Baseline(pub(crate) Vec<LoadMode>);

impl FromStr for Baseline {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Baseline> {
        let modes = match text.trim().split_once(':') {
            None if text.trim() == "stock" => vec![LoadMode::Mmap],
            Some(("stock", "all")) => LoadMode::ALL.to_vec(),
            Some(("stock", name)) => LoadMode::ALL
                .into_iter()
                .filter(|mode| mode.as_str() == name)
                .collect(),
            _ => Vec::new(),
        };
        if modes.is_empty() {
            bail!(
                "`{text}` is not a baseline; valid ones are stock, stock:mmap, stock:none, stock:dio and stock:all"
            );
        }
        Ok(Baseline(modes))
    }
}

/// One `--reference`: `stock:MODE`, or `stock:MODE+repack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) load_mode: LoadMode,
    pub(crate) repack: bool,
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Reference> {
        let (name, repack) = match text.trim().strip_suffix("+repack") {
            Some(name) => (name, true),
            None => (text.trim(), false),
        };
        match name.parse::<Baseline>() {
            Ok(Baseline(modes)) if modes.len() == 1 => Ok(Reference {
                load_mode: modes[0],
                repack,
            }),
            _ => bail!(
                "`{text}` is not a reference; valid ones are stock:mmap, stock:none and stock:dio, and each with repacking, as in \
                 stock:none+repack"
            ),
        }
    }
}

/// What the page cache holds of the model when the process starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CacheState {
    /// No page of the model's files.
    Cold,
    /// Every page of the model's files.
    Warm,
}

impl CacheState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            CacheState::Cold => "cold",
            CacheState::Warm => "warm",
        }
    }
}

/// Whether attention uses the fused kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FlashAttn {
    /// llama.cpp decides.
    #[default]
    Auto,
    On,
    Off,
}

impl FlashAttn {
    /// The integer that llama-bench writes in its `flash_attn` field.
    pub(crate) fn upstream_value(self) -> i32 {
        match self {
            FlashAttn::Auto => -1,
            FlashAttn::Off => 0,
            FlashAttn::On => 1,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            FlashAttn::Auto => "auto",
            FlashAttn::On => "on",
            FlashAttn::Off => "off",
        }
    }
}

/// One row of the results: everything that distinguishes it from the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    #[serde(default)]
    pub(crate) engine: Engine,
    /// What happens at load. Stock and other programs read everything.
    pub(crate) mode: Mode,
    pub(crate) cache: CacheState,
    /// llama.cpp's `use_extra_bufts`: weights may be copied into a layout that suits the vector units.
    pub(crate) repack: bool,
    /// Whether the slice provider `Advise` is attached.
    pub(crate) advise: bool,
    /// Limit of the memory group the process runs in, page cache included.
    pub(crate) budget_bytes: Option<u64>,
    /// Readahead of the device during the run; `None` leaves it as it is.
    pub(crate) readahead_bytes: Option<u64>,
    /// What the pager evicts, by name; `None`: its default, or no pager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) policy: Option<String>,
    /// Whether the pager reads what an earlier run needed before it is asked for.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) replay: bool,
    /// Without a limit, for rows under other conditions to be related to.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) is_reference: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Row {
    /// Rows that may be compared as a ratio: everything but the way of loading is equal.
    pub(crate) fn same_conditions(&self, other: &Row) -> bool {
        self.cache == other.cache
            && self.budget_bytes == other.budget_bytes
            && self.readahead_bytes == other.readahead_bytes
    }

    /// Rows whose logits must be equal byte by byte. Repacked kernels round differently, and experts that the kernel reads on
    /// demand are never repacked: then the modes that leave them to it agree only with themselves.
    pub(crate) fn same_arithmetic(&self, other: &Row) -> bool {
        let repacks_all = |row: &Row| matches!(row.mode, Mode::Eager | Mode::Pager);
        self.repack == other.repack
            && (!self.repack || self.mode == other.mode || repacks_all(self) && repacks_all(other))
    }

    /// Whether speeds are also related to another row's, though conditions differ: to a reference's, and to a baseline's at the same budget
    /// with another readahead.
    pub(crate) fn is_set_against(&self, other: &Row) -> bool {
        let same_budget = self.budget_bytes == other.budget_bytes && self.cache == other.cache;
        let is_baseline = self.engine == Engine::Faultline && other.engine != Engine::Faultline;
        !self.is_reference
            && (other.is_reference || is_baseline && same_budget && !self.same_conditions(other))
    }

    /// Whether the program needs memory of its own for the whole of a model.
    pub(crate) fn is_all_in_memory(&self) -> bool {
        matches!(self.engine, Engine::Stock(LoadMode::None | LoadMode::Dio))
    }

    /// Whether the slice provider is what the mode brings along: attached for selective only.
    pub(crate) fn default_advise(&self) -> bool {
        self.advise == (self.mode == Mode::Selective)
    }

    /// What the row is called in tables: the prefetch mode, or the baseline.
    pub(crate) fn name(&self) -> String {
        match &self.engine {
            Engine::Faultline => self.mode.to_string(),
            Engine::Stock(load_mode) => format!("stock {}", load_mode.as_str()),
            Engine::Command(name) => name.clone(),
        }
    }

    /// A short name for progress lines, legends and messages.
    pub(crate) fn label(&self) -> String {
        let mut label = format!("{} {}", self.name(), self.cache.as_str());
        if self.repack {
            label.push_str(" repack");
        }
        if !self.default_advise() {
            label.push_str(if self.advise { " advise" } else { " no-advise" });
        }
        if let Some(policy) = &self.policy {
            label.push_str(&format!(" {policy}"));
        }
        if self.replay {
            label.push_str(" replay");
        }
        if let Some(bytes) = self.budget_bytes {
            label.push_str(&format!(" in {}", format_bytes(bytes)));
        }
        if let Some(bytes) = self.readahead_bytes {
            label.push_str(&format!(" ra {}", format_bytes(bytes)));
        }
        label
    }
}

/// The options that multiply into rows.
#[derive(Clone, Debug)]
pub(crate) struct Axes {
    /// Rows without a limit, whatever the others' conditions are. The very first.
    pub(crate) references: Vec<Reference>,
    /// Baselines come before rows of the same conditions: ratios are taken against the first row.
    pub(crate) stock: Vec<LoadMode>,
    /// Names of other programs.
    pub(crate) commands: Vec<String>,
    pub(crate) modes: Vec<Mode>,
    /// Of the pager; none: its default.
    pub(crate) policies: Vec<String>,
    /// Of the pager: whether it replays.
    pub(crate) replays: Vec<bool>,
    pub(crate) caches: Vec<CacheState>,
    pub(crate) repack: Repack,
    /// `None`: on for selective, off for the others.
    pub(crate) advise: Option<bool>,
    pub(crate) budgets: Vec<Option<u64>>,
    pub(crate) readaheads: Vec<Option<u64>>,
    /// The same of baselines; `None`: as the other rows.
    pub(crate) baseline_budgets: Option<Vec<Option<u64>>>,
    pub(crate) baseline_readaheads: Option<Vec<Option<u64>>>,
}

/// What is measured, whatever the conditions.
struct Kind {
    engine: Engine,
    mode: Mode,
    repack: bool,
    policy: Option<String>,
    replay: bool,
}

/// Which repacking rows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Repack {
    /// Every row with repacking on.
    On,
    /// Every row with repacking off.
    Off,
    /// Every row with repacking off, and eager, pager and stock with repacking on.
    Both,
    /// Pager rows with repacking on, every other row with repacking off.
    Pager,
}

impl Axes {
    /// The rows, those of equal conditions beside each other, the reference of each group first.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let baseline_budgets = self.baseline_budgets.as_ref().unwrap_or(&self.budgets);
        let baseline_readaheads = self.baseline_readaheads.as_ref();
        let baseline_readaheads = baseline_readaheads.unwrap_or(&self.readaheads);
        let (baselines, own) = (self.baselines(), self.own());
        let mut rows = Vec::new();
        for budget_bytes in distinct(self.budgets.iter().chain(baseline_budgets)) {
            for readahead_bytes in distinct(baseline_readaheads.iter().chain(&self.readaheads)) {
                for cache in &self.caches {
                    let mut add = |kinds: &[Kind]| {
                        let row = |kind| self.row(kind, *cache, budget_bytes, readahead_bytes);
                        rows.extend(kinds.iter().map(row));
                    };
                    if baseline_budgets.contains(&budget_bytes)
                        && baseline_readaheads.contains(&readahead_bytes)
                    {
                        add(&baselines);
                    }
                    if self.budgets.contains(&budget_bytes)
                        && self.readaheads.contains(&readahead_bytes)
                    {
                        add(&own);
                    }
                }
            }
        }
        self.with_references(rows)
    }

    /// Puts the references before the rows, unless they are among them.
    fn with_references(&self, mut rows: Vec<Row>) -> Vec<Row> {
        let mut references = Vec::new();
        for reference in &self.references {
            let kind = Kind {
                engine: Engine::Stock(reference.load_mode),
                mode: Mode::Eager,
                repack: reference.repack,
                policy: None,
                replay: false,
            };
            let mut row = self.row(&kind, self.caches[0], None, None);
            match rows.iter_mut().find(|other| **other == row) {
                Some(same) => same.is_reference = true,
                None => {
                    row.is_reference = true;
                    references.push(row);
                }
            }
        }
        references.append(&mut rows);
        references
    }

    fn row(
        &self,
        kind: &Kind,
        cache: CacheState,
        budget_bytes: Option<u64>,
        readahead_bytes: Option<u64>,
    ) -> Row {
        let advise = self.advise.unwrap_or(kind.mode == Mode::Selective);
        Row {
            engine: kind.engine.clone(),
            mode: kind.mode,
            cache,
            repack: kind.repack,
            advise: kind.engine == Engine::Faultline && advise,
            budget_bytes,
            readahead_bytes,
            policy: kind.policy.clone(),
            replay: kind.replay,
            is_reference: false,
        }
    }

    /// Other programs.
    fn baselines(&self) -> Vec<Kind> {
        let repacks: &[bool] = match self.repack {
            Repack::On => &[true],
            Repack::Off | Repack::Pager => &[false],
            Repack::Both => &[false, true],
        };
        let kind = |engine, repack| Kind {
            engine,
            mode: Mode::Eager,
            repack,
            policy: None,
            replay: false,
        };
        let stock = self.stock.iter().flat_map(|load_mode| {
            let of = move |repack: &bool| kind(Engine::Stock(*load_mode), *repack);
            repacks.iter().map(of)
        });
        let commands = self.commands.iter();
        let commands = commands.map(|name| kind(Engine::Command(name.clone()), false));
        stock.chain(commands).collect()
    }

    /// Our own modes.
    fn own(&self) -> Vec<Kind> {
        let paged = |mode, repack, policy, replay| Kind {
            engine: Engine::Faultline,
            mode,
            repack,
            policy,
            replay,
        };
        let mut kinds = Vec::new();
        let mut add = |mode, repack| match mode {
            Mode::Pager => {
                let given = self.policies.iter().cloned().map(Some);
                let policies = match self.policies.is_empty() {
                    true => vec![None],
                    false => given.collect(),
                };
                for policy in policies {
                    let replays = self.replays.iter();
                    let of = |&replay| paged(mode, repack, policy.clone(), replay);
                    kinds.extend(replays.map(of));
                }
            }
            _ => kinds.push(paged(mode, repack, None, false)),
        };
        for mode in &self.modes {
            let is_on =
                self.repack == Repack::On || self.repack == Repack::Pager && *mode == Mode::Pager;
            add(*mode, is_on);
        }
        if self.repack == Repack::Both {
            for mode in [Mode::Eager, Mode::Pager] {
                if self.modes.contains(&mode) {
                    add(mode, true);
                }
            }
        }
        kinds
    }
}

/// The values in their order, without repetitions.
fn distinct<'a>(values: impl Iterator<Item = &'a Option<u64>>) -> Vec<Option<u64>> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(value) {
            found.push(*value);
        }
    }
    found
}

/// What a worker process is told, as JSON in its argument list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WorkerSpec {
    pub(crate) model: PathBuf,
    pub(crate) mode: Mode,
    /// For the pager; without it, the pager takes what is free.
    pub(crate) budget_bytes: Option<u64>,
    pub(crate) repack: bool,
    pub(crate) advise: bool,
    pub(crate) n_prompt: u32,
    /// Most tokens between the prompt and those that count.
    pub(crate) n_warm_up: u32,
    /// Most tokens that count.
    pub(crate) n_gen: u32,
    /// No further token of the warm-up, or of those that count, is begun when those before it have taken this long together.
    pub(crate) decode_limit_ns: Option<u64>,
    pub(crate) n_batch: u32,
    pub(crate) n_ubatch: u32,
    pub(crate) n_threads: u32,
    pub(crate) flash_attn: FlashAttn,
    pub(crate) tokens: TokenSource,
    pub(crate) routing: Option<Routing>,
    /// Look at every expert that is read, and fail unless all are those of the routing trace. For a run that is not measured.
    pub(crate) check_routing: bool,
    /// The `cgroup.procs` file that the worker writes itself into before it loads anything.
    pub(crate) cgroup_procs: Option<PathBuf>,
    /// What the pager evicts, by name; `None`: its default.
    pub(crate) policy: Option<String>,
    /// Where the pager finds what an earlier run needed, and keeps what this one does; `None`: it does neither.
    pub(crate) replay: Option<PathBuf>,
    pub(crate) reads: Reads,
}

/// How the pager reads. `None` is its default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reads {
    pub(crate) engine: ReadEngine,
    /// Requests at a time.
    pub(crate) depth: Option<u16>,
    /// Larger reads are split.
    pub(crate) request_bytes: Option<u32>,
    /// Experts that the next layer uses with at least this probability are read ahead.
    pub(crate) lookahead: Option<f64>,
}

/// Which engine reads for the pager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReadEngine {
    /// `io_uring`, and threads where it is refused.
    #[default]
    Auto,
    Uring,
    Threads,
}

/// Whose experts are used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Routing {
    /// The model's own. The computation is interrupted in the same places as with a trace, whose cost this shows.
    Own,
    /// Those of a trace.
    Trace(Window),
}

/// The part of a routing trace that a run uses, as a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    /// u8 `[tokens][layers][n_used]`: experts, the best first.
    pub(crate) file: PathBuf,
    /// The model's layers that have experts, ascending.
    pub(crate) layers: Vec<u32>,
    pub(crate) n_used: usize,
}

/// Where the tokens that are fed to the model come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TokenSource {
    /// A fixed text as prompt, then the most likely token of every step. Logits are fingerprinted.
    Greedy,
    /// What llama-bench feeds: its warm-up step, then the C library's unseeded `rand()`. Nothing is sampled and logits
    /// are not looked at, as in llama-bench.
    LlamaBench,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_lists() {
        assert_eq!("all".parse::<Modes>().unwrap().0, Mode::ALL);
        assert_eq!(
            "selective, eager".parse::<Modes>().unwrap().0,
            [Mode::Selective, Mode::Eager]
        );
        assert_eq!(
            "selective,all".parse::<Modes>().unwrap().0,
            [Mode::Selective, Mode::Eager, Mode::None]
        );
        let message = "lazy".parse::<Modes>().unwrap_err().to_string();
        for word in ["`lazy`", "eager", "none", "selective", "all"] {
            assert!(message.contains(word), "{message}");
        }
        assert!("".parse::<Modes>().is_err());
    }

    fn axes() -> Axes {
        Axes {
            references: Vec::new(),
            policies: Vec::new(),
            replays: vec![false],
            baseline_budgets: None,
            baseline_readaheads: None,
            stock: Vec::new(),
            commands: Vec::new(),
            modes: Mode::ALL.to_vec(),
            caches: vec![CacheState::Cold],
            repack: Repack::Both,
            advise: None,
            budgets: vec![None],
            readaheads: vec![None],
        }
    }

    #[test]
    fn repacking_is_added_for_eager_only() {
        let rows = axes().rows();
        let names: Vec<_> = rows.iter().map(Row::label).collect();
        assert_eq!(
            names,
            [
                "eager cold",
                "none cold",
                "selective cold",
                "eager cold repack"
            ]
        );
        assert_eq!(
            rows.iter().map(|r| r.advise).collect::<Vec<_>>(),
            [false, false, true, false]
        );
        let off = Axes {
            repack: Repack::Off,
            ..axes()
        };
        assert!(off.rows().iter().all(|row| !row.repack));
        let on = Axes {
            repack: Repack::On,
            ..axes()
        };
        assert!(on.rows().iter().all(|row| row.repack) && on.rows().len() == 3);
    }

    #[test]
    fn baselines_come_first_and_repack_alone() {
        let rows = Axes {
            stock: "stock:all".parse::<Baseline>().unwrap().0,
            commands: vec!["peer".into()],
            modes: vec![Mode::Selective],
            advise: Some(true),
            ..axes()
        }
        .rows();
        let names: Vec<_> = rows.iter().map(Row::label).collect();
        assert_eq!(
            names,
            [
                "stock mmap cold",
                "stock mmap cold repack",
                "stock none cold",
                "stock none cold repack",
                "stock dio cold",
                "stock dio cold repack",
                "peer cold",
                "selective cold",
            ]
        );
        assert!(rows[0].same_arithmetic(&rows[7]) && !rows[1].same_arithmetic(&rows[7]));
        assert!(rows[..7].iter().all(|row| !row.advise) && rows[7].advise);
        assert_eq!("stock".parse::<Baseline>().unwrap().0, [LoadMode::Mmap]);
        for bad in ["", "stack", "stock:", "stock:lazy", "stock:mmap:x"] {
            let message = bad.parse::<Baseline>().unwrap_err().to_string();
            assert!(message.contains("stock:dio"), "{message}");
        }
    }

    #[test]
    fn lists_multiply() {
        let rows = Axes {
            repack: Repack::Off,
            caches: vec![CacheState::Cold, CacheState::Warm],
            readaheads: vec![Some(128 * 1024), Some(8 << 20)],
            advise: Some(false),
            ..axes()
        }
        .rows();
        assert_eq!(rows.len(), 12);
        assert!(rows[0].same_conditions(&rows[2]));
        assert!(!rows[0].same_conditions(&rows[3]));
        assert_eq!(rows[2].label(), "selective cold no-advise ra 128 KiB");
    }

    #[test]
    fn references_have_no_limit_and_baselines_conditions_of_their_own() {
        let axes = Axes {
            references: ["stock:none", "stock:none+repack"]
                .map(|name| name.parse().unwrap())
                .to_vec(),
            stock: vec![LoadMode::Mmap],
            modes: vec![Mode::Pager],
            policies: vec!["lru".into(), "lfu".into()],
            repack: Repack::Off,
            budgets: vec![Some(2 << 30), Some(1 << 30)],
            baseline_budgets: Some(vec![Some(1 << 30)]),
            baseline_readaheads: Some(vec![Some(128 << 10), Some(8 << 20)]),
            ..axes()
        };
        let rows = axes.rows();
        let labels: Vec<_> = rows.iter().map(Row::label).collect();
        let expected = [
            "stock none cold",
            "stock none cold repack",
            "pager cold lru in 2 GiB",
            "pager cold lfu in 2 GiB",
            "stock mmap cold in 1 GiB ra 128 KiB",
            "stock mmap cold in 1 GiB ra 8 MiB",
            "pager cold lru in 1 GiB",
            "pager cold lfu in 1 GiB",
        ];
        assert_eq!(labels, expected);
        let set_against = |index: usize| -> Vec<usize> {
            let others = 0..rows.len();
            others
                .filter(|&other| rows[index].is_set_against(&rows[other]))
                .collect()
        };
        assert_eq!(set_against(0), [0; 0]);
        assert_eq!((set_against(2), set_against(4)), (vec![0, 1], vec![0, 1]));
        assert_eq!(set_against(6), [0, 1, 4, 5]);

        let among_the_rows = Axes {
            stock: vec![LoadMode::None],
            budgets: vec![None],
            baseline_budgets: None,
            baseline_readaheads: None,
            ..axes
        };
        let rows = among_the_rows.rows();
        let references: Vec<_> = rows.iter().map(|row| row.is_reference).collect();
        assert_eq!(references, [true, true, false, false]);
        for bad in ["stock:all", "eager", "stock:none+", ""] {
            let message = bad.parse::<Reference>().unwrap_err().to_string();
            assert!(message.contains("stock:none+repack"), "{message}");
        }
    }

    #[test]
    fn repacked_rows_are_compared_within_a_mode() {
        let rows = axes().rows();
        assert!(rows[0].same_arithmetic(&rows[2]));
        assert!(!rows[0].same_arithmetic(&rows[3]));
        assert!(rows[3].same_arithmetic(&rows[3]));
    }
}
