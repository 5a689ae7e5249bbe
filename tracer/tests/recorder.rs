//! What a recorder writes is what an observer sees, and the log alone tells whose bytes they are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use llama_rs::{
    AccessReader, Backend, Batch, Context, ContextParams, Model, ModelParams, NodeObserver,
    Pending, TensorKey, Token, Which,
};
use model_shapes::Shape;
use tracer::{Flags, LogReader, OnFull, Op, Record, Recorder, WHOLE};

const SHAPES: [&str; 4] = [
    "tiny-gpt-oss",
    "tiny-qwen3moe",
    "tiny-deepseek2",
    "tiny-llama-untied",
];
const PROMPT_TOKENS: usize = 20;
const UBATCH_TOKENS: u32 = 16;
const STEPS: usize = 3;

fn model(folder: &Path, shape: &str) -> (PathBuf, Model) {
    let shape = Shape::by_name(shape).unwrap();
    let path = folder.join(format!("{}.gguf", shape.name()));
    model_shapes::generate(&shape, &path, 1, &mut |_, _| {}).unwrap();
    let params = ModelParams {
        repack: false,
        ..ModelParams::default()
    };
    let model = Model::load(&Backend::init(), &path, &params).unwrap();
    (path, model)
}

fn context(model: &Model) -> Context<'_> {
    let params = ContextParams {
        n_ctx: 64,
        n_batch: 32,
        n_ubatch: UBATCH_TOKENS,
        n_threads: 1,
        n_threads_batch: 1,
        ..ContextParams::default()
    };
    Context::new(model, &params).unwrap()
}

fn token(position: usize) -> Token {
    Token((position as i32 * 7 + 3) % 64)
}

/// A prompt of two ubatches, and some tokens one by one.
fn decode(context: &mut Context<'_>) {
    let mut batch = Batch::new(32, 1);
    for position in 0..PROMPT_TOKENS {
        let is_last = position + 1 == PROMPT_TOKENS;
        batch
            .add(token(position), position as i32, &[0], is_last)
            .unwrap();
    }
    context.decode(&batch).unwrap();
    for position in PROMPT_TOKENS..PROMPT_TOKENS + STEPS {
        batch.clear();
        batch
            .add(token(position), position as i32, &[0], true)
            .unwrap();
        context.decode(&batch).unwrap();
    }
}

/// What an access reads: the name of the tensor, its operation, its slice, and how often that is used.
type Seen = (String, String, u32, u32);

struct Observed {
    reader: AccessReader,
    names: HashMap<TensorKey, String>,
    seen: Vec<Seen>,
}

impl NodeObserver for Observed {
    fn before(&mut self, pending: &Pending<'_>) {
        let Observed {
            reader,
            names,
            seen,
        } = self;
        reader.read(pending, |access| {
            let slice = match access.which {
                Which::Row(slice) | Which::Matrix(slice) => slice,
                Which::Whole => WHOLE,
            };
            let name = names[&access.weight.key()].clone();
            seen.push((name, access.node.op().to_owned(), slice, access.n_used));
        });
    }
}

fn observed(model: &Model) -> Vec<Seen> {
    let weights = model.weights().into_iter();
    let mut context = context(model);
    let observer = Observed {
        reader: AccessReader::new(),
        names: weights.map(|weight| (weight.key, weight.name)).collect(),
        seen: Vec::new(),
    };
    context.set_observer(observer).unwrap();
    decode(&mut context);
    context.take_observer::<Observed>().unwrap().seen
}

fn record(model: &Model, log: &Path) {
    let mut context = context(model);
    let recorder = Recorder::create(log, model, 16 << 20, OnFull::Wrap).unwrap();
    context.set_observer(recorder).unwrap();
    decode(&mut context);
    let recorder: Recorder = context.take_observer().unwrap();
    assert_eq!(recorder.n_unknown(), 0);
    let summary = recorder.finish().unwrap();
    assert_eq!(summary.n_lost, 0);
}

fn records(log: &LogReader) -> Vec<Record> {
    log.records().collect::<Result<_, _>>().unwrap()
}

#[test]
fn the_log_has_every_access_in_order() {
    for shape in SHAPES {
        let folder = tempfile::tempdir().unwrap();
        let (_, model) = model(folder.path(), shape);
        let path = folder.path().join("run.ftrace");
        record(&model, &path);
        let log = LogReader::open(&path).unwrap();
        let logged: Vec<Seen> = records(&log)
            .iter()
            .filter(|record| !record.op.is_mark())
            .map(|record| {
                let name = log.tables().tensors[record.tensor as usize].name.clone();
                let op = record.op.name().unwrap().to_owned();
                (name, op, record.slice, u32::from(record.n_used))
            })
            .collect();
        assert!(!logged.is_empty());
        assert_eq!(logged, observed(&model), "{shape}");
    }
}

#[test]
fn marks_tell_steps_tokens_and_ubatches() {
    let folder = tempfile::tempdir().unwrap();
    let (_, model) = model(folder.path(), "tiny-gpt-oss");
    let path = folder.path().join("run.ftrace");
    record(&model, &path);
    let records = records(&LogReader::open(&path).unwrap());
    let of = |op: Op| records.iter().filter(move |record| record.op == op);

    let steps: Vec<_> = of(Op::STEP_BEGIN)
        .map(|r| (r.step, r.tensor, r.slice, r.flags.has(Flags::PROMPT)))
        .collect();
    let mut expected = vec![(0, PROMPT_TOKENS as u32, 1, true)];
    expected.extend((1..=STEPS as u32).map(|step| (step, 1, 1, false)));
    assert_eq!(steps, expected);
    assert_eq!(of(Op::STEP_END).count(), 1 + STEPS);

    let tokens: Vec<_> = of(Op::STEP_TOKEN)
        .map(|r| (r.tensor as i32, r.slice))
        .collect();
    let expected: Vec<_> = (0..PROMPT_TOKENS + STEPS)
        .map(|position| (token(position).0, position as u32))
        .collect();
    assert_eq!(tokens, expected);

    let ubatches: Vec<_> = of(Op::UBATCH_BEGIN)
        .map(|r| (r.step, r.ubatch, r.tensor, r.slice))
        .collect();
    let mut expected = vec![(0, 0, 0, UBATCH_TOKENS), (0, 1, UBATCH_TOKENS, 4)];
    expected.extend((1..=STEPS as u32).map(|step| (step, 0, 0, 1)));
    assert_eq!(ubatches, expected);

    let mut last_ns = 0;
    for record in records.iter().filter(|record| !record.op.is_mark()) {
        assert!(record.time_ns >= last_ns, "the clock runs forward");
        last_ns = record.time_ns;
    }
}

#[test]
fn an_experts_bytes_are_those_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (file, model) = model(folder.path(), "tiny-gpt-oss");
    let path = folder.path().join("run.ftrace");
    record(&model, &path);
    let log = LogReader::open(&path).unwrap();
    assert_eq!(log.tables().files[0].path, file.display().to_string());
    let files = gguf::ModelFiles::open(&file).unwrap();
    let mut n_experts = 0;
    for record in records(&log).iter().filter(|r| r.op == Op::MUL_MAT_ID) {
        let tensor = &log.tables().tensors[record.tensor as usize];
        let (_, info) = files.tensor(&tensor.name).unwrap();
        let begin = tensor.offset_bytes + u64::from(record.slice) * tensor.slice_stride_bytes;
        assert_eq!(
            begin,
            info.offset + u64::from(record.slice) * info.slice_bytes()
        );
        assert!(begin + tensor.slice_stride_bytes <= info.offset + info.size_bytes);
        n_experts += 1;
    }
    assert!(n_experts > 0);
}

#[test]
fn two_contexts_record_into_two_logs_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (_, model) = model(folder.path(), "tiny-qwen3moe");
    let paths = ["a.ftrace", "b.ftrace"].map(|name| folder.path().join(name));
    std::thread::scope(|scope| {
        for path in &paths {
            scope.spawn(|| record(&model, path));
        }
    });
    let accesses = paths.map(|path| {
        let records = records(&LogReader::open(path).unwrap());
        let accesses = records.iter().filter(|record| !record.op.is_mark());
        accesses
            .map(|r| (r.tensor, r.slice, r.step, r.ubatch, r.node))
            .collect::<Vec<_>>()
    });
    assert_eq!(accesses[0], accesses[1]);
}
