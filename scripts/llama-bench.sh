#!/usr/bin/env bash
# Builds one of llama.cpp's own tools, and runs it with the given arguments; with --path it prints only where the program is.
# Progress of the build goes to standard error.
#
#   scripts/llama-bench.sh [--tool NAME] [--unpatched] [--path | ARGUMENTS]
#
# --tool NAME    which tool: llama-bench (default), llama-batched-bench, ...
# --unpatched    without the patch series
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tool=llama-bench patching=--patched
while :; do
    case ${1:-} in
        --tool) tool=$2 && shift 2 ;;
        --unpatched) patching=$1 && shift ;;
        *) break ;;
    esac
done

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
# The folder in which llama-sys builds: the libraries are compiled once.
out=${LLAMA_SYS_BUILD_DIR:-$(cd "$target" && pwd)/llama.cpp}
program=$(cargo run --quiet --locked -p llama-build -- tools "$patching" --out "$out" --tool "$tool")
if [[ ${1:-} == --path ]]; then
    echo "$program"
else
    exec "$program" "$@"
fi
