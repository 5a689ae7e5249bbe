//! From a context to a log: the observer that records every access.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::{Path, PathBuf};

use gguf::ModelFiles;
use llama_rs::{
    AccessReader, Model, NodeObserver, NodeRef, Pending, Phase, Step, TensorKey, WeightRef, Which,
};

use crate::kernel::{self, Watch, maps};
use crate::model::layer_and_component;
use crate::{
    Access, Extra, ExtraKind, Flags, KernelCounts, KernelError, KernelOptions, LogWriter, Node,
    OnFull, Op, Progress, Record, Result, Summary, Tables, WHOLE, tables,
};

/// Records for which pages are made ready between two decodes.
const PREPARE_RECORDS: u64 = 16 << 10;

/// Records every access of a context to a log.
///
/// A view that is neither a row nor a matrix of its weight is recorded as [`WHOLE`].
///
/// ```no_run
/// # fn run(model: &llama_rs::Model, mut context: llama_rs::Context<'_>, batch: &llama_rs::Batch)
/// #     -> Result<(), Box<dyn std::error::Error>> {
/// use tracer::{CAPACITY_BYTES_DEFAULT, OnFull, Recorder};
///
/// context.set_observer(Recorder::create("run.ftrace", model, CAPACITY_BYTES_DEFAULT, OnFull::Wrap)?)?;
/// context.decode(batch)?;
/// let recorder: Recorder = context.take_observer().expect("it was set above");
/// println!("{} records", recorder.finish()?.n_written);
/// # Ok(())
/// # }
/// ```
///
/// To record what the kernel does while the model is loaded, create it [before](Recorder::open):
///
/// ```no_run
/// # fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use llama_rs::{Backend, Context, ContextParams, Model, ModelParams};
/// use tracer::{CAPACITY_BYTES_DEFAULT, KernelOptions, OnFull, Recorder};
///
/// let files = gguf::ModelFiles::open("model.gguf")?;
/// let mut recorder = Recorder::open("run.ftrace", &files, CAPACITY_BYTES_DEFAULT, OnFull::Wrap)?;
/// recorder.watch_kernel(&KernelOptions { faults: true, ..KernelOptions::default() })?;
/// let model = Model::load(&Backend::init(), "model.gguf", &ModelParams::default())?;
/// recorder.model_loaded(&model);
/// let mut context = Context::new(&model, &ContextParams::default())?;
/// context.set_observer(recorder)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Recorder {
    log: LogWriter,
    tables: Tables,
    paths: Vec<PathBuf>,
    watch: Option<Watch>,
    tensors: HashMap<TensorKey, u32, BuildHasherDefault<KeyHasher>>,
    reader: AccessReader,
    /// Accesses of the nodes that are being computed, with the number of their node among them.
    accesses: Vec<(usize, Access)>,
    /// When those nodes began.
    node_begin_ns: u64,
    step: u32,
    step_begin_ns: u64,
    flags: Flags,
    graph: Graph,
    /// By ggml's number of an operation.
    ops: Vec<Option<Op>>,
    n_unknown: u64,
}

/// Where a step's computation is.
#[derive(Clone, Copy, Debug, Default)]
struct Graph {
    /// Graphs that have begun in this step.
    n_begun: u16,
    /// The first node of the graph has not come yet.
    is_new: bool,
    /// Tokens of the graphs before this one.
    first_token: u32,
    n_tokens: u32,
    /// Nodes that have been computed.
    n_nodes: u32,
}

/// Addresses of tensors differ in their middle bits; a multiplication spreads them.
#[derive(Debug, Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(26);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Recorder {
    /// A log of at most `capacity_bytes` at `path` for contexts of `model`.
    ///
    /// # Errors
    ///
    /// Those of [`LogWriter::create`].
    pub fn create(
        path: impl AsRef<Path>,
        model: &Model,
        capacity_bytes: u64,
        on_full: OnFull,
    ) -> Result<Recorder> {
        let mut recorder = Recorder::open(path, model.files(), capacity_bytes, on_full)?;
        recorder.model_loaded(model);
        Ok(recorder)
    }

    /// A log for a model that is yet to be loaded from these files. [`Recorder::model_loaded`] must follow before the first
    /// decode.
    ///
    /// # Errors
    ///
    /// Those of [`LogWriter::create`].
    pub fn open(
        path: impl AsRef<Path>,
        files: &ModelFiles,
        capacity_bytes: u64,
        on_full: OnFull,
    ) -> Result<Recorder> {
        let tables = tables(files);
        Ok(Recorder {
            log: LogWriter::create(path, &tables, capacity_bytes, on_full)?,
            tables,
            paths: kernel::paths(files),
            watch: None,
            tensors: HashMap::default(),
            reader: AccessReader::new(),
            accesses: Vec::new(),
            node_begin_ns: 0,
            step: 0,
            step_begin_ns: 0,
            flags: Flags::default(),
            graph: Graph::default(),
            ops: Vec::new(),
            n_unknown: 0,
        })
    }

    /// Records what the kernel does, from now on until [`Recorder::finish`]. Call it before the model is loaded, on the
    /// thread that loads it: page faults are seen in this thread and in those that it starts.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if the kernel does not permit it, with the command that helps.
    pub fn watch_kernel(
        &mut self,
        options: &KernelOptions,
    ) -> std::result::Result<(), KernelError> {
        let clock = self.log.clock();
        let watch = Watch::start(options, &self.tables, &self.paths, clock)?;
        self.watch.insert(watch).snapshot(&mut self.log);
        Ok(())
    }

    /// Moves what the kernel has done so far to the log. While a model is being loaded nobody else does, so a progress
    /// callback should.
    pub fn collect(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.collect(&mut self.log);
        }
    }

    /// The model is loaded, from the files that the log was created for: its tensors get their names, and the addresses of
    /// the mapped files go to the log.
    pub fn model_loaded(&mut self, model: &Model) {
        let by_name: HashMap<&str, u32> = (0..)
            .zip(&self.tables.tensors)
            .map(|(id, tensor)| (tensor.name.as_str(), id))
            .collect();
        self.tensors = model
            .weights()
            .into_iter()
            .filter_map(|weight| Some((weight.key, *by_name.get(weight.name.as_str())?)))
            .collect();
        // Addresses are for people who compare logs with other tools; a log without them is complete.
        let identities = self.paths.iter().map(|path| maps::FileIdentity::of(path));
        let identities = identities.collect::<std::io::Result<Vec<_>>>();
        let mappings = identities.and_then(|files| maps::mappings(&files));
        for mapping in mappings.unwrap_or_default().iter().rev() {
            self.log.set_address(mapping.file, mapping.base());
        }
        if let Some(watch) = &mut self.watch {
            watch.collect(&mut self.log);
            watch.snapshot(&mut self.log);
        }
    }

    /// How full the log is; may be asked from any thread while the recorder is in use.
    pub fn progress(&self) -> Progress {
        self.log.progress()
    }

    /// Accesses that are missing because there was no room to name their tensors.
    pub fn n_unknown(&self) -> u64 {
        self.n_unknown
    }

    /// Ends watching the kernel, and says what it came to; `None` if it was not watched.
    pub fn end_watch(&mut self) -> Option<KernelCounts> {
        let watch = self.watch.take()?;
        Some(watch.stop(&mut self.log))
    }

    /// Closes the log.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) from the system; the log can be read all the same.
    pub fn finish(mut self) -> Result<Summary> {
        self.end_watch();
        self.log.finish()
    }

    /// The operation of a node; looked up by its name once.
    fn op(ops: &mut Vec<Option<Op>>, node: NodeRef<'_>) -> Op {
        let id = node.op_id() as usize;
        if id >= ops.len() {
            ops.resize(id + 1, None);
        }
        *ops[id].get_or_insert_with(|| Op::from_ggml_name(node.op()))
    }

    /// Names a tensor that is not in the files.
    fn add_extra(log: &mut LogWriter, weight: WeightRef<'_>) -> Option<u32> {
        let size_bytes = weight.slice_bytes(llama_rs::Dim::Whole) as u64;
        let ggml_type = weight.ggml_type();
        let extra = Extra {
            kind: extra_kind(weight.name()),
            name: weight.name().to_owned(),
            ggml_type: ggml_type.0,
            type_name: ggml_type.name().unwrap_or("unknown").to_owned(),
            size_bytes,
            slice_stride_bytes: size_bytes,
            n_slices: 1,
            layer: layer_and_component(weight.name()).0,
        };
        log.add_extra(&extra).ok()
    }
}

impl NodeObserver for Recorder {
    fn step_begin(&mut self, step: &Step<'_>) {
        self.log.prepare(PREPARE_RECORDS);
        self.collect();
        self.flags = match step.phase() {
            Phase::Prompt => Flags::PROMPT,
            Phase::Decode => Flags::default(),
        };
        self.graph = Graph::default();
        self.step_begin_ns = self.log.now_ns();
        if let Some(watch) = &mut self.watch {
            watch.begin_step(self.step_begin_ns, self.step, self.flags);
        }
        let n_outputs = (0..step.n_tokens())
            .filter(|&i| step.wants_logits(i))
            .count();
        self.log.push_mark(Record::step_begin(
            self.step_begin_ns,
            self.step,
            step.n_tokens() as u32,
            n_outputs as u32,
            self.flags,
        ));
        for (index, (token, &position)) in step.tokens().zip(step.positions()).enumerate() {
            self.log.push_mark(Record::step_token(
                self.step_begin_ns,
                self.step,
                index as u32,
                token.0,
                position,
                step.sequences(index).next().unwrap_or(0),
                self.flags,
            ));
        }
    }

    fn graph_begin(&mut self, _: usize) {
        self.graph = Graph {
            n_begun: self.graph.n_begun.saturating_add(1),
            is_new: true,
            first_token: self.graph.first_token + self.graph.n_tokens,
            n_tokens: 0,
            n_nodes: 0,
        };
    }

    fn before(&mut self, pending: &Pending<'_>) {
        let Recorder {
            log,
            tensors,
            reader,
            accesses,
            n_unknown,
            ..
        } = self;
        accesses.clear();
        let nodes = pending.nodes();
        reader.read(pending, |access| {
            let tensor = tensors.get(&access.weight.key()).copied().or_else(|| {
                let id = Recorder::add_extra(log, access.weight)?;
                tensors.insert(access.weight.key(), id);
                Some(id)
            });
            let Some(tensor) = tensor else {
                *n_unknown += 1;
                return;
            };
            let slice = match access.which {
                Which::Row(slice) | Which::Matrix(slice) => slice,
                Which::Whole => WHOLE,
            };
            let node = nodes
                .iter()
                .position(|node| node.key() == access.node.key());
            accesses.push((
                node.unwrap_or(0),
                Access {
                    tensor,
                    slice,
                    n_used: access.n_used,
                },
            ));
        });
        if self.graph.is_new {
            self.graph.is_new = false;
            // The first node of a ubatch looks its tokens up.
            if nodes[0].op() == "GET_ROWS" && !self.accesses.is_empty() {
                self.graph.n_tokens = u32::try_from(nodes[0].n_tokens()).unwrap_or(u32::MAX);
            }
            let now_ns = self.log.now_ns();
            self.log.push_mark(Record::ubatch_begin(
                now_ns,
                self.step,
                self.graph.n_begun - 1,
                self.graph.first_token,
                self.graph.n_tokens,
                self.flags,
            ));
        }
        if !self.accesses.is_empty() {
            self.node_begin_ns = self.log.now_ns();
        }
    }

    fn after(&mut self, nodes: &[NodeRef<'_>]) {
        let first_node = self.graph.n_nodes;
        self.graph.n_nodes += nodes.len() as u32;
        if self.accesses.is_empty() {
            return;
        }
        let duration_ns = self.log.now_ns() - self.node_begin_ns;
        let fused = if nodes.len() > 1 {
            Flags::FUSED
        } else {
            Flags::default()
        };
        for of_node in self.accesses.chunk_by(|a, b| a.0 == b.0) {
            let index = of_node[0].0;
            let node = Node {
                time_ns: self.node_begin_ns,
                duration_ns,
                step: self.step,
                ubatch: self.graph.n_begun.saturating_sub(1),
                node: first_node + index as u32,
                op: nodes
                    .get(index)
                    .map_or(Op::OTHER, |&node| Recorder::op(&mut self.ops, node)),
                flags: Flags(self.flags.0 | fused.0),
            };
            self.log
                .push_node(&node, of_node.iter().map(|(_, access)| *access));
        }
        self.accesses.clear();
        // What happened during this node may yet concern the next one, which other threads have begun.
        if let Some(watch) = &mut self.watch
            && watch.is_long()
        {
            watch.collect_until(&mut self.log, self.node_begin_ns);
        }
    }

    fn step_end(&mut self, _: &Step<'_>, is_complete: bool) {
        let duration_ns = self.log.now_ns() - self.step_begin_ns;
        self.collect();
        if is_complete {
            self.log.push_mark(Record::step_end(
                self.step_begin_ns,
                duration_ns,
                self.step,
                self.flags,
            ));
        }
        if let Some(watch) = &mut self.watch {
            watch.snapshot_after(&mut self.log, self.step);
        }
        self.step = self.step.wrapping_add(1);
    }
}

/// Told by the names that llama.cpp gives: `….lora_a`, `….lora_b`; `attn_rot…` for the rotation of a quantized KV cache.
fn extra_kind(name: &str) -> ExtraKind {
    if name.ends_with(".lora_a") || name.ends_with(".lora_b") {
        ExtraKind::LORA
    } else if name.contains("_rot") {
        ExtraKind::KV_ROTATION
    } else {
        ExtraKind::OTHER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_where_an_extra_tensor_comes_from() {
        assert_eq!(extra_kind("blk.0.attn_q.weight.lora_a"), ExtraKind::LORA);
        assert_eq!(extra_kind("attn_inp_k_rot"), ExtraKind::KV_ROTATION);
        assert_eq!(extra_kind("something"), ExtraKind::OTHER);
    }
}
