//! Which bytes of which weights an operation reads.

use std::fmt;

use llama_sys as sys;

use crate::observer::Pending;
use crate::slices::Which;
use crate::tensors::{NodeRef, SourceRef, WeightRef};

/// One operation reading one slice of a weight.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// The operation. Of fused ones, the one that has the weight among its sources.
    pub node: NodeRef<'a>,
    /// The weight.
    pub weight: WeightRef<'a>,
    /// Which part of it. [`Which::Whole`] also for a view that is no row and no matrix of the weight; `offset_bytes` and
    /// `size_bytes` tell its extent.
    pub which: Which,
    /// Where the slice begins, in bytes from the weight's start, in memory and in the file.
    pub offset_bytes: u64,
    /// Bytes of the slice.
    pub size_bytes: u64,
    /// For a matrix, and for a row that `ADD_ID` adds, how many rows of the result are computed with it: the tokens that
    /// use an expert. Otherwise 1.
    pub n_used: u32,
}

/// Lists the weights that nodes read, from [`NodeObserver::before`](crate::NodeObserver::before).
///
/// | operation | accesses |
/// |---|---|
/// | `GET_ROWS` | each row, in the order in which it is asked for, repeated ones too |
/// | `MUL_MAT_ID` | each matrix (expert) that is used, once, ascending |
/// | `ADD_ID` | each row that is used, once, ascending |
/// | any other, and sources of these that are no slices | the whole tensor or view |
///
/// Keeps memory between calls: once the largest node was seen nothing is allocated.
#[derive(Default)]
pub struct AccessReader {
    /// By index of a slice: rows of the result that use it.
    counts: Vec<u32>,
}

impl fmt::Debug for AccessReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessReader").finish_non_exhaustive()
    }
}

/// How an operation reads a source.
#[derive(Clone, Copy, PartialEq)]
enum Reads {
    Whole,
    /// Rows by the indices in `src[1]`, which select within each plane of the source.
    Rows,
    /// Distinct slices along this dimension, by the indices in `src[2]`.
    Distinct(usize),
}

impl Reads {
    fn of(op: sys::ggml_op, index: usize) -> Reads {
        match (op, index) {
            (sys::GGML_OP_GET_ROWS, 0) => Reads::Rows,
            (sys::GGML_OP_MUL_MAT_ID, 0) => Reads::Distinct(2),
            (sys::GGML_OP_ADD_ID, 1) => Reads::Distinct(1),
            _ => Reads::Whole,
        }
    }
}

impl AccessReader {
    /// A reader that has not allocated yet.
    pub fn new() -> AccessReader {
        AccessReader::default()
    }

    /// Calls `each` with every access of the nodes that are about to be computed.
    pub fn read<'a>(&mut self, pending: &Pending<'a>, mut each: impl FnMut(Access<'a>)) {
        for (position, node) in pending.nodes().iter().enumerate() {
            if node.is_empty() {
                continue;
            }
            for (index, source) in node.sources() {
                let Some(weight) = source.weight() else {
                    continue;
                };
                let part = Part {
                    node: *node,
                    source,
                    weight,
                };
                let reads = Reads::of(node.op_id(), index);
                // Indices of later nodes of a fused group need not be there yet; nothing fuses operations that have any.
                let ids = match reads {
                    Reads::Whole => None,
                    Reads::Rows | Reads::Distinct(_) if position > 0 => None,
                    Reads::Rows => pending.indices(1),
                    Reads::Distinct(_) => pending.indices(2),
                };
                match (reads, ids) {
                    (Reads::Rows, Some(ids)) => ids.for_each(|id, [_, i1, i2]| {
                        part.row(id, i1, i2).into_iter().for_each(&mut each);
                    }),
                    (Reads::Distinct(dim), Some(ids)) => {
                        let n = usize::try_from(source.ne()[dim]).unwrap_or(0);
                        self.count(&ids, n);
                        for (id, &n_used) in self.counts.iter().enumerate() {
                            if n_used > 0 {
                                each(part.slice(dim, id, n_used));
                            }
                        }
                    }
                    _ => each(part.whole()),
                }
            }
        }
    }

    /// Counts how often each of `n` slices is named. Negative indices stand for none.
    fn count(&mut self, ids: &Indices<'_>, n: usize) {
        self.counts.clear();
        self.counts.resize(n, 0);
        ids.for_each(|id, _| {
            let count = usize::try_from(id)
                .ok()
                .and_then(|id| self.counts.get_mut(id));
            if let Some(count) = count {
                *count += 1;
            }
        });
    }
}

/// A weight, or a view of it, as the source of a node.
struct Part<'a> {
    node: NodeRef<'a>,
    source: SourceRef<'a>,
    weight: WeightRef<'a>,
}

impl<'a> Part<'a> {
    fn access(
        &self,
        which: Which,
        offset_bytes: usize,
        size_bytes: usize,
        n_used: u32,
    ) -> Access<'a> {
        Access {
            node: self.node,
            weight: self.weight,
            which,
            offset_bytes: offset_bytes as u64,
            size_bytes: size_bytes as u64,
            n_used,
        }
    }

    fn whole(&self) -> Access<'a> {
        self.access(
            Which::Whole,
            self.source.offset_bytes(),
            self.source.size_bytes(),
            1,
        )
    }

    /// Row `id` of plane (`i1`, `i2`); `None` for a negative index, which stands for no row.
    fn row(&self, id: i32, i1: usize, i2: usize) -> Option<Access<'a>> {
        let id = usize::try_from(id).ok()?;
        let nb = self.source.nb();
        let offset = self.source.offset_bytes() + id * nb[1] + i1 * nb[2] + i2 * nb[3];
        Some(self.access(self.which(1, offset), offset, nb[1], 1))
    }

    fn slice(&self, dim: usize, id: usize, n_used: u32) -> Access<'a> {
        let stride = self.source.nb()[dim];
        let offset = self.source.offset_bytes() + id * stride;
        self.access(self.which(dim, offset), offset, stride, n_used)
    }

    /// The slice of the weight itself that begins at `offset`, when the source's slices are those of the weight.
    fn which(&self, dim: usize, offset: usize) -> Which {
        let stride = self.weight.nb()[dim];
        if stride == 0 || stride != self.source.nb()[dim] || !offset.is_multiple_of(stride) {
            return Which::Whole;
        }
        let id = (offset / stride) as u32;
        if dim == 1 {
            Which::Row(id)
        } else {
            Which::Matrix(id)
        }
    }
}

/// The indices by which an operation selects slices: a view of `i32`, with strides.
#[derive(Clone, Copy, Debug)]
pub struct Indices<'a> {
    source: SourceRef<'a>,
}

impl<'a> Indices<'a> {
    /// # Safety
    ///
    /// `source` holds indices of an operation that has not finished: its data are complete and do not change for 'a.
    pub(crate) unsafe fn new(source: SourceRef<'a>) -> Option<Indices<'a>> {
        let is_readable = source.tensor().type_ == sys::GGML_TYPE_I32 && !source.data().is_null();
        is_readable.then_some(Indices { source })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        let sizes = self.source.ne();
        sizes
            .iter()
            .map(|&n| usize::try_from(n).unwrap_or(0))
            .product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `each` with every index and its place in the dimensions 0 to 2. Negative ones stand for no slice.
    pub fn for_each(&self, mut each: impl FnMut(i32, [usize; 3])) {
        let [ne0, ne1, ne2, ne3] = self.source.ne().map(|n| usize::try_from(n).unwrap_or(0));
        let [nb0, nb1, nb2, nb3] = self.source.nb();
        for i3 in 0..ne3 {
            for i2 in 0..ne2 {
                for i1 in 0..ne1 {
                    let row = i1 * nb1 + i2 * nb2 + i3 * nb3;
                    for i0 in 0..ne0 {
                        // SAFETY: inside the tensor by its sizes and strides; `new` was promised data that are complete
                        // and stay as they are, and checked their type. ggml aligns elements.
                        let id = unsafe {
                            self.source
                                .data()
                                .add(row + i0 * nb0)
                                .cast::<i32>()
                                .read_unaligned()
                        };
                        each(id, [i0, i1, i2]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
