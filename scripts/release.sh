#!/usr/bin/env bash
# Packs a release: the program, the libraries of libtorch that it loads, configs, completions, man pages, licence.
# It runs wherever it is unpacked, on Linux with the same processor family and a glibc that is not older.
# Usage: scripts/release.sh [OUT_DIR]        (dist when left out)
#   PROFILE=dev   the cargo profile; release when left out
#   LIBTORCH      the libtorch to pack; .libtorch/torch when left out
#   BINARY        a program that is built already, to be packed instead of a new one
# The libraries for NVIDIA GPUs, some gigabytes, are not packed.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'release: %s\n' "$*" >&2; }
die() {
    printf 'release: error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '  hint: %s\n' "$2" >&2
    exit 1
}

profile=${PROFILE:-release}
out=${1:-dist}
libtorch=${LIBTORCH:-$PWD/.libtorch/torch}
[ -f "$libtorch/lib/libtorch_cpu.so" ] || die "\`$libtorch\` has no libtorch" "run scripts/setup.sh, or set LIBTORCH"
libtorch=$(cd "$libtorch" && pwd -P)
for tool in cargo ldd sha256sum tar; do
    command -v $tool >/dev/null || die "\`$tool\` is not on the PATH" "install it"
done

binary=${BINARY:-}
if [ -z "$binary" ]; then
    say "building with the profile $profile"
    AXISMAPPER_PORTABLE=1 LIBTORCH=$libtorch cargo build --locked --profile "$profile" --bin axismapper >&2
    folder=$profile
    [ "$profile" != dev ] || folder=debug
    binary=${CARGO_TARGET_DIR:-target}/$folder/axismapper
fi
[ -x "$binary" ] || die "\`$binary\` was not made" "look at what cargo said above"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n1)
name=axismapper-$version-$(uname -s | tr '[:upper:]' '[:lower:]')-$(uname -m)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/$name
mkdir -p "$root/bin" "$root/lib" "$root/share/completions" "$root/share/man/man1"

cp "$binary" "$root/bin/axismapper"
if [ "$profile" = release ] && command -v strip >/dev/null; then strip "$root/bin/axismapper"; fi
# What the program loads from libtorch's folders, not what every Linux has.
site=$(dirname "$libtorch")
missing=$(LD_LIBRARY_PATH=$libtorch/lib ldd "$root/bin/axismapper" | awk '/not found/ { print $1 }')
[ -z "$missing" ] || die "libraries are missing: $missing" "run scripts/setup.sh"
LD_LIBRARY_PATH=$libtorch/lib ldd "$root/bin/axismapper" | awk '{ print $3 }' | while read -r library; do
    case $(readlink -f "$library" 2>/dev/null) in
        "$site"/*) cp -L "$library" "$root/lib/" ;;
    esac
done
[ -f "$root/lib/libtorch_cpu.so" ] || die "libtorch_cpu.so is not among the libraries of the program"

sed -n "s/^__version__ = '\(.*\)'/\1/p" "$libtorch/version.py" > "$root/lib/libtorch-version" 2>/dev/null || true

export LD_LIBRARY_PATH=
run() { env -u LIBTORCH -u LD_LIBRARY_PATH "$root/bin/axismapper" "$@"; }
for shell in bash zsh fish; do run completions $shell > "$root/share/completions/axismapper.$shell"; done
run man --out "$root/share/man/man1" >/dev/null
cp -r configs "$root/configs"
cp README.md LICENSE NOTICE "$root/"
cp "$libtorch/../torch-"*.dist-info/LICENSE "$root/lib/LICENSE.libtorch" 2>/dev/null ||
    cp "$libtorch/../torch-"*.dist-info/licenses/LICENSE "$root/lib/LICENSE.libtorch" 2>/dev/null ||
    say "the licence of libtorch was not found beside it; add it as lib/LICENSE.libtorch"

mkdir -p "$out"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner -czf "$out/$name.tar.gz" "$name"

# It must run where it is unpacked, with nothing in the environment, and from its own libraries.
test_dir=$work/elsewhere
mkdir "$test_dir"
tar -C "$test_dir" -xzf "$out/$name.tar.gz"
mv "$root" "$root.gone"
program=$test_dir/$name/bin/axismapper
env -i HOME="$test_dir" "$program" codes check I10 >/dev/null || die "the unpacked program does not run"
foreign=$(env -i ldd "$program" | awk '/libtorch|libc10/ { print $3 }' | grep -v "^$test_dir/\|/bin/\.\./lib/" || true)
[ -z "$foreign" ] || die "the unpacked program loads $foreign"

(cd "$out" && sha256sum "$name.tar.gz" | tee "$name.tar.gz.sha256")
printf '%s: %s packed, %s unpacked\n' "$out/$name.tar.gz" \
    "$(du -h "$out/$name.tar.gz" | cut -f1)" "$(du -sh "$test_dir/$name" | cut -f1)"
