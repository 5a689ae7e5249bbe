//! How much memory a model takes: predicted from its files' metadata, completed by what llama.cpp answers without reading a
//! weight, and compared with what a process that runs it holds.
//!
//! Weights and KV cache follow from metadata to the byte. Buffers of intermediate results depend on how llama.cpp orders its
//! graphs: from metadata alone they are an estimate, and [`Answers`] replace it. Nothing here links llama.cpp; whoever does, asks.
//!
//! ```no_run
//! use analysis::memory::{Model, Options};
//!
//! # fn main() -> analysis::Result<()> {
//! let model = Model::open("model.gguf".as_ref())?;
//! let prediction = model.predict(&Options { n_ctx: 8192, ..Options::default() }, None);
//! println!("{} bytes", prediction.held_bytes());
//! # Ok(())
//! # }
//! ```

mod compute;
mod explain;
mod held;
mod kv;
mod options;
mod report;
mod shape;
mod tokenizer;
mod weights;

use std::path::{Path, PathBuf};

use gguf::ModelFiles;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::text::size;
use shape::Shape;

pub use explain::alternatives;
pub use held::Held;
pub use kv::{KvCache, KvGroup};
pub use options::{Change, Cpu, KV_TYPES, Options, Prefetch};
pub use report::{Format, Measured, Report, Scenario};
pub use weights::{Repacked, Weights};

/// Descriptions of graphs that a context has when it has computed: `gf_res_reserve` and `gf_res_prev` of `llama_context`.
pub const GRAPH_ARENAS: u64 = 3;

/// What a page table has for each page.
const PAGE_TABLE_ENTRY_BYTES: u64 = 8;

/// A model's files, of which only metadata were read.
#[derive(Debug, Clone)]
pub struct Model {
    files: ModelFiles,
    shape: Option<Shape>,
}

/// What llama.cpp says without reading a weight, or of a model that it has loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// KV cache and other state.
    pub kv_bytes: u64,
    /// Compute buffers.
    pub compute_bytes: u64,
    /// Weights in another layout than that of the file.
    pub repacked_bytes: u64,
    /// Work buffer of the CPU backend.
    pub work_bytes: u64,
    /// Logits.
    pub outputs_bytes: u64,
    /// Descriptions of graphs.
    pub graphs_bytes: u64,
    /// Whether attention uses the fused kernel.
    pub flash_attention: bool,
    /// Anonymous memory of a process that has all of it but weights, KV cache and buffers: program, tokenizer, metadata.
    pub program_bytes: u64,
    /// Pages of the program and its libraries.
    pub program_file_bytes: u64,
}

/// What memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// Pages of the model's files.
    MappedWeights,
    /// Copies of weights in another layout.
    RepackedWeights,
    /// Keys and values of the tokens so far.
    KvCache,
    /// Intermediate results.
    Compute,
    /// The results of a ubatch.
    Logits,
    /// What the CPU's kernels convert their inputs in.
    Work,
    /// Descriptions of graphs.
    Graphs,
    /// Program, tokenizer, metadata.
    Program,
    /// The program's own file and its libraries.
    ProgramFile,
}

impl PartKind {
    /// All kinds, in the order of a prediction.
    pub const ALL: [PartKind; 9] = [
        PartKind::MappedWeights,
        PartKind::RepackedWeights,
        PartKind::KvCache,
        PartKind::Compute,
        PartKind::Logits,
        PartKind::Work,
        PartKind::Graphs,
        PartKind::Program,
        PartKind::ProgramFile,
    ];

    /// The words in tables.
    pub fn name(self) -> &'static str {
        match self {
            PartKind::MappedWeights => "mapped weights",
            PartKind::RepackedWeights => "repacked copies",
            PartKind::KvCache => "KV cache",
            PartKind::Compute => "compute buffers",
            PartKind::Logits => "logits",
            PartKind::Work => "work buffer",
            PartKind::Graphs => "graphs",
            PartKind::Program => "program, tokenizer",
            PartKind::ProgramFile => "program's files",
        }
    }

    /// Whether the pages are those of files: the kernel can take them back, and reads them again when they are used.
    pub fn is_file(self) -> bool {
        matches!(self, PartKind::MappedWeights | PartKind::ProgramFile)
    }
}

/// Where a number comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Exactly, from the files' metadata.
    Metadata,
    /// From metadata, and llama.cpp says the same.
    Both,
    /// llama.cpp says so.
    LlamaCpp,
    /// A process that had everything but weights and buffers.
    DryRun,
    /// From metadata, about.
    Estimate,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Source::Metadata => "metadata",
            Source::Both => "metadata, llama.cpp",
            Source::LlamaCpp => "llama.cpp",
            Source::DryRun => "dry run",
            Source::Estimate => "estimate",
        }
    }
}

/// One line of a prediction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What for.
    pub kind: PartKind,
    /// When everything has been used once: a full ubatch, a full context, all weights.
    pub size_bytes: u64,
    /// When model and context exist, and no token has been computed.
    pub at_load_bytes: u64,
    /// Where the size comes from.
    pub source: Source,
    /// Why it has this size.
    pub reason: String,
}

/// How much memory a model takes with some options.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// How it is used.
    pub options: Options,
    /// What memory is for; parts that take nothing are left out.
    pub parts: Vec<Part>,
    /// Where the weights are.
    pub weights: Weights,
    /// The KV cache by kind of layer, for architectures whose rules are known here.
    pub kv: Option<KvCache>,
}

impl Model {
    /// Reads the headers of all parts of a model; `path` may be any part of a split set.
    ///
    /// # Errors
    ///
    /// [`Error::Gguf`](crate::Error::Gguf) says what is wrong with a file.
    pub fn open(path: &Path) -> Result<Model> {
        let files = ModelFiles::open_from_any_part(path)?;
        let shape = Shape::of(&files);
        Ok(Model { files, shape })
    }

    /// The files, the first part first.
    pub fn paths(&self) -> Vec<PathBuf> {
        let paths = self.files.parts.iter().map(|part| part.path().to_owned());
        paths.collect()
    }

    /// Context length that the model was trained with, in tokens.
    pub fn n_ctx_train(&self) -> Option<u64> {
        self.shape.as_ref().map(|shape| shape.n_ctx_train)
    }

    /// How much memory it takes. Without answers, what metadata do not determine is an estimate, or left out where the
    /// architecture is not known.
    pub fn predict(&self, options: &Options, answers: Option<&Answers>) -> Prediction {
        let mut options = *options;
        if let Some(answers) = answers {
            options.flash_attention = answers.flash_attention;
        }
        let weights = Weights::predict(&self.files, &options);
        let shape = self.shape.as_ref();
        let kv = shape.and_then(|shape| kv::predict(shape, &options));
        let parts = [
            self.mapped(&weights, &options),
            repacked(&weights, &options, answers),
            self.kv(kv.as_ref(), &options, answers),
            self.compute(&options, answers),
            self.logits(answers),
            self.work(&options, answers),
            self.graphs(answers),
            self.program(answers),
            program_file(answers),
        ];
        Prediction {
            options,
            parts: parts
                .into_iter()
                .filter(|part| part.size_bytes > 0)
                .collect(),
            weights,
            kv,
        }
    }

    fn mapped(&self, weights: &Weights, options: &Options) -> Part {
        let sparse = weights.sparse_bytes;
        let reason = match options.prefetch {
            Prefetch::Eager => "all of the file is read at load".to_owned(),
            Prefetch::Selective if sparse > 0 => {
                format!(
                    "dense tensors at load, {} of experts and rows when they are used",
                    size(sparse)
                )
            }
            Prefetch::Selective => "no tensor is read by slices: all are read at load".to_owned(),
            Prefetch::None => "each page when it is first used".to_owned(),
        };
        let unused = match weights.mapped_unused_bytes {
            0 => String::new(),
            bytes => format!("; {} of it lies idle, having been repacked", size(bytes)),
        };
        Part {
            kind: PartKind::MappedWeights,
            size_bytes: weights.mapped_bytes,
            at_load_bytes: weights.mapped_at_load_bytes,
            source: Source::Metadata,
            reason: reason + &unused,
        }
    }

    fn kv(&self, kv: Option<&KvCache>, options: &Options, answers: Option<&Answers>) -> Part {
        let known = kv.map(|kv| kv.size_bytes);
        let (size_bytes, source) = decide(known, answers.map(|answers| answers.kv_bytes));
        let reason = match (&self.shape, kv) {
            (Some(shape), Some(kv)) => kv::reason(shape, options, kv),
            _ => format!("llama.cpp's rules for {}", self.architecture()),
        };
        Part {
            kind: PartKind::KvCache,
            size_bytes,
            at_load_bytes: size_bytes,
            source,
            reason,
        }
    }

    fn compute(&self, options: &Options, answers: Option<&Answers>) -> Part {
        let estimate = || {
            self.shape
                .as_ref()
                .map(|shape| compute::buffer_bytes(shape, options))
        };
        let n_tokens = self
            .shape
            .as_ref()
            .map_or(options.n_ubatch.into(), |shape| {
                shape.n_ubatch(options.n_ctx, options.n_ubatch)
            });
        let attention = match options.flash_attention {
            true => "attention fused",
            false => "attention not fused: scores of all heads",
        };
        part_of(
            PartKind::Compute,
            answers.map(|answers| answers.compute_bytes),
            estimate,
            format!("results of a ubatch of {n_tokens} tokens; {attention}"),
        )
        .touched_later()
    }

    fn logits(&self, answers: Option<&Answers>) -> Part {
        let estimate = || self.shape.as_ref().map(|shape| 4 * shape.n_vocab);
        let n_vocab = self.shape.as_ref().map_or(0, |shape| shape.n_vocab);
        part_of(
            PartKind::Logits,
            answers.map(|answers| answers.outputs_bytes),
            estimate,
            format!("one row of {n_vocab}"),
        )
    }

    fn work(&self, options: &Options, answers: Option<&Answers>) -> Part {
        let estimate = || {
            let shape = self.shape.as_ref()?;
            Some(compute::work_bytes(shape, &self.files, options))
        };
        part_of(
            PartKind::Work,
            answers.map(|answers| answers.work_bytes),
            estimate,
            format!(
                "inputs of quantized products; {} threads",
                options.n_threads
            ),
        )
        .touched_later()
    }

    fn graphs(&self, answers: Option<&Answers>) -> Part {
        let n_tensors: usize = self
            .files
            .parts
            .iter()
            .map(|part| part.tensors().len())
            .sum();
        let part = part_of(
            PartKind::Graphs,
            answers.map(|answers| answers.graphs_bytes),
            || Some(compute::graphs_bytes(&self.files)),
            format!("{GRAPH_ARENAS} arenas for a model of {n_tensors} tensors"),
        );
        Part {
            // The one that was made to plan.
            at_load_bytes: part.size_bytes / GRAPH_ARENAS,
            ..part
        }
    }

    fn program(&self, answers: Option<&Answers>) -> Part {
        let n_tokens = tokenizer::n_tokens(self.files.metadata());
        let mut part = part_of(
            PartKind::Program,
            answers.map(|answers| answers.program_bytes),
            || Some(tokenizer::program_bytes(self.files.metadata())),
            format!("a vocabulary of {n_tokens} tokens, metadata, the heap"),
        );
        if answers.is_some() {
            part.source = Source::DryRun;
        }
        part
    }

    fn architecture(&self) -> &str {
        self.files
            .metadata()
            .architecture()
            .unwrap_or("an unnamed architecture")
    }
}

fn repacked(weights: &Weights, options: &Options, answers: Option<&Answers>) -> Part {
    let answer = answers.map(|answers| answers.repacked_bytes);
    let (size_bytes, source) = decide(Some(weights.repacked_bytes()), answer);
    let copies: Vec<String> = weights
        .repacked
        .iter()
        .map(|copies| format!("{} {} tensors", copies.tensors.len(), copies.r#type))
        .collect();
    let has_q2 = weights
        .repacked
        .iter()
        .any(|copies| copies.r#type == "q2_K");
    let instructions = match options.cpu {
        Cpu { amx: true, .. } => "AMX and AVX2",
        _ if has_q2 => "AVX2 and AVX-512",
        _ => "AVX2",
    };
    Part {
        kind: PartKind::RepackedWeights,
        size_bytes,
        at_load_bytes: size_bytes,
        source,
        reason: format!("{} in a layout for {instructions}", copies.join(", ")),
    }
}

fn program_file(answers: Option<&Answers>) -> Part {
    let mut part = part_of(
        PartKind::ProgramFile,
        answers.map(|answers| answers.program_file_bytes),
        || Some(tokenizer::PROGRAM_FILE_BYTES),
        "code and constants".to_owned(),
    );
    if answers.is_some() {
        part.source = Source::DryRun;
    }
    part
}

/// llama.cpp's word counts; that it agrees is worth saying.
fn decide(known: Option<u64>, answer: Option<u64>) -> (u64, Source) {
    match (known, answer) {
        (Some(known), Some(answer)) if known == answer => (known, Source::Both),
        (_, Some(answer)) => (answer, Source::LlamaCpp),
        (Some(known), None) => (known, Source::Metadata),
        (None, None) => (0, Source::Estimate),
    }
}

/// A part that metadata alone do not determine.
fn part_of(
    kind: PartKind,
    answer: Option<u64>,
    estimate: impl FnOnce() -> Option<u64>,
    reason: String,
) -> Part {
    let (size_bytes, source) = match answer {
        Some(answer) => (answer, Source::LlamaCpp),
        None => (estimate().unwrap_or(0), Source::Estimate),
    };
    Part {
        kind,
        size_bytes,
        at_load_bytes: size_bytes,
        source,
        reason,
    }
}

impl Part {
    /// Allocated at load, and resident when it is used.
    fn touched_later(mut self) -> Part {
        self.at_load_bytes = 0;
        self
    }
}

impl Prediction {
    /// Bytes of a part; 0 if it takes nothing.
    pub fn part_bytes(&self, kind: PartKind) -> u64 {
        let parts = self.parts.iter().filter(|part| part.kind == kind);
        parts.map(|part| part.size_bytes).sum()
    }

    /// Anonymous memory: what the machine must have.
    pub fn anonymous_bytes(&self) -> u64 {
        self.sum(|part| !part.kind.is_file())
    }

    /// Resident pages of files: what the kernel takes back when memory is short.
    pub fn file_bytes(&self) -> u64 {
        self.sum(|part| part.kind.is_file())
    }

    /// Both together: the resident size of the process when everything has been used.
    pub fn held_bytes(&self) -> u64 {
        self.sum(|_| true)
    }

    /// The resident size after loading, before the first token.
    pub fn held_at_load_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.at_load_bytes).sum()
    }

    /// Page tables: 8 bytes a page. They count for the kernel, not for the process.
    pub fn page_tables_bytes(&self) -> u64 {
        self.held_bytes() / weights::PAGE_BYTES * PAGE_TABLE_ENTRY_BYTES
    }

    fn sum(&self, counts: impl Fn(&Part) -> bool) -> u64 {
        let parts = self.parts.iter().filter(|part| counts(part));
        parts.map(|part| part.size_bytes).sum()
    }
}
