//! No damage to a log makes the reader panic or read what was never written.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{extra, numbered, size_for, tables};
use proptest::prelude::*;
use tracer::{Error, LogReader, LogWriter, OnFull, VERSION_MINOR};

const CAPACITY: u64 = 50;

/// A log with this many records; it was closed, or its writer is gone without a word.
fn log_bytes(n_written: u64, closed: bool) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut log = LogWriter::create(&path, &tables(), size_for(CAPACITY), OnFull::Wrap).unwrap();
    log.add_extra(&extra()).unwrap();
    for sequence in 0..n_written {
        log.push(numbered(sequence));
    }
    let open_log = if closed {
        log.finish().unwrap();
        None
    } else {
        Some(log)
    };
    let bytes = fs::read(&path).unwrap();
    drop(open_log);
    bytes
}

fn open(bytes: &[u8]) -> Result<LogReader<&[u8]>, Error> {
    LogReader::from_source(bytes, "damaged.ftrace")
}

/// Reads everything there is, and returns how many records.
fn exhaust(bytes: &[u8]) -> Option<u64> {
    let reader = open(bytes).map_err(|error| assert!(!error.to_string().is_empty()));
    let reader = reader.ok()?;
    let mut n_records = 0;
    for record in reader.records() {
        if record.is_err() {
            break;
        }
        n_records += 1;
    }
    Some(n_records)
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_log_cut_anywhere_gives_the_records_that_are_left(
        n_written in 0u64..160,
        closed: bool,
        cut in 0.0..1.0,
    ) {
        let bytes = log_bytes(n_written, closed);
        let cut = (bytes.len() as f64 * cut) as usize;
        match open(&bytes[..cut]) {
            Ok(reader) => {
                let mut n_records = 0;
                let mut last = None;
                for record in reader.records() {
                    let record = record.unwrap();
                    prop_assert_eq!(record, numbered(record.time_ns));
                    prop_assert!(record.time_ns >= n_written.saturating_sub(CAPACITY));
                    prop_assert!(record.time_ns < n_written);
                    prop_assert!(last < Some(record.time_ns));
                    last = Some(record.time_ns);
                    n_records += 1;
                }
                prop_assert_eq!(n_records, reader.n_records());
                let complete = n_records == n_written.min(CAPACITY);
                let missing = matches!(
                    reader.damage(),
                    Some(Error::Truncated { readable, .. }) if *readable == n_records
                );
                prop_assert!(complete != missing);
            }
            Err(error) => prop_assert!(cut < 8192, "{error}"),
        }
    }

    #[test]
    fn a_log_scribbled_on_anywhere_never_panics_the_reader(
        n_written in 0u64..160,
        scribbles in prop::collection::vec((0.0..1.0, any::<u8>()), 1..20),
        in_header: bool,
    ) {
        let mut bytes = log_bytes(n_written, true);
        let end = if in_header { 1200 } else { bytes.len() };
        for (place, byte) in scribbles {
            bytes[(end as f64 * place) as usize] = byte;
        }
        exhaust(&bytes);
    }

    #[test]
    fn arbitrary_bytes_never_panic_the_reader(
        mut bytes in prop::collection::vec(any::<u8>(), 0..10_000),
        with_front: bool,
    ) {
        if with_front && bytes.len() > 300 {
            bytes[..300].copy_from_slice(&log_bytes(3, true)[..300]);
        }
        exhaust(&bytes);
    }

    #[test]
    fn the_counters_may_hold_any_number(counter in 0usize..5, value: u64) {
        let mut bytes = log_bytes(60, false);
        let at = [1024, 1152, 1160, 1168, 1176][counter];
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        exhaust(&bytes);
    }
}

#[test]
fn a_cut_log_is_an_error_unless_damage_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.ftrace");
    let bytes = log_bytes(20, true);
    fs::write(&path, &bytes[..bytes.len() - 33]).unwrap();
    let error = LogReader::open(&path).unwrap_err();
    let Error::Truncated {
        readable, expected, ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((readable, expected), (18, 20));
    let reader = LogReader::open_damaged(&path).unwrap();
    assert_eq!(reader.records().count(), 18);
    assert!(reader.damage().is_some());
}

#[test]
fn a_log_of_another_version_is_named_as_such() {
    let mut bytes = log_bytes(1, true);
    bytes[8] = 2;
    let error = open(&bytes).unwrap_err();
    assert!(
        matches!(&error, Error::Version { found, .. } if *found == format!("2.{VERSION_MINOR}"))
    );
    assert!(error.to_string().starts_with("damaged.ftrace: "));
}

#[test]
fn a_log_of_a_newer_minor_version_is_read() {
    let mut bytes = log_bytes(3, true);
    bytes[10] = 7;
    let checksum = crc32fast::hash(&bytes[..200]);
    bytes[200..204].copy_from_slice(&checksum.to_le_bytes());
    let reader = open(&bytes).unwrap();
    assert_eq!(reader.header().version, (1, 7));
    assert_eq!(reader.records().count(), 3);
}

#[test]
fn a_file_that_is_longer_than_it_can_be_is_refused() {
    let mut bytes = log_bytes(CAPACITY * 2, true);
    assert!(open(&bytes).is_ok());
    bytes.push(0);
    assert!(matches!(
        open(&bytes),
        Err(Error::Malformed {
            section: "file",
            ..
        })
    ));
}

#[test]
fn a_log_that_shrinks_while_it_is_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    fs::write(&path, log_bytes(20, true)).unwrap();
    let reader = LogReader::open(&path).unwrap();
    fs::write(&path, b"").unwrap();
    let mut records = reader.records();
    assert!(matches!(records.next(), Some(Err(Error::Io { .. }))));
    assert!(records.next().is_none());
}

#[test]
fn what_is_not_a_log_is_said_to_be_none() {
    let missing = PathBuf::from("missing.ftrace");
    assert!(matches!(LogReader::open(&missing), Err(Error::Io { .. })));
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        LogReader::open(folder.path()),
        Err(Error::NotAFile { .. })
    ));
    let path = folder.path().join("model.gguf");
    fs::write(&path, b"GGUF").unwrap();
    assert!(matches!(LogReader::open(&path), Err(Error::NotALog { .. })));
}
