"""Loads the program's merged folders with transformers and compares their logits with PEFT's `merge_and_unload`.

    .venv/bin/python tests/reference/merge_check.py target/debug/axismapper MODEL_DIR

MODEL_DIR is a small model with its tokenizer, such as the demo's `base/final`.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import peft
import torch
import transformers


def main() -> None:
    program, base = (pathlib.Path(argument).resolve() for argument in sys.argv[1:3])
    work = pathlib.Path(tempfile.mkdtemp(prefix="merge-check-"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    ids = torch.tensor([tokenizer("Fell off my bike, the right shin is broken, bone not through the skin.")["input_ids"]])
    for use_dora in (False, True):
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        plain = model(ids).logits.detach()
        settings = peft.LoraConfig(r=5, lora_alpha=11, use_dora=use_dora, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, settings)
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(tensor, std=0.05)
            elif "magnitude" in name:
                tensor.data.mul_(1 + 0.2 * torch.rand_like(tensor))
        adapter, out = work / f"adapter-{use_dora}", work / f"merged-{use_dora}"
        model.save_pretrained(adapter)
        expected = model.merge_and_unload()(ids).logits.detach()
        subprocess.run([program, "-q", "merge", "--model", base, "--adapter", adapter, "--out", out, "--dtype", "float32",
                        "--quant", "none", "--max-shard-size", "3MB"], check=True)
        shards = sorted(path.name for path in out.glob("*.safetensors"))
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == set(shards) and len(shards) > 1, shards
        merged = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        assert merged.generation_config.do_sample is False and merged.generation_config.repetition_penalty == 1.0
        assert transformers.AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
        found = merged(ids).logits.detach()
        difference = (found - expected).abs().max().item()
        effect = (plain - expected).abs().max().item()
        kind = "DoRA" if use_dora else "LoRA"
        print(f"{kind}: {len(shards)} files, logits off by at most {difference:.1e}; the adapter changes them by up to {effect:.1f}")
        # f32 sums in another order.
        assert difference < 1e-4 < effect
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
