"""How the work is shared between processes: one file an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from luthier import component
from luthier.component import ComponentConfig
from luthier.system.launch import launch

if TYPE_CHECKING:  # a configuration is read without torch
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager

    import torch
    from torch import nn


@dataclass(frozen=True)
class StepResult:
    """What became of a step."""

    applied: bool
    grad_norm: float
    """global norm of the gradient before clipping"""
    overflowed: bool = False
    """not applied, because a gradient was too large for float16: the same step is worth another try, at the scale that is left"""


class Engine(Protocol):
    """What the loop asks of an engine. In every one the gradient is the sum over processes of loss / weight of the step.

    Its file imports torch inside of functions: a configuration is read without it.
    """

    processes: int
    rank: int
    device: torch.device
    scaler: torch.amp.GradScaler
    """of losses in float16; it does nothing in other types"""

    def __init__(self, config: ComponentConfig, device: torch.device) -> None: ...

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

    def clear_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the backward passes of a step."""

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Surrounds forward and backward of one micro-batch; gradients need to be exchanged only in the last one."""

    def backward(self, sums: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> None:
        """Adds the gradient of this process's part of the loss: sums, each divided by its weight of the whole step."""

    def gradient_norm(self, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
        """Global norm of the gradients as they are, in float32; a scalar."""

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


def make_engine(distributed: str | ComponentConfig, device: torch.device) -> Engine:
    """The engine for the processes that were started (by torchrun, which sets WORLD_SIZE).

    Args:
        distributed: as in the configuration; `auto` takes the one that serves so many processes.
    """
    if not isinstance(distributed, ComponentConfig):
        processes = launch().processes
        kinds = [component.load("engines", kind) for kind in component.listing("engines")]
        chosen: ComponentConfig = next(kind for kind in kinds if kind.serves(processes)).Config()
        distributed = chosen
    engine: Engine = component.load("engines", distributed.kind)(distributed, device)
    return engine
