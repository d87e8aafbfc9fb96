"""The spine: builds everything from a RunConfig in order, trains, saves. A table of contents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from luthier import component
from luthier.config import RunConfig
from luthier.engines import Engine, make_engine
from luthier.errors import EnvironmentProblem, Stopped, UserError
from luthier.models.precision import DTYPES, choose_dtype, dtype_name
from luthier.runs import beginning, run_folder
from luthier.runs.recorder import Recorder, cut_back
from luthier.runs.trackers import check_trackers
from luthier.system.devices import deterministic, device, hardware, is_main_process
from luthier.training.build import Built, base_record, build, silent
from luthier.training.job import Job, Record
from luthier.training.loop import run_steps
from luthier.training.result import sampler, write_result
from luthier.training.state import restore


def execute(
    config: RunConfig,
    *,
    resume: bool = False,
    trust_remote_code: bool = False,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Trains as the configuration says; gives the run's folder.

    Args:
        resume: go on from the newest whole checkpoint of `output_dir`.
        trust_remote_code: run Python code that comes with the model.
        say: gets each line for the person who watches; default: the screen.

    Raises:
        UserError, EnvironmentProblem: before anything is written, where the input or the machine does not allow the run.
        NonFinite, Stopped: as `luthier.training.loop.run_steps`.
    """
    folder, main = Path(config.output_dir), is_main_process()
    say = (say or print) if main else silent
    with run_folder.locked(folder, resume, enabled=main):
        before = run_folder.previous(folder, config) if resume else None
        if before is not None and before["state"] == "finished":
            say(f"{folder} is finished already; nothing to do")
            return folder
        check_trackers(config.report_to)
        deterministic(config.training.deterministic)
        engine = make_engine(config.distributed, device())
        try:
            dtype, why = _dtype(config, engine, before)
            held = config.model.quantization.kind if config.model.quantization is not None else dtype_name(dtype)
            say(f"held in {held}, computed in {dtype_name(dtype)} ({why}), on {engine.device}")
            _train(config, engine, dtype, before, trust_remote_code, say)
            engine.barrier()
        finally:
            engine.close()
    return folder


def _train(
    config: RunConfig,
    engine: Engine,
    dtype: torch.dtype,
    before: dict[str, Any] | None,
    trust_remote_code: bool,
    say: Callable[[str], None],
) -> None:
    """From the model's source to the result; `before` is the manifest of the run that is resumed."""
    folder, decided = Path(config.output_dir), before["decisions"] if before else None
    with _room_to_begin(config):
        built = build(config, engine, dtype, decided=decided, trust_remote_code=trust_remote_code, say=say)
    job, base = built.job, base_record(config, built.source, built.data, dtype)
    manifest = _manifest(config, built, base)
    if engine.main:
        run_folder.begin(folder, config, built.data, manifest, before, say)
    with _ending_noted(folder, engine.main):
        _to_the_beginning(folder, built)
        if before is not None:
            _resume(job, folder, say)
        with closing(_recorder(config, job)) as recorder, _room_for_a_step(job):
            kept = {name: manifest[name] for name in ("luthier", "versions", "fingerprints", "decisions")}
            run_steps(job, Record(recorder, kept, sampler(config, built, recorder)))
    if engine.main:
        write_result(config, built, base)


def _dtype(config: RunConfig, engine: Engine, before: dict[str, Any] | None) -> tuple[torch.dtype, str]:
    """That of the run which is resumed; else as chosen by the first process, which the others follow."""
    if before is not None:
        return DTYPES[before["decisions"]["dtype"]], "as the run began"
    dtype, why = choose_dtype(config.model.dtype, engine.device)
    return DTYPES[engine.from_main(dtype_name(dtype))], why


def _manifest(config: RunConfig, built: Built, base: dict[str, Any]) -> dict[str, Any]:
    job = built.job
    return run_folder.manifest(
        config,
        built.data,
        base,
        decisions=built.decisions,
        hardware=hardware(job.engine.device),
        total_steps=job.steps.total,
        processes=job.engine.processes,
        trained=built.tuned.trained,
        trained_tensors=job.policy.trained_tensors(),
        adapter=built.adapter_hash,
    )


def _to_the_beginning(folder: Path, built: Built) -> None:
    """What the run begins with is kept by the main process, and taken from there by all."""
    job = built.job
    if job.engine.main and not built.restored:
        beginning.keep(folder, job.policy)
    job.engine.barrier()
    beginning.put(folder, job.policy)


def _resume(job: Job, folder: Path, say: Callable[[str], None]) -> None:
    """Goes on from the newest whole checkpoint; at step 0 where none was saved yet."""
    step = _step_to_resume(job, say)
    if step is None:
        say("no checkpoint was saved yet: the run begins again at step 0")
    else:
        restore(job, _state_at(job, step))
        say(f"resumed at step {step} of {job.steps.total}")
    if job.engine.main:
        cut_back(folder, -1 if step is None else step)
    job.engine.barrier()


def _step_to_resume(job: Job, say: Callable[[str], None]) -> int | None:
    """Chosen and verified by the main process, told to the others: of a folder on a network each may see something else.

    Raises:
        UserError: checkpoints are there, and none is whole.
    """
    found: int | None = None
    wrong: UserError | None = None
    if job.engine.main and job.checkpoints.steps():
        try:
            found = job.checkpoints.newest_valid(say)
        except UserError as error:
            wrong = error
    step, failed = job.engine.from_main([found, wrong is not None])
    if wrong is not None:
        raise wrong
    if failed:
        raise EnvironmentProblem("another process", "it found no whole checkpoint", "one", "see its message")
    chosen: int | None = step
    return chosen


def _state_at(job: Job, step: int) -> dict[str, Any]:
    try:
        return job.checkpoints.load(step)
    except FileNotFoundError as error:
        raise EnvironmentProblem(
            str(job.checkpoints.path(step)),
            f"process {job.engine.rank} does not see {Path(error.filename or '').name}, which the first process has read",
            "a folder that all processes see alike",
            "--resume once more, when the file system has caught up",
        ) from None


def _recorder(config: RunConfig, job: Job) -> Recorder:
    at, main = job.progress.step, job.engine.main
    return Recorder(Path(config.output_dir), config, total_steps=job.steps.total, start_step=at, main=main)


@contextmanager
def _ending_noted(folder: Path, main: bool) -> Iterator[None]:
    """The manifest says how the training ended."""
    state = "failed"
    try:
        yield
        state = "trained"
    except (Stopped, KeyboardInterrupt, SystemExit):
        state = "stopped"
        raise
    finally:
        run_folder.set_state(folder, state, enabled=main)


@contextmanager
def _room_to_begin(config: RunConfig) -> Iterator[None]:
    """An error of torch becomes one that says what would need less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        adapter = component.load("tuning", config.tuning.kind).makes_adapter
        ways = {"tuning=lora": not adapter, "quantization=nf4": config.model.quantization is None}
        fix = ", ".join([*(way for way, helps in ways.items() if helps), "or a smaller model"]).removeprefix("or ")
        raise _out_of_memory("before the first step", error, fix) from error


@contextmanager
def _room_for_a_step(job: Job) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        fix = f"--resume max_tokens_per_micro_batch={max(1, job.max_tokens // 2)}, or --resume activation_checkpointing=true"
        raise _out_of_memory(f"step {job.progress.step + 1}", error, fix) from error


def _out_of_memory(when: str, error: torch.OutOfMemoryError, fix: str) -> EnvironmentProblem:
    return EnvironmentProblem(when, f"out of memory: {str(error).splitlines()[0][:160]}", "room for it", fix)
