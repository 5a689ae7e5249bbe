//! Programs built against a tree: upstream's tools, and C++ programs of ours for comparisons.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cmake;
use crate::command::Command;
use crate::config::{Config, Patching};
use crate::error::{Error, Result, io_error};
use crate::tree::prepare;
use crate::workdir::Workdir;

/// Builds upstream's tools `names` under `out` and returns their paths in that order.
///
/// `out` may be the folder of `LLAMA_SYS_BUILD_DIR`: the libraries are then shared with the build of `llama-sys`.
///
/// # Errors
///
/// Any stage fails.
pub fn tools(
    config: &Config,
    patching: Patching,
    out: &Path,
    names: &[&str],
) -> Result<Vec<PathBuf>> {
    let workdir = Workdir::open(out, &config.flavor(patching))?;
    let tree = prepare(config, patching, &workdir.tree())?;
    cmake::tools(config, &tree.path, &workdir.build(), names)
}

/// Compiles the C++ program `source` against the libraries of the tree under `out` and returns the path of the program,
/// which is called `name`. It can include public and internal headers of llama.cpp.
///
/// # Errors
///
/// Any stage fails; `name` is not a plain file name.
pub fn reference(
    config: &Config,
    patching: Patching,
    out: &Path,
    source: &Path,
    name: &str,
) -> Result<PathBuf> {
    if name.is_empty()
        || !name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    {
        return Err(Error::BadCombination(format!(
            "program name {name:?}: expected letters, digits, - and _"
        )));
    }
    let workdir = Workdir::open(out, &config.flavor(patching))?;
    let tree = prepare(config, patching, &workdir.tree())?;
    let libraries = cmake::libraries(config, &tree.path, &workdir.build())?;

    let folder = workdir.root().join("reference");
    fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
    let program = folder.join(name);
    let fresh = folder.join(format!("{name}.new"));
    let mut compiler = Command::new(compiler(config)?).args(["-std=c++17", "-O2", "-DNDEBUG"]);
    for include in ["include", "ggml/include", "src"] {
        compiler = compiler.arg("-I").arg(tree.path.join(include));
    }
    compiler = compiler
        .arg(source)
        .arg("-o")
        .arg(&fresh)
        .args(&libraries.static_libraries);
    for library in &libraries.system_libraries {
        compiler = compiler.arg(format!("-l{library}"));
    }
    compiler.run(config.verbose)?;
    fs::rename(&fresh, &program).map_err(io_error("rename", &fresh))?;
    Ok(program)
}

/// The C++ compiler: `CXX`, else the system's.
fn compiler(config: &Config) -> Result<PathBuf> {
    let tool = cc::Build::new()
        .cpp(true)
        .cargo_metadata(false)
        .target(&config.target)
        .host(&config.host)
        .opt_level(2)
        .debug(false)
        .out_dir(std::env::temp_dir())
        .try_get_compiler()
        .map_err(|error| Error::MissingTool {
            what: format!("no C++ compiler: {error}"),
            package: "g++",
        })?;
    Ok(tool.path().to_owned())
}
