//! Which bytes of the files are never read.

use serde::{Deserialize, Serialize};
use tracer::WeightClass;

use super::About;
use super::delivered::Delivered;
use super::section::{Cell, Question, Section, Sheet};
use super::tally::{Classes, Coverage, Spread, Tally};
use super::weights::Model;
use crate::text::{count, percent, plural, share, size};

/// Bytes of a tensor, or of all tensors of a kind.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WasteRow {
    /// The tensor, the kind of weight, or `all`.
    pub name: String,
    /// In the file.
    pub container_bytes: u64,
    /// Of these, bytes that were read at least once.
    pub touched_bytes: u64,
    /// Of these, bytes that were never read.
    pub unread_bytes: u64,
    /// Their share, 0 to 1.
    pub unread_share: f64,
    /// All reads together.
    pub consumed_bytes: u64,
    /// Read from the device; `None` if the log does not have that.
    pub delivered_bytes: Option<u64>,
    /// Slices that operations can read by themselves, and those that were read.
    pub n_slices: u64,
    /// Slices that were read.
    pub n_slices_read: u64,
}

impl WasteRow {
    fn add(&mut self, other: &WasteRow) {
        self.container_bytes += other.container_bytes;
        self.touched_bytes += other.touched_bytes;
        self.unread_bytes += other.unread_bytes;
        self.consumed_bytes = self.consumed_bytes.saturating_add(other.consumed_bytes);
        self.delivered_bytes = self
            .delivered_bytes
            .zip(other.delivered_bytes)
            .map(|(a, b)| a + b);
        self.n_slices += other.n_slices;
        self.n_slices_read += other.n_slices_read;
        self.unread_share = share(self.unread_bytes, self.container_bytes);
    }
}

/// Which bytes of the files are never read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waste {
    /// All tensors of the files.
    pub total: WasteRow,
    /// Dense tensors, experts, and the token embedding; only kinds that the model has.
    pub kinds: Vec<WasteRow>,
    /// Each tensor that is read by slices.
    pub sparse_tensors: Vec<WasteRow>,
    /// Size of the files, with metadata and padding.
    pub file_bytes: u64,
    /// Bytes that reading all of the files up front reads and that no operation read.
    pub eager_for_nothing_bytes: u64,
    /// Bytes of experts that one generated token reads; `None` without such tokens or experts.
    pub expert_bytes_per_token: Option<Spread>,
    /// The mean of these as a share of all bytes of experts.
    pub expert_share_per_token: Option<f64>,
    /// What generated tokens have read at least once by a point of the run.
    pub coverage: Vec<Coverage>,
    /// Bytes of all tensors in the files.
    pub container_bytes: Classes,
}

impl Waste {
    pub(crate) fn of(model: &Model, tally: &Tally<'_>, delivered: &Delivered<'_>) -> Waste {
        let mut container_bytes = Classes::default();
        let mut kinds: Vec<(WeightClass, WasteRow)> = Vec::new();
        let empty = |name: &str| WasteRow {
            name: name.to_owned(),
            delivered_bytes: delivered.has_block.then_some(0),
            ..WasteRow::default()
        };
        let mut total = empty("all");
        let mut sparse_tensors = Vec::new();
        for (id, weight) in model.weights.iter().enumerate() {
            if weight.file.is_none() {
                continue;
            }
            let touched_bytes = tally.touched_bytes(id);
            let sums = &delivered.tensors[id];
            let row = WasteRow {
                name: weight.name.clone(),
                container_bytes: weight.size_bytes,
                touched_bytes,
                unread_bytes: weight.size_bytes - touched_bytes,
                unread_share: share(weight.size_bytes - touched_bytes, weight.size_bytes),
                consumed_bytes: tally.tensors[id].consumed_bytes(),
                delivered_bytes: delivered.has_block.then(|| sums.bytes.iter().sum()),
                n_slices: u64::from(weight.n_slices.max(1)),
                n_slices_read: tally.n_slices_read(id),
            };
            container_bytes.add(weight.class, weight.size_bytes);
            total.add(&row);
            match kinds.iter_mut().find(|(class, _)| *class == weight.class) {
                Some((_, sum)) => sum.add(&row),
                None => {
                    let mut sum = empty(weight.class.name());
                    sum.add(&row);
                    kinds.push((weight.class, sum));
                }
            }
            if weight.is_sparse {
                sparse_tensors.push(row);
            }
        }
        kinds.sort_by_key(|(class, _)| *class);
        let file_bytes = model.file_bytes();
        let per_token = tally.per_token[WeightClass::Experts as usize].spread();
        let has_experts = container_bytes.experts > 0 && per_token.n > 0;
        Waste {
            eager_for_nothing_bytes: file_bytes.saturating_sub(total.touched_bytes),
            total,
            kinds: kinds.into_iter().map(|(_, row)| row).collect(),
            sparse_tensors,
            file_bytes,
            expert_share_per_token: has_experts
                .then(|| per_token.mean / container_bytes.experts as f64),
            expert_bytes_per_token: has_experts.then_some(per_token),
            coverage: tally.coverage(),
            container_bytes,
        }
    }

    fn kind(&self, class: WeightClass) -> Option<&WasteRow> {
        self.kinds.iter().find(|row| row.name == class.name())
    }

    /// What was read by the point at or before this many generated tokens.
    pub fn coverage_at(&self, n_tokens: u64) -> Option<&Coverage> {
        self.coverage
            .iter()
            .rev()
            .find(|at| at.n_tokens <= n_tokens)
    }

    /// In words and tables.
    pub fn section(&self, about: &About) -> Section {
        let mut section = Section::new(Question::Waste);
        let total = &self.total;
        if about.n_lost > 0 {
            section.cannot.push(format!(
                "what the {} that are missing read: bytes that are called unread here may have been read by them",
                plural(about.n_lost, "record")
            ));
        }
        let experts = self.kind(WeightClass::Experts);
        if let Some(row) = experts {
            self.experts(row, &mut section);
        }
        section.find(format!(
            "{} of the tensors' {} were never read ({}); {} were read at least once.",
            size(total.unread_bytes),
            size(total.container_bytes),
            percent(total.unread_share),
            size(total.touched_bytes),
        ));
        section.fact("unread_bytes", total.unread_bytes as f64);
        section.fact("unread_share", total.unread_share);
        section.fact("touched_bytes", total.touched_bytes as f64);
        if experts.is_none() {
            section.find(
                "The model has no experts: what it uses, it uses for every token.".to_owned(),
            );
        }
        if let Some(row) = self.kind(WeightClass::Embedding) {
            section.find(format!(
                "Of the token embedding's {} rows, {} were read: {} of {} ({}).",
                count(row.n_slices),
                count(row.n_slices_read),
                size(row.touched_bytes),
                size(row.container_bytes),
                percent(share(row.touched_bytes, row.container_bytes)),
            ));
            section.fact("embedding_rows_read", row.n_slices_read as f64);
            section.fact("embedding_unread_bytes", row.unread_bytes as f64);
        }
        section.find(format!(
            "Reading all of the {} before the first token would read {} for nothing ({}).",
            size(self.file_bytes),
            size(self.eager_for_nothing_bytes),
            percent(share(self.eager_for_nothing_bytes, self.file_bytes)),
        ));
        section.fact(
            "eager_for_nothing_bytes",
            self.eager_for_nothing_bytes as f64,
        );
        match total.delivered_bytes {
            Some(bytes) => section.fact("delivered_bytes", bytes as f64),
            None => section.cannot.push(
                "what the device delivered: the log has no reads of it; record with --block"
                    .to_owned(),
            ),
        }
        section.table("By kind and tensor", self.sheet());
        section
    }

    fn experts(&self, row: &WasteRow, section: &mut Section) {
        section.fact("experts_unread_share", row.unread_share);
        match (self.expert_share_per_token, self.expert_bytes_per_token) {
            (Some(part), Some(bytes)) => {
                let mut text = format!(
                    "A token reads {} of the expert bytes ({} of {})",
                    percent(part),
                    size(bytes.mean as u64),
                    size(row.container_bytes),
                );
                let last = self.coverage.last();
                let hundred = self.coverage_at(100).filter(|at| at.n_tokens == 100);
                let points = [(hundred, "100"), (last, "all")];
                for (at, name) in points.into_iter().filter_map(|(at, name)| Some((at?, name))) {
                    let touched = share(at.touched_bytes.experts, row.container_bytes);
                    section.fact(format!("experts_share_{name}_tokens"), touched);
                    // One number is said once.
                    if name == "all" && at.n_tokens == 100 {
                        continue;
                    }
                    let tokens = plural(at.n_tokens, "token");
                    text += &format!("; {tokens} together read {}", percent(touched));
                }
                section.find(text + ".");
                section.fact("expert_share_per_token", part);
            }
            _ => section.cannot.push(
                "how much a token reads of the experts: no whole step of the log generates one token".to_owned(),
            ),
        }
        section.find(format!(
            "{} of the experts' bytes were never read, prompt included.",
            percent(row.unread_share)
        ));
    }

    fn sheet(&self) -> Sheet {
        let columns = [
            ("weights", "name"),
            ("in the file", "container_bytes"),
            ("read", "touched_bytes"),
            ("never read", "unread_bytes"),
            ("share", "unread_share"),
            ("consumed", "consumed_bytes"),
            ("delivered", "delivered_bytes"),
            ("slices", "n_slices"),
            ("slices read", "n_slices_read"),
        ];
        let rows = std::iter::once(&self.total)
            .chain(&self.kinds)
            .chain(&self.sparse_tensors);
        let cells = |row: &WasteRow| {
            vec![
                Cell::from(&row.name),
                Cell::Bytes(row.container_bytes),
                Cell::Bytes(row.touched_bytes),
                Cell::Bytes(row.unread_bytes),
                Cell::Share(row.unread_share),
                Cell::Bytes(row.consumed_bytes),
                row.delivered_bytes.map_or(Cell::None, Cell::Bytes),
                Cell::Count(row.n_slices),
                Cell::Count(row.n_slices_read),
            ]
        };
        Sheet::new(&columns, rows.map(cells))
    }
}
