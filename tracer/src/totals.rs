//! What a run consumed and what was delivered for it, phase by phase.

use crate::{
    Access, FaultsElsewhere, Flags, KernelMark, NO_STEP, Places, Record, SliceKind, Tables,
    bytes_of,
};

/// What kind of weight a byte of a model file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightClass {
    /// Read in full for every token.
    Dense,
    /// Experts.
    Experts,
    /// The token embedding, which is read by rows.
    Embedding,
    /// No tensor: metadata, and gaps between tensors. For accesses: tensors that are in no file.
    Outside,
}

impl WeightClass {
    /// All of them, in the order of [`ByClass`].
    pub const ALL: [WeightClass; 4] = [
        WeightClass::Dense,
        WeightClass::Experts,
        WeightClass::Embedding,
        WeightClass::Outside,
    ];

    /// A word for people.
    pub fn name(self) -> &'static str {
        match self {
            WeightClass::Dense => "dense",
            WeightClass::Experts => "experts",
            WeightClass::Embedding => "embedding",
            WeightClass::Outside => "outside",
        }
    }
}

/// A number for each [`WeightClass`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ByClass([u64; 4]);

impl ByClass {
    /// The number of one class.
    pub fn of(&self, class: WeightClass) -> u64 {
        self.0[class as usize]
    }

    /// The sum.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    fn add(&mut self, class: WeightClass, n: u64) {
        self.0[class as usize] += n;
    }
}

/// What happened in one phase of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PhaseTotals {
    /// Accesses.
    pub n_accesses: u64,
    /// Bytes that operations read.
    pub consumed_bytes: ByClass,
    /// Minor faults in mappings of the model's files.
    pub minor_faults: ByClass,
    /// Major faults in mappings of the model's files.
    pub major_faults: ByClass,
    /// Minor faults in other memory.
    pub minor_elsewhere: u64,
    /// Major faults in other memory.
    pub major_elsewhere: u64,
    /// Bytes of the model's files that were read from the device.
    pub delivered_bytes: ByClass,
    /// Requests that read them; one that spans several pieces of a file counts for each.
    pub n_block_reads: u64,
    /// Events of the kernel that were lost.
    pub n_lost: u64,
}

/// Totals of a log by phase.
#[derive(Debug, Clone)]
pub struct Totals {
    /// Before the first decode call.
    pub load: PhaseTotals,
    /// Decode calls with a prompt, and what follows each of them until the next.
    pub prompt: PhaseTotals,
    /// The others.
    pub decode: PhaseTotals,
    places: Places,
    classes: Vec<WeightClass>,
    tables: Tables,
}

impl Totals {
    /// Nothing yet, for logs with these tables.
    pub fn new(tables: &Tables) -> Totals {
        let class = |name: &str| match SliceKind::of(name) {
            Some(SliceKind::Expert) => WeightClass::Experts,
            Some(SliceKind::Row) => WeightClass::Embedding,
            None => WeightClass::Dense,
        };
        let tensors = tables.tensors.iter();
        Totals {
            load: PhaseTotals::default(),
            prompt: PhaseTotals::default(),
            decode: PhaseTotals::default(),
            places: Places::new(tables),
            classes: tensors.map(|tensor| class(&tensor.name)).collect(),
            tables: tables.clone(),
        }
    }

    /// Adds the next record of the log.
    pub fn push(&mut self, record: &Record) {
        let phase = if record.step == NO_STEP {
            &mut self.load
        } else if record.flags.has(Flags::PROMPT) {
            &mut self.prompt
        } else {
            &mut self.decode
        };
        let class = |tensor: u32| {
            let class = self.classes.get(tensor as usize).copied();
            class.unwrap_or(WeightClass::Outside)
        };
        if !record.op.is_mark() {
            phase.n_accesses += 1;
            if let Some(tensor) = self.tables.tensors.get(record.tensor as usize) {
                let access = Access {
                    tensor: record.tensor,
                    slice: record.slice,
                    n_used: 1,
                };
                let bytes = bytes_of(tensor, access);
                let size_bytes = bytes.end - bytes.start;
                phase.consumed_bytes.add(class(record.tensor), size_bytes);
            }
            return;
        }
        match KernelMark::of(record) {
            Some(KernelMark::Fault(fault)) => {
                let place = self.places.find(fault.file, fault.offset_bytes);
                let class = place.map_or(WeightClass::Outside, |(tensor, _)| class(tensor));
                let faults = if fault.is_major {
                    &mut phase.major_faults
                } else {
                    &mut phase.minor_faults
                };
                faults.add(class, 1);
            }
            Some(KernelMark::BlockRead(read)) => {
                phase.n_block_reads += 1;
                let range = read.offset_bytes..read.offset_bytes + read.size_bytes;
                let delivered = &mut phase.delivered_bytes;
                let outside = self.places.split(read.file, range, |tensor, part| {
                    delivered.add(class(tensor), part.end - part.start);
                });
                delivered.add(WeightClass::Outside, outside);
            }
            Some(KernelMark::FaultsElsewhere(FaultsElsewhere {
                n_minor,
                n_major,
                n_lost,
                ..
            })) => {
                phase.minor_elsewhere += u64::from(n_minor);
                phase.major_elsewhere += u64::from(n_major);
                phase.n_lost += u64::from(n_lost);
            }
            Some(KernelMark::Resident(_)) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockRead, Fault, ModelFile, Op, Tensor, WHOLE};

    #[test]
    fn what_happened_is_told_apart_by_phase_and_class() {
        let tensor = |name: &str, offset_bytes, n_slices: u32| Tensor {
            name: name.to_owned(),
            offset_bytes,
            size_bytes: 8192,
            slice_stride_bytes: 8192 / u64::from(n_slices),
            n_slices,
            ..Tensor::default()
        };
        let tables = Tables {
            files: vec![ModelFile::default()],
            tensors: vec![
                tensor("token_embd.weight", 4096, 8),
                tensor("blk.0.ffn_up_exps.weight", 12_288, 4),
                tensor("output.weight", 20_480, 1),
            ],
            ..Tables::default()
        };
        let mut totals = Totals::new(&tables);
        let mut push = |step, flags, mark: KernelMark| totals.push(&mark.record(step, flags));
        let fault = |offset_bytes, is_major| {
            KernelMark::Fault(Fault {
                time_ns: 0,
                file: 0,
                offset_bytes,
                is_major,
            })
        };
        push(NO_STEP, Flags::default(), fault(0, true));
        push(0, Flags::PROMPT, fault(4096, false));
        push(1, Flags::default(), fault(13_000, true));
        let read = BlockRead {
            time_ns: 0,
            latency_ns: 1,
            file: 0,
            offset_bytes: 0,
            size_bytes: 16_384,
        };
        push(1, Flags::default(), KernelMark::BlockRead(read));
        for (tensor, slice) in [(1, 3), (2, WHOLE), (77, WHOLE)] {
            totals.push(&Record {
                step: 1,
                tensor,
                slice,
                op: Op::MUL_MAT,
                ..Record::default()
            });
        }

        assert_eq!(totals.load.major_faults.of(WeightClass::Outside), 1);
        assert_eq!(totals.prompt.minor_faults.of(WeightClass::Embedding), 1);
        let decode = totals.decode;
        assert_eq!(decode.major_faults.of(WeightClass::Experts), 1);
        assert_eq!(
            WeightClass::ALL.map(|class| decode.delivered_bytes.of(class)),
            [0, 4096, 8192, 4096]
        );
        assert_eq!(
            WeightClass::ALL.map(|class| decode.consumed_bytes.of(class)),
            [8192, 2048, 0, 0]
        );
        assert_eq!((decode.n_accesses, decode.n_block_reads), (3, 1));
    }
}
