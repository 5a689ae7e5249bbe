#!/usr/bin/env bash
# Instructions that the patches add to a token while their hooks are unset, counted by callgrind.
# Usage: scripts/count-instructions.sh MODEL [TOKENS]
#
# One thread, since threads that wait for each other spin; a build for CPUs with AVX2, since valgrind does not know AVX-512. Loading the model is
# taken out by the difference of two runs. Needs valgrind (apt-get install valgrind).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# < 1 || $# > 2)); then
    sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
command -v valgrind >/dev/null || {
    echo "count-instructions.sh: valgrind is missing; apt-get install valgrind" >&2
    exit 2
}
model=$1
tokens=${2:-4}
export LLAMA_SYS_NATIVE=off

# instructions PROGRAM BLOCKS: all instructions of a run that decodes this many blocks of $tokens tokens.
instructions() {
    local report
    report=$(printf '%*s' "$2" '' | tr ' ' '\n' |
        valgrind --tool=callgrind --callgrind-out-file=/dev/null "$1" "$model" "$tokens" 1 2>&1 >/dev/null) || {
        echo "$report" >&2
        exit 1
    }
    sed -n 's/.*Collected : \([0-9]*\).*/\1/p' <<<"$report"
}

# per_token KIND: instructions of a token.
per_token() {
    local program one three
    program=$(scripts/native.sh "$1" bench/native/blocks.cpp)
    one=$(instructions "$program" 1)
    three=$(instructions "$program" 3)
    echo $(((three - one) / (2 * tokens)))
}

unpatched=$(per_token --unpatched)
patched=$(per_token --patched)
printf 'model: %s\n' "$(basename "$model")"
printf '%-24s %15d\n' 'unpatched, a token' "$unpatched" 'patched, hooks unset' "$patched" 'added' $((patched - unpatched))
awk -v a="$unpatched" -v b="$patched" 'BEGIN { printf "%-24s %14.4f%%\n", "added", 100 * (b - a) / a }'
