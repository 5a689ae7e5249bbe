//! The layout of the repacked kernels.

use llama_sys as sys;

/// How rows of a weight are brought into the layout that the CPU's repacked kernels read: the bytes of each group of some
/// rows, 16 at most, change places among themselves. See `ggml_backend_cpu_repack` in the patched `ggml-cpu.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packing {
    ggml_type: sys::ggml_type,
    n_per_row: i64,
    row_bytes: usize,
}

impl Packing {
    /// Whoever splits a matrix, to repack it with several threads, splits it behind a multiple of this many rows.
    pub const PART_ROWS: usize = 16;

    /// That of a tensor, if it is repacked where it is.
    pub(crate) fn of(tensor: &sys::ggml_tensor) -> Option<Packing> {
        if tensor.flags.cast_unsigned() & sys::GGML_TENSOR_FLAG_REPACKED == 0 {
            return None;
        }
        Some(Packing {
            ggml_type: tensor.type_,
            n_per_row: tensor.ne[0],
            // SAFETY: takes numbers; the tensor has this type, and so has rows of this length.
            row_bytes: unsafe { sys::ggml_row_size(tensor.type_, tensor.ne[0]) },
        })
    }

    /// Bytes of one row, before and after.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Repacks whole rows in place: all rows of a matrix, or a part that begins behind a multiple of
    /// [`PART_ROWS`](Packing::PART_ROWS). Applied twice it gives neither the one nor the other layout. Allocates the size of
    /// 16 rows.
    ///
    /// Gives `false`, with the bytes in no order, if that failed: there was no memory, or `rows` are not rows of the weight.
    #[must_use]
    pub fn repack(&self, rows: &mut [u8]) -> bool {
        if !rows.len().is_multiple_of(self.row_bytes) {
            return false;
        }
        let n_rows = (rows.len() / self.row_bytes) as i64;
        // SAFETY: `rows` are writable and hold this many rows of the type; the type has repacked kernels, or the tensor would
        // not have had its flag, and if it has none for this number of rows, the result says so.
        unsafe {
            sys::ggml_backend_cpu_repack(
                self.ggml_type,
                self.n_per_row,
                n_rows,
                rows.as_mut_ptr().cast(),
            )
        }
    }
}
