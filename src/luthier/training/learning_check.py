"""The proof, early in a run, that all that should learn does."""

from __future__ import annotations

import torch
from torch import nn

from luthier.errors import UserError
from luthier.policy.policy import Policy

SHOWN = 5


class LearningCheck:
    """After the second step with a non-zero rate every trained tensor must have had a gradient and have changed.

    A tensor whose numbers are too large for the rate to show in float32 (early in a long warm-up) is judged by its gradient alone.
    """

    def __init__(self, policy: Policy) -> None:
        self.trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self.before = {name: _bits(p) for name, p in self.trained.items()}
        self.had_gradient: set[str] = set()

    def after_step(self, moving_steps: int, optimizer: torch.optim.Optimizer) -> int:
        """Raises UserError after the second moving step if something does not learn; counts experts that got no token."""
        if moving_steps > 2:
            return 0
        self.had_gradient |= {name for name, p in self.trained.items() if p.grad is not None and bool(p.grad.any())}
        if moving_steps < 2:
            return 0
        rate = max(group["lr"] for group in optimizer.param_groups)
        still = [
            name
            for name, p in self.trained.items()
            if name not in self.had_gradient
            or (_bits(p) == self.before[name] and rate > float(p.detach().abs().max()) * torch.finfo(p.dtype).eps)
        ]
        idle = [name for name in still if ".experts." in name or "trainable_tokens_delta" in name]
        still = [name for name in still if name not in idle]
        if still:
            raise UserError(
                "training",
                f"{len(still)} of {len(self.trained)} trained tensors got no gradient or did not change in two steps: "
                + ", ".join(still[:SHOWN]),
                "every trained tensor learns",
                "name only layers that the model uses in tuning.target_modules",
            )
        return len(idle)


def _bits(parameter: nn.Parameter) -> int:
    return int(
        parameter.detach()
        .contiguous()
        .view(torch.int32 if parameter.element_size() == 4 else torch.int16)
        .sum(dtype=torch.int64)
    )
