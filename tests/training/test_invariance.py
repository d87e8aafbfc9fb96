"""Batching, layout, accumulation and the number of processes do not change the mathematics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luthier.data.steps.layout import lay_out
from luthier.runs.recorder import read_lines
from luthier.runs.run_folder import METRICS, ROW_LOSSES
from luthier.training.job import Job
from luthier.training.learning_check import LearningCheck
from luthier.training.loop import train_step
from luthier.training.step import optimizer_step, plan_step
from tests.helpers.jobs import make_config, make_job, make_policy, make_samples
from tests.helpers.processes import torchrun

LENGTHS = (3, 200, 17, 60, 5, 121, 33, 8, 90, 4, 150)
"""Eleven samples: with a global batch of 8 the last step of an epoch has 3. 200 beside 3 makes a very unequal pair of processes."""

OVERRIDES = ("lora_dropout=0.1", "global_batch_size=8", "max_steps=5", "learning_rate=1e-3", "warmup_steps=0")
LAYOUTS = {"1x8": 100_000, "2x4": 330, "8x1": 1}


def job_of(folder: Path, max_tokens: int, layout: str = "flat", *extra: str) -> Job:
    config = make_config(folder, *OVERRIDES, *extra)
    policy = make_policy(config, layout=layout)
    return make_job(config, make_samples(LENGTHS), policy, layout=layout, max_tokens=max_tokens)


def first_gradient(job: Job) -> torch.Tensor:
    job.wrapped.train()
    optimizer_step(job, plan_step(job, 0))
    return torch.cat([p.grad.flatten() for p in job.policy.parameters() if p.requires_grad and p.grad is not None])


def trained(job: Job, steps: int = 5) -> torch.Tensor:
    job.wrapped.train()
    check = LearningCheck(job.policy, job.waiting)
    for _ in range(steps):
        train_step(job, job.record, check)
    return torch.cat([p.detach().flatten() for p in job.policy.parameters() if p.requires_grad])


@pytest.mark.parametrize("layout", ["flat", "padded"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_accumulation(name: str, layout: str, tmp_path: Path) -> None:
    reference, other = job_of(tmp_path / "a", LAYOUTS["1x8"]), job_of(tmp_path / "b", LAYOUTS[name], layout)
    want, got = first_gradient(reference), first_gradient(other)
    assert float((want - got).norm() / want.norm()) < 1e-6
    want, got = trained(job_of(tmp_path / "c", LAYOUTS["1x8"])), trained(job_of(tmp_path / "d", LAYOUTS[name], layout))
    assert float((want - got).abs().max()) < 5e-5


def row_losses(job: Job) -> dict[int, float]:
    """Loss of each row of the first step, as the run's record has it."""
    trained(job, steps=1)
    job.record.recorder.sync()
    (line,) = read_lines(Path(job.record.recorder.folder) / ROW_LOSSES)
    return dict(zip(line["rows"], line["losses"], strict=True))


@pytest.mark.prove
def test_the_losses_of_rows_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    """And they are those of each row alone, and add up to the loss of the step."""
    job = job_of(tmp_path / "reference", LAYOUTS["8x1"])
    want = row_losses(job)
    assert sorted(want) == sorted(job.steps.indices(0))
    (line,) = [line for line in read_lines(tmp_path / "reference" / METRICS) if line["step"] == 1]
    tokens = sum(job.samples[row].trained_tokens for row in want)
    assert sum(want.values()) / tokens == pytest.approx(line["loss"], rel=1e-5)
    for layout in ("flat", "padded"):
        for name, limit in LAYOUTS.items():
            got = row_losses(job_of(tmp_path / f"{layout}-{name}", limit, layout))
            assert got == pytest.approx(want, rel=1e-5), (layout, name)


def test_dropout_is_on(tmp_path: Path) -> None:
    """Otherwise the other tests of this file would show less than they say."""
    with_dropout, without = job_of(tmp_path / "a", 330), job_of(tmp_path / "b", 330, "flat", "lora_dropout=0.0")
    assert float((first_gradient(with_dropout) - first_gradient(without)).norm()) > 1e-2


def test_loss_curves_of_20_steps(tmp_path: Path) -> None:
    curves = []
    for layout in ("flat", "padded"):
        config = make_config(
            tmp_path / layout, "lora_dropout=0.1", "global_batch_size=4", "max_steps=20", "learning_rate=1e-3"
        )
        job = make_job(
            config,
            make_samples((3, 60, 17, 33, 5, 41, 8)),
            make_policy(config, layout=layout),
            layout=layout,
            max_tokens=80,
        )
        losses: list[float] = []
        job.record.recorder.step = lambda line, timing, losses=losses: losses.append(line["loss"])  # type: ignore[method-assign]
        trained(job, steps=20)
        curves.append(losses)
    assert len(curves[0]) == 20
    assert max(abs(a - b) for a, b in zip(*curves, strict=True)) < 1e-5


@pytest.mark.prove
@pytest.mark.processes
@pytest.mark.parametrize("max_tokens", [100_000, 64])
def test_two_processes(max_tokens: int, tmp_path: Path) -> None:
    """DDP on gloo: unequal processes; an empty micro-batch; a short last step."""
    plan = lay_out([200, 3], [0, 1], processes=2, max_tokens=max_tokens, layout="flat")
    assert sorted(map(len, plan)) == [1, 1]
    single = job_of(tmp_path / "single", LAYOUTS["1x8"])
    result = tmp_path / "ddp.pt.safetensors"
    done = torchrun("tests.helpers.ddp_worker", str(tmp_path / "ddp"), str(max_tokens), str(result))
    assert done.returncode == 0, done.stderr[-3000:]
    from safetensors.torch import load_file

    got = load_file(result)
    want = first_gradient(single)
    assert float((want - got["gradient"]).norm() / want.norm()) < 1e-6
    assert float((trained(job_of(tmp_path / "again", LAYOUTS["1x8"])) - got["weights"]).abs().max()) < 5e-5
    alone = row_losses(job_of(tmp_path / "rows", LAYOUTS["1x8"]))
    first = read_lines(tmp_path / "ddp" / "weights" / ROW_LOSSES)[0]
    assert dict(zip(first["rows"], first["losses"], strict=True)) == pytest.approx(alone, rel=1e-5)
    assert int(got["empty_micro_batches"]) > 0 or max_tokens == 100_000
