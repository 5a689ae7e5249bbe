//! From a context to a log: the observer that records every access.

mod extras;
mod plan;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::{Path, PathBuf};

use extras::Extras;
use gguf::ModelFiles;
use llama_rs::{
    AccessReader, GraphRef, Model, NodeObserver, NodeRef, Pending, Phase, Step, TensorKey, Which,
};
use plan::{Planned, Plans, selects};

use crate::kernel::{self, Watch, maps};
use crate::ticks::Ticks;
use crate::{
    Access, Flags, KernelCounts, KernelError, KernelOptions, LogWriter, Node, OnFull, Op, Progress,
    Record, Result, Summary, Tables, WHOLE, tables,
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
/// let files = gguf::ModelFiles::open("model.gguf".as_ref())?;
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
    /// The model's own.
    tensors: HashMap<TensorKey, u32, BuildHasherDefault<KeyHasher>>,
    extras: Extras,
    reader: AccessReader,
    plans: Plans,
    ticks: Ticks,
    node: Current,
    /// Accesses of the nodes that are being computed, if the plan does not have them.
    accesses: Vec<Planned>,
    step: u32,
    step_begin_ns: u64,
    flags: Flags,
    /// Graphs that have begun in this step.
    n_graphs: u16,
    /// Tokens of those graphs.
    n_tokens: u32,
    n_unknown: u64,
}

/// The nodes that are being computed.
#[derive(Clone, Copy, Debug, Default)]
struct Current {
    index: usize,
    begin_ns: u64,
    is_planned: bool,
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
        let log = LogWriter::create(path, &tables, capacity_bytes, on_full)?;
        Ok(Recorder {
            ticks: Ticks::new(log.clock()),
            log,
            tables,
            paths: kernel::paths(files),
            watch: None,
            tensors: HashMap::default(),
            extras: Extras::default(),
            reader: AccessReader::new(),
            plans: Plans::default(),
            node: Current::default(),
            accesses: Vec::new(),
            step: 0,
            step_begin_ns: 0,
            flags: Flags::default(),
            n_graphs: 0,
            n_tokens: 0,
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

    /// Lists what the nodes read, and keeps it if it is the same each time.
    fn read(&mut self, pending: &Pending<'_>) {
        let Recorder {
            log,
            tensors,
            extras,
            reader,
            accesses,
            plans,
            n_unknown,
            ..
        } = self;
        accesses.clear();
        let nodes = pending.nodes();
        let n_unknown_before = *n_unknown;
        reader.read(pending, |access| {
            let known = match tensors.get(&access.weight.key()) {
                Some(&tensor) => {
                    let slice = match access.which {
                        Which::Row(slice) | Which::Matrix(slice) => slice,
                        Which::Whole => WHOLE,
                    };
                    Some((tensor, slice))
                }
                None => extras.find(log, &access),
            };
            let Some((tensor, slice)) = known else {
                *n_unknown += 1;
                return;
            };
            let place = nodes
                .iter()
                .position(|node| node.key() == access.node.key());
            accesses.push(Planned {
                access: Access {
                    tensor,
                    slice,
                    n_used: access.n_used,
                },
                place: place.unwrap_or(0) as u16,
                op: Op::from_ggml_name(access.node.op()),
            });
        });
        let is_known = *n_unknown == n_unknown_before;
        if is_known && !nodes.iter().any(|&node| selects(node)) {
            plans.learn(pending.index(), nodes.len(), accesses);
        }
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
        (self.n_graphs, self.n_tokens) = (0, 0);
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

    fn graph_begin(&mut self, graph: &GraphRef<'_>) {
        let n_tokens = self.plans.begin(graph);
        let now_ns = self.log.now_ns();
        self.log.push_mark(Record::ubatch_begin(
            now_ns,
            self.step,
            self.n_graphs,
            self.n_tokens,
            n_tokens,
            self.flags,
        ));
        self.n_graphs = self.n_graphs.saturating_add(1);
        self.n_tokens = self.n_tokens.saturating_add(n_tokens);
    }

    fn is_wanted(&mut self, node: NodeRef<'_>) -> bool {
        node.sources().any(|(_, source)| source.weight().is_some())
    }

    fn before(&mut self, pending: &Pending<'_>) {
        let index = pending.index();
        let is_planned = self.plans.get(index, pending.nodes().len()).is_some();
        if !is_planned {
            self.read(pending);
        }
        self.node = Current {
            index,
            begin_ns: self.ticks.now_ns(),
            is_planned,
        };
    }

    fn after(&mut self, nodes: &[NodeRef<'_>]) {
        let Current {
            index,
            begin_ns,
            is_planned,
        } = self.node;
        let duration_ns = self.ticks.now_ns() - begin_ns;
        let accesses = if is_planned {
            self.plans.get(index, nodes.len()).unwrap_or_default()
        } else {
            &self.accesses
        };
        let fused = if nodes.len() > 1 {
            Flags::FUSED
        } else {
            Flags::default()
        };
        for of_node in accesses.chunk_by(|a, b| a.place == b.place) {
            let node = Node {
                time_ns: begin_ns,
                duration_ns,
                step: self.step,
                ubatch: self.n_graphs.saturating_sub(1),
                node: index as u32 + u32::from(of_node[0].place),
                op: of_node[0].op,
                flags: Flags(self.flags.0 | fused.0),
            };
            self.log
                .push_node(&node, of_node.iter().map(|planned| planned.access));
        }
        // What happened during this node may yet concern the next one, which other threads have begun.
        if let Some(watch) = &mut self.watch
            && watch.is_long()
        {
            watch.collect_until(&mut self.log, self.node.begin_ns);
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
