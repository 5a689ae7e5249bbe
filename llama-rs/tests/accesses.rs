//! What an observer sees is what the model's definition says: each dense weight once a graph, the rows of the tokens, and
//! the experts that the router chose.

mod common;
mod support;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

use common::context_params;
use gguf::ModelFiles;
use llama_rs::{
    AccessReader, Backend, Batch, Context, GraphRef, Model, ModelParams, NodeObserver, Pending,
    Phase, Prefetch, Step, TensorKey, Token, Which,
};
use model_shapes::Shape;
use model_shapes::local::real_model;
use support::{folder, model_file};

const SHAPES: [&str; 7] = [
    "tiny-gpt-oss",
    "tiny-gpt-oss-q8_0",
    "tiny-qwen3moe",
    "tiny-qwen3moe-mxfp4",
    "tiny-deepseek2",
    "tiny-llama",
    "tiny-llama-untied",
];

/// A tensor's name, a slice, and how many rows it was used for.
type Entry = (String, Which, u32);

/// What one graph read, and what its router decided.
#[derive(Default)]
struct Graph {
    accesses: Vec<Entry>,
    /// By layer: the experts of each token.
    routed: BTreeMap<String, Vec<Vec<u32>>>,
}

/// Records every access by the tensor's name in the file.
struct Recorder {
    reader: AccessReader,
    names: HashMap<TensorKey, String>,
    files: ModelFiles,
    n_expert_used: usize,
    graphs: Vec<Graph>,
    phases: Vec<Phase>,
}

impl Recorder {
    fn new(model: &Model) -> Recorder {
        let weights = model.weights();
        let names: HashMap<_, _> = weights.iter().map(|w| (w.key, w.name.clone())).collect();
        assert_eq!(names.len(), weights.len(), "keys are distinct");
        let files = ModelFiles::open(model.files().parts[0].path()).unwrap();
        let metadata = files.metadata();
        let architecture = metadata.architecture().unwrap_or_default();
        let n_expert_used = metadata.u32(&format!("{architecture}.expert_used_count"));
        Recorder {
            reader: AccessReader::new(),
            names,
            n_expert_used: n_expert_used.unwrap_or(0) as usize,
            files,
            graphs: Vec::new(),
            phases: Vec::new(),
        }
    }
}

impl NodeObserver for Recorder {
    fn step_begin(&mut self, step: &Step<'_>) {
        self.phases.push(step.phase());
    }

    fn graph_begin(&mut self, graph: &GraphRef<'_>) {
        assert!(!graph.nodes().is_empty());
        self.graphs.push(Graph::default());
    }

    fn before(&mut self, pending: &Pending<'_>) {
        let graph = self.graphs.last_mut().unwrap();
        self.reader.read(pending, |access| {
            let name = &self.names[&access.weight.key()];
            let (_, tensor) = self.files.tensor(name).expect("a tensor of the file");
            let row_bytes = tensor.ggml_type.row_bytes(tensor.dims[0]).unwrap();
            let (index, slice_bytes) = match access.which {
                Which::Whole => (0, tensor.size_bytes),
                Which::Row(row) => (u64::from(row), row_bytes),
                Which::Matrix(matrix) => (u64::from(matrix), row_bytes * tensor.dims[1]),
            };
            let extent = (index * slice_bytes, slice_bytes);
            assert_eq!((access.offset_bytes, access.size_bytes), extent, "{name}");
            assert!(access.offset_bytes + access.size_bytes <= tensor.size_bytes);
            graph
                .accesses
                .push((name.clone(), access.which, access.n_used));
        });
        let node = &pending.nodes()[0];
        if let Some(layer) = node.name().strip_prefix("ffn_moe_argsort-") {
            let scores = node.source(0).unwrap();
            let [n_expert, n_tokens, ..] = scores.ne().map(|n| n as usize);
            let stride = scores.nb()[1];
            assert_eq!(scores.nb()[0], size_of::<f32>());
            let rows = (0..n_tokens).map(|token| {
                // SAFETY: the sources of a node are complete before it is computed, and sorting is not done in place: the
                // result is of another type.
                let row = unsafe {
                    let start = scores.data().add(token * stride).cast::<f32>();
                    std::slice::from_raw_parts(start, n_expert)
                };
                let mut experts: Vec<u32> = (0..n_expert as u32).collect();
                experts.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
                experts.truncate(self.n_expert_used);
                experts
            });
            graph.routed.insert(layer.to_owned(), rows.collect());
        }
    }
}

/// What a graph that computes `tokens`, with logits for the last of them, has to read.
fn expected(
    model: &Model,
    tokens: &[Token],
    routed: &BTreeMap<String, Vec<Vec<u32>>>,
) -> Vec<Entry> {
    let files = model.files();
    let is_tied = files.tensor("output.weight").is_none();
    let mut entries = Vec::new();
    for (_, tensor) in files.tensors() {
        let name = &tensor.name;
        let is_experts = name.contains("_exps.");
        if name == "token_embd.weight" {
            let rows = tokens.iter().map(|token| Which::Row(token.0 as u32));
            entries.extend(rows.map(|row| (name.clone(), row, 1)));
        }
        if is_experts {
            let layer = name.split('.').nth(1).unwrap();
            let mut counts = BTreeMap::new();
            for expert in routed[layer].iter().flatten() {
                *counts.entry(*expert).or_insert(0) += 1;
            }
            for (expert, n_used) in counts {
                let which = match name.ends_with(".bias") {
                    true => Which::Row(expert),
                    false => Which::Matrix(expert),
                };
                entries.push((name.clone(), which, n_used));
            }
        } else if name != "token_embd.weight" || is_tied {
            entries.push((name.clone(), Which::Whole, 1));
        }
    }
    entries
}

fn sorted(mut entries: Vec<Entry>) -> Vec<String> {
    let lines = entries
        .drain(..)
        .map(|(name, which, n_used)| format!("{name} {which} {n_used}"));
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines
}

/// Decodes a prompt with repeated tokens and two tokens after it; gives the recorder.
fn record(model: &Model, steps: &[Vec<Token>]) -> Recorder {
    let mut context = Context::new(model, &context_params()).unwrap();
    context.set_observer(Recorder::new(model)).unwrap();
    let mut position = 0;
    for tokens in steps {
        let mut batch = Batch::new(tokens.len(), 1);
        for (i, &token) in tokens.iter().enumerate() {
            let is_last = i + 1 == tokens.len();
            batch.add(token, position, &[0], is_last).unwrap();
            position += 1;
        }
        context.decode(&batch).unwrap();
    }
    context.take_observer().unwrap()
}

fn steps() -> Vec<Vec<Token>> {
    let prompt = [3, 17, 3, 99, 250, 17, 3, 64, 5, 31, 8, 77].map(Token);
    vec![prompt.to_vec(), vec![Token(42)], vec![Token(3)]]
}

fn check(model: &Model, what: &str) {
    let recorder = record(model, &steps());
    assert_eq!(recorder.graphs.len(), 3, "{what}: a graph a step");
    assert_eq!(
        recorder.phases,
        [Phase::Prompt, Phase::Decode, Phase::Decode]
    );
    for (graph, tokens) in recorder.graphs.into_iter().zip(steps()) {
        let expected = expected(model, &tokens, &graph.routed);
        let n_sparse = expected.iter().filter(|entry| entry.1 != Which::Whole);
        assert!(n_sparse.count() >= tokens.len());
        assert_eq!(sorted(graph.accesses), sorted(expected), "{what}");
    }
}

#[test]
fn the_accesses_are_those_of_the_definition() {
    let folder = folder();
    for shape in SHAPES {
        let path = model_file(folder.path(), &Shape::by_name(shape).unwrap());
        for (prefetch, repack) in [
            (Prefetch::Eager, true),
            (Prefetch::Eager, false),
            (Prefetch::Selective, false),
        ] {
            let params = ModelParams {
                prefetch,
                repack,
                ..Default::default()
            };
            let model = Model::load(&Backend::init(), &path, &params).unwrap();
            check(&model, &format!("{shape}, {prefetch}, repack {repack}"));
        }
    }
}

#[test]
fn split_files_are_one_model() {
    let folder = folder();
    let path = model_file(folder.path(), &Shape::by_name("tiny-gpt-oss").unwrap());
    let whole = ModelFiles::open(&path).unwrap();
    let parts = gguf::split_model(&whole, &folder.path().join("split"), 3).unwrap();
    let model = support::load(&parts[0], Prefetch::Selective);
    check(&model, "split");
}

#[test]
fn the_weights_of_a_mapped_model_are_the_bytes_of_the_file() {
    let folder = folder();
    let path = model_file(folder.path(), &Shape::by_name("tiny-qwen3moe").unwrap());
    let model = support::load(&path, Prefetch::Eager);
    let weights = model.weights();
    let file = File::open(&path).unwrap();
    assert_eq!(weights.len(), model.files().tensors().count());
    for weight in &weights {
        let (_, tensor) = model
            .files()
            .tensor(&weight.name)
            .expect("a tensor of the file");
        assert_eq!(weight.size_bytes, tensor.size_bytes);
        let mut bytes = vec![0; weight.size_bytes as usize];
        file.read_exact_at(&mut bytes, tensor.offset).unwrap();
        // SAFETY: the address and size of a weight of a model that is loaded.
        let loaded = unsafe {
            let start = std::ptr::with_exposed_provenance::<u8>(weight.address);
            std::slice::from_raw_parts(start, bytes.len())
        };
        assert_eq!(loaded, bytes, "{}", weight.name);
    }
}

#[test]
fn a_ubatch_without_logits_does_not_read_the_output() {
    let folder = folder();
    let path = model_file(folder.path(), &Shape::by_name("tiny-llama-untied").unwrap());
    let model = support::load(&path, Prefetch::Eager);
    // n_ubatch is 32.
    let prompt: Vec<Token> = (0..40).map(Token).collect();
    let recorder = record(&model, &[prompt]);
    let reads: Vec<usize> = recorder
        .graphs
        .iter()
        .map(|graph| {
            graph
                .accesses
                .iter()
                .filter(|entry| entry.0 == "output.weight")
        })
        .map(Iterator::count)
        .collect();
    assert_eq!(reads, [0, 1]);
    let rows = recorder.graphs.iter().map(|graph| {
        let rows = graph
            .accesses
            .iter()
            .filter(|entry| entry.0 == "token_embd.weight");
        rows.count()
    });
    assert!(rows.eq([32, 8]));
}

#[test]
fn real_models_read_each_weight_once_a_step() {
    for name in ["smollm2-135m", "qwen2.5-coder-0.5b"] {
        if let Some(path) = real_model(name) {
            check(&support::load(&path, Prefetch::Eager), name);
        }
    }
}
