//! Generated files: what the reader finds in them, and that nothing but shape and seed decides.

use std::fs;
use std::path::{Path, PathBuf};

use gguf::{GgmlType, Gguf, ModelFiles, Value, is_expert_name};
use model_shapes::local::shared_data;
use model_shapes::{ExpertType, Shape, generate, generate_hollow};
use sha2::{Digest, Sha256};

/// A folder in memory where there is one: finished files are synced, and a busy disk takes its
/// time.
fn temporary() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn write(shape: &Shape, folder: &Path, seed: u64) -> PathBuf {
    let path = folder.join(format!("{}-{seed}.gguf", shape.name()));
    generate(shape, &path, seed, &mut |_, _| ()).unwrap();
    path
}

fn digest(path: &Path) -> [u8; 32] {
    Sha256::digest(fs::read(path).unwrap()).into()
}

/// The shapes that are small enough to be written in a test.
fn tiny() -> Vec<Shape> {
    let experts = ["tiny-gpt-oss", "tiny-qwen3moe", "tiny-deepseek2"];
    let typed = experts
        .iter()
        .flat_map(|name| ExpertType::ALL.map(|t| Shape::tiny(name, t).unwrap()));
    let named = Shape::names()
        .iter()
        .filter(|name| name.starts_with("tiny-"));
    typed
        .chain(named.map(|name| Shape::by_name(name).unwrap()))
        .collect()
}

#[test]
fn the_reader_finds_what_the_shape_says() {
    let folder = temporary();
    for shape in tiny() {
        let path = write(&shape, folder.path(), 1);
        let file = Gguf::open(&path).unwrap();
        assert_eq!(file.file_size(), shape.total_bytes(), "{}", shape.name());
        assert!(file.is_packed());
        assert_eq!(file.tensors().len(), shape.tensors().len());
        for (found, expected) in file.tensors().iter().zip(shape.tensors()) {
            assert_eq!(found.name, expected.name);
            assert_eq!(found.ggml_type, expected.ggml_type);
            assert_eq!(found.dims, expected.dims);
            assert_eq!(found.size_bytes, expected.size_bytes);
        }
    }
}

#[test]
fn experts_have_the_type_that_was_asked_for() {
    for name in ["tiny-gpt-oss", "tiny-qwen3moe", "tiny-deepseek2"] {
        for experts in ExpertType::ALL {
            let shape = Shape::tiny(name, experts).unwrap();
            let stacks: Vec<_> = shape
                .tensors()
                .iter()
                .filter(|t| is_expert_name(&t.name))
                .collect();
            assert!(stacks.len() >= 6, "{name}");
            assert!(
                stacks.iter().all(|t| t.ggml_type == experts.ggml_type()),
                "{name}"
            );
            assert!(
                shape.total_bytes() < 16 << 20,
                "{name}: {}",
                shape.total_bytes()
            );
        }
    }
}

#[test]
fn the_seed_and_nothing_else_decides() {
    let folder = temporary();
    for name in [
        "tiny-gpt-oss",
        "tiny-qwen3moe",
        "tiny-deepseek2",
        "tiny-llama",
    ] {
        let shape = Shape::by_name(name).unwrap();
        let first = digest(&write(&shape, folder.path(), 1));
        assert_eq!(first, digest(&write(&shape, folder.path(), 1)), "{name}");
        assert_ne!(first, digest(&write(&shape, folder.path(), 2)), "{name}");
    }
}

#[test]
fn no_two_experts_are_the_same() {
    let folder = temporary();
    let path = write(&Shape::by_name("tiny-gpt-oss").unwrap(), folder.path(), 1);
    let bytes = fs::read(&path).unwrap();
    let file = Gguf::open(&path).unwrap();
    let mut slices: Vec<&[u8]> = file
        .tensors()
        .iter()
        .filter(|t| is_expert_name(&t.name))
        .flat_map(|t| {
            let data = &bytes[t.offset as usize..][..t.size_bytes as usize];
            data.chunks_exact(t.slice_bytes() as usize)
        })
        .collect();
    let n = slices.len();
    slices.sort_unstable();
    slices.dedup();
    assert_eq!((n, slices.len()), (72, 72));
}

#[test]
fn a_hollow_file_has_the_header_and_the_size_of_a_full_one() {
    use std::os::unix::fs::MetadataExt;

    let folder = temporary();
    let shape = Shape::by_name("llama-2-7b").unwrap();
    let path = folder.path().join("hollow.gguf");
    generate_hollow(&shape, &path).unwrap();
    let file = Gguf::open(&path).unwrap();
    assert_eq!(file.file_size(), shape.total_bytes());
    assert!(file.is_packed());
    assert_eq!(file.tensors().len(), shape.tensors().len());
    let on_disk = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(on_disk < 16 << 20, "{on_disk}");
}

#[test]
fn progress_is_told_to_the_end() {
    let folder = temporary();
    let shape = Shape::by_name("tiny-llama").unwrap();
    let mut calls = Vec::new();
    let path = folder.path().join("a.gguf");
    generate(&shape, &path, 1, &mut |done, total| {
        calls.push((done, total))
    })
    .unwrap();
    let total: u64 = shape.tensors().iter().map(|t| t.size_bytes).sum();
    assert_eq!(calls.first(), Some(&(0, total)));
    assert_eq!(calls.last(), Some(&(total, total)));
    assert!(calls.is_sorted());
}

#[test]
fn real_shapes_have_real_sizes() {
    let size = |name: &str| Shape::by_name(name).unwrap().total_bytes() as f64 / 1e9;
    assert!((13.7..13.9).contains(&size("gpt-oss-20b")));
    assert!((18.5..18.6).contains(&size("qwen3-30b-a3b")));
    assert!((10.0..10.7).contains(&size("deepseek-v2-lite")));
    assert!((10.0..10.7).contains(&size("deepseek-v2-lite-mha")));
    assert!((4.8..5.0).contains(&size("llama-dense")));
    assert!((4.0..4.15).contains(&size("llama-2-7b")));
    assert!((3.4..3.5).contains(&size("llama-3b")));
    assert!((1.45..1.55).contains(&size("demo")));

    let demo = Shape::by_name("demo").unwrap();
    let dense: u64 = demo
        .tensors()
        .iter()
        .filter(|t| !is_expert_name(&t.name) && t.name != "token_embd.weight")
        .map(|t| t.size_bytes)
        .sum();
    let share = dense as f64 / demo.total_bytes() as f64;
    assert!((0.12..0.14).contains(&share), "{share}");
}

#[test]
fn the_qwen_shape_is_the_published_one() {
    let Some(index) = shared_data("gguf/truth/tensor_index_qwen3moe.json") else {
        return;
    };
    let index = fs::read(index).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let shape = Shape::by_name("qwen3-30b-a3b").unwrap();
    let published = index["tensors"].as_array().unwrap();
    assert_eq!(published.len(), shape.tensors().len());
    for expected in published {
        let name = expected["name"].as_str().unwrap();
        let found = shape
            .tensors()
            .iter()
            .find(|t| t.name == name)
            .unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(
            u64::from(found.ggml_type.0),
            expected["ggml_type_id"],
            "{name}"
        );
        assert_eq!(
            serde_json::json!(found.dims),
            expected["shape_ggml_order"],
            "{name}"
        );
        assert_eq!(found.size_bytes, expected["n_bytes"], "{name}");
    }
}

#[test]
fn vocabularies_are_as_large_as_their_tensors() {
    let folder = temporary();
    for shape in tiny() {
        let path = write(&shape, folder.path(), 1);
        let model = ModelFiles::open(&path).unwrap();
        let (_, embedding) = model.tensor("token_embd.weight").unwrap();
        let tokens = model
            .metadata()
            .get("tokenizer.ggml.tokens")
            .and_then(Value::as_array);
        match shape.name() {
            "tiny-llama-no-vocab" => {
                assert_eq!(model.metadata().str("tokenizer.ggml.model"), Some("none"));
                assert!(tokens.is_none());
            }
            "tiny-llama-no-tokenizer" => {
                assert!(
                    model
                        .metadata()
                        .kv()
                        .all(|(key, _)| !key.starts_with("tokenizer."))
                );
            }
            name => {
                let tokens = tokens.unwrap();
                assert_eq!(tokens.len(), embedding.dims[1], "{name}");
                // llama.cpp asserts that no two tokens are the same.
                let mut texts: Vec<&[u8]> = tokens.strings().collect();
                texts.sort_unstable();
                texts.dedup();
                assert_eq!(texts.len() as u64, tokens.len(), "{name}");
            }
        }
    }
}

#[test]
fn tied_and_untied_differ_in_the_output() {
    let has_output = |name: &str| {
        let shape = Shape::by_name(name).unwrap();
        shape.tensors().iter().any(|t| t.name == "output.weight")
    };
    assert!(!has_output("tiny-llama"));
    assert!(has_output("tiny-llama-untied"));
    let typed = Shape::tiny("tiny-llama-untied", ExpertType::Q8_0).unwrap();
    let output = typed
        .tensors()
        .iter()
        .find(|t| t.name == "output.weight")
        .unwrap();
    assert_eq!(output.ggml_type, GgmlType::Q8_0);
}

#[test]
fn unknown_names_are_answered_with_the_known_ones() {
    for name in ["", "tiny", "demo-q8_0", "gpt-oss-120b", "-f16"] {
        let message = Shape::by_name(name).unwrap_err().to_string();
        assert!(message.contains("gpt-oss-20b, qwen3-30b-a3b"), "{message}");
    }
    for name in Shape::names() {
        assert_eq!(Shape::by_name(name).unwrap().name(), *name);
    }
}
