//! Which bytes are read again, by operations and from the device.

use serde::{Deserialize, Serialize};
use tracer::WeightClass;

use super::About;
use super::delivered::{Delivered, PhaseDelivered};
use super::section::{Cell, Question, Section, Sheet};
use super::stream::Phase;
use super::tally::{Classes, Spread, Tally};
use super::weights::Model;
use crate::text::{count, percent, share, size};

/// Slices and experts that are listed.
const LISTED: usize = 100;

/// How often a tensor was read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReuseTensor {
    /// Its name.
    pub name: String,
    /// `dense`, `experts`, `embedding` or `outside` (in no file).
    pub kind: String,
    /// Reads: of slices each, otherwise of all of it.
    pub n_reads: u64,
    /// Different slices that were read.
    pub n_slices_read: u64,
    /// All reads together.
    pub consumed_bytes: u64,
    /// Bytes that were read at least once.
    pub touched_bytes: u64,
    /// How many times each of these was read, on average.
    pub reads_per_byte: f64,
}

/// How often one slice was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReuseSlice {
    /// The tensor.
    pub tensor: String,
    /// Number of the slice.
    pub slice: u32,
    /// Reads of it.
    pub n_reads: u64,
    /// All of them together.
    pub consumed_bytes: u64,
}

/// What the device was asked for more than once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Again {
    /// A tensor, a kind of weight, or an expert.
    pub name: String,
    /// Read from the device.
    pub delivered_bytes: u64,
    /// Of these, bytes of pages that had been read from the device before.
    pub again_bytes: u64,
    /// Their share of all bytes that were read again.
    pub share_of_again: f64,
}

/// What the device delivered, against what operations read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// Read from the device, at any time.
    pub delivered_bytes: u64,
    /// Of these, bytes of pages that had been read before.
    pub again_bytes: u64,
    /// Delivered bytes divided by consumed bytes, both of decode steps; `None` where nothing was generated.
    pub decode_amplification: Option<f64>,
    /// Read from the device in decode steps.
    pub decode_delivered_bytes: u64,
    /// Of these, bytes of pages that had been read before.
    pub decode_again_bytes: u64,
    /// By kind of weight.
    pub kinds: Vec<Again>,
    /// By component, those first of which most was read again.
    #[serde(default)]
    pub components: Vec<Again>,
    /// Tensors of which something was delivered, those first of which most was read again.
    pub tensors: Vec<Again>,
    /// The same of experts, with all their tensors; at most 100.
    pub experts: Vec<Again>,
}

/// Pages that had to be read more than once, seen from page faults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultsAgain {
    /// Major faults in the model's files.
    pub n_major: u64,
    /// Of these, on pages that had such a fault before.
    pub n_again: u64,
    /// The latter by kind of weight.
    pub again_by_kind: Classes,
    /// The tensors with most of them.
    pub tensors: Vec<(String, u64)>,
}

/// Which bytes are read again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reuse {
    /// All reads together.
    pub consumed_bytes: u64,
    /// Bytes that were read at least once.
    pub touched_bytes: u64,
    /// Bytes that one generated token reads; `None` without a whole step that generates one.
    pub consumed_bytes_per_token: Option<Spread>,
    /// The same by kind of weight.
    pub per_token_by_kind: Vec<(String, Spread)>,
    /// Tensors that were read, those first of which most was read again.
    pub tensors: Vec<ReuseTensor>,
    /// The slices that were read most often; at most 100.
    pub slices: Vec<ReuseSlice>,
    /// `None` if the log has no reads of the device.
    pub delivery: Option<Delivery>,
    /// `None` if the log has no page faults.
    pub faults: Option<FaultsAgain>,
}

impl Reuse {
    pub(crate) fn of(model: &Model, tally: &Tally<'_>, delivered: &Delivered<'_>) -> Reuse {
        let mut tensors = Vec::new();
        let mut slices: Vec<(u64, usize, u32)> = Vec::new();
        for (id, weight) in model.weights.iter().enumerate() {
            let sums = &tally.tensors[id];
            if sums.reads() == 0 {
                continue;
            }
            let (consumed, touched) = (sums.consumed_bytes(), tally.touched_bytes(id));
            tensors.push(ReuseTensor {
                name: weight.name.clone(),
                kind: weight.class.name().to_owned(),
                n_reads: sums.reads(),
                n_slices_read: tally.n_slices_read(id),
                consumed_bytes: consumed,
                touched_bytes: touched,
                reads_per_byte: share(consumed, touched),
            });
            if weight.kind.is_some() {
                for slice in 0..weight.n_slices {
                    let n_reads = tally.reads_of(id, slice as usize);
                    if n_reads > 0 {
                        slices.push((n_reads, id, slice));
                    }
                }
                keep_most(&mut slices);
            }
        }
        tensors.sort_by(|a, b| {
            let again = |row: &ReuseTensor| row.consumed_bytes.saturating_sub(row.touched_bytes);
            again(b).cmp(&again(a)).then_with(|| a.name.cmp(&b.name))
        });
        let totals = tensors
            .iter()
            .fold((0u64, 0u64), |(consumed, touched), row| {
                (
                    consumed.saturating_add(row.consumed_bytes),
                    touched.saturating_add(row.touched_bytes),
                )
            });
        let kinds = WeightClass::ALL.iter().zip(&tally.per_token);
        let per_token = tally.per_token_total.spread();
        Reuse {
            consumed_bytes: totals.0,
            touched_bytes: totals.1,
            consumed_bytes_per_token: (per_token.n > 0).then_some(per_token),
            per_token_by_kind: kinds
                .map(|(class, values)| (class.name().to_owned(), values.spread()))
                .filter(|(_, spread)| spread.max > 0)
                .collect(),
            tensors,
            slices: slices
                .into_iter()
                .map(|(n_reads, id, slice)| ReuseSlice {
                    tensor: model.weights[id].name.clone(),
                    slice,
                    n_reads,
                    consumed_bytes: n_reads.saturating_mul(model.weights[id].stride_bytes),
                })
                .collect(),
            delivery: delivered
                .has_block
                .then(|| delivery(model, tally, delivered)),
            faults: delivered.has_faults.then(|| faults(model, delivered)),
        }
    }

    /// In words and tables.
    pub fn section(&self, about: &About) -> Section {
        let mut section = Section::new(Question::Reuse);
        match &self.consumed_bytes_per_token {
            Some(spread) => {
                let kinds: Vec<String> = self
                    .per_token_by_kind
                    .iter()
                    .map(|(name, spread)| format!("{name} {}", size(spread.mean as u64)))
                    .collect();
                section.find(format!(
                    "A generated token reads {} ({}).",
                    size(spread.mean as u64),
                    kinds.join(", ")
                ));
                section.fact("consumed_bytes_per_token", spread.mean);
            }
            None => section.cannot.push(
                "how much a token reads: no whole step of the log generates one token".to_owned(),
            ),
        }
        section.fact("consumed_bytes", self.consumed_bytes as f64);
        section.fact(
            "reads_per_byte",
            share(self.consumed_bytes, self.touched_bytes),
        );
        if let Some(most) = self.tensors.first() {
            let from = if about.n_lost > 0 {
                " in what is left of the log"
            } else {
                ""
            };
            section.find(format!(
                "The {} that were read at all{from} were read {:.1} times on average; most was read again of {} ({:.1} times).",
                size(self.touched_bytes),
                share(self.consumed_bytes, self.touched_bytes),
                most.name,
                most.reads_per_byte,
            ));
        }
        if let Some(most) = self.slices.first() {
            section.find(format!(
                "The slice that was read most often is {} of {}: {} times.",
                most.slice,
                most.tensor,
                count(most.n_reads)
            ));
        }
        self.extra(&mut section);
        section.table("Tensors by what was read again", self.tensors_sheet());
        section.table("Slices by reads", self.slices_sheet());
        if let Some(delivery) = &self.delivery {
            section.table(
                "Read from the device again, by kind",
                again_sheet(&delivery.kinds),
            );
            section.table(
                "Read from the device again, by component",
                again_sheet(&delivery.components),
            );
            section.table(
                "Read from the device again, by tensor",
                again_sheet(&delivery.tensors),
            );
            section.table(
                "Read from the device again, by expert",
                again_sheet(&delivery.experts),
            );
        }
        section
    }

    fn extra(&self, section: &mut Section) {
        if let Some(delivery) = &self.delivery {
            if let Some(amplification) = delivery.decode_amplification {
                section.find(format!(
                    "While generating, the device delivered {}: {amplification:.3} bytes for each one that an operation read.",
                    size(delivery.decode_delivered_bytes)
                ));
                section.fact("decode_amplification", amplification);
            }
            if delivery.again_bytes == 0 {
                section.find("The device was asked for no byte twice.".to_owned());
            } else {
                let mut kinds = delivery.kinds.clone();
                kinds.sort_by_key(|kind| std::cmp::Reverse(kind.again_bytes));
                let parts: Vec<String> = kinds
                    .iter()
                    .filter(|kind| kind.again_bytes > 0)
                    .map(|kind| format!("{} {}", kind.name, percent(kind.share_of_again)))
                    .collect();
                section.find(format!(
                    "Of the {} that the device delivered, {} had been delivered before ({}): {}.",
                    size(delivery.delivered_bytes),
                    size(delivery.again_bytes),
                    percent(share(delivery.again_bytes, delivery.delivered_bytes)),
                    parts.join(", ")
                ));
                let most = delivery.components.first().zip(delivery.tensors.first());
                if let Some((component, tensor)) = most {
                    section.find(format!(
                        "Most was delivered again of {} ({}), and of {} among the tensors ({}).",
                        component.name,
                        percent(component.share_of_again),
                        tensor.name,
                        size(tensor.again_bytes)
                    ));
                }
            }
            section.fact("again_bytes", delivery.again_bytes as f64);
            return;
        }
        let Some(faults) = &self.faults else {
            section.cannot.push(
                "what is read from the device again: the log has neither reads of it nor page faults; \
                 record with --block or --faults"
                    .to_owned(),
            );
            return;
        };
        section.find(format!(
            "Of {} major page faults, {} were on pages that had been read for a fault before{}.",
            count(faults.n_major),
            count(faults.n_again),
            match faults.tensors.first() {
                Some((name, n)) => format!("; most of them in {name} ({})", count(*n)),
                None => String::new(),
            }
        ));
        section.fact("major_faults_again", faults.n_again as f64);
        section.cannot.push(
            "how many bytes the device delivered: faults do not say how much was read ahead; record with --block"
                .to_owned(),
        );
    }

    fn tensors_sheet(&self) -> Sheet {
        let columns = [
            ("tensor", "tensor"),
            ("kind", "kind"),
            ("reads", "n_reads"),
            ("slices", "n_slices_read"),
            ("consumed", "consumed_bytes"),
            ("read at least once", "touched_bytes"),
            ("times", "reads_per_byte"),
        ];
        let rows = self.tensors.iter().map(|row| {
            vec![
                Cell::from(&row.name),
                Cell::from(&row.kind),
                Cell::Count(row.n_reads),
                Cell::Count(row.n_slices_read),
                Cell::Bytes(row.consumed_bytes),
                Cell::Bytes(row.touched_bytes),
                Cell::Number(row.reads_per_byte),
            ]
        });
        Sheet::new(&columns, rows)
    }

    fn slices_sheet(&self) -> Sheet {
        let columns = [
            ("tensor", "tensor"),
            ("slice", "slice"),
            ("reads", "n_reads"),
            ("consumed", "consumed_bytes"),
        ];
        let rows = self.slices.iter().map(|row| {
            vec![
                Cell::from(&row.tensor),
                Cell::Count(u64::from(row.slice)),
                Cell::Count(row.n_reads),
                Cell::Bytes(row.consumed_bytes),
            ]
        });
        Sheet::new(&columns, rows)
    }
}

/// The slices with most reads; of equal ones those that come first in the model.
fn keep_most(slices: &mut Vec<(u64, usize, u32)>) {
    let order = |a: &(u64, usize, u32), b: &(u64, usize, u32)| {
        b.0.cmp(&a.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2)))
    };
    slices.sort_by(order);
    slices.truncate(LISTED);
}

fn delivery(model: &Model, tally: &Tally<'_>, delivered: &Delivered<'_>) -> Delivery {
    let sum = |of: fn(&PhaseDelivered) -> &Classes| {
        let mut sum = Classes::default();
        for phase in &delivered.phases {
            for class in WeightClass::ALL {
                sum.add(class, of(phase).of(class));
            }
        }
        sum
    };
    let all = sum(|phase| &phase.delivered_bytes);
    let again = sum(|phase| &phase.again_bytes);
    let again_total = again.total();
    let row = |name: String, delivered_bytes, again_bytes| Again {
        name,
        delivered_bytes,
        again_bytes,
        share_of_again: share(again_bytes, again_total),
    };
    let kinds = WeightClass::ALL
        .iter()
        .map(|class| row(class.name().to_owned(), all.of(*class), again.of(*class)))
        .filter(|kind| kind.delivered_bytes > 0);
    let tensors = model.weights.iter().zip(&delivered.tensors);
    let mut components = vec![(0, 0); model.components.len()];
    for (weight, sums) in tensors.clone() {
        let (all, again) = &mut components[weight.component as usize];
        *all += sums.bytes.iter().sum::<u64>();
        *again += sums.again_bytes.iter().sum::<u64>();
    }
    let components = model.components.iter().zip(components);
    let components = components
        .map(|(name, (all, again))| row(name.clone(), all, again))
        .filter(|row| row.delivered_bytes > 0);
    let tensors = tensors
        .map(|(weight, sums)| {
            row(
                weight.name.clone(),
                sums.bytes.iter().sum(),
                sums.again_bytes.iter().sum(),
            )
        })
        .filter(|row| row.delivered_bytes > 0);
    let mut experts = std::collections::BTreeMap::<(u32, u32), (u64, u64)>::new();
    for weight in &model.weights {
        let (Some(layer), WeightClass::Experts) = (weight.layer, weight.class) else {
            continue;
        };
        for (slice, slot) in (0..).zip(weight.slots()) {
            let sums = experts.entry((layer, slice)).or_default();
            sums.0 += delivered.slot_bytes.get(slot).unwrap_or(&0);
            sums.1 += delivered.slot_again_bytes.get(slot).unwrap_or(&0);
        }
    }
    let experts = experts
        .into_iter()
        .map(|((layer, expert), (all, again))| {
            row(format!("layer {layer}, expert {expert}"), all, again)
        })
        .filter(|row| row.delivered_bytes > 0);
    let sorted = |rows: Vec<Again>, n: usize| {
        let mut rows = rows;
        rows.sort_by_key(|row| std::cmp::Reverse((row.again_bytes, row.delivered_bytes)));
        rows.truncate(n);
        rows
    };
    let decode = &delivered.phases[Phase::Decode as usize];
    let consumed = tally.consumed[1].total();
    Delivery {
        delivered_bytes: all.total(),
        again_bytes: again_total,
        decode_amplification: (consumed > 0)
            .then(|| decode.delivered_bytes.total() as f64 / consumed as f64),
        decode_delivered_bytes: decode.delivered_bytes.total(),
        decode_again_bytes: decode.again_bytes.total(),
        kinds: kinds.collect(),
        components: sorted(components.collect(), usize::MAX),
        tensors: sorted(tensors.collect(), usize::MAX),
        experts: sorted(experts.collect(), LISTED),
    }
}

fn faults(model: &Model, delivered: &Delivered<'_>) -> FaultsAgain {
    let mut again_by_kind = Classes::default();
    let mut tensors = Vec::new();
    for (weight, sums) in model.weights.iter().zip(&delivered.tensors) {
        again_by_kind.add(weight.class, sums.major_again);
        if sums.major_again > 0 {
            tensors.push((weight.name.clone(), sums.major_again));
        }
    }
    tensors.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    tensors.truncate(LISTED);
    let phases = delivered.phases.iter();
    FaultsAgain {
        n_major: phases.map(|phase| phase.major_faults.total()).sum(),
        n_again: again_by_kind.total(),
        again_by_kind,
        tensors,
    }
}

fn again_sheet(rows: &[Again]) -> Sheet {
    let columns = [
        ("what", "name"),
        ("delivered", "delivered_bytes"),
        ("of these again", "again_bytes"),
        ("share of all again", "share_of_again"),
    ];
    let cells = |row: &Again| {
        vec![
            Cell::from(&row.name),
            Cell::Bytes(row.delivered_bytes),
            Cell::Bytes(row.again_bytes),
            Cell::Share(row.share_of_again),
        ]
    };
    Sheet::new(&columns, rows.iter().map(cells))
}
