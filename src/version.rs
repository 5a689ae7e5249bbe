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
            enabled(&build.cpu_features),
        )
    })
}

/// The names of the features that are on, out of ggml's `CPU : AVX2 = 1 | FMA = 1 | ...`.
fn enabled(features: &str) -> String {
    let list = features.rsplit(" : ").next().unwrap_or_default();
    let names = list
        .split('|')
        .filter_map(|feature| feature.trim().strip_suffix("= 1"));
    names.map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_are_off_are_not_named() {
        assert_eq!(
            enabled("CPU : SSE3 = 1 | AVX2 = 1 | NEON = 0 | "),
            "SSE3 AVX2"
        );
        assert_eq!(enabled(""), "");
    }
}
