//! What the kernel did: page faults and reads by phase and tensor, and what was in memory.

use serde::{Deserialize, Serialize};
use tracer::WeightClass;

use super::delivered::{Delivered, PhaseDelivered, Snapshot};
use super::section::{Cell, Question, Section, Sheet};
use super::stream::Phase;
use super::weights::Model;
use crate::text::{count, percent, plural, share, size};

/// What the kernel did for one tensor, or for all of one component.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FaultRow {
    /// The tensor or component.
    pub name: String,
    /// Minor faults.
    pub minor_faults: u64,
    /// Major faults.
    pub major_faults: u64,
    /// Of all these, faults in decode steps.
    pub decode_faults: u64,
    /// Read from the device.
    pub delivered_bytes: u64,
}

impl FaultRow {
    fn add(&mut self, other: &FaultRow) {
        self.minor_faults += other.minor_faults;
        self.major_faults += other.major_faults;
        self.decode_faults += other.decode_faults;
        self.delivered_bytes += other.delivered_bytes;
    }
}

/// What the kernel did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Whether the log has page faults.
    pub has_faults: bool,
    /// Whether the log has reads of the device.
    pub has_block_reads: bool,
    /// Before the first step.
    pub load: PhaseDelivered,
    /// Steps with a prompt, and what follows each until the next.
    pub prompt: PhaseDelivered,
    /// The others.
    pub decode: PhaseDelivered,
    /// Components, those with most faults and bytes first.
    pub components: Vec<FaultRow>,
    /// The same of tensors.
    pub tensors: Vec<FaultRow>,
    /// What was in the page cache, at most 512 times.
    pub residency: Vec<Snapshot>,
    /// Generated tokens, in whole steps.
    pub n_tokens: u64,
}

impl Faults {
    pub(crate) fn of(model: &Model, delivered: &Delivered<'_>, n_tokens: u64) -> Faults {
        let mut components: Vec<FaultRow> = model
            .components
            .iter()
            .map(|name| FaultRow {
                name: name.clone(),
                ..FaultRow::default()
            })
            .collect();
        let mut tensors = Vec::new();
        for (weight, sums) in model.weights.iter().zip(&delivered.tensors) {
            let decode = Phase::Decode as usize;
            let row = FaultRow {
                name: weight.name.clone(),
                minor_faults: sums.minor.iter().sum(),
                major_faults: sums.major.iter().sum(),
                decode_faults: sums.minor[decode] + sums.major[decode],
                delivered_bytes: sums.bytes.iter().sum(),
            };
            components[weight.component as usize].add(&row);
            if row.minor_faults + row.major_faults + row.delivered_bytes > 0 {
                tensors.push(row);
            }
        }
        components.retain(|row| row.minor_faults + row.major_faults + row.delivered_bytes > 0);
        for rows in [&mut components, &mut tensors] {
            rows.sort_by_key(|row| {
                std::cmp::Reverse((row.delivered_bytes, row.major_faults, row.minor_faults))
            });
        }
        let [load, prompt, decode] = delivered.phases;
        Faults {
            has_faults: delivered.has_faults,
            has_block_reads: delivered.has_block,
            load,
            prompt,
            decode,
            components,
            tensors,
            residency: delivered.snapshots.clone(),
            n_tokens,
        }
    }

    fn phases(&self) -> [(Phase, &PhaseDelivered); 3] {
        [
            (Phase::Load, &self.load),
            (Phase::Prompt, &self.prompt),
            (Phase::Decode, &self.decode),
        ]
    }

    /// In words and tables.
    pub fn section(&self) -> Section {
        let mut section = Section::new(Question::Faults);
        let sum = |of: fn(&PhaseDelivered) -> u64| -> u64 {
            self.phases().iter().map(|(_, phase)| of(phase)).sum()
        };
        if self.has_faults {
            let (minor, major) = (
                sum(|phase| phase.minor_faults.total()),
                sum(|phase| phase.major_faults.total()),
            );
            section.find(format!(
                "{} minor and {} major page faults hit the model's files; {} and {} other memory.",
                count(minor),
                count(major),
                count(sum(|phase| phase.minor_elsewhere)),
                count(sum(|phase| phase.major_elsewhere)),
            ));
            section.fact("minor_faults", minor as f64);
            section.fact("major_faults", major as f64);
            let decode = self.decode.minor_faults.total() + self.decode.major_faults.total();
            if self.n_tokens > 0 {
                section.find(format!(
                    "A generated token took {:.1} faults, {:.1} of them major.",
                    decode as f64 / self.n_tokens as f64,
                    self.decode.major_faults.total() as f64 / self.n_tokens as f64
                ));
                section.fact("faults_per_token", decode as f64 / self.n_tokens as f64);
            }
        } else {
            section
                .cannot
                .push("where page faults hit: the log has none; record with --faults".to_owned());
        }
        self.delivered(&mut section);
        self.resident(&mut section);
        let n_lost = sum(|phase| phase.n_lost);
        if n_lost > 0 {
            section.cannot.push(format!(
                "what {} of the kernel were about: they came faster than they could be recorded, so all numbers are too small",
                plural(n_lost, "event")
            ));
        }
        section.table("Phases", self.phases_sheet());
        section.table("Components", rows_sheet("component", &self.components));
        section.table("Tensors", rows_sheet("tensor", &self.tensors));
        section.table("In the page cache", self.residency_sheet());
        section
    }

    fn delivered(&self, section: &mut Section) {
        if !self.has_block_reads {
            section.cannot.push(
                "what the device delivered: the log has no reads of it; record with --block"
                    .to_owned(),
            );
            return;
        }
        let parts: Vec<String> = self
            .phases()
            .iter()
            .map(|(phase, sums)| {
                let total = sums.delivered_bytes.total();
                format!(
                    "{} {} by {}",
                    phase.name(),
                    size(total),
                    plural(sums.n_block_reads, "read")
                )
            })
            .collect();
        section.find(format!("The device delivered: {}.", parts.join(", ")));
        let phases = self.phases();
        let total: u64 = phases
            .iter()
            .map(|(_, sums)| sums.delivered_bytes.total())
            .sum();
        section.fact("delivered_bytes", total as f64);
    }

    fn resident(&self, section: &mut Section) {
        let Some(last) = self.residency.last() else {
            section.cannot.push(
                "what was in memory: the log has no snapshots; record with --residency".to_owned(),
            );
            return;
        };
        let total = last.resident_bytes.total();
        let parts: Vec<String> = WeightClass::ALL
            .iter()
            .filter(|class| last.resident_bytes.of(**class) > 0)
            .map(|class| {
                let part = share(last.resident_bytes.of(*class), total);
                format!("{} {}", class.name(), percent(part))
            })
            .collect();
        section.find(format!(
            "At the end {} of the model were in the page cache ({}).",
            size(total),
            parts.join(", ")
        ));
        section.fact("resident_bytes", total as f64);
    }

    fn phases_sheet(&self) -> Sheet {
        let columns = [
            ("phase", "phase"),
            ("kind", "kind"),
            ("minor faults", "minor_faults"),
            ("major faults", "major_faults"),
            ("delivered", "delivered_bytes"),
            ("of these again", "again_bytes"),
        ];
        let rows = self.phases().into_iter().flat_map(|(phase, sums)| {
            WeightClass::ALL.into_iter().map(move |class| {
                vec![
                    Cell::from(phase.name()),
                    Cell::from(class.name()),
                    Cell::Count(sums.minor_faults.of(class)),
                    Cell::Count(sums.major_faults.of(class)),
                    Cell::Bytes(sums.delivered_bytes.of(class)),
                    Cell::Bytes(sums.again_bytes.of(class)),
                ]
            })
        });
        Sheet::new(&columns, rows)
    }

    fn residency_sheet(&self) -> Sheet {
        let columns = [
            ("at", "time_ns"),
            ("dense", "dense_bytes"),
            ("experts", "experts_bytes"),
            ("embedding", "embedding_bytes"),
        ];
        let cells = |snapshot: &Snapshot| {
            vec![
                Cell::Ns(snapshot.time_ns),
                Cell::Bytes(snapshot.resident_bytes.dense),
                Cell::Bytes(snapshot.resident_bytes.experts),
                Cell::Bytes(snapshot.resident_bytes.embedding),
            ]
        };
        Sheet::new(&columns, self.residency.iter().map(cells))
    }
}

fn rows_sheet(what: &'static str, rows: &[FaultRow]) -> Sheet {
    let columns = [
        (what, what),
        ("minor faults", "minor_faults"),
        ("major faults", "major_faults"),
        ("while decoding", "decode_faults"),
        ("delivered", "delivered_bytes"),
    ];
    let cells = |row: &FaultRow| {
        vec![
            Cell::from(&row.name),
            Cell::Count(row.minor_faults),
            Cell::Count(row.major_faults),
            Cell::Count(row.decode_faults),
            Cell::Bytes(row.delivered_bytes),
        ]
    };
    Sheet::new(&columns, rows.iter().map(cells))
}
