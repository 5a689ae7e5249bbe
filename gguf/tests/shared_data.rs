//! The reader against files that others made: valid ones, and ones made to break readers.

use std::fs;
use std::path::{Path, PathBuf};

use gguf::{Error, GgmlType, Gguf, ModelFiles, Value};
use serde_json::Value as Json;

/// The shared test data, or `None` with a printed reason.
fn shared(folder: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("FAULTLINE_SHARED_DATA") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
    };
    let path = root.join("gguf").join(folder);
    if !path.is_dir() {
        println!(
            "skipped: {} is not there (set FAULTLINE_SHARED_DATA)",
            path.display()
        );
        return None;
    }
    Some(path)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    all.sort();
    assert!(!all.is_empty());
    all
}

#[test]
fn malformed_files_are_refused() {
    let Some(folder) = shared("malformed") else {
        return;
    };
    for path in files(&folder) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let result = Gguf::open(&path);
        println!(
            "{name}: {:?}",
            result.as_ref().map(|_| ()).map_err(|e| e.to_string())
        );
        match name {
            // A container without content: nothing is wrong with it.
            "v3-empty.bin" => assert_eq!(result.unwrap().tensors().len(), 0),
            _ => {
                let message = result.expect_err(name).to_string();
                assert!(
                    message.contains(name),
                    "the message names the file: {message}"
                );
            }
        }
    }
}

#[test]
fn the_reason_for_a_refusal_is_the_real_one() {
    let Some(folder) = shared("malformed") else {
        return;
    };
    let open = |name: &str| Gguf::open(&folder.join(name)).unwrap_err();
    assert!(matches!(
        open("bad-version.bin"),
        Error::Version { version: 1, .. }
    ));
    assert!(matches!(open("huge-counts.bin"), Error::Limit { .. }));
    assert!(matches!(
        open("kv-huge-strlen.bin"),
        Error::Truncated { .. } | Error::Limit { .. }
    ));
    assert!(matches!(open("magic-only.bin"), Error::Truncated { .. }));
    assert!(matches!(open("trunc-magic.bin"), Error::NotGguf { .. }));
    assert!(matches!(open("tensor-huge-dims.bin"), Error::Tensor { .. }));
    assert!(matches!(
        open("hdr-zero-first-dim.gguf"),
        Error::Tensor { .. }
    ));
    assert!(matches!(
        open("hdr-wrap-first-offset.gguf"),
        Error::Tensor { .. }
    ));
}

#[test]
fn tiny_valid_files_open() {
    let Some(folder) = shared("tiny") else { return };
    for path in files(&folder) {
        let file = Gguf::open(&path).unwrap();
        assert!(file.architecture().is_some(), "{}", path.display());
        assert!(file.is_packed());
        let tokens = file.get("tokenizer.ggml.tokens").and_then(Value::as_array);
        println!(
            "{}: {} keys, {} tensors, {} tokens",
            path.display(),
            file.kv().count(),
            file.tensors().len(),
            tokens.map_or(0, |t| t.len())
        );
        ModelFiles::open(&path).unwrap();
    }
}

#[test]
fn a_real_file_reads_as_recorded() {
    let Some(folder) = shared("truth") else {
        return;
    };
    let truth: Json =
        serde_json::from_slice(&fs::read(folder.join("container_truth.json")).unwrap()).unwrap();
    let file = Gguf::open(&folder.join("slice.gguf")).unwrap();
    assert_eq!(u64::from(file.version()), truth["version"]);
    assert_eq!(file.file_size(), truth["file_bytes"]);
    assert_eq!(file.alignment(), truth["alignment"]);
    assert_eq!(file.kv().count() as u64, truth["kv_count"]);
    assert_eq!(file.tensors().len() as u64, truth["tensor_count"]);

    for (key, expected) in truth["kv"].as_object().unwrap() {
        let value = file.get(key).unwrap_or_else(|| panic!("{key} is missing"));
        assert_eq!(value.value_type().name(), expected["type"], "{key}");
        if let Value::Array(array) = value {
            assert_eq!(array.len(), expected["length"], "{key}");
            assert_eq!(
                array.element_type().name(),
                expected["element_type"],
                "{key}"
            );
        }
        assert!(equal(value, &expected["value"]), "{key}");
    }
    for (tensor, expected) in file
        .tensors()
        .iter()
        .zip(truth["tensors"].as_array().unwrap())
    {
        assert_eq!(tensor.name, expected["name"]);
        assert_eq!(u64::from(tensor.ggml_type.0), expected["ggml_type_id"]);
        let name = tensor.ggml_type.name().unwrap().to_uppercase();
        assert_eq!(name, expected["ggml_type"]);
        assert_eq!(
            Json::from(tensor.dims.clone()),
            expected["shape_ggml_order"]
        );
        assert_eq!(tensor.n_elements(), expected["n_elements"]);
        assert_eq!(tensor.size_bytes, expected["n_bytes"]);
        assert_eq!(tensor.offset, expected["absolute_data_offset"]);
        assert_eq!(
            tensor.offset - file.data_offset(),
            expected["offset_from_data_start"]
        );
    }
}

/// True if a value of the file is what the record says.
fn equal(value: &Value, json: &Json) -> bool {
    match value {
        Value::Array(array) => {
            let expected = json.as_array().unwrap();
            // The record may keep only the start of long arrays.
            array.iter().zip(expected).all(|(v, j)| equal(&v, j))
        }
        Value::String(_) => value.as_str() == json.as_str(),
        Value::Bool(v) => Some(*v) == json.as_bool(),
        Value::F32(v) => json.as_f64().map(|j| j as f32) == Some(*v),
        Value::F64(v) => json.as_f64() == Some(*v),
        _ => value.as_u64() == json.as_u64(),
    }
}

#[test]
fn sizes_agree_with_a_real_tensor_index() {
    let Some(folder) = shared("truth") else {
        return;
    };
    let index: Json =
        serde_json::from_slice(&fs::read(folder.join("tensor_index_qwen3moe.json")).unwrap())
            .unwrap();
    let tensors = index["tensors"].as_array().unwrap();
    assert_eq!(tensors.len() as u64, index["tensor_count"]);
    for t in tensors {
        let kind = GgmlType(t["ggml_type_id"].as_u64().unwrap() as u32);
        let dims: Vec<u64> = t["shape_ggml_order"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| d.as_u64().unwrap())
            .collect();
        let bytes = kind.row_bytes(dims[0]).unwrap() * dims[1..].iter().product::<u64>();
        assert_eq!(bytes, t["n_bytes"], "{}", t["name"]);
    }
}

#[test]
fn what_is_not_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = Gguf::open(folder.path()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NotAFile {
                kind: "a folder",
                ..
            }
        ),
        "{error}"
    );
    let error = Gguf::open(&folder.path().join("none")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    let empty = folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    let error = Gguf::open(&empty).unwrap_err();
    assert!(matches!(error, Error::Empty { .. }), "{error}");
    let error = Gguf::open(Path::new("/dev/null")).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NotAFile {
                kind: "a device",
                ..
            }
        ),
        "{error}"
    );
}
