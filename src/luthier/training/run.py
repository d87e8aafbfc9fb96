"""The spine: builds everything from a RunConfig in order, trains, saves. A table of contents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from luthier import component
from luthier.config import RunConfig
from luthier.engines import Engine, make_engine
from luthier.errors import EnvironmentProblem, Stopped, UserError
from luthier.models.precision import DTYPES, choose_dtype, dtype_name
from luthier.runs import beginning, manifest, run_folder
from luthier.runs.recorder import Recorder
from luthier.runs.trackers import check_trackers
from luthier.system import streams
from luthier.system.devices import deterministic, device, hardware, is_main_process
from luthier.system.faults import faults
from luthier.system.files import require_room
from luthier.system.locks import Lock
from luthier.training.build import Built, base_record, build, silent
from luthier.training.job import Job, Record
from luthier.training.loop import resuming, run_steps
from luthier.training.reference import keep_reference
from luthier.training.result import sampler, write_result
from luthier.training.resume import go_on
from luthier.training.state import least_bytes
from luthier.training.teacher import keep_teacher
from luthier.training.together import by_main


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
        UserError: before anything is written, where the input does not allow the run.
        EnvironmentProblem: the machine does not allow it, or fails on the way.
        NonFinite, Stopped: as `luthier.training.loop.run_steps`.
    """
    folder, main = Path(config.output_dir), is_main_process()
    say = (say or streams.say) if main else silent
    with run_folder.locked(folder, enabled=main) as lock:
        engine = make_engine(config.distributed, device())
        try:
            before = by_main(engine, lambda: manifest.previous(folder, config, resume))
            if (
                before is not None
                and before["state"] == "finished"
                and by_main(engine, lambda: manifest.has_result(config, say))
            ):
                say(manifest.DONE.format(folder))
                return folder
            if resume and before is None:
                say(f"{folder} holds no run yet: it begins")
            check_trackers(config.report_to)
            deterministic(config.training.deterministic)
            dtype, why = _dtype(config, engine, before)
            held = config.model.quantization.kind if config.model.quantization is not None else dtype_name(dtype)
            say(f"held in {held}, computed in {dtype_name(dtype)} ({why}), on {engine.device}")
            _train(config, engine, dtype, before, trust_remote_code, lock, say)
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
    lock: Lock | None,
    say: Callable[[str], None],
) -> None:
    """From the model's source to the result; `before` is the manifest of the run that is resumed."""
    folder, decided = Path(config.output_dir), before["decisions"] if before else None
    with _room_to_begin(config):
        built = build(config, engine, dtype, decided=decided, trust_remote_code=trust_remote_code, say=say)
    job, base = built.job, base_record(config, built.source, built.data, dtype)
    described = by_main(engine, lambda: _begun(config, built, base, before, say))
    with _ending_noted(folder, engine.main), faults(partial(_told, folder, job)):
        _to_the_beginning(folder, built, described["id"])
        keep_reference(job, base, say)
        if built.teacher is not None:
            keep_teacher(job, built.teacher, say)
        if before is not None:
            go_on(job, folder, described["id"], say)
        with closing(_recorder(config, job, lock)) as recorder, _room_for_a_step(job):
            if engine.main:
                manifest.set_state(folder, "running")
            kept = {name: described[name] for name in ("luthier", "versions", "fingerprints", "decisions")}
            run_steps(job, Record(recorder, {**kept, "run": described["id"]}, sampler(config, built, recorder)))
        if engine.main:
            manifest.set_state(folder, "trained")
            write_result(config, built, base, described["id"])


def _dtype(config: RunConfig, engine: Engine, before: dict[str, Any] | None) -> tuple[torch.dtype, str]:
    """That of the run which is resumed; else as chosen by the first process, which the others follow."""
    if before is not None:
        return DTYPES[before["decisions"]["dtype"]], "as the run began"
    dtype, why = choose_dtype(config.model.dtype, engine.device)
    return DTYPES[engine.from_main(dtype_name(dtype))], why


def _begun(
    config: RunConfig,
    built: Built,
    base: dict[str, Any],
    before: Mapping[str, Any] | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The manifest, with which the run's folder is the run's from now on."""
    job, folder = built.job, Path(config.output_dir)
    require_room(folder, least_bytes(job), "a run of this size", "free space, or another output_dir")
    described = manifest.describe(
        config,
        built.data,
        base,
        before=before,
        decisions=built.decisions,
        hardware=hardware(job.engine.device),
        total_steps=job.steps.total,
        processes=job.engine.processes,
        trained=built.tuned.trained,
        trained_tensors=job.policy.trained_tensors(),
        adapter=built.adapter_hash,
        teacher=built.teacher.hash if built.teacher is not None else None,
    )
    manifest.begin(folder, config, built.data, described, before, say)
    return described


def _to_the_beginning(folder: Path, built: Built, run_id: str) -> None:
    """What the run begins with is kept by the main process, and taken from there by all."""
    job = built.job
    if job.engine.main and not built.restored:
        beginning.keep(folder, job.policy, run_id)
    job.engine.barrier()
    beginning.put(folder, job.policy)


def _recorder(config: RunConfig, job: Job, lock: Lock | None) -> Recorder:
    at, main = job.progress.step, job.engine.main
    return Recorder(Path(config.output_dir), config, total_steps=job.steps.total, start_step=at, main=main, lock=lock)


@contextmanager
def _ending_noted(folder: Path, main: bool) -> Iterator[None]:
    """The manifest says how the run ended, where it did not come to its end."""
    state = "failed"
    try:
        yield
        state = ""
    except (Stopped, KeyboardInterrupt, SystemExit):
        state = "stopped"
        raise
    finally:
        if state and main:
            with suppress(OSError, UserError):  # the fault that is told may be that nothing can be noted
                manifest.set_state(folder, state)


def _told(folder: Path, job: Job, error: Exception, why: str) -> EnvironmentProblem:
    """A fault of the machine, with what was saved and the line that goes on."""
    steps = [step for step in job.checkpoints.steps() if step not in job.checkpoints.passed_over]
    saved = f"the newest checkpoint is of step {steps[-1]}" if steps else "no checkpoint was saved yet"
    place = str(getattr(error, "filename", None) or folder)
    return EnvironmentProblem(place, f"{why}; {saved}", "", f"mend it, then {resuming(job)}")


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
