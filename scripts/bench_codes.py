#!/usr/bin/env python3
"""The code set against simple_icd_10_cm, in one run on one machine, in turns.

    pip install simple-icd-10-cm
    cargo build --release
    python3 scripts/bench_codes.py

Timings inside one process are in `cargo bench --bench codes`.
"""

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time

PEER_LOOK_UPS = """
import random, sys, time
import simple_icd_10_cm as cm
codes = [code for code in cm.get_all_codes(True) if cm.is_leaf(code)]
random.Random(7).shuffle(codes)
asked = codes[:20000]
start = time.perf_counter()
found = sum(cm.is_valid_item(code) for code in asked)
print((time.perf_counter() - start) / len(asked) * 1e9, found == len(asked))
"""


def seconds(command, **options):
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/axismapper")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--codes", type=int, default=1_000_000, help="codes in the file that is checked")
    args = parser.parse_args()
    if not os.path.exists(args.binary):
        sys.exit(f"{args.binary} is not there: cargo build --release")
    ours = [args.binary, "codes", "check", "I10"]
    peer = [sys.executable, "-c", "import simple_icd_10_cm as cm; assert cm.is_valid_item('I10')"]
    bare = [sys.executable, "-c", "pass"]
    times = {"axismapper codes check I10": [], "simple_icd_10_cm, the same": [], "python alone": []}
    for _ in range(args.rounds):
        for name, command in zip(times, (ours, peer, bare)):
            times[name].append(seconds(command))
    print(f"one code, process start included ({args.rounds} rounds, in turns)")
    for name, values in times.items():
        print(f"  {name:<32} {statistics.median(values) * 1e3:9.1f} ms   (best {min(values) * 1e3:.1f})")
    out = subprocess.run([sys.executable, "-c", PEER_LOOK_UPS], check=True, capture_output=True, text=True).stdout.split()
    print(f"simple_icd_10_cm, look-up of a code: {float(out[0]):.0f} ns (all found: {out[1]})")

    with tempfile.TemporaryDirectory() as folder:
        listed = os.path.join(folder, "codes.json")
        subprocess.run([args.binary, "codes", "build", "--tabular", "assets/icd10cm/fy2026-april.table", "--out", listed],
                       check=True, stdout=subprocess.DEVNULL)
        import json
        with open(listed) as file:
            codes = sorted(json.load(file))
        draw = random.Random(7)
        file_of = os.path.join(folder, "codes.txt")
        with open(file_of, "w") as file:
            for _ in range(args.codes):
                file.write(draw.choice(codes) + "\n")
        command = f"{args.binary} codes check --json --input {file_of} > {folder}/out.jsonl; true"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        subprocess.run(["bash", "-c", command], check=True, stderr=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        with open(f"{folder}/out.jsonl") as file:
            n_lines = sum(1 for _ in file)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"check of {n_lines:,} sets from a file: {wall:.2f} s, {cpu:.2f} s of processor time")
    for n_codes in (1_000, args.codes):
        peak = peak_of(args.binary, codes, n_codes)
        print(f"peak memory with {n_codes:,} sets: {peak / 1024:.0f} MB")


def peak_of(binary, codes, n_codes):
    """The peak memory of one check, in a child whose only child it is."""
    program = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], stdin=sys.stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    text = "\n".join(codes[idx % len(codes)] for idx in range(n_codes))
    command = [sys.executable, "-c", program, binary, "codes", "check", "--json", "--input", "-"]
    out = subprocess.run(command, input=text, check=True, capture_output=True, text=True)
    return int(out.stdout)


if __name__ == "__main__":
    main()
