"""What an objective reports of rows that are not learned from now: of those held out, and of the first step before it is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from luthier.data.dataset.samples import SampleSet
from luthier.data.steps.kept_reference import KeptReference
from luthier.errors import UserError
from luthier.policy.policy import evaluating
from luthier.training.job import SURVEYED, Job
from luthier.training.step import LOSS, Step, add_sums, figures_of, laid_out
from luthier.types import MicroBatch, Plan

WINDOW = 256
"""Samples a process that are laid out at a time."""
NEAR = {torch.float32: 1e-4, torch.float64: 1e-6}
"""How far a figure of the first step may be from what it must be; in 16 bits LOW."""
LOW = 0.05


def held_out_figures(job: Job) -> dict[str, float]:
    """The objective's own figures of the held-out rows, each divided by its weight of all of them; the same on every process."""
    samples, kept = job.held_out, job.reference.get("eval")
    assert samples is not None
    others, kept_of_others = job.mismatched.get("eval", samples), job.reference.get(SURVEYED.format("eval"), kept)
    return _figures(
        job, samples.plan(), lambda: _windows(job, samples, kept), lambda: _windows(job, others, kept_of_others)
    )


def check_first_step(job: Job, step: Step) -> None:
    """Whether the first step's figures are what they must be while the policy is still the reference.

    Raises:
        UserError: they are not; nothing was updated.
    """
    expected = job.objective.first_step()
    teaching, teacher = job.objective.teaching, job.policy.teacher
    if teaching is not None and teacher is not None and teacher.is_beginning:
        expected = expected | {teaching.figure: 0.0}
    if not expected:
        return
    found = _figures(job, step.plan, lambda: iter(step.batches), lambda: iter(step.surveyed or step.batches))
    near = NEAR.get(job.policy.compute_dtype, LOW)
    for name, value in expected.items():
        if name in found and not math.isclose(found[name], value, rel_tol=near, abs_tol=near):
            taught = teaching is not None and name == teaching.figure
            raise UserError(
                "the first step",
                f"{name} is {found[name]:.6g} before anything was learned, and must be {value:.6g}; nothing was updated",
                f"a policy that is what the {'teacher' if taught else 'reference'} is",
                "start the run anew where its cache or files were changed by hand; "
                f"else remove LUTHIER_CACHE/{'teacher' if taught else 'reference'}",
            )


def _figures(
    job: Job, plan: Plan, batches: Callable[[], Iterator[MicroBatch]], surveyed: Callable[[], Iterator[MicroBatch]]
) -> dict[str, float]:
    """In evaluation mode and without gradient; what the objective needs of the whole is counted first, in what is `surveyed`."""
    weights = job.objective.weights(plan)
    sums, totals = dict.fromkeys(((name, LOSS) for name in weights), 0.0), list[float]()
    with evaluating(job.wrapped), torch.no_grad():
        for batch in surveyed():
            counted = job.objective.survey(job.wrapped, batch)
            if not counted:
                break
            totals = [one + other for one, other in zip(totals, counted, strict=True)] if totals else counted
        if totals:
            job.objective.begin_step(job.engine.sum(totals), plan)
        for batch in batches():
            add_sums(sums, job.objective.loss(job.wrapped, batch))
    shared = job.engine.sum(list(sums.values()))
    return figures_of(dict(zip(sums, shared, strict=True)), weights)


def _windows(job: Job, samples: SampleSet, kept: KeptReference | None) -> Iterator[MicroBatch]:
    """The micro-batches of this process, over all samples; no example is parted."""
    for places in samples.windows(WINDOW * job.engine.processes):
        yield from laid_out(job, samples, places, 0, kept)
