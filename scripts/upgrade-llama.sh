#!/usr/bin/env bash
# Moves the pin of llama.cpp to another version of the registry package that carries it. The one recipe for it; it can
# be started again after a patch was reworked.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'USAGE'
Usage: scripts/upgrade-llama.sh VERSION

  1. sets the version in vendor/llama.cpp/Cargo.toml and llama-sys/build/src/upstream.rs, and updates the lock file
  2. downloads that version and shows what it calls itself
  3. tries every patch of patches/series on it; stops at the first one that does not apply
  4. refreshes patches/SHA256SUMS
  5. runs the whole test suite

Exit codes: 0 all passed, 1 a step failed, 2 wrong usage.
USAGE
}

case ${1:-} in
-h | --help) usage && exit 0 ;;
[0-9]*.[0-9]*.[0-9]*) version=$1 ;;
*) usage >&2 && exit 2 ;;
esac

manifest=vendor/llama.cpp/Cargo.toml
constants=llama-sys/build/src/upstream.rs

echo "== pin"
sed -i -E "s/^(llama-cpp-sys-4 = \{ version = \"=)[^\"]+/\1$version/" "$manifest"
sed -i -E "s/^(pub const CRATE_VERSION: &str = \")[^\"]+/\1$version/" "$constants"
cargo update --quiet --manifest-path "$manifest" --package llama-cpp-sys-4
host=$(rustc -vV | awk '/^host:/ { print $2 }')
cargo fetch --locked --target "$host" --manifest-path "$manifest"

echo "== what the new tree calls itself"
package=$(cargo metadata --locked --offline --format-version=1 --filter-platform "$host" --manifest-path "$manifest" |
    python3 -c 'import json, os, sys
print(next(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == "llama-cpp-sys-4"))')
grep -E 'set\(GGML_VERSION_(MAJOR|MINOR|PATCH)' "$package/llama.cpp/ggml/CMakeLists.txt"
cat <<MESSAGE
The build compares GGML_VERSION in $constants with this, and BUILD_NUMBER and COMMIT are what
--version prints: correct them now if they differ. The package's own changelog names the upstream build.
MESSAGE

echo "== series"
if ! cargo run --quiet -p llama-build -- refresh-sums; then
    echo "rework the patch that is named above (patches/README.md), then run this again" >&2
    exit 1
fi
git --no-pager diff --stat -- patches "$manifest" "$constants"

echo "== tests"
exec scripts/test.sh
