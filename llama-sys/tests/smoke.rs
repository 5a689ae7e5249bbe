//! The bindings call the linked libraries.

use std::ffi::CStr;

use llama_sys::*;

#[test]
fn default_parameters_have_upstream_values() {
    // SAFETY: these functions have no preconditions.
    let (model, context) = unsafe {
        llama_backend_init();
        (llama_model_default_params(), llama_context_default_params())
    };
    assert!(model.use_extra_bufts && !model.vocab_only);
    assert_eq!(
        (context.n_ctx, context.n_batch, context.n_ubatch),
        (512, 2048, 512)
    );
    assert_eq!(
        (context.type_k, context.type_v),
        (GGML_TYPE_F16, GGML_TYPE_F16)
    );
    assert_eq!(context.flash_attn_type, LLAMA_FLASH_ATTN_TYPE_AUTO);
    assert!(
        context.cb_eval.is_none()
            && context.abort_callback.is_none()
            && context.ctx_other.is_null()
    );
}

#[test]
fn the_library_is_the_pinned_one() {
    // SAFETY: the functions return static strings.
    let (ggml, features) = unsafe {
        (
            CStr::from_ptr(ggml_version()),
            CStr::from_ptr(llama_print_system_info()),
        )
    };
    assert_eq!(ggml.to_str().unwrap(), GGML_VERSION);
    assert!(features.to_str().unwrap().contains("CPU"));
}

#[test]
fn a_model_that_cannot_be_loaded_is_a_status() {
    let mut model = std::ptr::null_mut();
    let mut path = c"/no/such/model.gguf".as_ptr();
    // SAFETY: the paths live through the call, and `model` is a valid place for the result.
    let status = unsafe {
        faultline_model_load(
            &mut path,
            1,
            llama_model_default_params(),
            std::ptr::null(),
            std::ptr::null_mut(),
            &mut model,
        )
    };
    assert_eq!(status, FAULTLINE_ERR_NULL as i32);
    assert!(model.is_null());
    // SAFETY: the message is valid until the next failure of this thread.
    let message = unsafe { CStr::from_ptr(faultline_last_error()) };
    assert_eq!(message, c"the model could not be loaded");
}

#[test]
fn architectures_are_known_by_name() {
    // SAFETY: the names are valid C strings.
    unsafe {
        for name in [c"llama", c"gpt-oss", c"qwen3moe", c"deepseek2"] {
            assert!(faultline_arch_known(name.as_ptr()), "{name:?}");
        }
        for name in [c"", c"gpt-os", c"(unknown)", c"clip"] {
            assert!(!faultline_arch_known(name.as_ptr()), "{name:?}");
        }
        let count = (0..)
            .take_while(|&i| !faultline_arch_name(i).is_null())
            .count();
        assert!(count > 100, "{count}");
    }
}
