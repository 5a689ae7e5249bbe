#!/usr/bin/env bash
# Builds the patched llama-bench, and runs it with the given arguments; with --path it prints only where the program is.
# Progress of the build goes to standard error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
# The folder in which llama-sys builds: the libraries are compiled once.
out=${LLAMA_SYS_BUILD_DIR:-$(cd "$target" && pwd)/llama.cpp}
program=$(cargo run --quiet --locked -p llama-build -- tools --patched --out "$out" --tool llama-bench)
if [[ ${1:-} == --path ]]; then
    echo "$program"
else
    exec "$program" "$@"
fi
