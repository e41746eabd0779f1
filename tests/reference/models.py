"""tiny/: two small random Qwen2 models and what transformers computes on them.

The shapes are chosen so that an omitted term shows: attention wider than the hidden size (explicit `head_dim`), random
biases and norm weights, rows shorter than an NF4 block, odd numbers of blocks.
"""

import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from storing import generator, save_tensors, write_json

# As a Qwen2.5 folder spells it: `rope_theta` and `torch_dtype` at the top level, f32, one file, no `lm_head`.
TINY = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 76,
    "max_position_embeddings": 256,
    "max_window_layers": 3,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 211,
}

# As transformers 5 spells it: `rope_parameters` and `dtype`; bf16 in shards, one key-value head for three query heads,
# a weight whose last NF4 block is short (72 * 90 = 101.25 blocks), two end tokens.
UNTIED = {
    **{key: value for key, value in TINY.items() if key not in ("rope_theta", "torch_dtype")},
    "dtype": "bfloat16",
    "eos_token_id": [2, 5],
    "head_dim": 24,
    "hidden_size": 72,
    "intermediate_size": 90,
    "max_window_layers": 2,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "vocab_size": 97,
}

RECORD_LENGTHS = [9, 2, 31, 14, 23, 6]


def loss_masks() -> list[list[int]]:
    """1 marks a target. A short answer, one token, two turns, plain text (its first token has no predecessor and is no
    target), a short answer after a long prompt, a single end token."""
    spans = [[(5, 9)], [(1, 2)], [(10, 16), (24, 31)], [(0, 14)], [(20, 23)], [(5, 6)]]
    return [
        [int(any(start <= idx < end for start, end in span)) for idx in range(length)]
        for length, span in zip(RECORD_LENGTHS, spans, strict=True)
    ]


def records(vocab_size: int) -> list[dict]:
    draw = generator(f"records {vocab_size}")
    ids = [torch.randint(0, vocab_size, (length,), generator=draw).tolist() for length in RECORD_LENGTHS]
    return [{"input_ids": ids, "loss_mask": mask} for ids, mask in zip(ids, loss_masks(), strict=True)]


def load(folder: pathlib.Path, **options) -> Qwen2ForCausalLM:
    """The model in f32 with plain attention (scores and softmax as written, no fused kernel), ready for inference."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"} | options
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def logits_of(model, input_ids: list[int]) -> torch.Tensor:
    """`[seq, vocab]` of one record on its own: no padding, no packing."""
    return model(input_ids=torch.tensor([input_ids]), use_cache=False).logits[0]


def token_logprobs(logits: torch.Tensor, input_ids: list[int]) -> torch.Tensor:
    """`[seq - 1]`: the log-probability of each token but the first, given those before it."""
    logprobs = logits[:-1].float().log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(input_ids[1:])[:, None])[:, 0]


def write(out: pathlib.Path) -> None:
    for name, config in [("tied", TINY), ("untied", UNTIED)]:
        folder = out / "tiny" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        _write_weights(folder, config)
        model = load(folder)
        assert model.config.rope_parameters["rope_theta"] == (config.get("rope_theta") or 20000.0)
        assert model.model.layers[0].self_attn.head_dim == config["head_dim"]
        _write_expected(out / "tiny", name, model)


def _write_weights(folder: pathlib.Path, config: dict) -> None:
    """Random weights of about unit gain, biases of about a fifth, norm weights around 1."""
    dtype = getattr(torch, config.get("dtype") or config["torch_dtype"])
    skeleton = Qwen2ForCausalLM._from_config(Qwen2ForCausalLM.config_class.from_pretrained(folder))
    weights = {}
    for name, parameter in skeleton.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator(f"{folder.name} {name}"))
        if "norm" in name:
            value = 1 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.2 * noise
        elif "embed" in name:
            value = 0.3 * noise
        else:
            value = noise / parameter.shape[1] ** 0.5
        weights[name] = value.to(dtype)
    assert ("lm_head.weight" in weights) == (not config["tie_word_embeddings"])
    if dtype == torch.float32:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return
    shards = [dict(list(weights.items())[start::2]) for start in range(2)]
    index = {"metadata": {"total_size": sum(weight.nbytes for weight in weights.values())}, "weight_map": {}}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        index["weight_map"] |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_expected(folder: pathlib.Path, name: str, model: Qwen2ForCausalLM) -> None:
    """Records in a row, as a packed batch holds them: hidden states and logits `[tokens, ...]`."""
    found = {}

    def keep(key):
        def hook(_module, _inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            found.setdefault(key, []).append(hidden[0])

        return hook

    model.model.embed_tokens.register_forward_hook(keep("hidden.embed"))
    model.model.norm.register_forward_hook(keep("hidden.norm"))
    for idx, block in enumerate(model.model.layers):
        block.register_forward_hook(keep(f"hidden.{idx}"))
    batch = records(model.config.vocab_size)
    with torch.no_grad():
        for record in batch:
            logits = logits_of(model, record["input_ids"])
            found.setdefault("logits", []).append(logits)
            found.setdefault("token_logprobs", []).append(token_logprobs(logits, record["input_ids"]))
    write_json(folder / f"{name}.records.json", {"records": batch})
    save_tensors(folder / f"{name}.expected.safetensors", {key: torch.cat(parts) for key, parts in found.items()})
