"""adapters/: LoRA, DoRA and rank-stabilised LoRA by PEFT, over the tied model with NF4 weights (dequantized to f32).

B is random and DoRA's magnitudes are moved off their start, so that every term of the formulas shows. A gradient carries the
name of its tensor in `adapter_model.safetensors`.
"""

import json
import pathlib

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

import models
import nf4
from storing import generator, read_json, save_tensors, write_json

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CONFIGS = {
    "lora": LoraConfig(r=4, lora_alpha=6, target_modules=ALL_LINEAR, task_type="CAUSAL_LM"),
    "dora": LoraConfig(r=4, lora_alpha=8, target_modules=ALL_LINEAR, use_dora=True, task_type="CAUSAL_LM"),
    # A module name, a dotted tail and regular expressions, several of which match: the first decides. PEFT saves the keys
    # sorted and so reads them in that order. Some modules are left out.
    "rslora": LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "o_proj", "up_proj", "down_proj"],
        use_rslora=True,
        rank_pattern={"down_proj": 3, "layers.1.self_attn.q_proj": 7, r"model\.layers\.[02]\.mlp\..*_proj": 5},
        alpha_pattern={"layers.2.mlp.up_proj": 9, r"layers\.2\..*": 3, "o_proj": 10},
        task_type="CAUSAL_LM",
    ),
}


def base_model(out: pathlib.Path):
    """The tied model with every projection replaced by its NF4 image."""
    model = models.load(out / "tiny" / "tied")
    nf4.dequantize_linears(model)
    return model


def load(out: pathlib.Path, name: str, base=None) -> PeftModel:
    """A stored adapter over the NF4 image of the tied model, or over `base`; dropout off, adapters trainable."""
    base = base_model(out) if base is None else base
    return PeftModel.from_pretrained(base, out / "adapters" / name, is_trainable=True).eval()


def file_key(parameter_name: str) -> str:
    """The name that PEFT gives a parameter in `adapter_model.safetensors`."""
    name = parameter_name.replace(".default", "")
    return name.removesuffix(".weight") if "lora_magnitude_vector" in name else name


def trainable(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    return {file_key(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    return {key: parameter.grad for key, parameter in trainable(model).items()}


def save(model: PeftModel, folder: pathlib.Path) -> None:
    """As PEFT saves it, less the model card, and with the sets in `adapter_config.json` in order."""
    model.peft_config["default"].base_model_name_or_path = "tiny/tied"
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"].sort()
    write_json(folder / "adapter_config.json", config)


def nll_sum(model, record: dict) -> tuple[torch.Tensor, int]:
    """The summed negative log-probability of a record's targets, and how many they are."""
    logprobs = models.token_logprobs(models.logits_of(model, record["input_ids"]), record["input_ids"])
    mask = torch.tensor(record["loss_mask"][1:], dtype=torch.bool)
    return -logprobs[mask].sum(), int(mask.sum())


def batch_loss(model, batch: list[dict]) -> tuple[torch.Tensor, int]:
    """Sum over targets / number of targets of the whole batch."""
    sums, counts = zip(*(nll_sum(model, record) for record in batch), strict=True)
    return sum(sums) / sum(counts), sum(counts)


def write(out: pathlib.Path) -> None:
    for name, config in CONFIGS.items():
        _write_adapter(out, name, config)
        _write_expected(out, name)


def _write_adapter(out: pathlib.Path, name: str, config: LoraConfig) -> None:
    model = get_peft_model(base_model(out), config)
    for key, parameter in trainable(model).items():
        noise = torch.randn(parameter.shape, generator=generator(f"adapter {name} {key}"))
        if "lora_A" in key:
            parameter.data = noise / parameter.shape[1] ** 0.5
        elif "lora_B" in key:
            parameter.data = 0.15 * noise
        else:
            parameter.data *= 1 + 0.1 * noise
    save(model, out / "adapters" / name)


def _bfloat16_errors(out: pathlib.Path, name: str, batch: list[dict], logprobs: torch.Tensor, exact: dict) -> dict:
    """How far the same computation is off in bf16 with f32 adapters under autocast, as transformers trains: the root mean
    square error of the log-probabilities, and the gradients' error over their norm, all tensors as one vector."""
    base = models.load(out / "tiny" / "tied", dtype=torch.bfloat16)
    base.load_state_dict(base_model(out).state_dict())
    model = load(out, name, base)
    assert all(parameter.dtype == torch.float32 for parameter in trainable(model).values())
    with torch.autocast("cpu", torch.bfloat16):
        rows = [(models.logits_of(model, record["input_ids"]), record) for record in batch]
        found = [models.token_logprobs(logits, record["input_ids"]) for logits, record in rows]
        masks = [torch.tensor(record["loss_mask"][1:], dtype=torch.bool) for record in batch]
        loss = -sum(row[mask].sum() for row, mask in zip(found, masks, strict=True)) / sum(mask.sum() for mask in masks)
    loss.backward()
    errors = [gradient - exact[key] for key, gradient in gradients(model).items()]
    norm = torch.cat([gradient.flatten() for gradient in exact.values()]).norm()
    return {
        "token_logprobs": (torch.cat(found) - logprobs).square().mean().sqrt().item(),
        "gradients": (torch.cat([error.flatten() for error in errors]).norm() / norm).item(),
    }


def _write_expected(out: pathlib.Path, name: str) -> None:
    batch = read_json(out / "tiny" / "tied.records.json")["records"]
    folder = out / "adapters" / name
    model = load(out, name)
    loss, n_targets = batch_loss(model, batch)
    loss.backward()
    with torch.no_grad():
        logits = [models.logits_of(model, record["input_ids"]) for record in batch]
    ids = [record["input_ids"] for record in batch]
    expected = {
        "logits.0": logits[0],
        "logits.4": logits[4],
        "token_logprobs": torch.cat([models.token_logprobs(*pair) for pair in zip(logits, ids, strict=True)]),
    }
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    scalings = {name.removeprefix("base_model.model."): layer.scaling["default"] for name, layer in layers.items()}
    found = {"loss": loss.item(), "n_targets": n_targets, "scalings": scalings}
    found["bfloat16"] = _bfloat16_errors(out, name, batch, expected["token_logprobs"], gradients(model))
    write_json(folder / "expected.json", found)
    save_tensors(folder / "gradients.safetensors", gradients(model))
    for base_name, base in [("nf4", None), ("original", models.load(out / "tiny" / "tied"))]:
        merged = load(out, name, base).merge_and_unload()
        with torch.no_grad():
            parts = [models.token_logprobs(models.logits_of(merged, row), row) for row in ids]
        expected[f"merged.{base_name}.token_logprobs"] = torch.cat(parts)
        block = merged.model.layers[2].named_parameters(prefix="model.layers.2")
        expected |= {f"merged.{base_name}.{key}": value for key, value in block if key.endswith("proj.weight")}
    save_tensors(folder / "expected.safetensors", expected)
