"""What the optimizers of bitsandbytes have in common."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from luthier.optimizers import Optimizer, TrainedParameters
from luthier.optimizers._adamw import AdamWConfig, numbers

if TYPE_CHECKING:
    import torch


class LibraryAdamW(Optimizer):
    """An AdamW of bitsandbytes."""

    library_name: str
    """of its class"""

    def __init__(self, config: AdamWConfig) -> None:
        self.config = config

    def make(self, trained: TrainedParameters) -> torch.optim.Optimizer:
        return library_optimizer(self.library_name, trained, **numbers(self.config))


class Paged(LibraryAdamW):
    """One whose means are moved to the CPU's memory where the card is full."""

    def restore(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """What was paged is paged again, where the library's own loading puts it on the card."""
        import torch

        paging: Any = optimizer
        paging.load_state_dict(state, move_to_device=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `notes` has said where nothing is paged
            for parameter, held in paging.state.items():
                for name, value in held.items():
                    if name in ("state1", "state2"):
                        held[name] = paging.get_state_buffer(parameter, dtype=value.dtype).copy_(value)
                    elif isinstance(value, torch.Tensor):
                        held[name] = value.to(parameter.device)

    def notes(self, device: torch.device) -> list[str]:
        if device.type == "cuda":
            return []
        where = f"nothing is paged on {device.type}, where its state is ordinary memory; the numbers are the same"
        return [f"{self.config.kind}: {where}"]


def library_optimizer(name: str, trained: TrainedParameters, **keys: Any) -> torch.optim.Optimizer:
    """The class `name` of bitsandbytes, made."""
    import bitsandbytes

    library: Any = bitsandbytes.optim
    made: torch.optim.Optimizer = getattr(library, name)(trained.groups, lr=trained.learning_rate, **keys)
    return made
