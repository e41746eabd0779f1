"""train/: a plain PyTorch loop of AdamW steps over PEFT adapters, and over every weight of the tied model.

A step's loss is the sum over the targets of all its micro-batches / their number. Learning rates come from transformers'
schedulers, the parameters that decay from the rule of its Trainer.
"""

import pathlib
import types

import torch
from transformers import Trainer, get_scheduler

import adapters
import models
from storing import read_json, save_tensors, write_json

N_STEPS = 10
ADAMW = {"betas": (0.9, 0.999), "eps": 1e-8}
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0


def plan(n_steps: int) -> list[list[list[int]]]:
    """Two micro-batches of two records for each step: 0 1 | 2 3, 4 5 | 0 1, and so on."""
    order = [idx % len(models.RECORD_LENGTHS) for idx in range(4 * n_steps)]
    return [[order[at : at + 2], order[at + 2 : at + 4]] for at in range(0, len(order), 4)]


def train(model, batch: list[dict], steps: list, schedule: str, learning_rate: float, n_warmup_steps: int) -> list[dict]:
    """Runs the steps in place; a line per step with the gradient norm before clipping."""
    decaying = Trainer.get_decay_parameter_names(types.SimpleNamespace(), model)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if name in decaying], "weight_decay": WEIGHT_DECAY},
        {"params": [p for name, p in named if name not in decaying], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, **ADAMW)
    scheduler = get_scheduler(schedule, optimizer, n_warmup_steps, len(steps))
    lines = []
    for micro_batches in steps:
        counts = [sum(sum(batch[idx]["loss_mask"][1:]) for idx in indices) for indices in micro_batches]
        total = 0.0
        for indices in micro_batches:
            loss = sum(adapters.nll_sum(model, batch[idx])[0] for idx in indices) / sum(counts)
            loss.backward()
            total += loss.item()
        grad_norm = torch.nn.utils.clip_grad_norm_([parameter for _, parameter in named], MAX_GRAD_NORM).item()
        lines.append(
            {
                "micro_batches": micro_batches,
                "n_targets": sum(counts),
                "loss": total,
                "grad_norm": grad_norm,
                "learning_rate": scheduler.get_last_lr()[0],
            }
        )
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return lines


def write(out: pathlib.Path) -> None:
    batch = read_json(out / "tiny" / "tied.records.json")["records"]
    folder = out / "train"
    for name in ["lora", "dora"]:
        settings = {"schedule": "cosine", "learning_rate": 0.01, "n_warmup_steps": 3}
        model = adapters.load(out, name)
        lines = train(model, batch, plan(N_STEPS), **settings)
        adapters.save(model, folder / name)
        other = adapters.load(out, name, _with_fused_attention(out))
        train(other, batch, plan(N_STEPS), **settings)
        _write_log(folder / f"{name}.json", settings, lines, adapters.trainable(model), adapters.trainable(other))
    _write_full(out, batch)
    write_json(folder / "schedules.json", _schedules())


def _write_full(out: pathlib.Path, batch: list[dict]) -> None:
    """Every weight trains, from the original f32 weights; the embedding also gets the head's gradient."""
    settings = {"schedule": "linear", "learning_rate": 0.002, "n_warmup_steps": 0}
    start = out / "tiny" / "tied"
    model = models.load(start)
    loss, _ = adapters.batch_loss(model, [batch[idx] for idx in (0, 1, 2, 3)])
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    save_tensors(out / "train" / "full" / "gradients.safetensors", gradients)
    model.zero_grad()
    lines = train(model, batch, plan(3), **settings)
    other = models.load(start, attn_implementation="sdpa")
    train(other, batch, plan(3), **settings)
    final = dict(model.named_parameters())
    save_tensors(out / "train" / "full" / "final.safetensors", final)
    _write_log(out / "train" / "full.json", settings, lines, final, dict(other.named_parameters()))


def _with_fused_attention(out: pathlib.Path):
    weights = adapters.base_model(out).state_dict()
    model = models.load(out / "tiny" / "tied", attn_implementation="sdpa")
    model.load_state_dict(weights)
    return model


def _write_log(path: pathlib.Path, settings: dict, lines: list[dict], final: dict, other: dict) -> None:
    """`rounding` is how far the final values move when attention is computed by another kernel: no tolerance of a
    comparison can be below it, because Adam turns the rounding of a small gradient into a step of full length."""
    rounding = max((final[key] - other[key]).abs().max().item() for key in final)
    settings = settings | {"weight_decay": WEIGHT_DECAY, "max_grad_norm": MAX_GRAD_NORM, "rounding": rounding}
    write_json(path, settings | {"steps": lines})


def _schedules() -> dict:
    """Learning rates of 20 optimizer steps of which 3 warm up, for a peak of 1, and without warm-up."""
    found = {}
    for name in ["cosine", "linear", "constant", "inverse_sqrt"]:
        for n_warmup_steps in [3, 0]:
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            scheduler = get_scheduler(name, optimizer, n_warmup_steps, 20)
            rates = []
            for _ in range(20):
                rates.append(scheduler.get_last_lr()[0])
                optimizer.step()
                scheduler.step()
            found[f"{name}.{n_warmup_steps}"] = rates
    return found
