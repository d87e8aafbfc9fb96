"""AdamW for bfloat16 parameters: what does not fit into 16 bits is rounded up or down by chance, so nothing is lost on average.

Rounding to nearest loses every step that is smaller than half the spacing of bfloat16, 1/256 of a weight: most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from luthier.kernels.dropout import random_bits


def round_stochastically(values: torch.Tensor, *key: int | str) -> torch.Tensor:
    """float32 -> bfloat16: a neighbour, the nearer one more often, so that the mean is the value.

    The draw is a function of `key` and of the place in the tensor.
    """
    low = random_bits(values.shape, values.device, *key) & 0xFFFF
    raised = (values.contiguous().view(torch.int32) + low) & -0x10000
    return raised.view(torch.float32).to(torch.bfloat16)


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), computed in float32; parameters and both means are bfloat16.

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
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["step"] += 1
        step, (beta1, beta2), grad = state["step"], group["betas"], grad.float()
        mean = state["mean"].float().lerp_(grad, 1 - beta1)
        square = state["square"].float().mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        width = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        value = parameter.float().mul_(1 - group["lr"] * group["weight_decay"])
        value.addcdiv_(mean, width, value=-group["lr"] / (1 - beta1**step))
        for target, exact, what in (
            (parameter, value, "value"),
            (state["mean"], mean, "mean"),
            (state["square"], square, "square"),
        ):
            target.copy_(round_stochastically(exact, self.seed, "rounding", step, number, what))
