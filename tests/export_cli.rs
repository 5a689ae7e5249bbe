//! `faultline export`, `dump` and `info` on logs that are made here, read back and compared record by record.

mod common;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use common::{assert_bad_input, faultline, stderr, stdout};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::Value;
use tracer::{
    Access, Extra, ExtraKind, Flags, LogReader, LogWriter, ModelFile, Node, OnFull, Op, Record,
    Tables, Tensor, WHOLE,
};

const HEADING: &str = "timestamp,token,tensor_name,data_ptr,bytes_accessed,slice,slice_kind,n_used,step,ubatch,node,\
                       op,phase,duration_ns,layer,component,file,file_offset_bytes,fused,n_tokens,token_id,position";

/// Where file 0 was mapped; that of file 1 is not known.
const MAPPING: u64 = 0x7f12_3456_7000;

/// Ids of tensors.
const EXPERTS: u32 = 0;
const EMBEDDING: u32 = 1;
const LORA: u32 = 2;
const NOWHERE: u32 = 99;

fn tables() -> Tables {
    let file = |path: &str| ModelFile {
        path: path.into(),
        size_bytes: 1 << 20,
    };
    Tables {
        files: vec![file("a-00001-of-00002.gguf"), file("a-00002-of-00002.gguf")],
        tensors: vec![
            Tensor {
                name: "blk.3.ffn_down_exps.weight".into(),
                offset_bytes: 4096,
                size_bytes: 8000,
                slice_stride_bytes: 1000,
                n_slices: 8,
                layer: 3,
                component: "ffn_down_exps".into(),
                ..Tensor::default()
            },
            Tensor {
                name: "token_embd.weight".into(),
                file: 1,
                offset_bytes: 512,
                size_bytes: 6400,
                slice_stride_bytes: 64,
                n_slices: 100,
                layer: -1,
                component: "token_embd".into(),
                ..Tensor::default()
            },
        ],
        ..Tables::default()
    }
}

/// A prompt of 5 tokens in two ubatches, then `n_generated` tokens.
fn write_steps(log: &mut LogWriter, n_generated: u32) {
    let extra = Extra {
        kind: ExtraKind::LORA,
        name: "blk.3.attn_q.weight.lora_a, \"quoted\"".into(),
        ggml_type: 1,
        type_name: "f16".into(),
        size_bytes: 256,
        slice_stride_bytes: 256,
        n_slices: 1,
        layer: 3,
    };
    assert_eq!(log.add_extra(&extra).unwrap(), LORA);
    let mut time_ns = 1_000_000;
    let mut position = 0;
    for step in 0..=n_generated {
        let (ubatches, phase) = match step {
            0 => (&[3, 2][..], Flags::PROMPT),
            _ => (&[1][..], Flags::default()),
        };
        let begin_ns = time_ns;
        let n_tokens = ubatches.iter().sum();
        log.push(Record::step_begin(begin_ns, step, n_tokens, 1, phase));
        for index in 0..n_tokens {
            let id = 1000 + position;
            log.push(Record::step_token(
                begin_ns, step, index, id, position, 0, phase,
            ));
            position += 1;
        }
        let mut first = 0;
        for (ubatch, &n) in (0..).zip(ubatches) {
            log.push(Record::ubatch_begin(time_ns, step, ubatch, first, n, phase));
            first += n;
            let mut node = |op, flags: Flags, accesses: &[(u32, u32, u32)]| {
                time_ns += 2_500;
                let node = Node {
                    time_ns,
                    duration_ns: 1_234,
                    step,
                    ubatch,
                    node: (time_ns % 50_000) as u32,
                    op,
                    flags: phase | flags,
                };
                let accesses = accesses.iter().map(|&(tensor, slice, n_used)| Access {
                    tensor,
                    slice,
                    n_used,
                });
                log.push_node(&node, accesses);
            };
            let plain = Flags::default();
            node(
                Op::GET_ROWS,
                plain,
                &[(EMBEDDING, 7 + step % 50, 1), (EMBEDDING, 99, 1)],
            );
            node(
                Op::MUL_MAT_ID,
                Flags::FUSED,
                &[(EXPERTS, 0, 2), (EXPERTS, 7, 1)],
            );
            node(Op::MUL_MAT, plain, &[(LORA, WHOLE, 1)]);
            node(Op(77), plain, &[(NOWHERE, 5, 1)]);
            // A row that the table does not have.
            node(Op::GET_ROWS, plain, &[(EMBEDDING, 100, 1)]);
        }
        time_ns += 5_000;
        log.push(Record::step_end(begin_ns, time_ns - begin_ns, step, phase));
    }
}

fn make_log(folder: &Path, capacity_bytes: u64, n_generated: u32) -> PathBuf {
    let path = folder.join("run.ftrace");
    let mut log = LogWriter::create(&path, &tables(), capacity_bytes, OnFull::Wrap).unwrap();
    log.set_address(0, MAPPING);
    write_steps(&mut log, n_generated);
    log.finish().unwrap();
    path
}

/// The lines that the log's records should become, from the records alone.
fn expected_rows(log: &LogReader) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut ubatch = None;
    for record in log.records().map(Result::unwrap) {
        // The first token of each step is known from how the log was made: 5 for the prompt, then 1 each.
        let first = match record.step {
            0 => 0,
            step => u64::from(step) + 4,
        };
        match record.op {
            Op::STEP_BEGIN => ubatch = None,
            Op::UBATCH_BEGIN => ubatch = Some((first + u64::from(record.tensor), record.slice)),
            _ => {}
        }
        if record.op.is_mark() {
            continue;
        }
        let table = log.tables().tensors.get(record.tensor as usize);
        let extra = log.extra(record.tensor);
        let is_whole = record.slice == WHOLE;
        let is_in_tensor = |tensor: &&Tensor| is_whole || record.slice < tensor.n_slices;
        let offset = table.filter(is_in_tensor).map(|tensor| {
            let slice = if is_whole { 0 } else { u64::from(record.slice) };
            (
                tensor.file,
                tensor.offset_bytes + slice * tensor.slice_stride_bytes,
            )
        });
        let bytes = table.filter(is_in_tensor).map(|tensor| match is_whole {
            true => tensor.size_bytes,
            false => tensor.slice_stride_bytes,
        });
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let number = |number: Option<u64>| number.map_or(String::new(), |n| n.to_string());
        let token = ubatch.map(|(token, _)| token);
        rows.push(vec![
            record.time_ns.to_string(),
            number(token),
            text(
                table
                    .map(|t| t.name.as_str())
                    .or(extra.map(|e| e.name.as_str())),
            ),
            match offset {
                Some((0, offset)) => format!("{:#x}", MAPPING + offset),
                _ => String::new(),
            },
            number(bytes.or(extra.map(|extra| extra.size_bytes))),
            if is_whole {
                String::new()
            } else {
                record.slice.to_string()
            },
            text(match record.tensor {
                _ if is_whole => Some("whole"),
                EXPERTS => Some("expert"),
                EMBEDDING => Some("row"),
                _ => None,
            }),
            record.n_used.to_string(),
            record.step.to_string(),
            record.ubatch.to_string(),
            record.node.to_string(),
            record.op.name().unwrap_or("op77").to_owned(),
            if record.step == 0 { "prompt" } else { "decode" }.to_owned(),
            record.duration_ns.to_string(),
            match record.tensor {
                EXPERTS | LORA => "3".to_owned(),
                _ => String::new(),
            },
            text(
                table
                    .map(|t| t.component.as_str())
                    .or(extra.map(|_| "lora")),
            ),
            number(offset.map(|(file, _)| u64::from(file))),
            number(offset.map(|(_, offset)| offset)),
            (record.op == Op::MUL_MAT_ID).to_string(),
            number(ubatch.map(|(_, n_tokens)| u64::from(n_tokens))),
            number(token.map(|token| token + 1000)),
            number(token),
        ]);
    }
    rows
}

fn export(log: &Path, to: &str, arguments: &[&str]) -> Output {
    let mut command = faultline();
    command
        .arg("export")
        .arg(log)
        .args(["--to", to])
        .args(arguments);
    command.output().unwrap()
}

fn csv_rows(bytes: &[u8]) -> Vec<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new().from_reader(bytes);
    let heading: Vec<&str> = HEADING.split(',').collect();
    assert_eq!(reader.headers().unwrap(), heading);
    reader
        .records()
        .map(|row| row.unwrap().iter().map(str::to_owned).collect())
        .collect()
}

fn parquet_rows(path: &Path) -> Vec<Vec<String>> {
    let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
    let rows = reader.get_row_iter(None).unwrap();
    rows.map(|row| {
        row.unwrap()
            .get_column_iter()
            .map(|(name, field)| match field {
                Field::Null => String::new(),
                Field::ULong(address) if name == "data_ptr" => format!("{address:#x}"),
                Field::Str(text) => text.clone(),
                other => other.to_string(),
            })
            .collect()
    })
    .collect()
}

#[test]
fn csv_and_parquet_have_every_access_as_it_was_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let path = make_log(folder.path(), 1 << 20, 20);
    let expected = expected_rows(&LogReader::open(&path).unwrap());
    assert_eq!(expected.len(), 7 * 22);

    let output = export(&path, "csv", &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    assert_eq!(csv_rows(&output.stdout), expected);

    for (to, name) in [("csv", "run.csv"), ("parquet", "run.parquet")] {
        let target = folder.path().join(name);
        let output = export(&path, to, &["-o", target.to_str().unwrap()]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
        let rows = match to {
            "csv" => csv_rows(&fs::read(&target).unwrap()),
            _ => parquet_rows(&target),
        };
        assert_eq!(rows, expected, "{to}");
    }
}

#[test]
fn groups_of_parquet_rows_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = make_log(folder.path(), 64 << 20, 40_000);
    let target = folder.path().join("run.parquet");
    let output = export(&path, "parquet", &["-o", target.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let reader = SerializedFileReader::new(File::open(&target).unwrap()).unwrap();
    let sizes: Vec<i64> = (reader.metadata().row_groups().iter())
        .map(|group| group.num_rows())
        .collect();
    assert_eq!(sizes, [1 << 18, 7 * 40_002 - (1 << 18)]);
}

#[test]
fn a_chrome_trace_has_one_event_for_each_node_on_the_track_of_its_component() {
    let folder = tempfile::tempdir().unwrap();
    let path = make_log(folder.path(), 1 << 20, 3);
    let log = LogReader::open(&path).unwrap();
    let output = export(&path, "chrome", &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let trace: Value = serde_json::from_slice(&output.stdout).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();

    let mut tracks = HashMap::new();
    for event in events.iter().filter(|event| event["name"] == "thread_name") {
        assert_eq!(event["ph"], "M");
        let name = event["args"]["name"].as_str().unwrap().to_owned();
        assert_eq!(tracks.insert(event["tid"].as_u64().unwrap(), name), None);
    }
    let names: HashSet<&str> = tracks.values().map(String::as_str).collect();
    assert_eq!(names.len(), tracks.len(), "two tracks of one name");

    // What the records say: (track, name, begin, duration, slices), adjacent accesses of a node and tensor joined.
    let mut expected: Vec<(String, String, u64, u64, Vec<u64>)> = Vec::new();
    let mut last = None;
    for record in log.records().map(Result::unwrap) {
        let slices = || (record.slice != WHOLE).then_some(u64::from(record.slice));
        let (track, name) = match record.tensor {
            _ if record.op == Op::STEP_END => {
                let name = match record.step {
                    0 => "prompt, 5 tokens".to_owned(),
                    step => format!("decode, token {}", step + 4),
                };
                ("steps", name)
            }
            _ if record.op.is_mark() => continue,
            EXPERTS => ("ffn_down_exps", log.tables().tensors[0].name.clone()),
            EMBEDDING => ("token_embd", log.tables().tensors[1].name.clone()),
            LORA => ("lora", log.extras()[0].name.clone()),
            _ => ("unknown", "unknown".to_owned()),
        };
        let key = (record.time_ns, record.node, record.tensor, record.op);
        match expected.last_mut() {
            Some(event) if last == Some(key) => event.4.extend(slices()),
            _ => expected.push((
                track.to_owned(),
                name,
                record.time_ns,
                record.duration_ns.into(),
                if track == "steps" {
                    Vec::new()
                } else {
                    slices().into_iter().collect()
                },
            )),
        }
        last = Some(key);
    }

    let ns = |us: &Value| (us.as_f64().unwrap() * 1000.0).round() as u64;
    let found: Vec<_> = events
        .iter()
        .filter(|event| event["ph"] == "X")
        .map(|event| {
            let slices = event["args"]["slices"].as_array();
            (
                tracks[&event["tid"].as_u64().unwrap()].clone(),
                event["name"].as_str().unwrap().to_owned(),
                ns(&event["ts"]),
                ns(&event["dur"]),
                slices.map_or(Vec::new(), |list| {
                    list.iter().map(|n| n.as_u64().unwrap()).collect()
                }),
            )
        })
        .collect();
    assert_eq!(found, expected);
    assert!(
        events
            .iter()
            .all(|event| event["ph"] == "X" || event["ph"] == "M")
    );
}

#[test]
fn info_counts_what_the_log_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = make_log(folder.path(), 1 << 20, 10);
    let log = LogReader::open(&path).unwrap();
    let output = faultline()
        .arg("info")
        .arg(&path)
        .args(["-o", "json"])
        .output()
        .unwrap();
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    let records: Vec<Record> = log.records().map(Result::unwrap).collect();
    let count = |predicate: &dyn Fn(&Record) -> bool| {
        Value::from(records.iter().filter(|record| predicate(record)).count())
    };
    assert_eq!(info["n_records"], count(&|_| true));
    assert_eq!(info["n_accesses"], count(&|record| !record.op.is_mark()));
    assert_eq!(
        info["n_complete_steps"],
        count(&|record| record.op == Op::STEP_END)
    );
    assert_eq!(
        info["records_by_op"]["MUL_MAT_ID"],
        count(&|record| record.op == Op::MUL_MAT_ID)
    );
    assert_eq!(
        info["records_by_op"]["op77"],
        count(&|record| record.op == Op(77))
    );
    assert_eq!(
        (&info["n_prompt_tokens"], &info["n_decode_tokens"]),
        (&5.into(), &10.into())
    );
    assert_eq!((&info["n_steps"], &info["n_lost"]), (&11.into(), &0.into()));
    assert_eq!(
        (&info["state"], &info["missing"]),
        (&"closed".into(), &Value::Null)
    );
    let end_ns = records
        .last()
        .map(|end| end.time_ns + u64::from(end.duration_ns))
        .unwrap();
    assert_eq!(info["duration_ns"], end_ns - records[0].time_ns);
    let bytes: u64 = expected_rows(&log)
        .iter()
        .map(|row| row[4].parse().unwrap_or(0))
        .sum();
    assert_eq!(info["bytes_accessed"], bytes);

    let text = stdout(&faultline().arg("info").arg(&path).output().unwrap());
    for part in [
        "closed",
        "a-00002-of-00002.gguf",
        "5 of prompts, 10 generated",
        "MUL_MAT_ID",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn dump_shows_the_records_that_were_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = make_log(folder.path(), 1 << 20, 10);
    let log = LogReader::open(&path).unwrap();
    let dump = |arguments: &[&str]| {
        let output = faultline()
            .arg("dump")
            .arg(&path)
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
            .lines()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let all = dump(&[]);
    assert_eq!(all.len() as u64, log.n_records());
    for (number, line) in all.iter().enumerate() {
        assert!(
            line.trim_start().starts_with(&format!("{number} ")),
            "{line}"
        );
    }
    assert_eq!(dump(&["--limit", "4"]), all[..4]);
    let step = dump(&["--step", "3"]);
    let n_of_step = log
        .records()
        .filter(|record| record.as_ref().unwrap().step == 3)
        .count();
    assert_eq!(step.len(), n_of_step);
    assert!(
        step[0].contains("STEP_BEGIN decode, 1 tokens"),
        "{}",
        step[0]
    );
    assert!(step[1].contains("id 1007, position 7"), "{}", step[1]);
    assert!(step.last().unwrap().contains("STEP_END"));
    let experts = dump(&["--step", "3", "--tensor", "blk.*_exps.weight"]);
    assert_eq!(experts.len(), 2);
    assert!(experts[1].contains("MUL_MAT_ID blk.3.ffn_down_exps.weight expert 7, 1000 B, fused"));
    let wrong = faultline()
        .arg("dump")
        .arg(&path)
        .args(["--tensor", "[a"])
        .output()
        .unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn of_a_log_with_holes_what_is_left_is_exported_and_the_rest_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let wrapped = make_log(folder.path(), 200 << 10, 1000);
    let log = LogReader::open(&wrapped).unwrap();
    assert!(log.header().n_lost > 0);
    let output = export(&wrapped, "csv", &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let lost = format!(
        "the first {} of {} records are missing",
        log.header().n_lost,
        log.header().n_written
    );
    assert!(stderr(&output).contains(&lost), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1);
    let rows = csv_rows(&output.stdout);
    let expected = expected_rows(&log);
    assert_eq!(rows.len(), expected.len());
    // Until the first step that is there from its beginning nobody knows the token; then all is known again.
    let known = rows.iter().position(|row| !row[1].is_empty()).unwrap();
    assert!(known < 8, "{known}");
    assert_eq!(rows[known..], expected[known..]);

    // The same log without its last bytes, and as its writer's death would leave it.
    let mut bytes = fs::read(&wrapped).unwrap();
    let cut = folder.path().join("cut.ftrace");
    fs::write(&cut, &bytes[..bytes.len() - 320]).unwrap();
    let output = export(&cut, "csv", &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("10 of "), "{}", stderr(&output));
    assert!(stderr(&output).contains("cut short"), "{}", stderr(&output));
    let n_left = csv_rows(&output.stdout).len();
    assert!(n_left < rows.len() && n_left >= rows.len() - 10, "{n_left}");
    let info = faultline()
        .arg("info")
        .arg(&cut)
        .args(["-o", "json"])
        .output()
        .unwrap();
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["state"], "cut");

    bytes[1160] = 0;
    let open = folder.path().join("open.ftrace");
    fs::write(&open, &bytes).unwrap();
    let output = export(&open, "chrome", &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("was not closed"),
        "{}",
        stderr(&output)
    );
    serde_json::from_slice::<Value>(&output.stdout).unwrap();
}

#[test]
fn a_log_that_cannot_be_read_leaves_the_output_alone() {
    let folder = tempfile::tempdir().unwrap();
    let log = make_log(folder.path(), 1 << 20, 2);
    let target = folder.path().join("out.csv");
    fs::write(&target, "before").unwrap();
    let mut foreign = fs::read(&log).unwrap();
    foreign[8] = 9;
    let path = folder.path().join("foreign.ftrace");
    fs::write(&path, &foreign).unwrap();
    let missing = folder.path().join("missing.ftrace");
    for (path, reason) in [
        (path.as_path(), "format version 9"),
        (target.as_path(), "not an access log"),
        (missing.as_path(), "cannot open"),
        (folder.path(), "not a regular file"),
    ] {
        let output = export(path, "csv", &["-o", target.to_str().unwrap()]);
        assert_bad_input(&output, &[&path.display().to_string(), reason]);
        for verb in ["dump", "info"] {
            let output = faultline().arg(verb).arg(path).output().unwrap();
            assert_bad_input(&output, &[reason]);
        }
    }
    assert_eq!(fs::read(&target).unwrap(), b"before");

    let names = || fs::read_dir(folder.path()).unwrap().count();
    let n_files = names();
    assert_bad_input(&export(&log, "parquet", &[]), &["-o FILE"]);
    let itself = export(&log, "csv", &["-o", log.to_str().unwrap()]);
    assert_bad_input(&itself, &["is the input"]);
    let nowhere = folder.path().join("no/folder/x.csv");
    assert_bad_input(
        &export(&log, "csv", &["-o", nowhere.to_str().unwrap()]),
        &["no/folder/x.csv"],
    );
    assert_eq!(names(), n_files);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let log = make_log(folder.path(), 8 << 20, 5_000);
    for verb in [
        &["export", "--to", "csv"][..],
        &["export", "--to", "chrome"],
        &["dump"],
    ] {
        let mut child = faultline()
            .args(verb)
            .arg(&log)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut begin = [0; 100];
        child.stdout.take().unwrap().read_exact(&mut begin).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{verb:?}: {}", stderr(&output));
        assert_eq!(stderr(&output), "");
    }
}
