//! Results of simulations as text.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    Cache, Capacity, Counts, PolicyName, Sharing, SimulateError, Usage, Workload, simulate,
};

/// The size of a cache as the user gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// Slices per layer; a shared cache has this many times the number of layers.
    Slots(u64),
    /// Share of all slices, in per cent.
    Percent(f64),
    /// Bytes of a shared cache.
    Bytes(u64),
}

impl Size {
    fn cache(self, sharing: Sharing, workload: &Workload) -> Cache {
        match (self, sharing) {
            (Size::Slots(slots), Sharing::PerLayer) => Cache::per_layer(slots),
            (Size::Slots(slots), Sharing::Global) => Cache::global(Capacity::SlotsPerLayer(slots)),
            (Size::Percent(percent), Sharing::PerLayer) => {
                Cache::per_layer(share(workload.n_slices_per_layer(), percent))
            }
            (Size::Percent(percent), Sharing::Global) => {
                Cache::global(Capacity::Slots(share(workload.slices().len(), percent)))
            }
            (Size::Bytes(size_bytes), _) => Cache::global(Capacity::Bytes(size_bytes)),
        }
    }

    /// Share of all slices (for bytes: of their bytes) that the cache holds, in per cent.
    fn percent(self, workload: &Workload) -> f64 {
        let percent = match self {
            Size::Slots(slots) => 100.0 * slots as f64 / workload.n_slices_per_layer() as f64,
            Size::Percent(percent) => percent,
            Size::Bytes(size_bytes) => 100.0 * size_bytes as f64 / workload.size_bytes() as f64,
        };
        percent.min(100.0)
    }
}

fn share(n_slices: usize, percent: f64) -> u64 {
    (n_slices as f64 * percent / 100.0).round() as u64
}

/// One cache under one policy.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `layer` or `global`.
    pub pool: &'static str,
    /// Share of all slices (or bytes) that the cache holds, in per cent.
    pub cache_percent: f64,
    /// Slots per layer, if the size was given so.
    pub slots_per_layer: Option<u64>,
    /// Bytes, if the size was given so.
    pub budget_bytes: Option<u64>,
    /// The policy's name.
    pub policy: String,
    /// The model's number of the layer; `None` for all layers.
    pub layer: Option<u32>,
    /// Slices used.
    pub n_accesses: u64,
    /// Those in the cache.
    pub n_hits: u64,
    /// Those not in the cache.
    pub n_misses: u64,
    /// Misses of slices that were never used before.
    pub n_cold_misses: u64,
    /// Share of the accesses that hit, in per cent.
    pub hit_percent: f64,
    /// Bytes of the misses, if the sizes of slices are known.
    pub miss_bytes: Option<u64>,
    /// Bytes of the misses, divided by those of Belady's policy in the same cache; without known
    /// sizes, the same of misses. `None` if that has none.
    pub miss_ratio: Option<f64>,
}

/// Results, and what they are about.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The trace.
    pub trace: String,
    /// Tokens (of a log: decode steps) that were counted.
    pub n_tokens: usize,
    /// Tokens that were simulated before and not counted.
    pub n_warmup_tokens: usize,
    /// Layers that have slices.
    pub n_layers: usize,
    /// All slices.
    pub n_slices: usize,
    /// Bytes of all slices, if known.
    pub size_bytes: Option<u64>,
    /// Gini coefficient of the uses of slices, mean over layers.
    pub gini: f64,
    /// Share of the uses that the most used quarter of a layer's slices has, in per cent, mean over
    /// layers.
    pub top_quarter_percent: f64,
    /// By lag in tokens: the probability that a slice of a token is used again so much later.
    pub repeat: Vec<(usize, f64)>,
    /// All caches and policies, for all layers and, if asked for, for each.
    pub rows: Vec<Row>,
}

impl Report {
    /// Simulates every policy on every size, and Belady's for comparison.
    ///
    /// # Errors
    ///
    /// [`SimulateError::TooSmall`].
    pub fn run(
        trace: String,
        workload: &Workload,
        sharing: Sharing,
        sizes: &[Size],
        policies: &[PolicyName],
        by_layer: bool,
    ) -> Result<Report, SimulateError> {
        let usage = Usage::of(workload);
        let mut rows = Vec::new();
        for &size in sizes {
            let cache = size.cache(sharing, workload);
            let best = simulate(workload, cache, &PolicyName::Belady)?;
            for policy in policies {
                let outcome = match policy {
                    PolicyName::Belady => best.clone(),
                    _ => simulate(workload, cache, policy)?,
                };
                let row = |layer, counts: &Counts, best: &Counts| Row {
                    pool: match sharing {
                        Sharing::PerLayer => "layer",
                        Sharing::Global => "global",
                    },
                    cache_percent: size.percent(workload),
                    slots_per_layer: match size {
                        Size::Slots(slots) => Some(slots),
                        _ => None,
                    },
                    budget_bytes: match size {
                        Size::Bytes(size_bytes) => Some(size_bytes),
                        _ => None,
                    },
                    policy: policy.to_string(),
                    layer,
                    n_accesses: counts.n_accesses,
                    n_hits: counts.n_hits,
                    n_misses: counts.n_misses(),
                    n_cold_misses: counts.n_cold_misses,
                    hit_percent: 100.0 * counts.hit_rate(),
                    miss_bytes: workload.has_sizes().then_some(counts.miss_bytes),
                    miss_ratio: (best.miss_bytes > 0)
                        .then(|| counts.miss_bytes as f64 / best.miss_bytes as f64),
                };
                rows.push(row(None, &outcome.total, &best.total));
                if by_layer {
                    let layers = workload.layers().iter();
                    let counts = outcome.layers.iter().zip(&best.layers);
                    rows.extend(
                        layers
                            .zip(counts)
                            .map(|(&layer, (counts, best))| row(Some(layer), counts, best)),
                    );
                }
            }
        }
        Ok(Report {
            trace,
            n_tokens: workload.n_tokens() - workload.n_warmup(),
            n_warmup_tokens: workload.n_warmup(),
            n_layers: workload.layers().len(),
            n_slices: workload.slices().len(),
            size_bytes: workload.has_sizes().then(|| workload.size_bytes()),
            gini: usage.gini,
            top_quarter_percent: 100.0 * usage.top_quarter,
            repeat: usage.repeat,
            rows,
        })
    }

    /// What the trace is, and a Markdown table.
    pub fn to_markdown(&self) -> String {
        let mut text = String::new();
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{arguments}");
        };
        let warmup = match self.n_warmup_tokens {
            0 => String::new(),
            count => format!(" after {count} of warm-up"),
        };
        let size = self.size_bytes.map_or(String::new(), |size_bytes| {
            format!(", {:.1} MiB", mebibytes(size_bytes))
        });
        line(format_args!(
            "trace: {}: {} tokens{warmup}, {} layers, {} slices{size}",
            self.trace, self.n_tokens, self.n_layers, self.n_slices
        ));
        let repeat: Vec<String> = self
            .repeat
            .iter()
            .map(|(lag, share)| format!("{lag}: {share:.4}"))
            .collect();
        line(format_args!(
            "usage: Gini {:.4}, the top quarter has {:.2} %; used again after tokens {}",
            self.gini,
            self.top_quarter_percent,
            repeat.join(", ")
        ));
        line(format_args!(""));
        let by_layer = self.rows.iter().any(|row| row.layer.is_some());
        let mut table = vec![self.headings(by_layer)];
        table.extend(self.rows.iter().map(|row| self.cells(row, by_layer)));
        text.push_str(&markdown(&table));
        text
    }

    fn headings(&self, by_layer: bool) -> Vec<String> {
        let mut headings = vec!["policy", "pool", "cache"];
        if by_layer {
            headings.push("layer");
        }
        headings.extend(["hits %", "misses/token", "cold misses"]);
        if self.size_bytes.is_some() {
            headings.push("missed MiB/token");
        }
        headings.push("x Belady");
        headings.into_iter().map(str::to_owned).collect()
    }

    fn cells(&self, row: &Row, by_layer: bool) -> Vec<String> {
        let n_tokens = self.n_tokens as f64;
        let cache = match (row.slots_per_layer, row.budget_bytes) {
            (Some(slots), _) => format!("{slots} slots ({:.1} %)", row.cache_percent),
            (_, Some(size_bytes)) => format!(
                "{:.1} MiB ({:.1} %)",
                mebibytes(size_bytes),
                row.cache_percent
            ),
            _ => format!("{} %", row.cache_percent),
        };
        let mut cells = vec![row.policy.clone(), row.pool.to_owned(), cache];
        if by_layer {
            cells.push(
                row.layer
                    .map_or("all".to_owned(), |layer| layer.to_string()),
            );
        }
        cells.push(format!("{:.2}", row.hit_percent));
        cells.push(format!("{:.2}", row.n_misses as f64 / n_tokens));
        cells.push(row.n_cold_misses.to_string());
        if let Some(miss_bytes) = row.miss_bytes {
            cells.push(format!("{:.2}", mebibytes(miss_bytes) / n_tokens));
        }
        cells.push(
            row.miss_ratio
                .map_or("-".to_owned(), |ratio| format!("{ratio:.3}")),
        );
        cells
    }

    /// One line for each row, with the fields of [`Row`] by name. Unknown values are empty.
    pub fn to_csv(&self) -> String {
        fn known<T: ToString>(value: Option<T>) -> String {
            value.map_or(String::new(), |value| value.to_string())
        }
        let mut text = "policy,pool,cache_percent,slots_per_layer,budget_bytes,layer,n_accesses,n_hits,n_misses,\
                        n_cold_misses,hit_percent,miss_bytes,miss_ratio\n"
            .to_owned();
        for row in &self.rows {
            let cells = [
                row.policy.clone(),
                row.pool.to_owned(),
                row.cache_percent.to_string(),
                known(row.slots_per_layer),
                known(row.budget_bytes),
                known(row.layer),
                row.n_accesses.to_string(),
                row.n_hits.to_string(),
                row.n_misses.to_string(),
                row.n_cold_misses.to_string(),
                row.hit_percent.to_string(),
                known(row.miss_bytes),
                known(row.miss_ratio),
            ];
            text.push_str(&cells.join(","));
            text.push('\n');
        }
        text
    }

    /// All fields by name.
    ///
    /// # Errors
    ///
    /// A number that JSON does not have, which no simulation gives.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }
}

fn mebibytes(size_bytes: u64) -> f64 {
    size_bytes as f64 / f64::from(1 << 20)
}

/// A table with aligned columns: text left, numbers right.
fn markdown(table: &[Vec<String>]) -> String {
    let width = |column: usize| table.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..table[0].len()).map(width).collect();
    // The first three columns are text.
    let is_text = |column: usize| column < 3;
    let mut text = String::new();
    for (index, row) in table.iter().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = match is_text(column) {
                true => write!(text, "| {cell:width$} "),
                false => write!(text, "| {cell:>width$} "),
            };
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                let _ = match is_text(column) {
                    true => write!(text, "|{dashes}-"),
                    false => write!(text, "|{dashes}:"),
                };
            }
            text.push_str("|\n");
        }
    }
    text
}
