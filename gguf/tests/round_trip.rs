//! What the writer writes, the reader reads; split sets come back whole; failures leave nothing.

use std::fs;
use std::io::Read;
use std::path::Path;

use gguf::{
    Array, Error, Footprint, GgmlType, Gguf, GgufWriter, Layout, ModelFiles, Value, part_path,
    split_model,
};
use proptest::prelude::*;

/// A folder in memory where there is one: finished files are synced, and a busy disk takes its
/// time.
fn temporary() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// Bytes that differ from tensor to tensor.
fn data(tensor: usize, size: u64) -> Vec<u8> {
    (0..size)
        .map(|i| (i as usize * 7 + tensor * 31) as u8)
        .collect()
}

fn write(path: &Path, layout: Layout) -> Result<(), Error> {
    let mut writer = GgufWriter::create(path, layout)?;
    let sizes: Vec<u64> = writer.tensors().iter().map(|t| t.size_bytes).collect();
    for (i, size) in sizes.into_iter().enumerate() {
        writer.write_tensor(&mut data(i, size).as_slice())?;
    }
    writer.finish()
}

/// A small mixture-of-experts model, structurally.
fn model(tied: bool) -> Layout {
    let mut layout = Layout::new();
    layout.kv("general.architecture", "test").unwrap();
    layout
        .kv("tokenizer.ggml.tokens", Array::from_strings(["a", "b"]))
        .unwrap();
    layout
        .tensor("token_embd.weight", GgmlType::F16, &[32, 4])
        .unwrap();
    for i in 0..3 {
        layout
            .tensor(&format!("blk.{i}.attn_q.weight"), GgmlType::F32, &[32, 5])
            .unwrap();
        let name = format!("blk.{i}.ffn_up_exps.weight");
        layout.tensor(&name, GgmlType::MXFP4, &[32, 3, 4]).unwrap();
    }
    if !tied {
        layout
            .tensor("output.weight", GgmlType::Q8_0, &[32, 4])
            .unwrap();
    }
    layout
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn value() -> impl Strategy<Value = Value> {
    let text = proptest::collection::vec(any::<u8>(), 0..20);
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        (-1e30f32..1e30).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e300f64..1e300).prop_map(Value::F64),
        text.clone().prop_map(Value::String),
        proptest::collection::vec(text, 0..5).prop_map(|v| Array::from_strings(v).into()),
        proptest::collection::vec(any::<i32>(), 0..5).prop_map(|v| v.as_slice().into()),
        proptest::collection::vec(any::<bool>(), 0..5)
            .prop_map(|v| Array::from(v.as_slice()).into()),
    ]
}

fn kind() -> impl Strategy<Value = GgmlType> {
    let usable: Vec<GgmlType> = GgmlType::all().filter(|t| t.is_usable()).collect();
    proptest::sample::select(usable)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(
        alignment in proptest::sample::select(vec![None, Some(32u32), Some(64), Some(4096)]),
        values in proptest::collection::vec(value(), 0..8),
        tensors in proptest::collection::vec((kind(), 1u64..4, proptest::collection::vec(1u64..4, 0..4)), 0..6),
    ) {
        let folder = temporary();
        let path = folder.path().join("a.gguf");
        let mut layout = Layout::new();
        if let Some(alignment) = alignment {
            layout.kv("general.alignment", alignment).unwrap();
        }
        for (i, value) in values.iter().enumerate() {
            layout.kv(&format!("key.{i}"), value.clone()).unwrap();
        }
        for (i, (kind, blocks, outer)) in tensors.iter().enumerate() {
            let mut dims = vec![blocks * kind.block_elements().unwrap()];
            dims.extend(outer.iter().take(3));
            layout.tensor(&format!("t.{i}"), *kind, &dims).unwrap();
        }
        let total_bytes = layout.total_bytes();
        let declared = layout.tensors().to_vec();
        write(&path, layout).unwrap();

        let file = Gguf::open(&path).unwrap();
        prop_assert_eq!(file.file_size(), total_bytes);
        prop_assert_eq!(file.alignment(), u64::from(alignment.unwrap_or(32)));
        prop_assert!(file.is_packed());
        for (i, value) in values.iter().enumerate() {
            prop_assert_eq!(file.get(&format!("key.{i}")), Some(value));
        }
        prop_assert_eq!(file.tensors().len(), tensors.len());
        let bytes = fs::read(&path).unwrap();
        for (i, (t, d)) in file.tensors().iter().zip(&declared).enumerate() {
            prop_assert_eq!((&t.name, t.ggml_type, &t.dims), (&d.name, d.ggml_type, &d.dims));
            prop_assert_eq!(t.offset, d.offset + file.data_offset());
            let range = t.offset as usize..(t.offset + t.size_bytes) as usize;
            prop_assert!(bytes[range] == data(i, t.size_bytes));
        }
    }
}

#[test]
fn pieces_may_come_in_any_order() {
    let folder = temporary();
    let (straight, mixed) = (folder.path().join("a"), folder.path().join("b"));
    write(&straight, model(false)).unwrap();
    let writer = GgufWriter::create(&mixed, model(false)).unwrap();
    for (i, t) in writer.tensors().iter().enumerate().rev() {
        let bytes = data(i, t.size_bytes);
        let (head, tail) = bytes.split_at(bytes.len() / 3);
        writer.write_at(i, head.len() as u64, tail).unwrap();
        writer.write_at(i, 0, head).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(fs::read(straight).unwrap(), fs::read(mixed).unwrap());
}

#[test]
fn an_unfinished_file_never_shows() {
    let folder = temporary();
    let path = folder.path().join("a.gguf");
    fs::write(&path, "what was there").unwrap();
    drop(GgufWriter::create(&path, model(false)).unwrap());

    let mut writer = GgufWriter::create(&path, model(false)).unwrap();
    writer.write_tensor(&mut data(0, 256).as_slice()).unwrap();
    let error = writer.write_tensor(&mut [1, 2, 3].as_slice()).unwrap_err();
    assert!(error.to_string().contains("blk.0.attn_q.weight"), "{error}");
    let error = writer.finish().unwrap_err();
    assert!(matches!(error, Error::Layout { .. }), "{error}");

    assert_eq!(names(folder.path()), ["a.gguf"]);
    assert_eq!(fs::read(&path).unwrap(), b"what was there");
}

#[test]
fn the_writer_refuses_what_no_reader_takes() {
    let mut layout = model(false);
    assert!(layout.kv("general.architecture", "again").is_err());
    assert!(layout.kv("", 1u32).is_err());
    assert!(
        layout.kv("general.alignment", 64u32).is_err(),
        "after tensors"
    );
    assert!(Layout::new().kv("general.alignment", 16u32).is_err());
    assert!(Layout::new().kv("general.alignment", 64u64).is_err());
    assert!(layout.tensor("output.weight", GgmlType::F32, &[1]).is_err());
    assert!(layout.tensor(&"x".repeat(64), GgmlType::F32, &[1]).is_err());
    assert!(layout.tensor("x", GgmlType::MXFP4, &[31]).is_err());
    assert!(layout.tensor("x", GgmlType::F32, &[]).is_err());
    assert!(layout.tensor("x", GgmlType::F32, &[1, 0]).is_err());
    assert!(layout.tensor("x", GgmlType(4), &[32]).is_err());
    assert!(layout.tensor("x", GgmlType::F32, &[u64::MAX, 2]).is_err());

    let folder = temporary();
    let writer = GgufWriter::create(&folder.path().join("a"), model(false)).unwrap();
    assert!(writer.write_at(0, 250, &[0; 7]).is_err());
    assert!(writer.write_at(0, u64::MAX, &[0; 7]).is_err());
    assert!(writer.write_at(99, 0, &[0; 7]).is_err());
}

#[test]
fn footprint_follows_the_rule() {
    let folder = temporary();
    let path = folder.path().join("a.gguf");
    let (embedding, attention, experts, output) = (32 * 4 * 2, 3 * 32 * 5 * 4, 3 * 17 * 12, 34 * 4);
    for tied in [true, false] {
        write(&path, model(tied)).unwrap();
        let files = ModelFiles::open(&path).unwrap();
        let Footprint {
            dense_bytes,
            sparse_bytes,
            other_bytes,
        } = files.dense_sparse();
        let (dense, sparse) = match tied {
            true => (attention + embedding, experts),
            false => (attention + output, experts + embedding),
        };
        assert_eq!((dense_bytes, sparse_bytes), (dense, sparse));
        assert_eq!(
            dense_bytes + sparse_bytes + other_bytes,
            files.total_bytes()
        );
        assert_eq!(files.is_sparse("token_embd.weight"), !tied);
    }
}

#[test]
fn a_split_set_is_the_same_model() {
    let folder = temporary();
    let path = folder.path().join("a.gguf");
    write(&path, model(false)).unwrap();
    let whole = ModelFiles::open(&path).unwrap();
    for count in 1..=8 {
        let prefix = folder.path().join(format!("split{count}"));
        let parts = split_model(&whole, &prefix, count).unwrap();
        assert_eq!(parts.len(), usize::from(count));
        let set = ModelFiles::open(&parts[0]).unwrap();
        assert_eq!(set.parts.len(), usize::from(count));
        for part in &parts {
            let from_part = ModelFiles::open_from_any_part(part).unwrap();
            assert_eq!(from_part.metadata().path(), parts[0]);
            assert_eq!(from_part.parts.len(), set.parts.len());
        }
        assert!(set.parts.iter().all(|p| !p.tensors().is_empty()));
        assert_eq!(set.metadata().architecture(), Some("test"));
        for ((_, a), (part, b)) in whole.tensors().zip(set.tensors()) {
            assert_eq!(
                (&a.name, &a.dims, a.ggml_type),
                (&b.name, &b.dims, b.ggml_type)
            );
            let read = |path: &Path, offset: u64| {
                fs::read(path).unwrap()[offset as usize..][..a.size_bytes as usize].to_vec()
            };
            assert_eq!(
                read(&path, a.offset),
                read(set.parts[part].path(), b.offset)
            );
        }
        // A set can be split again.
        let again = split_model(&set, &folder.path().join("again"), 2).unwrap();
        let again = ModelFiles::open(&again[0]).unwrap();
        assert_eq!(again.tensors().count(), whole.tensors().count());
    }
    assert!(split_model(&whole, &folder.path().join("x"), 0).is_err());
    assert!(split_model(&whole, &folder.path().join("x"), 9).is_err());
}

#[test]
fn wrong_sets_are_refused() {
    let folder = temporary();
    let path = folder.path().join("a.gguf");
    write(&path, model(false)).unwrap();
    let whole = ModelFiles::open(&path).unwrap();
    let prefix = folder.path().join("s");
    let fresh = || split_model(&whole, &prefix, 3).unwrap();
    let open = |path: &Path| ModelFiles::open(path).map(|_| ()).unwrap_err();

    let parts = fresh();
    let message = open(&parts[1]).to_string();
    assert!(message.contains("is part 2 of 3; open"), "{message}");
    assert!(message.contains("s-00001-of-00003.gguf"), "{message}");

    fs::remove_file(&parts[2]).unwrap();
    let error = open(&parts[0]);
    assert!(
        matches!(
            &error,
            Error::MissingPart {
                part: 3,
                count: 3,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().contains("s-00003-of-00003.gguf"),
        "{error}"
    );

    fs::copy(&parts[1], &parts[2]).unwrap();
    let message = open(&parts[0]).to_string();
    assert!(
        message.contains("should be part 3 of 3, but its key split.no says 2"),
        "{message}"
    );

    fs::copy(&path, &parts[2]).unwrap();
    let message = open(&parts[0]).to_string();
    assert!(message.contains("not part of a split model"), "{message}");

    let other = split_model(&whole, &folder.path().join("t"), 4).unwrap();
    fs::copy(&other[2], &parts[2]).unwrap();
    let message = open(&parts[0]).to_string();
    assert!(message.contains("in 4 parts, not in 3"), "{message}");

    let parts = fresh();
    let renamed = folder.path().join("renamed.gguf");
    fs::rename(&parts[0], &renamed).unwrap();
    let message = open(&renamed).to_string();
    assert!(message.contains("its name does not end with"), "{message}");
}

#[test]
fn parts_with_the_wrong_tensors_are_refused() {
    let folder = temporary();
    let prefix = folder.path().join("s");
    let part = |number: u16, name: &str, total: Value| {
        let mut layout = Layout::new();
        layout
            .kv("split.no", number - 1)
            .unwrap()
            .kv("split.count", 2u16)
            .unwrap();
        layout.kv("split.tensors.count", total).unwrap();
        layout.tensor(name, GgmlType::F32, &[1]).unwrap();
        let path = part_path(&prefix, number, 2);
        write(&path, layout).unwrap();
        path
    };
    let first = part(1, "a", Value::I32(2));
    part(2, "b", Value::I32(2));
    ModelFiles::open(&first).unwrap();
    part(2, "a", Value::I32(2));
    let message = ModelFiles::open(&first).unwrap_err().to_string();
    assert!(message.contains("is in another part too"), "{message}");
    part(2, "b", Value::I32(2));
    part(1, "a", Value::I32(3));
    let message = ModelFiles::open(&first).unwrap_err().to_string();
    assert!(message.contains("should have 3 tensors"), "{message}");
    part(1, "a", Value::U32(2));
    let message = ModelFiles::open(&first).unwrap_err().to_string();
    assert!(message.contains("UINT32, not INT32"), "{message}");
}

/// A tensor's data that stops the writer in the middle, as a full disk or an interrupted source
/// does.
struct Failing(u64);

impl Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            return Err(std::io::Error::other("interrupted"));
        }
        let n = (buffer.len() as u64).min(self.0) as usize;
        self.0 -= n as u64;
        Ok(n)
    }
}

#[test]
fn a_source_that_fails_leaves_nothing() {
    let folder = temporary();
    let path = folder.path().join("a.gguf");
    let mut layout = Layout::new();
    layout.tensor("big", GgmlType::F32, &[1 << 20]).unwrap();
    let mut writer = GgufWriter::create(&path, layout).unwrap();
    let error = writer.write_tensor(&mut Failing(3 << 20)).unwrap_err();
    assert!(error.to_string().contains("interrupted"), "{error}");
    drop(writer);
    assert!(names(folder.path()).is_empty());
}
