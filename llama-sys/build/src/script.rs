//! The build script of `llama-sys`, as a library.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use crate::cmake::{self, Libraries};
use crate::config::{Config, ENV_VARS, Patching};
use crate::error::{Error, Result, io_error};
use crate::tree::{Prepared, prepare};
use crate::workdir::{Workdir, base_for_out_dir};
use crate::{bindings, upstream};

/// Runs all stages for the package whose build script calls this, and tells Cargo how to link.
///
/// The package holds `shim/wrapper.h`, `shim/shim.h` and `shim/shim.cpp`; the repository's root is the folder above it.
/// Into `OUT_DIR` go `bindings.rs`, `build_info.rs` and the static libraries. Errors are printed as `cargo::error` lines.
pub fn run() -> ExitCode {
    match try_run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.to_string().lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn try_run() -> Result<()> {
    let package = cargo_path("CARGO_MANIFEST_DIR")?;
    let out = cargo_path("OUT_DIR")?;
    let root = package.parent().unwrap_or(&package).to_owned();
    for name in ENV_VARS
        .iter()
        .chain(&["DOCS_RS", "CARGO_NET_OFFLINE", "LIBCLANG_PATH"])
    {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rustc-check-cfg=cfg(without_llama_cpp)");
    if env::var_os("DOCS_RS").is_some() {
        // No network and no time for C++ there: documentation is built without the bindings.
        println!("cargo::rustc-cfg=without_llama_cpp");
        return write_build_info(&out, &upstream::build_name(), "none");
    }
    let config = Config::from_env(&root)?;
    let pin = config.pin_manifest();
    let shim = package.join("shim");
    let lock = pin.with_extension("lock");
    // Cargo's own copy of the source never changes; a tree of the user does.
    let inputs = [&config.patches, &pin, &lock, &shim]
        .into_iter()
        .chain(&config.source);
    for path in inputs {
        println!("cargo::rerun-if-changed={}", path.display());
    }

    let base = config
        .build_dir
        .clone()
        .unwrap_or_else(|| base_for_out_dir(&out));
    let workdir = Workdir::open(&base, &config.flavor(Patching::Patched))?;
    let tree = prepare(&config, Patching::Patched, &workdir.tree())?;
    for warning in &tree.warnings {
        println!("cargo::warning={warning}");
    }
    let libraries = cmake::libraries(&config, &tree.path, &workdir.build())?;
    let header = shim.join("shim.h");
    let output = out.join("bindings.rs");
    bindings::generate(
        &tree.path,
        &shim.join("wrapper.h"),
        &[&header],
        workdir.root(),
        &output,
    )?;
    compile_shim(&tree, &shim)?;
    link(&libraries, &out)?;
    write_build_info(&out, &config.llama_build(), &tree.patch_set_digest)
}

fn cargo_path(name: &'static str) -> Result<PathBuf> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or(Error::MissingEnv(name))
}

/// Compiles the shim, which may include internal headers of the tree. Its link line must come before llama.cpp's.
fn compile_shim(tree: &Prepared, shim: &Path) -> Result<()> {
    let source = shim.join("shim.cpp");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .define("NDEBUG", None)
        .file(&source);
    // As system headers: their warnings are not ours.
    for folder in ["include", "ggml/include", "src"] {
        build.flag("-isystem").flag(tree.path.join(folder));
    }
    build
        .try_compile("faultline_shim")
        .map_err(|error| Error::Shim {
            path: source,
            reason: error.to_string(),
        })
}

/// Copies the libraries into `out`, so that it stays complete when the shared folder changes, and names them to Cargo.
fn link(libraries: &Libraries, out: &Path) -> Result<()> {
    println!("cargo::rustc-link-search=native={}", out.display());
    for library in &libraries.static_libraries {
        let file = library.file_name().unwrap_or_default();
        let copy = out.join(file);
        fs::copy(library, &copy).map_err(io_error("write", &copy))?;
        let name = Path::new(file)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        println!(
            "cargo::rustc-link-lib=static={}",
            name.strip_prefix("lib").unwrap_or(&name)
        );
    }
    for name in &libraries.system_libraries {
        println!("cargo::rustc-link-lib=dylib={name}");
    }
    println!("cargo::rustc-link-lib=dylib=stdc++");
    Ok(())
}

/// Constants for the crate, and the same as metadata for build scripts of crates that depend on it.
fn write_build_info(out: &Path, llama_build: &str, patch_set_digest: &str) -> Result<()> {
    let ggml_version = upstream::GGML_VERSION;
    let text = format!(
        "/// The llama.cpp build: `b` and upstream's build number, or `custom`.\n\
         pub const LLAMA_BUILD: &str = {llama_build:?};\n\
         /// The version of ggml.\n\
         pub const GGML_VERSION: &str = {ggml_version:?};\n\
         /// SHA-256 over the patch series, `none` without patches.\n\
         pub const PATCH_SET_DIGEST: &str = {patch_set_digest:?};\n"
    );
    let path = out.join("build_info.rs");
    fs::write(&path, text).map_err(io_error("write", &path))?;
    println!("cargo::metadata=llama_build={llama_build}");
    println!("cargo::metadata=ggml_version={ggml_version}");
    println!("cargo::metadata=patch_set_digest={patch_set_digest}");
    Ok(())
}
