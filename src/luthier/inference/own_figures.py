"""What an objective that learns from judged answers says of held-out rows: its loss, how often it is right, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from luthier import component
from luthier.config import RunConfig
from luthier.config.components import default_component
from luthier.data.dataset.mismatched import Mismatched
from luthier.data.dataset.samples import SampleSet
from luthier.data.dataset.workers import limit_of
from luthier.data.steps.layout import Chosen, micro_batches
from luthier.errors import UserError
from luthier.inference.intervals import Floats, bootstrap_sum_of_ratios, wilson
from luthier.inference.judge import SCORED_TOKENS
from luthier.inference.opened import Opened
from luthier.objectives import Objective
from luthier.policy.policy import Policy, evaluating
from luthier.system.progress import Watch
from luthier.system.words import counted
from luthier.types import Example, Renderer, Sample

Figure = tuple[float, float, float]
"""value, low, high"""
Part = tuple[Floats, Floats]
LOSS, ACCURACY, MARGIN = "loss", "accuracy", "margin"
WINDOW = 256
"""Samples that are laid out at a time."""


@dataclass(frozen=True)
class OwnFigures:
    """The figures of an objective over rows, as a run reports them of what it holds out."""

    kind: str
    figures: dict[str, tuple[Figure, int]]
    """each with the number of rows that it is of: loss, accuracy and margin, and of pairs the accuracy where the better answer has more
    or fewer tokens than the worse one, where there are such"""
    missing: str = ""
    """why there are none"""

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        named = {
            name: {**dict(zip(("value", "low", "high"), value, strict=True)), "rows": rows}
            for name, (value, rows) in self.figures.items()
        }
        return {"kind": self.kind, **named, **({"missing": self.missing} if self.missing else {})}


class OwnOrPlain(Objective):
    """Makes samples of rows as a run did, and of rows that it could not have learned from as supervised tuning does."""

    def __init__(self, own: Objective) -> None:
        plain = default_component("objective")
        self.own: Any = own
        self.plain: Any = component.make("objectives", plain)
        self.terms = {"own": self.own, "plain": self.plain}
        self.takes = (*self.own.takes, *self.plain.takes)
        self.roles, self.reads_together = self.own.roles, self.own.reads_together

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        maker = self.own if isinstance(example, self.own.takes) else self.plain
        found: list[Sample] = maker.encode(example, index, renderer)
        return found


def own_objective(opened: Opened) -> Objective | None:
    """What a run learned from judged answers by; None of any other, and of one whose model gives scores."""
    if opened.config is None:
        return None
    objective: Objective = component.make("objectives", opened.config.objective)
    judged = len(objective.roles) > 1 and not objective.by_likelihood and "value" not in objective.wants
    return objective if judged else None


def own_or_plain(own: Objective) -> Objective:
    """An `OwnOrPlain`, which has no loss."""
    made: Objective = cast("Any", OwnOrPlain)(own)
    return made


def with_own_reference(opened: Opened, objective: Objective | None) -> tuple[Policy, str]:
    """The model in scoring form, with what the objective measures from; and why that is not to be had, where it is not."""
    try:
        return opened.policy(with_reference=objective is not None and "reference" in objective.wants), ""
    except UserError as error:
        return opened.policy(), f"its reference is not to be had: {error.where}: {error.found}"


def own_figures(
    opened: Opened, objective: Objective, policy: Policy, missing: str, samples: SampleSet, seed: int, watch: Watch
) -> OwnFigures | None:
    """Of the rows whose answers are judged; None where there are no such rows. Intervals are over rows.

    Args:
        policy, missing: as `with_own_reference` has them.
        samples: as the objective encodes rows.
    """
    assert opened.config is not None
    if not missing:
        try:
            return _measured(opened, opened.config, objective, policy, samples, seed, watch)
        except UserError as error:  # all answers are the same, and the objective needs others
            missing = error.found
    return OwnFigures(opened.config.objective.kind, {}, missing)


def _measured(
    opened: Opened,
    config: RunConfig,
    objective: Objective,
    policy: Policy,
    samples: SampleSet,
    seed: int,
    watch: Watch,
) -> OwnFigures | None:
    places = list(map(list, (range(*samples.span_of(example)) for example in range(samples.examples))))
    if objective.reads_together:
        places = [some for some in places if samples.roles[some].any()]
    if not places or not samples.roles.any():
        return None
    with evaluating(policy), torch.no_grad():
        if objective.mismatched:
            limit = limit_of(config.data, opened.context_tokens)
            _survey(policy, objective, Mismatched(samples, config.seed, limit), samples)
        sums, weights = _by_row(policy, objective, samples, places, watch)
    figures = {name: (_figure(name, parts, seed), len(places)) for name, parts in _parts(sums, weights).items()}
    if objective.reads_together and ACCURACY in figures:
        (part,) = _parts(sums, weights)[ACCURACY]
        longer = np.array([samples.trained[some[0]] - samples.trained[some[1]] for some in places])
        for name, chosen in (("longer", longer > 0), ("shorter", longer < 0)):
            if chosen.any():
                of_these = [(part[0][chosen], part[1][chosen])]
                figures[f"{ACCURACY}_where_the_better_is_{name}"] = (_figure(ACCURACY, of_these, seed), int(chosen.sum()))
    return OwnFigures(config.objective.kind, figures)


def _survey(policy: Policy, objective: Objective, others: SampleSet, samples: SampleSet) -> None:
    """Counts what the objective needs of the whole."""
    totals = list[float]()
    for places in others.windows(WINDOW):
        plan = others.plan(places)
        laid = micro_batches(
            Chosen(others, places), places, plan=plan, layout="padded", max_tokens=SCORED_TOKENS, step=0
        )
        for batch in laid:
            found = objective.survey(policy, batch)
            totals = [one + other for one, other in zip(totals, found, strict=True)] if totals else found
    objective.begin_step(totals, samples.plan())


def _by_row(
    policy: Policy, objective: Objective, samples: SampleSet, rows: Sequence[Sequence[int]], watch: Watch
) -> tuple[dict[tuple[str, str], Floats], dict[str, Floats]]:
    """The sums of the loss and of what is reported, by the names of their weights and their own, and the weights: [rows] each. A row is
    a pass of its own, as a loss says what it counts of a whole micro-batch alone.
    """
    sums, weights = dict[tuple[str, str], Floats](), dict[str, Floats]()
    for row, places in enumerate(rows):
        for name, weight in objective.weights(samples.plan(places)).items():
            weights.setdefault(name, np.zeros(len(rows)))[row] = weight
        taken = [samples[place] for place in places]
        (batch,) = micro_batches(taken, places, layout="padded", max_tokens=len(taken) * max(map(len, taken)), step=0)
        out = objective.loss(policy, batch)
        found = {(of, LOSS): value for of, value in out.sums.items()}
        found |= {(of, name): value for of, some in out.metrics.items() for name, value in some.items()}
        for key, value in found.items():
            sums.setdefault(key, np.zeros(len(rows)))[row] = float(value)
        watch(f"{row + 1:,} of {counted(len(rows), 'row')} judged", (row + 1) / len(rows))
    return sums, weights


def _parts(sums: dict[tuple[str, str], Floats], weights: dict[str, Floats]) -> dict[str, list[Part]]:
    """What each figure is the sum of: sums and weights, [rows] each. Not what is partly a share of something that there is none of; of
    the loss that part is 0.
    """
    found = dict[str, list[Part]]()
    for name in (LOSS, ACCURACY, MARGIN):
        parts = [(values, weights[weight]) for (weight, metric), values in sums.items() if metric == name]
        there = [part for part in parts if part[1].any()]
        if there and (name == LOSS or len(there) == len(parts)):
            found[name] = there
    return found


def _figure(name: str, parts: Sequence[Part], seed: int) -> Figure:
    value = sum(float(values.sum() / counts.sum()) for values, counts in parts)
    if name == ACCURACY:
        ((values, counts),) = parts
        return (value, *wilson(round(float(values.sum())), round(float(counts.sum()))))
    return (value, *bootstrap_sum_of_ratios(parts, seed))
