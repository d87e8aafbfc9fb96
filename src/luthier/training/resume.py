"""Where a run goes on: the newest checkpoint that is whole and its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.errors import EnvironmentProblem, UserError
from luthier.runs.checkpoint import OTHER_RUN, Damaged
from luthier.runs.recorder import cut_back, steps_without_a_line
from luthier.system.files import refuse_odd
from luthier.system.words import counted
from luthier.training.job import Job
from luthier.training.state import restore
from luthier.training.together import by_main


def go_on(job: Job, folder: Path, run: str, say: Callable[[str], None]) -> None:
    """Puts the newest whole checkpoint into the job, and cuts the record back to it; at step 0 where none was saved yet.

    Args:
        run: the id of the run.
        say: told of what is passed over.

    Raises:
        UserError: checkpoints are there, and none can be gone on from; or something lies in the place of one.
    """
    step = _step_to_resume(job, run, say)
    began = "no checkpoint was saved yet: the run begins again at step 0"
    say(began if step is None else f"resumed at step {step} of {job.steps.total}")
    if job.engine.main:
        cut_back(folder, -1 if step is None else step)
        if step is not None:
            job.checkpoints.prune(step, job.progress.best_step)
        if missing := steps_without_a_line(folder, step or 0):
            say(f"the record (metrics.jsonl) lacks {counted(missing, 'step')} of those before")
    job.engine.barrier()


def _step_to_resume(job: Job, run: str, say: Callable[[str], None]) -> int | None:
    """Chosen by the main process, told to the others: of a folder on a network each may see something else."""
    step: int | None = by_main(job.engine, lambda: _newest(job, run, say))
    if step is not None and not job.engine.main:
        _restore_elsewhere(job, step)
    return step


def _newest(job: Job, run: str, say: Callable[[str], None]) -> int | None:
    """The step that the job was put at; each checkpoint that is passed over is named."""
    checkpoints = job.checkpoints
    for place in checkpoints.places():
        refuse_odd(place, folder=True)
    for stranger in checkpoints.strangers():
        say(f"{stranger} was not written by luthier and is not opened")
    passed = []
    for step in reversed(checkpoints.steps()):
        place = checkpoints.path(step)
        wrong = _restored(job, step, lambda step: checkpoints.verified(step, run))
        if wrong is None:
            return step
        if wrong == OTHER_RUN:  # when the run comes to this step it would write over it
            raise UserError(str(place), wrong, "checkpoints of this run alone", "move it away")
        checkpoints.passed_over.add(step)
        passed.append(f"{place}: {wrong}")
        say(f"damaged checkpoint {passed[-1]}; the next older one is tried")
    if not passed:
        return None
    raise UserError(
        str(checkpoints.folder), "; ".join(passed), "a whole checkpoint", "start again with another output_dir"
    )


def _restored(job: Job, step: int, load: Callable[[int], dict[str, Any]]) -> str | None:
    """Why the state of a checkpoint does not fit; None where the job has it now."""
    try:
        restore(job, load(step), step)
    except Damaged as error:
        return str(error)
    return None


def _restore_elsewhere(job: Job, step: int) -> None:
    try:
        wrong = _restored(job, step, job.checkpoints.load)
    except FileNotFoundError as error:
        wrong = f"{Path(error.filename or '').name} is not there"
    if wrong is not None:
        raise EnvironmentProblem(
            str(job.checkpoints.path(step)),
            f"process {job.engine.rank} does not see what it should: {wrong}",
            "a folder that all processes see alike",
            "--resume once more, when the file system has caught up",
        )
