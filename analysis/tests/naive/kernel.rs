//! What the kernel did: faults, reads of the device and what was in memory.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;
use tracer::{BlockRead, Fault, KernelMark};

use super::{Naive, gap_class};

const PAGE_BYTES: u64 = 4096;
const PHASES: [&str; 3] = ["load", "prompt", "decode"];

/// Sums by name; those of nothing are absent.
type Sums = BTreeMap<String, u64>;

fn add(sums: &mut Sums, name: &str, n: u64) {
    if n > 0 {
        *sums.entry(name.to_owned()).or_default() += n;
    }
}

/// The numbers that a report has by kind of weight are these.
#[track_caller]
fn assert_kinds(found: &Value, expected: &Sums) {
    for kind in ["dense", "experts", "embedding", "outside"] {
        let n = expected.get(kind).copied().unwrap_or(0);
        assert_eq!(found[kind], n, "{kind}: {found}");
    }
}

/// Equal but for the last digits, which JSON does not keep.
#[track_caller]
pub(super) fn assert_ratio(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap();
    let distance = (found - expected).abs();
    assert!(
        distance <= 1e-12 * expected.abs(),
        "{found} is not {expected}"
    );
}

impl Naive {
    fn faults(&self) -> impl Iterator<Item = (usize, &Fault)> {
        self.marks.iter().filter_map(|(phase, mark)| match mark {
            KernelMark::Fault(fault) => Some((*phase, fault)),
            _ => None,
        })
    }

    fn block_reads(&self) -> impl Iterator<Item = (usize, &BlockRead)> {
        self.marks.iter().filter_map(|(phase, mark)| match mark {
            KernelMark::BlockRead(read) => Some((*phase, read)),
            _ => None,
        })
    }

    /// Tensors with bytes between two places of a file, and how many.
    fn overlaps(&self, file: u32, begin: u64, end: u64) -> Vec<(usize, u64)> {
        let mut found = Vec::new();
        for ((_, at), id) in self.by_offset.range((file, 0)..(file, end)).rev() {
            let tensor_end = at + self.tensors[*id].size_bytes;
            let (from, to) = (begin.max(*at), end.min(tensor_end));
            if from < to {
                found.push((*id, to - from));
            }
            if *at <= begin {
                break;
            }
        }
        found
    }

    pub(super) fn check_kernel(&self, report: &Value) {
        self.check_faults(report);
        self.check_delivered(report);
        self.check_requests(&report["order"]);
        self.check_residency(&report["faults"]["residency"]);
    }

    fn check_faults(&self, report: &Value) {
        let mut by_phase: [[Sums; 2]; 3] = Default::default();
        let (mut minor, mut major, mut again) = (Sums::new(), Sums::new(), Sums::new());
        let mut again_kinds = Sums::new();
        let (mut seen, mut pages) = (HashSet::new(), HashSet::new());
        for (phase, fault) in self.faults() {
            let page = fault.offset_bytes / PAGE_BYTES;
            pages.insert((fault.file, page));
            let place = self.overlaps(fault.file, fault.offset_bytes, fault.offset_bytes + 1);
            let tensor = place.first().map(|(id, _)| &self.tensors[*id]);
            let kind = tensor.map_or("outside", |tensor| self.kind(tensor));
            add(&mut by_phase[phase][usize::from(fault.is_major)], kind, 1);
            let was_seen = fault.is_major && !seen.insert((fault.file, page));
            let Some(tensor) = tensor else {
                continue;
            };
            add(
                if fault.is_major {
                    &mut major
                } else {
                    &mut minor
                },
                &tensor.name,
                1,
            );
            if was_seen {
                add(&mut again, &tensor.name, 1);
                add(&mut again_kinds, kind, 1);
            }
        }
        let faults = &report["faults"];
        for (phase, [minor, major]) in PHASES.iter().zip(&by_phase) {
            assert_kinds(&faults[phase]["minor_faults"], minor);
            assert_kinds(&faults[phase]["major_faults"], major);
        }
        let rows = faults["tensors"].as_array().unwrap();
        let sum = |key: &str| -> u64 { rows.iter().map(|row| row[key].as_u64().unwrap()).sum() };
        assert_eq!(sum("minor_faults"), minor.values().sum::<u64>());
        for row in rows {
            let name = row["name"].as_str().unwrap();
            let of = |sums: &Sums| sums.get(name).copied().unwrap_or(0);
            assert_eq!(row["minor_faults"], of(&minor), "{name}");
            assert_eq!(row["major_faults"], of(&major), "{name}");
        }
        let reuse = &report["reuse"]["faults"];
        if !reuse.is_null() {
            assert_eq!(reuse["n_again"], again.values().sum::<u64>());
            assert_kinds(&reuse["again_by_kind"], &again_kinds);
        }
        let places = self.faults().map(|(_, fault)| {
            let begin = fault.offset_bytes / PAGE_BYTES * PAGE_BYTES;
            (fault.file, begin, begin + PAGE_BYTES)
        });
        check_view(&report["order"], "page faults", places, pages.len() as u64);
    }

    fn check_delivered(&self, report: &Value) {
        let mut delivered: [Sums; 3] = Default::default();
        let mut again: [Sums; 3] = Default::default();
        let (mut by_tensor, mut again_by_tensor) = (Sums::new(), Sums::new());
        let mut seen = HashSet::new();
        for (phase, read) in self.block_reads() {
            let first = read.offset_bytes / PAGE_BYTES;
            for page in first..first + read.size_bytes / PAGE_BYTES {
                let is_again = !seen.insert((read.file, page));
                let begin = page * PAGE_BYTES;
                let mut outside = PAGE_BYTES;
                let mut count = |kind: &str, n: u64| {
                    add(&mut delivered[phase], kind, n);
                    add(&mut again[phase], kind, if is_again { n } else { 0 });
                };
                for (id, n) in self.overlaps(read.file, begin, begin + PAGE_BYTES) {
                    let tensor = &self.tensors[id];
                    outside -= n;
                    count(self.kind(tensor), n);
                    add(&mut by_tensor, &tensor.name, n);
                    add(
                        &mut again_by_tensor,
                        &tensor.name,
                        if is_again { n } else { 0 },
                    );
                }
                count("outside", outside);
            }
        }
        let faults = &report["faults"];
        for (phase, (all, again)) in PHASES.iter().zip(delivered.iter().zip(&again)) {
            assert_kinds(&faults[phase]["delivered_bytes"], all);
            assert_kinds(&faults[phase]["again_bytes"], again);
        }
        let delivery = &report["reuse"]["delivery"];
        let total = |sums: &[Sums]| -> u64 { sums.iter().flat_map(|sums| sums.values()).sum() };
        if seen.is_empty() {
            assert!(delivery.is_null(), "{delivery}");
            return;
        }
        assert_eq!(delivery["delivered_bytes"], total(&delivered));
        assert_eq!(delivery["again_bytes"], total(&again));
        assert_eq!(delivery["decode_delivered_bytes"], total(&delivered[2..]));
        let consumed: u64 = self
            .accesses
            .iter()
            .filter(|access| super::phase(access) == 2)
            .map(|access| self.size(access))
            .sum();
        if consumed > 0 {
            let expected = total(&delivered[2..]) as f64 / consumed as f64;
            assert_ratio(&delivery["decode_amplification"], expected);
        }
        let mut by_component = Sums::new();
        for (name, again) in &again_by_tensor {
            let tensor = self.tensors.iter().find(|tensor| tensor.name == *name);
            add(&mut by_component, &tensor.unwrap().component, *again);
        }
        for row in delivery["components"].as_array().unwrap() {
            let name = row["name"].as_str().unwrap();
            let again = by_component.remove(name).unwrap_or(0);
            assert_eq!(row["again_bytes"], again, "{name}");
        }
        assert!(by_component.is_empty(), "{by_component:?} are left out");
        let rows = delivery["tensors"].as_array().unwrap();
        assert_eq!(rows.len(), by_tensor.len());
        for row in rows {
            let name = row["name"].as_str().unwrap();
            assert_eq!(row["delivered_bytes"], by_tensor[name], "{name}");
            let again = again_by_tensor.get(name).copied().unwrap_or(0);
            assert_eq!(row["again_bytes"], again, "{name}");
        }
        let places = self.block_reads().map(|(_, read)| {
            (
                read.file,
                read.offset_bytes,
                read.offset_bytes + read.size_bytes,
            )
        });
        let places: Vec<_> = places.collect();
        let n_pages = seen
            .iter()
            .filter(|(file, page)| page * PAGE_BYTES < self.file_bytes[*file as usize]);
        check_view(
            &report["order"],
            "block reads",
            places.into_iter(),
            n_pages.count() as u64,
        );
    }

    fn check_requests(&self, order: &Value) {
        let requests = &order["requests"];
        let reads: Vec<&BlockRead> = self.block_reads().map(|(_, read)| read).collect();
        let Some(begin_ns) = reads.iter().map(|read| read.time_ns).min() else {
            assert!(requests.is_null(), "{requests}");
            return;
        };
        let mut sizes = BTreeMap::<u64, u64>::new();
        for read in &reads {
            let mut from = 1;
            while from * 2 <= read.size_bytes {
                from *= 2;
            }
            *sizes.entry(from).or_default() += 1;
        }
        let rows = sizes
            .iter()
            .map(|(from, n)| serde_json::json!({"from_bytes": from, "n": n}));
        assert_eq!(requests["sizes"], rows.collect::<Value>());
        let is_ended = |read: &&&BlockRead| read.latency_ns != u32::MAX;
        let mut latencies: Vec<u64> = reads
            .iter()
            .filter(is_ended)
            .map(|read| u64::from(read.latency_ns))
            .collect();
        assert_eq!(requests["n_unfinished"], reads.len() - latencies.len());
        super::check_durations(&requests["latency"], &mut latencies);
        let end = |read: &&BlockRead| match read.latency_ns {
            u32::MAX => read.time_ns,
            latency_ns => read.time_ns + u64::from(latency_ns),
        };
        let span_ns = reads.iter().map(end).max().unwrap() - begin_ns;
        assert_eq!(requests["span_ns"], span_ns);
        let bytes: u64 = reads.iter().map(|read| read.size_bytes).sum();
        let rate = bytes as f64 * 1e9 / span_ns.max(1) as f64;
        assert_ratio(&requests["bytes_per_second"], rate);
    }

    fn check_residency(&self, residency: &Value) {
        let mut snapshots = BTreeMap::<u64, Sums>::new();
        for (_, mark) in &self.marks {
            if let KernelMark::Resident(resident) = mark {
                let kind = self.kind(&self.tensors[resident.tensor as usize]);
                let sums = snapshots.entry(resident.time_ns).or_default();
                add(sums, kind, u64::from(resident.n_resident) * PAGE_BYTES);
            }
        }
        let rows = residency.as_array().unwrap();
        assert_eq!(rows.len(), snapshots.len());
        for (row, (time_ns, sums)) in rows.iter().zip(&snapshots) {
            assert_eq!(row["time_ns"], *time_ns);
            assert_kinds(&row["resident_bytes"], sums);
        }
    }
}

/// Gaps and coverage of one sequence; nothing is said of a sequence without reads.
fn check_view(
    order: &Value,
    name: &str,
    places: impl Iterator<Item = (u32, u64, u64)>,
    n_pages: u64,
) {
    let places: Vec<_> = places.collect();
    let mut views = order["views"].as_array().unwrap().iter();
    let view = views.find(|view| view["name"] == name);
    let Some(view) = view else {
        assert!(places.is_empty(), "{name}: {} reads", places.len());
        return;
    };
    let mut gaps = BTreeMap::<&str, u64>::new();
    for pair in places.windows(2) {
        *gaps.entry(gap_class(pair[0], pair[1])).or_default() += 1;
    }
    for (class, n) in view["order"]["gaps"].as_object().unwrap() {
        let expected = gaps.get(class.as_str()).copied().unwrap_or(0);
        assert_eq!(*n, expected, "{name}: {class}");
    }
    assert_eq!(view["order"]["n"], places.len(), "{name}");
    assert_eq!(view["covered_bytes"], n_pages * PAGE_BYTES, "{name}");
}
