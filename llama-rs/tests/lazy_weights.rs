//! What reads weights on demand changes no bit of the result: without a slice provider, with one, with the experts in
//! another order, and with the slices elsewhere while the mapped ones cannot be read.

mod support;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use gguf::ModelFiles;
use llama_rs::{Begin, Dim, Prefetch, SliceProvider, WeightRef, Which};
use model_shapes::{ExpertType, Shape};
use support::{context, folder, load, logits, model_file};

/// Leaves everything as it is.
struct Passive;

// SAFETY: `get` is the default, the mapped file.
unsafe impl SliceProvider for Passive {
    fn begin(&self, _: &mut Begin<'_>) {}
}

/// Puts the experts into an order that changes from call to call.
#[derive(Default)]
struct Permute(Mutex<u64>);

// SAFETY: `get` is the default, the mapped file.
unsafe impl SliceProvider for Permute {
    fn begin(&self, access: &mut Begin<'_>) {
        let mut state = self.0.lock().unwrap();
        for last in (1..access.ids.len()).rev() {
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            access.ids.swap(last, (*state >> 33) as usize % (last + 1));
        }
    }
}

/// Bytes at an address that suits every kernel.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u8; 64]);

/// The bytes of the slices that were asked for, by tensor.
type Slices = HashMap<(String, Which), Box<[Line]>>;

/// Reads every slice from the file into memory of its own, and makes the mapped tensors unreadable: a read that was not
/// announced ends the test with SIGSEGV.
struct Elsewhere {
    files: ModelFiles,
    slices: Mutex<Slices>,
    hidden: Mutex<HashSet<usize>>,
    seen: Mutex<BTreeSet<String>>,
}

impl Elsewhere {
    fn new(path: &Path) -> Elsewhere {
        Elsewhere {
            files: ModelFiles::open(path).unwrap(),
            slices: Mutex::default(),
            hidden: Mutex::default(),
            seen: Mutex::default(),
        }
    }
}

// SAFETY: `get` gives the slice's bytes from the file, in memory that lives as long as the provider.
unsafe impl SliceProvider for Elsewhere {
    fn begin(&self, access: &mut Begin<'_>) {
        let weight = access.weight;
        self.seen.lock().unwrap().insert(weight.name().to_owned());
        let start = weight.data() as usize;
        if !self.hidden.lock().unwrap().insert(start) {
            return;
        }
        // Pages that the tensor shares with its neighbours stay readable.
        let first = start.next_multiple_of(4096);
        let last = (start + weight.slice_bytes(Dim::Whole)) & !4095;
        if first < last {
            // SAFETY: these pages lie in llama.cpp's mapping of the file, which nothing reads but through `get`.
            let status = unsafe { libc::mprotect(first as *mut _, last - first, libc::PROT_NONE) };
            assert_eq!(status, 0);
        }
    }

    fn get(&self, weight: WeightRef<'_>, which: Which) -> Option<NonNull<u8>> {
        let mut slices = self.slices.lock().unwrap();
        let slice = slices
            .entry((weight.name().to_owned(), which))
            .or_insert_with(|| {
                let (dim, index) = match which {
                    Which::Row(n) => (Dim::Rows, n),
                    Which::Matrix(n) => (Dim::Matrices, n),
                    Which::Whole => (Dim::Whole, 0),
                };
                let size = weight.slice_bytes(dim);
                let (part, tensor) = self.files.tensor(weight.name()).unwrap();
                let mut bytes = vec![0; size];
                let file = File::open(self.files.parts[part].path()).unwrap();
                file.read_exact_at(&mut bytes, tensor.offset + u64::from(index) * size as u64)
                    .unwrap();
                let mut lines = vec![Line([0; 64]); size.div_ceil(64)].into_boxed_slice();
                for (line, chunk) in lines.iter_mut().zip(bytes.chunks(64)) {
                    line.0[..chunk.len()].copy_from_slice(chunk);
                }
                lines
            });
        NonNull::new(slice.as_mut_ptr().cast())
    }
}

/// Compares every way to read the model at `path` with reading all of it up front; returns the tensors that were read on
/// demand.
fn check(path: &Path, threads: u32) -> BTreeSet<String> {
    let eager = load(path, Prefetch::Eager);
    let expected = logits(&mut context(&eager, threads));
    let finite = expected
        .iter()
        .all(|&bits| f32::from_bits(bits).is_finite());
    assert!(finite, "{}: logits that are not finite", path.display());

    let what = |mode: &str| format!("{}, {threads} threads, {mode}", path.display());
    let elsewhere = Arc::new(Elsewhere::new(path));
    for prefetch in [Prefetch::None, Prefetch::Selective] {
        let model = load(path, prefetch);
        assert!(
            logits(&mut context(&model, threads)) == expected,
            "{}",
            what("no provider")
        );

        let mut with = context(&model, threads);
        with.set_slice_provider(Passive).unwrap();
        assert!(logits(&mut with) == expected, "{}", what("passive"));

        let mut with = context(&model, threads);
        with.set_slice_provider(Permute::default()).unwrap();
        assert!(logits(&mut with) == expected, "{}", what("permuted"));
    }
    let model = load(path, Prefetch::Selective);
    let mut with = context(&model, threads);
    with.set_slice_provider(Arc::clone(&elsewhere)).unwrap();
    assert!(logits(&mut with) == expected, "{}", what("elsewhere"));
    std::mem::take(&mut *elsewhere.seen.lock().unwrap())
}

/// The tensors that the GGUF map calls sparse.
fn sparse_tensors(path: &Path) -> BTreeSet<String> {
    let files = ModelFiles::open(path).unwrap();
    files
        .tensors()
        .map(|(_, tensor)| tensor.name.clone())
        .filter(|name| files.is_sparse(name))
        .collect()
}

fn check_shape(shape: &Shape) {
    let folder = folder();
    let path = model_file(folder.path(), shape);
    for threads in [1, 2] {
        assert_eq!(
            check(&path, threads),
            sparse_tensors(&path),
            "{}",
            shape.name()
        );
    }
}

fn check_experts(name: &str) {
    for experts in ExpertType::ALL {
        check_shape(&Shape::tiny(name, experts).unwrap());
    }
}

#[test]
fn gpt_oss_experts_of_every_type() {
    check_experts("tiny-gpt-oss");
}

#[test]
fn qwen3moe_experts_of_every_type() {
    check_experts("tiny-qwen3moe");
}

#[test]
fn deepseek2_experts_of_every_type() {
    check_experts("tiny-deepseek2");
}

#[test]
fn an_output_of_its_own_makes_the_embedding_sparse() {
    let shape = Shape::by_name("tiny-llama-untied").unwrap();
    let folder = folder();
    let path = model_file(folder.path(), &shape);
    assert_eq!(
        check(&path, 2),
        BTreeSet::from(["token_embd.weight".to_owned()])
    );
}

#[test]
fn tied_embeddings_are_dense() {
    let shape = Shape::by_name("tiny-llama").unwrap();
    let folder = folder();
    let path = model_file(folder.path(), &shape);
    assert_eq!(check(&path, 2), BTreeSet::new());
}

#[test]
fn split_files() {
    let folder = folder();
    let path = model_file(folder.path(), &Shape::by_name("tiny-gpt-oss").unwrap());
    let prefix = folder.path().join("split");
    let parts = gguf::split_model(&ModelFiles::open(&path).unwrap(), &prefix, 3).unwrap();
    assert_eq!(parts.len(), 3);
    let first = parts[0].clone();
    assert_eq!(check(&first, 2), sparse_tensors(&path));

    let whole = load(&path, Prefetch::Eager);
    let split = load(&first, Prefetch::Selective);
    assert!(logits(&mut context(&whole, 2)) == logits(&mut context(&split, 2)));
}
