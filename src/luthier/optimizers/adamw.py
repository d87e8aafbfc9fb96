"""AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from luthier.optimizers import Optimizer, TrainedParameters
from luthier.optimizers._adamw import AdamWConfig, adamw

if TYPE_CHECKING:
    import torch

__all__ = ["AdamW"]


class AdamW(Optimizer):
    """AdamW by torch, its two means in float32."""

    class Config(AdamWConfig):
        kind: Literal["adamw"] = "adamw"

    state_bytes = 8

    def __init__(self, config: Config) -> None:
        self.config = config

    def make(self, trained: TrainedParameters) -> torch.optim.Optimizer:
        return adamw(trained.groups, trained.learning_rate, self.config)
