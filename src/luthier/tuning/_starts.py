"""How an adapter begins, where that is not peft's zero: from the model's own weights, or from what quantization lost.

PiSSA (Meng et al., 2024, arXiv:2404.02948) and OLoRA (Büyükakyüz, 2024, arXiv:2406.01775) begin at the main parts of a
weight W and train W - s B0 A0 + s B A. peft writes W - s B0 A0 into the base. Here the base keeps its bits: the layer
computes W x + s (B A - B0 A0) x, the same function, which is W x exactly where B A = B0 A0. So the adapter switched off is
the policy at step 0, and the saved adapter, of rank 2 r, belongs to the untouched base.

These decompositions are not equal to the bit on two machines. A run keeps what it began with; one that goes on
(`Start.restored`) decomposes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from peft.utils import ModulesToSaveWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from luthier.errors import UserError
from luthier.tuning import Start

ADAPTER = "default"

START_A, START_B = "start_A", "start_B"
"""Buffers of a layer: A0 [R, in] and B0 [out, R], as A and B were at step 0. peft's file does not hold them."""

ANOTHER_WEIGHT = 0.5
"""A weight in 4 bits differs from the one that it was made of by a tenth of its norm; by this share, it was made of another."""


class FromStart(LoraVariant):  # type: ignore[misc]
    """W x + s (B A - B0 A0) drop(x)."""

    def forward(
        self, module: Any, *, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        a, b, linear = module.lora_A[active_adapter], module.lora_B[active_adapter], nn.functional.linear
        x = module.lora_dropout[active_adapter](x)
        moved: torch.Tensor = b(a(x)) - linear(linear(x, module.start_A), module.start_B)
        scaling: float = module.scaling[active_adapter]
        return result + moved * scaling


def starts_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A0 and B0 of all layers, by their names in `model`; none where no layer counts from its start."""
    return {name: held for name, held in model.named_buffers() if name.rpartition(".")[2] in (START_A, START_B)}


def lora_layers(adapted: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names in the base model, and the layers of peft."""
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix("base_model.model."), module


def tie_edges(adapted: Any) -> None:
    """Copies of embeddings and head that are trained share their weight where the base's do; peft sees to it under some
    names only."""
    core = adapted.get_base_model()
    given, head = core.get_input_embeddings(), core.get_output_embeddings()
    if all(isinstance(edge, ModulesToSaveWrapper) for edge in (given, head)) and (
        head.original_module.weight is given.original_module.weight
    ):
        head.modules_to_save[ADAPTER].weight = given.modules_to_save[ADAPTER].weight


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
