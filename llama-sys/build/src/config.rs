//! Everything that comes from outside, read once.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::thread;

use crate::error::{Error, Result};
use crate::{command, upstream};

/// The environment variables that change what is built. A build script must rerun when one of them does.
pub const ENV_VARS: [&str; 9] = [
    "LLAMA_SYS_SOURCE",
    "LLAMA_SYS_ASSUME_PATCHED",
    "LLAMA_SYS_PATCHES",
    "LLAMA_SYS_BUILD_DIR",
    "LLAMA_SYS_NATIVE",
    "CC",
    "CXX",
    "CFLAGS",
    "CXXFLAGS",
];

const PIN_MANIFEST: &str = "vendor/llama.cpp/Cargo.toml";

const PATCH_FOLDER: &str = "patches";

/// Whether the series is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Patching {
    /// The tree with the series applied.
    Patched,
    /// The tree as upstream ships it, for comparisons.
    Unpatched,
}

impl Patching {
    /// `patched` or `unpatched`.
    pub fn as_str(self) -> &'static str {
        match self {
            Patching::Patched => "patched",
            Patching::Unpatched => "unpatched",
        }
    }
}

/// Settings of a build.
#[derive(Clone, Debug)]
pub struct Config {
    /// The root folder of the repository: it holds `vendor/llama.cpp` and `patches`.
    pub root: PathBuf,
    /// The folder of the series: `LLAMA_SYS_PATCHES`, else `patches` under the root.
    pub patches: PathBuf,
    /// `LLAMA_SYS_SOURCE`: a tree to use instead of the pinned one.
    pub source: Option<PathBuf>,
    /// `LLAMA_SYS_ASSUME_PATCHED=1`: the tree of `source` already carries the series.
    pub assume_patched: bool,
    /// `LLAMA_SYS_NATIVE`: `on` (default) compiles for this machine's CPU, `off` for every CPU with AVX2, BMI2, FMA and
    /// F16C (x86-64-v3; on other architectures the compiler's baseline).
    pub native: bool,
    /// `LLAMA_SYS_BUILD_DIR`: the folder under which the C++ is built, shared by all Cargo profiles.
    pub build_dir: Option<PathBuf>,
    /// The triple of the machine that compiles.
    pub host: String,
    /// The triple of the machine that runs the result.
    pub target: String,
    /// How many compilers may run at once.
    pub jobs: usize,
    /// The Cargo to ask for the source.
    pub cargo: PathBuf,
    /// `CARGO_NET_OFFLINE`: never ask the network.
    pub offline: bool,
    /// Show the compilers' output on standard error as it comes.
    pub verbose: bool,
}

impl Config {
    /// The settings of a build script: reads `CARGO_*`, `HOST`, `TARGET`, `NUM_JOBS` and the `LLAMA_SYS_*` variables.
    ///
    /// `root` is the repository's root folder.
    ///
    /// # Errors
    ///
    /// A variable that Cargo sets is missing, or one of ours has an impossible value.
    pub fn from_env(root: &Path) -> Result<Config> {
        let env = Env::of_process();
        let host = env.required("HOST")?;
        let target = env.required("TARGET")?;
        Config::build(root, host, target, &env)
    }

    /// The settings outside a build script: host and target are those of the installed Cargo.
    ///
    /// # Errors
    ///
    /// Cargo cannot be started, or a `LLAMA_SYS_*` variable has an impossible value.
    pub fn for_host(root: &Path) -> Result<Config> {
        let env = Env::of_process();
        let cargo = env.path("CARGO").unwrap_or_else(|| PathBuf::from("cargo"));
        let version = command::Command::new(&cargo).arg("-vV").capture()?;
        let host = version
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .ok_or_else(|| Error::BadCombination(format!("{} -vV names no host", cargo.display())))?
            .to_owned();
        Config::build(root, host.clone(), host, &env)
    }

    fn build(root: &Path, host: String, target: String, env: &Env) -> Result<Config> {
        let config = Config {
            root: root.to_owned(),
            patches: env
                .path("LLAMA_SYS_PATCHES")
                .unwrap_or_else(|| root.join(PATCH_FOLDER)),
            source: env.path("LLAMA_SYS_SOURCE"),
            assume_patched: env.switch("LLAMA_SYS_ASSUME_PATCHED", false)?,
            native: env.switch("LLAMA_SYS_NATIVE", true)?,
            build_dir: env.path("LLAMA_SYS_BUILD_DIR"),
            host,
            target,
            jobs: env.jobs()?,
            cargo: env.path("CARGO").unwrap_or_else(|| PathBuf::from("cargo")),
            offline: env.switch("CARGO_NET_OFFLINE", false)?,
            verbose: false,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        if self.assume_patched && self.source.is_none() {
            return Err(Error::BadCombination(
                "LLAMA_SYS_ASSUME_PATCHED=1 without LLAMA_SYS_SOURCE: the pinned source is never patched already"
                    .to_owned(),
            ));
        }
        for (name, path) in [
            ("LLAMA_SYS_SOURCE", &self.source),
            ("LLAMA_SYS_BUILD_DIR", &self.build_dir),
            ("LLAMA_SYS_PATCHES", &Some(self.patches.clone())),
        ] {
            // A build script runs in its package's folder, not where the user typed the command.
            if let Some(path) = path
                && !path.is_absolute()
            {
                return Err(Error::BadEnv {
                    name,
                    value: path.display().to_string(),
                    expected: "an absolute path",
                });
            }
        }
        Ok(())
    }

    /// The command that downloads the package with the pinned source.
    pub fn fetch_command(&self) -> String {
        format!(
            "cargo fetch --locked --target {} --manifest-path {}",
            self.host,
            self.pin_manifest().display()
        )
    }

    /// The manifest that pins the source.
    pub fn pin_manifest(&self) -> PathBuf {
        self.root.join(PIN_MANIFEST)
    }

    /// The name of the folder for builds with these options: it tells options apart, not contents.
    pub fn flavor(&self, patching: Patching) -> String {
        let cpu = if self.native { "native" } else { "portable" };
        let mut name = format!("{}-{cpu}-{}", self.target, patching.as_str());
        let own_patches = (self.patches != self.root.join(PATCH_FOLDER)).then_some(&self.patches);
        for (kind, path) in [("source", self.source.as_ref()), ("patches", own_patches)] {
            if let Some(path) = path {
                let digest = crate::digest::sha256_hex(path.as_os_str().as_encoded_bytes());
                name.push_str(&format!("-{kind}-{}", &digest[..8]));
            }
        }
        name
    }

    /// How the build calls itself: upstream's build name, or `custom` for a tree of `LLAMA_SYS_SOURCE`.
    pub fn llama_build(&self) -> String {
        match self.source {
            Some(_) => "custom".to_owned(),
            None => upstream::build_name(),
        }
    }
}

/// The root folder of the repository: the nearest folder above the current one that holds the pin of the source, else the
/// repository from which this crate was built.
///
/// # Errors
///
/// There is no such folder.
pub fn find_root() -> Result<PathBuf> {
    let here = env::current_dir().unwrap_or_default();
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut candidates = here.ancestors().chain(built_from.ancestors());
    candidates
        .find(|folder| folder.join(PIN_MANIFEST).is_file())
        .map(Path::to_owned)
        .ok_or_else(|| {
            Error::BadCombination(format!(
                "no folder above {} holds {PIN_MANIFEST}",
                here.display()
            ))
        })
}

/// The environment, as a value so that tests need not change the process's.
struct Env(BTreeMap<OsString, OsString>);

impl Env {
    fn of_process() -> Env {
        Env(env::vars_os().collect())
    }

    /// An empty value counts as not set.
    fn path(&self, name: &str) -> Option<PathBuf> {
        self.0
            .get(&OsString::from(name))
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    }

    fn text(&self, name: &'static str) -> Result<Option<String>> {
        match self.path(name) {
            None => Ok(None),
            Some(value) => match value.into_os_string().into_string() {
                Ok(text) => Ok(Some(text)),
                Err(raw) => Err(Error::BadEnv {
                    name,
                    value: raw.to_string_lossy().into_owned(),
                    expected: "text in UTF-8",
                }),
            },
        }
    }

    fn required(&self, name: &'static str) -> Result<String> {
        self.text(name)?.ok_or(Error::MissingEnv(name))
    }

    fn switch(&self, name: &'static str, default: bool) -> Result<bool> {
        let Some(value) = self.text(name)? else {
            return Ok(default);
        };
        match value.to_ascii_lowercase().as_str() {
            "1" | "on" | "true" | "yes" => Ok(true),
            "0" | "off" | "false" | "no" => Ok(false),
            _ => Err(Error::BadEnv {
                name,
                value,
                expected: "on or off",
            }),
        }
    }

    fn jobs(&self) -> Result<usize> {
        let Some(value) = self.text("NUM_JOBS")? else {
            return Ok(thread::available_parallelism().map_or(1, usize::from));
        };
        match value.parse() {
            Ok(jobs) if jobs > 0 => Ok(jobs),
            _ => Err(Error::BadEnv {
                name: "NUM_JOBS",
                value,
                expected: "a positive number",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Result<Config> {
        let env = Env(pairs
            .iter()
            .map(|(k, v)| (OsString::from(k), OsString::from(v)))
            .collect());
        Config::build(
            Path::new("/repo"),
            "host-triple".into(),
            "target-triple".into(),
            &env,
        )
    }

    #[test]
    fn defaults() {
        let config = config(&[("NUM_JOBS", "3")]).unwrap();
        assert_eq!(config.patches, Path::new("/repo/patches"));
        assert!(config.native && !config.assume_patched && !config.offline);
        assert_eq!(config.jobs, 3);
        assert_eq!(
            config.flavor(Patching::Patched),
            "target-triple-native-patched"
        );
        assert_eq!(config.llama_build(), "b12032");
    }

    #[test]
    fn options_are_part_of_the_flavor() {
        let portable = config(&[("LLAMA_SYS_NATIVE", "off")]).unwrap();
        assert_eq!(
            portable.flavor(Patching::Unpatched),
            "target-triple-portable-unpatched"
        );
        let custom = config(&[("LLAMA_SYS_SOURCE", "/some/tree")]).unwrap();
        assert!(
            custom
                .flavor(Patching::Patched)
                .starts_with("target-triple-native-patched-source-")
        );
        assert_eq!(custom.llama_build(), "custom");
        let patches = config(&[("LLAMA_SYS_PATCHES", "/other/patches")]).unwrap();
        assert!(
            patches
                .flavor(Patching::Patched)
                .starts_with("target-triple-native-patched-patches-")
        );
    }

    #[test]
    fn an_empty_variable_is_not_set() {
        assert!(
            config(&[("LLAMA_SYS_SOURCE", "")])
                .unwrap()
                .source
                .is_none()
        );
    }

    #[test]
    fn impossible_values_name_the_variable() {
        for (pairs, part) in [
            (
                &[("LLAMA_SYS_NATIVE", "maybe")][..],
                "LLAMA_SYS_NATIVE is \"maybe\", expected on or off",
            ),
            (
                &[("LLAMA_SYS_SOURCE", "tree")],
                "LLAMA_SYS_SOURCE is \"tree\", expected an absolute path",
            ),
            (
                &[("LLAMA_SYS_ASSUME_PATCHED", "1")],
                "without LLAMA_SYS_SOURCE",
            ),
            (&[("NUM_JOBS", "0")], "NUM_JOBS"),
        ] {
            let message = config(pairs).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn the_fetch_command_names_host_and_manifest() {
        assert_eq!(
            config(&[]).unwrap().fetch_command(),
            "cargo fetch --locked --target host-triple --manifest-path /repo/vendor/llama.cpp/Cargo.toml"
        );
    }
}
