"""optim/: bitsandbytes' AdamW8bit on the CPU over a tensor that is long enough for 8 bits and one that is not.

The long one does not fill its last block, and its gradients span many magnitudes, zeros among them.
"""

import pathlib

import bitsandbytes
import torch

from storing import generator, save_tensors, write_json

SETTINGS = {"lr": 0.01, "weight_decay": 0.02}
SHAPES = {"long": (37, 113), "short": (11, 9)}
N_STEPS = 5


def write(out: pathlib.Path) -> None:
    draw = generator("optim")
    parameters = {name: torch.nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in SHAPES.items()}
    optimizer = bitsandbytes.optim.AdamW8bit(list(parameters.values()), **SETTINGS)
    tensors = {f"start.{name}": parameter.detach().clone() for name, parameter in parameters.items()}
    for step in range(1, N_STEPS + 1):
        for name, parameter in parameters.items():
            spread = torch.exp(2.5 * torch.randn(parameter.shape, generator=draw))
            kept = torch.rand(parameter.shape, generator=draw) > 0.1
            parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=draw) * spread * kept
            tensors[f"gradient.{step}.{name}"] = parameter.grad.clone()
        optimizer.step()
        tensors |= {f"after.{step}.{name}": parameter.detach().clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        keys = {"state1": "exp_avg", "state2": "exp_avg_sq", "absmax1": "exp_avg_absmax", "absmax2": "exp_avg_sq_absmax"}
        tensors |= {f"{ours}.{name}": state[theirs].clone() for theirs, ours in keys.items() if theirs in state}
    save_tensors(out / "optim" / "adamw_8bit.safetensors", tensors)
    write_json(out / "optim" / "adamw_8bit.json", SETTINGS | {"n_steps": N_STEPS})
