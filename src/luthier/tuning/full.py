"""All weights are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from luthier.component import ComponentConfig

if TYPE_CHECKING:
    from torch import nn

    from luthier.dropout import DropoutKeys

__all__ = ["Full"]


class Full:
    """Every parameter is trained, held in float32."""

    class Config(ComponentConfig):
        kind: Literal["full"] = "full"

    makes_adapter = False

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, model: nn.Module, keys: DropoutKeys) -> tuple[nn.Module, str]:
        """The model with its parameters trainable, and a line that says what is trained."""
        model.float()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        count = sum(parameter.numel() for parameter in model.parameters())
        return model, f"all {count:,} parameters are trained, in float32"
