//! Stock llama.cpp: the same pinned source without patches, in a program that speaks the worker's protocol.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::runner;
use crate::spec::{LoadMode, Routing, WorkerSpec};
use crate::worker;

/// Names a program that was built before.
const PROGRAM: &str = "FAULTLINE_STOCK_WORKER";
/// The libraries take two minutes on two cores.
const BUILD_PATIENCE: Duration = Duration::from_secs(3600);

/// Builds the program, or finds out that it is up to date, and returns its path.
pub(crate) fn build() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os(PROGRAM).filter(|path| !path.is_empty()) {
        return Ok(program.into());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let script = root.join("scripts/native.sh");
    if !script.is_file() {
        bail!(
            "--baseline stock builds an unpatched llama.cpp with {}, which is not there; {PROGRAM} can name a program that \
             was built before",
            script.display()
        );
    }
    let mut command = Command::new(&script);
    command
        .arg("--unpatched")
        .arg("bench/stock/stock_worker.cpp")
        .current_dir(&root)
        .stdin(std::process::Stdio::null());
    let built = runner::capture(command, BUILD_PATIENCE)
        .with_context(|| format!("{}: cannot be run", script.display()))?;
    if !built.status.success() {
        bail!(
            "stock llama.cpp cannot be built: {}",
            runner::last_words(&built.stderr)
        );
    }
    match built.stdout.lines().last() {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => bail!("{} printed no path", script.display()),
    }
}

/// The program with everything it needs to do what our worker does for `spec`.
pub(crate) fn command(program: &Path, spec: &WorkerSpec, load_mode: LoadMode) -> Command {
    let mut command = Command::new(program);
    let mut set = |key: &str, value: OsString| {
        let mut argument = OsString::from(key);
        argument.push("=");
        argument.push(value);
        command.arg(argument);
    };
    set("model", spec.model.clone().into());
    set("load_mode", load_mode.as_str().into());
    set("flash_attn", spec.flash_attn.as_str().into());
    set("prompt", worker::PROMPT.into());
    set("build", llama_rs::Backend::build_info().llama_build.into());
    let numbers = [
        ("repack", u64::from(spec.repack)),
        ("n_prompt", spec.n_prompt.into()),
        ("n_prompts", spec.n_prompts.into()),
        ("n_warm_up", spec.n_warm_up.into()),
        ("n_gen", spec.n_gen.into()),
        ("n_batch", spec.n_batch.into()),
        ("n_ubatch", spec.n_ubatch.into()),
        ("n_threads", spec.n_threads.into()),
        ("decode_limit_ns", spec.decode_limit_ns.unwrap_or(0)),
    ];
    for (key, value) in numbers {
        set(key, value.to_string().into());
    }
    match &spec.routing {
        None => {}
        Some(Routing::Own) => set("routing", "own".into()),
        Some(Routing::Trace(window)) => {
            let layers: Vec<_> = window.layers.iter().map(u32::to_string).collect();
            set("routing", "trace".into());
            set("routing_file", window.file.clone().into());
            set("routing_layers", layers.join(",").into());
            set("routing_used", window.n_used.to_string().into());
        }
    }
    if let Some(procs) = &spec.cgroup_procs {
        set("cgroup_procs", procs.clone().into());
    }
    command
}
