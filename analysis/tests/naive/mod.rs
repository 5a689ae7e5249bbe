//! The numbers of a report, computed again in the plainest way from the records of a log that fits into memory.

#![allow(
    dead_code,
    reason = "every test binary compiles this module and uses a part of it"
)]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tracer::{Flags, LogReader, Op, Record, Tensor, WHOLE};

/// A whole step: whether it is a prompt, and its accesses.
struct Step {
    is_prompt: bool,
    accesses: Vec<Record>,
}

/// A log that has all of its records.
pub(crate) struct Naive {
    tensors: Vec<Tensor>,
    accesses: Vec<Record>,
    steps: Vec<Step>,
}

impl Naive {
    pub(crate) fn of(log: &LogReader) -> Naive {
        let mut naive = Naive {
            tensors: log.tables().tensors.clone(),
            accesses: Vec::new(),
            steps: Vec::new(),
        };
        let mut step = None;
        for record in log.records().map(Result::unwrap) {
            match record.op {
                Op::STEP_BEGIN => {
                    step = Some(Step {
                        is_prompt: record.flags.has(Flags::PROMPT),
                        accesses: Vec::new(),
                    });
                }
                Op::STEP_END => naive.steps.extend(step.take()),
                op if op.is_mark() => {}
                _ => {
                    naive.accesses.push(record);
                    if let Some(step) = &mut step {
                        step.accesses.push(record);
                    }
                }
            }
        }
        naive
    }

    /// Tensor, file, first byte and end of what an access reads; nothing for tensors that are in no file.
    fn place(&self, access: &Record) -> Option<(&Tensor, u32, u64, u64)> {
        let tensor = self.tensors.get(access.tensor as usize)?;
        let (begin, size_bytes) = match access.slice {
            WHOLE => (0, tensor.size_bytes),
            slice => (
                u64::from(slice) * tensor.slice_stride_bytes,
                tensor.slice_stride_bytes,
            ),
        };
        let begin = tensor.offset_bytes + begin;
        Some((tensor, tensor.file, begin, begin + size_bytes))
    }

    fn size(&self, access: &Record) -> u64 {
        self.place(access)
            .map_or(0, |(_, _, begin, end)| end - begin)
    }

    /// Bytes that at least one access of the tensors that `of` picks reads.
    fn touched(&self, of: impl Fn(&Tensor) -> bool) -> u64 {
        let places = self.accesses.iter().filter_map(|access| self.place(access));
        let ranges: BTreeSet<_> = places
            .filter(|(tensor, ..)| of(tensor))
            .map(|(_, file, begin, end)| (file, begin, end))
            .collect();
        let (mut total, mut reached) = (0, (0, 0));
        for (file, begin, end) in ranges {
            let from = if reached.0 == file {
                begin.max(reached.1)
            } else {
                begin
            };
            total += end.saturating_sub(from);
            reached = if reached.0 == file {
                (file, end.max(reached.1))
            } else {
                (file, end)
            };
        }
        total
    }

    fn is_experts(tensor: &Tensor) -> bool {
        tensor.name.contains("_exps.")
    }

    /// Bytes of all accesses.
    pub(crate) fn consumed(&self) -> u64 {
        self.accesses.iter().map(|access| self.size(access)).sum()
    }

    /// Whole steps.
    pub(crate) fn n_steps(&self) -> u64 {
        self.steps.len() as u64
    }

    /// Compares everything that a report says of accesses.
    pub(crate) fn check(&self, report: &Value) {
        self.check_waste(&report["waste"]);
        self.check_reuse(&report["reuse"]);
        self.check_gaps(&report["order"]);
        self.check_experts(report);
        self.check_determinism(&report["determinism"]);
        self.check_parts(report);
    }

    fn check_waste(&self, waste: &Value) {
        let touched = self.touched(|_| true);
        let container: u64 = self.tensors.iter().map(|tensor| tensor.size_bytes).sum();
        assert_eq!(waste["total"]["touched_bytes"], touched);
        assert_eq!(waste["total"]["unread_bytes"], container - touched);
        let file_bytes = waste["file_bytes"].as_u64().unwrap();
        assert_eq!(waste["eager_for_nothing_bytes"], file_bytes - touched);
        for kind in waste["kinds"].as_array().unwrap() {
            let of = |tensor: &Tensor| match kind["name"].as_str().unwrap() {
                "experts" => Naive::is_experts(tensor),
                "embedding" => tensor.name == "token_embd.weight",
                _ => !Naive::is_experts(tensor) && tensor.name != "token_embd.weight",
            };
            assert_eq!(kind["touched_bytes"], self.touched(of), "{kind}");
        }
        for row in waste["sparse_tensors"].as_array().unwrap() {
            let name = row["name"].as_str().unwrap();
            let tensor = self
                .tensors
                .iter()
                .find(|tensor| tensor.name == name)
                .unwrap();
            let touched = self.touched(|tensor| tensor.name == name);
            assert_eq!(row["touched_bytes"], touched, "{name}");
            assert_eq!(row["unread_bytes"], tensor.size_bytes - touched, "{name}");
        }
        let decode = self.steps.iter().filter(|step| !step.is_prompt);
        let per_token: Vec<u64> = decode
            .map(|step| {
                let of_experts =
                    |access: &&Record| Naive::is_experts(&self.tensors[access.tensor as usize]);
                step.accesses
                    .iter()
                    .filter(of_experts)
                    .map(|access| self.size(access))
                    .sum()
            })
            .collect();
        let spread = &waste["expert_bytes_per_token"];
        if self.tensors.iter().any(Naive::is_experts) {
            assert_eq!(spread["n"], per_token.len());
            assert_eq!(spread["min"], *per_token.iter().min().unwrap());
            assert_eq!(spread["max"], *per_token.iter().max().unwrap());
            let sum: u64 = per_token.iter().sum();
            assert_eq!(
                spread["mean"].as_f64().unwrap(),
                sum as f64 / per_token.len() as f64
            );
        } else {
            assert!(spread.is_null(), "{spread}");
        }
    }

    fn check_reuse(&self, reuse: &Value) {
        let (mut reads, mut bytes) = (BTreeMap::new(), BTreeMap::new());
        let mut slices = BTreeMap::<(u32, u32), u64>::new();
        for access in &self.accesses {
            let Some((tensor, ..)) = self.place(access) else {
                continue;
            };
            *reads.entry(tensor.name.as_str()).or_insert(0u64) += 1;
            *bytes.entry(tensor.name.as_str()).or_insert(0u64) += self.size(access);
            if access.slice != WHOLE {
                *slices.entry((access.tensor, access.slice)).or_default() += 1;
            } else if tensor.n_slices > 1 {
                for slice in 0..tensor.n_slices {
                    *slices.entry((access.tensor, slice)).or_default() += 1;
                }
            }
        }
        let tensors = reuse["tensors"].as_array().unwrap();
        let in_files = tensors.iter().filter(|row| row["kind"] != "outside");
        assert_eq!(in_files.clone().count(), reads.len());
        for row in in_files {
            let name = row["name"].as_str().unwrap();
            assert_eq!(row["n_reads"], reads[name], "{name}");
            assert_eq!(row["consumed_bytes"], bytes[name], "{name}");
        }
        let mut counts: Vec<u64> = slices.values().copied().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts.truncate(100);
        let listed = reuse["slices"].as_array().unwrap();
        let listed_counts: Vec<u64> = listed
            .iter()
            .map(|row| row["n_reads"].as_u64().unwrap())
            .collect();
        assert_eq!(listed_counts, counts);
        for row in listed {
            let name = row["tensor"].as_str().unwrap();
            let id = self
                .tensors
                .iter()
                .position(|tensor| tensor.name == name)
                .unwrap();
            let slice = row["slice"].as_u64().unwrap();
            assert_eq!(row["n_reads"], slices[&(id as u32, slice as u32)], "{row}");
        }
    }

    fn check_gaps(&self, order: &Value) {
        let mut gaps = BTreeMap::<&str, u64>::new();
        let places: Vec<_> = self.accesses.iter().filter_map(|a| self.place(a)).collect();
        for pair in places.windows(2) {
            let ((_, file, _, end), (_, next_file, begin, _)) = (pair[0], pair[1]);
            let gap = begin as i128 - end as i128;
            let name = if file != next_file {
                "elsewhere"
            } else if gap < 0 {
                "backward"
            } else if gap < 4096 {
                "sequential"
            } else if gap < 131_072 {
                "small"
            } else if gap < 8_388_608 {
                "medium"
            } else {
                "large"
            };
            *gaps.entry(name).or_default() += 1;
        }
        let views = order["views"].as_array().unwrap();
        let view = views
            .iter()
            .find(|view| view["name"] == "accesses")
            .unwrap();
        let found = view["order"]["gaps"].as_object().unwrap();
        for (name, n) in found {
            assert_eq!(*n, gaps.get(name.as_str()).copied().unwrap_or(0), "{name}");
        }
        assert_eq!(view["order"]["n"], places.len());
        assert_eq!(view["covered_bytes"], self.touched(|_| true));
    }

    fn check_experts(&self, report: &Value) {
        let n_experts = |layer| {
            let of_layer = |tensor: &&Tensor| tensor.layer == layer && Naive::is_experts(tensor);
            self.tensors
                .iter()
                .find(of_layer)
                .map(|tensor| tensor.n_slices as usize)
        };
        let mut uses = BTreeMap::<i32, Vec<u64>>::new();
        for tensor in self
            .tensors
            .iter()
            .filter(|tensor| Naive::is_experts(tensor))
        {
            let n = n_experts(tensor.layer).unwrap();
            uses.insert(tensor.layer, vec![0; n]);
        }
        if uses.is_empty() {
            assert!(report["experts"].is_null());
            return;
        }
        for step in self.steps.iter().filter(|step| !step.is_prompt) {
            let chosen: BTreeSet<(i32, u32)> = step
                .accesses
                .iter()
                .filter(|access| access.op == Op::MUL_MAT_ID)
                .map(|access| (self.tensors[access.tensor as usize].layer, access.slice))
                .collect();
            for (layer, expert) in chosen {
                uses.get_mut(&layer).unwrap()[expert as usize] += 1;
            }
        }
        let layers = report["experts"]["layers"].as_array().unwrap();
        assert_eq!(layers.len(), uses.len());
        for (row, (layer, uses)) in layers.iter().zip(&uses) {
            assert_eq!(row["layer"], *layer);
            assert_eq!(row["uses"], serde_json::json!(uses), "layer {layer}");
            let close = |key: &str, expected: f64| {
                let found = row[key].as_f64().unwrap();
                assert!(
                    (found - expected).abs() < 1e-9,
                    "{key}: {found} is not {expected}"
                );
            };
            close("gini", gini(uses));
            let mut sorted = uses.clone();
            sorted.sort_unstable_by(|a, b| b.cmp(a));
            let top: u64 = sorted[..uses.len().div_ceil(4)].iter().sum();
            close(
                "top_quarter_share",
                top as f64 / uses.iter().sum::<u64>() as f64,
            );
        }
    }

    fn check_determinism(&self, determinism: &Value) {
        let mut sequences = Vec::new();
        for step in self.steps.iter().filter(|step| !step.is_prompt) {
            let key = |a: &Record| (a.time_ns, a.tensor, a.op.0, a.slice == WHOLE);
            let mut sequence: Vec<_> = step.accesses.iter().map(key).collect();
            sequence.dedup();
            let without_time = |(_, tensor, op, is_whole)| (tensor, op, is_whole);
            sequences.push(sequence.into_iter().map(without_time).collect::<Vec<_>>());
        }
        let equal = sequences[1..]
            .iter()
            .filter(|sequence| **sequence == sequences[0]);
        assert_eq!(determinism["n_compared"], sequences.len() - 1);
        assert_eq!(determinism["n_equal"], equal.count());
        assert_eq!(determinism["n_operations"], sequences[0].len());
    }

    fn check_parts(&self, report: &Value) {
        let mut by_layer = BTreeMap::<String, u64>::new();
        let mut by_component = BTreeMap::<&str, u64>::new();
        let mut nodes = BTreeMap::<u64, u64>::new();
        for access in &self.accesses {
            nodes.insert(access.time_ns, u64::from(access.duration_ns));
            let Some((tensor, ..)) = self.place(access) else {
                continue;
            };
            let layer = match tensor.layer {
                -1 => "-".to_owned(),
                layer => layer.to_string(),
            };
            *by_layer.entry(layer).or_default() += self.size(access);
            *by_component.entry(&tensor.component).or_default() += self.size(access);
        }
        let rows = |question: &str| report[question]["parts"].as_array().unwrap().clone();
        for row in rows("layers") {
            let name = row["name"].as_str().unwrap();
            let expected = by_layer.get(name).copied().unwrap_or(0);
            assert_eq!(row["consumed_bytes"], expected, "layer {name}");
        }
        let components = rows("components");
        for row in &components {
            let name = row["name"].as_str().unwrap();
            if let Some(expected) = by_component.get(name) {
                assert_eq!(row["consumed_bytes"], *expected, "{name}");
            }
        }
        let time: u64 = components
            .iter()
            .map(|row| row["time_ns"].as_u64().unwrap())
            .sum();
        assert_eq!(
            time,
            nodes.values().sum::<u64>(),
            "each operation counts once"
        );
    }
}

/// The mean difference of two, divided by twice the mean.
pub(crate) fn gini(uses: &[u64]) -> f64 {
    let mut differences = 0.0;
    for a in uses {
        for b in uses {
            differences += (*a as f64 - *b as f64).abs();
        }
    }
    let n = uses.len() as f64;
    let sum: u64 = uses.iter().sum();
    if sum == 0 {
        return 0.0;
    }
    differences / (2.0 * n * sum as f64)
}
