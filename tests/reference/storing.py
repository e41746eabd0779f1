"""How a fixture is stored: whole tensors as safetensors, figures as JSON, both readable in a diff where they can be."""

import json
import pathlib
import zlib

import torch
from safetensors.torch import load_file, save_file

__all__ = ["generator", "load_file", "read_json", "save_tensors", "write_json"]


def generator(name: str) -> torch.Generator:
    """A generator of its own for each named draw, so that adding one changes no other."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def save_tensors(path: pathlib.Path, tensors: dict[str, torch.Tensor]) -> None:
    """Tensors by name, detached and contiguous."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)


def write_json(path: pathlib.Path, value: dict) -> None:
    """One line per entry of the outer levels; lists of numbers stay on a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_layout(value, 0) + "\n")


def read_json(path: pathlib.Path) -> dict:
    return json.loads(path.read_text())


def _layout(value, depth: int) -> str:
    flat = json.dumps(value)
    if not isinstance(value, (dict, list)) or not value or len(flat) + 2 * depth <= 110:
        return flat
    if isinstance(value, list) and not isinstance(value[0], (dict, list)):
        return flat
    pad, end = "  " * (depth + 1), "  " * depth
    if isinstance(value, list):
        return "[\n" + ",\n".join(pad + _layout(item, depth + 1) for item in value) + f"\n{end}]"
    lines = (f"{pad}{json.dumps(key)}: {_layout(item, depth + 1)}" for key, item in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{end}}}"
