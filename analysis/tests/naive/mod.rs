//! The numbers of a report, computed again in the plainest way from the records of a log that fits into memory.

#![allow(
    dead_code,
    reason = "every test binary compiles this module and uses a part of it"
)]

mod experts;
mod kernel;
mod times;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tracer::{Flags, KernelMark, LogReader, NO_STEP, Op, Record, Tensor, WHOLE};

use times::check_durations;

/// A whole step, and its accesses.
struct Step {
    is_prompt: bool,
    n_tokens: u32,
    /// Those whose positions continue have the same number.
    sequence: usize,
    begin_ns: u64,
    duration_ns: u64,
    accesses: Vec<Record>,
}

/// A log that has all of its records.
pub(crate) struct Naive {
    tensors: Vec<Tensor>,
    file_bytes: Vec<u64>,
    /// Tensors by file and offset.
    by_offset: BTreeMap<(u32, u64), usize>,
    accesses: Vec<Record>,
    /// With the phase: loading, prompt, decoding.
    marks: Vec<(usize, KernelMark)>,
    steps: Vec<Step>,
}

/// 0 for loading, 1 for prompts, 2 for decoding.
fn phase(record: &Record) -> usize {
    match record.step {
        NO_STEP => 0,
        _ if record.flags.has(Flags::PROMPT) => 1,
        _ => 2,
    }
}

/// The class of the gap between two places: file, begin and end.
fn gap_class(before: (u32, u64, u64), after: (u32, u64, u64)) -> &'static str {
    let gap = i128::from(after.1) - i128::from(before.2);
    match gap {
        _ if before.0 != after.0 => "elsewhere",
        ..0 => "backward",
        0..4096 => "sequential",
        4096..131_072 => "small",
        131_072..8_388_608 => "medium",
        _ => "large",
    }
}

impl Naive {
    pub(crate) fn of(log: &LogReader) -> Naive {
        let tables = log.tables();
        let by_offset = tables.tensors.iter().enumerate();
        let by_offset = by_offset.map(|(id, tensor)| ((tensor.file, tensor.offset_bytes), id));
        let mut naive = Naive {
            tensors: tables.tensors.clone(),
            file_bytes: tables.files.iter().map(|file| file.size_bytes).collect(),
            by_offset: by_offset.collect(),
            accesses: Vec::new(),
            marks: Vec::new(),
            steps: Vec::new(),
        };
        let mut step: Option<Step> = None;
        // Sequence and position that continue the step before.
        let (mut next, mut n_sequences) = (None, 0);
        for record in log.records().map(Result::unwrap) {
            match record.op {
                Op::STEP_BEGIN => {
                    step = Some(Step {
                        is_prompt: record.flags.has(Flags::PROMPT),
                        n_tokens: record.tensor,
                        sequence: n_sequences,
                        begin_ns: record.time_ns,
                        duration_ns: 0,
                        accesses: Vec::new(),
                    });
                }
                Op::STEP_TOKEN if record.duration_ns == 0 => {
                    let Some(step) = &mut step else {
                        continue;
                    };
                    let place = (record.n_used, record.slice);
                    n_sequences += usize::from(next.is_some_and(|next| next != place));
                    step.sequence = n_sequences;
                    next = Some((place.0, place.1 + step.n_tokens));
                }
                Op::STEP_END => {
                    if let Some(mut step) = step.take() {
                        step.duration_ns = u64::from(record.duration_ns);
                        if record.duration_ns == u32::MAX {
                            // Longer than a record can say: until its last operation ended.
                            let end = |a: &Record| a.time_ns + u64::from(a.duration_ns);
                            let end_ns = step.accesses.iter().map(end).max().unwrap();
                            step.duration_ns = step.duration_ns.max(end_ns - step.begin_ns);
                        }
                        naive.steps.push(step);
                    }
                }
                op if op.is_mark() => {
                    let mark = KernelMark::of(&record);
                    naive.marks.extend(mark.map(|mark| (phase(&record), mark)));
                }
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

    /// As reports name it. An embedding that is the output matrix, too, is dense.
    fn kind(&self, tensor: &Tensor) -> &'static str {
        let is_output = |tensor: &Tensor| tensor.name == "output.weight";
        match tensor.name.as_str() {
            _ if Naive::is_experts(tensor) => "experts",
            "token_embd.weight" if self.tensors.iter().any(is_output) => "embedding",
            _ => "dense",
        }
    }

    /// Bytes of all accesses.
    pub(crate) fn consumed(&self) -> u64 {
        self.accesses.iter().map(|access| self.size(access)).sum()
    }

    /// Whole steps.
    pub(crate) fn n_steps(&self) -> u64 {
        self.steps.len() as u64
    }

    /// Compares everything that a report says.
    pub(crate) fn check(&self, report: &Value) {
        self.check_waste(&report["waste"]);
        self.check_reuse(&report["reuse"]);
        self.check_gaps(&report["order"]);
        self.check_experts(report);
        self.check_determinism(&report["determinism"]);
        self.check_timeline(&report["timeline"]);
        self.check_parts_of(&report["layers"]["parts"], |tensor| match tensor.layer {
            -1 => "-".to_owned(),
            layer => layer.to_string(),
        });
        self.check_parts_of(&report["components"]["parts"], |tensor| {
            tensor.component.clone()
        });
        self.check_kernel(report);
    }

    fn check_waste(&self, waste: &Value) {
        let touched = self.touched(|_| true);
        let container: u64 = self.tensors.iter().map(|tensor| tensor.size_bytes).sum();
        assert_eq!(waste["total"]["touched_bytes"], touched);
        assert_eq!(waste["total"]["unread_bytes"], container - touched);
        let file_bytes = waste["file_bytes"].as_u64().unwrap();
        assert_eq!(waste["eager_for_nothing_bytes"], file_bytes - touched);
        for kind in waste["kinds"].as_array().unwrap() {
            let of = |tensor: &Tensor| kind["name"] == self.kind(tensor);
            assert_eq!(kind["touched_bytes"], self.touched(of), "{kind}");
            let tensors = self.tensors.iter().filter(|tensor| of(tensor));
            let container: u64 = tensors.map(|tensor| tensor.size_bytes).sum();
            assert_eq!(kind["container_bytes"], container, "{kind}");
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
        self.check_coverage(&waste["coverage"]);
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
            kernel::assert_ratio(&spread["mean"], sum as f64 / per_token.len() as f64);
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
        let places = self.accesses.iter().filter_map(|a| self.place(a));
        let places: Vec<_> = places
            .map(|(_, file, begin, end)| (file, begin, end))
            .collect();
        for pair in places.windows(2) {
            *gaps.entry(gap_class(pair[0], pair[1])).or_default() += 1;
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

    /// Bytes that generated tokens have read at least once, after each token.
    fn check_coverage(&self, coverage: &Value) {
        let mut expected = Vec::new();
        let mut read = BTreeSet::new();
        let mut sums = BTreeMap::<&str, u64>::new();
        for step in self.steps.iter().filter(|step| !step.is_prompt) {
            for access in &step.accesses {
                let is_new = read.insert((access.tensor, access.slice));
                if let Some((tensor, ..)) = self.place(access).filter(|_| is_new) {
                    *sums.entry(self.kind(tensor)).or_default() += self.size(access);
                }
            }
            expected.push(sums.clone());
        }
        for at in coverage.as_array().unwrap() {
            let sums = &expected[at["n_tokens"].as_u64().unwrap() as usize - 1];
            for kind in ["dense", "experts", "embedding"] {
                let n = sums.get(kind).copied().unwrap_or(0);
                assert_eq!(at["touched_bytes"][kind], n, "{kind}: {at}");
            }
        }
        assert_eq!(coverage.as_array().unwrap().is_empty(), expected.is_empty());
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
}
