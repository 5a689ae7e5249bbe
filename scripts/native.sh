#!/usr/bin/env bash
# Builds a C++ program of tests/cpp against llama.cpp and prints its path: scripts/native.sh --patched|--unpatched SOURCE.
# The libraries are built in the folder that llama-sys uses, once for each kind of tree.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# != 2)) || [[ $1 != --patched && $1 != --unpatched ]]; then
    sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
out=${LLAMA_SYS_BUILD_DIR:-$(cd "$target" && pwd)/llama.cpp}
exec cargo run --quiet --locked -p llama-build -- reference "$1" --out "$out" --source "$2"
