"""What is minimised: one file an objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol

from luthier import component
from luthier.types import Example, LossOut, MicroBatch, Pieces, Plan, Policy, Renderer, Sample

TEACHER = "objective.teacher"
"""The key that names a teacher, in messages."""


@dataclass(frozen=True)
class Teaching:
    """Another model whose distributions a loss is measured against, and how."""

    teacher: str
    """as `model.path` names a model, or a run, one of its checkpoints, or an adapter"""
    dtype: str
    """of its weights; `auto`: what the run computes in"""
    quantization: str | None
    """the kind, with its defaults, in which its weights are held; None: as its files say"""
    divergence: Literal["forward", "reverse", "jsd"]
    beta: float
    """of jsd: the teacher's share of the mixture, between 0 and 1"""
    temperature: float
    """what the logits of both are divided by"""
    top_k: int | None
    """of how many of the teacher's likeliest tokens, the others being one; None: of all tokens"""
    figure: str
    """under which name the objective reports the divergence"""


class Objective(Protocol):
    """What is minimised. One file in `objectives/`, whose class inherits from this one: what it leaves out is as here."""

    takes: tuple[type, ...]
    """The types of example that it can learn from."""
    defaults: Mapping[str, float] = MappingProxyType({"num_train_epochs": 3.0, "warmup_steps": 0.03})
    """Of keys of `training` that are left out; where the tuning method has one too, this is taken."""
    defaults_of_own_weights: Mapping[str, float] = MappingProxyType({})
    """The same where a tuning method trains the model's own weights and no adapter."""
    wants: tuple[str, ...] = ()
    """What its loss asks of the policy beside log-probabilities. `reference` makes the run keep what it began with;
    `value` gives the model a head that scores documents in the place of the one of words."""
    keeps_reference: bool = False
    """Whether the reference's log-probabilities are computed once over the data, and not in every step."""
    encoded_by: tuple[str, ...] | None = None
    """The keys of its Config that decide what it makes of a row; None: all may. Rows that are encoded are found again after others
    have changed."""
    pieces: Pieces | None = None
    """How rows of text become what is learned from; None: each row is learned as it is encoded."""
    mismatched: bool = False
    """Whether `survey` gets each prompt with the answer to another one, and not what is learned from."""
    teaching: Teaching | None = None
    """The teacher that `divergence` is asked of."""
    roles: tuple[str, ...] = ("",)
    """What a sample of it may be in its group, as people call it; the first are the answers to be given."""
    reads_together: bool = True
    """Whether its loss reads the samples of a group together: then none of them is cut or left out alone where they are too long."""
    usual: bool = False
    """Whether it is the one that is taken for the examples it learns from, where the default objective cannot learn from them."""
    by_likelihood: bool = True
    """Whether held-out rows are measured by the negative log-likelihood of what is trained; else by its own loss."""
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

    def notes(self, plan: Plan) -> list[str]:
        """What is said of all that is learned from, before anything begins. Raises UserError: nothing can be learned from it."""
        return []

    def weights(self, plan: Plan) -> dict[str, float]:
        """What the sums of the loss are divided by, each under its name; `plan` is of the whole step, example after example. Of
        what a step has none of, nothing is reported."""
        ...

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        """The loss of a micro-batch, as sums; the same names in every micro-batch, also in an empty one, of which no document is
        a sample. `batch.examples` says which example each document is of.
        """
        ...

    def first_step(self) -> dict[str, float]:
        """What its figures are at the first step whatever the data are, as the policy is still what the run began with: by the names
        that it reports. Where they are not, the run stops before it changes anything.
        """
        return {}

    def survey(self, policy: Policy, batch: MicroBatch) -> list[float]:
        """For a loss that needs totals of the whole step: counts in a micro-batch, without gradient, before the step's losses; see
        `mismatched`."""
        return []

    def begin_step(self, totals: list[float], plan: Plan) -> None:
        """Gets the sums of what was counted, over micro-batches and processes; not called where nothing was."""

    @classmethod
    def of_model(cls, model_config: Any) -> tuple[str, dict[str, Any]] | None:
        """The term of this kind that a model adds in its own training, as its config.json says: the key there, and the term with
        its `weight`. None where it adds none."""
        return None

    def parts(self) -> Mapping[str, Term]:
        """Losses whose shares of the gradient are to be logged."""
        return {}


def learning_from(example: type[Example]) -> list[str]:
    """The kinds that learn from a type of example by themselves."""
    classes = {kind: component.load("objectives", kind) for kind in component.listing("objectives")}
    alone = {kind: cls for kind, cls in classes.items() if not cls.is_sum and cls.only_as_term is None}
    return [kind for kind, cls in alone.items() if issubclass(example, cls.takes)]


class Term(Protocol):
    """A part of an objective's loss."""

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut: ...
