//! What metadata say about memory is what llama.cpp allocates.

use std::path::{Path, PathBuf};

use analysis::memory::{Answers, Cpu, KV_TYPES, Model, Options, PartKind, Prefetch};
use llama_rs::{Backend, ContextParams, DryContext, DryModel, FlashAttention, KvType, ModelParams};
use model_shapes::{Shape, generate_hollow};

const TINY: [&str; 11] = [
    "tiny-llama",
    "tiny-llama-q4_k",
    "tiny-llama-untied-q4_k",
    "tiny-llama-untied-mxfp4",
    "tiny-gpt-oss",
    "tiny-gpt-oss-q4_k",
    "tiny-qwen3moe",
    "tiny-qwen3moe-q8_0",
    "tiny-deepseek2",
    "tiny-deepseek2-mxfp4",
    "tiny-deepseek2-mha",
];

/// Shapes of models that people use.
const REAL: [&str; 6] = [
    "llama-2-7b",
    "llama-dense",
    "gpt-oss-20b",
    "qwen3-30b-a3b",
    "deepseek-v2-lite",
    "deepseek-v2-lite-mha",
];

fn hollow(folder: &Path, shape: &str) -> PathBuf {
    let path = folder.join(format!("{shape}.gguf"));
    generate_hollow(&Shape::by_name(shape).unwrap(), &path).unwrap();
    path
}

fn cpu() -> Cpu {
    Cpu::from_system_info(&Backend::build_info().cpu_features)
}

fn load(path: &Path, options: &Options) -> DryModel {
    let params = ModelParams {
        repack: options.repack,
        prefetch: match options.prefetch {
            Prefetch::Eager => llama_rs::Prefetch::Eager,
            Prefetch::Selective => llama_rs::Prefetch::Selective,
            Prefetch::None => llama_rs::Prefetch::None,
        },
        ..ModelParams::default()
    };
    DryModel::load(&Backend::init(), path, &params).unwrap()
}

/// `None` for a combination of types that llama.cpp refuses.
fn ask(model: &DryModel, options: &Options) -> Option<DryContext> {
    let kind = |of: gguf::GgmlType| {
        let mut kinds = KvType::ALL.into_iter();
        kinds.find(|kind| kind.ggml_type() == of).unwrap()
    };
    let params = ContextParams {
        n_ctx: options.n_ctx,
        n_batch: 512.max(options.n_ubatch),
        n_ubatch: options.n_ubatch,
        type_k: kind(options.type_k),
        type_v: kind(options.type_v),
        n_threads: options.n_threads,
        n_threads_batch: options.n_threads,
        flash_attn: match options.flash_attention {
            true => FlashAttention::Auto,
            false => FlashAttention::Disabled,
        },
        ..ContextParams::default()
    };
    model.context(&params).ok()
}

#[test]
fn the_kv_cache_is_right_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let mut n_checked = 0;
    for shape in TINY {
        let path = hollow(folder.path(), shape);
        let model = Model::open(&path).unwrap();
        let base = Options {
            cpu: cpu(),
            ..Options::default()
        };
        let dry = load(&path, &base);
        for (index, type_k) in KV_TYPES.into_iter().enumerate() {
            // Each type as key with itself and with its neighbour as value.
            for type_v in [type_k, KV_TYPES[(index + 1) % KV_TYPES.len()]] {
                for (n_ctx, n_ubatch) in [(1, 512), (257, 32), (2000, 512), (4096, 2048)] {
                    let options = Options {
                        n_ctx,
                        n_ubatch,
                        type_k,
                        type_v,
                        ..base
                    };
                    let Some(context) = ask(&dry, &options) else {
                        continue;
                    };
                    let predicted = model.predict(&options, None).part_bytes(PartKind::KvCache);
                    assert_eq!(predicted, context.kv_bytes(), "{shape}: {options:?}");
                    n_checked += 1;
                }
            }
        }
    }
    assert!(n_checked > 400, "only {n_checked} caches were compared");
}

#[test]
fn repacked_copies_are_right_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let mut n_repacked = 0;
    for shape in TINY.into_iter().chain(REAL) {
        let path = hollow(folder.path(), shape);
        let model = Model::open(&path).unwrap();
        for (prefetch, repack) in [
            (Prefetch::Eager, true),
            (Prefetch::Eager, false),
            (Prefetch::Selective, true),
            (Prefetch::None, true),
        ] {
            let options = Options {
                prefetch,
                repack,
                n_ctx: 256,
                cpu: cpu(),
                ..Options::default()
            };
            let context = ask(&load(&path, &options), &options).unwrap();
            let prediction = model.predict(&options, None);
            let predicted = prediction.part_bytes(PartKind::RepackedWeights);
            let answer = llama_rs::repacked_bytes(&context.buffers);
            assert_eq!(predicted, answer, "{shape}: {prefetch:?}, {repack}");
            let mut copies = prediction.weights.repacked.iter();
            assert_eq!(copies.any(|copies| !copies.tensors.is_empty()), answer > 0);
            n_repacked += u32::from(answer > 0);
        }
    }
    assert!(n_repacked > 10 || !cpu().avx2, "{n_repacked}");
}

/// The limit that the project has set itself: 3 % of everything that the process holds.
#[test]
fn estimates_are_within_three_percent_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    for shape in REAL {
        let path = hollow(folder.path(), shape);
        let model = Model::open(&path).unwrap();
        for (n_ctx, n_ubatch, flash_attention) in [
            (4096, 512, true),
            (4096, 512, false),
            (512, 128, true),
            (32_768, 512, true),
        ] {
            let options = Options {
                n_ctx,
                n_ubatch,
                flash_attention,
                repack: false,
                cpu: cpu(),
                n_threads: 2,
                ..Options::default()
            };
            let context = ask(&load(&path, &options), &options).unwrap();
            let estimate = model.predict(&options, None);
            let answers = Answers {
                kv_bytes: context.kv_bytes(),
                compute_bytes: context.compute_bytes(),
                repacked_bytes: 0,
                work_bytes: context.extras.work_bytes,
                outputs_bytes: context.extras.outputs_bytes,
                graphs_bytes: context.extras.graphs_bytes,
                flash_attention: context.extras.flash_attention,
                program_bytes: estimate.part_bytes(PartKind::Program),
                program_file_bytes: estimate.part_bytes(PartKind::ProgramFile),
            };
            let asked = model.predict(&options, Some(&answers));
            let ratio = estimate.held_bytes() as f64 / asked.held_bytes() as f64;
            println!(
                "{shape}, n_ctx {n_ctx}, n_ubatch {n_ubatch}, fused {flash_attention}: {ratio:.4}; compute {:.2} of {:.2} MiB, work {:.2} of {:.2} MiB",
                estimate.part_bytes(PartKind::Compute) as f64 / f64::from(1 << 20),
                answers.compute_bytes as f64 / f64::from(1 << 20),
                estimate.part_bytes(PartKind::Work) as f64 / f64::from(1 << 20),
                answers.work_bytes as f64 / f64::from(1 << 20),
            );
            assert!(
                (0.97..1.03).contains(&ratio),
                "{shape}: {options:?}: {ratio}"
            );
        }
    }
}

#[test]
fn published_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let kv = |shape: &str, n_ctx| {
        let model = Model::open(&hollow(folder.path(), shape)).unwrap();
        let options = Options {
            n_ctx,
            ..Options::default()
        };
        model.predict(&options, None).part_bytes(PartKind::KvCache)
    };
    // 32 layers, keys and values of 4096 numbers of 2 bytes: 512 KiB a token.
    assert_eq!(kv("llama-2-7b", 4096), 2 << 30);
    // 27 layers of 576 numbers with the keys of latent attention; of 16 heads of 192 and 128 without.
    assert_eq!(kv("deepseek-v2-lite", 1024), 1024 * 27 * 576 * 2);
    assert_eq!(
        kv("deepseek-v2-lite-mha", 1024),
        1024 * 27 * 16 * (192 + 128) * 2
    );
    // 12 layers see everything, 12 the last 128 tokens and the ubatch: 640, rounded to 768. 2 KiB a token and layer.
    assert_eq!(kv("gpt-oss-20b", 8192), 12 * (8192 + 768) * 2048);
}
