"""The spine: builds everything from a RunConfig in order, trains, saves. A table of contents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from luthier.config import RunConfig
from luthier.engines import Engine, make_engine
from luthier.errors import EnvironmentProblem, Stopped
from luthier.models.precision import DTYPES, choose_dtype, dtype_name
from luthier.runs import beginning, run_folder
from luthier.runs.recorder import Recorder, cut_back
from luthier.runs.trackers import check_trackers
from luthier.system.devices import deterministic, device, hardware, is_main_process
from luthier.training.build import base_record, build, silent
from luthier.training.job import Job
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
    folder = Path(config.output_dir)
    decided = before["decisions"] if before else None
    try:
        built = build(config, engine, dtype, decided=decided, trust_remote_code=trust_remote_code, say=say)
    except torch.OutOfMemoryError as error:
        ways = {"tuning=lora": config.tuning.kind != "lora", "quantization=nf4": config.model.quantization is None}
        fix = ", ".join([*(way for way, helps in ways.items() if helps), "or a smaller model"]).removeprefix("or ")
        raise _out_of_memory("before the first step", error, fix) from error
    job, data, decisions = built.job, built.data, built.decisions
    base = base_record(config, built.source, data, dtype)
    manifest = run_folder.manifest(
        config, data, base, decisions, hardware(engine.device), job.steps.total, engine.processes, built.tuned.trained
    )
    manifest["trained_tensors"] = job.policy.trained_tensors()
    manifest["fingerprints"]["adapter"] = built.adapter_hash
    job.manifest = {name: manifest[name] for name in ("luthier", "versions", "fingerprints", "decisions")}
    if engine.main:
        run_folder.begin(folder, config, data, manifest, before, say)
    state, recorder = "failed", None
    try:
        if engine.main and not built.restored:
            beginning.keep(folder, job.policy)
        engine.barrier()
        beginning.put(folder, job.policy)
        if before is not None:
            _resume(job, folder, say)
            engine.barrier()
        at = job.progress.step
        job.recorder = recorder = Recorder(folder, config, total_steps=job.steps.total, start_step=at, main=engine.main)
        job.answer_samples = sampler(config, built)
        run_steps(job)
        state = "trained"
    except (Stopped, KeyboardInterrupt, SystemExit):
        state = "stopped"
        raise
    except torch.OutOfMemoryError as error:
        smaller = max(1, decisions["max_tokens_per_micro_batch"] // 2)
        fix = f"--resume max_tokens_per_micro_batch={smaller}, or --resume activation_checkpointing=true"
        raise _out_of_memory(f"step {job.progress.step + 1}", error, fix) from error
    finally:
        if recorder is not None:
            recorder.close()
        run_folder.set_state(folder, state, enabled=engine.main)
    if engine.main:
        write_result(config, built, base)


def _dtype(config: RunConfig, engine: Engine, before: dict[str, Any] | None) -> tuple[torch.dtype, str]:
    """That of the run which is resumed; else as chosen by the first process, which the others follow."""
    if before is not None:
        return DTYPES[before["decisions"]["dtype"]], "as the run began"
    dtype, why = choose_dtype(config.model.dtype, engine.device)
    return DTYPES[engine.from_main(dtype_name(dtype))], why


def _out_of_memory(when: str, error: torch.OutOfMemoryError, fix: str) -> EnvironmentProblem:
    return EnvironmentProblem(when, f"out of memory: {str(error).splitlines()[0][:160]}", "room for it", fix)


def _resume(job: Job, folder: Path, say: Callable[[str], None]) -> None:
    if not job.checkpoints.steps():
        say("no checkpoint was saved yet: the run begins again at step 0")
        if job.engine.main:
            cut_back(folder, -1)
        return
    step = job.checkpoints.newest_valid(say)
    restore(job, job.checkpoints.load(step))
    if job.engine.main:
        cut_back(folder, step)
    say(f"resumed at step {step} of {job.steps.total}")
