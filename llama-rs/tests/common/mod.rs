//! Tiny models for tests, and the real ones where they are.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::path::{Path, PathBuf};

use llama_rs::{Backend, Context, ContextParams, Model, ModelParams, Token};

/// A tiny generated model in a folder that is removed with it.
pub(crate) struct TinyModel {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl TinyModel {
    /// The shape of this name of `model-shapes`.
    pub(crate) fn new(shape: &str) -> TinyModel {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("{shape}.gguf"));
        let shape = model_shapes::Shape::by_name(shape).unwrap();
        model_shapes::generate(&shape, &path, 1, &mut |_, _| {}).unwrap();
        TinyModel { folder, path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn load(&self, params: &ModelParams) -> Model {
        Model::load(&Backend::init(), &self.path, params).unwrap()
    }
}

/// Small and the same on every machine.
pub(crate) fn context_params() -> ContextParams {
    ContextParams {
        n_ctx: 256,
        n_batch: 64,
        n_ubatch: 32,
        n_threads: 2,
        n_threads_batch: 2,
        ..Default::default()
    }
}

pub(crate) fn context(model: &Model) -> Context<'_> {
    Context::new(model, &context_params()).unwrap()
}

/// A fixed prompt of byte tokens.
pub(crate) fn prompt(n: usize) -> Vec<Token> {
    (0..n).map(|i| Token((i * 37 % 251) as i32)).collect()
}

/// A real model in the cache folder, or `None` after printing why the test does nothing.
pub(crate) fn real_model(file_name: &str) -> Option<PathBuf> {
    let cache = match std::env::var_os("FAULTLINE_CACHE") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
            base.or(home)?.join("faultline")
        }
    };
    let path = cache.join("models").join(file_name);
    if path.exists() {
        return Some(path);
    }
    println!(
        "skipped: {} is not there (scripts/fetch-models.sh)",
        path.display()
    );
    None
}

/// A folder of shared test data, or `None` after printing why the test does nothing.
pub(crate) fn shared_data(folder: &str) -> Option<PathBuf> {
    let root = std::env::var_os("FAULTLINE_SHARED_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
        PathBuf::from,
    );
    let path = root.join(folder);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}
