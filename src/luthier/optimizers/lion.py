"""Lion: steps by the sign of a mean (Chen et al., 2023, arXiv:2302.06675); wants about a tenth of AdamW's learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from luthier.component import ComponentConfig
from luthier.optimizers import Optimizer, TrainedParameters
from luthier.optimizers._bitsandbytes import library_optimizer

if TYPE_CHECKING:
    import torch

__all__ = ["Lion"]


class Lion(Optimizer):
    """Lion by bitsandbytes; it wants about a tenth of AdamW's learning rate."""

    class Config(ComponentConfig):
        kind: Literal["lion"] = "lion"

    state_bytes = 4

    def __init__(self, config: Config) -> None:
        self.config = config

    def make(self, trained: TrainedParameters) -> torch.optim.Optimizer:
        return library_optimizer("Lion", trained)
