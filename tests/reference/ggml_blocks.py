"""What llama.cpp's own row quantizers make of given rows: `gguf/blocks.safetensors`.

The functions are those that `llama-quantize` calls without an importance matrix, taken from the library inside the wheel
of llama-cpp-python.
"""

import ctypes
import pathlib

import torch

from storing import generator, save_tensors

# Name in the library, bytes of a block, values of a block.
FORMATS = {
    "q5_0": (b"quantize_row_q5_0_ref", 22, 32),
    "q5_1": (b"quantize_row_q5_1_ref", 24, 32),
    "q8_0": (b"quantize_row_q8_0_ref", 34, 32),
    "q4_k": (b"quantize_row_q4_K_ref", 144, 256),
    "q5_k": (b"quantize_row_q5_K_ref", 176, 256),
    "q6_k": (b"quantize_row_q6_K_ref", 210, 256),
}


def rows() -> torch.Tensor:
    """Rows of 256: as weights are, with outliers, one-sided, constant, mostly nothing, tiny, huge."""

    def normal(name: str, scale: float) -> torch.Tensor:
        return torch.randn(256, generator=generator(f"gguf.{name}")) * scale

    outliers = normal("outliers", 0.02)
    outliers[::37] *= 40
    sparse = normal("sparse", 0.05)
    sparse[torch.rand(256, generator=generator("gguf.holes")) < 0.8] = 0
    half_empty = normal("half", 0.1)
    half_empty[:64] = 0
    half_empty[80:96] = 1e-20
    return torch.stack([
        normal("weights", 0.02),
        normal("more", 0.7),
        outliers,
        normal("positive", 1).abs() + 0.5,
        -normal("negative", 1).abs() - 3,
        torch.full((256,), 0.25),
        sparse,
        half_empty,
        normal("tiny", 1e-7),
        normal("huge", 900),
        torch.linspace(-1, 1, 256),
    ])


def write(out: pathlib.Path) -> None:
    import llama_cpp

    library = ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    values = rows()
    tensors = {"values": values}
    for name, (function, block_bytes, block_values) in FORMATS.items():
        packed = torch.empty(values.numel() // block_values * block_bytes, dtype=torch.uint8)
        library[function.decode()](
            ctypes.c_void_p(values.data_ptr()), ctypes.c_void_p(packed.data_ptr()), ctypes.c_int64(values.numel())
        )
        tensors[name] = packed
    save_tensors(out / "gguf" / "blocks.safetensors", tensors)
