#!/usr/bin/env bash
# Installs the official `openai` package for Python into an environment of its own, starts a server with the two real models, and
# runs scripts/openai_client.py against it. FAULTLINE names another binary than the debug build. Exit codes: 0 all passed, 1 not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${CARGO_TARGET_DIR:-target}
binary=${FAULTLINE:-$target/debug/faultline}
models=$(scripts/fetch-models.sh --path)
environment=$target/openai-client
scratch=$(mktemp -d)
[[ -x $binary ]] || cargo build --quiet --locked --bin faultline
if [[ ! -x $environment/bin/python ]]; then
    python3 -m venv "$environment"
fi
"$environment/bin/pip" install --quiet --disable-pip-version-check openai

cat >"$scratch/models.toml" <<TOML
port = 0
[models.small]
path = "$models/smollm2-135m.gguf"
n_ctx = 2048
[models.coder]
path = "$models/qwen2.5-coder-0.5b.gguf"
n_ctx = 2048
TOML
"$binary" serve --config "$scratch/models.toml" 2>"$scratch/log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT
for _ in $(seq 100); do
    address=$(sed -n 's/^listening on \(http:[^ ]*\).*/\1/p' "$scratch/log")
    [[ -z $address ]] || break
    sleep 0.1
done
[[ -n $address ]] || { cat "$scratch/log" >&2; exit 1; }
"$environment/bin/python" scripts/openai_client.py "$address" small coder
