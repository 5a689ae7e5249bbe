//! From the upstream source to a tree that can be built.

use std::path::{Path, PathBuf};

use crate::config::{Config, Patching};
use crate::error::{Error, Result};
use crate::patch::{self, Overlay, Series};
use crate::{source, sync, upstream};

/// A tree that is ready for cmake.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The folder of the tree.
    pub path: PathBuf,
    /// SHA-256 over the series, `none` without patches, `assumed` for a tree that was said to be patched.
    pub patch_set_digest: String,
    /// What had to be copied.
    pub report: sync::Report,
    /// What the user should know, one line each.
    pub warnings: Vec<String>,
}

/// Locates the source, applies the series (unless the unpatched tree is wanted), makes `destination` equal to the result
/// and verifies it.
///
/// Nobody else may use `destination` meanwhile.
///
/// # Errors
///
/// The source is not found, the series does not apply, the result is not what `SHA256SUMS` says, or it lacks the ABI marker.
pub fn prepare(config: &Config, patching: Patching, destination: &Path) -> Result<Prepared> {
    let source = source::locate(config)?;
    let series = match patching {
        Patching::Patched if !config.assume_patched => Some(Series::load(&config.patches)?),
        _ => None,
    };
    let overlay = match &series {
        Some(series) => patch::apply(&source, series)?,
        None => Overlay::empty(),
    };
    let report = sync::tree(&source, &overlay, &upstream::UNUSED_FOLDERS, destination)?;

    let mut warnings = Vec::new();
    if let Some(series) = &series {
        match patch::verify(destination, series, &overlay) {
            // The sums describe the pinned tree; another tree may differ around the hunks.
            Err(Error::Verify { differences, .. }) if config.source.is_some() => {
                warnings.push(
                    "LLAMA_SYS_SOURCE is not the pinned tree: patched files differ from SHA256SUMS"
                        .to_owned(),
                );
                warnings.extend(differences);
            }
            other => other?,
        }
    }
    if patching == Patching::Patched {
        source::check_marker(destination)?;
    }
    let patch_set_digest = match (&series, patching) {
        (Some(series), _) => series.digest(),
        (None, Patching::Patched) => "assumed".to_owned(),
        (None, Patching::Unpatched) => "none".to_owned(),
    };
    Ok(Prepared {
        path: destination.to_owned(),
        patch_set_digest,
        report,
        warnings,
    })
}
