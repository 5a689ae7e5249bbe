//! What is refused before llama.cpp sees a file.
//!
//! `gguf` has checked the structure by then: every offset and size lies inside the file. Here the meaning is checked, as
//! far as llama.cpp would not: it checks shapes against hyperparameters by itself and reports them, but asserts on many
//! hyperparameters, and trusts the types of tensors.
//!
//! Assertions while a model is loaded and a context is made become errors anyway (see `assertions`); for those there is a
//! check here where a sentence about the file says more than the text of the assertion. What would fail in a running
//! graph, or crash, has to be here.

mod hyperparameters;
pub(crate) mod lora;
mod tensors;
mod tokenizer;

use std::ffi::CString;

use gguf::{Gguf, ModelFiles};
use llama_sys as sys;

use crate::error::{Error, Result};
use crate::params::ModelParams;

/// Why a file is refused: an object and a number, without the file's name.
type Verdict = Result<(), String>;

/// Refuses files that llama.cpp would abort on, or that no text model can be.
///
/// # Errors
///
/// [`Error::UnsupportedModel`] naming the key or tensor.
pub(crate) fn check(files: &ModelFiles, params: &ModelParams) -> Result<()> {
    let metadata = files.metadata();
    let verdict = architecture(metadata).and_then(|architecture| {
        tokenizer::check(metadata)?;
        if params.vocab_only {
            return Ok(());
        }
        hyperparameters::check(metadata, architecture)?;
        tensors::check(files)
    });
    verdict.map_err(|reason| Error::UnsupportedModel {
        path: metadata.path().to_owned(),
        reason,
    })
}

/// The architecture's name, when this build knows it.
fn architecture(metadata: &Gguf) -> Result<&str, String> {
    let name = match metadata.get("general.architecture") {
        None => {
            return Err(
                "the metadata key general.architecture is missing: this is not a model".to_owned(),
            );
        }
        Some(value) => value
            .as_str()
            .ok_or("the metadata key general.architecture is not text")?,
    };
    let known = CString::new(name).is_ok_and(|name| {
        // SAFETY: a NUL-terminated string that outlives the call.
        unsafe { sys::faultline_arch_known(name.as_ptr()) }
    });
    if !known {
        return Err(format!(
            "llama.cpp {} does not know the architecture {name:?}",
            sys::LLAMA_BUILD
        ));
    }
    if name == "clip" {
        return Err("a \"clip\" file holds an image encoder, not a text model".to_owned());
    }
    Ok(name)
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
