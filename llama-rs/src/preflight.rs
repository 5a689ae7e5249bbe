//! What is refused before llama.cpp sees a file.

use std::ffi::CString;

use gguf::ModelFiles;
use llama_sys as sys;

use crate::error::{Error, Result};
use crate::params::ModelParams;

/// Refuses files whose metadata llama.cpp would abort on.
///
/// # Errors
///
/// [`Error::UnsupportedModel`] naming the key or tensor.
pub(crate) fn check(files: &ModelFiles, params: &ModelParams) -> Result<()> {
    let _ = params;
    let refuse = |reason: String| Error::UnsupportedModel {
        path: files.metadata().path().to_owned(),
        reason,
    };
    let Some(architecture) = files.metadata().architecture() else {
        return Err(refuse(
            "the metadata key general.architecture is missing".to_owned(),
        ));
    };
    let known = CString::new(architecture).is_ok_and(|name| {
        // SAFETY: a NUL-terminated string that outlives the call.
        unsafe { sys::faultline_arch_known(name.as_ptr()) }
    });
    if !known {
        return Err(refuse(format!(
            "this build of llama.cpp does not know the architecture \"{architecture}\""
        )));
    }
    Ok(())
}

/// Whether a token sees only the tokens before it.
pub(crate) fn has_causal_attention(files: &ModelFiles) -> bool {
    let metadata = files.metadata();
    let key = format!(
        "{}.attention.causal",
        metadata.architecture().unwrap_or_default()
    );
    metadata.bool(&key).unwrap_or(true)
}
