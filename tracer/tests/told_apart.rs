//! Tensors that are easily confused are told apart: a tied weight's two uses, the parts of a split model, fused nodes, the
//! tensors of adapters, and the rotation of a quantized KV cache.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use llama_rs::{
    Backend, Batch, Context, ContextParams, KvType, LoraAdapter, Model, ModelParams, NodeObserver,
    Pending, Token,
};
use model_shapes::{ADAPTER_RANK, Shape, generate_adapter};
use tracer::{ExtraKind, Flags, LogReader, OnFull, Op, Record, Recorder, WHOLE};

const PROMPT_TOKENS: usize = 12;
const STEPS: usize = 3;

fn generate(folder: &Path, shape: &str) -> PathBuf {
    let path = folder.join(format!("{shape}.gguf"));
    model_shapes::generate(&Shape::by_name(shape).unwrap(), &path, 1, &mut |_, _| {}).unwrap();
    path
}

fn load(path: &Path, repack: bool) -> Model {
    let params = ModelParams {
        repack,
        ..ModelParams::default()
    };
    Model::load(&Backend::init(), path, &params).unwrap()
}

fn params(type_k: KvType, type_v: KvType) -> ContextParams {
    ContextParams {
        n_ctx: 64,
        n_batch: 32,
        n_ubatch: 32,
        n_threads: 1,
        n_threads_batch: 1,
        type_k,
        type_v,
        ..ContextParams::default()
    }
}

fn plain_params() -> ContextParams {
    params(KvType::F16, KvType::F16)
}

fn token(position: usize) -> Token {
    Token((position as i32 * 7 + 3) % 64)
}

/// A prompt and some tokens one by one: a graph a step. The bits of the last logits of each.
fn decode(context: &mut Context<'_>) -> Vec<u32> {
    let mut bits = Vec::new();
    let mut batch = Batch::new(32, 1);
    let mut position = 0;
    for n_tokens in [PROMPT_TOKENS].into_iter().chain([1; STEPS]) {
        batch.clear();
        for i in 0..n_tokens {
            let is_last = i + 1 == n_tokens;
            batch
                .add(token(position), position as i32, &[0], is_last)
                .unwrap();
            position += 1;
        }
        context.decode(&batch).unwrap();
        bits.extend(context.logits(-1).unwrap().iter().map(|x| x.to_bits()));
    }
    bits
}

/// What a log says: its accesses, and whose they are.
struct Log {
    log: LogReader,
    accesses: Vec<Record>,
    logits: Vec<u32>,
}

impl Log {
    fn record(path: &Path, model: &Model, context: &mut Context<'_>) -> Log {
        let recorder = Recorder::create(path, model, 16 << 20, OnFull::Wrap).unwrap();
        context.set_observer(recorder).unwrap();
        let logits = decode(context);
        let recorder: Recorder = context.take_observer().unwrap();
        assert_eq!(recorder.n_unknown(), 0);
        assert_eq!(recorder.finish().unwrap().n_lost, 0);
        Log::open(path, logits)
    }

    fn open(path: &Path, logits: Vec<u32>) -> Log {
        let log = LogReader::open(path).unwrap();
        let records = log.records().map(Result::unwrap);
        let accesses = records.filter(|record| !record.op.is_mark()).collect();
        Log {
            log,
            accesses,
            logits,
        }
    }

    fn n_tensors(&self) -> usize {
        self.log.tables().tensors.len()
    }

    fn is_extra(&self, record: &Record) -> bool {
        record.tensor as usize >= self.n_tensors()
    }

    fn name(&self, record: &Record) -> &str {
        let tensor = record.tensor as usize;
        match tensor.checked_sub(self.n_tensors()) {
            Some(extra) => &self.log.extras()[extra].name,
            None => &self.log.tables().tensors[tensor].name,
        }
    }

    /// Accesses to tensors of the files: step, name, operation, slice, use, and flags.
    fn own(&self) -> Vec<(u32, &str, Op, u32, u16, bool)> {
        let own = self.accesses.iter().filter(|record| !self.is_extra(record));
        own.map(|r| {
            let is_fused = r.flags.has(Flags::FUSED);
            (r.step, self.name(r), r.op, r.slice, r.n_used, is_fused)
        })
        .collect()
    }

    /// How often each extra tensor was read as a whole or in part, by step.
    fn extra_reads(&self) -> BTreeMap<(u32, u32), usize> {
        let mut reads = BTreeMap::new();
        for record in self.accesses.iter().filter(|record| self.is_extra(record)) {
            *reads.entry((record.step, record.tensor)).or_default() += 1;
        }
        reads
    }
}

#[test]
fn an_adapters_tensors_are_extras_and_the_models_stay_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = generate(folder.path(), "tiny-llama");
    let mut model = load(&path, false);
    let weights = ["blk.0.attn_q.weight", "blk.1.ffn_down.weight"];
    // Two adapters with tensors of the same names.
    let adapters = [1, 2].map(|seed| {
        let file = folder.path().join(format!("{seed}.lora"));
        generate_adapter(&path, &file, &weights, seed).unwrap();
        LoraAdapter::load(&mut model, &file).unwrap()
    });
    let log_path = folder.path().join("run.ftrace");
    let record = |adapters: &[(&LoraAdapter, f32)]| {
        let mut context = Context::new(&model, &plain_params()).unwrap();
        context.set_lora(adapters).unwrap();
        let log = Log::record(&log_path, &model, &mut context);
        let mut context = Context::new(&model, &plain_params()).unwrap();
        context.set_lora(adapters).unwrap();
        assert_eq!(log.logits, decode(&mut context), "recorded or not");
        log
    };
    let plain = record(&[]);
    assert!(plain.log.extras().is_empty());
    let unused = record(&[(&adapters[0], 0.0)]);
    assert!(unused.log.extras().is_empty());
    assert_eq!((unused.own(), &unused.logits), (plain.own(), &plain.logits));

    for n_adapters in [1, 2] {
        let scaled: Vec<_> = adapters[..n_adapters].iter().map(|a| (a, 1.0)).collect();
        let log = record(&scaled);
        assert_ne!(log.logits, plain.logits);
        assert_eq!(log.own(), plain.own());
        let mut found: Vec<_> = log
            .log
            .extras()
            .iter()
            .map(|extra| {
                assert_eq!(extra.kind, ExtraKind::LORA);
                assert_eq!(
                    (extra.n_slices, extra.slice_stride_bytes),
                    (1, extra.size_bytes)
                );
                (
                    extra.name.as_str(),
                    extra.type_name.as_str(),
                    extra.size_bytes,
                    extra.layer,
                )
            })
            .collect();
        found.sort_unstable();
        // n_embd is 256, n_ff 512.
        let (f32_bytes, f16_bytes) = (4 * ADAPTER_RANK, 2 * ADAPTER_RANK);
        let expected = [
            ("blk.0.attn_q.weight.lora_a", "f32", f32_bytes * 256, 0),
            ("blk.0.attn_q.weight.lora_b", "f16", f16_bytes * 256, 0),
            ("blk.1.ffn_down.weight.lora_a", "f32", f32_bytes * 512, 1),
            ("blk.1.ffn_down.weight.lora_b", "f16", f16_bytes * 256, 1),
        ];
        let expected: Vec<_> = expected.iter().flat_map(|e| vec![*e; n_adapters]).collect();
        assert_eq!(found, expected);
        let reads = log.extra_reads();
        assert_eq!(reads.len(), (1 + STEPS) * 4 * n_adapters);
        assert!(reads.values().all(|&n| n == 1), "each once a step");
        let extras = log.accesses.iter().filter(|record| log.is_extra(record));
        assert!(
            extras
                .clone()
                .all(|r| (r.op, r.slice) == (Op::MUL_MAT, WHOLE))
        );
    }
}

#[test]
fn adapters_of_experts_and_embeddings_are_read_by_slices() {
    let folder = tempfile::tempdir().unwrap();
    let path = generate(folder.path(), "tiny-qwen3moe");
    let mut model = load(&path, false);
    let experts = "blk.1.ffn_gate_exps.weight";
    let file = folder.path().join("lora");
    generate_adapter(&path, &file, &[experts, "token_embd.weight"], 1).unwrap();
    let adapter = LoraAdapter::load(&mut model, &file).unwrap();
    let mut context = Context::new(&model, &plain_params()).unwrap();
    context.set_lora(&[(&adapter, 1.0)]).unwrap();
    let log = Log::record(&folder.path().join("run.ftrace"), &model, &mut context);
    let slices = |name: &str| -> Vec<(u32, u32, u16)> {
        let of_name = log
            .accesses
            .iter()
            .filter(|record| log.name(record) == name);
        of_name.map(|r| (r.step, r.slice, r.n_used)).collect()
    };
    for (name, like) in [
        (format!("{experts}.lora_a"), experts),
        (format!("{experts}.lora_b"), experts),
        ("token_embd.weight.lora_a".to_owned(), "token_embd.weight"),
    ] {
        assert_eq!(slices(&name), slices(like), "{name}");
        assert!(slices(&name).iter().all(|&(_, slice, _)| slice != WHOLE));
        let extra = log.log.extras().iter().find(|extra| extra.name == name);
        let extra = extra.unwrap();
        let weight = log.log.tables().tensors.iter().find(|t| t.name == like);
        assert_eq!(extra.n_slices, weight.unwrap().n_slices, "{name}");
        assert_eq!(
            extra.slice_stride_bytes * u64::from(extra.n_slices),
            extra.size_bytes
        );
    }
    assert!(
        slices("token_embd.weight.lora_b")
            .iter()
            .all(|&(_, slice, _)| slice == WHOLE)
    );
}

#[test]
fn the_rotation_of_a_quantized_cache_is_an_extra() {
    let folder = tempfile::tempdir().unwrap();
    let path = generate(folder.path(), "tiny-llama");
    let model = load(&path, false);
    let log_path = folder.path().join("run.ftrace");
    let mut context = Context::new(&model, &plain_params()).unwrap();
    let plain = Log::record(&log_path, &model, &mut context);
    for (type_k, type_v, kinds) in [
        (KvType::Q8_0, KvType::Q8_0, &["k", "v"][..]),
        (KvType::Q8_0, KvType::F16, &["k"]),
        (KvType::Bf16, KvType::Q4_0, &["v"]),
        (KvType::Bf16, KvType::F32, &[]),
    ] {
        let params = params(type_k, type_v);
        let mut context = Context::new(&model, &params).unwrap();
        let log = Log::record(&log_path, &model, &mut context);
        let mut context = Context::new(&model, &params).unwrap();
        assert_eq!(log.logits, decode(&mut context), "recorded or not");
        assert_eq!(log.own(), plain.own());
        let found: BTreeSet<_> = log
            .log
            .extras()
            .iter()
            .map(|extra| {
                assert_eq!(extra.kind, ExtraKind::KV_ROTATION, "{}", extra.name);
                // Heads have 64 values.
                assert_eq!(extra.size_bytes, 64 * 64 * 4);
                (extra.name.clone(), extra.layer)
            })
            .collect();
        let expected: BTreeSet<_> = kinds
            .iter()
            .flat_map(|kind| (0..2).map(move |layer| (format!("cache_{kind}_rot_l{layer}"), layer)))
            .collect();
        assert_eq!(found, expected);
        // Query and key; value and what attention makes of it.
        assert_eq!(log.extra_reads().len(), (1 + STEPS) * expected.len());
        assert!(log.extra_reads().values().all(|&n| n == 2));
    }
}

#[test]
fn a_tensor_where_another_one_lay_has_its_own_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = generate(folder.path(), "tiny-llama");
    let model = load(&path, false);
    let log_path = folder.path().join("run.ftrace");
    let mut recorder = Recorder::create(&log_path, &model, 16 << 20, OnFull::Wrap).unwrap();
    // One after the other, so that the allocator gives the later ones the memory of the earlier ones.
    let caches = [(KvType::Q8_0, KvType::F16), (KvType::F16, KvType::Q8_0)];
    for (type_k, type_v) in caches.into_iter().cycle().take(8) {
        let mut context = Context::new(&model, &params(type_k, type_v)).unwrap();
        context.set_observer(recorder).unwrap();
        decode(&mut context);
        recorder = context.take_observer().unwrap();
    }
    assert_eq!(recorder.n_unknown(), 0);
    recorder.finish().unwrap();
    let log = Log::open(&log_path, Vec::new());
    for record in log.accesses.iter().filter(|record| log.is_extra(record)) {
        let context = record.step as usize / (1 + STEPS);
        let expected = ["cache_k_rot_l", "cache_v_rot_l"][context % 2];
        let name = log.name(record);
        assert!(name.starts_with(expected), "context {context}: {name}");
    }
    assert_eq!(log.extra_reads().len(), 8 * (1 + STEPS) * 2);
}

#[test]
fn a_tied_weight_is_read_by_rows_and_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let log_path = folder.path().join("run.ftrace");
    for (shape, output) in [
        ("tiny-llama", "token_embd.weight"),
        ("tiny-llama-q8_0", "token_embd.weight"),
        ("tiny-llama-untied", "output.weight"),
    ] {
        let path = generate(folder.path(), shape);
        // Repacked, a tied output has a copy of its own; its bytes in the file are still those of the embedding.
        for repack in [false, true] {
            let model = load(&path, repack);
            let mut context = Context::new(&model, &plain_params()).unwrap();
            let log = Log::record(&log_path, &model, &mut context);
            assert!(log.log.extras().is_empty(), "{shape}");
            let of = |names: [&str; 2]| -> Vec<(u32, &str, Op, u32)> {
                let all = log.own().into_iter();
                all.filter(|access| names.contains(&access.1))
                    .map(|(step, name, op, slice, ..)| (step, name, op, slice))
                    .collect()
            };
            let mut expected = Vec::new();
            let mut position = 0;
            for (step, n_tokens) in (0..).zip([PROMPT_TOKENS, 1, 1, 1]) {
                for _ in 0..n_tokens {
                    let row = token(position).0 as u32;
                    expected.push((step, "token_embd.weight", Op::GET_ROWS, row));
                    position += 1;
                }
                expected.push((step, output, Op::MUL_MAT, WHOLE));
            }
            let found = of(["token_embd.weight", "output.weight"]);
            assert_eq!(found, expected, "{shape}, repack {repack}");
        }
    }
}

#[test]
fn the_parts_of_a_split_model_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = generate(folder.path(), "tiny-gpt-oss");
    let whole = gguf::ModelFiles::open(&path).unwrap();
    let parts = gguf::split_model(&whole, &folder.path().join("split"), 3).unwrap();
    let [one, many] = [&path, &parts[0]].map(|path| {
        let model = load(path, false);
        let mut context = Context::new(&model, &plain_params()).unwrap();
        let log_path = path.with_extension("ftrace");
        Log::record(&log_path, &model, &mut context)
    });
    assert_eq!(many.own(), one.own());
    let tables = many.log.tables();
    let paths: Vec<_> = tables
        .files
        .iter()
        .map(|file| PathBuf::from(&file.path))
        .collect();
    assert_eq!(paths, parts);

    // What the log says was read of a part are the bytes that were read of the whole.
    let bytes = |log: &Log, record: &Record| {
        let tensor = &log.log.tables().tensors[record.tensor as usize];
        let (offset, size) = match record.slice {
            WHOLE => (0, tensor.size_bytes),
            slice => (
                u64::from(slice) * tensor.slice_stride_bytes,
                tensor.slice_stride_bytes,
            ),
        };
        let path = &log.log.tables().files[tensor.file as usize].path;
        let mut bytes = vec![0; size as usize];
        let file = File::open(path).unwrap();
        file.read_exact_at(&mut bytes, tensor.offset_bytes + offset)
            .unwrap();
        bytes
    };
    let mut parts_read = BTreeSet::new();
    for (of_part, of_whole) in many.accesses.iter().zip(&one.accesses) {
        let name = many.name(of_part);
        assert_eq!(bytes(&many, of_part), bytes(&one, of_whole), "{name}");
        parts_read.insert(tables.tensors[of_part.tensor as usize].file);
    }
    assert_eq!(parts_read.len(), parts.len());
}

/// The weights that are read by nodes of a group, and by single nodes.
#[derive(Default)]
struct Groups {
    fused: BTreeSet<String>,
    single: BTreeSet<String>,
}

impl NodeObserver for Groups {
    fn before(&mut self, pending: &Pending<'_>) {
        let nodes = pending.nodes();
        for node in nodes {
            for weight in node.sources().filter_map(|(_, source)| source.weight()) {
                let name = weight.name().to_owned();
                if nodes.len() > 1 {
                    // The norm itself reads no weight; the multiplication after it does.
                    assert_eq!((nodes[0].op(), node.op()), ("RMS_NORM", "MUL"), "{name}");
                    self.fused.insert(name);
                } else {
                    self.single.insert(name);
                }
            }
        }
    }
}

#[test]
fn weights_of_fused_nodes_are_marked_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = generate(folder.path(), "tiny-llama");
    let model = load(&path, false);
    let mut context = Context::new(&model, &plain_params()).unwrap();
    let log = Log::record(&folder.path().join("run.ftrace"), &model, &mut context);
    let mut context = Context::new(&model, &plain_params()).unwrap();
    context.set_observer(Groups::default()).unwrap();
    decode(&mut context);
    let groups: Groups = context.take_observer().unwrap();

    let by_flag = |flag: bool| -> BTreeSet<String> {
        let all = log.own().into_iter();
        let of_flag = all.filter(|access| access.5 == flag);
        of_flag.map(|access| access.1.to_owned()).collect()
    };
    assert_eq!(by_flag(true), groups.fused);
    assert_eq!(by_flag(false), groups.single);
    let norms = [
        "blk.0.attn_norm",
        "blk.0.ffn_norm",
        "blk.1.attn_norm",
        "blk.1.ffn_norm",
    ];
    let norms = norms.into_iter().chain(["output_norm"]);
    let norms: BTreeSet<_> = norms.map(|norm| format!("{norm}.weight")).collect();
    assert_eq!(groups.fused, norms);
    for record in log.accesses.iter().filter(|r| r.flags.has(Flags::FUSED)) {
        assert_eq!(record.op, Op::MUL);
        // A group of two, of which the second has the weight: both have the time of the group, and each its own number.
        assert!(record.node > 0);
    }
}
