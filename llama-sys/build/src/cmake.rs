//! Configuring and building a tree with cmake.
//!
//! One build folder serves the libraries and the tools: the tree is always configured with its tools, and only the
//! targets that are asked for are built, so that a tool never compiles the libraries a second time. The C++ is built in
//! Release mode whatever the Cargo profile.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::command::Command;
use crate::config::Config;
use crate::digest::sha256_hex;
use crate::error::{Error, Result, io_error};
use crate::{sync, upstream};

/// The static libraries in link order: name and the folder below the build folder.
const LIBRARIES: [(&str, &str); 4] = [
    ("llama", "src"),
    ("ggml", "ggml/src"),
    ("ggml-cpu", "ggml/src"),
    ("ggml-base", "ggml/src"),
];

/// Holds the options with which the build folder was configured.
const CONFIGURED_FILE: &str = "llama-build.configured";

/// What a program that uses llama.cpp links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Libraries {
    /// The static libraries in link order.
    pub static_libraries: Vec<PathBuf>,
    /// Names of shared libraries of the system, without the C++ standard library.
    pub system_libraries: Vec<String>,
}

/// Configures `tree` in `build` unless that has happened with the same options. Returns whether it had to.
///
/// # Errors
///
/// cmake is missing or refuses: the error holds the end of its output.
pub fn configure(config: &Config, tree: &Path, build: &Path) -> Result<bool> {
    if config.host != config.target {
        return Err(Error::BadCombination(format!(
            "compiling on {} for {}: cross compilation of llama.cpp is not supported",
            config.host, config.target
        )));
    }
    let arguments = arguments(config, tree, build);
    let configured = build.join(CONFIGURED_FILE);
    let fingerprint = fingerprint(&arguments, tree)?;
    if fs::read_to_string(&configured).is_ok_and(|old| old == fingerprint) {
        return Ok(false);
    }
    // cmake keeps compilers and options of the first configuration: other options need an empty folder.
    let options = fingerprint.lines().next().unwrap_or_default();
    if !fs::read_to_string(&configured).is_ok_and(|old| old.lines().next() == Some(options)) {
        sync::remove_dir(build)?;
    }
    fs::create_dir_all(build).map_err(io_error("create", build))?;
    // Absent while cmake runs, so that a failed configuration is repeated. The first line stays known.
    fs::write(&configured, format!("{options}\n")).map_err(io_error("write", &configured))?;

    // Keeps git from taking an outer repository for upstream's and stamping its commit into the libraries.
    let ceiling = tree.parent().unwrap_or(tree);
    let ceiling = ceiling
        .canonicalize()
        .map_err(io_error("resolve", ceiling))?;
    Command::new("cmake")
        .args(&arguments)
        .env("GIT_CEILING_DIRECTORIES", ceiling)
        .env_remove("GIT_DIR")
        .capture()
        .map_err(cmake_missing)?;
    fs::write(&configured, fingerprint).map_err(io_error("write", &configured))?;
    Ok(true)
}

/// Builds `targets` in the configured folder `build`.
///
/// # Errors
///
/// A compiler fails: the error holds the end of the output.
pub fn build(config: &Config, build: &Path, targets: &[&str]) -> Result<()> {
    Command::new("cmake")
        .arg("--build")
        .arg(build)
        .args(["--parallel", &config.jobs.to_string(), "--target"])
        .args(targets)
        .run(config.verbose)
        .map_err(cmake_missing)
}

/// Configures `tree`, builds the libraries and says how to link them.
///
/// # Errors
///
/// As [`configure`] and [`build`]; a library is missing afterwards.
pub fn libraries(config: &Config, tree: &Path, build_dir: &Path) -> Result<Libraries> {
    configure(config, tree, build_dir)?;
    build(config, build_dir, &["llama"])?;
    let mut static_libraries = Vec::new();
    for (name, folder) in LIBRARIES {
        static_libraries.push(existing(
            build_dir.join(folder).join(format!("lib{name}.a")),
        )?);
    }
    let cache = build_dir.join("CMakeCache.txt");
    let cache = fs::read_to_string(&cache).map_err(io_error("read", &cache))?;
    let mut system_libraries = openmp_libraries(&cache);
    system_libraries.extend(["m", "dl", "pthread"].map(str::to_owned));
    Ok(Libraries {
        static_libraries,
        system_libraries,
    })
}

/// Configures `tree`, builds upstream's tools and returns their paths in the order of `names`.
///
/// # Errors
///
/// As [`configure`] and [`build`]; a tool is missing afterwards.
pub fn tools(
    config: &Config,
    tree: &Path,
    build_dir: &Path,
    names: &[&str],
) -> Result<Vec<PathBuf>> {
    configure(config, tree, build_dir)?;
    build(config, build_dir, names)?;
    names
        .iter()
        .map(|name| existing(build_dir.join("bin").join(name)))
        .collect()
}

fn existing(path: PathBuf) -> Result<PathBuf> {
    if path.is_file() {
        Ok(path)
    } else {
        Err(Error::MissingOutput(path))
    }
}

fn arguments(config: &Config, tree: &Path, build: &Path) -> Vec<String> {
    let on = |condition: bool| if condition { "ON" } else { "OFF" };
    let (number, commit) = match config.source {
        None => (upstream::BUILD_NUMBER, upstream::COMMIT),
        Some(_) => (0, "custom"),
    };
    let mut arguments = vec![
        "-S".to_owned(),
        tree.display().to_string(),
        "-B".to_owned(),
        build.display().to_string(),
        "-G".to_owned(),
        generator().to_owned(),
        "-DCMAKE_BUILD_TYPE=Release".to_owned(),
        // The libraries are linked into position-independent executables.
        "-DCMAKE_POSITION_INDEPENDENT_CODE=ON".to_owned(),
        "-DBUILD_SHARED_LIBS=OFF".to_owned(),
        format!("-DLLAMA_BUILD_NUMBER={number}"),
        format!("-DLLAMA_BUILD_COMMIT={commit}"),
        format!("-DGGML_NATIVE={}", on(config.native)),
    ];
    // Thousands of lines about upstream's code would hide the one that explains a failure.
    arguments.push("-DLLAMA_ALL_WARNINGS=OFF".to_owned());
    // Folders that the registry package does not ship, and what would need the network or a system library.
    for name in [
        "BUILD_APP",
        "BUILD_SERVER",
        "BUILD_TESTS",
        "BUILD_EXAMPLES",
        "BUILD_UI",
        "OPENSSL",
    ] {
        arguments.push(format!("-DLLAMA_{name}=OFF"));
    }
    arguments.extend(["-DLLAMA_BUILD_COMMON=ON", "-DLLAMA_BUILD_TOOLS=ON"].map(str::to_owned));
    if !config.native && config.target.starts_with("x86_64") {
        for name in ["SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C"] {
            arguments.push(format!("-DGGML_{name}=ON"));
        }
    }
    arguments
}

/// First line: options and compilers. Second line: the files of the tree, since cmake looks for sources only when it
/// configures.
fn fingerprint(arguments: &[String], tree: &Path) -> Result<String> {
    let mut options = arguments.join("\n");
    for name in ["CC", "CXX", "CFLAGS", "CXXFLAGS"] {
        options.push_str(&format!(
            "\n{name}={}",
            env::var_os(name).unwrap_or_default().display()
        ));
    }
    let files = sync::list(tree, &[])?.join("\n");
    Ok(format!(
        "{}\n{}\n",
        sha256_hex(options.as_bytes()),
        sha256_hex(files.as_bytes())
    ))
}

fn generator() -> &'static str {
    if Command::new("ninja").arg("--version").capture().is_ok() {
        "Ninja"
    } else {
        "Unix Makefiles"
    }
}

/// What OpenMP needs, when cmake found it: `gomp` for GCC, `omp` for Clang.
fn openmp_libraries(cache: &str) -> Vec<String> {
    let entry = |name: &str| {
        let line = cache
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_once('=').map(|(_, value)| value)
    };
    if entry("GGML_OPENMP_ENABLED") != Some("ON") {
        return Vec::new();
    }
    let names = entry("OpenMP_CXX_LIB_NAMES").unwrap_or_default();
    names
        .split(';')
        .filter(|name| !name.is_empty() && *name != "pthread")
        .map(str::to_owned)
        .collect()
}

fn cmake_missing(error: Error) -> Error {
    match error {
        Error::Command { start: Some(_), .. } => Error::MissingTool {
            what: "cmake cannot be started; it builds llama.cpp".to_owned(),
            package: "cmake ninja-build g++",
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmp_is_linked_when_cmake_found_it() {
        let cache = "GGML_OPENMP_ENABLED:INTERNAL=ON\nOpenMP_CXX_LIB_NAMES:STRING=gomp;pthread\n";
        assert_eq!(openmp_libraries(cache), ["gomp"]);
        assert!(
            openmp_libraries(
                "GGML_OPENMP_ENABLED:INTERNAL=OFF\nOpenMP_CXX_LIB_NAMES:STRING=gomp\n"
            )
            .is_empty()
        );
        assert!(openmp_libraries("").is_empty());
    }
}
