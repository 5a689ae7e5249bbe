//! No metadata, however wrong, ends the process: each key and tensor of tiny models is changed in many ways, and a child
//! process loads the result, makes a context, tokenizes and decodes. It may report errors; it may not die.

mod common;
#[path = "common/rewrite.rs"]
mod rewrite;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use common::TinyModel;
use gguf::{Array, GgmlType, Gguf, Value, ValueType};
use llama_rs::{
    Backend, Batch, Context, ContextParams, Model, ModelParams, Prefetch, Sampler, Token,
};
use rewrite::{Change, rewrite};

/// Names a file with one model path a line for the child.
const LIST_VARIABLE: &str = "LLAMA_RS_TEST_MODELS";

/// What the child does with one file, as text.
fn use_model(path: &Path) -> Result<String, llama_rs::Error> {
    let params = ModelParams {
        prefetch: Prefetch::Selective,
        ..Default::default()
    };
    let model = Model::load(&Backend::init(), path, &params)?;
    let vocab = model.vocab();
    let _ = (
        model.desc(),
        model.n_ctx_train(),
        model.n_embd(),
        model.n_layer(),
        model.chat_template(),
    );
    let _ = (vocab.bos(), vocab.eos(), vocab.is_eog(Token(0)));
    let tokens = vocab.tokenize("Hello, w\u{f6}rld\n <|endoftext|> 12", true, true);
    for id in 0..vocab.n_tokens().min(300) {
        vocab.piece(Token(id as i32), true);
    }
    let params = ContextParams {
        n_ctx: 256,
        n_batch: 16,
        n_ubatch: 8,
        n_threads: 1,
        n_threads_batch: 1,
        ..Default::default()
    };
    let mut context = Context::new(&model, &params)?;
    let mut batch = Batch::new(16, 1);
    for i in 0..12 {
        batch.add(Token(i % vocab.n_tokens().max(1) as i32), i, &[0], i == 11)?;
    }
    context.decode(&batch)?;
    let chosen = Sampler::greedy().sample(&context, -1);
    batch.clear();
    batch.add(Token(0), 12, &[0], true)?;
    context.decode(&batch)?;
    context.logits(0)?;
    tokens?;
    chosen?;
    Ok("usable".to_owned())
}

/// The child: one line for each model when it begins and when it ends.
fn child(list: &str) -> ExitCode {
    let mut out = std::io::stdout();
    for path in std::fs::read_to_string(list).unwrap().lines() {
        writeln!(out, "begin {path}").unwrap();
        out.flush().unwrap();
        let result = use_model(Path::new(path)).unwrap_or_else(|error| format!("error: {error}"));
        writeln!(out, "end {}", result.replace('\n', " ")).unwrap();
    }
    ExitCode::SUCCESS
}

/// Runs children until every file has been looked at. Gives the result of each, `Err` for a death.
fn run_children(paths: &[PathBuf], folder: &Path) -> Vec<Result<String, String>> {
    let mut results = Vec::new();
    let list = folder.join("list");
    while results.len() < paths.len() {
        let rest: Vec<_> = paths[results.len()..]
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        std::fs::write(&list, rest.join("\n")).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "child_process",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(LIST_VARIABLE, &list)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let before = results.len();
        results.extend(
            text.lines()
                .filter_map(|line| line.strip_prefix("end "))
                .map(|end| Ok(end.to_owned())),
        );
        if results.len() < paths.len() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let reason = stderr
                .lines()
                .find(|line| line.contains(".cpp:") || line.contains(".c:"))
                .unwrap_or("");
            results.push(Err(format!("{}: {reason}", output.status)));
        }
        assert!(
            results.len() > before,
            "the child makes no progress: {text}"
        );
    }
    results
}

/// Other values for a key.
fn other_values(value: &Value) -> Vec<Value> {
    let text = Value::String(b"nonsense".to_vec());
    match value {
        Value::String(_) => vec![
            Value::String(Vec::new()),
            text,
            Value::String(vec![b'x'; 5000]),
            Value::String(b"a\0b".to_vec()),
            Value::String(vec![0xff, 0xfe]),
            Value::U32(7),
        ],
        Value::Bool(b) => vec![Value::Bool(!b), Value::U32(1), text],
        Value::F32(_) | Value::F64(_) => {
            let numbers = [
                0.0,
                -1.0,
                1e-38,
                1e38,
                f32::NAN,
                f32::INFINITY,
                f32::NEG_INFINITY,
            ];
            numbers
                .into_iter()
                .map(Value::F32)
                .chain([text, Value::U32(1)])
                .collect()
        }
        Value::Array(array) => other_arrays(array),
        _ => {
            let n = value.as_u64().unwrap_or(0);
            let mut numbers = vec![
                0,
                1,
                2,
                3,
                5,
                7,
                64,
                100,
                257,
                65536,
                0x7fff_ffff,
                0x8000_0000,
                0xffff_ffff,
            ];
            numbers.extend([n / 2, n.saturating_sub(1), n + 1, n * 2]);
            numbers.retain(|&other| other != n);
            numbers
                .into_iter()
                .map(|other| Value::U32(other as u32))
                .chain([
                    Value::I32(-1),
                    Value::U64(u64::MAX),
                    Value::F32(1.5),
                    Value::Bool(true),
                    text,
                ])
                .collect()
        }
    }
}

fn other_arrays(array: &Array) -> Vec<Value> {
    let values: Vec<Value> = array.iter().collect();
    let n = values.len();
    let mut others: Vec<Vec<Value>> = vec![Vec::new()];
    if n > 0 {
        others.push(values[..n / 2].to_vec());
        others.push(values[..n - 1].to_vec());
        others.push([&values[..], &values[n - 1..]].concat());
        others.push(vec![values[0].clone(); n]);
        others.push(values.iter().rev().cloned().collect());
    }
    let mut arrays: Vec<Value> = others
        .into_iter()
        .filter_map(|values| array_of(array.element_type(), &values))
        .collect();
    arrays.push(Value::U32(3));
    arrays.push(Value::Array(vec![1.0f32; n.clamp(1, 64)].as_slice().into()));
    arrays.push(Value::Array(Array::from_strings(vec!["x"; n.max(1)])));
    arrays.push(Value::Array(vec![-1i32; n.max(1)].as_slice().into()));
    arrays.push(Value::Array(vec![0u32; n.max(1)].as_slice().into()));
    arrays.push(Value::Array(vec![u32::MAX; n.max(1)].as_slice().into()));
    arrays
}

fn array_of(element: ValueType, values: &[Value]) -> Option<Value> {
    let integers = || {
        values
            .iter()
            .map(|value| value.as_u64().unwrap_or(0) as i32)
            .collect::<Vec<_>>()
    };
    Some(Value::Array(match element {
        ValueType::String => Array::from_strings(
            values
                .iter()
                .map(|value| value.as_str().unwrap_or("").to_owned()),
        ),
        ValueType::F32 => values
            .iter()
            .filter_map(Value::as_f32)
            .collect::<Vec<_>>()
            .as_slice()
            .into(),
        ValueType::I32 => integers().as_slice().into(),
        ValueType::U32 => integers()
            .iter()
            .map(|&n| n as u32)
            .collect::<Vec<_>>()
            .as_slice()
            .into(),
        _ => return None,
    }))
}

/// Keys that the tiny models lack and llama.cpp looks at.
fn additional_keys(architecture: &str) -> Vec<(String, Vec<Value>)> {
    let u32s = |numbers: &[u32]| numbers.iter().map(|&n| Value::U32(n)).collect::<Vec<_>>();
    let scoped = |key: &str| format!("{architecture}.{key}");
    vec![
        (scoped("expert_count"), u32s(&[0, 1, 3, 1000, u32::MAX])),
        (scoped("expert_used_count"), u32s(&[0, 1, 3, 1000])),
        (scoped("expert_group_count"), u32s(&[1, 2, 3, 1000])),
        (scoped("expert_group_used_count"), u32s(&[0, 1, 2, 1000])),
        (scoped("nextn_predict_layers"), u32s(&[1, 2, 1000])),
        (
            scoped("attention.sliding_window"),
            u32s(&[0, 1, 7, u32::MAX]),
        ),
        (
            scoped("attention.sliding_window_pattern"),
            u32s(&[0, 1, 3, u32::MAX]),
        ),
        (scoped("attention.causal"), vec![Value::Bool(false)]),
        (
            scoped("attention.key_length"),
            u32s(&[0, 1, 3, 48, 1 << 20]),
        ),
        (
            scoped("attention.value_length"),
            u32s(&[0, 1, 3, 48, 1 << 20]),
        ),
        (
            scoped("attention.key_length_mla"),
            u32s(&[0, 1, 48, 1 << 20]),
        ),
        (
            scoped("attention.value_length_mla"),
            u32s(&[0, 1, 48, 1 << 20]),
        ),
        (
            scoped("attention.clamp_kqv"),
            vec![Value::F32(f32::NAN), Value::F32(-1.0)],
        ),
        (
            scoped("attention.max_alibi_bias"),
            vec![Value::F32(f32::NAN), Value::F32(8.0)],
        ),
        (
            scoped("rope.dimension_count"),
            u32s(&[0, 1, 2, 3, 6, 1000, u32::MAX]),
        ),
        (
            scoped("rope.dimension_sections"),
            vec![Value::Array([1, 2, 3, 4].as_slice().into())],
        ),
        (
            scoped("rope.freq_base"),
            vec![Value::F32(0.0), Value::F32(f32::NAN), Value::F32(-1.0)],
        ),
        (
            scoped("rope.scaling.type"),
            ["none", "linear", "yarn", "longrope", "other", ""]
                .map(Value::from)
                .to_vec(),
        ),
        (
            scoped("rope.scaling.factor"),
            vec![Value::F32(0.0), Value::F32(1e-30), Value::F32(f32::NAN)],
        ),
        (
            scoped("rope.scaling.original_context_length"),
            u32s(&[0, 1, u32::MAX]),
        ),
        (scoped("pooling_type"), u32s(&[1, 2, 3, 4, 77])),
        (scoped("classifier.activation"), vec![Value::from("other")]),
        (
            scoped("classifier.output_labels"),
            vec![Value::Array(Array::from_strings(["a"]))],
        ),
        (scoped("tensor_data_layout"), vec![Value::from("other")]),
        (scoped("vocab_size"), u32s(&[0, 1, u32::MAX])),
        (
            scoped("logit_scale"),
            vec![Value::F32(0.0), Value::F32(f32::NAN)],
        ),
        (scoped("embedding_length_out"), u32s(&[0, 1, u32::MAX])),
        (scoped("use_parallel_residual"), vec![Value::Bool(true)]),
        (
            "general.alignment".into(),
            u32s(&[0, 1, 16, 33, 64, 4096, u32::MAX]),
        ),
        ("general.file_type".into(), u32s(&[3, 999, u32::MAX])),
        ("general.quantization_version".into(), u32s(&[0, 77])),
        (
            "general.architecture".into(),
            ["clip", "bert", "t5", "mamba", "wavtokenizer-dec"]
                .map(Value::from)
                .to_vec(),
        ),
        (
            "tokenizer.ggml.model".into(),
            [
                "none", "no_vocab", "llama", "bert", "t5", "rwkv", "plamo2", "test", "plamo3",
                "other",
            ]
            .map(Value::from)
            .to_vec(),
        ),
        (
            "tokenizer.ggml.pre".into(),
            [
                "default",
                "llama-bpe",
                "qwen2",
                "deepseek-llm",
                "other",
                "tekken",
                "gpt-2",
            ]
            .map(Value::from)
            .to_vec(),
        ),
        (
            "tokenizer.ggml.scores".into(),
            vec![Value::Array([0.5f32, 1.0].as_slice().into()), Value::U32(1)],
        ),
        (
            "tokenizer.ggml.bos_token_id".into(),
            u32s(&[0, 300, u32::MAX]),
        ),
        (
            "tokenizer.ggml.eos_token_id".into(),
            u32s(&[0, 300, u32::MAX]),
        ),
        (
            "tokenizer.ggml.eot_token_id".into(),
            u32s(&[0, 300, u32::MAX]),
        ),
        (
            "tokenizer.ggml.unknown_token_id".into(),
            u32s(&[0, 300, u32::MAX]),
        ),
        (
            "tokenizer.ggml.mask_token_id".into(),
            u32s(&[300, u32::MAX]),
        ),
        (
            "tokenizer.ggml.token_type_count".into(),
            u32s(&[0, 5, u32::MAX]),
        ),
        (
            "tokenizer.ggml.add_eos_token".into(),
            vec![Value::Bool(true)],
        ),
        (
            "tokenizer.ggml.add_sep_token".into(),
            vec![Value::Bool(true)],
        ),
        (
            "tokenizer.ggml.merges".into(),
            vec![Value::Array(Array::from_strings([
                "a b", "ab", "", " ", "a  b c",
            ]))],
        ),
        (
            "tokenizer.ggml.precompiled_charsmap".into(),
            vec![Value::Array([1i32, 2].as_slice().into())],
        ),
        (
            "tokenizer.chat_template".into(),
            vec![Value::from("{{ messages }}")],
        ),
        ("split.count".into(), vec![Value::U32(2), Value::U32(0)]),
    ]
}

/// Types that tensors get instead of their own: f32, f16, q4_0, q8_0, q8_1, q6_K, q8_K, i8, i32, f64, bf16, mxfp4.
const RETYPED: [u32; 12] = [0, 1, 2, 8, 9, 14, 15, 24, 26, 28, 30, 39];

/// All changes of one model, with a name for the report.
fn changes_of(model: &Gguf) -> Vec<(String, Change)> {
    let mut changes = Vec::new();
    for (key, value) in model.kv() {
        changes.push((format!("remove {key}"), Change::Remove(key.to_owned())));
        for (i, other) in other_values(value).into_iter().enumerate() {
            let name = match &other {
                Value::Array(_) | Value::String(_) => format!("set {key} #{i}"),
                _ => format!("set {key} = {other:?}"),
            };
            changes.push((name, Change::Set(key.to_owned(), other)));
        }
    }
    for (key, values) in additional_keys(model.architecture().unwrap()) {
        for (i, value) in values.into_iter().enumerate() {
            changes.push((format!("set {key} *{i}"), Change::Set(key.clone(), value)));
        }
    }
    // The first layer stands for all.
    let tensors = model
        .tensors()
        .iter()
        .filter(|t| !t.name.starts_with("blk.") || t.name.starts_with("blk.0."));
    for tensor in tensors {
        let name = &tensor.name;
        changes.push((format!("remove {name}"), Change::RemoveTensor(name.clone())));
        for ggml_type in
            GgmlType::all().filter(|&t| t != tensor.ggml_type && RETYPED.contains(&t.0))
        {
            changes.push((
                format!("retype {name} {ggml_type}"),
                Change::Retype(name.clone(), ggml_type),
            ));
        }
        let mut swapped = tensor.dims.clone();
        swapped.reverse();
        let mut longer = tensor.dims.clone();
        longer.push(2);
        let mut wider = tensor.dims.clone();
        wider[0] *= 2;
        for dims in [swapped, longer, wider, vec![32], vec![32, 1]] {
            if dims != tensor.dims && dims.len() <= 4 {
                changes.push((
                    format!("reshape {name} {dims:?}"),
                    Change::Reshape(name.clone(), dims),
                ));
            }
        }
    }
    changes
}

fn check_shape(shape: &str) {
    let tiny = TinyModel::new(shape);
    let model = Gguf::open(tiny.path()).unwrap();
    let changes = changes_of(&model);
    let mut usable = 0;
    let mut refused = 0;
    let mut deaths = Vec::new();
    // In portions, so that the files do not fill the disk.
    for portion in changes.chunks(64) {
        let mut names = Vec::new();
        let mut paths = Vec::new();
        for (i, (name, change)) in portion.iter().enumerate() {
            let path = tiny.folder().join(format!("changed-{i}.gguf"));
            if rewrite(tiny.path(), &path, std::slice::from_ref(change)) {
                names.push(name);
                paths.push(path);
            }
        }
        for (name, result) in names.iter().zip(run_children(&paths, tiny.folder())) {
            match result {
                Err(how) => deaths.push(format!("{name}: {how}")),
                Ok(text) if text == "usable" => usable += 1,
                Ok(text) => {
                    assert!(text.starts_with("error: "), "{text}");
                    refused += 1;
                }
            }
        }
        for path in paths {
            std::fs::remove_file(path).unwrap();
        }
    }
    println!(
        "{shape}: {} changes, {usable} usable, {refused} refused",
        changes.len()
    );
    assert!(
        deaths.is_empty(),
        "{} changes ended the process:\n{}",
        deaths.len(),
        deaths.join("\n")
    );
    assert!(usable > 0 && refused > 100);
}

/// Not a test of its own: the process that [`run_children`] starts.
#[test]
fn child_process() {
    if let Ok(list) = std::env::var(LIST_VARIABLE) {
        assert_eq!(
            format!("{:?}", child(&list)),
            format!("{:?}", ExitCode::SUCCESS)
        );
    }
}

#[test]
fn changed_llama_models_never_end_the_process() {
    check_shape("tiny-llama");
}

#[test]
fn changed_gpt_oss_models_never_end_the_process() {
    check_shape("tiny-gpt-oss");
}

#[test]
fn changed_qwen3moe_models_never_end_the_process() {
    check_shape("tiny-qwen3moe");
}

#[test]
fn changed_deepseek2_models_never_end_the_process() {
    check_shape("tiny-deepseek2");
}
