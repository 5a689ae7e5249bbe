//! What a budget is spent on, and the plan as a table.

use std::fmt;

use serde::Serialize;

use super::{Demand, MemoryPlan, Pages};
use crate::slices::Slices;

/// One line of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What for.
    pub kind: PartKind,
    /// How much.
    pub size_bytes: u64,
}

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// The KV cache.
    KvCache,
    /// Compute buffers.
    Compute,
    /// Buffers of logits and embeddings.
    Outputs,
    /// The process: program, libraries, vocabulary and other parts of the heap.
    Process,
    /// Weights that are read in full for every token.
    DenseWeights,
    /// Rows of the embedding that a ubatch uses.
    EmbeddingRows,
    /// Buffers of the I/O engine.
    Staging,
    /// Slots for experts.
    Slots,
    /// Page tables, other memory of the kernel, the heap.
    Margin,
}

impl fmt::Display for PartKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            PartKind::KvCache => "KV cache",
            PartKind::Compute => "compute buffers",
            PartKind::Outputs => "logits",
            PartKind::Process => "process",
            PartKind::DenseWeights => "dense weights",
            PartKind::EmbeddingRows => "embedding rows",
            PartKind::Staging => "read buffers",
            PartKind::Slots => "slots for experts",
            PartKind::Margin => "margin (page tables, kernel, heap)",
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:<34} {:>12}", self.kind, size(self.size_bytes))
    }
}

/// In MiB, as the plan's table has it.
pub(super) fn size(size_bytes: u64) -> String {
    format!("{:.1} MiB", size_bytes as f64 / (1 << 20) as f64)
}

pub(super) fn sum(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.size_bytes).sum()
}

/// The parts that do not depend on the budget.
pub(super) fn fixed(slices: &Slices, demand: &Demand, pages: Pages) -> Vec<Part> {
    let rows_bytes = slices.embedding().map_or(0, |embedding| {
        let n_rows = embedding.n_rows.min(demand.n_ubatch.into());
        n_rows * embedding.row_slot_bytes(pages.page_bytes)
    });
    [
        (PartKind::KvCache, demand.kv_bytes),
        (PartKind::Compute, demand.compute_bytes),
        (PartKind::Outputs, demand.outputs_bytes),
        (PartKind::Process, demand.process_bytes),
        (PartKind::EmbeddingRows, rows_bytes),
        (PartKind::Staging, demand.staging_bytes),
    ]
    .into_iter()
    .filter(|(_, size_bytes)| *size_bytes > 0)
    .map(|(kind, size_bytes)| Part { kind, size_bytes })
    .collect()
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "memory plan for a budget of {}:",
            size(self.budget_bytes)
        )?;
        for part in &self.parts {
            writeln!(formatter, "  {part}")?;
        }
        writeln!(
            formatter,
            "  {:<34} {:>12}",
            "unused",
            size(self.unused_bytes())
        )?;
        for class in &self.slots {
            writeln!(
                formatter,
                "  slots of {}: {} for {} slices ({:.1} %)",
                size(class.slot_bytes),
                class.n_slots,
                class.n_slices,
                100.0 * f64::from(class.n_slots) / f64::from(class.n_slices.max(1))
            )?;
        }
        match &self.dense_stream {
            Some(stream) => writeln!(formatter, "  {stream}"),
            None => Ok(()),
        }
    }
}
