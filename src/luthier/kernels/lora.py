"""The layers of peft's LoRA: found, tied, and counted from where they began.

A layer whose adapter begins elsewhere than at zero computes W x + s (B A - B0 A0) x, with A0 and B0 as A and B were at step 0
(tuning/_starts.py says why). So the adapter switched off is the policy at step 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from peft.utils import ModulesToSaveWrapper
from torch import nn

ADAPTER = "default"

START_A, START_B = "start_A", "start_B"
"""Buffers of a layer: A0 [R, in] and B0 [out, R], as A and B were at step 0. peft's file does not hold them."""


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
