"""Adafactor: one mean a row and column (Shazeer and Stern, 2018, arXiv:1804.04235)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from luthier.component import ComponentConfig
from luthier.optimizers import Optimizer, TrainedParameters

if TYPE_CHECKING:
    import torch

__all__ = ["Adafactor"]


class Adafactor(Optimizer):
    """Adafactor by transformers, with one mean a row and column, at the learning rate of the schedule."""

    class Config(ComponentConfig):
        kind: Literal["adafactor"] = "adafactor"

    state_bytes = 0

    def __init__(self, config: Config) -> None:
        self.config = config

    def make(self, trained: TrainedParameters) -> torch.optim.Optimizer:
        from transformers.optimization import Adafactor

        fixed = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
        return Adafactor(trained.groups, lr=trained.learning_rate, **fixed)  # type: ignore[no-any-return]
