#!/usr/bin/env bash
# Holds a GPU to the CPU and measures it: weights, logits, losses, gradients, optimizer steps and answers of a small model
# against the CPU's; then training and decoding of the Qwen2.5-7B shape with random weights, beside transformers and PEFT
# where a Python has them. Under 10 minutes, nothing is downloaded. Prints a table and writes OUT (check-gpu.json).
#
#   scripts/check_gpu.sh [OPTION OF `axismapper check-gpu`]...
#
# AXISMAPPER names the program, PYTHON the interpreter of the peer, OUT the report.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-check-gpu.json}

program=${AXISMAPPER:-}
for candidate in target/release/axismapper "$(command -v axismapper || true)" target/debug/axismapper; do
    [ -n "$program" ] || [ ! -x "$candidate" ] || program=$candidate
done
[ -n "$program" ] || {
    printf 'check_gpu: error: there is no axismapper\n  hint: cargo build --release, or set AXISMAPPER to the program\n' >&2
    exit 1
}

peer=()
for python in ${PYTHON:-} python3; do
    if [ ${#peer[@]} -eq 0 ] && "$python" -c 'import peft, torch, transformers' 2>/dev/null; then
        peer=(--peer "$python")
    fi
done
[ ${#peer[@]} -gt 0 ] ||
    printf 'check_gpu: no Python with torch, transformers and PEFT: nothing is measured beside it (PYTHON names one)\n' >&2
exec "$program" check-gpu --out "$out" "${peer[@]}" "$@"
