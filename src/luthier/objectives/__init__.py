"""What is minimised: one file an objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from luthier.types import Example, LossOut, MicroBatch, Policy, Renderer, Sample


class Objective(Protocol):
    """What is minimised. One file in `objectives/`, whose class inherits from this one: what it leaves out is as here."""

    takes: tuple[type, ...]
    """The types of example that it can learn from."""
    needs_reference: bool = False
    """Whether its loss looks at the policy of step 0."""
    wants: tuple[str, ...] = ()
    """What its loss asks of the policy beside log-probabilities."""
    only_as_term: float | None = None
    """Of one that says nothing of the answers: its usual weight. It is refused outside a sum (`weighted`) with one that does."""

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]: ...

    def weight(self, samples: list[Sample]) -> float: ...

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut: ...

    def survey(self, policy: Policy, batch: MicroBatch) -> list[float]:
        """For a loss that needs totals of the whole step: counts in a micro-batch, without gradient, before the step's losses."""
        return []

    def begin_step(self, totals: list[float], samples: list[Sample]) -> None:
        """Gets the sums of what was counted, over micro-batches and processes; not called where nothing was."""

    def parts(self) -> Mapping[str, Term]:
        """Losses whose shares of the gradient are to be logged."""
        return {}


class Term(Protocol):
    """A part of an objective's loss."""

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut: ...
