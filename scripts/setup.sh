#!/usr/bin/env bash
# Checks for what the build needs and installs what is missing. Quick when nothing is missing, and safe to repeat.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/setup.sh [--check]

Needed: a C and C++ compiler, make or ninja, cmake, libclang with its headers (for bindgen), Rust 1.95 or newer, and
python3 with pip (only to download models). What is missing is installed with the system's package manager, as root or
through sudo without a password; Rust itself is never installed.

  --check   install nothing; print the command that would

Exit codes: 0 everything is there, 1 the package manager failed, 2 something is missing that cannot be installed here.
USAGE
}

rust_minimum=1.95

has() { command -v "$1" >/dev/null 2>&1; }

has_compiler() { (has cc || has gcc || has clang) && (has c++ || has g++ || has clang++); }

has_make() { has make || has ninja; }

has_pip() { has python3 && python3 -c 'import pip' >/dev/null 2>&1; }

# Bindgen loads libclang, and libclang needs the compiler's own headers (stddef.h), which come in another package.
has_libclang() {
    local libraries headers
    shopt -s nullglob
    libraries=(${LIBCLANG_PATH:+"$LIBCLANG_PATH"/libclang*.so* "$LIBCLANG_PATH"/libclang*.dylib}
        /usr/lib/llvm*/lib/libclang*.so* /usr/lib/*/libclang*.so* /usr/lib/libclang*.so* /usr/lib64/libclang*.so*
        /usr/lib64/llvm*/lib/libclang*.so* /usr/local/lib/libclang*.so* /usr/lib/llvm/*/lib64/libclang*.so*
        /opt/homebrew/opt/llvm/lib/libclang*.dylib /usr/local/opt/llvm/lib/libclang*.dylib
        /Library/Developer/CommandLineTools/usr/lib/libclang.dylib)
    headers=(/usr/lib/llvm*/lib/clang/*/include/stddef.h /usr/lib/clang/*/include/stddef.h
        /usr/lib64/clang/*/include/stddef.h /usr/lib64/llvm*/lib/clang/*/include/stddef.h
        /usr/local/lib/clang/*/include/stddef.h /opt/homebrew/opt/llvm/lib/clang/*/include/stddef.h
        /usr/local/opt/llvm/lib/clang/*/include/stddef.h
        /Library/Developer/CommandLineTools/usr/lib/clang/*/include/stddef.h)
    shopt -u nullglob
    ((${#libraries[@]} > 0)) && { ((${#headers[@]} > 0)) || has clang; }
}

# True when Rust is there and at least as new as rust-version in Cargo.toml.
has_rust() {
    has cargo && has rustc || return 1
    local version
    version=$(rustc --version 2>/dev/null | awk '{ print $2 }') || return 1
    [[ $(printf '%s\n%s\n' "$rust_minimum" "$version" | sort -V | head -n 1) == "$rust_minimum" ]]
}

# The package that brings one of compiler, make, cmake, libclang, pip with the package manager $1.
package_of() {
    case $1:$2 in
    apt-get:compiler) echo g++ ;;
    apt-get:libclang) echo libclang-dev ;;
    apt-get:pip | dnf:pip) echo python3-pip ;;
    dnf:compiler) echo gcc-c++ ;;
    dnf:libclang) echo clang-devel ;;
    pacman:compiler) echo gcc ;;
    pacman:libclang) echo clang ;;
    pacman:pip) echo python-pip ;;
    apk:compiler) echo build-base ;;
    apk:libclang) echo clang-dev clang-libclang ;;
    apk:pip) echo py3-pip ;;
    brew:compiler | brew:libclang) echo llvm ;;
    brew:pip) echo python ;;
    *) echo "$2" ;;
    esac
}

install_command() {
    case $1 in
    apt-get) echo "apt-get install -y --no-install-recommends" ;;
    dnf) echo "dnf install -y" ;;
    pacman) echo "pacman -S --needed --noconfirm" ;;
    apk) echo "apk add" ;;
    brew) echo "brew install" ;;
    esac
}

check_only=false
case ${1:-} in
'') ;;
--check) check_only=true ;;
-h | --help) usage && exit 0 ;;
*) usage >&2 && exit 2 ;;
esac

if ! has_rust; then
    echo "Rust $rust_minimum or newer is missing: install it with rustup (rustup toolchain install stable), then run this again" >&2
    exit 2
fi

missing=()
has_compiler || missing+=(compiler)
has_make || missing+=(make)
has cmake || missing+=(cmake)
has_libclang || missing+=(libclang)
has_pip || missing+=(pip)
if ((${#missing[@]} == 0)); then
    echo "setup: everything is there"
    exit 0
fi
echo "setup: missing: ${missing[*]}" >&2

manager=
for candidate in apt-get dnf pacman apk brew; do
    if has "$candidate"; then
        manager=$candidate
        break
    fi
done
if [[ -z $manager ]]; then
    echo "no package manager that this script knows: install ${missing[*]} by hand, then run this again" >&2
    exit 2
fi

packages=()
for item in "${missing[@]}"; do
    # One item may be several packages.
    read -r -a names <<<"$(package_of "$manager" "$item")"
    packages+=("${names[@]}")
done
read -r -a install <<<"$(install_command "$manager")"

as_root=()
if [[ $manager != brew && $(id -u) != 0 ]]; then
    if has sudo && sudo -n true 2>/dev/null; then
        as_root=(sudo -n)
    else
        check_only=true
    fi
fi
if $check_only; then
    prefix=
    if [[ $manager != brew && $(id -u) != 0 ]]; then prefix="sudo "; fi
    echo "run: $prefix${install[*]} ${packages[*]}" >&2
    exit 2
fi

if [[ $manager == apt-get ]]; then
    # A fresh machine has no package lists, or old ones. A failed update is not the end: the lists may do.
    ${as_root[@]+"${as_root[@]}"} apt-get update -qq || echo "setup: apt-get update failed; trying with the lists as they are" >&2
    export DEBIAN_FRONTEND=noninteractive
    # sudo drops the environment; env hands the variable on.
    install=(env DEBIAN_FRONTEND=noninteractive "${install[@]}")
fi
if ! ${as_root[@]+"${as_root[@]}"} "${install[@]}" "${packages[@]}"; then
    echo "installing failed; the command was: ${install[*]} ${packages[*]}" >&2
    exit 1
fi
echo "setup: installed ${packages[*]}"
exec bash "${BASH_SOURCE[0]}" --check
