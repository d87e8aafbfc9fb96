"""What engines share whose every process holds the whole model: the one division, the scale of a loss, clipping and the step.

The loss that is differentiated is sum * processes / global weight, because such engines average gradients over processes.
"""

from __future__ import annotations

import contextlib
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

MAX_SCALE, GROWTH_STEPS = 2.0**24, 2000


@dataclass(frozen=True)
class StepResult:
    applied: bool
    grad_norm: float
    """global norm of the gradient before clipping"""


class LossScale:
    """Keeps fp16 gradients above its smallest number: doubles after many good steps, halves on an overflow, whose step is repeated."""

    def __init__(self, enabled: bool) -> None:
        self.scale = 2.0**15 if enabled else 1.0
        self.enabled = enabled
        self.good_steps = 0

    def overflowed(self) -> bool:
        """Halves the scale; False below 1, where a non-finite gradient is no overflow."""
        if not self.enabled or self.scale < 2.0:
            return False
        self.scale, self.good_steps = self.scale / 2, 0
        return True

    def stepped(self) -> None:
        self.good_steps += 1
        if self.enabled and self.good_steps % GROWTH_STEPS == 0:
            self.scale = min(self.scale * 2, MAX_SCALE)


class Replica:
    """An engine of one process, as it is where nothing has to be exchanged."""

    processes = 1
    rank = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.loss_scale = LossScale(False)

    def scale_losses(self, enabled: bool) -> None:
        """Whether losses are scaled against underflow, as fp16 needs it."""
        self.loss_scale = LossScale(enabled)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wrap(self, policy: nn.Module) -> nn.Module:
        return policy

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Surrounds forward and backward of one micro-batch; gradients need to be exchanged only in the last one."""
        del last
        return contextlib.nullcontext()

    def backward(self, loss_sum: torch.Tensor, global_weight: float) -> None:
        scaled = loss_sum * (self.loss_scale.scale * self.processes / global_weight)
        torch.autograd.backward(scaled)

    def clip_and_step(self, optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> StepResult:
        """One optimizer step, unless the gradient is not finite: then nothing has changed."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.loss_scale.scale != 1.0:
            torch._foreach_mul_([p.grad for p in parameters], 1.0 / self.loss_scale.scale)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not torch.isfinite(norm):
            return StepResult(False, float(norm))
        if max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
        optimizer.step()
        self.loss_scale.stepped()
        return StepResult(True, float(norm))

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over processes, in float64."""
        return values

    def from_main(self, value: Any) -> Any:
        """The main process's value, plain JSON, on every process; what others found is left."""
        return json.loads(json.dumps(value))

    def barrier(self) -> None:
        """Waits for all processes."""

    def close(self) -> None:
        """Leaves the process group."""
