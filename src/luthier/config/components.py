"""Which keys hold components, and of which folder."""

from __future__ import annotations

from collections.abc import Sequence

from luthier import component
from luthier.component import ComponentConfig

COMPONENTS: dict[tuple[str, ...], str] = {
    ("tuning",): "tuning",
    ("objective",): "objectives",
    ("model", "quantization"): "quantization",
    ("training", "optim"): "optimizers",
    ("distributed",): "engines",
    ("data", "train", "format"): "formats",
}
"""Keys whose value is a component, and the folder in which its kinds lie. What is said of `data.train` goes for
`data.eval` too."""

DEFAULT_KINDS = {"tuning": "lora", "objective": "sft", "optim": "adamw"}
"""What a key means that is left out."""

CAREFUL = {"warmup_steps": max}
"""Which of several defaults is the most careful, where that is not the smallest."""

AUTO = {"format": "auto", "distributed": "auto"}
"""The word that stands for no component, where there is one."""


def default_component(key: str) -> ComponentConfig:
    """What a key means that is left out, with the defaults of its kind."""
    family = next(family for path, family in COMPONENTS.items() if path[-1] == key)
    config: ComponentConfig = component.load(family, DEFAULT_KINDS[key]).Config()
    return config


def method_defaults(tuning: str, objectives: Sequence[str]) -> dict[str, float]:
    """Values of `training` keys that the user left out: the tuning method's, and over them those of the objective; of a sum's terms
    the most careful ones.
    """
    method, found = component.load("tuning", tuning), dict[str, list[float]]()
    for kind in objectives:
        learned = component.load("objectives", kind)
        own = {} if method.makes_adapter else learned.defaults_of_own_weights
        for key, value in {**learned.defaults, **own}.items():
            found.setdefault(key, []).append(value)
    return {**method.defaults, **{key: CAREFUL.get(key, min)(values) for key, values in found.items()}}
