"""AdamW with weights, gradients and means in bfloat16, rounded stochastically (Gupta et al., 2015, arXiv:1502.02551)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from luthier.optimizers import Optimizer, TrainedParameters
from luthier.optimizers._adamw import AdamWConfig, numbers

if TYPE_CHECKING:
    import torch

__all__ = ["AdamWBF16"]


class AdamWBF16(Optimizer):
    """AdamW with weights, gradients and both means in bfloat16, rounded stochastically: 8 bytes a number instead of 16."""

    class Config(AdamWConfig):
        kind: Literal["adamw_bf16"] = "adamw_bf16"

    in_bfloat16 = True
    state_bytes = 4

    def __init__(self, config: Config) -> None:
        self.config = config

    def make(self, trained: TrainedParameters) -> torch.optim.Optimizer:
        from luthier.optimizers._stochastic_adamw import StochasticAdamW

        return StochasticAdamW(trained.groups, trained.learning_rate, seed=trained.seed, **numbers(self.config))
