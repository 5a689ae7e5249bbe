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
