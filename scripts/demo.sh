#!/usr/bin/env bash
# The whole pipeline on this machine: installs libtorch, builds, runs `axismapper demo` with the arguments given.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
cargo build --release --locked
exec "${CARGO_TARGET_DIR:-target}/release/axismapper" demo "$@"
