#!/usr/bin/env bash
# The whole pipeline on this machine: installs libtorch, builds, runs `axismapper demo` with the arguments given.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
cargo build --release --locked
# Idle OpenMP threads sleep: on a machine that does other work too, spinning ones cost half the speed.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
exec "${CARGO_TARGET_DIR:-target}/release/axismapper" demo "$@"
