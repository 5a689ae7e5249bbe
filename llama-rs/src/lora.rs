//! LoRA adapters.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use llama_sys as sys;

use crate::assertions;
use crate::error::{Error, Result};
use crate::files::WatchedFiles;
use crate::inner::InnerLora;
use crate::logs;
use crate::model::Model;
use crate::preflight;
use crate::shim;

/// A LoRA adapter that was loaded for a model. Wraps `llama_adapter_lora`.
///
/// The adapter belongs to the model: it stays in memory, at the same place, until the model is dropped. This value names it, for
/// [`Context::set_lora`](crate::Context::set_lora); each context of the model has its own choice and scales.
///
/// ```no_run
/// # fn run(mut model: llama_rs::Model) -> llama_rs::Result<()> {
/// use llama_rs::{Context, ContextParams, LoraAdapter};
///
/// let adapter = LoraAdapter::load(&mut model, "adapter.gguf")?;
/// let mut context = Context::new(&model, &ContextParams::default())?;
/// context.set_lora(&[(&adapter, 1.0)])?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraAdapter {
    /// That of [`ModelLoras`].
    model: u64,
    index: usize,
}

impl LoraAdapter {
    /// Loads the adapter at `path`, a GGUF file as llama.cpp's `convert_lora_to_gguf.py` writes it. All of it is read into
    /// memory.
    ///
    /// The model changes, so no context of it may exist. As with models, the file is examined in Rust before llama.cpp sees it.
    /// Wraps `llama_adapter_lora_init`.
    ///
    /// # Errors
    ///
    /// [`Error::Gguf`] when the file cannot be read as GGUF; [`Error::Adapter`] when it is not an adapter for this model, or
    /// llama.cpp refuses it; [`Error::ModelChanged`] when the file changes meanwhile.
    pub fn load(model: &mut Model, path: impl AsRef<Path>) -> Result<LoraAdapter> {
        let path = path.as_ref();
        let failed = |reason: String| Error::Adapter {
            path: path.to_owned(),
            reason,
        };
        let file = gguf::Gguf::open(path)?;
        let watched = WatchedFiles::open([path].into_iter())?;
        preflight::lora::check(&file, model.files()).map_err(failed)?;
        let raw_path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| failed("its name contains a NUL byte".to_owned()))?;

        logs::clear_reasons();
        let mut adapter = std::ptr::null_mut();
        // SAFETY: the model is alive and borrowed mutably, so no context uses it; the path is NUL-terminated and outlives
        // the call.
        let status = assertions::as_errors(|| unsafe {
            sys::faultline_adapter_lora_load(model.raw(), raw_path.as_ptr(), &mut adapter)
        });
        let inner = match InnerLora::from_raw(adapter) {
            Some(inner) if shim::is_ok(status) => inner,
            _ => return Err(failed(shim::reason(status))),
        };
        // llama.cpp opened the file by name a second time; what it holds must still be what was examined.
        watched.check_names()?;
        Ok(model.loras_mut().add(inner))
    }
}

/// The adapters of one model.
#[derive(Debug)]
pub(crate) struct ModelLoras {
    /// No other model of this process has it, or had it.
    model: u64,
    loaded: Vec<InnerLora>,
}

impl ModelLoras {
    pub(crate) fn new() -> ModelLoras {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        ModelLoras {
            model: NEXT.fetch_add(1, Ordering::Relaxed),
            loaded: Vec::new(),
        }
    }

    fn add(&mut self, adapter: InnerLora) -> LoraAdapter {
        self.loaded.push(adapter);
        LoraAdapter {
            model: self.model,
            index: self.loaded.len() - 1,
        }
    }

    /// The C object. Valid while the model lives.
    pub(crate) fn raw(&self, adapter: &LoraAdapter) -> Result<*mut sys::llama_adapter_lora> {
        let own = self.loaded.get(adapter.index);
        match own.filter(|_| adapter.model == self.model) {
            Some(inner) => Ok(inner.as_ptr()),
            None => Err(Error::parameter(
                "adapters",
                "an adapter was loaded for another model than the context's",
            )),
        }
    }
}
