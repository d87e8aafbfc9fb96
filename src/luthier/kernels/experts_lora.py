"""LoRA on experts that are slices of one tensor: its factors are handed to the function that computes the experts.

peft puts W + s A B in the place of such a tensor W for the time of a forward pass, in the type of W. The files, merging and switching
off stay peft's own; only the pass is another (see kernels/experts.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper

from luthier.errors import UserError
from luthier.kernels.experts import UPDATES, Update, takes_updates, use_experts


class Handed(ParamWrapper):  # type: ignore[misc]
    """peft's wrapper of one tensor of experts, whose update is computed beside the tensor."""

    @contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        updates = self.get_base_layer().__dict__.setdefault(UPDATES, {})
        updates[self.parameter_name] = [self._update(name) for name in active_adapters if name in self.lora_A]
        try:
            yield
        finally:
            del updates[self.parameter_name]

    def _update(self, adapter: str) -> Update:
        """peft holds A as [E * R, in] and B as [out, R * E]."""
        rank, experts = self.r[adapter], self.num_experts
        a, b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        return Update(
            a.reshape(experts, rank, -1).transpose(1, 2),
            b.reshape(-1, rank, experts).permute(2, 1, 0).contiguous(),
            self.scaling[adapter],
        )


def compute_apart(adapted: Any) -> None:
    """From here on the updates of experts are computed beside the experts, where the model's code lets them be."""
    use_experts(adapted.get_base_model())
    for wrapper in _wrappers(adapted):
        if takes_updates(wrapper.get_base_layer(), wrapper.parameter_name):
            wrapper.__class__ = Handed


def refuse_lost_updates(adapted: Any) -> None:
    """Raises UserError where updates of experts would be added to weights of 16 bits."""
    for wrapper in _wrappers(adapted):
        held = wrapper.get_param().dtype
        if not isinstance(wrapper, Handed) and held != torch.float32:
            raise UserError(
                "tuning.experts",
                f"this model computes {type(wrapper.get_base_layer()).__name__} by code of its own: an update would be added to weights in "
                f"{str(held).removeprefix('torch.')}, and mostly be lost in their rounding",
                "a mixture whose experts transformers computes by a function, or weights in float32",
                "model.dtype=float32, or tuning.experts=false",
            )


def _wrappers(adapted: Any) -> list[Any]:
    return [module for module in adapted.modules() if isinstance(module, ParamWrapper)]
