#!/usr/bin/env bash
# Everything that must hold before a change is handed over, from a fresh clone: set-up, format, lints, tests.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '== %s\n' "$*" >&2; "$@"; }

for component in fmt clippy; do
    cargo $component --version >/dev/null 2>&1 || {
        printf 'test: error: `cargo %s` is missing\n  hint: rustup component add %s\n' \
            "$component" "${component/fmt/rustfmt}" >&2
        exit 1
    }
done
step scripts/setup.sh --tests
step cargo fmt --check
step cargo clippy --all-targets --locked -- -D warnings
step cargo test --locked
