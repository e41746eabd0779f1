#!/usr/bin/env bash
# Training speed and memory beside TRL, PEFT and bitsandbytes: the Qwen2.5-0.5B shape with random weights in NF4, rank 16 on
# all seven projections, scenarios from `data build`, batches of 4 records (ORPO: 2), the same for both.
#
#   PYTHON=.venv/bin/python TOKENIZER=path/to/Qwen2.5-tokenizer ./scripts/bench_train.sh [WORK_DIR]
#
# PYTHON has tests/reference/requirements.txt installed. Runs alternate, so that other load meets both sides. With
# CHECKPOINTING=false both sides keep what their backward pass needs instead of computing blocks again. PEER_DTYPE=float32
# lets the peer compute in the type that is faster for it on processors without bf16 products. With
# OURS_ONLY=1 BATCHES="1 2 4 8 16" RUNS=sft-lora-0.05 it shows how AxisMapper's time grows with the tokens of a batch.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-bench-train}
python=${PYTHON:?the interpreter of an environment with tests/reference/requirements.txt}
tokenizer=${TOKENIZER:?a folder with the tokenizer.json and tokenizer_config.json of Qwen2.5}
binary=${AXISMAPPER:-target/release/axismapper}
steps=${STEPS:-4}
export OMP_WAIT_POLICY=passive
peer() { "$python" scripts/bench_train_peer.py "$@"; }

[ -x "$binary" ] || cargo build --release
mkdir -p "$work"
printf 'generate: {n_records: 400}\n' >"$work/data.yaml"
[ -f "$work/data/train.jsonl" ] || "$binary" --quiet data build --config "$work/data.yaml" --out-dir "$work/data"
[ -f "$work/model/config.json" ] || peer model --tokenizer "$tokenizer" --out "$work/model"
for run in ${RUNS:-sft-dora-0.05 sft-lora-0.05 sft-dora-0 sft-lora-0 orpo-dora-0 orpo-lora-0}; do
    IFS=- read -r objective adapter dropout <<<"$run"
    data=$work/data/train.jsonl batches=4
    if [ "$objective" = orpo ]; then data=$work/data/orpo_train.jsonl batches=2; fi
    for batch in ${BATCHES:-$batches}; do
        same=(--model "$work/model" --data "$data" --objective "$objective" --adapter "$adapter" --dropout "$dropout"
            --batch "$batch" --steps "$steps")
        if [ "${CHECKPOINTING:-true}" = false ]; then same+=(--no-checkpointing); fi
        peer ours "${same[@]}" --binary "$binary" --out "$work/ours" 2>/dev/null | tail -1 | tee -a "$work/runs.jsonl"
        [ -n "${OURS_ONLY:-}" ] || peer run "${same[@]}" --dtype "${PEER_DTYPE:-bfloat16}" --out "$work/peer" 2>/dev/null | tail -1 | tee -a "$work/runs.jsonl"
    done
done
if [ -n "${OURS_ONLY:-}" ]; then peer growth "$work/runs.jsonl"; else peer table "$work/runs.jsonl"; fi
