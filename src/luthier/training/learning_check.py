"""The proof, early in a run, that all that should learn does."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from luthier.errors import UserError
from luthier.policy.policy import Policy

SHOWN = 5
SLICE = 2**22
"""Numbers that are hashed at once, at 8 bytes each."""


class LearningCheck:
    """After the second step with a non-zero rate every trained tensor must have had a gradient and have changed.

    A tensor whose numbers are too large for the rate to show in float32 (early in a long warm-up) is judged by its gradient alone.

    Args:
        waiting: trained tensors that learn only once a token comes to them: they are counted where none did.
    """

    def __init__(self, policy: Policy, waiting: Collection[nn.Parameter] = ()) -> None:
        self.trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self.waiting = {id(parameter) for parameter in waiting}
        self.before = {name: hash_of(p) for name, p in self.trained.items()}
        self.had_gradient: set[str] = set()

    def after_step(self, moving_steps: int, optimizer: torch.optim.Optimizer) -> int:
        """Raises UserError after the second moving step if something does not learn; counts what waits for a token."""
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
            or (hash_of(p) == self.before[name] and rate > float(p.detach().abs().max()) * torch.finfo(p.dtype).eps)
        ]
        idle = [name for name in still if id(self.trained[name]) in self.waiting]
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


@torch.no_grad()
def hash_of(values: torch.Tensor) -> int:
    """64 bits of a tensor of 16 or 32 bits a number, which say whether any number of it changed.

    Each place has a factor of its own, an odd one that looks random, and the products of factors and bits are added up modulo 2^64. A
    change of one number always shows; changes of several cancel by a chance of 2^-64 or so, where in a plain sum +1 and -1 would.
    """
    bits = values.detach().reshape(-1).view(torch.int32 if values.element_size() == 4 else torch.int16)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), SLICE):
        part = bits[start : start + SLICE].to(torch.int64)
        factors = torch.arange(start, start + len(part), dtype=torch.int64, device=bits.device)
        for multiplier in (-0x61C8864680B583EB, -0x40A7B892E31B1A47):  # those of SplitMix64 (Steele et al., 2014)
            factors *= multiplier
            factors ^= (factors >> 29) & 0x7FFFFFFFF
        total += (part * (factors | 1)).sum()
    return int(total)
