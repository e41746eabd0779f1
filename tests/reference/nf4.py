"""nf4/: weights quantized by bitsandbytes to 4-bit NF4 with double quantization, and a whole checkpoint of the tied model.

A case is stored as `CASE.source`, `.packed`, `.absmax` (u8), `.nested_absmax`, `.offset`, `.float32` and `.bfloat16` (both
dequantized); `quant_map` and `nested_quant_map` are the two codes.
"""

import json
import pathlib

import bitsandbytes.functional as bnb
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import models
from storing import generator, load_file, save_tensors


def cases() -> dict[str, torch.Tensor]:
    def noise(name, *shape):
        return torch.randn(shape, generator=generator(f"nf4 {name}"))

    # Powers of ten down the rows: within one nested block the small absmax vanish beside the large ones, as they must.
    spread = noise("spread", 12, 64) * 10 ** torch.arange(-6, 6).float()[:, None]
    spread[3] = 0
    spread[5] = 0
    spread[5, 17] = -0.75
    code = bnb.get_4bit_type("nf4", device="cpu")
    # Halfway between two neighbouring codes, and the two f32 values next to it; 1 makes the block's absmax 1.
    halfway = (code[:-1].double() + code[1:].double()).div(2).float()
    steps = torch.stack([halfway.nextafter(torch.tensor(-2.0)), halfway, halfway.nextafter(torch.tensor(2.0))])
    edges = torch.cat([torch.ones(1), steps.flatten(), torch.zeros(18), -torch.ones(1), -steps.flatten(), torch.zeros(18)])
    return {
        "bf16_many_blocks": (0.05 * noise("bf16_many_blocks", 130, 130)).bfloat16(),  # 264.06 blocks: two nested ones
        "bf16_rows_of_76": (0.1 * noise("bf16_rows_of_76", 48, 76)).bfloat16(),
        "f32_odd_count": noise("f32_odd_count", 7, 37),  # the last byte holds one nibble
        "f32_one_short_block": noise("f32_one_short_block", 3, 6),
        "f32_short_zero_block": torch.cat([noise("f32_short_zero_block", 64), torch.zeros(32)]).reshape(2, 48),
        "f32_spread": spread,
        "f32_huge": 1e37 * noise("f32_huge", 4, 32).clamp(-3, 3),
        "f32_tiny": 1e-30 * noise("f32_tiny", 4, 32),
        "f32_edges": edges.reshape(2, 64),
        "f32_zeros": torch.zeros(2, 64),
    }


def quantize(weight: torch.Tensor):
    return bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")


def dequantized(weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    packed, state = quantize(weight)
    state.dtype = dtype
    return bnb.dequantize_4bit(packed, state)


def dequantize_linears(model) -> None:
    """Replaces every projection of the blocks by what NF4 leaves of it, so that both sides start from equal weights."""
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = dequantized(module.weight.data)


def write(out: pathlib.Path) -> None:
    tensors = {}
    for name, source in cases().items():
        packed, state = quantize(source)
        tensors |= {
            f"{name}.source": source,
            f"{name}.packed": packed,
            f"{name}.absmax": state.absmax,
            f"{name}.nested_absmax": state.state2.absmax,
            f"{name}.offset": state.offset,
            f"{name}.float32": dequantized(source),
            f"{name}.bfloat16": dequantized(source, torch.bfloat16),
            "quant_map": state.code,
            "nested_quant_map": state.state2.code,
        }
    save_tensors(out / "nf4" / "cases.safetensors", tensors)
    _write_checkpoint(out / "tiny" / "tied", out / "nf4" / "quantized", torch.float32)
    _write_checkpoint(out / "tiny" / "untied", out / "nf4" / "quantized_bf16", torch.bfloat16)
    _write_checkpoint(out / "tiny" / "untied", out / "nf4" / "quantized_single", torch.bfloat16, double_quant=False)
    _write_logits(out)


def _write_checkpoint(source: pathlib.Path, folder: pathlib.Path, dtype: torch.dtype, double_quant: bool = True) -> None:
    """As transformers saves a model that it loaded with `load_in_4bit`."""
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=settings, dtype=dtype, device_map="cpu")
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    plain, stored = models.load(source, dtype=dtype), load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weight = plain.get_parameter(name).data
    packed, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=double_quant, quant_type="nf4")
    assert torch.equal(stored[name], packed) and torch.equal(stored[f"{name}.absmax"], state.absmax)


def _write_logits(out: pathlib.Path) -> None:
    """`NAME.logits`: the stored 4-bit checkpoints' answers to the untied records in a row, computed in f32. Their weights expand
    to bf16, the type they were quantized from, before they are widened."""
    found = {}
    for name in ["quantized_bf16", "quantized_single"]:
        stored = AutoModelForCausalLM.from_pretrained(out / "nf4" / name, dtype=torch.bfloat16, device_map="cpu")
        plain = models.load(out / "tiny" / "untied")
        for path, module in stored.named_modules():
            if isinstance(module, Linear4bit):
                weight = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
                assert weight.dtype == torch.bfloat16
                plain.get_submodule(path).weight.data = weight.float()
        with torch.no_grad():
            logits = [models.logits_of(plain, record["input_ids"]) for record in models.records(plain.config.vocab_size)]
        found[f"{name}.logits"] = torch.cat(logits)
    save_tensors(out / "nf4" / "logits.safetensors", found)
