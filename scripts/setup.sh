#!/usr/bin/env bash
# Installs libtorch into .libtorch/ (or checks the one that LIBTORCH names) and checks the tools of the build.
# Usage: scripts/setup.sh [--cuda | --cpu] [--tests]
#   --cuda  also install NVIDIA's libraries, as is done where `nvidia-smi` sees a GPU
#   --cpu   never install them
#   --tests also install NVRTC (90 MB to download), with which the tests compile the CUDA kernels; no GPU is needed
# Everything is fetched by pip, so PIP_INDEX_URL, PIP_FIND_LINKS, PIP_NO_INDEX, PIP_CACHE_DIR and pip's own
# configuration apply. Python is used for this step alone. Running it again does nothing, or goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH_VERSION=2.11.0
# Where the PyPI wheel of that version exists; another Python takes the wheel of the last of these.
WHEEL_PYTHONS="3.10 3.11 3.12 3.13 3.14"
# libtorch_cpu.so of the wheel links these two, GPU or not.
CPU_PARTS=("torch==$TORCH_VERSION" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
# The compiler of CUDA kernels, of the version that the wheel of libtorch asks for.
NVRTC=nvidia-cuda-nvrtc==13.0.88
HOME_DIR=$PWD/.libtorch
PARTIAL=$HOME_DIR/partial

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    printf 'setup: error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '  hint: %s\n' "$2" >&2
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

parse_arguments() {
    cuda=auto tests=no
    for argument in "$@"; do
        case $argument in
            --cuda) cuda=yes ;;
            --cpu) cuda=no ;;
            --tests) tests=yes ;;
            -h | --help) sed -n '2,8s/^# //p' "$0"; exit 0 ;;
            *) printf 'setup: error: unknown argument `%s`\n  hint: scripts/setup.sh [--cuda | --cpu] [--tests]\n' "$argument" >&2; exit 2 ;;
        esac
    done
    if [ $cuda = auto ]; then
        if has nvidia-smi && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then cuda=yes; else cuda=no; fi
    fi
}

check_build_tools() {
    has cargo || die "\`cargo\` is not on the PATH" "install Rust: https://rustup.rs"
    local needed found
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(cargo --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$needed" "$found" | sort -V | head -n1)" = "$needed" ] ||
        die "cargo is $found, $needed or later is needed" "rustup update stable (https://rustup.rs)"
    has "${CXX:-c++}" || has g++ || has clang++ ||
        die "no C++ compiler" "Debian, Ubuntu: sudo apt-get install g++; Fedora: sudo dnf install gcc-c++"
}

check_pip() {
    [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
        die "this script installs libtorch on Linux x86-64 only, here is $(uname -s) $(uname -m)" \
            "install libtorch $TORCH_VERSION yourself and set LIBTORCH to its folder"
    has python3 || die "\`python3\` is not on the PATH" "Debian, Ubuntu: sudo apt-get install python3 python3-pip"
    python3 -m pip --version >/dev/null 2>&1 ||
        die "python3 has no pip" "Debian, Ubuntu: sudo apt-get install python3-pip"
}

# The version of the libtorch in folder $1, from its header; empty where there is none.
version_of() {
    local header
    for header in "$1/include/torch/headeronly/version.h" "$1/include/torch/csrc/api/include/torch/version.h"; do
        [ -f "$header" ] || continue
        awk '$1 == "#define" && $2 ~ /^TORCH_VERSION_(MAJOR|MINOR|PATCH)$/ { version = version dot $3; dot = "." }
             END { print version }' "$header"
        return
    done
}

# Loads libtorch_cpu.so of folder $1 for real, which finds a torn file and a missing library alike.
verify_loads() {
    local library=$1/lib/libtorch_cpu.so fault
    [ -f "$library" ] || die "\`$library\` does not exist" "$2"
    if has python3; then
        fault=$(python3 -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$library" 2>&1) && return 0
    else
        fault=$(ldd "$library" 2>&1 | grep 'not found') || return 0
    fi
    local detail=${fault##*$'\n'}
    die "\`$library\` does not load: ${detail:-the file is torn}" "$2"
}

check_given_libtorch() {
    local found
    [ -d "$LIBTORCH" ] || die "LIBTORCH is \`$LIBTORCH\`, which is no folder" "unset LIBTORCH to have libtorch installed here"
    found=$(version_of "$LIBTORCH")
    [ "$found" = "$TORCH_VERSION" ] ||
        die "LIBTORCH is \`$LIBTORCH\`, version ${found:-unknown}; $TORCH_VERSION is needed" \
            "set LIBTORCH to libtorch $TORCH_VERSION, or unset it to have that installed here"
    verify_loads "$LIBTORCH" "mend that installation, or unset LIBTORCH to have libtorch installed here"
    say "using libtorch $found at $LIBTORCH (LIBTORCH)"
}

# Downloads and unpacks into $PARTIAL/site; finished downloads survive an interruption. $1 is `--no-deps` or empty.
fetch() {
    local no_deps=$1; shift
    local python
    python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    local wheel_of=()
    case " $WHEEL_PYTHONS " in
        *" $python "*) ;;
        *) wheel_of=(--python-version "${WHEEL_PYTHONS##* }") ;;
    esac
    # pip unpacks under TMPDIR, and /tmp is often too small.
    export TMPDIR=$PARTIAL/tmp PIP_USER=no PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
    rm -rf "$PARTIAL/tmp" "$PARTIAL/site"
    mkdir -p "$PARTIAL/tmp" "$PARTIAL/wheels"
    python3 -m pip download $no_deps --only-binary=:all: "${wheel_of[@]}" --dest "$PARTIAL/wheels" "$@" >&2 ||
        die "pip could not fetch $*" \
            "check the network (HTTPS_PROXY, PIP_INDEX_URL), or give a folder of wheels: PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR"
    du -sh "$PARTIAL/wheels" | awk '{print "setup: fetched " $1}' >&2
    python3 -m pip install --quiet $no_deps --no-compile --no-index --find-links "$PARTIAL/wheels" \
        --only-binary=:all: "${wheel_of[@]}" --target "$PARTIAL/site" "$@" >&2 ||
        die "pip could not unpack $*" "see the message above; at least 2 GB must be free here ($(free_space))"
}

free_space() { df -Ph . | awk 'END {print $4 " are"}'; }

install_cpu_parts() {
    local found
    if [ -d "$HOME_DIR/torch" ]; then
        found=$(version_of "$HOME_DIR/torch")
        [ "$found" != "$TORCH_VERSION" ] || return 0
        say "replacing libtorch ${found:-of unknown version} in .libtorch by $TORCH_VERSION"
        find "$HOME_DIR" -mindepth 1 -maxdepth 1 ! -name partial -exec rm -rf {} +
    fi
    say "installing libtorch $TORCH_VERSION into .libtorch: 544 MB to download, 1.2 GB on disk, 1.8 GB while unpacking"
    fetch --no-deps "${CPU_PARTS[@]}"
    rm -rf "$HOME_DIR/nvidia" "$HOME_DIR/cuda-parts"
    mv "$PARTIAL/site"/*.dist-info "$PARTIAL/site/nvidia" "$HOME_DIR"
    # The last step: a folder named torch is a finished installation.
    mv "$PARTIAL/site/torch" "$HOME_DIR/torch"
    rm -rf "$PARTIAL"
    installed=yes
}

# NVIDIA's libraries that the wheel's metadata asks for; its Python dependencies are of no use here.
install_cuda_parts() {
    [ ! -e "$HOME_DIR/cuda-parts" ] || return 0
    say "installing NVIDIA's libraries into .libtorch: 1.9 GB more to download, 2.8 GB on disk"
    local parts
    mapfile -t parts < <(sed -n 's/^Requires-Dist: \(cuda-toolkit[^;]*\|nvidia-[^;]*\)\(;.*\)\{0,1\}$/\1/p' \
        "$HOME_DIR/torch-$TORCH_VERSION.dist-info/METADATA" | tr -d ' ')
    [ "${#parts[@]}" -gt 0 ] || die "the wheel's metadata names no NVIDIA libraries" "rm -rf .libtorch and run again"
    fetch "" "${parts[@]}"
    cp -rlf "$PARTIAL/site/nvidia/." "$HOME_DIR/nvidia/"
    touch "$HOME_DIR/cuda-parts"
    rm -rf "$PARTIAL"
    installed=yes
}

# The compiler of CUDA kernels alone, unless it is beside the libtorch in use ($1).
install_nvrtc() {
    local place
    for place in "$1/.." "$HOME_DIR/nvrtc"; do
        [ ! -f "$place/nvidia/cu13/lib/libnvrtc.so.13" ] || return 0
    done
    check_pip
    mkdir -p "$HOME_DIR"
    say "installing NVRTC into .libtorch: 90 MB to download, 110 MB on disk"
    fetch --no-deps "$NVRTC"
    # Builds of the same compiler for other uses.
    find "$PARTIAL/site" -name '*.alt.so*' -delete
    rm -rf "$HOME_DIR/nvrtc"
    mv "$PARTIAL/site" "$HOME_DIR/nvrtc"
    rm -rf "$PARTIAL"
    installed=yes
}

parse_arguments "$@"
check_build_tools
if [ -n "${LIBTORCH:-}" ]; then
    check_given_libtorch
    [ $tests = no ] || install_nvrtc "$LIBTORCH"
    exit 0
fi
mkdir -p "$HOME_DIR"
if has flock; then
    exec 9>"$HOME_DIR/lock"
    flock -n 9 || { say "waiting for another setup.sh"; flock 9; }
fi
installed=no
if [ ! -d "$HOME_DIR/torch" ] || [ "$(version_of "$HOME_DIR/torch")" != $TORCH_VERSION ] || [ $cuda = yes ]; then
    check_pip
fi
install_cpu_parts
[ $cuda = no ] || install_cuda_parts
[ $tests = no ] || install_nvrtc "$HOME_DIR/torch"
verify_loads "$HOME_DIR/torch" "rm -rf .libtorch and run scripts/setup.sh again"
if [ $installed = yes ]; then
    say "libtorch $TORCH_VERSION is ready in .libtorch ($(du -sh "$HOME_DIR" | cut -f1))"
else
    say "libtorch $TORCH_VERSION is already in .libtorch"
fi
