"""One optimizer step: what is planned for it, the forward and backward passes, one exchange between processes, one update.

Losses are sums; the one division is by the weight of the whole global batch, known from the plan before the first forward pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from luthier.data.dataset.samples import SampleSet
from luthier.data.steps.kept_reference import KeptReference
from luthier.data.steps.layout import Chosen, micro_batches
from luthier.errors import NonFinite
from luthier.kernels.dropout import seed_generators
from luthier.randomness import key
from luthier.training.job import SURVEYED, Job
from luthier.training.stop_signal import StopSignal
from luthier.types import LossOut, MicroBatch, Plan

ROWS_SHOWN = 5
LOSS = "loss"
"""Under which the loss stands among what is reported."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step works on, known before its first forward pass."""

    number: int
    """from 0"""
    examples: Sequence[int]
    """of the global batch, by their places in the data set"""
    plan: Plan
    """of the samples of these examples"""
    weights: Mapping[str, float]
    """what each sum of the loss is divided by"""
    batches: Sequence[MicroBatch]
    """of this process"""
    surveyed: Sequence[MicroBatch] = ()
    """of this process: what totals are counted in before, where that is something else"""


@dataclass(frozen=True)
class StepDone:
    """What one optimizer step found out, the same on every process."""

    figures: dict[str, float]
    """the loss and what the objective reports, each divided by its weight of the global batch"""
    grad_norm: float
    row_losses: list[float] | None
    """each example's part of the loss, that of all its samples, in the order of the step's examples; None where the objective
    does not say"""
    stopping: bool
    """whether a process was told to stop before the exchange"""


def plan_step(job: Job, number: int) -> Step:
    """Step `number` of the run."""
    examples = job.steps.indices(number)
    indices = job.samples.members_of(examples)
    plan = job.samples.plan(indices)
    batches = laid_out(job, job.samples, indices, number, job.reference.get("train"))
    surveyed = list[MicroBatch]()
    if (others := job.mismatched.get("train")) is not None:
        surveyed = laid_out(job, others, indices, number, job.reference.get(SURVEYED.format("train")))
    return Step(number, examples, plan, job.objective.weights(plan), batches, surveyed)


def laid_out(
    job: Job, samples: SampleSet, indices: Sequence[int], step: int, kept: KeptReference | None
) -> list[MicroBatch]:
    """This process's micro-batches of some samples, with what is kept of the reference."""
    batches = micro_batches(
        Chosen(samples, indices),
        indices,
        plan=samples.plan(indices),
        layout=job.layout,
        max_tokens=job.max_tokens,
        step=step,
        processes=job.engine.processes,
        rank=job.engine.rank,
    )
    if kept is not None:
        for batch in batches:
            kept.put_into(batch)
    return batches


@contextmanager
def forward_of(job: Job, step: Step, position: int, surveyed: bool = False) -> Iterator[MicroBatch]:
    """Gives the micro-batch at `position`, and surrounds its forward and backward pass.

    Args:
        surveyed: of those that totals are counted in, without gradient.
    """
    batches = step.surveyed if surveyed and step.surveyed else step.batches
    # A model's own dropout draws from the default generator: keyed here, so that it does not depend on what ran before.
    seed_generators(key(job.seed, "internal", step.number, position, job.engine.rank) % 2**63, job.engine.device)
    with job.engine.accumulating(last=position == len(batches) - 1):
        yield batches[position]


def optimizer_step(job: Job, step: Step, stop: StopSignal | None = None) -> StepDone:
    """Gradients of the whole global batch, then one step.

    An fp16 overflow repeats the step at half the loss scale. Raises NonFinite otherwise; nothing has changed then.

    Args:
        stop: its flag travels with the step's one exchange.
    """
    engine = job.engine
    while True:
        engine.clear_gradients(job.optimizer)
        sums = dict.fromkeys(((name, LOSS) for name in step.weights), 0.0)
        bad_rows: list[str] = []
        losses: dict[int, float] | None = dict.fromkeys(step.examples, 0.0)
        for position in range(len(step.batches)):
            with forward_of(job, step, position) as batch:
                out = job.objective.loss(job.wrapped, batch)
                engine.backward(out.sums, step.weights)
            add_sums(sums, out)
            if not all(math.isfinite(float(part.detach())) for part in out.sums.values()):
                bad_rows += map(job.samples.place, batch.examples)
            losses = _add_documents(losses, batch, out)
        # One exchange for all: each process adds what it has of a row, most of them nothing.
        flags = [float(bool(bad_rows)), float(stop is not None and stop.number > 0)]
        bad, stopping, *totals = engine.sum([*flags, *sums.values(), *(losses or {}).values()])
        if bad:
            raise non_finite(step.number, "loss", bad_rows or ["rows of another process"])
        result = engine.clip_and_step(job.optimizer, job.config.max_grad_norm)
        if result.applied:
            shared, rows = dict(zip(sums, totals, strict=False)), totals[len(sums) :]
            found = None if losses is None else _in_order(step, dict(zip(losses, rows, strict=True)))
            return StepDone(figures_of(shared, step.weights), result.grad_norm, found, stopping > 0)
        if not result.overflowed:
            raise non_finite(step.number, "gradient", [job.samples.place(example) for example in step.examples])


def add_sums(sums: dict[tuple[str, str], float], out: LossOut) -> None:
    """Adds a micro-batch's sums to those of the step, by the names of their weights and their own."""
    for weight, part in out.sums.items():
        sums[weight, LOSS] += float(part.detach())
    for weight, metrics in out.metrics.items():
        for name, value in metrics.items():
            sums[weight, name] = sums.get((weight, name), 0.0) + float(value)


def figures_of(sums: Mapping[tuple[str, str], float], weights: Mapping[str, float]) -> dict[str, float]:
    """What is reported of a whole step: each sum divided by its weight; of the loss the parts together. Not what is a share, or
    partly one, of something that the step has none of.
    """
    figures, unknown = {LOSS: 0.0}, set[str]()
    for (weight, name), value in sums.items():
        if weights[weight]:
            figures[name] = figures.get(name, 0.0) + value / weights[weight]
        elif name != LOSS:
            unknown.add(name)
    return {name: value for name, value in figures.items() if name not in unknown}


def _add_documents(losses: dict[int, float] | None, batch: MicroBatch, out: LossOut) -> dict[int, float] | None:
    """Each document's loss added to its example's; None as soon as the objective does not say."""
    if losses is None or out.documents is None:
        return None
    if batch.examples:  # an empty micro-batch has one document that is no sample
        for example, loss in zip(batch.examples, out.documents.tolist(), strict=True):
            losses[example] += loss
    return losses


def _in_order(step: Step, losses: dict[int, float]) -> list[float]:
    """The loss of each entry of the step's examples: in a mixture a short source may come round within one step."""
    times = Counter(step.examples)
    return [losses[example] / times[example] for example in step.examples]


def non_finite(step: int, what: str, rows: list[str]) -> NonFinite:
    rows = list(dict.fromkeys(rows))  # a row may have several samples
    shown = ", ".join(rows[:ROWS_SHOWN]) + (f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else "")
    return NonFinite(
        f"step {step + 1}",
        f"the {what} is not finite; nothing was updated with it. Rows: {shown}",
        "finite numbers",
        "look at these rows (luthier data CONFIG --row FILE:N), lower learning_rate, or use model.dtype=bfloat16 or float32",
    )
