"""How the work is shared between processes: one file an engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from luthier import component

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import nn

    from luthier.engines._replicas import LossScale, StepResult


class Engine(Protocol):
    """What the loop asks of an engine. In every one the gradient is the sum over processes of loss / weight of the step."""

    processes: int
    rank: int
    device: torch.device
    loss_scale: LossScale

    def __init__(self, device: torch.device) -> None: ...

    @classmethod
    def serves(cls, processes: int) -> bool:
        """Whether it is the one that `distributed: auto` takes for so many processes."""

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks."""

    def scale_losses(self, enabled: bool) -> None:
        """Whether losses are scaled against underflow, as fp16 needs it."""

    def wrap(self, policy: nn.Module) -> nn.Module:
        """The policy as it is called in training."""

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Surrounds forward and backward of one micro-batch; gradients need to be exchanged only in the last one."""

    def backward(self, loss_sum: torch.Tensor, global_weight: float) -> None:
        """Adds the gradient of this process's part of the loss, a sum, divided by the weight of the whole step."""

    def clip_and_step(self, optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> StepResult:
        """One optimizer step, unless the gradient is not finite: then nothing has changed."""

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over processes, in float64."""

    def from_main(self, value: Any) -> Any:
        """The main process's value, plain JSON, on every process; what others found is left."""

    def barrier(self) -> None:
        """Waits for all processes."""

    def close(self) -> None:
        """Leaves the process group."""


def make_engine(kind: str, device: torch.device) -> Engine:
    """The engine for the processes that were started (by torchrun, which sets WORLD_SIZE).

    Args:
        kind: `distributed` of the configuration; `auto` takes the one that serves so many processes.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    kinds = component.listing("engines") if kind == "auto" else [kind]
    engines = [component.load("engines", each) for each in kinds]
    engine: Engine = next(each for each in engines if kind != "auto" or each.serves(processes))(device)
    return engine
