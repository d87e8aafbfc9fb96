"""What is minimised: one file an objective."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from luthier.types import Example, LossOut, MicroBatch, Policy, Renderer, Sample


class Objective(Protocol):
    """What is minimised. One file in `objectives/`, whose class inherits from this one: what it leaves out is as here."""

    takes: tuple[type, ...]
    """The types of example that it can learn from."""
    defaults: Mapping[str, float] = MappingProxyType({"num_train_epochs": 3.0, "warmup_steps": 0.03})
    """Of keys of `training` that are left out; where the tuning method has one too, this is taken."""
    wants: tuple[str, ...] = ()
    """What its loss asks of the policy beside log-probabilities. `reference` makes the run keep what it began with."""
    only_as_term: float | None = None
    """Of one that says nothing of the answers: its usual weight. It is refused outside a sum with one that does."""
    is_sum: bool = False
    """Whether it adds up other objectives: those in the `terms` of its Config."""

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        """The samples of an example, at least one; `index` is its place among the examples, which each of them carries.

        They stay in one optimizer step. Those of one `Sample.group` are read together by the loss: they lie beside each other
        in one micro-batch, in this order, and none of them is cut or dropped alone. Others may lie apart.
        """
        ...

    def weight(self, samples: list[Sample]) -> float:
        """What the sums of a step are divided by; `samples` are those of the whole step, example after example."""
        ...

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        """The loss of a micro-batch, as a sum. `batch.examples` says which example each document is of."""
        ...

    def survey(self, policy: Policy, batch: MicroBatch) -> list[float]:
        """For a loss that needs totals of the whole step: counts in a micro-batch, without gradient, before the step's losses."""
        return []

    def begin_step(self, totals: list[float], samples: list[Sample]) -> None:
        """Gets the sums of what was counted, over micro-batches and processes; not called where nothing was."""

    @classmethod
    def of_model(cls, model_config: Any) -> tuple[str, dict[str, Any]] | None:
        """The term of this kind that a model adds in its own training, as its config.json says: the key there, and the term with
        its `weight`. None where it adds none."""
        return None

    def parts(self) -> Mapping[str, Term]:
        """Losses whose shares of the gradient are to be logged."""
        return {}


class Term(Protocol):
    """A part of an objective's loss."""

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut: ...
