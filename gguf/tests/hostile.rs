//! Arbitrary and damaged headers: refused or read, never a panic, never memory out of proportion.

use std::alloc::{GlobalAlloc, Layout as MemoryLayout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::OnceLock;

use gguf::{Array, Error, GgmlType, Gguf, GgufWriter, Layout, Value};
use proptest::prelude::*;

/// Counts what this thread has allocated and not yet freed.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that is ending has no counters any more.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: all work is done by the system's allocator; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: MemoryLayout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: MemoryLayout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on unchanged.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Parses `bytes` as a file of `file_size` bytes, and fails if that took memory out of proportion.
fn parse(bytes: &[u8], file_size: u64) -> Result<Gguf, Error> {
    let before = LIVE.get();
    PEAK.set(before);
    let result = Gguf::parse(bytes, file_size, Path::new("test.gguf"));
    let peak = PEAK.get() - before;
    // One step of growth is at most 1 MiB; all else is bounded by the bytes that are there.
    let allowed = (1 << 21) + 64 * bytes.len() as isize;
    assert!(
        peak <= allowed,
        "{peak} bytes of memory for {} bytes of file",
        bytes.len()
    );
    result
}

/// A valid file with values of all types.
fn valid() -> Vec<u8> {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(write_valid).clone()
}

fn write_valid() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("valid.gguf");
    let mut layout = Layout::new();
    layout.kv("general.architecture", "llama").unwrap();
    layout.kv("general.alignment", 64u32).unwrap();
    layout.kv("a.u8", 1u8).unwrap().kv("a.i8", -1i8).unwrap();
    layout
        .kv("a.u16", 1u16)
        .unwrap()
        .kv("a.i16", -1i16)
        .unwrap();
    layout
        .kv("a.u64", u64::MAX)
        .unwrap()
        .kv("a.f64", 0.5f64)
        .unwrap();
    layout
        .kv("a.bool", true)
        .unwrap()
        .kv("a.f32", 1e-5f32)
        .unwrap();
    layout.kv("a.list", &[1i32, 2, 3][..]).unwrap();
    layout
        .kv(
            "tokenizer.ggml.tokens",
            Array::from_strings(["a", "", "\u{120}b"]),
        )
        .unwrap();
    layout
        .tensor("token_embd.weight", GgmlType::F16, &[32, 3])
        .unwrap();
    layout
        .tensor("blk.0.ffn_up_exps.weight", GgmlType::MXFP4, &[32, 2, 2])
        .unwrap();
    let mut writer = GgufWriter::create(&path, layout).unwrap();
    writer.write_tensor(&mut [7; 192].as_slice()).unwrap();
    writer.write_tensor(&mut [8; 68].as_slice()).unwrap();
    writer.finish().unwrap();
    std::fs::read(path).unwrap()
}

/// A header with one metadata value, given as type and bytes.
fn with_value(kind: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.push(b'k');
    bytes.extend(kind.to_le_bytes());
    bytes.extend(value);
    bytes
}

#[test]
fn every_truncation_is_refused() {
    let file = valid();
    // The last tensor has 68 bytes and then padding that may be missing.
    let last_needed = file.len() - 128 + 68;
    for length in 0..=file.len() {
        let result = parse(&file[..length], length as u64);
        assert_eq!(
            result.is_ok(),
            length >= last_needed,
            "{length} of {} bytes",
            file.len()
        );
    }
}

#[test]
fn a_file_that_shrank_after_its_size_was_read_is_refused() {
    let file = valid();
    for length in [10, 40, 100] {
        let error = parse(&file[..length], file.len() as u64).unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }), "{error}");
    }
}

#[test]
fn promises_of_a_header_cost_no_memory() {
    // A string, an array of numbers, of strings, of arrays: each of nearly a terabyte.
    let huge = (1u64 << 39).to_le_bytes();
    let array = |kind: u32| [&kind.to_le_bytes()[..], &huge].concat();
    for bytes in [
        with_value(8, &huge),
        with_value(9, &array(0)),
        with_value(9, &array(12)),
        with_value(9, &array(8)),
        with_value(9, &array(9)),
    ] {
        // As if the file were a large sparse one.
        let error = parse(&bytes, 1 << 44).unwrap_err();
        assert!(
            matches!(error, Error::Limit { .. } | Error::Key { .. }),
            "{error}"
        );
        let error = parse(&bytes, bytes.len() as u64).unwrap_err();
        assert!(
            matches!(error, Error::Truncated { .. } | Error::Key { .. }),
            "{error}"
        );
    }
    let mut counts = b"GGUF\x03\0\0\0".to_vec();
    counts.extend((1u64 << 34).to_le_bytes());
    counts.extend((1u64 << 34).to_le_bytes());
    assert!(matches!(
        parse(&counts, 1 << 40).unwrap_err(),
        Error::Truncated { .. }
    ));
    assert!(matches!(
        parse(&counts, u64::MAX).unwrap_err(),
        Error::Limit { .. }
    ));
}

#[test]
fn arrays_of_arrays_have_a_floor() {
    let nested = |depth: usize| {
        let mut value = Vec::new();
        for _ in 1..depth {
            value.extend(9u32.to_le_bytes());
            value.extend(1u64.to_le_bytes());
        }
        value.extend(0u32.to_le_bytes());
        value.extend(2u64.to_le_bytes());
        value.extend([5, 6]);
        with_value(9, &value)
    };
    for depth in 1..=4 {
        let bytes = nested(depth);
        let file = parse(&bytes, bytes.len() as u64).unwrap();
        let mut value = file.get("k").unwrap().clone();
        for _ in 0..depth {
            let first = value.as_array().unwrap().iter().next().unwrap();
            value = first;
        }
        assert_eq!(value, Value::U8(5));
    }
    for depth in [5, 1000] {
        let bytes = nested(depth);
        let error = parse(&bytes, bytes.len() as u64).unwrap_err();
        assert!(error.to_string().contains("nested"), "{error}");
    }
}

#[test]
fn other_byte_order_and_versions_say_so() {
    let file = valid();
    let with = |version: u32| {
        let mut bytes = file.clone();
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        parse(&bytes, bytes.len() as u64)
    };
    assert_eq!(with(2).unwrap().version(), 2);
    assert!(matches!(
        with(3u32.swap_bytes()).unwrap_err(),
        Error::BigEndian { .. }
    ));
    for version in [0, 1, 4] {
        assert!(
            matches!(with(version).unwrap_err(), Error::Version { version: v, .. } if v == version)
        );
    }
}

/// Replaces the only occurrence of `from` in a valid file and parses the result.
fn patched(from: &[u8], to: &[u8]) -> String {
    let mut bytes = valid();
    let at: Vec<usize> = (0..bytes.len() - from.len())
        .filter(|&i| bytes[i..].starts_with(from))
        .collect();
    assert_eq!(at.len(), 1, "{from:?}");
    bytes[at[0]..at[0] + to.len()].copy_from_slice(to);
    parse(&bytes, bytes.len() as u64).unwrap_err().to_string()
}

#[test]
fn each_kind_of_damage_has_its_own_message() {
    // Key and type, then the value.
    let alignment = |v: u32| [b"alignment\x04\0\0\0", &v.to_le_bytes()[..]].concat();
    // Name, number of dimensions, dimensions, type.
    let shape = |dims: [u64; 2], kind: u32| {
        let mut bytes = b"token_embd.weight\x02\0\0\0".to_vec();
        dims.iter().for_each(|d| bytes.extend(d.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes
    };
    let good = shape([32, 3], 1);
    // The last tensor's type, then its offset.
    let second = [&39u32.to_le_bytes()[..], &192u64.to_le_bytes()].concat();
    let at = |offset: u64| [&39u32.to_le_bytes()[..], &offset.to_le_bytes()].concat();
    for (from, to, expected) in [
        (alignment(64), alignment(63), "is not a power of two"),
        (alignment(64), alignment(0), "is not a power of two"),
        (alignment(64), alignment(16), "not a multiple of 32"),
        (good.clone(), shape([0, 3], 1), "is 0"),
        (good.clone(), shape([1 << 62, 3], 1), "elements"),
        (good.clone(), shape([1 << 62, 1], 1), "bytes"),
        (
            good.clone(),
            shape([33, 3], 39),
            "not a whole number of mxfp4 blocks",
        ),
        (good.clone(), shape([32, 3], 31), "q4_0_4_4 (removed)"),
        (good.clone(), shape([32, 3], 99), "unknown type 99"),
        (good.clone(), shape([32, 4], 1), "shares bytes"),
        (second.clone(), at(0), "shares bytes"),
        (
            second.clone(),
            at(193),
            "not a multiple of the alignment 64",
        ),
        (second.clone(), at(1 << 20), "beyond the file's"),
        (second.clone(), at(u64::MAX - 63), "beyond the file's"),
        (b"a.i16".to_vec(), b"a.u16".to_vec(), "appears twice"),
        (b"a.i16".to_vec(), b"a.i\0\0".to_vec(), "zero byte"),
        (b"a.i16".to_vec(), b"a.i\xff\xff".to_vec(), "not UTF-8"),
        (
            b"a.u64\x0a".to_vec(),
            b"a.u64\x0d".to_vec(),
            "unknown type 13",
        ),
    ] {
        let message = patched(&from, &to);
        assert!(
            message.contains(expected),
            "{message:?} should contain {expected:?}"
        );
    }
}

#[test]
fn gaps_are_read_but_not_packed() {
    let mut bytes = valid();
    let from = [&39u32.to_le_bytes()[..], &192u64.to_le_bytes()].concat();
    let at = (0..bytes.len())
        .find(|&i| bytes[i..].starts_with(&from))
        .unwrap();
    bytes[at + 4..at + 12].copy_from_slice(&256u64.to_le_bytes());
    bytes.resize(bytes.len() + 64, 0);
    let file = parse(&bytes, bytes.len() as u64).unwrap();
    assert!(!file.is_packed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = parse(&bytes, bytes.len() as u64);
    }

    #[test]
    fn arbitrary_headers_are_survived(
        tensors in 0u64..4,
        keys in 0u64..4,
        rest in proptest::collection::vec(prop_oneof![3 => Just(0u8), 2 => 1u8..14, 1 => any::<u8>()], 0..600),
        file_size in prop_oneof![Just(None), any::<u64>().prop_map(Some)],
    ) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        bytes.extend(rest);
        let file_size = file_size.unwrap_or(bytes.len() as u64);
        let _ = parse(&bytes, file_size);
    }

    #[test]
    fn mutations_are_survived(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        length in any::<proptest::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = valid();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cut {
            bytes.truncate(length.index(bytes.len()));
        }
        if let Ok(file) = parse(&bytes, bytes.len() as u64) {
            // What a reader may rely on without looking again.
            for t in file.tensors() {
                prop_assert!(t.offset + t.size_bytes <= bytes.len() as u64);
                prop_assert_eq!((t.offset - file.data_offset()) % file.alignment(), 0);
                prop_assert!(t.dims.iter().all(|&d| d > 0));
            }
            prop_assert!(file.kv().all(|(key, _)| file.get(key).is_some()));
        }
    }
}
