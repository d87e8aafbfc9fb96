"""AdamW for bfloat16 parameters with stochastic rounding: what does not fit into 16 bits goes up or down by a draw.

Rounding to nearest loses every step that is smaller than half the spacing of bfloat16, 1/256 of a weight: most of them.
Stochastic rounding loses nothing on average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from luthier.kernels.dropout import random_bits

SLICE = 2**24
"""Numbers that are computed at once, at about 40 bytes each: of a whole embedding that would be more than its gradient and state."""


def round_stochastically(values: torch.Tensor, *key: int | str, start: int = 0) -> torch.Tensor:
    """float32 -> bfloat16: a neighbour, the nearer one more often, so that the mean is the value.

    The draw is a function of `key` and of the place in the tensor, of which `values` are those from `start`.
    """
    low = random_bits(values.shape, values.device, *key, start=start) & 0xFFFF
    raised = (values.contiguous().view(torch.int32) + low) & -0x10000
    return raised.view(torch.float32).to(torch.bfloat16)


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), computed in float32; parameters and both means are bfloat16.
    What is given in float32 stays in it, with its means.

    8 bytes a parameter with its gradient, instead of 16. Every draw is a function of (seed, step, parameter, place).
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, seed: int
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; `closure` is of torch's interface and not used."""
        del closure
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is not None:
                    self._update(parameter, group, number)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any], number: int) -> None:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state:
            zeros = [torch.zeros_like(parameter, memory_format=torch.contiguous_format) for _ in range(2)]
            state |= {"step": 0, "mean": zeros[0], "square": zeros[1]}
        state["step"] += 1
        values = parameter.reshape(-1)  # a copy where the numbers do not lie one after the other
        tensors = (values, grad.reshape(-1), state["mean"].view(-1), state["square"].view(-1))
        for start in range(0, len(values), SLICE):
            part = [tensor[start : start + SLICE] for tensor in tensors]
            self._update_slice(part, group, state["step"], number, start)
        if not parameter.is_contiguous():
            parameter.copy_(values.view_as(parameter))

    def _update_slice(
        self, part: list[torch.Tensor], group: dict[str, Any], step: int, number: int, start: int
    ) -> None:
        """Values, gradient and both means [n] of the places from `start` of parameter `number`."""
        held, given, held_mean, held_square = part
        (beta1, beta2), grad = group["betas"], given.float()
        mean = held_mean.float().lerp_(grad, 1 - beta1)
        square = held_square.float().mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        width = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        value = held.float().mul_(1 - group["lr"] * group["weight_decay"])
        value.addcdiv_(mean, width, value=-group["lr"] / (1 - beta1**step))
        for target, exact, what in ((held, value, "value"), (held_mean, mean, "mean"), (held_square, square, "square")):
            if target.dtype == torch.bfloat16:
                exact = round_stochastically(exact, self.seed, "rounding", step, number, what, start=start)
            target.copy_(exact)
