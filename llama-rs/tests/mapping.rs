//! Weights in memory that the caller provides: the same logits as mapped, nothing is read that was not announced, and every
//! failure is an error.

mod support;

use std::collections::HashMap;
use std::fs::File;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use llama_rs::{
    Advise, Backend, Begin, Error, LoadMode, Model, ModelMemory, ModelParams, Packing, Prefetch,
    SliceProvider, Token, WeightRef, Which,
};
use model_shapes::{ExpertType, Shape};
use support::{context, folder, logits, model_file, params};

const PAGE_BYTES: usize = 4096;

/// What a part of a model is read in.
#[derive(Clone, Copy)]
struct Part {
    address: usize,
    size_bytes: usize,
}

/// Inaccessible memory, of which `load` fills and opens the pages that it is asked for.
struct Guarded {
    files: Vec<File>,
    parts: Arc<Mutex<Vec<Part>>>,
    /// Calls of `map` less calls of `unmap`.
    n_mapped: Arc<AtomicUsize>,
    loaded_bytes: Arc<AtomicUsize>,
    repacks: bool,
}

impl Guarded {
    fn new(path: &Path) -> Guarded {
        let files = gguf::ModelFiles::open(path).unwrap();
        let files = files.parts.iter().map(|part| File::open(part.path()));
        Guarded {
            files: files.map(|file| file.unwrap()).collect(),
            parts: Arc::default(),
            n_mapped: Arc::default(),
            loaded_bytes: Arc::default(),
            repacks: false,
        }
    }
}

fn protect(range: Range<usize>, flags: i32) {
    let address = std::ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: whole pages of a mapping that this test made.
    let status = unsafe { libc::mprotect(address, range.len(), flags) };
    assert_eq!(status, 0);
}

// SAFETY: private memory that stays until `unmap`; `load` returns when the bytes of the file are in it.
unsafe impl ModelMemory for Guarded {
    fn map(&mut self, file: usize, size_bytes: usize) -> Result<NonNull<u8>, String> {
        let mut parts = self.parts.lock().unwrap();
        assert_eq!(parts.len(), file);
        let (none, flags) = (
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: a new anonymous mapping.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), size_bytes, none, flags, -1, 0) };
        assert_ne!(address, libc::MAP_FAILED);
        parts.push(Part {
            address: address.expose_provenance(),
            size_bytes,
        });
        self.n_mapped.fetch_add(1, Ordering::Relaxed);
        Ok(NonNull::new(address.cast()).unwrap())
    }

    fn load(&mut self, file: usize, range: Range<usize>) -> Result<(), String> {
        let part = self.parts.lock().unwrap()[file];
        let pages = range.start / PAGE_BYTES * PAGE_BYTES..range.end.next_multiple_of(PAGE_BYTES);
        let pages = part.address + pages.start..part.address + pages.end;
        protect(pages.clone(), libc::PROT_READ | libc::PROT_WRITE);
        let target = std::ptr::with_exposed_provenance_mut(part.address + range.start);
        // SAFETY: inside of the part's memory, which was made writable above and which nothing else uses yet.
        let bytes = unsafe { std::slice::from_raw_parts_mut(target, range.len()) };
        self.files[file]
            .read_exact_at(bytes, range.start as u64)
            .map_err(|error| error.to_string())?;
        if !self.repacks {
            protect(pages, libc::PROT_READ);
        }
        self.loaded_bytes.fetch_add(range.len(), Ordering::Relaxed);
        Ok(())
    }

    fn unmap(&mut self, file: usize) {
        let part = self.parts.lock().unwrap()[file];
        let address = std::ptr::with_exposed_provenance_mut(part.address);
        // SAFETY: mapped by `map`; the model does not use it any more.
        assert_eq!(unsafe { libc::munmap(address, part.size_bytes) }, 0);
        self.n_mapped.fetch_sub(1, Ordering::Relaxed);
    }

    fn repacks(&self) -> bool {
        self.repacks
    }
}

/// Index of a file, and offset in it.
type Place = (usize, usize);

/// Gives each slice in memory of its own, read from the place in the file that its address stands for.
struct FromFiles {
    files: Vec<File>,
    parts: Arc<Mutex<Vec<Part>>>,
    slices: Mutex<HashMap<Place, Box<[Line]>>>,
}

/// Bytes at an address that suits every kernel.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u8; 64]);

// SAFETY: `get` gives the slice's bytes from the file, in memory that lives as long as the provider.
unsafe impl SliceProvider for FromFiles {
    fn begin(&self, _: &mut Begin<'_>) {}

    fn get(&self, weight: WeightRef<'_>, which: Which) -> Option<NonNull<u8>> {
        let size = weight.slice_bytes(match which {
            Which::Row(_) => llama_rs::Dim::Rows,
            Which::Matrix(_) => llama_rs::Dim::Matrices,
            Which::Whole => llama_rs::Dim::Whole,
        });
        let address = weight.mapped(which)?.addr().get();
        let parts = self.parts.lock().unwrap();
        let file = parts
            .iter()
            .position(|part| (part.address..part.address + part.size_bytes).contains(&address))?;
        let key = (file, address - parts[file].address);
        let mut slices = self.slices.lock().unwrap();
        if let Some(lines) = slices.get(&key) {
            return NonNull::new(lines.as_ptr().cast_mut().cast());
        }
        let mut bytes = vec![0; size];
        self.files[file]
            .read_exact_at(&mut bytes, key.1 as u64)
            .ok()?;
        if let Some(packing) = weight.packing() {
            // In parts, as several threads would do it.
            let part_bytes = Packing::PART_ROWS * packing.row_bytes();
            for rows in bytes.chunks_mut(part_bytes) {
                assert!(packing.repack(rows));
            }
            assert!(!packing.repack(&mut bytes[1..]));
        }
        let mut lines = vec![Line([0; 64]); size.div_ceil(64)].into_boxed_slice();
        for (line, chunk) in lines.iter_mut().zip(bytes.chunks(64)) {
            line.0[..chunk.len()].copy_from_slice(chunk);
        }
        let pointer = NonNull::new(lines.as_ptr().cast_mut().cast());
        slices.insert(key, lines);
        pointer
    }
}

fn load_into(
    path: &Path,
    params: &ModelParams,
    memory: impl ModelMemory + 'static,
) -> llama_rs::Result<Model> {
    Model::load_into(&Backend::init(), path, params, memory, |_| {
        ControlFlow::Continue(())
    })
}

fn check(path: &Path, prefetch: Prefetch) {
    check_repacked(path, prefetch, false);
}

/// With repacking, the memory repacks, and the logits are those of weights that llama.cpp copied to buffers of its own for it.
/// Gives how many weights are repacked where they are.
fn check_repacked(path: &Path, prefetch: Prefetch, repack: bool) -> usize {
    let params = |prefetch| ModelParams {
        repack,
        ..params(prefetch)
    };
    let expected = {
        let mapped = Model::load(&Backend::init(), path, &params(Prefetch::Eager)).unwrap();
        logits(&mut context(&mapped, 2))
    };
    let memory = Guarded {
        repacks: repack,
        ..Guarded::new(path)
    };
    let parts = Arc::clone(&memory.parts);
    let provider = || FromFiles {
        files: Guarded::new(path).files,
        parts: Arc::clone(&parts),
        slices: Mutex::default(),
    };
    let (n_mapped, loaded_bytes) = (memory.n_mapped.clone(), memory.loaded_bytes.clone());
    let model = load_into(path, &params(prefetch), memory).unwrap();
    assert_eq!(n_mapped.load(Ordering::Relaxed), model.files().parts.len());
    let loaded_bytes = loaded_bytes.load(Ordering::Relaxed) as u64;
    let is_lazy = model.weights().iter().any(|weight| weight.is_lazy);
    assert_eq!(loaded_bytes < model.size_bytes(), is_lazy);
    let weights = model.weights().into_iter();
    let n_packed = weights.filter(|weight| weight.packing.is_some()).count();
    assert!(prefetch != Prefetch::Eager || !is_lazy);
    for threads in [1, 2] {
        let mut context = context(&model, threads);
        if is_lazy {
            let mut batch = llama_rs::Batch::new(1, 1);
            batch.add(Token(1), 0, &[0], true).unwrap();
            assert!(matches!(context.decode(&batch), Err(Error::NoProvider)));
        }
        context.set_slice_provider(provider()).unwrap();
        assert!(
            logits(&mut context) == expected,
            "{}, {prefetch}, {threads} threads",
            path.display()
        );
    }
    assert!(Advise::new(&model).is_err());
    drop(model);
    assert_eq!(n_mapped.load(Ordering::Relaxed), 0);
    n_packed
}

/// Experts of Q4_K and MXFP4 have repacked kernels on CPUs with AVX2 or NEON.
#[test]
fn repacked_where_they_are_weights_give_the_same_logits() {
    let folder = folder();
    let mut n_packed = 0;
    for experts in ExpertType::ALL {
        let shape = Shape::tiny("tiny-qwen3moe", experts).unwrap();
        let path = model_file(folder.path(), &shape);
        for prefetch in [Prefetch::Eager, Prefetch::Selective] {
            n_packed += check_repacked(&path, prefetch, true);
        }
    }
    for shape in ["tiny-gpt-oss", "tiny-llama", "tiny-llama-untied"] {
        let path = model_file(folder.path(), &Shape::by_name(shape).unwrap());
        n_packed += check_repacked(&path, Prefetch::Selective, true);
    }
    let has_kernels = cfg!(target_arch = "aarch64")
        || cfg!(target_arch = "x86_64") && std::is_x86_feature_detected!("avx2");
    assert_eq!(n_packed > 0, has_kernels, "{n_packed} weights");
}

#[test]
fn logits_are_those_of_a_mapped_file() {
    let folder = folder();
    for shape in [
        "tiny-gpt-oss",
        "tiny-qwen3moe",
        "tiny-deepseek2",
        "tiny-llama",
        "tiny-llama-untied",
    ] {
        let path = model_file(folder.path(), &Shape::by_name(shape).unwrap());
        for prefetch in [Prefetch::Eager, Prefetch::Selective] {
            check(&path, prefetch);
        }
    }
    for experts in ExpertType::ALL {
        let path = model_file(
            folder.path(),
            &Shape::tiny("tiny-qwen3moe", experts).unwrap(),
        );
        check(&path, Prefetch::Selective);
    }
}

#[test]
fn every_part_of_a_split_model_has_its_memory() {
    let folder = folder();
    let path = model_file(folder.path(), &Shape::by_name("tiny-gpt-oss").unwrap());
    let whole = gguf::ModelFiles::open(&path).unwrap();
    let parts = gguf::split_model(&whole, &folder.path().join("split"), 3).unwrap();
    check(&parts[0], Prefetch::Selective);
}

/// Fails where it is told to.
struct Failing {
    at: &'static str,
    memory: Guarded,
}

// SAFETY: as for `Guarded`.
unsafe impl ModelMemory for Failing {
    fn map(&mut self, file: usize, size_bytes: usize) -> Result<NonNull<u8>, String> {
        match self.at {
            "map" => Err("no memory today".to_owned()),
            "panic" => panic!("at map"),
            _ => self.memory.map(file, size_bytes),
        }
    }

    fn load(&mut self, file: usize, range: Range<usize>) -> Result<(), String> {
        match self.at {
            "load" => Err("part 0 cannot be read at 4096: input/output error".to_owned()),
            "load panics" => panic!("at load"),
            _ => self.memory.load(file, range),
        }
    }

    fn unmap(&mut self, file: usize) {
        self.memory.unmap(file);
    }
}

#[test]
fn failures_are_errors_and_leave_nothing_mapped() {
    let folder = folder();
    let path: PathBuf = model_file(folder.path(), &Shape::by_name("tiny-gpt-oss").unwrap());
    for (at, expected) in [
        ("map", "no memory today"),
        ("panic", "at map"),
        ("load", "part 0 cannot be read at 4096: input/output error"),
        ("load panics", "at load"),
    ] {
        let memory = Guarded::new(&path);
        let n_mapped = memory.n_mapped.clone();
        let error = load_into(&path, &params(Prefetch::Selective), Failing { at, memory });
        let error = error.unwrap_err();
        let is_panic = matches!(error, Error::CallbackPanicked { .. });
        assert_eq!(is_panic, at.contains("panic"), "{at}: {error}");
        assert!(error.to_string().contains(expected), "{at}: {error}");
        assert_eq!(n_mapped.load(Ordering::Relaxed), 0, "{at}");
    }
    let other_mode = ModelParams {
        load_mode: LoadMode::None,
        ..params(Prefetch::Eager)
    };
    let error = load_into(&path, &other_mode, Guarded::new(&path)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::InvalidParameter {
                name: "load_mode",
                ..
            }
        ),
        "{error}"
    );
}
