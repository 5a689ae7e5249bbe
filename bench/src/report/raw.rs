//! From `raw.jsonl` and `setup.json` back to a report.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;

use super::Run;
use crate::record::{RunRecord, SCHEMA};
use crate::results::{Report, Setup};

/// Most rows, and most repetitions, of a run: what the command line allows.
const COUNT_MAX: usize = 10_000;
/// Longest line: that of a run of a million tokens is some 100 MiB.
const LINE_BYTES_MAX: u64 = 1 << 30;

/// The raw files that `given` names: files as they are, of folders all that they hold.
pub(super) fn files(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in given {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(path).with_context(|| path.display().to_string())? {
            let entry = entry.with_context(|| path.display().to_string())?.path();
            if prefix(&entry).is_some() && entry.is_file() {
                found.push(entry);
            }
        }
        if found.is_empty() {
            bail!("{}: holds no raw.jsonl and no raw.jsonl.gz", path.display());
        }
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

/// What stands before `raw.jsonl` in a file's name.
fn prefix(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".gz")
        .unwrap_or(name)
        .strip_suffix("raw.jsonl")
}

/// Reads one run.
pub(super) fn read(path: &Path) -> Result<Run> {
    let setup = read_setup(path)?;
    let (records, mut remarks) = read_records(path)?;
    let rows_max = records.keys().map(|(row, _)| row + 1).max().unwrap_or(0);
    let mut indices: Vec<usize> = records.keys().map(|(row, _)| *row).collect();
    indices.dedup();
    if rows_max > indices.len() {
        remarks.push(format!(
            "{} of {rows_max} rows have no line in the raw samples: their conditions were refused.",
            rows_max - indices.len()
        ));
    }
    let rows = indices
        .iter()
        .filter_map(|index| records.range((*index, 0)..).next())
        .map(|(_, run)| run.row.clone())
        .collect();
    let repetitions = records
        .keys()
        .map(|(_, repetition)| repetition + 1)
        .max()
        .unwrap_or(0);
    if repetitions < setup.repetitions {
        remarks.push(format!(
            "{repetitions} of {} repetitions are in the raw samples: the run was stopped.",
            setup.repetitions
        ));
    }
    let mut report = Report::new(setup, rows);
    for result in &mut report.rows {
        result.runs.resize_with(repetitions, || None);
    }
    for ((row, repetition), run) in records {
        let place = indices
            .binary_search(&row)
            .expect("every row of a record was listed");
        report.rows[place].runs[repetition] = Some(run);
    }
    report.check_fingerprints().map_err(|difference| {
        anyhow!(
            "{}: rows that must compute the same did not: {difference}",
            path.display()
        )
    })?;
    Ok(Run {
        name: name_of(path),
        report,
        remarks,
    })
}

/// `2026-11-21-host/demo` for `runs/2026-11-21-host/demo-raw.jsonl`.
fn name_of(path: &Path) -> String {
    let folder = path
        .canonicalize()
        .ok()
        .and_then(|path| Some(path.parent()?.file_name()?.to_string_lossy().into_owned()));
    let prefix = prefix(path)
        .unwrap_or_default()
        .trim_end_matches(['-', '.', '_']);
    match (folder, prefix) {
        (None, _) => path.display().to_string(),
        (Some(folder), "") => folder,
        (Some(folder), prefix) => format!("{folder}/{prefix}"),
    }
}

fn read_setup(raw: &Path) -> Result<Setup> {
    let prefix = prefix(raw).with_context(|| {
        format!(
            "{}: the name of a file with raw samples ends with raw.jsonl or raw.jsonl.gz",
            raw.display()
        )
    })?;
    let path = raw.with_file_name(format!("{prefix}setup.json"));
    let text = fs::read_to_string(&path).with_context(|| {
        format!(
            "{}: cannot be read; it says where {} was measured",
            path.display(),
            raw.display()
        )
    })?;
    serde_json::from_str(&text)
        .with_context(|| format!("{}: is not the set-up of a run", path.display()))
}

type Records = BTreeMap<(usize, usize), RunRecord>;

/// The runs by row and repetition, and what is to be said about the file.
fn read_records(path: &Path) -> Result<(Records, Vec<String>)> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let is_compressed = path.extension().is_some_and(|extension| extension == "gz");
    let input: Box<dyn Read> = if is_compressed {
        Box::new(MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let mut input = BufReader::new(input);
    let mut records = Records::new();
    let mut remarks = Vec::new();
    let mut is_older = false;
    let mut line = Vec::new();
    for number in 1usize.. {
        line.clear();
        let at = || format!("{}:{number}", path.display());
        let len = input
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
            .with_context(at)?;
        if len == 0 {
            break;
        }
        let (schema, mut run) = match parse(&line).with_context(at) {
            Ok(parsed) => parsed,
            Err(error) if line.last() == Some(&b'\n') || records.is_empty() => return Err(error),
            Err(_) => {
                remarks.push(format!(
                    "Line {number} of the raw samples ends in the middle of a run and was left out."
                ));
                break;
            }
        };
        is_older |= schema < SCHEMA;
        complete(&mut run);
        insert(&mut records, run).with_context(at)?;
    }
    if records.is_empty() {
        bail!("{}: holds no run", path.display());
    }
    if is_older {
        remarks.push(
            "The samples are of an older bench: there are no counters of single tokens, and runs of different lengths are not compared."
                .into(),
        );
    }
    Ok((records, remarks))
}

fn parse(line: &[u8]) -> Result<(u32, RunRecord)> {
    #[derive(Deserialize)]
    struct Version {
        schema: Option<u32>,
    }
    let Version { schema } =
        serde_json::from_slice(line).context("is not a line of raw samples")?;
    let schema = schema.unwrap_or(1);
    if !(1..=SCHEMA).contains(&schema) {
        bail!(
            "is of schema {schema}, and this bench knows 1 to {SCHEMA}: use the version that wrote it"
        );
    }
    let run = serde_json::from_slice(line).context("is not a line of raw samples")?;
    Ok((schema, run))
}

/// Fills what older lines leave to be computed.
fn complete(run: &mut RunRecord) {
    if let (Some(figures), Some(outcome)) = (&mut run.figures, &run.outcome) {
        figures.n_decoded = outcome.step_ns.len();
    }
}

fn insert(records: &mut Records, run: RunRecord) -> Result<()> {
    let key = (run.row_index, run.repetition);
    if key.0 >= COUNT_MAX || key.1 >= COUNT_MAX {
        bail!(
            "row {} of repetition {}: there are at most {COUNT_MAX} of both",
            key.0,
            key.1
        );
    }
    let same_row = records.range((key.0, 0)..=(key.0, COUNT_MAX)).next();
    if let Some((_, first)) = same_row.filter(|(_, first)| first.row != run.row) {
        bail!(
            "row {} is `{}` here and `{}` before: the lines are of different runs",
            key.0,
            run.row.label(),
            first.row.label()
        );
    }
    if records.contains_key(&key) {
        bail!("row {} has repetition {} twice", key.0, key.1);
    }
    records.insert(key, run);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::output::RunFolder;
    use crate::results::tests::report;

    /// The folder that a measurement of the tests' report leaves.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let report = report();
        let mut kept = RunFolder::create(folder.path()).unwrap();
        for repetition in 0..3 {
            for (index, result) in report.rows.iter().enumerate() {
                let mut run = result.runs[repetition].clone().unwrap();
                run.row_index = index;
                kept.append(&run).unwrap();
            }
        }
        kept.finish(&report).unwrap();
        folder
    }

    fn refused(path: &Path, words: &[&str]) {
        let message = format!("{:#}", read(path).unwrap_err());
        for word in words {
            assert!(message.contains(word), "`{word}`: {message}");
        }
    }

    #[test]
    fn a_report_that_is_read_back_prints_the_same() {
        let folder = folder();
        let path = files(&[folder.path().to_path_buf()]).unwrap().remove(0);
        let run = read(&path).unwrap();
        assert!(run.remarks.is_empty(), "{:?}", run.remarks);
        let printed = fs::read_to_string(folder.path().join("summary.md")).unwrap();
        assert_eq!(crate::output::Format::Md.render(&run.report), printed);
    }

    #[test]
    fn compressed_and_with_a_prefix() {
        let folder = folder();
        let plain = fs::read(folder.path().join("raw.jsonl")).unwrap();
        let path = folder.path().join("big-raw.jsonl.gz");
        let mut encoder = flate2::write::GzEncoder::new(
            File::create(&path).unwrap(),
            flate2::Compression::fast(),
        );
        encoder.write_all(&plain).unwrap();
        encoder.finish().unwrap();
        refused(&path, &["big-setup.json"]);
        fs::copy(
            folder.path().join("setup.json"),
            folder.path().join("big-setup.json"),
        )
        .unwrap();
        let run = read(&path).unwrap();
        assert!(run.name.ends_with("/big"), "{}", run.name);
        assert_eq!(run.report.rows.len(), 2);
        assert_eq!(files(&[folder.path().to_path_buf()]).unwrap().len(), 2);
    }

    #[test]
    fn lines_that_are_wrong_are_named() {
        let folder = folder();
        let path = folder.path().join("raw.jsonl");
        let good = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = good.lines().collect();
        let with = |text: &str| fs::write(&path, text).unwrap();
        with("");
        refused(&path, &["raw.jsonl: holds no run"]);
        with("not JSON\n");
        refused(&path, &["raw.jsonl:1", "not a line"]);
        with(&format!("{}\n{{\"schema\":2}}\n", lines[0]));
        refused(&path, &["raw.jsonl:2", "missing field"]);
        with(&good.replacen("\"schema\":2", "\"schema\":3", 1));
        refused(&path, &["raw.jsonl:1", "schema 3"]);
        with(&format!("{good}{}\n", lines[1]));
        refused(&path, &["raw.jsonl:7", "twice"]);
        with(&good.replacen("\"row_index\":1", "\"row_index\":0", 1));
        refused(&path, &["raw.jsonl:2", "different runs"]);
        with(&good.replacen("\"repetition\":0", "\"repetition\":4000000000", 1));
        refused(&path, &["raw.jsonl:1", "at most"]);
        fs::write(folder.path().join("setup.json"), "[]").unwrap();
        refused(&path, &["setup.json", "not the set-up"]);
        refused(
            &folder.path().join("other.json"),
            &["other.json", "raw.jsonl"],
        );
        let nothing = tempfile::tempdir().unwrap();
        assert!(files(&[nothing.path().to_path_buf()]).is_err());
    }

    #[test]
    fn a_run_that_was_stopped_is_read_as_far_as_it_came() {
        let folder = folder();
        let path = folder.path().join("raw.jsonl");
        let good = fs::read_to_string(&path).unwrap();
        let three: Vec<&str> = good.lines().take(3).collect();
        fs::write(&path, format!("{}\n{}", three.join("\n"), &three[0][..40])).unwrap();
        let run = read(&path).unwrap();
        assert_eq!(run.remarks.len(), 2, "{:?}", run.remarks);
        assert!(run.remarks[0].contains("Line 4"));
        assert!(run.remarks[1].contains("2 of 3 repetitions"));
        assert_eq!(run.report.rows[1].good().count(), 1);
    }
}
