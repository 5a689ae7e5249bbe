//! Finding the upstream tree.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::command::Command;
use crate::config::Config;
use crate::error::{Error, Result, io_error};
use crate::patch::Overlay;
use crate::upstream;

/// The folder of the upstream tree: `LLAMA_SYS_SOURCE`, else the one in the package that `vendor/llama.cpp` pins.
///
/// Cargo is asked offline first and then, unless that is forbidden, with the network: on a fresh machine the package is
/// not there yet. Nothing of the package is compiled.
///
/// # Errors
///
/// The package cannot be found or downloaded, or the folder is not the expected tree.
pub fn locate(config: &Config) -> Result<PathBuf> {
    if let Some(source) = &config.source {
        check_tree(source, None)?;
        return Ok(source.clone());
    }
    let metadata = match metadata(config, true) {
        Ok(text) => text,
        Err(error) if config.offline => return Err(not_located(config, error.to_string())),
        Err(_) => {
            metadata(config, false).map_err(|error| not_located(config, error.to_string()))?
        }
    };
    let tree = tree_in_metadata(&metadata).map_err(|reason| not_located(config, reason))?;
    check_tree(&tree, Some(config.fetch_command()))?;
    Ok(tree)
}

fn not_located(config: &Config, reason: String) -> Error {
    Error::Locate {
        reason,
        fetch: config.fetch_command(),
    }
}

fn metadata(config: &Config, offline: bool) -> Result<String> {
    let mut command = Command::new(&config.cargo)
        .args([
            "metadata",
            "--locked",
            "--format-version=1",
            "--filter-platform",
        ])
        .arg(&config.host)
        .arg("--manifest-path")
        .arg(config.pin_manifest())
        .current_dir(&config.root);
    if offline {
        command = command.arg("--offline");
    }
    command.capture()
}

/// Picks the tree out of Cargo's answer: the package with the pinned name and exactly the pinned version.
fn tree_in_metadata(metadata: &str) -> Result<PathBuf, String> {
    let metadata: Value =
        serde_json::from_str(metadata).map_err(|error| format!("cargo metadata: {error}"))?;
    let packages = metadata["packages"]
        .as_array()
        .ok_or("cargo metadata lists no packages")?;
    let mut versions = Vec::new();
    for package in packages
        .iter()
        .filter(|package| package["name"] == upstream::CRATE)
    {
        let version = package["version"].as_str().unwrap_or_default();
        if version == upstream::CRATE_VERSION {
            let manifest = package["manifest_path"]
                .as_str()
                .ok_or("cargo metadata names no manifest")?;
            let folder = Path::new(manifest)
                .parent()
                .ok_or("the manifest has no folder")?;
            return Ok(folder.join(upstream::CRATE_FOLDER));
        }
        versions.push(version.to_owned());
    }
    let found = if versions.is_empty() {
        "no version".to_owned()
    } else {
        versions.join(", ")
    };
    Err(format!(
        "vendor/llama.cpp/Cargo.lock holds {found} of {}, expected {}",
        upstream::CRATE,
        upstream::CRATE_VERSION
    ))
}

/// Checks that `path` is a llama.cpp tree with the pinned ggml version.
///
/// `fetch` is the command that downloads the tree again, named in the error when the tree is Cargo's.
///
/// # Errors
///
/// [`Error::NotTheTree`] names the file that is missing or the version that differs.
pub fn check_tree(path: &Path, fetch: Option<String>) -> Result<()> {
    let wrong = |reason: String| Error::NotTheTree {
        path: path.to_owned(),
        reason,
        fetch: fetch.clone(),
    };
    if !path.is_dir() {
        return Err(wrong("is not a folder".to_owned()));
    }
    for file in upstream::MARKER_FILES {
        if !path.join(file).is_file() {
            return Err(wrong(format!("{file} is missing")));
        }
    }
    let list = "ggml/CMakeLists.txt";
    let text =
        fs::read_to_string(path.join(list)).map_err(|error| wrong(format!("{list}: {error}")))?;
    let version =
        ggml_version(&text).ok_or_else(|| wrong(format!("{list} declares no version")))?;
    if version != upstream::GGML_VERSION {
        return Err(wrong(format!(
            "its ggml is {version}, expected {}",
            upstream::GGML_VERSION
        )));
    }
    Ok(())
}

/// Reads `set(GGML_VERSION_MAJOR 0)` and its siblings.
fn ggml_version(cmake_lists: &str) -> Option<String> {
    let part = |name: &str| {
        let line = cmake_lists
            .lines()
            .find_map(|line| line.trim().strip_prefix(&format!("set({name} ")))?;
        let number = line.trim_end().strip_suffix(')')?;
        number.parse::<u32>().ok()
    };
    let (major, minor, patch) = (
        part("GGML_VERSION_MAJOR")?,
        part("GGML_VERSION_MINOR")?,
        part("GGML_VERSION_PATCH")?,
    );
    Some(format!("{major}.{minor}.{patch}"))
}

/// Checks that the headers of `tree` with `overlay` over it declare the ABI marker.
///
/// # Errors
///
/// [`Error::NotTheTree`] when they do not: such a tree is not patched, or by another series.
pub fn check_marker(tree: &Path, overlay: &Overlay) -> Result<()> {
    let header = "include/llama.h";
    let marker = upstream::ABI_MARKER;
    let declares = |text: &[u8]| {
        text.windows(marker.len())
            .any(|part| part == marker.as_bytes())
    };
    let declared = match overlay.get(header) {
        Some(text) => text.is_some_and(declares),
        None => {
            let path = tree.join(header);
            declares(&fs::read(&path).map_err(io_error("read", &path))?)
        }
    };
    if declared {
        return Ok(());
    }
    let reason = if overlay.is_empty() {
        format!("{header} does not declare {marker}: no patch series is applied")
    } else {
        format!("after the patch series, {header} still does not declare {marker}")
    };
    Err(Error::NotTheTree {
        path: tree.to_owned(),
        reason,
        fetch: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_files::{make_tree, write};

    fn config(root: &Path) -> Config {
        let mut config = Config::for_host(root).unwrap();
        config.host = "some-host".to_owned();
        config.offline = true;
        config.source = None;
        config
    }

    #[test]
    fn without_the_package_the_error_names_the_fixing_command() {
        let dir = tempfile::tempdir().unwrap();
        let message = locate(&config(dir.path())).unwrap_err().to_string();
        let fetch = format!(
            "fetch it with: cargo fetch --locked --target some-host --manifest-path {}/vendor/llama.cpp/Cargo.toml",
            dir.path().display()
        );
        assert!(message.contains(&fetch), "{message}");
        assert!(message.contains("LLAMA_SYS_SOURCE"), "{message}");
    }

    #[test]
    fn the_package_must_have_exactly_the_pinned_version() {
        let package = |name: &str, version: &str| {
            format!(
                r#"{{"packages":[{{"name":"x","version":"1.0.0","manifest_path":"/x/Cargo.toml"}},
                    {{"name":"{name}","version":"{version}","manifest_path":"/registry/pkg/Cargo.toml"}}]}}"#
            )
        };
        let found = tree_in_metadata(&package(upstream::CRATE, upstream::CRATE_VERSION)).unwrap();
        assert_eq!(
            found,
            Path::new("/registry/pkg").join(upstream::CRATE_FOLDER)
        );
        for (metadata, part) in [
            (
                package(upstream::CRATE, "0.10.9"),
                "holds 0.10.9 of llama-cpp-sys-4, expected 0.11.0",
            ),
            (
                package("other", "0.11.0"),
                "holds no version of llama-cpp-sys-4",
            ),
            ("{}".to_owned(), "lists no packages"),
            ("not json".to_owned(), "cargo metadata:"),
        ] {
            let message = tree_in_metadata(&metadata).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_tree_must_be_complete_and_of_the_pinned_version() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        let message = |fetch: Option<String>| check_tree(&tree, fetch).unwrap_err().to_string();
        assert!(message(None).contains("is not a folder"));

        make_tree(&tree, 28);
        check_tree(&tree, None).unwrap();
        fs::remove_file(tree.join("include/llama.h")).unwrap();
        assert!(message(Some("cargo fetch".to_owned())).contains(
            "include/llama.h is missing\nremove that folder and fetch it again with: cargo fetch"
        ));

        make_tree(&tree, 29);
        assert!(message(None).contains("its ggml is 0.29.0, expected 0.28.0"));
        write(&tree.join("ggml/CMakeLists.txt"), "");
        assert!(message(None).contains("declares no version"));
    }

    #[test]
    fn a_tree_of_the_user_wins() {
        let dir = tempfile::tempdir().unwrap();
        make_tree(dir.path(), 28);
        let mut config = config(dir.path());
        config.source = Some(dir.path().to_owned());
        assert_eq!(locate(&config).unwrap(), dir.path());
    }

    #[test]
    fn an_unpatched_header_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        write(
            &dir.path().join("include/llama.h"),
            "LLAMA_API void llama_free(void);\n",
        );
        let message = check_marker(dir.path(), &Overlay::empty())
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("does not declare llama_lazy_abi_v3: no patch series"),
            "{message}"
        );
        write(
            &dir.path().join("include/llama.h"),
            "LLAMA_API int32_t llama_lazy_abi_v3(void);\n",
        );
        check_marker(dir.path(), &Overlay::empty()).unwrap();
    }
}
