#!/usr/bin/env bash
# A model that does not fit, with the pager: gpt-oss-20b's shape with real routing in memory groups of 10000, 7000, 5500 and 4500 MB, against stock
# llama.cpp in memory (with and without repacking) and mapped at 7000 MB with two readaheads, in one interleaved run. Needs root, 15 GB of disk,
# memory for the whole model, a routing trace, and about 25 minutes.
# Usage: scripts/bench-pager.sh [OPTIONS of bench]
#
# An option given here stands for the one below: `-r 1`, `--decode-seconds 90`. FAULTLINE_BENCH_MODEL is another shape, such as qwen3-30b-a3b, with
# FAULTLINE_BUDGETS and FAULTLINE_BASELINE_BUDGET instead of the budgets above. The model is generated once into the cache folder (FAULTLINE_CACHE).
# The trace is FAULTLINE_ROUTING, or gpqa_main of the shared test data; shapes without a trace choose for themselves (`own`).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
fi
shape=${FAULTLINE_BENCH_MODEL:-gpt-oss-20b}
budgets=${FAULTLINE_BUDGETS:-}
baseline_budget=${FAULTLINE_BASELINE_BUDGET:-}
data=${FAULTLINE_SHARED_DATA:-../shared/data}
routing=${FAULTLINE_ROUTING:-}
case $shape in
gpt-oss-20b)
    budgets=${budgets:-10000MB,7000MB,5500MB,4500MB}
    baseline_budget=${baseline_budget:-7000MB}
    routing=${routing:-$data/routing/gpt-oss-20b.gpqa_main.routes.u8}
    ;;
*)
    budgets=${budgets:-75%,50%,40%}
    baseline_budget=${baseline_budget:-50%}
    routing=${routing:-own}
    ;;
esac
if [[ $routing != own && ! -f $routing ]]; then
    echo "bench-pager.sh: $routing: no such routing trace; FAULTLINE_ROUTING names one" >&2
    exit 2
fi

cargo build --quiet --release --locked -p bench
bench=${CARGO_TARGET_DIR:-target}/release/bench
model=$(scripts/fetch-models.sh --path)/$shape-shape.gguf
[[ -f $model ]] || "$bench" make-model --shape "$shape" -o "$model"

started=$SECONDS
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
curve=()
if [[ $routing != own ]]; then
    echo "how fast the device reads at random ..." >&2
    "$bench" device -m "$model" --sizes 512K,1M,4M,4407296 --depths 1,4,16 --seconds 0.2 -o json >"$work/device.json"
    curve=(--device-curve "$work/device.json")
fi

# The time limits bound the rows, those of references and baselines to a few tokens: in memory one token is like the other.
"$bench" -m "$model" --prefetch=pager --budget "$budgets" --routing "$routing" "${curve[@]}" \
    --reference stock:none,stock:none+repack --baseline stock:mmap --baseline-budget "$baseline_budget" --baseline-readahead 128KiB,8MiB \
    --baseline-seconds 3 --repack pager -p 1 --warm-up 64 -n 256 -r 5 --decode-seconds 30 "$@"
echo "measured in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s, the build not included" >&2
