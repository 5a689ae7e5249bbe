//! The tensors of a log in one flat table, as records number them.

use tracer::{LogReader, ModelFile, Places, SliceKind, Source, WHOLE, WeightClass};

/// Most slices that are counted one by one, over all tensors: more than any model has. It bounds the memory that a
/// log's tables can ask for.
const SLICES_MAX: u64 = 1 << 22;
/// Offsets and sizes beyond this are those of a damaged table: 4 TiB. So all tensors of the largest table together have
/// fewer than 2^64 bytes.
pub(crate) const BYTES_MAX: u64 = 1 << 42;

/// A tensor that records read.
#[derive(Debug, Clone)]
pub(crate) struct Weight {
    pub(crate) name: String,
    /// Index into [`Model::components`].
    pub(crate) component: u32,
    pub(crate) layer: Option<u32>,
    /// `None` for a tensor that is in no file.
    pub(crate) file: Option<u32>,
    /// First byte in its file.
    pub(crate) begin: u64,
    pub(crate) size_bytes: u64,
    pub(crate) stride_bytes: u64,
    /// 0 if the table contradicts itself: then no slice of it is counted.
    pub(crate) n_slices: u32,
    /// Place of slice 0 in tables that have an entry for each slice.
    pub(crate) first_slot: u32,
    pub(crate) class: WeightClass,
    pub(crate) kind: Option<SliceKind>,
    /// Whether tokens read slices of it rather than all of it.
    pub(crate) is_sparse: bool,
}

impl Weight {
    /// Where a read begins in the file, and its size. `None` for a slice that the tensor does not have.
    #[inline]
    pub(crate) fn read(&self, slice: u32) -> Option<(u64, u64)> {
        if slice == WHOLE {
            Some((self.begin, self.size_bytes))
        } else if slice < self.n_slices {
            let begin = self.begin + u64::from(slice) * self.stride_bytes;
            Some((begin, self.stride_bytes))
        } else {
            None
        }
    }

    /// Places of its slices in tables that have an entry for each slice.
    pub(crate) fn slots(&self) -> std::ops::Range<usize> {
        let first = self.first_slot as usize;
        first..first + self.n_slices as usize
    }
}

/// What a log says about its model, arranged for counting.
#[derive(Debug)]
pub(crate) struct Model {
    /// By the numbers of records: those of the files, then the extra ones.
    pub(crate) weights: Vec<Weight>,
    pub(crate) components: Vec<String>,
    pub(crate) files: Vec<ModelFile>,
    /// Entries of tables that have one for each slice.
    pub(crate) n_slots: usize,
    /// One more than the highest number of a layer.
    pub(crate) n_layers: usize,
    pub(crate) places: Places,
    /// Tensors whose slices are not counted because the table contradicts itself.
    pub(crate) n_contradictions: usize,
}

impl Model {
    pub(crate) fn of<S: Source>(log: &LogReader<S>) -> Model {
        let tables = log.tables();
        let has_output = tables.tensors.iter().any(|t| t.name == "output.weight");
        let mut model = Model {
            weights: Vec::with_capacity(tables.tensors.len() + log.extras().len()),
            components: Vec::new(),
            files: tables.files.clone(),
            n_slots: 0,
            n_layers: 0,
            places: Places::new(tables),
            n_contradictions: 0,
        };
        let mut component_ids = std::collections::HashMap::new();
        for tensor in &tables.tensors {
            let kind = SliceKind::of(&tensor.name).filter(|_| tensor.n_slices > 1);
            let component = model.component(&tensor.component, &mut component_ids);
            model.push(Weight {
                name: tensor.name.clone(),
                component,
                layer: layer(tensor.layer),
                file: Some(tensor.file),
                begin: tensor.offset_bytes,
                size_bytes: tensor.size_bytes,
                stride_bytes: tensor.slice_stride_bytes,
                n_slices: tensor.n_slices,
                first_slot: 0,
                class: match SliceKind::of(&tensor.name) {
                    Some(SliceKind::Expert) => WeightClass::Experts,
                    Some(SliceKind::Row) => WeightClass::Embedding,
                    None => WeightClass::Dense,
                },
                kind,
                is_sparse: match kind {
                    Some(SliceKind::Expert) => true,
                    // A tied embedding is the output matrix, too.
                    Some(SliceKind::Row) => has_output,
                    None => false,
                },
            });
        }
        for extra in log.extras() {
            let name = extra.kind.name().unwrap_or("other");
            let component = model.component(name, &mut component_ids);
            model.push(Weight {
                name: extra.name.clone(),
                component,
                layer: layer(extra.layer),
                file: None,
                begin: 0,
                size_bytes: extra.size_bytes,
                stride_bytes: extra.slice_stride_bytes,
                n_slices: extra.n_slices,
                first_slot: 0,
                class: WeightClass::Outside,
                kind: None,
                is_sparse: false,
            });
        }
        model
    }

    fn component(&mut self, name: &str, ids: &mut std::collections::HashMap<String, u32>) -> u32 {
        *ids.entry(name.to_owned()).or_insert_with(|| {
            self.components.push(name.to_owned());
            (self.components.len() - 1) as u32
        })
    }

    /// Adds a tensor whose numbers agree with each other; of others only the name counts.
    fn push(&mut self, mut weight: Weight) {
        let slices_bytes = u64::from(weight.n_slices).checked_mul(weight.stride_bytes);
        let end = weight.begin.checked_add(weight.size_bytes);
        let agrees = end.is_some_and(|end| end <= BYTES_MAX)
            && slices_bytes.is_some_and(|bytes| bytes <= weight.size_bytes)
            && self.n_slots as u64 + u64::from(weight.n_slices) <= SLICES_MAX;
        if !agrees {
            weight.n_slices = 0;
            self.n_contradictions += 1;
            if end.is_none_or(|end| end > BYTES_MAX) {
                (weight.begin, weight.size_bytes) = (0, 0);
            }
        }
        weight.first_slot = self.n_slots as u32;
        self.n_slots += weight.n_slices as usize;
        if let Some(layer) = weight.layer {
            self.n_layers = self.n_layers.max(layer as usize + 1);
        }
        self.weights.push(weight);
    }

    #[inline]
    pub(crate) fn get(&self, tensor: u32) -> Option<&Weight> {
        self.weights.get(tensor as usize)
    }

    /// Size of all files.
    pub(crate) fn file_bytes(&self) -> u64 {
        let sizes = self.files.iter().map(|file| file.size_bytes.min(BYTES_MAX));
        sizes.fold(0, u64::saturating_add)
    }

    /// Calls `each` with the slots of a tensor that have bytes in a range of its file, and how many bytes each.
    pub(crate) fn slots_in(
        &self,
        tensor: u32,
        range: std::ops::Range<u64>,
        mut each: impl FnMut(usize, u64),
    ) {
        let Some(weight) = self.get(tensor).filter(|weight| weight.n_slices > 0) else {
            return;
        };
        let stride = weight.stride_bytes.max(1);
        let (from, to) = (
            range.start.saturating_sub(weight.begin),
            range.end.saturating_sub(weight.begin),
        );
        let mut at = from;
        while at < to {
            let slice = at / stride;
            if slice >= u64::from(weight.n_slices) {
                return;
            }
            let end = ((slice + 1) * stride).min(to);
            each(weight.first_slot as usize + slice as usize, end - at);
            at = end;
        }
    }
}

/// Numbers of layers that a model can have; others are those of a damaged table.
const LAYERS_MAX: i32 = 1 << 16;

fn layer(number: i32) -> Option<u32> {
    (0..LAYERS_MAX)
        .contains(&number)
        .then_some(number.unsigned_abs())
}
