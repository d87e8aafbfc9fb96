"""One optimizer step: the files that it goes through, and its one exchange between processes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import luthier
from luthier.errors import Stopped
from luthier.training.loop import run_steps
from luthier.training.step import optimizer_step, plan_step
from tests.helpers.jobs import MadeJob, make_config, make_job, make_policy, make_samples

SOURCE = Path(luthier.__file__).parent
TOUR = SOURCE.parents[1] / "docs" / "tour.md"
MOST_FILES = 9


def job_of(folder: Path, *overrides: str, steps: int = 4) -> MadeJob:
    keys = ("lora_dropout=0.1", "global_batch_size=6", "save_steps=100", f"max_steps={steps}", *overrides)
    given = make_config(folder, *keys)
    return make_job(given, make_samples([24, 17, 9, 30, 12, 21]), make_policy(given), max_tokens=60)


def files_of_a_step(job: MadeJob) -> set[str]:
    """luthier's own files that are run from the beginning of the step to `optimizer.step()`."""
    step, seen = plan_step(job, 0), set[str]()
    update = job.optimizer.step

    def last(*given: Any) -> Any:
        sys.setprofile(None)
        return update(*given)

    def look(frame: FrameType, event: str, _argument: object) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(SOURCE):
            seen.add(file.relative_to(SOURCE).as_posix())

    job.optimizer.step = last  # type: ignore[method-assign]
    job.wrapped.train()
    sys.setprofile(look)
    try:
        optimizer_step(job, step)
    finally:
        sys.setprofile(None)
    return seen


def test_a_step_goes_through_few_files_which_the_tour_lists(tmp_path: Path) -> None:
    files_of_a_step(job_of(tmp_path / "first"))  # what is imported at a first step is no part of one
    seen = files_of_a_step(job_of(tmp_path / "second"))
    text = TOUR.read_text(encoding="utf-8").partition("## The way of a step")[2].partition("\n## ")[0]
    listed = set(re.findall(r"\]\(\.\./src/luthier/([\w/]+\.py)\)", text))
    assert len(seen) <= MOST_FILES, seen
    assert seen == listed - {"engines/ddp.py"}, "docs/tour.md lists them, with the engine of several processes"


def test_a_step_is_one_exchange_between_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, sizes = job_of(tmp_path), list[int]()
    plain = job.engine.sum
    monkeypatch.setattr(job.engine, "sum", lambda values: (sizes.append(len(values)), plain(values))[1])
    run_steps(job, job.record)
    assert len(sizes) == 4


def test_a_signal_to_another_process_stops_this_one_after_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, calls = job_of(tmp_path), list[int]()
    plain = job.engine.sum

    def with_another(values: list[float]) -> list[float]:
        calls.append(1)
        bad, stopping, *rest = plain(values)
        return [bad, stopping + 15.0 * (len(calls) == 2), *rest]

    monkeypatch.setattr(job.engine, "sum", with_another)
    with pytest.raises(Stopped, match="step 2 of 4"):
        run_steps(job, job.record)
    assert job.checkpoints.steps() == [2]


def test_the_norm_of_a_gradient_in_bfloat16_has_all_its_digits(tmp_path: Path) -> None:
    engine = job_of(tmp_path).engine
    parameter = torch.nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
    parameter.grad = torch.full_like(parameter, 0.3)
    exact = float(parameter.grad.double().norm())
    assert float(engine.gradient_norm([parameter])) == pytest.approx(exact, rel=1e-6)
    result = engine.clip_and_step(torch.optim.SGD([parameter], lr=1.0), max_grad_norm=None)
    assert result.grad_norm == pytest.approx(exact, rel=1e-6)
