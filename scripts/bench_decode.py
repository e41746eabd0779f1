"""Decoding tokens per second at the shape of Qwen2.5-0.5B: this program (NF4) beside transformers' `generate` (bf16).

    axismapper init --config scripts/qwen2.5-0.5b.json --tokenizer DIR --out out/bench --dtype bfloat16
    OMP_WAIT_POLICY=passive python scripts/bench_decode.py out/bench target/release/deps/decode-*

Needs torch 2.11 and transformers 5.23. Both sides take greedy steps from the same 32 prompt tokens with their cache, in turns
within one run, so that other load on the machine meets both.
"""

import argparse
import json
import statistics
import subprocess
import time

import torch
from transformers import AutoModelForCausalLM

N_PROMPT = 32


def reference_step_ms(model, ids: torch.Tensor, n_new: int) -> tuple[float, float]:
    """Milliseconds per token of `generate`, wall and processor time, the prompt's own pass taken off."""

    def seconds(n: int) -> tuple[float, float]:
        started, cpu_started = time.perf_counter(), time.process_time()
        out = model.generate(ids, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)
        assert out.shape[1] == ids.shape[1] + n
        return time.perf_counter() - started, time.process_time() - cpu_started

    (wall, cpu), (first_wall, first_cpu) = seconds(n_new + 1), seconds(1)
    return (wall - first_wall) / n_new * 1e3, (cpu - first_cpu) / n_new * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("binary", help="the built bench `decode`")
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.bfloat16).eval()
    ids = [(idx * 7919) % model.config.vocab_size for idx in range(args.batch * N_PROMPT)]
    ids = torch.tensor(ids).view(args.batch, N_PROMPT)
    ours, theirs = [], []
    with torch.no_grad():
        reference_step_ms(model, ids, 4)
        for _ in range(args.rounds):
            command = [args.binary, args.folder, str(args.new), str(args.batch)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            ours.append((found["step_ms"], found["step_cpu_ms"]))
            theirs.append(reference_step_ms(model, ids, args.new))
            print(f"axismapper {ours[-1][0]:.1f} ms (processor {ours[-1][1]:.1f}), "
                  f"transformers {theirs[-1][0]:.1f} ms (processor {theirs[-1][1]:.1f})", flush=True)
    for idx, name in enumerate(["wall", "processor"]):
        ratio = statistics.median(t[idx] / o[idx] for t, o in zip(theirs, ours, strict=True))
        print(f"{name} time: transformers takes {ratio:.2f} times as long")


if __name__ == "__main__":
    main()
