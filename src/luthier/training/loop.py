"""The loop: plan, step, schedule, log, evaluate, checkpoint."""

from __future__ import annotations

import math
import shlex
import signal
import time

from luthier.data.dataset.samples import SampleSet
from luthier.errors import Stopped
from luthier.inference.scoring import score_rows
from luthier.runs.run_folder import CONFIG
from luthier.system.cores import pressure_s
from luthier.system.devices import memory_bytes
from luthier.training.before_step import gradient_shares, survey
from luthier.training.job import Job, Record
from luthier.training.learning_check import LearningCheck
from luthier.training.objective_figures import check_first_step, held_out_figures
from luthier.training.state import state_of
from luthier.training.step import optimizer_step, plan_step
from luthier.training.stop_signal import StopSignal

SHORTEST_S = 1e-4
"""That a step is said to have taken at least: a coarse clock may not move while a small one runs."""


def run_steps(job: Job, record: Record) -> None:
    """Runs from `job.progress` to the last step.

    Raises:
        NonFinite: a loss or gradient was NaN or infinite; the weights are those before the step.
        Stopped: a signal came; the step was finished and saved.
    """
    config, progress = job.config, job.progress
    eval_every = every(config.eval_steps, job.steps.total) if job.held_out is not None else 0
    save_every = every(config.save_steps, job.steps.total)
    check = LearningCheck(job.policy, job.waiting)
    job.wrapped.train()
    with StopSignal(job.engine.main) as stop:
        stop.doing = "the first step"
        if progress.step == 0:
            record.answer_samples(0)
            if eval_every:
                evaluate(job, record)
        while progress.step < job.steps.total and not gave_up(job):
            stop.doing = f"step {progress.step + 1}"
            stopping = train_step(job, record, check, stop)
            last = progress.step == job.steps.total
            # Of several processes one alone must not stop: a signal that comes now is heard with the next step.
            stop.doing = f"what follows step {progress.step}" if job.engine.processes == 1 or last else stop.doing
            if eval_every and (progress.step % eval_every == 0 or last):
                evaluate(job, record)
            stopping |= job.engine.processes == 1 and stop.number > 0
            if (
                progress.step % save_every == 0
                or last
                or stopping
                or gave_up(job)
                or (config.load_best_checkpoint and progress.best_step == progress.step)
            ):
                save(job, record)
            if stopping and not last:
                raise Stopped(
                    stop.number or signal.SIGTERM,
                    f"step {progress.step} of {job.steps.total}",
                    resuming(job),
                )


def resuming(job: Job) -> str:
    """The command that goes on; of several processes the one that was typed is known to their starter alone."""
    if job.engine.processes > 1:
        return "the same command with --resume"
    return f"luthier train {shlex.quote(str(job.checkpoints.folder.parent / CONFIG))} --resume"


def train_step(job: Job, record: Record, check: LearningCheck, stop: StopSignal | None = None) -> bool:
    """One optimizer step and its line in the record; whether a process was told to stop."""
    started, waited, progress, number = time.perf_counter(), pressure_s(), job.progress, job.progress.step
    rate = job.schedule(number)
    for group in job.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * rate
    step = plan_step(job, number)
    if number == 0:
        check_first_step(job, step)
    survey(job, step)
    shown = (number + 1) % job.config.logging_steps == 0
    shares = gradient_shares(job, step) if shown else {}
    done = optimizer_step(job, step, stop)
    progress.step += 1
    progress.trained_tokens += int(step.plan.tokens)
    if job.optimizer.param_groups[0]["lr"] > 0:
        progress.moving_steps += 1
        if idle := check.after_step(progress.moving_steps, job.optimizer):
            record.recorder.note(f"{idle} tensors of experts or new tokens got no token in the first two steps")
    seconds = max(time.perf_counter() - started, SHORTEST_S)
    line = {
        "step": progress.step,
        "epoch": job.steps.epoch_of(number),
        **done.figures,
        **shares,
        "learning_rate": job.optimizer.param_groups[0]["lr"],
        "grad_norm": done.grad_norm,
        "trained_tokens": progress.trained_tokens,
    }
    if done.row_losses is not None:
        record.recorder.row_losses(progress.step, list(step.examples), done.row_losses)
    tokens = int(step.plan.lengths.sum())
    timing = {"step_s": seconds, "tokens_per_s": tokens / seconds, "memory_bytes": memory_bytes(job.engine.device)}
    if waited is not None and job.engine.device.type == "cpu":
        timing["cpu_pressure"] = ((pressure_s() or waited) - waited) / seconds
    record.recorder.step(line, timing)
    return done.stopping


def evaluate(job: Job, record: Record) -> None:
    """The held-out rows' figures; sample answers; the best step so far."""
    assert job.held_out is not None
    found = held_out_figures(job) if not job.objective.by_likelihood else _likelihood(job, job.held_out)
    progress = job.progress
    record.recorder.evaluation({"step": progress.step, **{f"eval_{name}": value for name, value in found.items()}})
    if progress.step == 0:
        return
    record.answer_samples(progress.step)
    if found["loss"] < progress.best_loss:
        progress.best_loss, progress.best_step, progress.evaluations_without_gain = found["loss"], progress.step, 0
    else:
        progress.evaluations_without_gain += 1


def _likelihood(job: Job, held_out: SampleSet) -> dict[str, float]:
    """loss, perplexity, token_accuracy and tokens."""
    return score_rows(
        job.wrapped,
        held_out,
        layout=job.layout,
        max_tokens=job.max_tokens,
        processes=job.engine.processes,
        rank=job.engine.rank,
    ).summary


def gave_up(job: Job) -> bool:
    patience = job.config.early_stopping_patience
    return patience is not None and job.progress.evaluations_without_gain >= patience


def save(job: Job, record: Record) -> None:
    """A checkpoint of the present step, written by one process while the others wait."""
    record.recorder.sync()
    if job.engine.main:
        job.checkpoints.save(job.progress.step, state_of(job), record.manifest, job.progress.best_step)
    job.engine.barrier()


def every(value: float | int | None, total: int) -> int:
    """Steps between two events; below 1 a share of all steps (0.07 of 100 are 7, although their product is a little more in floats)."""
    if value is None:
        return total
    return max(1, math.ceil(round(value * total, 9))) if isinstance(value, float) and value < 1 else int(value)
