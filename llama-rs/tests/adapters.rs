//! LoRA adapters change what is computed, belong to their model, and are refused when they do not fit it.

#[path = "common/rewrite.rs"]
mod rewrite;
mod support;

use std::path::{Path, PathBuf};

use gguf::{GgmlType, Value};
use llama_rs::{
    Backend, Batch, Context, ContextParams, Error, FlashAttention, KvType, LoraAdapter, Model,
    ModelParams, Prefetch, Token,
};
use model_shapes::{Shape, generate_adapter};
use rewrite::{Change, rewrite};
use support::{context, folder, logits, model_file, params};

const QUERY: &str = "blk.0.attn_q.weight";

fn model(folder: &Path, shape: &str) -> (PathBuf, Model) {
    let path = model_file(folder, &Shape::by_name(shape).unwrap());
    let model = Model::load(&Backend::init(), &path, &params(Prefetch::Eager)).unwrap();
    (path, model)
}

/// An adapter for `weights`, and its file.
fn adapter(path: &Path, model: &mut Model, weights: &[&str], seed: u64) -> (PathBuf, LoraAdapter) {
    let file = path.with_extension(format!("{}-{seed}.lora", weights[0]));
    generate_adapter(path, &file, weights, seed).unwrap();
    let adapter = LoraAdapter::load(model, &file).unwrap();
    (file, adapter)
}

#[test]
fn an_adapter_changes_the_logits_while_it_is_set() {
    let folder = folder();
    let shapes = [
        ("tiny-llama", vec![QUERY, "blk.1.ffn_down.weight"]),
        (
            "tiny-llama-untied",
            vec!["token_embd.weight", "output.weight"],
        ),
        ("tiny-qwen3moe", vec!["blk.0.ffn_up_exps.weight"]),
    ];
    for (shape, weights) in shapes {
        let (path, mut model) = model(folder.path(), shape);
        let plain = logits(&mut context(&model, 2));
        let (_, first) = adapter(&path, &mut model, &weights, 1);
        let (_, second) = adapter(&path, &mut model, &weights, 2);
        let with = |scales: &[(&LoraAdapter, f32)]| {
            let mut context = context(&model, 2);
            context.set_lora(scales).unwrap();
            logits(&mut context)
        };
        assert_eq!(with(&[]), plain, "{shape}: loaded and not set");
        assert_eq!(with(&[(&first, 0.0), (&second, -0.0)]), plain, "{shape}");
        let changed = with(&[(&first, 1.0)]);
        let others = [
            plain.clone(),
            with(&[(&first, 0.5)]),
            with(&[(&second, 1.0)]),
            with(&[(&first, 1.0), (&second, 1.0)]),
        ];
        for other in &others {
            assert_ne!(&changed, other, "{shape}");
        }
        assert_eq!(with(&[(&first, 1.0), (&second, 0.0)]), changed, "{shape}");

        // The same context, one after the other: no graph of the one before is used again.
        let mut context = context(&model, 2);
        for (scales, expected) in [
            (&[(&first, 1.0)][..], &changed),
            (&[], &plain),
            (&[(&first, 0.5)], &others[1]),
            (&[(&first, 1.0)], &changed),
        ] {
            context.set_lora(&[(&second, 1.0)]).unwrap();
            context.set_lora(scales).unwrap();
            context.clear_kv();
            assert_eq!(&logits(&mut context), expected, "{shape}: {scales:?}");
        }
    }
}

#[test]
fn adapters_work_with_repacked_and_lazy_weights() {
    let folder = folder();
    let path = model_file(
        folder.path(),
        &Shape::by_name("tiny-qwen3moe-q8_0").unwrap(),
    );
    for (prefetch, repack) in [(Prefetch::Eager, true), (Prefetch::Selective, false)] {
        let params = ModelParams {
            prefetch,
            repack,
            ..ModelParams::default()
        };
        let mut model = Model::load(&Backend::init(), &path, &params).unwrap();
        let weights = ["blk.0.ffn_up_exps.weight", "blk.1.attn_v.weight"];
        let (_, adapter) = adapter(&path, &mut model, &weights, 1);
        let plain = logits(&mut context(&model, 2));
        let mut context = context(&model, 2);
        context.set_lora(&[(&adapter, 1.0)]).unwrap();
        assert_ne!(logits(&mut context), plain, "{prefetch}, repack {repack}");
    }
}

#[test]
fn adapters_of_other_models_and_impossible_scales_are_refused() {
    let folder = folder();
    let (path, mut first) = model(folder.path(), "tiny-llama");
    let (_, mut second) = model(folder.path(), "tiny-llama");
    let (_, of_first) = adapter(&path, &mut first, &[QUERY], 1);
    let (_, of_second) = adapter(&path, &mut second, &[QUERY], 1);
    let plain = logits(&mut context(&first, 2));
    let mut context = context(&first, 2);
    for (scales, reason) in [
        (&[(&of_second, 1.0)][..], "another model"),
        (&[(&of_first, f32::NAN)], "not finite"),
        (&[(&of_first, 1.0), (&of_first, 2.0)], "twice"),
    ] {
        let error = context.set_lora(scales).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(logits(&mut context), plain);
}

#[test]
fn an_adapter_that_the_graph_cannot_take_leaves_a_context_that_works() {
    let folder = folder();
    // The output of this model is its token embedding, for which llama.cpp would need the adapter in both directions.
    let (path, mut model) = model(folder.path(), "tiny-llama");
    let (_, adapter) = adapter(&path, &mut model, &["token_embd.weight"], 1);
    let plain = logits(&mut context(&model, 2));
    let mut context = context(&model, 2);
    let error = context.set_lora(&[(&adapter, 1.0)]).unwrap_err();
    assert!(matches!(error, Error::Native { .. }), "{error}");
    assert_eq!(logits(&mut context), plain);
}

#[test]
fn files_that_are_no_adapter_for_the_model_are_refused() {
    let folder = folder();
    let (path, mut model) = model(folder.path(), "tiny-qwen3moe");
    let experts = "blk.0.ffn_up_exps.weight";
    let (good, _) = adapter(&path, &mut model, &[QUERY, experts], 1);
    let (a, b) = (format!("{QUERY}.lora_a"), format!("{QUERY}.lora_b"));
    let set = |key: &str, value: Value| Change::Set(key.to_owned(), value);
    let reshape = |name: &str, dims: &[u64]| Change::Reshape(name.to_owned(), dims.to_vec());
    let dims = |name: &str| {
        let file = gguf::Gguf::open(&good).unwrap();
        file.tensor(name).unwrap().dims.clone()
    };
    let (a_dims, exps_a) = (dims(&a), format!("{experts}.lora_a"));
    let exps_dims = dims(&exps_a);
    let changes = [
        (set("general.type", "model".into()), "general.type"),
        (set("general.type", 1u32.into()), "general.type"),
        (Change::Remove("general.type".into()), "general.type"),
        (set("adapter.type", "control".into()), "adapter.type"),
        (
            set("general.architecture", "llama".into()),
            "general.architecture",
        ),
        (set("adapter.lora.alpha", 4u32.into()), "alpha"),
        (set("adapter.lora.alpha", f32::NAN.into()), "alpha"),
        (set("adapter.alora.invocation_tokens", 1u32.into()), "alora"),
        (Change::RemoveTensor(a.clone()), "lora_a is missing"),
        (Change::RemoveTensor(b.clone()), "lora_b is missing"),
        (Change::Retype(a.clone(), GgmlType::I32), "i32"),
        (reshape(&a, &[a_dims[0], 5]), "do not fit"),
        (reshape(&a, &[a_dims[0] + 1, a_dims[1]]), "do not fit"),
        (reshape(&a, &[a_dims[0], a_dims[1], 2]), "do not fit"),
        (reshape(&a, &[a_dims[0], 0]), ""),
        (
            reshape(&exps_a, &[exps_dims[0], exps_dims[1], 1]),
            "do not fit",
        ),
    ];
    let bad = folder.path().join("bad.gguf");
    for (change, reason) in changes {
        if !rewrite(&good, &bad, std::slice::from_ref(&change)) {
            continue;
        }
        let error = LoraAdapter::load(&mut model, &bad).unwrap_err().to_string();
        assert!(
            error.contains("bad.gguf") && error.contains(reason),
            "{change:?}: {error}"
        );
    }
    for (file, reason) in [(path.as_path(), "general.type"), (folder.path(), "folder")] {
        let error = LoraAdapter::load(&mut model, file).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let other = model_file(folder.path(), &Shape::by_name("tiny-llama").unwrap());
    let mut other = Model::load(&Backend::init(), other, &ModelParams::default()).unwrap();
    let error = LoraAdapter::load(&mut other, &good).unwrap_err();
    assert!(matches!(error, Error::Adapter { .. }), "{error}");

    // Cut anywhere, it is refused too.
    let bytes = std::fs::read(&good).unwrap();
    for length in (0..bytes.len()).step_by(97) {
        std::fs::write(&bad, &bytes[..length]).unwrap();
        LoraAdapter::load(&mut model, &bad).unwrap_err();
    }
}

/// A process that an assertion ended would fail this test.
#[test]
fn an_adapter_with_a_changed_byte_is_refused_or_works() {
    let folder = folder();
    let (path, mut model) = model(folder.path(), "tiny-qwen3moe");
    let weights = ["blk.0.ffn_up_exps.weight", "token_embd.weight"];
    let (good, _) = adapter(&path, &mut model, &weights, 1);
    let bytes = std::fs::read(&good).unwrap();
    let n_header = gguf::Gguf::open(&good).unwrap().data_offset() as usize;
    let bad = folder.path().join("bad.gguf");
    let mut n_loaded = 0;
    for at in 0..n_header {
        for bits in [0x01, 0x02, 0x80] {
            let mut bytes = bytes.clone();
            bytes[at] ^= bits;
            std::fs::write(&bad, &bytes).unwrap();
            let Ok(adapter) = LoraAdapter::load(&mut model, &bad) else {
                continue;
            };
            n_loaded += 1;
            let mut context = small_context(&model);
            if context.set_lora(&[(&adapter, 1.0)]).is_ok() {
                let mut batch = Batch::new(1, 1);
                batch.add(Token(7), 0, &[0], true).unwrap();
                context.decode(&batch).unwrap();
            }
        }
    }
    assert!((1..n_header).contains(&n_loaded), "{n_loaded}");
}

fn small_context(model: &Model) -> Context<'_> {
    let params = ContextParams {
        n_ctx: 64,
        n_batch: 1,
        n_ubatch: 1,
        n_threads: 1,
        n_threads_batch: 1,
        ..Default::default()
    };
    Context::new(model, &params).unwrap()
}

#[test]
fn every_type_of_the_kv_cache_works_or_is_refused() {
    let folder = folder();
    let (_, model) = model(folder.path(), "tiny-llama");
    let with = |type_k, type_v, flash_attn| {
        let params = ContextParams {
            n_ctx: 512,
            n_batch: 64,
            n_ubatch: 64,
            n_outputs_max: 64,
            n_threads: 2,
            n_threads_batch: 2,
            type_k,
            type_v,
            flash_attn,
            ..Default::default()
        };
        Context::new(&model, &params).map(|mut context| logits(&mut context))
    };
    let default = logits(&mut context(&model, 2));
    assert_eq!(
        with(KvType::F16, KvType::F16, FlashAttention::Auto).unwrap(),
        default
    );
    let unfused = with(KvType::F16, KvType::F16, FlashAttention::Disabled).unwrap();
    for kind in KvType::ALL {
        for (type_k, type_v) in [(kind, KvType::F16), (KvType::F16, kind), (kind, kind)] {
            let what = format!("{type_k} {type_v}");
            let all = with(type_k, type_v, FlashAttention::Auto).unwrap();
            // The fused kernel takes no f32: llama.cpp converts it to f16 first.
            let same = [KvType::F16, KvType::F32].contains(&kind);
            assert_eq!(all == default, same, "{what}");
            assert!(
                all.iter().all(|&bits| f32::from_bits(bits).is_finite()),
                "{what}"
            );
            match with(type_k, type_v, FlashAttention::Disabled) {
                Ok(all) => assert_eq!(all == unfused, kind == KvType::F16, "{what}"),
                Err(error) => assert!(type_v.is_quantized(), "{what}: {error}"),
            }
        }
    }
}

#[test]
fn heads_that_are_no_multiple_of_a_block_are_refused() {
    let folder = folder();
    let path = model_file(folder.path(), &Shape::by_name("tiny-llama").unwrap());
    // 16 heads of 16 rather than 4 of 64.
    let narrow = folder.path().join("narrow.gguf");
    let changes = [
        Change::Set("llama.attention.head_count".into(), 16u32.into()),
        Change::Set("llama.attention.head_count_kv".into(), 8u32.into()),
        Change::Set("llama.rope.dimension_count".into(), 16u32.into()),
    ];
    assert!(rewrite(&path, &narrow, &changes));
    let model = support::load(&narrow, Prefetch::Eager);
    for flash_attn in [FlashAttention::Auto, FlashAttention::Disabled] {
        for (name, type_k, type_v) in [
            ("type_k", KvType::Q4_0, KvType::F16),
            ("type_v", KvType::F16, KvType::Iq4Nl),
        ] {
            let params = ContextParams {
                type_k,
                type_v,
                flash_attn,
                ..Default::default()
            };
            let error = Context::new(&model, &params).unwrap_err();
            assert!(matches!(error, Error::InvalidParameter { .. }), "{error}");
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }
    assert!(logits(&mut context(&model, 2)).len() > 1);
}
