#!/usr/bin/env bash
# An A/A check: measures the same row twice under the same conditions, again and again, and says how often the two differ by less than the
# printed interval.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<USAGE
Usage: scripts/aa-check.sh [-m MODEL] [-r REPETITIONS] [-c ROUNDS] [BENCH OPTION...]

Runs \`bench --twice\` ROUNDS times (20) with REPETITIONS (8) on a small real model, and lets \`bench report\` count. Further options go to
bench, in place of --prefetch=selective -n 8.

With 8 repetitions an interval misses in 1 of 128 rounds by chance, with the bench's own default of 5 in 1 of 20 at most: then 2 of 20
rounds or more miss in a quarter of all checks of a sound instrument.

Exit codes: 0 at most 1 of 20 rounds differs in the speed of decoding, 1 more, 2 wrong usage or an error.
USAGE
}

model=''
repetitions=8
rounds=20
while getopts m:r:c:h option; do
    case $option in
        m) model=$OPTARG ;;
        r) repetitions=$OPTARG ;;
        c) rounds=$OPTARG ;;
        h) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[[ $repetitions =~ ^[1-9][0-9]*$ && $rounds =~ ^[1-9][0-9]*$ ]] || { usage >&2; exit 2; }
(($# > 0)) || set -- --prefetch=selective -n 8
model=${model:-$(scripts/fetch-models.sh --path)/smollm2-135m.gguf}

cargo build --quiet --release --locked --bin bench
bench=${CARGO_TARGET_DIR:-target}/release/bench
results=${CARGO_TARGET_DIR:-target}/aa/$(date -u +%Y-%m-%dT%H%M%SZ)
mkdir -p "$results"

folders=()
for ((round = 1; round <= rounds; round++)); do
    folder=$results/$(printf %03d "$round")
    folders+=("$folder")
    "$bench" --model "$model" --twice -r "$repetitions" --quiet --out "$folder" "$@" >/dev/null || exit 2
done

"$bench" report "${folders[@]}" --output "$results/report.md" || exit 2
grep '^A/A' "$results/report.md"
echo "samples and report: $results"
held=$(sed -n 's/^A\/A, speed of decoding: \([0-9]*\) of [0-9]* .*/\1/p' "$results/report.md")
pairs=$(sed -n 's/^A\/A, speed of decoding: [0-9]* of \([0-9]*\) .*/\1/p' "$results/report.md")
((20 * held >= 19 * pairs)) || { echo "fewer than 19 of 20: the intervals are too narrow for this machine" >&2; exit 1; }
