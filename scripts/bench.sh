#!/usr/bin/env bash
# The main measurement: what the prefetch modes change, on the generated demo model (a mixture of experts) and on a small
# real one (dense). Further arguments go to both runs of the bench binary, such as `-r 10`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${CARGO_TARGET_DIR:-target}
results=$target/bench/$(date -u +%Y-%m-%dT%H%M%SZ)
real_model=$(scripts/fetch-models.sh --path)/qwen2.5-coder-0.5b.gguf

cargo build --release --locked

bench=(cargo run --quiet --release --locked --bin bench --)
# Results may be incomplete, for example where a run could not be made cold: the rest is shown all the same.
status=0
"${bench[@]}" --prefetch=all --both --repack both --out "$results/demo" "$@" >/dev/null || status=$?
"${bench[@]}" --prefetch=all --model "$real_model" --out "$results/real" "$@" >/dev/null || status=$?

for name in demo real; do
    printf '\n== %s: %s\n\n' "$name" "$results/$name"
    cat "$results/$name/summary.md"
done
exit "$status"
