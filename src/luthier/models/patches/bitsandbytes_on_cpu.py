"""bitsandbytes on a CPU computes otherwise while nothing is trained; here it computes the same in training and in scoring.

- Four bits: in the first forward pass without gradients it packs the weights anew where the CPU has bfloat16 arithmetic, for a
  product that has no gradient and is computed in bfloat16, whatever is asked for.
- Eight bits: it rounds activations to 8 bits too, as on a card, but not in training.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


def alike_in_training_and_scoring(model: nn.Module) -> None:
    """Weights of four bits stay as they were packed, and activations before weights of eight bits are not rounded."""
    for module in model.modules():
        layer: Any = module
        if type(module).__name__ == "Linear4bit":
            layer.support_avx512bf16_for_cpu = False
        elif type(module).__name__ == "Linear8bitLt" and layer.weight.device.type == "cpu":
            layer.state.__class__ = _always_as_in_training()


@cache
def _always_as_in_training() -> type[Any]:
    from bitsandbytes.autograd._functions import MatmulLtState

    class AlwaysAsInTraining(MatmulLtState):
        """The state of a layer, which asks it how to multiply."""

        is_training = property(lambda _self: True, lambda _self, _value: None)

    return AlwaysAsInTraining
