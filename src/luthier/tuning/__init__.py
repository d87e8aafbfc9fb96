"""What is trained: one file a method."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from luthier.kernels.dropout import DropoutKeys


@dataclass(frozen=True)
class Start:
    """What a tuning method may ask for when it begins. A run's own one (`runs/beginning.py`) knows its rows and files as well."""

    keys: DropoutKeys
    """of the dropout that is put in"""
    new_rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """ids of new tokens by the name of the embeddings (and of a head of its own): these rows must be trained"""
    restored: bool = False
    """whether a run goes on, which puts in all that is trained and what the run began with: values may be anything"""

    def rows(self, count: int) -> list[torch.Tensor]:
        """The first `count` rows that are trained on, fewer where there are fewer: ids [T]."""
        del count
        return []

    def load(self, model: Any, path: str) -> Any:
        """The model with the adapter of RUN or ADAPTER on it, trainable, after all checks."""
        raise LookupError(f"this model has no run that could read {path}")

    def stored(self, name: str) -> torch.Tensor:
        """A weight of the model by its name, as the model's files hold it.

        Raises:
            UserError: they do not hold it under this name.
        """
        raise LookupError(f"this model has no files that could hold {name}")

    def say(self, text: str) -> None:
        """A line for the person who waits."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """A model as a tuning method trains it."""

    model: Any
    trained: str
    """a line that says what is trained"""
    off_is_start: Literal["to the bit", "to rounding", "no"] = "no"
    """whether the model with its adapter switched off is the model as it begins"""
    rates: Mapping[str, float] = field(default_factory=dict)
    """parts of the names of parameters, and how many times the learning rate they learn at"""
    adapter_path: str | None = None
    """the adapter that it goes on from"""
    waiting: Collection[nn.Parameter] = ()
    """of what is trained, those that learn only once a token comes to them, as experts and the rows of new tokens do"""


class Tuning(Protocol):
    """What is trained. One file in `tuning/`."""

    makes_adapter: bool
    """Whether PEFT's files are saved, or the whole model."""
    defaults: Mapping[str, float]
    """Of keys of `training` that are left out: `learning_rate` and `weight_decay`. An objective may say otherwise."""

    def apply(self, model: Any, start: Start) -> Tuned: ...
