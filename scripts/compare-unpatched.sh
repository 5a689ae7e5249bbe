#!/usr/bin/env bash
# Compares the token ids of `faultline run` with those of a program that is built against the unpatched llama.cpp, on the
# real models. Exit codes: 0 equal, or no model to compare with, 1 different.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

n_predict=24
prompts=("The capital of Germany is" "Once upon a time, in a small town by the sea," "fn main() {")

target=${CARGO_TARGET_DIR:-target}
models=$(scripts/fetch-models.sh --path)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cargo build --quiet --locked --bin faultline
reference=$(scripts/native.sh --unpatched tests/cpp/reference.cpp)

compared=0 different=0
for name in smollm2-135m qwen2.5-coder-0.5b; do
    model=$models/$name.gguf
    if [[ ! -f $model ]]; then
        echo "skipped: $model is absent; scripts/fetch-models.sh downloads it"
        continue
    fi
    for prompt in "${prompts[@]}"; do
        for repack in on off; do
            extra=$([[ $repack == on ]] && echo 1 || echo 0)
            # Arguments of the reference: model, file for the logits, tokens, threads, repacking, prompt.
            expected=$("$reference" "$model" "$scratch/logits" "$n_predict" 1 "$extra" --text "$prompt")
            found=$("$target/debug/faultline" run -m "$model" -p "$prompt" --raw --temp 0 -n "$n_predict" \
                -c 512 -t 1 --repack "$repack" --ids -q | sed -n 's/^generated //p')
            compared=$((compared + 1))
            # The reference goes on after a token that ends the text.
            if [[ -z $found || "$expected " != "$found "* ]]; then
                different=$((different + 1))
                printf '%s, repack %s, "%s":\n  unpatched %s\n  faultline %s\n' \
                    "$name" "$repack" "$prompt" "$expected" "$found" >&2
            fi
        done
    done
done
echo "unpatched build: $compared generations of at most $n_predict tokens compared, $different different"
((different == 0))
