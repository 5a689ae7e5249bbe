//! The log announces every slice that is read: with everything else unreadable, a run finishes and computes the same.

use std::ops::Range;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use llama_rs::{
    AccessReader, Backend, Batch, Context, ContextParams, Model, ModelParams, NodeObserver,
    Pending, Token,
};
use model_shapes::Shape;
use rustix::mm::{MprotectFlags, mprotect};
use tracer::{LogReader, OnFull, Record, Recorder, Tables, Tensor, WHOLE};

/// Experts of several pages each, and embeddings of which a page holds few rows.
const SHAPES: [&str; 5] = [
    "tiny-gpt-oss",
    "tiny-gpt-oss-f16",
    "tiny-qwen3moe-q8_0",
    "tiny-deepseek2-f16",
    "tiny-llama-untied",
];
const PROMPT_TOKENS: usize = 5;
const STEPS: usize = 6;

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
        n_ubatch: 4,
        n_threads: 2,
        n_threads_batch: 2,
        ..ContextParams::default()
    };
    Context::new(model, &params).unwrap()
}

/// A prompt of two ubatches, then some tokens one by one: the batches of each step.
fn batches() -> Vec<Batch> {
    let token = |position: usize| Token((position as i32 * 7 + 3) % 64);
    let mut batches = Vec::new();
    let mut batch = Batch::new(32, 1);
    for position in 0..PROMPT_TOKENS {
        let is_last = position + 1 == PROMPT_TOKENS;
        batch
            .add(token(position), position as i32, &[0], is_last)
            .unwrap();
    }
    batches.push(batch);
    for position in PROMPT_TOKENS..PROMPT_TOKENS + STEPS {
        let mut batch = Batch::new(1, 1);
        batch
            .add(token(position), position as i32, &[0], true)
            .unwrap();
        batches.push(batch);
    }
    batches
}

fn decode(context: &mut Context<'_>, batch: &Batch) -> Vec<u32> {
    context.decode(batch).unwrap();
    let logits = context.logits(-1).unwrap();
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Finds where the file is mapped: a tensor's address, less its offset in the file.
struct FindBase {
    reader: AccessReader,
    tables: Tables,
    base: Option<usize>,
}

impl NodeObserver for FindBase {
    fn before(&mut self, pending: &Pending<'_>) {
        let FindBase {
            reader,
            tables,
            base,
        } = self;
        reader.read(pending, |access| {
            let name = access.weight.name();
            let tensor = tables.tensors.iter().find(|tensor| tensor.name == name);
            let tensor = tensor.expect("a tensor of the file");
            let address = access.weight.data().addr() - tensor.offset_bytes as usize;
            assert_eq!(*base.get_or_insert(address), address, "{name}");
        });
    }
}

/// Address at which byte 0 of the model's only file is mapped.
fn base_address(model: &Model, tables: &Tables) -> usize {
    let mut context = context(model);
    let finder = FindBase {
        reader: AccessReader::new(),
        tables: tables.clone(),
        base: None,
    };
    context.set_observer(finder).unwrap();
    decode(&mut context, &batches()[0]);
    let finder = context.take_observer::<FindBase>().unwrap();
    finder.base.expect("some weight was read")
}

fn is_sparse(tensor: &Tensor) -> bool {
    tensor.n_slices > 1
}

fn pages(bytes: Range<u64>, page_bytes: u64) -> Range<usize> {
    (bytes.start / page_bytes) as usize..bytes.end.div_ceil(page_bytes) as usize
}

/// The pages of the file that nothing in `records` reads and that hold nothing but sparse tensors.
fn unannounced(tables: &Tables, records: &[&Record], page_bytes: u64) -> Vec<bool> {
    let n_pages = tables.files[0].size_bytes.div_ceil(page_bytes) as usize;
    let mut is_hidden = vec![false; n_pages];
    let extent = |tensor: &Tensor| tensor.offset_bytes..tensor.offset_bytes + tensor.size_bytes;
    for tensor in tables.tensors.iter().filter(|tensor| is_sparse(tensor)) {
        is_hidden[pages(extent(tensor), page_bytes)].fill(true);
    }
    for tensor in tables.tensors.iter().filter(|tensor| !is_sparse(tensor)) {
        is_hidden[pages(extent(tensor), page_bytes)].fill(false);
    }
    for record in records {
        let tensor = &tables.tensors[record.tensor as usize];
        let bytes = if record.slice == WHOLE {
            extent(tensor)
        } else {
            let begin = tensor.offset_bytes + u64::from(record.slice) * tensor.slice_stride_bytes;
            begin..begin + tensor.slice_stride_bytes
        };
        is_hidden[pages(bytes, page_bytes)].fill(false);
    }
    is_hidden
}

/// Pages that cannot be read while this lives.
struct Hidden(Vec<(usize, usize)>);

impl Hidden {
    fn new(base: usize, is_hidden: &[bool], page_bytes: u64) -> Hidden {
        let mut runs = Vec::new();
        let mut page = 0;
        for run in is_hidden.chunk_by(|a, b| a == b) {
            if run[0] {
                let page_bytes = page_bytes as usize;
                runs.push((base + page * page_bytes, run.len() * page_bytes));
            }
            page += run.len();
        }
        for &(address, size_bytes) in &runs {
            protect(address, size_bytes, MprotectFlags::empty());
        }
        Hidden(runs)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        for &(address, size_bytes) in &self.0 {
            protect(address, size_bytes, MprotectFlags::READ);
        }
    }
}

fn protect(address: usize, size_bytes: usize, flags: MprotectFlags) {
    let address = std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: whole pages of the model's mapping, which is only read. What reads a hidden page ends the process, which is
    // what the test is for.
    unsafe { mprotect(address, size_bytes, flags) }.unwrap();
}

/// Decodes with what each step does not announce hidden. With `hide_one`, one slice that is announced is hidden, too.
fn run(shape: &str, hide_one: bool) {
    let folder = tempfile::tempdir().unwrap();
    let (_, model) = model(folder.path(), shape);
    let log = folder.path().join("run.ftrace");
    let mut recorded = context(&model);
    let recorder = Recorder::create(&log, &model, 16 << 20, OnFull::Stop).unwrap();
    recorded.set_observer(recorder).unwrap();
    let expected: Vec<_> = batches()
        .iter()
        .map(|batch| decode(&mut recorded, batch))
        .collect();
    let recorder: Recorder = recorded.take_observer().unwrap();
    assert_eq!(recorder.finish().unwrap().n_lost, 0);

    let log = LogReader::open(&log).unwrap();
    let records: Vec<Record> = log.records().map(|record| record.unwrap()).collect();
    let tables = log.tables();
    let base = base_address(&model, tables);
    let page_bytes = rustix::param::page_size() as u64;
    let n_sparse = unannounced(tables, &[], page_bytes)
        .iter()
        .filter(|&&is_hidden| is_hidden)
        .count();
    let mut context = context(&model);
    for (step, (batch, expected)) in batches().iter().zip(&expected).enumerate() {
        let mut announced: Vec<&Record> = records
            .iter()
            .filter(|record| record.step as usize == step && !record.op.is_mark())
            .collect();
        if hide_one {
            let hidden = announced
                .iter()
                .rposition(|record| is_sparse(&tables.tensors[record.tensor as usize]));
            announced.remove(hidden.expect("every step reads a slice"));
        }
        let is_hidden = unannounced(tables, &announced, page_bytes);
        let n_hidden = is_hidden.iter().filter(|&&is_hidden| is_hidden).count();
        let hidden = Hidden::new(base, &is_hidden, page_bytes);
        let logits = decode(&mut context, batch);
        drop(hidden);
        assert!(logits == *expected, "{shape}: other logits in step {step}");
        if batch.len() == 1 {
            assert!(
                2 * n_hidden > n_sparse,
                "{shape}: only {n_hidden} of {n_sparse} pages were hidden"
            );
        }
    }
}

#[test]
fn a_run_finishes_with_everything_unreadable_that_the_log_does_not_announce() {
    for shape in SHAPES {
        run(shape, false);
    }
}

const CHILD: &str = "FAULTLINE_TEST_HIDE_ONE";

/// The other test's proof: without one of the slices that are announced, the run does not finish.
#[test]
fn a_hidden_slice_that_is_read_ends_the_process() {
    const NAME: &str = "a_hidden_slice_that_is_read_ends_the_process";
    if std::env::var_os(CHILD).is_some() {
        return run("tiny-gpt-oss-f16", true);
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(output.status.signal(), Some(11), "{output:?}");
}
