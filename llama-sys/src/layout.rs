//! The layouts that Rust code relies on, written down once more.
//!
//! bindgen takes layouts from the headers of the tree. A layout that moves there, by a new upstream version or by a patch,
//! stops the build here, where somebody decides what it means for the code that fills these structs in.

use std::mem::{align_of, offset_of, size_of};

use crate::bindings::*;

/// Asserts size, alignment and the offset of every named field.
macro_rules! layout {
    ($type:ty, size $size:literal, align $align:literal, $($field:ident $offset:literal),+ $(,)?) => {
        const _: () = {
            assert!(size_of::<$type>() == $size, concat!("size of ", stringify!($type)));
            assert!(align_of::<$type>() == $align, concat!("alignment of ", stringify!($type)));
            $(assert!(
                offset_of!($type, $field) == $offset,
                concat!("offset of ", stringify!($type), ".", stringify!($field)),
            );)+
        };
    };
}

layout! { llama_model_params, size 80, align 8,
    devices 0, tensor_buft_overrides 8, n_gpu_layers 16, split_mode 20, load_mode 24, lazy_mode 28, main_gpu 32,
    tensor_split 40, progress_callback 48, progress_callback_user_data 56, kv_overrides 64, vocab_only 72,
    check_tensors 73, use_extra_bufts 74, no_host 75, no_alloc 76, load_mtp 77,
}

layout! { llama_context_params, size 168, align 8,
    n_ctx 0, n_batch 4, n_ubatch 8, n_seq_max 12, n_rs_seq 16, n_outputs_max 20, n_outputs_max_per_seq 24, n_threads 28,
    n_threads_batch 32, ctx_type 36, rope_scaling_type 40, pooling_type 44, attention_type 48, flash_attn_type 52,
    rope_freq_base 56, rope_freq_scale 60, yarn_ext_factor 64, yarn_attn_factor 68, yarn_beta_fast 72, yarn_beta_slow 76,
    yarn_orig_ctx 80, defrag_thold 84, cb_eval 88, cb_eval_user_data 96, type_k 104, type_v 108, moe_cache_size 112,
    abort_callback 120, abort_callback_data 128, embeddings 136, offload_kqv 137, no_perf 138, op_offload 139,
    swa_full 140, kv_unified 141, samplers 144, n_samplers 152, ctx_other 160,
}

layout! { llama_batch, size 56, align 8,
    n_tokens 0, token 8, embd 16, pos 24, n_seq_id 32, seq_id 40, logits 48,
}

layout! { llama_chat_message, size 16, align 8, role 0, content 8 }

layout! { llama_sampler_chain_params, size 1, align 1, no_perf 0 }

layout! { llama_perf_context_data, size 56, align 8,
    t_start_ms 0, t_load_ms 8, t_p_eval_ms 16, t_eval_ms 24, n_p_eval 32, n_eval 36, n_reused 40, n_reallocs_same 44,
    n_reallocs_diff 48,
}

layout! { ggml_tensor, size 336, align 8,
    type_ 0, buffer 8, ne 16, nb 48, op 80, op_params 84, flags 148, src 152, view_src 232, view_offs 240, data 248,
    name 256, extra 320,
}

layout! { ggml_backend_cpu_lazy_i, size 24, align 8, begin 0, get 8, end 16 }

layout! { faultline_buffer_use, size 40, align 8, name 0, is_host 8, model 16, context 24, compute 32 }

layout! { faultline_context_sizes, size 24, align 8, work 0, graph 8, flash_attn 16 }

layout! { faultline_type_traits, size 32, align 8, name 0, block_elements 8, block_bytes 16, is_quantized 24 }
