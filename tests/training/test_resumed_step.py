"""Which checkpoint a run goes on from is chosen and verified by the main process; the others are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.errors import EnvironmentProblem, UserError
from luthier.training.resume import go_on
from luthier.training.state import state_of
from tests.helpers.jobs import MadeJob, make_config, make_job, make_policy, make_samples


def job_with(folder: Path, steps: tuple[int, ...]) -> MadeJob:
    """A job in whose folder there are checkpoints of these steps."""
    given = make_config(folder, "r=2")
    job = make_job(given, make_samples([9, 12]), make_policy(given))
    for step in steps:
        job.progress.step = step
        job.checkpoints.save(step, state_of(job), {"run": "run"}, None)
    job.progress.step = 0
    return job


def as_another(job: MadeJob, told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it the job of the second process, to which the first one says this."""
    job.engine.rank = 1
    monkeypatch.setattr(job.engine, "from_main", lambda value: told)


def test_the_others_take_the_step_that_the_main_process_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of this process shows a newer one already, or still."""
    job = job_with(tmp_path, (2, 4))
    as_another(job, [2, False], monkeypatch)
    go_on(job, tmp_path, "run", lambda text: None)
    assert job.progress.step == 2


def test_the_others_begin_again_where_the_main_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_with(tmp_path, (2,))
    as_another(job, [None, False], monkeypatch)
    go_on(job, tmp_path, "run", lambda text: None)
    assert job.progress.step == 0


def test_a_process_that_does_not_see_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_with(tmp_path, (2,))
    as_another(job, [4, False], monkeypatch)
    with pytest.raises(EnvironmentProblem, match="process 1 does not see"):
        go_on(job, tmp_path, "run", lambda text: None)


def test_where_none_is_whole_all_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_with(tmp_path, (2,))
    (job.checkpoints.path(2) / "state.json").write_text("{}")
    told: list[Any] = []
    monkeypatch.setattr(job.engine, "from_main", lambda value: (told.append(value), value)[1])
    with pytest.raises(UserError, match="a whole checkpoint"):
        go_on(job, tmp_path, "run", lambda text: None)
    assert told == [[None, True]], "the others do not wait"
    as_another(job, told[0], monkeypatch)
    with pytest.raises(EnvironmentProblem, match="another process"):
        go_on(job, tmp_path, "run", lambda text: None)
