"""What some objectives ask for before a step: totals of the whole step, and each term's share of the gradient."""

from __future__ import annotations

import math

import torch

from luthier.training.job import Job
from luthier.training.step import Step, forward_of


def survey(job: Job, step: Step) -> None:
    """Lets an objective whose loss needs totals of the whole step count them first (see `Objective.survey`)."""
    totals: list[float] = []
    for position in range(len(step.surveyed or step.batches)):
        with torch.no_grad(), forward_of(job, step, position, surveyed=True) as batch:
            found = job.objective.survey(job.wrapped, batch)
        totals = [one + other for one, other in zip(totals, found, strict=True)] if totals else found
    if totals:
        job.objective.begin_step(job.engine.sum(totals), step.plan)


def gradient_shares(job: Job, step: Step) -> dict[str, float]:
    """Of an objective that is a sum of terms: the norm of each term's gradient, divided by the sum of these norms.

    Costs a forward and a backward pass a term. Nothing is changed by it.
    """
    norms = dict[str, float]()
    for name, part in job.objective.parts().items():
        job.engine.clear_gradients(job.optimizer)
        for position in range(len(step.batches)):
            with forward_of(job, step, position) as batch:
                job.engine.backward(part.loss(job.wrapped, batch).sums, step.weights)
        norms[name] = float(job.engine.gradient_norm(job.policy.parameters()))
    whole = sum(norms.values())
    if not 0 < whole < math.inf:  # an overflow in float16 is met by the step itself
        return {}
    return {f"grad_share_{name}": norm / whole for name, norm in norms.items()}
