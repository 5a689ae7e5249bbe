//! Bytes, time and reads by layer and by component.

use serde::{Deserialize, Serialize};
use tracer::Op;

use super::section::{Cell, Question, Section, Sheet};
use super::tally::Tally;
use super::times::Times;
use super::weights::Model;
use crate::text::{duration, percent, share, size};

/// A layer, or a component such as `ffn_down_exps`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Part {
    /// Number of the layer (`-`: tensors of no layer), or the component's name.
    pub name: String,
    /// Bytes of its tensors.
    pub container_bytes: u64,
    /// Of these, bytes that were read at least once.
    pub touched_bytes: u64,
    /// All reads together.
    pub consumed_bytes: u64,
    /// Of these, reads of decode steps.
    pub decode_bytes: u64,
    /// Reads.
    pub n_reads: u64,
    /// Operations whose first read is of one of its tensors.
    pub n_operations: u64,
    /// Their time; of operations that were computed together, the group's.
    pub time_ns: u64,
    /// Of that, the time in decode steps.
    pub decode_time_ns: u64,
}

/// Operations of one kind on tensors of one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpPart {
    /// The component.
    pub component: String,
    /// ggml's name of the operation.
    pub op: String,
    /// How many.
    pub n: u64,
    /// Their time.
    pub time_ns: u64,
}

/// Bytes, time and reads by layer or by component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Layers in their order, or components by their time.
    pub parts: Vec<Part>,
    /// Of components: by operation, the longest first.
    pub operations: Vec<OpPart>,
}

impl Parts {
    pub(crate) fn layers(model: &Model, tally: &Tally<'_>) -> Parts {
        let mut parts: Vec<Part> = (0..=model.n_layers)
            .map(|layer| Part {
                name: match layer {
                    0 => "-".to_owned(),
                    layer => (layer - 1).to_string(),
                },
                ..Part::default()
            })
            .collect();
        for (id, weight) in model.weights.iter().enumerate() {
            let index = weight.layer.map_or(0, |layer| layer as usize + 1);
            parts[index].add(model, tally, id);
        }
        parts.retain(|part| part.container_bytes > 0);
        Parts {
            parts,
            operations: Vec::new(),
        }
    }

    pub(crate) fn components(model: &Model, tally: &Tally<'_>, times: &Times<'_>) -> Parts {
        let mut parts: Vec<Part> = model
            .components
            .iter()
            .map(|name| Part {
                name: name.clone(),
                ..Part::default()
            })
            .collect();
        for (id, weight) in model.weights.iter().enumerate() {
            parts[weight.component as usize].add(model, tally, id);
        }
        parts.sort_by_key(|part| std::cmp::Reverse((part.time_ns, part.consumed_bytes)));
        let by_component = model.components.iter().zip(&times.ops);
        let mut operations: Vec<OpPart> = by_component
            .flat_map(|(component, ops)| {
                let used = (0..).zip(ops).filter(|(_, time)| time.n > 0);
                used.map(move |(op, time)| OpPart {
                    component: component.clone(),
                    op: Op(op).name().unwrap_or("OTHER").to_owned(),
                    n: time.n,
                    time_ns: time.time_ns,
                })
            })
            .collect();
        operations.sort_by_key(|op| std::cmp::Reverse((op.time_ns, op.n)));
        Parts { parts, operations }
    }

    /// In words and tables, as the answer to [`Question::Layers`] or [`Question::Components`].
    pub fn section(&self, question: Question) -> Section {
        let mut section = Section::new(question);
        let what = match question {
            Question::Layers => "layer",
            _ => "component",
        };
        let time_ns: u64 = self.parts.iter().map(|part| part.time_ns).sum();
        let bytes = self.parts.iter().map(|part| part.consumed_bytes);
        let bytes = bytes.fold(0, u64::saturating_add);
        let slowest = self.parts.iter().max_by_key(|part| part.time_ns);
        let largest = self.parts.iter().max_by_key(|part| part.consumed_bytes);
        let (Some(slowest), Some(largest)) = (slowest, largest) else {
            section
                .cannot
                .push("which layer reads what: the log has no tensors".to_owned());
            return section;
        };
        if bytes == 0 {
            section
                .cannot
                .push("which layer reads what: the log has no accesses".to_owned());
            return section;
        }
        section.find(format!(
            "Of the {what}s, {} took the longest: {} of the {} of operations that read weights ({}).",
            words(what, &slowest.name),
            duration(slowest.time_ns),
            duration(time_ns),
            percent(share(slowest.time_ns, time_ns)),
        ));
        section.find(format!(
            "The most was read of {}: {} of {} ({}).",
            words(what, &largest.name),
            size(largest.consumed_bytes),
            size(bytes),
            percent(share(largest.consumed_bytes, bytes)),
        ));
        if question == Question::Components {
            for part in &self.parts {
                section.fact(format!("{}_time_ns", part.name), part.time_ns as f64);
                section.fact(
                    format!("{}_consumed_bytes", part.name),
                    part.consumed_bytes as f64,
                );
            }
        } else {
            section.fact("weights_time_ns", time_ns as f64);
        }
        section.table(
            match question {
                Question::Layers => "Layers",
                _ => "Components",
            },
            self.sheet(what, time_ns),
        );
        let columns = [
            ("component", "component"),
            ("operation", "op"),
            ("how many", "n"),
            ("time", "time_ns"),
            ("of all", "time_share"),
        ];
        let cells = |op: &OpPart| {
            vec![
                Cell::from(&op.component),
                Cell::from(&op.op),
                Cell::Count(op.n),
                Cell::Ns(op.time_ns),
                Cell::Share(share(op.time_ns, time_ns)),
            ]
        };
        section.table(
            "Operations",
            Sheet::new(&columns, self.operations.iter().map(cells)),
        );
        section
    }

    fn sheet(&self, what: &'static str, time_ns: u64) -> Sheet {
        let columns = [
            (what, what),
            ("in the file", "container_bytes"),
            ("read", "touched_bytes"),
            ("consumed", "consumed_bytes"),
            ("while decoding", "decode_bytes"),
            ("reads", "n_reads"),
            ("operations", "n_operations"),
            ("time", "time_ns"),
            ("of all", "time_share"),
            ("time decoding", "decode_time_ns"),
        ];
        let cells = |part: &Part| {
            vec![
                Cell::from(&part.name),
                Cell::Bytes(part.container_bytes),
                Cell::Bytes(part.touched_bytes),
                Cell::Bytes(part.consumed_bytes),
                Cell::Bytes(part.decode_bytes),
                Cell::Count(part.n_reads),
                Cell::Count(part.n_operations),
                Cell::Ns(part.time_ns),
                Cell::Share(share(part.time_ns, time_ns)),
                Cell::Ns(part.decode_time_ns),
            ]
        };
        Sheet::new(&columns, self.parts.iter().map(cells))
    }
}

/// A part in a sentence.
fn words(what: &str, name: &str) -> String {
    match (what, name) {
        ("layer", "-") => "tensors of no layer".to_owned(),
        ("layer", name) => format!("layer {name}"),
        (_, name) => name.to_owned(),
    }
}

impl Part {
    fn add(&mut self, model: &Model, tally: &Tally<'_>, id: usize) {
        let sums = &tally.tensors[id];
        self.container_bytes += model.weights[id].size_bytes;
        self.touched_bytes += tally.touched_bytes(id);
        self.consumed_bytes = self.consumed_bytes.saturating_add(sums.consumed_bytes());
        self.decode_bytes = self.decode_bytes.saturating_add(sums.bytes[1]);
        self.n_reads += sums.reads();
        self.n_operations += sums.n_nodes[0] + sums.n_nodes[1];
        self.time_ns += sums.time_ns[0] + sums.time_ns[1];
        self.decode_time_ns += sums.time_ns[1];
    }
}
