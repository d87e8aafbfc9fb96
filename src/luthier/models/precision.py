"""In which types of numbers a model is held, trained and computed."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from torch import nn

BFLOAT16_GAIN = 1.3
"""How much faster a CPU must be in bfloat16 for `auto` to take it: clear of the noise of the measurement."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_BENCH_SHAPE = (256, 576, 1536)
"""tokens, inputs, outputs of the matrix product that decides: a projection of a small model"""


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def choose_dtype(name: str, device: torch.device | str) -> tuple[torch.dtype, str]:
    """The type that frozen weights are held in and that is computed in, and why.

    Args:
        name: `auto`, `float32`, `bfloat16` or `float16`.
        device: where the model will run.
    """
    device = torch.device(device)
    if name != "auto":
        return DTYPES[name], "as asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, f"{torch.cuda.get_device_name(device)} computes in bfloat16"
        return torch.float16, f"{torch.cuda.get_device_name(device)} has no bfloat16"
    if device.type == "cpu":
        ratio = _cpu_speed(torch.float32) / _cpu_speed(torch.bfloat16)
        if ratio >= BFLOAT16_GAIN:
            return torch.bfloat16, f"this CPU multiplies bfloat16 {ratio:.1f} times as fast as float32 (measured)"
        return torch.float32, f"this CPU multiplies bfloat16 {ratio:.1f} times as fast as float32 (measured)"
    return torch.float32, f"nothing is known of half precision on {device.type}"


@cache
def _cpu_speed(dtype: torch.dtype) -> float:
    """Seconds of one matrix product, the best of a few: an emulated type is 5 times slower or more, so noise cannot
    decide. Measured once a process, which then decides the same every time."""
    tokens, inputs, outputs = _BENCH_SHAPE
    left, right = torch.ones(tokens, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(4):
            start = time.perf_counter()
            torch.nn.functional.linear(left, right)
            best = min(best, time.perf_counter() - start)
    return best


def leave_casts_to_autocast(model: nn.Module) -> None:
    """For a model of peft that is called under autocast only: its layers do not widen their inputs to float32, which autocast
    narrows again for the product. The numbers are the same; each layer would keep a narrow copy of its own for the backward pass."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "cast_input_dtype_enabled")]
    for layer in layers:
        layer.cast_input_dtype_enabled = False


def hold_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Matrices that are not trained are held in `dtype`; vectors (norms, biases) stay float32, which a norm of float32
    inputs needs."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype if parameter.ndim >= 2 else torch.float32)
