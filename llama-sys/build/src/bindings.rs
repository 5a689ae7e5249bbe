//! Rust declarations for the C headers.

use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::digest::sha256_hex;
use crate::error::{Error, Result, io_error};
use crate::sync;

/// Part of the key of stored bindings: raise it when the options below change.
const OPTIONS_VERSION: u32 = 1;

/// Where the public headers of a tree are.
pub fn include_folders(tree: &Path) -> [PathBuf; 2] {
    [tree.join("include"), tree.join("ggml/include")]
}

/// Writes the bindings of `wrapper`, a header that includes what is to be bound, to `output`.
///
/// `cache` is a folder for the last result: bindings are generated again only when a header has changed.
/// `headers` are further headers that `wrapper` includes from outside the tree.
///
/// # Errors
///
/// libclang is missing, or it refuses a header.
pub fn generate(
    tree: &Path,
    wrapper: &Path,
    headers: &[&Path],
    cache: &Path,
    output: &Path,
) -> Result<()> {
    let key = key(tree, wrapper, headers)?;
    let (stored, stored_key) = (cache.join("bindings.rs"), cache.join("bindings.key"));
    if !fs::read_to_string(&stored_key).is_ok_and(|old| old == key) {
        let text = bind(tree, wrapper)?;
        // The key is written last: it vouches for the text.
        fs::remove_file(&stored_key).ok();
        fs::write(&stored, text).map_err(io_error("write", &stored))?;
        fs::write(&stored_key, key).map_err(io_error("write", &stored_key))?;
    }
    fs::copy(&stored, output).map_err(io_error("write", output))?;
    Ok(())
}

fn key(tree: &Path, wrapper: &Path, headers: &[&Path]) -> Result<String> {
    let mut text = format!(
        "{OPTIONS_VERSION}\n{}\n",
        env::var("TARGET").unwrap_or_default()
    );
    let mut add = |path: &Path| -> Result<()> {
        let content = fs::read(path).map_err(io_error("read", path))?;
        text.push_str(&sha256_hex(&content));
        Ok(())
    };
    add(wrapper)?;
    for header in headers {
        add(header)?;
    }
    for folder in include_folders(tree) {
        for name in sync::list(&folder, &[])? {
            add(&folder.join(name))?;
        }
    }
    Ok(sha256_hex(text.as_bytes()))
}

fn bind(tree: &Path, wrapper: &Path) -> Result<String> {
    // bindgen panics without libclang, so it is loaded here first.
    clang_sys::load().map_err(|reason| Error::MissingTool {
        what: format!("libclang cannot be loaded; bindgen reads the C headers with it: {reason}"),
        package: "libclang-dev",
    })?;
    let mut builder = bindgen::builder().header(wrapper.display().to_string());
    for folder in include_folders(tree) {
        builder = builder.clang_arg(format!("-I{}", folder.display()));
    }
    for prefix in ["llama", "ggml", "gguf", "faultline"] {
        builder = builder.allowlist_item(format!("{prefix}_.*"));
        builder = builder.allowlist_item(format!("{}_.*", prefix.to_uppercase()));
    }
    builder
        .default_enum_style(bindgen::EnumVariation::Consts)
        .opaque_type("_IO_FILE")
        .layout_tests(false)
        .size_t_is_usize(true)
        .use_core()
        .merge_extern_blocks(true)
        .prepend_enum_name(false)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .generate()
        .map(|bindings| bindings.to_string())
        .map_err(|error| refused(error.to_string()))
}

/// The compiler's own headers come in another package than libclang's.
fn refused(message: String) -> Error {
    if ["stddef.h", "stdbool.h", "stdint.h"]
        .iter()
        .any(|header| message.contains(&format!("'{header}' file not found")))
    {
        return Error::MissingTool {
            what: format!("libclang has no headers of its own: {message}"),
            package: "libclang-dev",
        };
    }
    Error::Bindings(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_headers_name_the_package() {
        let message =
            refused("ggml.h:3:10: fatal error: 'stddef.h' file not found".to_owned()).to_string();
        assert!(
            message.contains("scripts/setup.sh")
                && message.contains("apt-get install libclang-dev"),
            "{message}"
        );
        let message = refused("llama.h:9:1: error: unknown type name".to_owned()).to_string();
        assert!(!message.contains("setup.sh"), "{message}");
    }
}
