//! A loaded model.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::pin::Pin;

use llama_sys as sys;

use crate::assertions;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::failure::FailureSlot;
use crate::files::WatchedFiles;
use crate::inner::InnerModel;
use crate::logs;
use crate::lora::ModelLoras;
use crate::memory_map::{MemoryState, ModelMemory};
use crate::params::{LoadMode, ModelParams, Prefetch};
use crate::preflight;
use crate::shim;
use crate::vocab::Vocab;
use crate::warm;

/// The weights and the vocabulary of a model. Wraps `llama_model`.
///
/// A model may be shared between threads; each thread makes its own [`Context`](crate::Context).
#[derive(Debug)]
pub struct Model {
    inner: InnerModel,
    /// Where the weights are, if not in a mapping. C uses it until `inner` is freed, so it comes after that.
    memory: Option<Pin<Box<MemoryState>>>,
    files: gguf::ModelFiles,
    watched: WatchedFiles,
    params: ModelParams,
    has_causal_attention: bool,
    loras: ModelLoras,
    needs_provider: bool,
}

impl Model {
    /// Loads the model at `path`: one GGUF file, or the first part of a split set.
    ///
    /// The files are examined in Rust before llama.cpp sees them; what it would abort on is refused here.
    ///
    /// # Errors
    ///
    /// [`Error::Gguf`] when a file cannot be read as GGUF, [`Error::UnsupportedModel`] when its metadata make no usable
    /// model, [`Error::Load`] with llama.cpp's reason when that refuses it, [`Error::InvalidParameter`] for
    /// contradicting parameters.
    pub fn load(backend: &Backend, path: impl AsRef<Path>, params: &ModelParams) -> Result<Model> {
        Model::load_with(backend, path, params, |_| ControlFlow::Continue(()))
    }

    /// As [`load`](Model::load), and calls `progress` with the loaded fraction, in `0.0..=1.0`, on this thread.
    ///
    /// # Errors
    ///
    /// As for `load`; [`Error::Cancelled`] when `progress` gives [`ControlFlow::Break`], [`Error::CallbackPanicked`] when
    /// it panics. Everything loaded so far is freed then.
    pub fn load_with(
        _backend: &Backend,
        path: impl AsRef<Path>,
        params: &ModelParams,
        progress: impl FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Model> {
        Model::load_files(path.as_ref(), params, Weights::Files, progress)
    }

    /// As [`load_with`](Model::load_with), with the weights in `memory` instead of a mapping of the files.
    ///
    /// # Errors
    ///
    /// As for `load_with`; [`Error::Load`] with the reason that `memory` gives, [`Error::InvalidParameter`] for a load
    /// mode other than [`LoadMode::Mmap`].
    pub fn load_into(
        _backend: &Backend,
        path: impl AsRef<Path>,
        params: &ModelParams,
        memory: impl ModelMemory + 'static,
        progress: impl FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Model> {
        if params.load_mode != LoadMode::Mmap {
            return Err(Error::parameter(
                "load_mode",
                format!("{} does not use memory that is provided", params.load_mode),
            ));
        }
        let memory = Weights::Provided(MemoryState::new(memory));
        Model::load_files(path.as_ref(), params, memory, progress)
    }

    /// As [`load`](Model::load) without weights: llama.cpp counts the memory for them, and allocates none. Computing with such a
    /// model would read addresses that are NULL, so it stays inside this crate.
    pub(crate) fn load_nothing(
        _backend: &Backend,
        path: &Path,
        params: &ModelParams,
    ) -> Result<Model> {
        Model::load_files(
            path,
            params,
            Weights::Nowhere,
            |_| ControlFlow::Continue(()),
        )
    }

    fn load_files(
        path: &Path,
        params: &ModelParams,
        weights: Weights,
        progress: impl FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Model> {
        params.check()?;
        let files = gguf::ModelFiles::open(path)?;
        let watched = WatchedFiles::open(files.parts.iter().map(|part| part.path()))?;
        preflight::check(&files, params)?;
        let has_causal_attention = preflight::has_causal_attention(&files);
        let inner = load_raw(path, &files, params, &weights, progress)?;
        // llama.cpp opened the files by name a second time; they must still be the ones that were examined.
        watched.check_names()?;
        let mut model = Model {
            inner,
            memory: match weights {
                Weights::Provided(memory) => Some(memory),
                Weights::Files | Weights::Nowhere => None,
            },
            files,
            watched,
            params: params.clone(),
            has_causal_attention,
            loras: ModelLoras::new(),
            needs_provider: false,
        };
        model.needs_provider =
            model.memory.is_some() && model.weights().iter().any(|weight| weight.is_lazy);
        Ok(model)
    }

    /// The C object. Valid while `self` lives.
    pub(crate) fn raw(&self) -> *mut sys::llama_model {
        self.inner.as_ptr()
    }

    /// The adapters that were loaded for it.
    pub(crate) fn loras(&self) -> &ModelLoras {
        &self.loras
    }

    pub(crate) fn loras_mut(&mut self) -> &mut ModelLoras {
        &mut self.loras
    }

    /// The tokenizer.
    pub fn vocab(&self) -> Vocab<'_> {
        Vocab::of(self)
    }

    /// What was asked for when the model was loaded.
    pub fn params(&self) -> &ModelParams {
        &self.params
    }

    /// The files, with their metadata and tensor tables.
    pub fn files(&self) -> &gguf::ModelFiles {
        &self.files
    }

    /// Architecture, size and type in one line, such as `gpt-oss 20B MXFP4 MoE`. Wraps `llama_model_desc`.
    pub fn desc(&self) -> String {
        let mut buffer = [0u8; 256];
        // SAFETY: the model is alive; the buffer is writable for its length, and the function terminates what it
        // writes with NUL.
        unsafe { sys::llama_model_desc(self.raw(), buffer.as_mut_ptr().cast(), buffer.len()) };
        match CStr::from_bytes_until_nul(&buffer) {
            Ok(text) => text.to_string_lossy().into_owned(),
            Err(_) => String::new(),
        }
    }

    /// Number of parameters. Wraps `llama_model_n_params`.
    pub fn n_params(&self) -> u64 {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_n_params(self.raw()) }
    }

    /// Bytes of all tensors. Wraps `llama_model_size`.
    pub fn size_bytes(&self) -> u64 {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_size(self.raw()) }
    }

    /// Context length that the model was trained with, in tokens.
    pub fn n_ctx_train(&self) -> u32 {
        // SAFETY: the model is alive.
        count(unsafe { sys::llama_model_n_ctx_train(self.raw()) })
    }

    /// Tokens that the layers with a sliding window see; 0 if there is none.
    pub fn n_swa(&self) -> u32 {
        // SAFETY: the model is alive.
        count(unsafe { sys::llama_model_n_swa(self.raw()) })
    }

    /// Width of the hidden state.
    pub fn n_embd(&self) -> u32 {
        // SAFETY: the model is alive.
        count(unsafe { sys::llama_model_n_embd(self.raw()) })
    }

    /// Number of layers.
    pub fn n_layer(&self) -> u32 {
        // SAFETY: the model is alive.
        count(unsafe { sys::llama_model_n_layer(self.raw()) })
    }

    /// Whether the model has a decoder, that is, can generate.
    pub fn has_decoder(&self) -> bool {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_has_decoder(self.raw()) }
    }

    /// Whether the model has an encoder that runs before its decoder.
    pub fn has_encoder(&self) -> bool {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_has_encoder(self.raw()) }
    }

    /// Whether some weights are nowhere but where a slice provider says.
    pub(crate) fn needs_provider(&self) -> bool {
        self.needs_provider
    }

    /// Whether the weights are in a mapping of the files.
    pub(crate) fn is_mapped(&self) -> bool {
        self.memory.is_none() && self.params.load_mode == LoadMode::Mmap
    }

    /// Whether a token sees only the tokens before it. Otherwise a batch must fit into one ubatch.
    pub(crate) fn has_causal_attention(&self) -> bool {
        self.has_causal_attention
    }

    /// A value of the metadata as text, arrays included. Wraps `llama_model_meta_val_str`.
    pub fn metadata(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        let mut buffer = vec![0u8; 256];
        for _ in 0..2 {
            // SAFETY: the model is alive, `key` is NUL-terminated, `buffer` writable for its length.
            let needed = unsafe {
                sys::llama_model_meta_val_str(
                    self.raw(),
                    key.as_ptr(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                )
            };
            let needed = usize::try_from(needed).ok()?;
            if needed < buffer.len() {
                buffer.truncate(needed);
                return Some(String::from_utf8_lossy(&buffer).into_owned());
            }
            buffer.resize(needed + 1, 0);
        }
        None
    }

    /// The text of the model's chat template. Wraps `llama_model_chat_template`.
    pub fn chat_template(&self) -> Option<String> {
        // SAFETY: the model is alive; NULL asks for the default template.
        let text = unsafe { sys::llama_model_chat_template(self.raw(), std::ptr::null()) };
        if text.is_null() {
            return None;
        }
        // SAFETY: a NUL-terminated string owned by the model, which is alive.
        Some(
            unsafe { CStr::from_ptr(text) }
                .to_string_lossy()
                .into_owned(),
        )
    }

    /// Whether the files are still those that were loaded: same file under the same name, same size, same time of
    /// modification.
    ///
    /// [`Context::decode`](crate::Context::decode) checks size and time by itself when the model is mapped. Neither can
    /// see a file that is shortened while a decode runs: reading a page that is gone ends the process with SIGBUS.
    ///
    /// # Errors
    ///
    /// [`Error::ModelChanged`] or, when a file cannot be examined, [`Error::Io`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.watched.check_names()
    }

    /// The check of every decode. Weights that were copied into memory cannot change.
    pub(crate) fn check_contents(&self) -> Result<()> {
        match self.params.load_mode {
            LoadMode::Mmap => self.watched.check_contents(),
            LoadMode::None | LoadMode::DirectIo => Ok(()),
        }
    }
}

/// Where a model's weights are to be.
enum Weights {
    /// Where the load mode says.
    Files,
    /// In memory that the caller provides.
    Provided(Pin<Box<MemoryState>>),
    /// Nowhere: they are only counted.
    Nowhere,
}

fn count(n: i32) -> u32 {
    u32::try_from(n).unwrap_or(0)
}

/// The progress callback and what became of it, on the stack of [`load_raw`].
struct Progress<F> {
    report: F,
    failure: FailureSlot,
    cancelled: bool,
    /// The fraction that was reached before llama.cpp began.
    start: f32,
}

impl<F: FnMut(f32) -> ControlFlow<()>> Progress<F> {
    /// Reports a fraction of everything; whether to go on.
    fn call(&mut self, fraction: f32) -> bool {
        if self.cancelled || self.failure.is_set() {
            return false;
        }
        let report = &mut self.report;
        match self.failure.catch("progress callback", || report(fraction)) {
            Some(ControlFlow::Continue(())) => true,
            Some(ControlFlow::Break(())) => {
                self.cancelled = true;
                false
            }
            None => false,
        }
    }
}

/// The share of the progress that reading the dense tensors has.
const WARM_SHARE: f32 = 0.9;

unsafe extern "C" fn on_progress<F: FnMut(f32) -> ControlFlow<()>>(
    fraction: f32,
    user_data: *mut c_void,
) -> bool {
    // SAFETY: `user_data` is the `Progress` of the load that is running; llama.cpp calls back on the loading thread
    // only, and nothing else uses it until the load has returned.
    let Some(progress) = (unsafe { user_data.cast::<Progress<F>>().as_mut() }) else {
        return false;
    };
    let start = progress.start;
    progress.call(start + fraction * (1.0 - start))
}

fn load_raw<F: FnMut(f32) -> ControlFlow<()>>(
    path: &Path,
    files: &gguf::ModelFiles,
    params: &ModelParams,
    weights: &Weights,
    report: F,
) -> Result<InnerModel> {
    let failed = |reason: String| Error::Load {
        path: path.to_owned(),
        reason,
    };
    let memory = match weights {
        Weights::Provided(memory) => Some(memory),
        Weights::Files | Weights::Nowhere => None,
    };
    let is_counted = matches!(weights, Weights::Nowhere);
    let paths = files
        .parts
        .iter()
        .map(|part| CString::new(part.path().as_os_str().as_bytes()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| failed("its name contains a NUL byte".to_owned()))?;
    let mut raw_paths: Vec<*const c_char> = paths.iter().map(|path| path.as_ptr()).collect();

    let mut progress = Progress {
        report,
        failure: FailureSlot::new(),
        cancelled: false,
        start: 0.0,
    };
    if params.prefetch == Prefetch::Selective
        && !params.vocab_only
        && matches!(weights, Weights::Files)
    {
        let warmed = warm::dense(files, |fraction| {
            match progress.call(fraction * WARM_SHARE) {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        if warmed.huge_bytes > 0 {
            progress.start = WARM_SHARE;
        }
        tracing::debug!(
            huge_bytes = warmed.huge_bytes,
            "dense tensors in huge pages"
        );
    }
    // SAFETY: takes no arguments.
    let mut raw = unsafe { sys::llama_model_default_params() };
    raw.n_gpu_layers = 0;
    raw.no_alloc = is_counted;
    raw.load_mode = match params.load_mode {
        // llama.cpp maps nothing when it only counts, and insists on this mode.
        _ if is_counted => sys::LLAMA_LOAD_MODE_NONE,
        LoadMode::Mmap => sys::LLAMA_LOAD_MODE_MMAP,
        LoadMode::None => sys::LLAMA_LOAD_MODE_NONE,
        LoadMode::DirectIo => sys::LLAMA_LOAD_MODE_DIRECT_IO,
    };
    raw.lazy_mode = match params.prefetch {
        Prefetch::Eager => sys::LLAMA_LAZY_MODE_OFF,
        Prefetch::Selective => sys::LLAMA_LAZY_MODE_SPARSE,
        Prefetch::None => sys::LLAMA_LAZY_MODE_ALL,
    };
    raw.use_extra_bufts = params.repack;
    raw.check_tensors = params.check_tensors;
    raw.vocab_only = params.vocab_only;
    raw.progress_callback = Some(on_progress::<F>);
    raw.progress_callback_user_data = std::ptr::from_mut(&mut progress).cast();

    let interface = memory.map(|state| state.interface());
    let mapping = interface
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    let user_data = memory.map_or(std::ptr::null_mut(), |state| state.user_data());

    logs::clear_reasons();
    let mut model = std::ptr::null_mut();
    // SAFETY: `raw_paths` holds NUL-terminated names that outlive the call; `progress` outlives the call and is used
    // only by it; the callback's type matches the user data. llama.cpp copies the interface of the memory; its user data is
    // pinned, and the caller keeps it until after the model is freed.
    let status = assertions::as_errors(|| unsafe {
        sys::faultline_model_load(
            raw_paths.as_mut_ptr(),
            raw_paths.len(),
            raw,
            mapping,
            user_data,
            &mut model,
        )
    });
    // SAFETY: a model that llama.cpp returned is ours; a failed call leaves NULL.
    let inner = unsafe { InnerModel::from_raw(model) };

    // From here on an early return drops `inner`, which frees the model.
    if let Some(failure) = progress.failure.take() {
        return Err(failure.into_error(None));
    }
    if let Some(error) = memory.and_then(|state| state.take_error()) {
        return Err(error);
    }
    if progress.cancelled {
        return Err(Error::Cancelled);
    }
    if let Some(reason) = memory.and_then(|state| state.take_reason()) {
        return Err(failed(reason));
    }
    match inner {
        Some(inner) if shim::is_ok(status) => Ok(inner),
        _ => Err(failed(shim::reason(status))),
    }
}
