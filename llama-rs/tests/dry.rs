//! What llama.cpp says without weights is what it allocates with them.

mod common;

use common::{TinyModel, context_params};
use llama_rs::{
    Backend, BufferUse, Context, ContextParams, DryModel, Error, FlashAttention, KvType,
    ModelParams, Prefetch, repacked_bytes,
};

fn context_bytes(buffers: &[BufferUse]) -> u64 {
    buffers.iter().map(|buffer| buffer.context_bytes).sum()
}

fn compute_bytes(buffers: &[BufferUse]) -> u64 {
    buffers.iter().map(|buffer| buffer.compute_bytes).sum()
}

#[test]
fn a_dry_context_is_as_large_as_a_real_one() {
    let wide = ContextParams {
        n_ctx: 700,
        n_batch: 512,
        n_ubatch: 512,
        type_k: KvType::Q8_0,
        type_v: KvType::Q8_0,
        ..context_params()
    };
    let unfused = ContextParams {
        flash_attn: FlashAttention::Disabled,
        ..context_params()
    };
    for shape in [
        "tiny-llama",
        "tiny-llama-untied-q4_k",
        "tiny-gpt-oss",
        "tiny-qwen3moe",
        "tiny-deepseek2",
        "tiny-deepseek2-mha",
    ] {
        let tiny = TinyModel::new(shape);
        for prefetch in [Prefetch::Eager, Prefetch::Selective] {
            let params = ModelParams {
                prefetch,
                ..ModelParams::default()
            };
            let model = tiny.load(&params);
            let dry = DryModel::load(&Backend::init(), tiny.path(), &params).unwrap();
            assert_eq!(dry.n_ctx_train(), model.n_ctx_train());
            for params in [&context_params(), &wide, &unfused] {
                let counted = dry.context(params).unwrap();
                let real = Context::new(&model, params).unwrap();
                let buffers = real.memory_breakdown().unwrap();
                assert_eq!(counted.kv_bytes(), context_bytes(&buffers), "{shape}");
                assert_eq!(counted.compute_bytes(), compute_bytes(&buffers), "{shape}");
                assert_eq!(
                    repacked_bytes(&counted.buffers),
                    repacked_bytes(&buffers),
                    "{shape}"
                );
                let extras = real.memory_extras().unwrap();
                assert_eq!(counted.extras, extras, "{shape}");
                assert!(extras.work_bytes > 0 && extras.outputs_bytes > 0);
                assert_eq!(
                    extras.flash_attention,
                    params.flash_attn != FlashAttention::Disabled
                );
                assert_eq!(
                    (counted.n_ctx, counted.n_ubatch),
                    (real.n_ctx(), real.n_ubatch())
                );
            }
        }
    }
}

#[test]
fn sparse_weights_are_repacked_only_when_they_are_read_up_front() {
    let tiny = TinyModel::new("tiny-gpt-oss");
    let repacked = |prefetch, repack| {
        let params = ModelParams {
            prefetch,
            repack,
            ..ModelParams::default()
        };
        let dry = DryModel::load(&Backend::init(), tiny.path(), &params).unwrap();
        repacked_bytes(&dry.context(&context_params()).unwrap().buffers)
    };
    assert_eq!(repacked(Prefetch::Eager, false), 0);
    // Nothing but the experts has a type that is repacked.
    assert_eq!(repacked(Prefetch::Selective, true), 0);
    if Backend::build_info().cpu_features.contains("AVX2 = 1") {
        assert!(repacked(Prefetch::Eager, true) > 1 << 20);
    }
}

#[test]
fn bad_models_and_parameters_are_refused_as_when_loading() {
    let tiny = TinyModel::new("tiny-llama");
    let path = tiny.folder().join("text.gguf");
    std::fs::write(&path, "no model").unwrap();
    let error = DryModel::load(&Backend::init(), &path, &ModelParams::default()).unwrap_err();
    assert!(matches!(error, Error::Gguf(_)), "{error}");
    let dry = DryModel::load(&Backend::init(), tiny.path(), &ModelParams::default()).unwrap();
    let none = ContextParams {
        n_ctx: 0,
        ..context_params()
    };
    let error = dry.context(&none).unwrap_err();
    assert!(matches!(error, Error::InvalidParameter { .. }), "{error}");
}
