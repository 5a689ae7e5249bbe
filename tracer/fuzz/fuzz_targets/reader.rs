//! Any bytes as a log: the reader may refuse them, and may not panic or run out of memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tracer::LogReader;

/// Bytes of the header that its checksum covers.
const FIXED_BYTES: usize = 200;

fn exhaust(bytes: &[u8]) {
    if let Ok(reader) = LogReader::from_source(bytes, "fuzz.ftrace") {
        assert!(reader.n_records() <= bytes.len() as u64 / 32);
        let n_read = reader.records().take_while(Result::is_ok).count();
        assert!(n_read as u64 <= reader.n_records());
    }
}

fuzz_target!(|bytes: &[u8]| {
    exhaust(bytes);
    // With the right front and checksum, so that the numbers behind them are reached.
    if bytes.len() >= FIXED_BYTES + 4 {
        let mut log = bytes.to_vec();
        log[..16].copy_from_slice(b"\x89FTRACE\n\x01\0\0\0\x04\x03\x02\x01");
        log.resize(log.len().max(8192), 0);
        let checksum = crc32fast::hash(&log[..FIXED_BYTES]);
        log[FIXED_BYTES..FIXED_BYTES + 4].copy_from_slice(&checksum.to_le_bytes());
        exhaust(&log);
    }
});
