#!/usr/bin/env bash
# A model that does not fit: gpt-oss-20b's shape with real routing in memory groups of 10000, 7000 and 5500 MB, selective prefetch against
# stock llama.cpp, at two readaheads. Needs root, 15 GB of disk, a routing trace, and about 15 minutes.
# Usage: scripts/bench-big.sh [OPTIONS of bench]
#
# The model is generated once into the cache folder (FAULTLINE_CACHE). The trace is FAULTLINE_ROUTING, or gpqa_main of the shared test data.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
fi
model=$(scripts/fetch-models.sh --path)/gpt-oss-20b-shape.gguf
data=${FAULTLINE_SHARED_DATA:-../shared/data}
routing=${FAULTLINE_ROUTING:-$data/routing/gpt-oss-20b.gpqa_main.routes.u8}
if [[ ! -f $routing ]]; then
    echo "bench-big.sh: $routing: no such routing trace; FAULTLINE_ROUTING names one" >&2
    exit 2
fi

cargo build --quiet --release --locked -p bench
bench=${CARGO_TARGET_DIR:-target}/release/bench
[[ -f $model ]] || "$bench" make-model --shape gpt-oss-20b -o "$model"

started=$SECONDS
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "how fast the device reads at random ..." >&2
"$bench" device -m "$model" --sizes 512K,1M,4M,4407296 --depths 1,4,16 --seconds 0.2 -o json >"$work/device.json"
echo "one token with all weights in memory ..." >&2
"$bench" -m "$model" --prefetch=eager --baseline stock:none --routing "$routing" -p 1 -n 8 -r 2 -q -o json --out "$work/in-ram" >"$work/in-ram.json"
step_ms=$(python3 -c 'import json, sys; rows = json.load(open(sys.argv[1])); print(min(r["step_ms_median"] for r in rows if r.get("step_ms_median")))' "$work/in-ram.json")

# The time limit bounds the slow rows.
"$bench" -m "$model" --prefetch=selective --baseline stock --routing "$routing" --device-curve "$work/device.json" --step-ms "$step_ms" \
    --budget 10000MB,7000MB,5500MB --readahead 128KiB,8MiB -p 1 -n 256 --decode-seconds 2 "$@"
echo "measured in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s, the build not included" >&2
