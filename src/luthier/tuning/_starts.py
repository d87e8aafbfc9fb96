"""How an adapter begins, where that is not peft's zero: from the model's own weights, or from what quantization lost.

PiSSA (Meng et al., 2024, arXiv:2404.02948) and OLoRA (Büyükakyüz, 2024, arXiv:2406.01775) begin at the main parts of a
weight W and train W - s B0 A0 + s B A. peft writes W - s B0 A0 into the base. Here the base keeps its bits: the layer
computes W x + s (B A - B0 A0) x, the same function, which is W x exactly where B A = B0 A0. So the adapter switched off is
the policy at step 0, and the saved adapter, of rank 2 r, belongs to the untouched base.

These decompositions are not equal to the bit on two machines. A run keeps what it began with; one that goes on
(`Start.restored`) decomposes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from luthier.errors import UserError
from luthier.kernels.lora import ADAPTER, START_A, START_B, FromStart, lora_layers
from luthier.tuning import Start

ANOTHER_WEIGHT = 0.5
"""A weight in 4 bits differs from the one that it was made of by a tenth of its norm; by this share, it was made of another."""


def holds_copies_in_other_bits(adapted: nn.Module) -> bool:
    """Whether a module that is trained whole is held in another type than the base's own, and so computes otherwise."""
    return any(
        copy.dtype != own.dtype
        for module in adapted.modules()
        if isinstance(module, ModulesToSaveWrapper)
        for copy, own in zip(
            module.modules_to_save[ADAPTER].parameters(), module.original_module.parameters(), strict=True
        )
    )


def begin_at_main_parts(adapted: nn.Module, how: str, start: Start) -> None:
    """`pissa`, `pissa_niter_N` or `olora`, and the base as it was.

    Raises:
        UserError: a layer is quantized, or holds its weight transposed where `how` cannot take it.
    """
    for name, layer in lora_layers(adapted):
        if not start.restored:
            _take_main_parts(name, layer, how)
        for buffer, part in ((START_A, layer.lora_A), (START_B, layer.lora_B)):
            layer.register_buffer(buffer, part[ADAPTER].weight.detach().clone(), persistent=False)
        layer.lora_variant[ADAPTER] = FromStart()


def _take_main_parts(name: str, layer: Any, how: str) -> None:
    base = layer.get_base_layer()
    if base.weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UserError(
            "tuning.init_lora_weights",
            f"{how} of {name}, which is quantized",
            "weights in 16 or 32 bits",
            "init_lora_weights=loftq (of nf4), or leave model.quantization out",
        )
    if how == "olora" and layer.fan_in_fan_out:
        raise UserError(
            "tuning.init_lora_weights",
            f"olora of {name}, which holds its weight transposed",
            "another beginning",
            "init_lora_weights=pissa",
        )
    kept = base.weight.data.clone()
    if how == "olora":
        layer.olora_init(ADAPTER)
    else:
        layer.pissa_init(ADAPTER, how)
    base.weight.data = kept
    for part in (layer.lora_A, layer.lora_B):
        part[ADAPTER].weight.data = part[ADAPTER].weight.data.float().contiguous()


def begin_at_what_was_lost(adapted: Any, start: Start) -> None:
    """LoftQ (Li et al., 2023, arXiv:2310.08659), one step: s B A is the best product for W - dequantized W.

    Raises:
        UserError: the base is not held in 4 bits, or its files do not hold the weights that it was made of.
    """
    adapted.peft_config[ADAPTER].init_lora_weights = "loftq"  # luthier.json says it, and merging heeds it
    for name, layer in lora_layers(adapted):
        if start.restored:
            continue
        lost = _lost(name, layer.get_base_layer(), start)
        left, values, right = torch.linalg.svd(lost, full_matrices=False)
        r = layer.r[ADAPTER]
        roots = (values[:r] / layer.scaling[ADAPTER]).sqrt()
        layer.lora_A[ADAPTER].weight.data = (roots[:, None] * right[:r]).contiguous()
        layer.lora_B[ADAPTER].weight.data = (left[:, :r] * roots).contiguous()


def _lost(name: str, base: Any, start: Start) -> torch.Tensor:
    """W - dequantized W of a layer, [out, in], in float32."""
    if type(base).__name__ != "Linear4bit":
        raise UserError(
            "tuning.init_lora_weights",
            f"loftq of {name}, which is not held in 4 bits",
            "a base in nf4 or fp4",
            "model.quantization=nf4, or init_lora_weights=true",
        )
    held = dequantize_module_weight(base).float()
    stored = start.stored(f"{name}.weight").to(held)
    if stored.shape != held.shape or (stored - held).norm() > ANOTHER_WEIGHT * stored.norm():
        raise UserError(
            "tuning.init_lora_weights",
            f"loftq of {name}, whose weight in the model's files is another one than the model has",
            "files that hold the model's weights as they are",
            "init_lora_weights=true",
        )
    lost: torch.Tensor = stored - held
    return lost
