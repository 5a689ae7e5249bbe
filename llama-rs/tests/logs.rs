//! llama.cpp's log goes to `tracing`. A process has one log: one test.

mod common;

use std::io::Write;
use std::sync::{Arc, Mutex};

use common::TinyModel;
use llama_rs::{ModelParams, route_logs};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_arrive_whole_after_the_log_was_routed() {
    let sink = Sink::default();
    let writer = sink.clone();
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .init();
    let text = || String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();

    let tiny = TinyModel::new("tiny-llama");
    tiny.load(&ModelParams::default());
    assert!(!text().contains("llama.cpp:"), "the log is silent at first");

    route_logs();
    route_logs();
    tiny.load(&ModelParams::default());
    let log = text();
    assert!(log.contains("INFO llama.cpp: "), "{log}");
    assert!(log.contains("DEBUG llama.cpp: "), "{log}");
    let lines: Vec<&str> = log.lines().collect();
    assert!(
        lines.iter().all(|line| line.contains(": ")),
        "a line was torn: {log}"
    );
    let kv = lines
        .iter()
        .filter(|line| line.contains("general.architecture"))
        .count();
    assert_eq!(kv, 1);
}
