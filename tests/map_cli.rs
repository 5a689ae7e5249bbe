//! `faultline map`, and that it agrees with what a recording says.

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{assert_bad_input, faultline, stderr, stdout, tiny_model};
use gguf::{Gguf, ModelFiles};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::Value;
use tracer::LogReader;

fn map(model: &Path, arguments: &[&str]) -> Output {
    faultline()
        .arg("map")
        .arg(model)
        .args(arguments)
        .output()
        .unwrap()
}

fn map_json(model: &Path, arguments: &[&str]) -> Value {
    let output = map(model, &[&["-o", "json"], arguments].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Rows by column name.
fn csv_rows(bytes: &[u8]) -> Vec<HashMap<String, String>> {
    csv::Reader::from_reader(bytes)
        .deserialize()
        .map(Result::unwrap)
        .collect()
}

#[test]
fn a_map_has_every_tensor_with_its_place_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let output = map(&model, &["-o", "csv"]);
    assert!(
        stdout(&output).starts_with("tensor_name,offset_bytes,size_bytes,type,layer,component,"),
        "{}",
        stdout(&output)
    );
    let file = Gguf::open(&model).unwrap();
    let rows = csv_rows(&output.stdout);
    assert_eq!(rows.len(), file.tensors().len());
    for (row, tensor) in rows.iter().zip(file.tensors()) {
        assert_eq!(row["tensor_name"], tensor.name);
        assert_eq!(row["offset_bytes"], tensor.offset.to_string());
        assert_eq!(row["size_bytes"], tensor.size_bytes.to_string());
        assert_eq!(row["type"], tensor.ggml_type.name().unwrap());
        let dims: Vec<String> = tensor.dims.iter().map(u64::to_string).collect();
        assert_eq!(row["shape"], dims.join("x"));
        let place = match row["layer"].as_str() {
            "" => row["component"].clone(),
            layer => format!("blk.{layer}.{}", row["component"]),
        };
        assert!(tensor.name.starts_with(&place), "{place} {}", tensor.name);
    }

    let text = stdout(&map(&model, &[]));
    for part in [
        "blk.0.ffn_down_exps.weight",
        "component",
        "sparse",
        "gpt-oss: ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn any_part_of_a_split_model_leads_to_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let whole = map_json(&model, &[]);
    let files = ModelFiles::open(&model).unwrap();
    let parts = gguf::split_model(&files, &folder.path().join("s"), 3).unwrap();
    let maps: Vec<Value> = parts.iter().map(|part| map_json(part, &[])).collect();
    assert_eq!(maps[0], maps[1]);
    assert_eq!(maps[0], maps[2]);
    assert_eq!(maps[0]["components"], whole["components"]);
    let tensors = maps[0]["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), files.tensors().count());
    // The bytes at the place that the map names are the tensor's.
    let read = |path: &Path, offset: &Value, size: &Value| {
        let begin = offset.as_u64().unwrap() as usize;
        fs::read(path).unwrap()[begin..][..size.as_u64().unwrap() as usize].to_vec()
    };
    for (part, original) in tensors.iter().zip(whole["tensors"].as_array().unwrap()) {
        let file = &parts[part["file"].as_u64().unwrap() as usize];
        assert_eq!(part["tensor_name"], original["tensor_name"]);
        assert_eq!(
            read(file, &part["offset_bytes"], &part["size_bytes"]),
            read(&model, &original["offset_bytes"], &original["size_bytes"])
        );
    }
}

#[test]
fn extents_cover_every_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-llama");
    if tracer::extents(&model).is_err() {
        eprintln!("skipped: the file system of the temporary folder has no FIEMAP");
        assert_bad_input(&map(&model, &["--extents"]), &["FIEMAP"]);
        return;
    }
    for tensor in map_json(&model, &["--extents"])["tensors"]
        .as_array()
        .unwrap()
    {
        let extents = tensor["extents"].as_array().unwrap();
        assert_eq!(tensor["n_extents"], extents.len());
        let mut end = tensor["offset_bytes"].as_u64().unwrap();
        for extent in extents {
            assert_eq!(extent["file_offset_bytes"], end);
            assert!(extent["device_offset_bytes"].is_u64(), "{extent}");
            end += extent["size_bytes"].as_u64().unwrap();
        }
        let begin = tensor["offset_bytes"].as_u64().unwrap();
        assert_eq!(end - begin, tensor["size_bytes"].as_u64().unwrap());
    }
    let rows = csv_rows(&map(&model, &["-o", "csv", "--extents"]).stdout);
    assert!(rows.iter().all(|row| row["n_extents"] != "0"));
}

#[test]
fn parquet_has_the_columns_of_the_csv() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let extents = match tracer::extents(&model) {
        Ok(_) => &["--extents"][..],
        Err(_) => &[],
    };
    let csv = csv_rows(&map(&model, &[&["-o", "csv"], extents].concat()).stdout);
    let output = map(&model, &[&["-o", "parquet"], extents].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let path = folder.path().join("map.parquet");
    fs::write(&path, &output.stdout).unwrap();
    let reader = SerializedFileReader::new(fs::File::open(&path).unwrap()).unwrap();
    let about = reader.metadata().file_metadata().key_value_metadata();
    let digest = about
        .unwrap()
        .iter()
        .find(|pair| pair.key == "faultline.model_digest");
    let map = map_json(&model, &[]);
    assert_eq!(
        digest.unwrap().value.as_deref(),
        map["model_digest"].as_str()
    );
    let mut n_without_layer = 0;
    let rows: Vec<HashMap<String, String>> = reader
        .get_row_iter(None)
        .unwrap()
        .map(|row| {
            let row = row.unwrap();
            let cells = row.get_column_iter().map(|(name, field)| {
                let text = match field {
                    Field::Null => {
                        n_without_layer += 1;
                        String::new()
                    }
                    Field::Str(text) => text.clone(),
                    number => number.to_string(),
                };
                (name.clone(), text)
            });
            cells.collect()
        })
        .collect();
    assert_eq!(rows, csv);
    assert!(n_without_layer > 0, "the output is of no layer");
}

#[test]
fn a_file_that_is_no_model_is_bad_input() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-llama");
    let cut = folder.path().join("cut.gguf");
    let bytes = fs::read(&model).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let other = folder.path().join("other.gguf");
    fs::write(&other, "something else").unwrap();
    for path in [&cut, &other, &folder.path().join("missing.gguf")] {
        let name = path.display().to_string();
        for format in ["text", "csv", "parquet", "json"] {
            assert_bad_input(&map(path, &["-o", format]), &[&name]);
        }
    }
}

fn record(model: &Path, log: PathBuf) -> PathBuf {
    let output = faultline()
        .args([
            "record", "-t", "1", "--repack", "off", "--raw", "--temp", "0", "-q",
        ])
        .args(["-p", "Hello there", "-n", "4", "-m"])
        .arg(model)
        .arg("-o")
        .arg(&log)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    log
}

#[test]
fn a_recording_and_the_map_agree_on_the_bytes_of_every_expert() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let log = record(&model, folder.path().join("run.ftrace"));
    let reader = LogReader::open(&log).unwrap();
    let file = Gguf::open(&model).unwrap();
    let map = map_json(&model, &[]);
    let rows = map["tensors"].as_array().unwrap();
    assert_eq!(rows.len(), reader.tables().tensors.len());
    let mut by_name = HashMap::new();
    for (row, tensor) in rows.iter().zip(&reader.tables().tensors) {
        assert_eq!(row["tensor_name"], tensor.name.as_str());
        assert_eq!(row["offset_bytes"], tensor.offset_bytes);
        assert_eq!(row["n_slices"], tensor.n_slices);
        assert_eq!(row["slice_stride_bytes"], tensor.slice_stride_bytes);
        // An expert is one of the last dimension.
        let info = file.tensor(&tensor.name).unwrap();
        if row["slice_kind"] == "expert" {
            assert_eq!(u64::from(tensor.n_slices), *info.dims.last().unwrap());
            assert_eq!(tensor.slice_stride_bytes, info.slice_bytes());
        }
        by_name.insert(tensor.name.clone(), row);
    }

    let output = faultline()
        .args(["export", "--to", "csv", "-m"])
        .args([&model, &log])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let accesses = csv_rows(&output.stdout);
    let mut n_experts = 0;
    let mut tokens = Vec::new();
    for access in &accesses {
        let row = by_name[&access["tensor_name"]];
        let number = |key: &str| row[key].as_u64().unwrap();
        let (begin, size) = match access["slice"].parse::<u64>() {
            Ok(slice) => {
                n_experts += u64::from(access["slice_kind"] == "expert");
                let stride = number("slice_stride_bytes");
                (number("offset_bytes") + slice * stride, stride)
            }
            Err(_) => (number("offset_bytes"), number("size_bytes")),
        };
        assert_eq!(access["file_offset_bytes"], begin.to_string(), "{access:?}");
        assert_eq!(access["bytes_accessed"], size.to_string(), "{access:?}");
        tokens.push(access["token"].parse::<u64>().unwrap());
    }
    assert!(n_experts > 0);
    // The prompt's accesses belong to its first token, then each step computes one more.
    tokens.dedup();
    let first_generated = tokens[1];
    assert!(first_generated > 1);
    assert_eq!(
        tokens,
        [0, first_generated, first_generated + 1, first_generated + 2]
    );
}

#[test]
fn a_log_of_another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(folder.path(), "tiny-gpt-oss");
    let other = tiny_model(folder.path(), "tiny-llama");
    let log = record(&model, folder.path().join("run.ftrace"));
    for verb in [&["export", "--to", "csv"][..], &["dump"], &["info"]] {
        let right = faultline()
            .args(verb)
            .arg(&log)
            .arg("-m")
            .arg(&model)
            .output()
            .unwrap();
        assert!(right.status.success(), "{}", stderr(&right));
        let wrong = faultline()
            .args(verb)
            .arg(&log)
            .arg("-m")
            .arg(&other)
            .output()
            .unwrap();
        let (model, other) = (model.display().to_string(), other.display().to_string());
        assert_bad_input(&wrong, &["run.ftrace", "another model", &model, &other]);
    }
}
