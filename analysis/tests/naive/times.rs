//! Durations of steps and operations, and what happened when.

use std::collections::BTreeMap;

use serde_json::Value;
use tracer::{KernelMark, Record};

use super::{Naive, phase};

/// Number, sum, shortest and longest exactly; median and 99th percentile within 0.1 %, which is what reports promise.
#[track_caller]
pub(super) fn check_durations(found: &Value, durations: &mut [u64]) {
    if durations.is_empty() {
        assert!(found.is_null(), "{found}");
        return;
    }
    durations.sort_unstable();
    assert_eq!(found["n"], durations.len());
    assert_eq!(found["total_ns"], durations.iter().sum::<u64>());
    assert_eq!(found["min_ns"], durations[0]);
    assert_eq!(found["max_ns"], durations[durations.len() - 1]);
    for (key, share) in [("median_ns", 0.5), ("p99_ns", 0.99)] {
        let rank = (durations.len() as f64 * share).ceil() as usize;
        let expected = durations[rank.max(1) - 1];
        let distance = found[key].as_u64().unwrap().abs_diff(expected);
        assert!(
            distance as f64 <= expected as f64 * 0.001 + 1.0,
            "{key}: {found} is not {expected}"
        );
    }
}

impl Naive {
    /// The first access of each operation: those that were computed together count as one.
    fn operations(&self) -> Vec<&Record> {
        let mut first: Vec<&Record> = Vec::new();
        for access in &self.accesses {
            if first
                .last()
                .is_none_or(|last| last.time_ns != access.time_ns)
            {
                first.push(access);
            }
        }
        first
    }

    pub(super) fn check_timeline(&self, timeline: &Value) {
        let durations = |is_single: bool| -> Vec<u64> {
            let steps = self.steps.iter();
            let wanted = steps.filter(|step| match is_single {
                true => !step.is_prompt && step.n_tokens == 1,
                false => step.is_prompt,
            });
            wanted.map(|step| step.duration_ns).collect()
        };
        check_durations(&timeline["tokens"], &mut durations(true));
        check_durations(&timeline["prompts"], &mut durations(false));
        let first = &self.steps[0];
        assert_eq!(timeline["load_ns"], first.begin_ns);
        assert_eq!(
            timeline["first_token_ns"],
            first.begin_ns + first.duration_ns
        );

        let mut by_tensor = BTreeMap::<&str, (u64, u64)>::new();
        let mut decode_ns = 0;
        for access in self.operations() {
            let name = &self.tensors[access.tensor as usize].name;
            let sums = by_tensor.entry(name).or_default();
            sums.0 += 1;
            sums.1 += u64::from(access.duration_ns);
            if phase(access) == 2 {
                decode_ns += u64::from(access.duration_ns);
            }
        }
        assert_eq!(timeline["decode_weights_time_ns"], decode_ns);
        let rows = timeline["tensors"].as_array().unwrap();
        assert_eq!(rows.len(), by_tensor.len().min(50));
        for row in rows {
            let (n, time_ns) = by_tensor[row["tensor"].as_str().unwrap()];
            assert_eq!(
                (&row["n_operations"], &row["time_ns"]),
                (&n.into(), &time_ns.into())
            );
        }

        let groups = timeline["steps"].as_array().unwrap();
        let width = groups.get(1).map_or(usize::MAX, |group| {
            group["first_step"].as_u64().unwrap() as usize
        });
        assert_eq!(groups.len(), self.steps.chunks(width).len());
        for (group, steps) in groups.iter().zip(self.steps.chunks(width)) {
            assert_eq!(group["n_steps"], steps.len());
            let time_ns: u64 = steps.iter().map(|step| step.duration_ns).sum();
            assert_eq!(group["time_ns"], time_ns);
            let accesses = steps.iter().flat_map(|step| &step.accesses);
            let bytes: u64 = accesses.map(|access| self.size(access)).sum();
            assert_eq!(group["consumed_bytes"], bytes);
        }
        self.check_moments(timeline);
    }

    fn check_moments(&self, timeline: &Value) {
        let width_ns = timeline["moment_ns"].as_u64().unwrap();
        let mut moments = BTreeMap::<u64, [u64; 4]>::new();
        let mut add = |time_ns: u64, column: usize, n: u64| {
            moments.entry(time_ns / width_ns).or_default()[column] += n;
        };
        for access in &self.accesses {
            add(access.time_ns, 0, self.size(access));
        }
        for (_, mark) in &self.marks {
            match mark {
                KernelMark::BlockRead(read) => add(read.time_ns, 1, read.size_bytes),
                KernelMark::Fault(fault) => add(fault.time_ns, 2 + usize::from(fault.is_major), 1),
                _ => {}
            }
        }
        let keys = [
            "consumed_bytes",
            "delivered_bytes",
            "minor_faults",
            "major_faults",
        ];
        for moment in timeline["moments"].as_array().unwrap() {
            let index = moment["time_ns"].as_u64().unwrap() / width_ns;
            let expected = moments.remove(&index).unwrap_or_default();
            for (key, n) in keys.iter().zip(expected) {
                assert_eq!(moment[key], n, "{key} of {moment}");
            }
        }
        assert!(moments.is_empty(), "{moments:?} are left out");
    }

    /// Bytes, reads and time of each layer or component.
    pub(super) fn check_parts_of(
        &self,
        parts: &Value,
        name_of: impl Fn(&tracer::Tensor) -> String,
    ) {
        let mut sums = BTreeMap::<String, [u64; 6]>::new();
        let mut add = |name: String, column: usize, n: u64| {
            sums.entry(name).or_default()[column] += n;
        };
        for access in &self.accesses {
            let Some((tensor, ..)) = self.place(access) else {
                continue;
            };
            add(name_of(tensor), 0, self.size(access));
            add(name_of(tensor), 1, 1);
            if phase(access) == 2 {
                add(name_of(tensor), 2, self.size(access));
            }
        }
        for access in self.operations() {
            let name = name_of(&self.tensors[access.tensor as usize]);
            add(name.clone(), 3, 1);
            add(name.clone(), 4, u64::from(access.duration_ns));
            if phase(access) == 2 {
                add(name, 5, u64::from(access.duration_ns));
            }
        }
        let keys = [
            "consumed_bytes",
            "n_reads",
            "decode_bytes",
            "n_operations",
            "time_ns",
            "decode_time_ns",
        ];
        for part in parts.as_array().unwrap() {
            let name = part["name"].as_str().unwrap();
            let expected = sums.remove(name).unwrap_or_default();
            for (key, n) in keys.iter().zip(expected) {
                assert_eq!(part[key], n, "{key} of {name}");
            }
            let touched = self.touched(|tensor| name_of(tensor) == name);
            assert_eq!(part["touched_bytes"], touched, "{name}");
        }
        assert!(sums.is_empty(), "{sums:?} are left out");
    }
}
