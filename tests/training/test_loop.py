"""The loop's guards: each has a test with an input that must trip it."""

from __future__ import annotations

import math
import os
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import get_scheduler

from luthier.errors import NonFinite, Stopped, UserError
from luthier.runs.recorder import read_lines
from luthier.training.job import Job
from luthier.training.learning_check import LearningCheck
from luthier.training.loop import every, run_steps, train_step
from luthier.training.parameters import make_optimizer
from luthier.training.run import _told
from luthier.training.schedule import make_schedule
from luthier.training.state import restore
from luthier.training.step import forward_of, plan_step
from luthier.types import NO_TARGET, Sample
from tests.helpers.jobs import make_config, make_job, make_policy, make_samples


def job_of(
    folder: Path,
    *overrides: str,
    dtype: torch.dtype = torch.float32,
    scaled: bool = False,
    held_out: bool = False,
    warm: bool = False,
) -> Job:
    given = ["max_steps=4", "global_batch_size=2", "learning_rate=1e-2", "warmup_steps=0", *overrides]
    config = make_config(folder, *given, *(["data.eval=0.1"] if held_out else []))
    return make_job(
        config,
        make_samples((12, 7, 20, 9)),
        make_policy(config, dtype=dtype, warm=warm),
        max_tokens=24,
        scaled=scaled,
        held_out=make_samples((11, 6), seed=9) if held_out else None,
    )


def weights_of(job: Job) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in job.policy.named_parameters() if p.requires_grad}


def poison_from_step(job: Job, step: int, where: str) -> None:
    """From `step` on the loss, or only its gradient, is NaN."""
    whole = job.objective.loss

    def loss(policy: object, batch: object) -> object:
        out = whole(policy, batch)  # type: ignore[arg-type]
        if batch.step >= step:  # type: ignore[attr-defined]
            whole_sum = out.sums["tokens"]  # type: ignore[attr-defined]
            out.sums["tokens"] = (  # type: ignore[attr-defined]
                whole_sum * math.nan
                if where == "loss"
                else whole_sum + (_NaNGradient.apply(whole_sum) - whole_sum.detach()) * 0.0
            )
        return out

    job.objective.loss = loss  # type: ignore[method-assign,assignment]


class _NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.nan


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_step_changes_nothing(where: str, tmp_path: Path) -> None:
    """On a step that is not logged too: weights and optimizer are those of the step before, the step and rows are named."""
    job = job_of(tmp_path, "logging_steps=100")
    clean = job_of(tmp_path / "clean", "logging_steps=100")
    poison_from_step(job, 2, where)
    with pytest.raises(NonFinite) as caught:
        run_steps(job, job.record)
    check = LearningCheck(clean.policy)
    for _ in range(2):
        train_step(clean, clean.record, check)
    assert caught.value.exit_code == 4
    assert "step 3" in caught.value.where
    assert "made.jsonl:" in str(caught.value)
    assert where in str(caught.value)
    for name, value in weights_of(clean).items():
        assert torch.equal(value, weights_of(job)[name]), name
    assert job.progress.step == 2


def test_a_tensor_that_does_not_learn_is_named(tmp_path: Path) -> None:
    """A layer that the forward pass goes around: without the check the run would end as if it had been trained."""
    job = job_of(tmp_path)
    layer = job.policy.core.model.layers[1].mlp
    layer.forward = lambda x: x
    with pytest.raises(UserError, match=r"layers\.1\.mlp") as caught:
        run_steps(job, job.record)
    assert "6 of" in str(caught.value)
    assert job.progress.step == 2


def test_an_expert_without_a_token_is_counted_and_no_failure(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    layer = job.policy.core.model.layers[1]
    layer.mlp.experts = torch.nn.ModuleList([torch.nn.Linear(4, 4)])  # a trained tensor that no forward pass reaches
    notes: list[str] = []
    job.record.recorder.note = notes.append  # type: ignore[method-assign]
    job.waiting = list(layer.mlp.experts.parameters())
    job.optimizer.add_param_group({"params": list(layer.mlp.experts.parameters()), "peak_lr": 1e-2})
    run_steps(job, job.record)
    assert notes == ["2 tensors of experts or new tokens got no token in the first two steps"]


def test_an_optimizer_of_other_parameters_is_noticed(tmp_path: Path) -> None:
    job, other = job_of(tmp_path / "a"), job_of(tmp_path / "b")
    job.optimizer = make_optimizer(job.config, other.policy)
    for p in other.policy.parameters():
        if p.requires_grad:
            p.grad = torch.ones_like(p)
    job.optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]
    with pytest.raises(UserError, match="did not change"):
        run_steps(job, job.record)


def test_a_long_warm_up_is_no_failure(tmp_path: Path) -> None:
    """At a rate of 1e-9 a norm's weight of 1.0 cannot move in float32; its gradient is enough."""
    job = job_of(tmp_path, "tuning=full", "learning_rate=1e-9")
    run_steps(job, job.record)


def test_a_rate_of_zero_trains_nothing_and_checks_nothing(tmp_path: Path) -> None:
    job = job_of(tmp_path, "learning_rate=0")
    before = weights_of(job)
    run_steps(job, job.record)
    assert all(torch.equal(value, weights_of(job)[name]) for name, value in before.items())


def test_fp16_overflow_repeats_the_step_at_half_the_scale(tmp_path: Path) -> None:
    """Scaled far beyond fp16's largest number the first step overflows; it is repeated until it fits, and no row is lost."""
    job = job_of(tmp_path, dtype=torch.float16, scaled=True)
    job.engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    run_steps(job, job.record)
    assert 1.0 <= job.engine.scaler.get_scale() < 2.0**40
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["trained_tokens"] == sum(sample.trained_tokens for sample in job.samples) * 2
    assert all(p.dtype == torch.float32 for p in job.policy.parameters() if p.requires_grad), (
        "nothing to unscale in fp16"
    )


def test_fp16_without_an_end_to_halving_stops(tmp_path: Path) -> None:
    job = job_of(tmp_path, dtype=torch.float16, scaled=True)
    poison_from_step(job, 0, "gradient")
    with pytest.raises(NonFinite):
        run_steps(job, job.record)
    assert job.engine.scaler.get_scale() < 1.0
    assert job.progress.step == 0


def test_evaluation_does_not_move_training(tmp_path: Path) -> None:
    """With an evaluation at each step and with none: the same weights to the bit, dropout on."""
    often = job_of(tmp_path / "a", "lora_dropout=0.2", "eval_steps=1", held_out=True)
    never = job_of(tmp_path / "b", "lora_dropout=0.2")
    run_steps(often, often.record)
    run_steps(never, never.record)
    assert all(torch.equal(value, weights_of(often)[name]) for name, value in weights_of(never).items())
    evaluations = [line for line in read_lines(tmp_path / "a" / "metrics.jsonl") if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [0, 1, 2, 3, 4]
    assert evaluations[0]["eval_perplexity"] == pytest.approx(math.exp(evaluations[0]["eval_loss"]))


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    """A rate that makes the held-out loss rise: the run ends after `patience` evaluations without gain."""
    job = job_of(
        tmp_path,
        "max_steps=40",
        "learning_rate=0.3",
        "lr_scheduler_type=constant",
        "eval_steps=1",
        "early_stopping_patience=3",
        "load_best_checkpoint=true",
        held_out=True,
    )
    run_steps(job, job.record)
    assert job.progress.step < 40
    losses = {
        line["step"]: line["eval_loss"]
        for line in read_lines(tmp_path / "metrics.jsonl")
        if line.get("eval_loss") and line["step"]
    }
    assert job.progress.best_step == min(losses, key=losses.__getitem__)
    assert job.progress.step == job.progress.best_step + 3
    assert job.progress.best_step in job.checkpoints.steps()


@pytest.mark.parametrize(("number", "by"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "ctrl-c")])
def test_a_signal_finishes_the_step_and_saves(number: int, by: str, tmp_path: Path) -> None:
    job = job_of(tmp_path, "save_steps=100")
    whole = job.objective.loss

    def loss(policy: object, batch: object) -> object:
        if batch.step == 1:  # type: ignore[attr-defined]
            os.kill(os.getpid(), number)
        return whole(policy, batch)  # type: ignore[arg-type]

    job.objective.loss = loss  # type: ignore[method-assign,assignment]
    with pytest.raises(Stopped) as caught:
        run_steps(job, job.record)
    assert caught.value.exit_code == 128 + number
    assert f"stopped by {by}; the state is saved" in str(caught.value)
    folder = shlex.quote(str(job.checkpoints.folder.parent / "config.yaml"))
    assert caught.value.fix == f"luthier train {folder} --resume"
    told = _told(tmp_path, job, OSError(28, "full"), "the disk is full")
    assert (told.found, told.fix) == (
        "the disk is full; the newest checkpoint is of step 2",
        f"mend it, then {caught.value.fix}",
    )
    assert job.checkpoints.steps() == [2]
    again = job_of(tmp_path / "again")
    restore(again, job.checkpoints.load(2), 2)
    assert again.progress.step == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_loss_is_cross_entropy_of_the_next_token(tmp_path: Path) -> None:
    """Against transformers' own loss; the mean over the trained tokens of the global batch."""
    job = job_of(tmp_path, "global_batch_size=4", warm=True)
    indices = job.steps.indices(0)
    train_step(job, job.record, LearningCheck(job.policy, job.waiting))
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    fresh = make_policy(make_config(tmp_path / "x"), layout="padded")
    total, count = 0.0, 0
    for index in indices:
        sample = job.samples[index]
        labels = np.full(len(sample), -100)
        labels[1:] = np.where(sample.targets[:-1] == NO_TARGET, -100, sample.targets[:-1])
        with torch.no_grad():
            mean = fresh.core(
                input_ids=torch.from_numpy(sample.input_ids)[None], labels=torch.from_numpy(labels)[None]
            ).loss
        total, count = total + float(mean) * sample.trained_tokens, count + sample.trained_tokens
    assert line["loss"] == pytest.approx(total / count, rel=1e-6)


def test_a_sequence_of_period_seven_is_learned(tmp_path: Path) -> None:
    """An off-by-one in the targets would leave the loss far from zero."""
    ids = np.tile(np.arange(10, 17), 6)
    targets = np.append(ids[1:], NO_TARGET)
    config = make_config(
        tmp_path,
        "tuning=full",
        "max_steps=80",
        "learning_rate=3e-3",
        "global_batch_size=1",
        "lr_scheduler_type=constant",
    )
    job = make_job(config, [Sample(ids, targets, "x:1", 0)], make_policy(config))
    run_steps(job, job.record)
    assert read_lines(tmp_path / "metrics.jsonl")[-1]["loss"] < 0.1


def test_a_warm_up_to_the_very_end_is_refused(tmp_path: Path) -> None:
    """Also where epochs, not max_steps, say how many steps there are."""
    training = make_config(tmp_path, "warmup_steps=100", "num_train_epochs=3").training
    with pytest.raises(UserError, match="100 warm-up steps of 60 steps"):
        make_schedule(training, 60)
    assert make_schedule(training, 101)(99) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "name",
    ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"],
)
def test_schedules_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Equal from the end of the warm-up on; within it one step ahead, so that no step is spent at a rate of zero."""
    warmup = "null" if name == "constant" else "10"
    ours = make_schedule(make_config(tmp_path, f"lr_scheduler_type={name}", f"warmup_steps={warmup}").training, 100)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=10, num_training_steps=100)
    for step in range(100):
        if step >= 10:
            assert ours(step) == optimizer.param_groups[0]["lr"]
        optimizer.step()
        theirs.step()
        if step < 9:
            assert ours(step) == optimizer.param_groups[0]["lr"]
    assert ours(0) > 0


@pytest.mark.parametrize(
    ("value", "total", "steps"),
    [(0.1, 95, 10), (0.34, 9, 4), (5, 100, 5), (None, 7, 7), (0.001, 10, 1), (0.07, 100, 7)],
)
def test_every(value: float | None, total: int, steps: int) -> None:
    assert every(value, total) == steps


def test_a_models_own_draws_are_of_the_step_and_the_micro_batch(tmp_path: Path) -> None:
    """Whatever was drawn before: a resume draws the same."""
    job, found = job_of(tmp_path), []
    for step, position in ((0, 0), (0, 1), (1, 0), (0, 0)):
        torch.rand(5)
        two = plan_step(job, step)
        with forward_of(job, replace(two, batches=[*two.batches, *two.batches]), position):
            found.append(torch.nn.functional.dropout(torch.ones(64)))
    assert torch.equal(found[0], found[3])
    assert not any(torch.equal(found[0], other) for other in found[1:3])
