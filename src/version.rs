//! `faultline --version`: what exactly this binary is.

use std::sync::OnceLock;

use llama_rs::Backend;

/// Version, commit, upstream build, ggml version, patch-set digest: one fact a line.
pub(crate) fn long() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let build = Backend::build_info();
        format!(
            "{}\ncommit     {}\nllama.cpp  {}\nggml       {}\npatch set  {}\nCPU        {}",
            env!("CARGO_PKG_VERSION"),
            env!("FAULTLINE_GIT_COMMIT"),
            build.llama_build,
            build.ggml_version,
            build.patch_set_digest,
            build.cpu_features,
        )
    })
}
