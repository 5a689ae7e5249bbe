//! Memory that stands for the files of a model, instead of a mapping by the kernel.
//!
//! The Rust side of llama.cpp's user mapping; `docs/safety.md` has the whole contract.

use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomPinned;
use std::ops::Range;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use llama_sys as sys;

use crate::error::Error;
use crate::failure::FailureSlot;

/// Provides the memory in which the files of a model are read.
///
/// For each part of the model, in their order, llama.cpp calls [`map`](ModelMemory::map) once. Then it calls
/// [`load`](ModelMemory::load) for every tensor that is read up front, and when the model is dropped, or could not be
/// loaded, [`unmap`](ModelMemory::unmap) for every part. `map` and `load` come from the thread that loads the model. With
/// [`Prefetch::Selective`](crate::Prefetch::Selective) that is all but the experts, the token embedding where it is read
/// by rows, and what [`is_lazy`](ModelMemory::is_lazy) names; with [`Prefetch::None`](crate::Prefetch::None) only tensors that
/// are too small to be worth it.
///
/// What `load` was not asked for is read only where a [`SliceProvider`](crate::SliceProvider) says that it is, so its part
/// of the memory may be inaccessible. Without a provider [`Context::decode`](crate::Context::decode) gives an error.
///
/// A panic in any of them is caught: the load ends with [`Error::CallbackPanicked`].
///
/// # Safety
///
/// `map` returns memory that nobody else writes to, of at least the size that is asked for and aligned to 4096, which stays
/// mapped until `unmap` is called for the part. When `load` returns `Ok`, the range holds the file's bytes, and it stays
/// readable and unchanged until then. Where [`repacks`](ModelMemory::repacks) gives `true`, it is writable, too, and nothing
/// else reads or writes it: llama.cpp changes it after `load`.
pub unsafe trait ModelMemory: Send {
    /// Memory for part `file` of the model, which is `size_bytes` long.
    ///
    /// # Errors
    ///
    /// Why there is none; the load ends with [`Error::Load`] and this text.
    fn map(&mut self, file: usize, size_bytes: usize) -> Result<NonNull<u8>, String>;

    /// Makes a range of bytes of part `file` readable.
    ///
    /// # Errors
    ///
    /// Why that failed, with the file's name; the load ends with [`Error::Load`] and this text.
    fn load(&mut self, file: usize, range: Range<usize>) -> Result<(), String>;

    /// The memory of part `file` is not used any more.
    fn unmap(&mut self, file: usize);

    /// Whether the tensor that fills this range of part `file` is read on demand, as [`Which::Whole`](crate::Which::Whole),
    /// although every token reads all of it. Asked before [`map`](ModelMemory::map), several times for some tensors, and
    /// only with [`Prefetch::Selective`](crate::Prefetch::Selective) or [`Prefetch::None`](crate::Prefetch::None). The default is
    /// no tensor.
    fn is_lazy(&mut self, file: usize, range: Range<usize>) -> bool {
        let _ = (file, range);
        false
    }

    /// Whether weights are brought into the layout of the repacked kernels in this memory, where
    /// [`ModelParams::repack`](crate::ModelParams::repack) asks for that. Those that are read up front are repacked after
    /// [`load`](ModelMemory::load). Of those on demand that are [packed](crate::WeightRef::packing), a
    /// [`SliceProvider`](crate::SliceProvider) gives slices to which [`Packing::repack`](crate::Packing::repack) was applied.
    /// The default is no: then the former are copied to memory of llama.cpp's own, and the latter are not repacked.
    fn repacks(&self) -> bool {
        false
    }
}

/// Memory with the failures of its callbacks: the `user_data` of the C interface. Any thread may drop a model, hence the
/// lock; nobody ever waits for it.
pub(crate) struct MemoryState {
    memory: Mutex<Box<dyn ModelMemory>>,
    failure: FailureSlot,
    reason: Mutex<Option<String>>,
    /// C holds the address.
    _pinned: PhantomPinned,
}

impl fmt::Debug for MemoryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryState")
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl MemoryState {
    pub(crate) fn new(memory: impl ModelMemory + 'static) -> Pin<Box<Self>> {
        Box::pin(MemoryState {
            memory: Mutex::new(Box::new(memory)),
            failure: FailureSlot::new(),
            reason: Mutex::new(None),
            _pinned: PhantomPinned,
        })
    }

    /// The C interface; its functions expect [`user_data`](MemoryState::user_data).
    pub(crate) fn interface(&self) -> sys::llama_model_mapping_i {
        sys::llama_model_mapping_i {
            map: Some(on_map),
            load: Some(on_load),
            unmap: Some(on_unmap),
            lazy: Some(on_lazy),
            repack: lock(&self.memory).repacks(),
        }
    }

    /// What C passes back to the callbacks. Valid while `self` lives.
    pub(crate) fn user_data(self: &Pin<Box<Self>>) -> *mut c_void {
        std::ptr::from_ref::<Self>(self).cast_mut().cast()
    }

    /// The first panic, as an error.
    pub(crate) fn take_error(&self) -> Option<Error> {
        Some(self.failure.take()?.into_error(None))
    }

    /// Why a callback refused.
    pub(crate) fn take_reason(&self) -> Option<String> {
        lock(&self.reason).take()
    }

    /// Runs `body` on the memory; keeps a panic under the name `callback`, and the first reason for an error.
    fn call<T>(
        &self,
        callback: &'static str,
        body: impl FnOnce(&mut dyn ModelMemory) -> Result<T, String>,
    ) -> Option<T> {
        let result = self
            .failure
            .catch(callback, || body(lock(&self.memory).as_mut()))?;
        result
            .map_err(|reason| {
                lock(&self.reason).get_or_insert(reason);
            })
            .ok()
    }
}

/// A panic under the lock is reported by itself; the value is as good as before.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// # Safety
///
/// `user_data` is NULL or a [`MemoryState`] that stays for 'a.
unsafe fn state_of<'a>(user_data: *mut c_void) -> Option<&'a MemoryState> {
    // SAFETY: as the caller promises.
    unsafe { user_data.cast::<MemoryState>().as_ref() }
}

unsafe extern "C" fn on_map(idx: i32, size: usize, user_data: *mut c_void) -> *mut c_void {
    // SAFETY: registered together with its state, which is kept until after the C model is freed.
    let state = unsafe { state_of(user_data) };
    let address = state
        .zip(usize::try_from(idx).ok())
        .and_then(|(state, file)| state.call("ModelMemory::map", |memory| memory.map(file, size)));
    address.map_or(std::ptr::null_mut(), |address| address.as_ptr().cast())
}

unsafe extern "C" fn on_load(idx: i32, offs: usize, size: usize, user_data: *mut c_void) -> bool {
    // SAFETY: as in `on_map`.
    let state = unsafe { state_of(user_data) };
    let loaded = state
        .zip(usize::try_from(idx).ok())
        .and_then(|(state, file)| {
            let range = offs..offs.checked_add(size)?;
            state.call("ModelMemory::load", |memory| memory.load(file, range))
        });
    loaded.is_some()
}

unsafe extern "C" fn on_unmap(idx: i32, _: *mut c_void, _: usize, user_data: *mut c_void) {
    // SAFETY: as in `on_map`.
    let state = unsafe { state_of(user_data) };
    if let Some((state, file)) = state.zip(usize::try_from(idx).ok()) {
        state.call("ModelMemory::unmap", |memory| {
            memory.unmap(file);
            Ok(())
        });
    }
}

unsafe extern "C" fn on_lazy(idx: i32, offs: usize, size: usize, user_data: *mut c_void) -> bool {
    // SAFETY: as in `on_map`.
    let state = unsafe { state_of(user_data) };
    let is_lazy = state
        .zip(usize::try_from(idx).ok())
        .and_then(|(state, file)| {
            let range = offs..offs.checked_add(size)?;
            state.call("ModelMemory::is_lazy", |memory| {
                Ok(memory.is_lazy(file, range))
            })
        });
    // After a panic the load fails when it maps the file, whose callback gives nothing then.
    is_lazy.unwrap_or(false)
}
