//! What was written is what is read.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{extra, numbered, size_for, tables};
use tracer::{
    Access, Error, Flags, LogReader, LogWriter, Node, OnFull, Op, Record, State, Tables, WHOLE,
};

fn read_all(path: &std::path::Path) -> Vec<Record> {
    LogReader::open(path)
        .unwrap()
        .records()
        .map(Result::unwrap)
        .collect()
}

#[test]
fn records_and_tables_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut log = LogWriter::create(&path, &tables(), size_for(100_000), OnFull::Wrap).unwrap();
    let id = log.add_extra(&extra()).unwrap();
    for sequence in 0..50_000 {
        log.push(numbered(sequence));
    }
    let summary = log.finish().unwrap();
    assert_eq!((summary.n_written, summary.n_lost), (50_000, 0));
    assert_eq!(summary.size_bytes, 8192 + 50_000 * 32);
    assert_eq!(path.metadata().unwrap().len(), summary.size_bytes);

    let reader = LogReader::open(&path).unwrap();
    assert_eq!(reader.tables(), &tables());
    assert_eq!(id, 2);
    assert_eq!(reader.extra(id), Some(&extra()));
    assert_eq!(reader.tensor(id), None);
    assert_eq!(reader.extra(0), None);
    let header = reader.header();
    assert_eq!(header.state, State::Closed);
    assert_eq!(header.pid, std::process::id());
    assert_eq!(header.model_digest, tables().digest());
    assert_eq!(reader.n_records(), 50_000);
    for (sequence, record) in reader.records().enumerate() {
        assert_eq!(record.unwrap(), numbered(sequence as u64));
    }
}

#[test]
fn an_empty_log_is_a_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let log = LogWriter::create(&path, &Tables::default(), 1 << 20, OnFull::Wrap).unwrap();
    drop(log);
    assert_eq!(read_all(&path), []);
}

#[test]
fn the_accesses_of_a_node_stay_together_and_the_last_one_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut log = LogWriter::create(&path, &tables(), 1 << 20, OnFull::Wrap).unwrap();
    let node = Node {
        time_ns: 5,
        duration_ns: 1 << 40,
        step: 3,
        ubatch: 1,
        node: 17,
        op: Op::MUL_MAT_ID,
        flags: Flags::PROMPT,
    };
    let experts = [(4, 2), (9, 1), (31, 70_000)];
    log.push_node(
        &node,
        experts.map(|(slice, n_used)| Access {
            tensor: 1,
            slice,
            n_used,
        }),
    );
    log.push_node(&node, []);
    log.push_node(
        &node,
        [Access {
            tensor: 0,
            slice: WHOLE,
            n_used: 1,
        }],
    );
    log.finish().unwrap();

    let records = read_all(&path);
    assert_eq!(
        records.iter().map(|r| r.slice).collect::<Vec<_>>(),
        [4, 9, 31, WHOLE]
    );
    assert_eq!(
        records
            .iter()
            .map(|r| r.flags.has(Flags::LAST))
            .collect::<Vec<_>>(),
        [false, false, true, true]
    );
    assert!(records.iter().all(|r| r.time_ns == 5
        && r.duration_ns == u32::MAX
        && r.step == 3
        && r.flags.has(Flags::PROMPT)));
    assert_eq!(records[2].n_used, u16::MAX);
}

#[test]
fn a_full_log_drops_the_oldest_records_and_counts_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    for capacity in [1, 2, 255, 20_000] {
        for n_written in [
            capacity - 1,
            capacity,
            capacity + 1,
            capacity + 2,
            3 * capacity + 7,
        ] {
            let mut log =
                LogWriter::create(&path, &tables(), size_for(capacity), OnFull::Wrap).unwrap();
            assert_eq!(log.capacity(), capacity);
            let progress = log.progress();
            for sequence in 0..n_written {
                log.push(numbered(sequence));
            }
            assert!(!log.is_full());
            let n_lost = n_written.saturating_sub(capacity);
            assert_eq!(progress.n_lost(), n_lost);
            let summary = log.finish().unwrap();
            assert_eq!((summary.n_written, summary.n_lost), (n_written, n_lost));
            assert_eq!(progress.n_written(), n_written);

            let reader = LogReader::open(&path).unwrap();
            assert_eq!(reader.header().n_lost, n_lost);
            let expected: Vec<Record> = (n_lost..n_written).map(numbered).collect();
            assert_eq!(reader.n_records(), expected.len() as u64);
            assert_eq!(read_all(&path), expected);
        }
    }
}

#[test]
fn a_log_that_stops_keeps_the_first_records_and_counts_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut log = LogWriter::create(&path, &tables(), size_for(10), OnFull::Stop).unwrap();
    for sequence in 0..13 {
        assert_eq!(log.is_full(), sequence >= 10);
        log.push(numbered(sequence));
    }
    assert_eq!(log.progress().n_lost(), 3);
    let summary = log.finish().unwrap();
    assert_eq!((summary.n_written, summary.n_lost), (10, 3));
    assert_eq!(LogReader::open(&path).unwrap().header().n_lost, 3);
    assert_eq!(
        read_all(&path),
        (0..10).map(numbered).collect::<Vec<Record>>()
    );
}

#[test]
fn preparing_ahead_changes_nothing_that_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let capacity = 300_000;
    let mut log = LogWriter::create(&path, &tables(), size_for(capacity), OnFull::Wrap).unwrap();
    for sequence in 0..700_000 {
        if sequence % 1000 == 0 {
            log.prepare(if sequence % 7 == 0 { u64::MAX } else { 1000 });
        }
        log.push(numbered(sequence));
    }
    log.finish().unwrap();
    assert_eq!(
        read_all(&path),
        (400_000..700_000).map(numbered).collect::<Vec<Record>>()
    );
}

#[test]
fn room_for_extra_tensors_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut log = LogWriter::create(&path, &tables(), 1 << 20, OnFull::Wrap).unwrap();
    assert_eq!(log.add_extra(&extra()).unwrap(), 2);
    assert_eq!(log.add_extra(&extra()).unwrap(), 3);
    assert!(matches!(
        log.add_extra(&extra()),
        Err(Error::TooManyExtras { capacity: 2, .. })
    ));
    log.finish().unwrap();
    assert_eq!(LogReader::open(&path).unwrap().extras().len(), 2);
}

#[test]
fn two_logs_are_written_at_once() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for log in 0..2u64 {
            let path = folder.path().join(format!("{log}.ftrace"));
            scope.spawn(move || {
                let mut writer =
                    LogWriter::create(&path, &tables(), size_for(1000), OnFull::Wrap).unwrap();
                for sequence in 0..100_000 {
                    writer.push(numbered(sequence * 2 + log));
                }
                writer.finish().unwrap();
                let expected: Vec<Record> = (99_000..100_000)
                    .map(|sequence| numbered(sequence * 2 + log))
                    .collect();
                assert_eq!(read_all(&path), expected);
            });
        }
    });
}

#[test]
fn a_log_can_be_read_while_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut log = LogWriter::create(&path, &tables(), size_for(100), OnFull::Wrap).unwrap();
    for sequence in 0..150 {
        log.push(numbered(sequence));
    }
    let reader = LogReader::open(&path).unwrap();
    assert_eq!(reader.header().state, State::Open);
    let read: Vec<Record> = reader.records().map(Result::unwrap).collect();
    assert_eq!(read, (50..150).map(numbered).collect::<Vec<Record>>());

    // The writer laps the reader.
    log.push(numbered(150));
    let mut records = reader.records();
    assert!(matches!(
        records.next(),
        Some(Err(Error::Overtaken {
            sequence: 50,
            oldest: 51,
            ..
        }))
    ));
    assert!(records.next().is_none());
}

#[test]
fn a_reader_beside_the_writer_never_sees_half_a_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.ftrace");
    let mut log = LogWriter::create(&path, &tables(), size_for(20_000), OnFull::Wrap).unwrap();
    let done = AtomicBool::new(false);
    let (mut n_whole, mut n_overtaken) = (0, 0);
    std::thread::scope(|scope| {
        let done = &done;
        scope.spawn(move || {
            let mut sequence = 0;
            while !done.load(Ordering::Relaxed) {
                log.push(numbered(sequence));
                sequence += 1;
            }
        });
        for _ in 0..200 {
            let reader = LogReader::open(&path).unwrap();
            let mut overtaken = false;
            for (sequence, record) in (reader.header().n_lost..).zip(reader.records()) {
                match record {
                    Ok(record) => assert_eq!(record, numbered(sequence)),
                    Err(Error::Overtaken { .. }) => overtaken = true,
                    Err(error) => panic!("{error}"),
                }
            }
            n_overtaken += u32::from(overtaken);
            n_whole += u32::from(!overtaken);
        }
        done.store(true, Ordering::Relaxed);
    });
    println!("{n_whole} times read to the end, {n_overtaken} times overtaken");
}
