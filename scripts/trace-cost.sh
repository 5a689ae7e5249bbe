#!/usr/bin/env bash
# What a recording costs, and what the unset hooks cost: builds bench/native/blocks.cpp against both sources and lets them take turns.
# Usage: scripts/trace-cost.sh -m MODEL [OPTIONS of `bench trace-cost`]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
    sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}"
    (($# > 0)) || exit 2
    exit 0
fi
unpatched=$(scripts/native.sh --unpatched bench/native/blocks.cpp)
patched=$(scripts/native.sh --patched bench/native/blocks.cpp)
cargo build --quiet --release --locked -p bench
exec "${CARGO_TARGET_DIR:-target}/release/bench" trace-cost --unpatched "$unpatched" --patched "$patched" "$@"
