//! What of a model lives where in a budget: decided once, while loading.

mod dense;
mod parts;

use std::fmt;

use serde::Serialize;

use crate::pool::PoolSlice;
use crate::slices::{Slices, SparseTensor};

pub use dense::DenseStream;
pub use parts::{Part, PartKind};

/// Sizes of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// Of ordinary pages, which is also what direct reads are aligned to.
    pub page_bytes: u64,
    /// Of huge pages.
    pub huge_page_bytes: u64,
}

impl Default for Pages {
    /// Those of x86-64: 4 KiB and 2 MiB.
    fn default() -> Pages {
        Pages {
            page_bytes: 4 << 10,
            huge_page_bytes: 2 << 20,
        }
    }
}

/// What the process needs besides weights. llama.cpp knows the first three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Demand {
    /// The KV cache.
    pub kv_bytes: u64,
    /// Compute buffers.
    pub compute_bytes: u64,
    /// Buffers of logits and embeddings.
    pub outputs_bytes: u64,
    /// What the process has in memory besides: program, libraries, and what loading a model leaves in the heap, such as the
    /// vocabulary.
    pub process_bytes: u64,
    /// Aligned buffers of the I/O engine, for reads that cannot land in place.
    pub staging_bytes: u64,
    /// Tokens of the largest ubatch.
    pub n_ubatch: u32,
}

/// Slots of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SlotClass {
    /// Bytes of a slot, whole pages: room for each of its slices rounded out to the pages of its file.
    pub slot_bytes: u64,
    /// Slices of this class in the model.
    pub n_slices: u32,
    /// Their bytes.
    pub slices_bytes: u64,
    /// Slots without which no step can be computed.
    pub n_slots_min: u32,
    /// Slots.
    pub n_slots: u32,
}

/// Slices may be this much smaller than their slots, in percent of the slot; smaller ones get a class of their own.
const SLOT_WASTE_MAX_PERCENT: u64 = 5;

/// The kernel's part of the margin that does not depend on the budget: stacks, descriptors, the ring, registered buffers, and
/// what each processor has charged in advance.
const KERNEL_BYTES: u64 = 16 << 20;

/// The part of what comes to the heap when the plan is made: graphs, a work buffer, sampling, what a program does besides.
const HEAP_BYTES: u64 = 16 << 20;

/// Tables of the pager for each slice: where it is, what it is worth.
const TABLES_BYTES_PER_SLICE: u64 = 512;

/// Page tables take 8 bytes for each page, and one table is kept in reserve for each huge page: 1/512 in both cases. Registered
/// buffers need a little more; together this part of all memory.
const PAGE_TABLE_SHARE: u64 = 384;

/// What was decided.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryPlan {
    /// The budget.
    pub budget_bytes: u64,
    /// The smallest budget that would do.
    pub budget_min_bytes: u64,
    /// What the budget is spent on. The sum is at most the budget.
    pub parts: Vec<Part>,
    /// Slots for experts, the largest first; none for a model without experts.
    pub slots: Vec<SlotClass>,
    /// Rows of the embedding that fit in its buffer at once; 0 if the embedding is dense.
    pub n_embedding_rows: u64,
    /// How dense weights that do not fit are streamed; `None` if all of them stay in memory.
    pub dense_stream: Option<DenseStream>,
    /// All slices that are read on demand, in bytes.
    pub sparse_bytes: u64,
    /// Sizes of pages that the plan is made for.
    pub pages: Pages,
}

/// The budget is too small for the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PlanError {
    /// The budget.
    pub budget_bytes: u64,
    /// The smallest one that would do.
    pub budget_min_bytes: u64,
    /// What it would be spent on.
    pub parts: Vec<Part>,
}

impl fmt::Display for PlanError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "a budget of {} is too small; the smallest that works here is {} (--budget {}MiB):",
            parts::size(self.budget_bytes),
            parts::size(self.budget_min_bytes),
            self.budget_min_bytes.div_ceil(1 << 20),
        )?;
        for part in &self.parts {
            write!(formatter, "\n  {part}")?;
        }
        write!(
            formatter,
            "\na shorter context (--ctx-size) and smaller ubatches need less"
        )
    }
}

impl PlanError {
    /// Names a budget that is at least as large as this.
    pub(crate) fn raise(&mut self, size_bytes: u64) {
        let more_bytes = size_bytes.saturating_sub(self.budget_min_bytes);
        self.budget_min_bytes += more_bytes;
        let mut parts = self.parts.iter_mut();
        if let Some(margin) = parts.find(|part| part.kind == PartKind::Margin) {
            margin.size_bytes += more_bytes;
        }
    }
}

impl MemoryPlan {
    /// Divides a budget.
    ///
    /// # Errors
    ///
    /// [`PlanError`] if it is too small.
    pub fn new(
        slices: &Slices,
        budget_bytes: u64,
        demand: &Demand,
        pages: Pages,
    ) -> Result<MemoryPlan, PlanError> {
        let mut parts = parts::fixed(slices, demand, pages);
        let mut slots = classes(slices, demand.n_ubatch, pages);
        let dense_min = match slices.is_dense_on_demand() {
            true => dense::smallest(slices, pages),
            false => dense::all_bytes(slices, pages),
        };
        let slots_min = slot_region_bytes(&slots, |class| class.n_slots_min, pages);
        let margin = Margin::of(slices);
        let part = |kind, size_bytes| Part { kind, size_bytes };
        let weights = |dense_bytes, slots_bytes| {
            let both = [
                part(PartKind::DenseWeights, dense_bytes),
                part(PartKind::Slots, slots_bytes),
            ];
            both.into_iter().filter(|part| part.size_bytes > 0)
        };
        let fixed_bytes = parts::sum(&parts);
        let budget_min_bytes = margin.added_to(fixed_bytes + dense_min + slots_min);
        if budget_bytes < budget_min_bytes {
            parts.extend(weights(dense_min, slots_min));
            let rest = budget_min_bytes - parts::sum(&parts);
            parts.push(part(PartKind::Margin, rest));
            return Err(PlanError {
                budget_bytes,
                budget_min_bytes,
                parts,
            });
        }
        let rest_bytes = margin.taken_from(budget_bytes) - fixed_bytes;
        // Every token reads all dense weights, and few of the experts.
        let dense_stream = match slices.is_dense_on_demand() {
            true => DenseStream::new(slices, rest_bytes - slots_min, pages),
            false => None,
        };
        let dense_bytes = match &dense_stream {
            Some(stream) => stream.size_bytes(),
            None if slices.is_dense_on_demand() => dense::pinned_bytes(slices, pages),
            None => dense_min,
        };
        fill(&mut slots, rest_bytes - dense_bytes, pages);
        let slots_bytes = slot_region_bytes(&slots, |class| class.n_slots, pages);
        parts.extend(weights(dense_bytes, slots_bytes));
        parts.push(part(PartKind::Margin, margin.beside(parts::sum(&parts))));
        let rows = slices.embedding();
        Ok(MemoryPlan {
            budget_bytes,
            budget_min_bytes,
            parts,
            slots,
            n_embedding_rows: rows.map_or(0, |rows| rows.n_rows.min(demand.n_ubatch.into())),
            dense_stream,
            sparse_bytes: slices.sparse_bytes(),
            pages,
        })
    }

    /// The smallest budget that would do.
    pub fn budget_min_bytes(slices: &Slices, demand: &Demand, pages: Pages) -> u64 {
        match MemoryPlan::new(slices, u64::MAX, demand, pages) {
            Ok(plan) => plan.budget_min_bytes,
            Err(error) => error.budget_min_bytes,
        }
    }

    /// Bytes that the plan spends on a part; 0 if there is no such part.
    pub fn part_bytes(&self, kind: PartKind) -> u64 {
        let parts = self.parts.iter().filter(|part| part.kind == kind);
        parts.map(|part| part.size_bytes).sum()
    }

    /// What the plan leaves of the budget.
    pub fn unused_bytes(&self) -> u64 {
        self.budget_bytes - parts::sum(&self.parts)
    }

    /// What the pool has to know of each slice, by its number. All slices of a tensor are of one class.
    ///
    /// # Panics
    ///
    /// If the plan was made for another model.
    pub fn pool_slices(&self, slices: &Slices) -> Vec<PoolSlice> {
        let mut table = Vec::with_capacity(slices.len());
        for stack in slices.sparse_tensors() {
            let class = class_of(&self.slots, largest_span(slices, stack, self.pages));
            table.extend((0..stack.n_slices).map(|expert| PoolSlice {
                layer: stack.layer,
                expert,
                class: class as u32,
                size_bytes: stack.slice_bytes,
            }));
        }
        table
    }

    /// The number of slots of each class, as the pool wants it.
    pub fn class_slots(&self) -> Vec<u32> {
        self.slots.iter().map(|class| class.n_slots).collect()
    }
}

/// What is kept free beside everything that can be counted.
#[derive(Clone, Copy)]
struct Margin {
    /// The part that does not grow with the budget.
    fixed_bytes: u64,
}

impl Margin {
    fn of(slices: &Slices) -> Margin {
        Margin {
            fixed_bytes: KERNEL_BYTES + HEAP_BYTES + TABLES_BYTES_PER_SLICE * slices.len() as u64,
        }
    }

    /// The margin of so much memory.
    fn beside(self, size_bytes: u64) -> u64 {
        self.fixed_bytes + size_bytes.div_ceil(PAGE_TABLE_SHARE)
    }

    fn added_to(self, size_bytes: u64) -> u64 {
        size_bytes + self.beside(size_bytes)
    }

    /// The most that can be spent of a budget so that it and its margin fit.
    fn taken_from(self, budget_bytes: u64) -> u64 {
        let rest = budget_bytes.saturating_sub(self.fixed_bytes);
        // x + ceil(x / n) <= rest  <=>  x <= floor(rest * n / (n + 1)).
        (u128::from(rest) * u128::from(PAGE_TABLE_SHARE) / u128::from(PAGE_TABLE_SHARE + 1)) as u64
    }
}

/// The most bytes of whole pages that a slice of the tensor touches.
fn largest_span(slices: &Slices, stack: &SparseTensor, pages: Pages) -> u64 {
    let span = |id| {
        let range = slices.slice(id).pages(pages.page_bytes);
        range.end - range.start
    };
    stack.slices().map(span).max().unwrap_or(0)
}

/// The smallest slots that hold so many bytes.
fn class_of(classes: &[SlotClass], span_bytes: u64) -> usize {
    let fits = |class: &&SlotClass| class.slot_bytes >= span_bytes;
    classes.iter().take_while(fits).count() - 1
}

/// The sizes of slots, without their number.
fn classes(slices: &Slices, n_ubatch: u32, pages: Pages) -> Vec<SlotClass> {
    let mut spans: Vec<u64> = slices
        .sparse_tensors()
        .iter()
        .map(|stack| largest_span(slices, stack, pages))
        .collect();
    spans.sort_unstable_by(|left, right| right.cmp(left));
    let mut classes: Vec<SlotClass> = Vec::new();
    for span in spans {
        let fits = classes
            .last()
            .is_some_and(|class| span * 100 >= class.slot_bytes * (100 - SLOT_WASTE_MAX_PERCENT));
        if !fits {
            classes.push(SlotClass {
                slot_bytes: span,
                n_slices: 0,
                slices_bytes: 0,
                n_slots_min: 0,
                n_slots: 0,
            });
        }
    }
    // What one layer needs at once: all tensors of a token's experts, and all experts of one tensor that a ubatch uses.
    let mut layer = None;
    let mut needed = vec![0; classes.len()];
    for stack in slices.sparse_tensors() {
        if layer.replace(stack.layer) != Some(stack.layer) {
            needed.fill(0);
        }
        let index = class_of(&classes, largest_span(slices, stack, pages));
        let class = &mut classes[index];
        class.n_slices += stack.n_slices;
        class.slices_bytes += stack.slice_bytes * u64::from(stack.n_slices);
        let used = slices.n_experts_used();
        needed[index] += used.min(stack.n_slices);
        let in_ubatch = used.saturating_mul(n_ubatch.max(1)).min(stack.n_slices);
        class.n_slots_min = class.n_slots_min.max(needed[index]).max(in_ubatch);
    }
    classes
}

/// Bytes of the regions of all classes: each begins and ends on a huge page.
fn slot_region_bytes(classes: &[SlotClass], n: impl Fn(&SlotClass) -> u32, pages: Pages) -> u64 {
    let region = |class: &SlotClass| u64::from(n(class)) * class.slot_bytes;
    let round = |bytes: u64| bytes.next_multiple_of(pages.huge_page_bytes);
    classes.iter().map(|class| round(region(class))).sum()
}

/// Gives each class the same share of its slices, and at least what it needs. Each expert uses all of its tensors equally
/// often, so equal shares have equal hit rates.
fn fill(classes: &mut [SlotClass], rest_bytes: u64, pages: Pages) {
    let slots_at = |class: &SlotClass, share: u64| {
        let n_slots = ((u128::from(class.n_slices) * u128::from(share)) >> 32) as u32;
        n_slots.clamp(class.n_slots_min, class.n_slices)
    };
    // The largest share, in units of 2^-32, whose regions fit.
    let (mut fits, mut too_large) = (0, (1 << 32) + 1);
    while too_large - fits > 1 {
        let share = fits + (too_large - fits) / 2;
        match slot_region_bytes(classes, |class| slots_at(class, share), pages) <= rest_bytes {
            true => fits = share,
            false => too_large = share,
        }
    }
    for class in classes {
        class.n_slots = slots_at(class, fits);
    }
}
