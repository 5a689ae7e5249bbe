//! From a context to a log: the observer that records every access.

mod extras;
mod plan;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::Path;

use extras::Extras;
use gguf::ModelFiles;
use llama_rs::{
    AccessReader, GraphRef, Model, NodeObserver, NodeRef, Pending, Phase, Step, TensorKey, Which,
};
use plan::{Planned, Plans, selects};

use crate::ticks::Ticks;
use crate::{
    Access, Flags, LogWriter, ModelFile, Node, OnFull, Op, Progress, Record, Result, Summary,
    Tables, Tensor, WHOLE,
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
#[derive(Debug)]
pub struct Recorder {
    log: LogWriter,
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
        let tables = tables(model.files());
        let by_name: HashMap<&str, u32> = (0..)
            .zip(&tables.tensors)
            .map(|(id, tensor)| (tensor.name.as_str(), id))
            .collect();
        let tensors = model
            .weights()
            .into_iter()
            .filter_map(|weight| Some((weight.key, *by_name.get(weight.name.as_str())?)))
            .collect();
        let log = LogWriter::create(path, &tables, capacity_bytes, on_full)?;
        Ok(Recorder {
            ticks: Ticks::new(log.clock()),
            log,
            tensors,
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

    /// How full the log is; may be asked from any thread while the recorder is in use.
    pub fn progress(&self) -> Progress {
        self.log.progress()
    }

    /// Accesses that are missing because there was no room to name their tensors.
    pub fn n_unknown(&self) -> u64 {
        self.n_unknown
    }

    /// Closes the log.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) from the system; the log can be read all the same.
    pub fn finish(self) -> Result<Summary> {
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
        self.flags = match step.phase() {
            Phase::Prompt => Flags::PROMPT,
            Phase::Decode => Flags::default(),
        };
        (self.n_graphs, self.n_tokens) = (0, 0);
        self.step_begin_ns = self.log.now_ns();
        let n_outputs = (0..step.n_tokens())
            .filter(|&i| step.wants_logits(i))
            .count();
        self.log.push(Record::step_begin(
            self.step_begin_ns,
            self.step,
            step.n_tokens() as u32,
            n_outputs as u32,
            self.flags,
        ));
        for (index, (token, &position)) in step.tokens().zip(step.positions()).enumerate() {
            self.log.push(Record::step_token(
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
        self.log.push(Record::ubatch_begin(
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
    }

    fn step_end(&mut self, _: &Step<'_>, is_complete: bool) {
        if is_complete {
            let duration_ns = self.log.now_ns() - self.step_begin_ns;
            self.log.push(Record::step_end(
                self.step_begin_ns,
                duration_ns,
                self.step,
                self.flags,
            ));
        }
        self.step = self.step.wrapping_add(1);
    }
}

/// What a log knows about a model's files.
pub fn tables(files: &ModelFiles) -> Tables {
    let model_file = |part: &gguf::Gguf| ModelFile {
        path: part.path().display().to_string(),
        size_bytes: part.file_size(),
    };
    let tensor = |(part, info): (usize, &gguf::TensorInfo)| {
        let (layer, component) = layer_and_component(&info.name);
        let n_slices = slices(&info.name, &info.dims);
        Tensor {
            name: info.name.clone(),
            file: part as u32,
            offset_bytes: info.offset,
            size_bytes: info.size_bytes,
            ggml_type: info.ggml_type.0,
            type_name: info.ggml_type.name().unwrap_or("unknown").to_owned(),
            slice_stride_bytes: info.size_bytes / u64::from(n_slices),
            n_slices,
            layer,
            component: component.to_owned(),
        }
    };
    Tables {
        files: files.parts.iter().map(model_file).collect(),
        tensors: files.tensors().map(tensor).collect(),
        ..Tables::default()
    }
}

/// Slices of a tensor: matrices of experts, rows of their biases and of the token embedding.
fn slices(name: &str, dims: &[u64]) -> u32 {
    let n = match dims {
        [_, _, n] if gguf::is_expert_name(name) => *n,
        [_, n] if name == "token_embd.weight" || name.ends_with("_exps.bias") => *n,
        _ => 1,
    };
    u32::try_from(n.max(1)).unwrap_or(1)
}

/// `blk.7.attn_q.weight` is `attn_q` of layer 7; `output_norm.weight` is `output_norm` of no layer (-1).
fn layer_and_component(name: &str) -> (i32, &str) {
    let (layer, rest) = match name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
    {
        Some((layer, rest)) => match layer.parse() {
            Ok(layer) => (layer, rest),
            Err(_) => (-1, name),
        },
        None => (-1, name),
    };
    let component = rest
        .strip_suffix(".weight")
        .or_else(|| rest.strip_suffix(".bias"))
        .unwrap_or(rest);
    (layer, component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_layer_and_component() {
        assert_eq!(layer_and_component("blk.7.attn_q.weight"), (7, "attn_q"));
        assert_eq!(
            layer_and_component("blk.23.ffn_down_exps.bias"),
            (23, "ffn_down_exps")
        );
        assert_eq!(
            layer_and_component("output_norm.weight"),
            (-1, "output_norm")
        );
        assert_eq!(layer_and_component("blk.x.y"), (-1, "blk.x.y"));
        assert_eq!(layer_and_component("rope_freqs"), (-1, "rope_freqs"));
    }

    #[test]
    fn slices_are_experts_and_rows() {
        assert_eq!(slices("blk.0.ffn_up_exps.weight", &[64, 32, 8]), 8);
        assert_eq!(slices("blk.0.ffn_up_exps.bias", &[32, 8]), 8);
        assert_eq!(slices("token_embd.weight", &[64, 1000]), 1000);
        assert_eq!(slices("output.weight", &[64, 1000]), 1);
    }
}
