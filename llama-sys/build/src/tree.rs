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

    // What can be wrong is found before the destination, which others may have built, is touched.
    let mut warnings = Vec::new();
    if let Some(series) = &series {
        match patch::check(series, &overlay) {
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
        source::check_marker(&source, &overlay)?;
    }

    let report = sync::tree(&source, &overlay, &upstream::UNUSED_FOLDERS, destination)?;
    if let Some(series) = series.as_ref().filter(|_| config.source.is_none()) {
        patch::verify(destination, series, &overlay)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_files::{make_tree, read, write};

    const HEADER: &str = "include/llama.h";

    /// A source of the user and a series of one patch, which declares `marker`.
    fn case(marker: &str) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        make_tree(&source, 28);
        write(&source.join(HEADER), "// upstream\n");
        write(&source.join("ggml/src/ggml-cuda/kernel.cu"), "");
        let diff = format!(
            "diff --git a/{HEADER} b/{HEADER}\n--- a/{HEADER}\n+++ b/{HEADER}\n@@ -1 +1,2 @@\n // upstream\n+int {marker}(void);\n"
        );
        write(&dir.path().join("patches/series"), "0001-marker.patch\n");
        write(&dir.path().join("patches/0001-marker.patch"), &diff);
        let mut config = Config::for_host(dir.path()).unwrap();
        config.patches = dir.path().join("patches");
        config.source = Some(source);
        config.assume_patched = false;
        (dir, config)
    }

    #[test]
    fn a_tree_is_copied_and_patched() {
        let (dir, config) = case(upstream::ABI_MARKER);
        let tree = dir.path().join("tree");
        let prepared = prepare(&config, Patching::Patched, &tree).unwrap();
        assert_eq!(
            read(&tree.join(HEADER)),
            "// upstream\nint llama_lazy_abi_v3(void);\n"
        );
        assert!(!tree.join("ggml/src/ggml-cuda").exists());
        assert_eq!(prepared.patch_set_digest.len(), 64);
        assert_eq!(prepared.report.created, upstream::MARKER_FILES.len());

        let again = prepare(&config, Patching::Patched, &tree).unwrap();
        assert_eq!(again.report.kept, upstream::MARKER_FILES.len());
        assert_eq!(
            (
                again.report.created,
                again.report.changed,
                again.report.removed
            ),
            (0, 0, 0)
        );
    }

    #[test]
    fn sums_that_do_not_fit_are_a_warning_for_a_tree_of_the_user() {
        let (dir, config) = case(upstream::ABI_MARKER);
        let prepared = prepare(&config, Patching::Patched, &dir.path().join("tree")).unwrap();
        assert_eq!(prepared.warnings.len(), 2, "{:?}", prepared.warnings);
        assert!(
            prepared.warnings[1]
                .contains("include/llama.h: is changed by the series but has no sum")
        );
    }

    #[test]
    fn a_series_without_the_marker_leaves_the_destination_alone() {
        let (dir, config) = case("something_else");
        let tree = dir.path().join("tree");
        let message = prepare(&config, Patching::Patched, &tree)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("include/llama.h still does not declare llama_lazy_abi_v3"),
            "{message}"
        );
        assert!(!tree.exists());
    }

    #[test]
    fn an_unpatched_tree_needs_no_series() {
        let (dir, mut config) = case(upstream::ABI_MARKER);
        config.patches = dir.path().join("no such folder");
        let tree = dir.path().join("tree");
        let prepared = prepare(&config, Patching::Unpatched, &tree).unwrap();
        assert_eq!(prepared.patch_set_digest, "none");
        assert_eq!(read(&tree.join(HEADER)), "// upstream\n");
    }

    #[test]
    fn a_tree_that_is_said_to_be_patched_must_be() {
        let (dir, mut config) = case(upstream::ABI_MARKER);
        config.assume_patched = true;
        let tree = dir.path().join("tree");
        let message = prepare(&config, Patching::Patched, &tree)
            .unwrap_err()
            .to_string();
        assert!(message.contains("no patch series is applied"), "{message}");

        let source = config.source.clone().unwrap();
        write(&source.join(HEADER), "int llama_lazy_abi_v3(void);\n");
        let prepared = prepare(&config, Patching::Patched, &tree).unwrap();
        assert_eq!(prepared.patch_set_digest, "assumed");
    }
}
