//! What a context costs: memory by kind of buffer, and time.

use std::ffi::CStr;

use llama_sys as sys;

use crate::error::Result;
use crate::shim;

/// Bytes in one kind of buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferUse {
    /// llama.cpp's name of the kind: `CPU_Mapped` is the model file, `CPU` anonymous memory, `CPU_REPACK` the copies
    /// of repacked weights.
    pub name: String,
    /// Weights.
    pub model_bytes: u64,
    /// KV cache and other state.
    pub context_bytes: u64,
    /// Intermediate results.
    pub compute_bytes: u64,
}

impl BufferUse {
    /// Sum of the three.
    pub fn total_bytes(&self) -> u64 {
        self.model_bytes + self.context_bytes + self.compute_bytes
    }
}

/// Weights that are copied into another layout: all that llama.cpp does not put into plain CPU memory.
pub fn repacked_bytes(buffers: &[BufferUse]) -> u64 {
    let plain = ["CPU", "CPU_Mapped"];
    let others = buffers
        .iter()
        .filter(|buffer| !plain.contains(&buffer.name.as_str()));
    others.map(|buffer| buffer.model_bytes).sum()
}

/// Kinds of buffers asked for at first; the CPU alone has about five.
const KINDS_EXPECTED: usize = 16;

/// Wraps `llama_get_memory_breakdown`.
pub(crate) fn breakdown(context: *const sys::llama_context) -> Result<Vec<BufferUse>> {
    let empty = sys::faultline_buffer_use {
        name: std::ptr::null(),
        is_host: false,
        model: 0,
        context: 0,
        compute: 0,
    };
    let mut uses = vec![empty; KINDS_EXPECTED];
    let mut count = 0;
    for _ in 0..2 {
        // SAFETY: the caller's context is alive; `uses` is writable for its length.
        shim::check("llama_get_memory_breakdown", unsafe {
            sys::faultline_memory_breakdown(context, uses.as_mut_ptr(), uses.len(), &mut count)
        })?;
        if count <= uses.len() {
            break;
        }
        uses.resize(count, empty);
    }
    uses.truncate(count);
    Ok(uses.iter().map(from_raw).collect())
}

fn from_raw(raw: &sys::faultline_buffer_use) -> BufferUse {
    let name = if raw.name.is_null() {
        String::new()
    } else {
        // SAFETY: the shim gives NUL-terminated static names.
        unsafe { CStr::from_ptr(raw.name) }
            .to_string_lossy()
            .into_owned()
    };
    BufferUse {
        name,
        model_bytes: raw.model as u64,
        context_bytes: raw.context as u64,
        compute_bytes: raw.compute as u64,
    }
}

/// What a context allocates besides the buffers that llama.cpp lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryExtras {
    /// Work buffer of the CPU backend, as large as the largest graph needs it.
    pub work_bytes: u64,
    /// Logits of the most rows that one decode may ask for.
    pub outputs_bytes: u64,
    /// Descriptions of graphs: one for planning, and one each for graphs with and without logits.
    pub graphs_bytes: u64,
    /// Whether attention uses the fused kernel.
    pub flash_attention: bool,
}

/// Arenas for descriptions of graphs (`gf_res_reserve` and `gf_res_prev` of `llama_context`).
const GRAPH_ARENAS: u64 = 3;

/// `context` is alive; `n_logits` is the number of logits that it keeps.
pub(crate) fn extras(
    context: *const sys::llama_context,
    n_threads: i32,
    n_logits: u64,
) -> Result<MemoryExtras> {
    let mut sizes = sys::faultline_context_sizes {
        work: 0,
        graph: 0,
        flash_attn: false,
    };
    // SAFETY: the caller's context is alive; `sizes` is writable.
    shim::check("ggml_graph_plan", unsafe {
        sys::faultline_context_sizes_get(context, n_threads, &mut sizes)
    })?;
    Ok(MemoryExtras {
        work_bytes: sizes.work as u64,
        outputs_bytes: n_logits * size_of::<f32>() as u64,
        graphs_bytes: GRAPH_ARENAS * sizes.graph as u64,
        flash_attention: sizes.flash_attn,
    })
}

/// Time and counts of a context, as llama.cpp measures them. It never reports a count below 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Perf {
    /// Loading the model, in milliseconds.
    pub load_ms: f64,
    /// Batches of more than one token, in milliseconds.
    pub prompt_ms: f64,
    /// Tokens in those batches.
    pub n_prompt: u32,
    /// Batches of one token, in milliseconds.
    pub decode_ms: f64,
    /// Number of those batches.
    pub n_decode: u32,
}

impl Perf {
    pub(crate) fn from_raw(raw: &sys::llama_perf_context_data) -> Perf {
        Perf {
            load_ms: raw.t_load_ms,
            prompt_ms: raw.t_p_eval_ms,
            n_prompt: u32::try_from(raw.n_p_eval).unwrap_or(0),
            decode_ms: raw.t_eval_ms,
            n_decode: u32::try_from(raw.n_eval).unwrap_or(0),
        }
    }
}
