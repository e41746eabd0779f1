"""Writes tests/fixtures/: what transformers, PEFT, bitsandbytes and TRL compute on small random models.

    python -m venv .venv && .venv/bin/pip install -r tests/reference/requirements.txt
    .venv/bin/python tests/reference/golden.py

Deterministic: one thread, no GPU, no network, every draw from a generator seeded by its name. On one machine the same
files come out byte for byte; between machines the last bits of f32 sums may differ, which the tests' tolerances cover.
tests/fixtures/README.md says what each file holds.
"""

import argparse
import os
import pathlib
import shutil
import warnings

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false")

import datasets
import torch
import transformers

import adapters
import generation
import ggml_blocks
import models
import nf4
import optimizers
import preference
import training

SUBJECTS = {
    "tiny": models.write,
    "nf4": nf4.write,
    "adapters": adapters.write,
    "train": training.write,
    "optim": optimizers.write,
    "orpo": preference.write,
    "generate": generation.write,
    "gguf": ggml_blocks.write,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "fixtures")
    parser.add_argument("--only", choices=SUBJECTS, help="one subject; those before it must be there")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore")
    for subject in [args.only] if args.only else SUBJECTS:
        folder = args.out / subject
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        SUBJECTS[subject](args.out)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{subject}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
