"""All weights are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.component import ComponentConfig
from luthier.tuning import Start, Tuned

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Full"]


class Full:
    """Every parameter is trained, held in float32."""

    class Config(ComponentConfig):
        kind: Literal["full"] = "full"

    makes_adapter = False
    defaults: ClassVar = {"learning_rate": 2e-5, "weight_decay": 0.01}

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, model: nn.Module, start: Start) -> Tuned:
        """The model with its parameters trainable."""
        from luthier.tuning._anatomy import trained_experts

        model.float()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        count = sum(parameter.numel() for parameter in model.parameters())
        return Tuned(model, f"all {count:,} parameters are trained", waiting=trained_experts(model))
