"""Some of a model's own weights are trained, the rest stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from luthier.component import ComponentConfig
from luthier.config.bounds import Layers, Name
from luthier.errors import UserError, excerpt
from luthier.tuning import Start, Tuned
from luthier.tuning._patterns import matched

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Freeze"]

LAST_LAYERS = 2
"""Where nothing is said."""


class Freeze:
    """The weights of some layers, or of some names, are trained in float32; the others are held in `model.dtype`, and
    written as they were stored."""

    class Config(ComponentConfig):
        kind: Literal["freeze"] = "freeze"
        last_layers: Layers | None = None
        """How many of the last layers are trained. Default: 2, where neither of the other two keys is given."""
        first_layers: Layers | None = None
        """How many of the first layers are trained."""
        patterns: tuple[Name, ...] = ()
        """Regular expressions over whole names of weights, for example `.*\\.mlp\\..*`; what one matches is trained too."""

    makes_adapter = False
    defaults: ClassVar = {"learning_rate": 2e-5, "weight_decay": 0.01}

    def __init__(self, config: Config) -> None:
        self.config = config

    def apply(self, model: nn.Module, start: Start) -> Tuned:
        """The model with some parameters trainable.

        Raises:
            UserError: there are not so many layers, a pattern is none or matches nothing.
        """
        from luthier.tuning._anatomy import score_of, trained_experts

        config, parameters = self.config, dict(model.named_parameters())
        last = config.last_layers
        if last is None and config.first_layers is None and not config.patterns:
            last = LAST_LAYERS
        chosen, said = {f"{name}.weight" for name in score_of(model)}, ["the head of scores" for _ in score_of(model)]
        for key, count in (("last_layers", last), ("first_layers", config.first_layers)):
            if count is not None:
                chosen |= self._of_layers(model, key, count)
                said.append(f"{key.removesuffix('_layers')} {count} layers")
        for pattern in config.patterns:
            found = self._of_pattern(pattern, parameters)
            chosen |= found
            said.append(f"{len(found)} weights of {pattern}")
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in chosen)
            if name in chosen:
                parameter.data = parameter.data.float()
        trained = sum(parameters[name].numel() for name in chosen)
        total = sum(parameter.numel() for parameter in parameters.values())
        share = f"{trained:,} of {total:,} parameters are trained ({100 * trained / total:.2f} %)"
        return Tuned(model, f"{', '.join(said)}: {share}", waiting=trained_experts(model))

    def _of_layers(self, model: Any, key: str, count: int) -> set[str]:
        from luthier.tuning._anatomy import layers_of

        path, layers = layers_of(model)
        if count > len(layers):
            raise UserError(
                f"tuning.{key}",
                f"{count} layers; the model has {len(layers)}",
                f"1 to {len(layers)}",
                f"tuning.{key}={min(LAST_LAYERS, len(layers))}, or tuning=full",
            )
        numbers = range(len(layers) - count, len(layers)) if key == "last_layers" else range(count)
        return {f"{path}.{number}.{name}" for number in numbers for name, _ in layers[number].named_parameters()}

    def _of_pattern(self, pattern: str, parameters: dict[str, nn.Parameter]) -> set[str]:
        found = matched(pattern, parameters, "tuning.patterns")
        if not found:
            raise UserError(
                "tuning.patterns",
                f"{excerpt(pattern)} matches no weight of this model",
                "an expression over whole names, such as " + ", ".join(list(parameters)[:3]),
                "tuning.patterns=['.*\\.mlp\\..*']",
            )
        return found
