#!/usr/bin/env bash
# Every check of the project, step by step, with a table of times at the end. `make test` and .ci/run call this.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all_steps=(setup models shell fmt patches clippy test fallback loom doc cpp unpatched)

usage() {
    cat <<USAGE
Usage: scripts/test.sh [STEP...]

Runs the steps in this order, or only the named ones: ${all_steps[*]}

  setup      system packages (scripts/setup.sh)
  models     the two real models that tests use (scripts/fetch-models.sh)
  shell      syntax of the scripts
  fmt        cargo fmt --check
  patches    the series applies, and the patched files have the recorded hashes
  clippy     warnings are errors
  test       cargo test of the whole workspace
  fallback   the pager's tests where io_uring is forbidden
  loom       the access log's ring and the pager's slots under every interleaving of their threads
  doc        documentation builds without a warning
  cpp        the kernels' own tests in C++ (tests/cpp)
  unpatched  the same token ids as a build of the unpatched source

Exit codes: 0 all passed, 1 a step failed, 2 wrong usage.
USAGE
}

step_setup() { scripts/setup.sh; }

step_models() { scripts/fetch-models.sh; }

step_shell() {
    local script
    for script in .ci/run scripts/*.sh; do
        bash -n "$script"
    done
    for script in scripts/*.py; do
        python3 -c 'import ast, sys; ast.parse(open(sys.argv[1]).read(), sys.argv[1])' "$script"
    done
    if command -v shellcheck >/dev/null; then shellcheck .ci/run scripts/*.sh; fi
}

step_fmt() { cargo fmt --all --check; }

step_patches() { cargo run --quiet --locked -p llama-build -- check-patches; }

step_clippy() { cargo clippy --quiet --locked --workspace --all-targets -- -D warnings; }

# Tests of llama-rs and of bench compare logits with programs that are built against the unpatched source.
step_test() {
    FAULTLINE_REFERENCE=$(scripts/native.sh --unpatched tests/cpp/reference.cpp)
    FAULTLINE_STOCK_WORKER=$(scripts/native.sh --unpatched bench/stock/stock_worker.cpp)
    export FAULTLINE_REFERENCE FAULTLINE_STOCK_WORKER
    cargo test --locked --workspace
}

step_fallback() {
    cargo run --quiet --locked -p pager --example without_io_uring -- cargo test --locked -p pager
}

# In a target folder of its own: the flag would make Cargo compile everything else again.
step_loom() {
    CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom" RUSTFLAGS="--cfg loom" \
        cargo test --quiet --locked -p tracer --lib --release ring
    # A feature instead of the flag: crates that pager depends on would see the flag, too.
    cargo test --quiet --locked -p pager --lib --features loom every_interleaving
}

step_doc() { RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --workspace --no-deps; }

step_cpp() {
    local program
    program=$(scripts/native.sh --patched tests/cpp/lazy_kernels.cpp)
    "$program"
}

step_unpatched() { scripts/compare-unpatched.sh; }

print_times() {
    local index
    printf '\n%-10s %8s  %s\n' step seconds result
    for index in "${!done_names[@]}"; do
        printf '%-10s %8d  %s\n' "${done_names[$index]}" "${done_seconds[$index]}" "${done_results[$index]}"
    done
    printf '%-10s %8d\n' total "$SECONDS"
}

steps=()
for argument in "$@"; do
    case " ${all_steps[*]} " in
    *" $argument "*) steps+=("$argument") ;;
    *)
        usage
        [[ $argument == -h || $argument == --help ]] || exit 2
        exit 0
        ;;
    esac
done
((${#steps[@]} > 0)) || steps=("${all_steps[@]}")

SECONDS=0
done_names=() done_seconds=() done_results=()
trap print_times EXIT
for step in "${steps[@]}"; do
    echo "== $step"
    begin=$SECONDS
    done_names+=("$step") done_seconds+=(0) done_results+=(failed)
    last=$((${#done_names[@]} - 1))
    # In a shell of its own with -e: inside a condition, `set -e` would not stop at a command that fails.
    set +e
    (
        set -e
        "step_$step"
    )
    status=$?
    set -e
    done_seconds[last]=$((SECONDS - begin))
    if ((status != 0)); then
        echo "== $step failed (exit code $status)" >&2
        exit 1
    fi
    done_results[last]=passed
done
