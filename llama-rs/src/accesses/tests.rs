//! Operations made by hand, for what no small model has: views, planes, strides and indices for nothing.

use super::*;

/// Tensors in a buffer of weights or of results, freed when dropped.
struct Buffer {
    raw: sys::ggml_backend_buffer_t,
    data: Vec<i32>,
}

impl Buffer {
    fn new(usage: sys::ggml_backend_buffer_usage) -> Buffer {
        // SAFETY: the CPU's buffer type is static; the buffer is owned by the result.
        let raw = unsafe {
            let raw = sys::ggml_backend_buft_alloc_buffer(sys::ggml_backend_cpu_buffer_type(), 64);
            sys::ggml_backend_buffer_set_usage(raw, usage);
            raw
        };
        assert!(!raw.is_null());
        Buffer {
            raw,
            data: vec![0; 4096],
        }
    }

    fn weights() -> Buffer {
        Buffer::new(sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS)
    }

    /// A contiguous tensor of 4-byte elements.
    fn tensor(&mut self, ggml_type: sys::ggml_type, ne: [i64; 4]) -> sys::ggml_tensor {
        // SAFETY: a tensor is a plain C struct, for which zeros are a valid value.
        let mut tensor: sys::ggml_tensor = unsafe { std::mem::zeroed() };
        tensor.type_ = ggml_type;
        tensor.buffer = self.raw;
        tensor.data = self.data.as_mut_ptr().cast();
        tensor.ne = ne;
        tensor.nb = [4, 4 * ne[0] as usize, 0, 0];
        tensor.nb[2] = tensor.nb[1] * ne[1] as usize;
        tensor.nb[3] = tensor.nb[2] * ne[2] as usize;
        tensor
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: owned, and freed once.
        unsafe { sys::ggml_backend_buffer_free(self.raw) }
    }
}

/// A view of `tensor` that starts at `offset`, with the same strides.
fn view(tensor: &mut sys::ggml_tensor, offset: usize, ne: [i64; 4]) -> sys::ggml_tensor {
    let mut view = *tensor;
    view.op = sys::GGML_OP_VIEW;
    view.view_src = std::ptr::from_mut(tensor);
    view.view_offs = offset;
    view.data = tensor.data.cast::<u8>().wrapping_add(offset).cast();
    view.ne = ne;
    view
}

/// A node with these sources.
fn node(op: sys::ggml_op, sources: &mut [&mut sys::ggml_tensor]) -> sys::ggml_tensor {
    // SAFETY: a tensor is a plain C struct, for which zeros are a valid value.
    let mut node: sys::ggml_tensor = unsafe { std::mem::zeroed() };
    node.op = op;
    node.ne = [1; 4];
    for (slot, source) in node.src.iter_mut().zip(sources) {
        *slot = std::ptr::from_mut(*source);
    }
    node
}

type Found = (Which, u64, u64, u32);

fn read(node: &sys::ggml_tensor) -> Vec<Found> {
    // SAFETY: a node whose sources live as long as the test's variables.
    let nodes = [unsafe { NodeRef::from_raw(node) }.unwrap()];
    let mut found = Vec::new();
    // SAFETY: nothing computes, so nothing changes.
    let pending = unsafe { Pending::new(&nodes, 0) };
    AccessReader::new().read(&pending, |access| {
        found.push((
            access.which,
            access.offset_bytes,
            access.size_bytes,
            access.n_used,
        ));
    });
    found
}

#[test]
fn rows_of_planes_are_rows_of_the_tensor() {
    let (mut weights, mut other) = (Buffer::weights(), Buffer::new(0));
    let mut weight = weights.tensor(sys::GGML_TYPE_F32, [8, 5, 2, 1]);
    other.data[..6].copy_from_slice(&[4, 0, 4, 1, -1, 2]);
    let mut ids = other.tensor(sys::GGML_TYPE_I32, [3, 2, 1, 1]);
    let rows = [4, 0, 4, 5 + 1, 5 + 2].map(|row| (Which::Row(row), 32 * u64::from(row), 32, 1));
    assert_eq!(
        read(&node(sys::GGML_OP_GET_ROWS, &mut [&mut weight, &mut ids])),
        rows
    );
}

#[test]
fn indices_have_strides_and_some_stand_for_nothing() {
    let (mut weights, mut other) = (Buffer::weights(), Buffer::new(0));
    let mut weight = weights.tensor(sys::GGML_TYPE_F32, [4, 3, 6, 1]);
    let mut activations = other.tensor(sys::GGML_TYPE_F32, [4, 2, 2, 1]);
    let mut sorted = Buffer::new(0);
    // Two of six columns are used, as from a sort of all of them.
    sorted.data[..12].copy_from_slice(&[5, 2, 0, 1, 3, 4, 2, -1, 0, 1, 3, 5]);
    let mut all = sorted.tensor(sys::GGML_TYPE_I32, [6, 2, 1, 1]);
    let mut ids = view(&mut all, 0, [2, 2, 1, 1]);
    let experts = node(
        sys::GGML_OP_MUL_MAT_ID,
        &mut [&mut weight, &mut activations, &mut ids],
    );
    let expected = [
        (Which::Matrix(2), 96, 48, 2),
        (Which::Matrix(5), 240, 48, 1),
    ];
    assert_eq!(read(&experts), expected);

    let mut bias = weights.tensor(sys::GGML_TYPE_F32, [4, 6, 1, 1]);
    let added = node(
        sys::GGML_OP_ADD_ID,
        &mut [&mut activations, &mut bias, &mut ids],
    );
    let expected = [(Which::Row(2), 32, 16, 2), (Which::Row(5), 80, 16, 1)];
    assert_eq!(read(&added), expected);

    // Index 5 is outside of a weight with 3 experts; ggml refuses it, the reader only must not fail.
    let mut few = weights.tensor(sys::GGML_TYPE_F32, [4, 3, 3, 1]);
    let outside = node(
        sys::GGML_OP_MUL_MAT_ID,
        &mut [&mut few, &mut activations, &mut ids],
    );
    assert_eq!(read(&outside), [(Which::Matrix(2), 96, 48, 2)]);
}

#[test]
fn views_lead_to_their_weight() {
    let (mut weights, mut other) = (Buffer::weights(), Buffer::new(0));
    let mut weight = weights.tensor(sys::GGML_TYPE_F32, [8, 10, 1, 1]);
    let mut activations = other.tensor(sys::GGML_TYPE_F32, [8, 1, 1, 1]);
    let mut half = view(&mut weight, 5 * 32, [8, 5, 1, 1]);
    let product = node(sys::GGML_OP_MUL_MAT, &mut [&mut half, &mut activations]);
    assert_eq!(read(&product), [(Which::Whole, 160, 160, 1)]);

    other.data[..2].copy_from_slice(&[0, 3]);
    let mut ids = other.tensor(sys::GGML_TYPE_I32, [2, 1, 1, 1]);
    let rows = node(sys::GGML_OP_GET_ROWS, &mut [&mut half, &mut ids]);
    let expected = [(Which::Row(5), 160, 32, 1), (Which::Row(8), 256, 32, 1)];
    assert_eq!(read(&rows), expected);

    // Rows that are halves of the weight's rows.
    let mut narrow = view(&mut weight, 16, [4, 20, 1, 1]);
    narrow.nb[1] = 16;
    let rows = node(sys::GGML_OP_GET_ROWS, &mut [&mut narrow, &mut ids]);
    let expected = [(Which::Whole, 16, 16, 1), (Which::Whole, 64, 16, 1)];
    assert_eq!(read(&rows), expected);
}

#[test]
fn what_is_no_weight_and_what_computes_nothing_is_no_access() {
    let (mut weights, mut other) = (Buffer::weights(), Buffer::new(0));
    let mut weight = weights.tensor(sys::GGML_TYPE_F32, [8, 10, 1, 1]);
    let mut cache = other.tensor(sys::GGML_TYPE_F32, [8, 10, 1, 1]);
    let mut result = weights.tensor(sys::GGML_TYPE_F32, [8, 10, 1, 1]);
    result.op = sys::GGML_OP_ADD;
    assert!(read(&node(sys::GGML_OP_MUL_MAT, &mut [&mut cache, &mut result])).is_empty());
    let mut product = node(sys::GGML_OP_MUL_MAT, &mut [&mut weight, &mut cache]);
    assert_eq!(read(&product), [(Which::Whole, 0, 320, 1)]);
    product.ne[1] = 0;
    assert!(read(&product).is_empty());
}
