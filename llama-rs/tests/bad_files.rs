//! Files that are no model, or that are a broken one, are refused with a reason.

mod common;

use common::TinyModel;
use llama_rs::{Backend, Error, Model, ModelParams, Prefetch};
use model_shapes::local::shared_data;

fn load(path: &std::path::Path) -> Result<Model, Error> {
    let params = ModelParams {
        prefetch: Prefetch::Selective,
        ..Default::default()
    };
    Model::load(&Backend::init(), path, &params)
}

#[test]
fn malformed_files_are_refused() {
    let Some(folder) = shared_data("gguf/malformed") else {
        return;
    };
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = load(&path).unwrap_err().to_string();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(text.contains(&name), "{text}");
        files += 1;
    }
    assert_eq!(files, 11);
}

#[test]
fn vocabularies_load_as_vocabularies_only() {
    let Some(folder) = shared_data("gguf/tiny") else {
        return;
    };
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("vocab-") {
            continue;
        }
        assert!(load(&path).is_err(), "{name} is no model");
        let params = ModelParams {
            vocab_only: true,
            ..Default::default()
        };
        let model = Model::load(&Backend::init(), &path, &params);
        let model = model.unwrap_or_else(|error| panic!("{error}"));
        let vocab = model.vocab();
        let tokens = vocab.tokenize("Hello world", false, false).unwrap();
        let bytes: Vec<u8> = tokens.iter().flat_map(|&t| vocab.piece(t, false)).collect();
        assert!(!bytes.is_empty(), "{name}");
    }
}

#[test]
fn paths_that_are_no_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.gguf");
    std::fs::write(&empty, []).unwrap();
    for path in [folder.path(), &empty, &folder.path().join("missing.gguf")] {
        let error = load(path).unwrap_err();
        assert!(matches!(error, Error::Gguf(_)), "{error:?}");
        assert!(
            error.to_string().contains(&path.display().to_string()),
            "{error}"
        );
    }
}

#[test]
fn a_model_cut_anywhere_is_refused() {
    let tiny = TinyModel::new("tiny-qwen3moe");
    let size = std::fs::metadata(tiny.path()).unwrap().len();
    let file = std::fs::File::options()
        .write(true)
        .open(tiny.path())
        .unwrap();
    for part in (0..40).rev() {
        file.set_len(size * part / 40).unwrap();
        let error = load(tiny.path()).unwrap_err();
        assert!(matches!(error, Error::Gguf(_)), "{error:?}");
    }
}

#[test]
fn what_llama_cpp_refuses_carries_its_reason() {
    use rewrite::{Change, rewrite};
    let tiny = TinyModel::new("tiny-llama");
    let target = tiny.folder().join("changed.gguf");
    let change = |change| {
        assert!(rewrite(tiny.path(), &target, &[change]));
        load(&target).unwrap_err()
    };

    let error = change(Change::RemoveTensor("output_norm.weight".into()));
    assert!(matches!(error, Error::Load { .. }), "{error:?}");
    assert!(error.to_string().contains("output_norm.weight"), "{error}");

    let error = change(Change::Set("general.architecture".into(), "gpt-5".into()));
    assert!(matches!(error, Error::UnsupportedModel { .. }), "{error:?}");
    assert!(error.to_string().contains("\"gpt-5\""), "{error}");

    let error = change(Change::Remove("general.architecture".into()));
    assert!(
        error.to_string().contains("general.architecture"),
        "{error}"
    );

    let error = change(Change::Set("llama.block_count".into(), 0u32.into()));
    assert!(
        error.to_string().contains("llama.block_count is 0"),
        "{error}"
    );

    let error = change(Change::Retype(
        "output_norm.weight".into(),
        gguf::GgmlType::F16,
    ));
    let text = error.to_string();
    assert!(
        text.contains("output_norm.weight") && text.contains("f16"),
        "{text}"
    );
}

#[path = "common/rewrite.rs"]
mod rewrite;
