#!/usr/bin/env bash
# The full shapes of mixtures of experts: 256 greedy tokens with the pager, at several budgets and with every strategy, against llama.cpp without
# patches with all weights in memory. Every token's logits are compared, bit for bit. Prints a table for each shape.
# Usage: scripts/check-identity.sh [--keep] [--out DIR] [--only PARTS] [SHAPE...]
#
# Shapes: gpt-oss-20b, qwen3-30b-a3b and deepseek-v2-lite (all of them by default). A model that is not in the cache folder is generated there, and removed
# after its check unless --keep is given: 14, 19 and 10 GB of disk, one at a time. Needs root for the budgets (memory groups), memory for a whole model, and
# about an hour for each shape on two cores.
# gpt-oss-20b runs in memory with its own picks, and otherwise with those of the routing trace FAULTLINE_ROUTING, or gpqa_main of the shared test data.
# --out DIR keeps what was measured; a part that is complete there is not run again, so that a check that was ended goes on. --only runs some of the
# parts, as in --only memory,half: memory half smallest policies ahead threads one-thread. The table has all that are in DIR.
# Exit codes: 0 equal, 1 different or not computed, 2 wrong usage.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all_parts=(memory half smallest policies ahead threads one-thread)
keep='' out='' only=" ${all_parts[*]} " shapes=()
usage() { sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
while (($# > 0)); do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --keep) keep=1 ;;
    --out | --only)
        if (($# < 2)); then
            usage >&2
            exit 2
        fi
        if [[ $1 == --out ]]; then out=$2; else only=" ${2//,/ } "; fi
        shift
        ;;
    gpt-oss-20b | qwen3-30b-a3b | deepseek-v2-lite) shapes+=("$1") ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
    shift
done
((${#shapes[@]} > 0)) || shapes=(gpt-oss-20b qwen3-30b-a3b deepseek-v2-lite)
for part in $only; do
    if [[ " ${all_parts[*]} " != *" $part "* ]]; then
        echo "check-identity.sh: $part: no such part; there are ${all_parts[*]}" >&2
        exit 2
    fi
done

cargo build --quiet --release --locked -p bench
bench=${CARGO_TARGET_DIR:-target}/release/bench
models=$(scripts/fetch-models.sh --path)
trace=${FAULTLINE_ROUTING:-${FAULTLINE_SHARED_DATA:-../shared/data}/routing/gpt-oss-20b.gpqa_main.routes.u8}
scratch='' generated=''
if [[ -z $out ]]; then
    scratch=$(mktemp -d)
    out=$scratch
fi
clean_up() {
    [[ -z $scratch ]] || rm -rf "$scratch"
    [[ -z $generated || -n $keep ]] || rm -f "$generated"
}
trap clean_up EXIT

# A prompt of 20 tokens takes three ubatches. The time limit ends a run that hangs.
common=(-p 20 --batch-size 32 --ubatch-size 8 -n 256 -r 1 --no-warmup --timeout 900 -q -o json)

# Runs a part: its name, then options of bench.
part() {
    local name=$1 folder=$out/$shape/$1
    shift
    [[ $only == *" $name "* && ! -f $folder/done ]] || return 0
    echo "$shape: $name ..." >&2
    rm -rf "$folder"
    if "$bench" -m "$model" --prefetch=pager "${common[@]}" --out "$folder" "$@" >"$log" 2>&1; then
        touch "$folder/done"
    else
        tail -n 3 "$log" >&2
        status=1
    fi
}

# The smallest budget that works, in MiB: what bench says of one that does not.
smallest() {
    local said
    said=$("$bench" -m "$model" --prefetch=pager "${common[@]}" --repack pager --budget 300MB --out "$out/$shape/refused" 2>&1 || true)
    rm -rf "$out/$shape/refused"
    said=$(sed -n 's/.*(--budget \([0-9]*\)MiB).*/\1/p' <<<"$said" | head -n 1)
    if [[ -z $said ]]; then
        echo "check-identity.sh: $model: bench does not name the smallest budget" >&2
        exit 1
    fi
    echo "$said"
}

status=0
for shape in "${shapes[@]}"; do
    model=$models/$shape-shape.gguf
    mkdir -p "$out/$shape"
    log=$out/$shape/log
    if [[ ! -f $model ]]; then
        generated=$model
        "$bench" make-model -q --shape "$shape" -o "$model"
    fi
    part memory --repack both --reference stock:none,stock:none+repack --budget 110%
    # Greedy text of random weights repeats itself and needs few experts: with picks that were recorded from the real model, they come and go.
    picks=() references=()
    if [[ $shape == gpt-oss-20b && -f $trace ]]; then
        picks=(--routing "$trace")
        references=(--reference stock:none,stock:none+repack)
    fi
    part half --repack both "${references[@]}" "${picks[@]}" --budget 50%
    [[ $only != *" smallest "* || -f $out/$shape/smallest/done ]] || part smallest --repack both "${picks[@]}" --budget "$(smallest)MiB"
    part policies --repack pager "${picks[@]}" --budget 33% --policy lru,lfu
    part ahead --repack pager "${picks[@]}" --budget 50% --lookahead picks:0.2,router:0.2 --replay off,on
    part threads --repack pager "${picks[@]}" --budget 33% --reads threads --replay on
    part one-thread --repack pager -t 1 --reference stock:none+repack --budget 50%
    echo
    python3 scripts/compare_logits.py "$out/$shape" || status=1
    [[ -z $generated || -n $keep ]] || rm -f "$generated"
    generated=''
done
exit "$status"
