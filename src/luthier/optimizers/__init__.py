"""How a step is taken: one file an optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # a configuration is read without torch
    import torch


@dataclass(frozen=True)
class TrainedParameters:
    """What an optimizer moves."""

    groups: list[dict[str, Any]]
    """torch's groups of parameters, each with its `weight_decay` and `peak_lr`"""
    edges: frozenset[int]
    """`id` of each parameter of the embeddings and the head"""
    learning_rate: float = 0.0
    """the peak; the schedule sets each group's `lr` before every step"""
    seed: int = 0
    """of draws, where it makes some"""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.groups for parameter in group["params"]]


class Optimizer(Protocol):
    """How a step is taken. One file in `optimizers/`, whose class inherits from this one: what it leaves out is as here.

    Its file imports torch, and what else takes long, inside of functions: a configuration is read without them.
    """

    in_bfloat16: bool = False
    """Whether the weights that it trains, and their gradients, are bfloat16, because it loses nothing by that; else float32."""
    state_bytes: float
    """Of its own state, a trained number."""

    def make(self, trained: TrainedParameters) -> torch.optim.Optimizer:
        """torch's optimizer. It takes equal steps from equal gradients and state: a resume must keep the bits.

        Raises:
            UserError: a key that nothing would read, as the parameters are.
        """

    def restore(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Puts the state of a checkpoint (`optimizer.state_dict()`) into an optimizer that `make` made."""
        optimizer.load_state_dict(state)

    def notes(self, device: torch.device) -> list[str]:
        """What is otherwise on this device than its name says: lines for the person who watches."""
        return []
