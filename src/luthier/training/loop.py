"""The loop: micro-batches, backward, clip, step, schedule, log, evaluate, checkpoint.

Losses are sums; the one division is by the weight of the whole global batch, known from the plan before the first forward pass.
"""

from __future__ import annotations

import math
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from luthier.data.steps.layout import micro_batches
from luthier.errors import NonFinite, Stopped
from luthier.inference.scoring import score_rows
from luthier.randomness import key
from luthier.system.devices import memory_bytes, seed_generators
from luthier.training.job import Job
from luthier.training.learning_check import LearningCheck
from luthier.training.state import state_of
from luthier.training.stop_signal import StopSignal
from luthier.types import LossOut, MicroBatch, Sample

ROWS_SHOWN = 5


def run_steps(job: Job) -> None:
    """Runs from `job.progress` to the last step.

    Raises:
        NonFinite: a loss or gradient was NaN or infinite; the weights are those before the step.
        Stopped: a signal came; the step was finished and saved.
    """
    config, progress = job.config, job.progress
    eval_every = every(config.eval_steps, job.steps.total) if job.held_out is not None else 0
    save_every = every(config.save_steps, job.steps.total)
    check = LearningCheck(job.policy)
    job.wrapped.train()
    with StopSignal(job.engine.main) as stop:
        stop.doing = "the first step"
        if progress.step == 0:
            job.answer_samples(0)
            if eval_every:
                evaluate(job)
        while progress.step < job.steps.total and not gave_up(job):
            stop.doing = f"step {progress.step + 1}"
            train_step(job, check)
            last = progress.step == job.steps.total
            stop.doing = f"what follows step {progress.step}"
            if eval_every and (progress.step % eval_every == 0 or last):
                evaluate(job)
            stopping = max(job.engine.sum([float(stop.number)])) > 0
            if (
                progress.step % save_every == 0
                or last
                or stopping
                or gave_up(job)
                or (config.load_best_checkpoint and progress.best_step == progress.step)
            ):
                save(job)
            if stopping and not last:
                raise Stopped(
                    stop.number or signal.SIGTERM,
                    f"step {progress.step} of {job.steps.total}",
                    "the same command with --resume goes on",
                )


def train_step(job: Job, check: LearningCheck) -> None:
    """One optimizer step and its line in the record."""
    started, progress, step = time.perf_counter(), job.progress, job.progress.step
    rate = job.schedule(step)
    for group in job.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * rate
    rows = job.steps.indices(step)
    indices = job.samples.members_of(rows)
    samples = [job.samples[i] for i in indices]
    shown = (step + 1) % job.config.logging_steps == 0
    shares = gradient_shares(job, step, samples, indices) if shown else {}
    done = optimizer_step(job, step, samples, indices)
    progress.step += 1
    progress.trained_tokens += sum(sample.trained_tokens for sample in samples)
    if job.optimizer.param_groups[0]["lr"] > 0:
        progress.moving_steps += 1
        if idle := check.after_step(progress.moving_steps, job.optimizer):
            job.recorder.note(f"{idle} tensors of experts or new tokens got no token in the first two steps")
    seconds = time.perf_counter() - started
    line = {
        "step": progress.step,
        "epoch": job.steps.epoch_of(step),
        **{name: value / done.weight for name, value in done.sums.items()},
        **shares,
        "learning_rate": job.optimizer.param_groups[0]["lr"],
        "grad_norm": done.grad_norm,
        "trained_tokens": progress.trained_tokens,
    }
    if done.row_losses is not None:
        times = Counter(rows)  # in a mixture a short source may come round within one step
        job.recorder.row_losses(progress.step, rows, [done.row_losses[row] / times[row] for row in rows])
    tokens = sum(len(sample) for sample in samples)
    job.recorder.step(
        line, {"step_s": seconds, "tokens_per_s": tokens / seconds, "memory_bytes": memory_bytes(job.engine.device)}
    )


@dataclass(frozen=True)
class StepDone:
    """What one optimizer step found out, the same on every process."""

    sums: dict[str, float]
    """over the global batch"""
    weight: float
    grad_norm: float
    row_losses: dict[int, float] | None
    """each example's part of the loss, that of all its samples; None where the objective does not say"""


def gradient_shares(job: Job, step: int, samples: Sequence[Sample], indices: Sequence[int]) -> dict[str, float]:
    """Of an objective that is a sum of terms: the norm of each term's gradient, divided by the sum of these norms.

    Costs a forward and a backward pass a term. Nothing is changed by it.
    """
    parts = job.objective.parts()
    if not parts:
        return {}
    weight, norms = job.objective.weight(list(samples)), dict[str, float]()
    batches = _micro_batches(job, step, samples, indices)
    survey(job, step, samples, batches)
    for name, part in parts.items():
        job.optimizer.zero_grad(set_to_none=True)
        for position, batch in enumerate(batches):
            with forward_of(job, step, position, last=position == len(batches) - 1):
                job.engine.backward(part.loss(job.wrapped, batch).sum, weight)
        gradients = [p.grad for p in job.policy.parameters() if p.grad is not None]
        norms[name] = float(nn.utils.get_total_norm(gradients)) / job.engine.loss_scale.scale
    whole = sum(norms.values())
    if not 0 < whole < math.inf:  # an overflow in float16 is met by the step itself
        return {}
    return {f"grad_share_{name}": norm / whole for name, norm in norms.items()}


def _micro_batches(job: Job, step: int, samples: Sequence[Sample], indices: Sequence[int]) -> Sequence[MicroBatch]:
    """Those of this process."""
    return micro_batches(
        samples,
        indices,
        layout=job.layout,
        max_tokens=job.max_tokens,
        step=step,
        processes=job.engine.processes,
        rank=job.engine.rank,
    )


def survey(job: Job, step: int, samples: Sequence[Sample], batches: Sequence[MicroBatch]) -> None:
    """Lets an objective whose loss needs totals of the whole step count them first, once a step (see types.Objective)."""
    objective = job.objective
    if job.surveyed == step:
        return
    totals: list[float] = []
    for position, batch in enumerate(batches):
        with torch.no_grad(), forward_of(job, step, position, last=False):
            found = objective.survey(job.wrapped, batch)
        totals = [one + other for one, other in zip(totals, found, strict=True)] if totals else found
    if totals:
        objective.begin_step(job.engine.sum(totals), list(samples))
    job.surveyed = step


@contextmanager
def forward_of(job: Job, step: int, position: int, last: bool) -> Iterator[None]:
    """Surrounds forward and backward of one micro-batch."""
    # A model's own dropout draws from the default generator: keyed here, so that it does not depend on what ran before.
    seed_generators(key(job.seed, "internal", step, position, job.engine.rank) % 2**63, job.engine.device)
    with job.engine.accumulating(last=last):
        yield


def optimizer_step(job: Job, step: int, samples: Sequence[Sample], indices: Sequence[int]) -> StepDone:
    """Gradients of the whole global batch, then one step.

    An fp16 overflow repeats the step at half the loss scale. Raises NonFinite otherwise; nothing has changed then.
    """
    engine, weight = job.engine, job.objective.weight(list(samples))
    batches = _micro_batches(job, step, samples, indices)
    survey(job, step, samples, batches)
    while True:
        job.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {"loss": 0.0}
        bad_rows: list[str] = []
        losses: dict[int, float] | None = dict.fromkeys((sample.example for sample in samples), 0.0)
        for position, batch in enumerate(batches):
            with forward_of(job, step, position, last=position == len(batches) - 1):
                out = job.objective.loss(job.wrapped, batch)
                engine.backward(out.sum, weight)
            for name, value in {"loss": out.sum.detach(), **out.metrics}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            if not math.isfinite(float(out.sum.detach())):
                bad_rows += batch.row_ids
            losses = _add_documents(losses, batch, out)
        # One exchange for all: each process adds what it has of a row, most of them nothing.
        totals = engine.sum([float(bool(bad_rows)), *sums.values(), *(losses or {}).values()])
        if totals[0]:
            raise non_finite(step, "loss", bad_rows or ["rows of another process"])
        result = engine.clip_and_step(job.optimizer, job.config.max_grad_norm)
        if result.applied:
            shared = dict(zip(sums, totals[1:], strict=False))
            found = None if losses is None else dict(zip(losses, totals[1 + len(sums) :], strict=True))
            return StepDone(shared, weight, result.grad_norm, found)
        if not engine.loss_scale.overflowed():
            raise non_finite(step, "gradient", [sample.row for sample in samples])


def _add_documents(losses: dict[int, float] | None, batch: MicroBatch, out: LossOut) -> dict[int, float] | None:
    """Each document's loss added to its example's; None as soon as the objective does not say."""
    if losses is None or out.documents is None:
        return None
    if batch.examples:  # an empty micro-batch has one document that is no sample
        for example, loss in zip(batch.examples, out.documents.tolist(), strict=True):
            losses[example] += loss
    return losses


def non_finite(step: int, what: str, rows: list[str]) -> NonFinite:
    rows = list(dict.fromkeys(rows))  # a row may have several samples
    shown = ", ".join(rows[:ROWS_SHOWN]) + (f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else "")
    return NonFinite(
        f"step {step + 1}",
        f"the {what} is not finite; nothing was updated with it. Rows: {shown}",
        "finite numbers",
        "look at these rows (luthier data CONFIG --row FILE:N), lower learning_rate, or use model.dtype=bfloat16 or float32",
    )


def evaluate(job: Job) -> None:
    """Held-out loss, perplexity and token accuracy; sample answers; the best step so far."""
    assert job.held_out is not None
    found = score_rows(
        job.wrapped,
        job.held_out,
        layout=job.layout,
        max_tokens=job.max_tokens,
        processes=job.engine.processes,
        rank=job.engine.rank,
    ).summary
    progress = job.progress
    job.recorder.evaluation({"step": progress.step, **{f"eval_{name}": value for name, value in found.items()}})
    if progress.step == 0:
        return
    job.answer_samples(progress.step)
    if found["loss"] < progress.best_loss:
        progress.best_loss, progress.best_step, progress.evaluations_without_gain = found["loss"], progress.step, 0
    else:
        progress.evaluations_without_gain += 1


def gave_up(job: Job) -> bool:
    patience = job.config.early_stopping_patience
    return patience is not None and job.progress.evaluations_without_gain >= patience


def save(job: Job) -> None:
    """A checkpoint of the present step, written by one process while the others wait."""
    job.recorder.sync()
    if job.engine.main:
        job.checkpoints.save(job.progress.step, state_of(job), job.manifest, job.progress.best_step)
    job.engine.barrier()


def every(value: float | int | None, total: int) -> int:
    """Steps between two events; below 1 a share of all steps (0.07 of 100 are 7, although their product is a little more in floats)."""
    if value is None:
        return total
    return max(1, math.ceil(round(value * total, 9))) if isinstance(value, float) and value < 1 else int(value)
