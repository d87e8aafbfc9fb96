"""A run that is killed and resumed is the run that was not: weights, optimizer, metrics and rows, to the bit."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier import config
from luthier.errors import EnvironmentProblem, UserError
from luthier.training import loop, run
from luthier.training.step import Step
from tests.helpers.killing import (
    STEPS,
    STEPS_PER_EPOCH,
    Worker,
    differences,
    kill,
    kill_and_resume,
    outcome,
    rows_of,
    steps_in,
)


@pytest.fixture(scope="module")
def uninterrupted(worker: Worker, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    worker.run(config_file, folder, "new")
    assert steps_in(folder) == len(rows_of(folder)) == STEPS
    return folder


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kills", "seed"), [(3, 1), *(pytest.param(20, seed, marks=pytest.mark.prove) for seed in range(1, 11))]
)
def test_kills(kills: int, seed: int, worker: Worker, config_file: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Two hundred of them where all seeds are run."""
    killed_at = kill_and_resume(worker, config_file, tmp_path, uninterrupted, kills=kills, seed=seed)
    assert min(killed_at) >= STEPS_PER_EPOCH
    assert len(set(killed_at)) > kills // 3, killed_at


@pytest.mark.prove
@pytest.mark.processes
def test_a_damaged_checkpoint_falls_back_to_the_same_bits(
    worker: Worker, config_file: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    pids = worker.start(config_file, folder, "new")
    while steps_in(folder) < 20:
        time.sleep(0.001)
    kill(pids)
    worker.exit_codes()
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    (newest / "tensors.safetensors").write_bytes(b"damaged")
    worker.run(config_file, folder, "resume")
    assert not differences(folder, uninterrupted)


@pytest.mark.prove
@pytest.mark.processes
def test_sigterm_saves_and_resumes(worker: Worker, config_file: Path, uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pids = worker.start(config_file, folder, "new")
    while steps_in(folder) < 17:
        time.sleep(0.001)
    kill(pids, signal.SIGTERM)
    assert worker.exit_codes() == [143]
    stopped = steps_in(folder)
    assert f"step-{stopped:06d}" in [path.name for path in (folder / "checkpoints").iterdir()]
    assert json.loads((folder / "manifest.json").read_text())["state"] == "stopped"
    worker.run(config_file, folder, "resume")
    assert not differences(folder, uninterrupted)


def test_a_changed_configuration_is_refused_with_each_difference(config_file: Path, uninterrupted: Path) -> None:
    changed = config.load(config_file, [f"output_dir={uninterrupted}", "learning_rate=5e-4", "seed=3"])
    with pytest.raises(UserError, match="learning_rate") as caught:
        run.execute(changed, resume=True)
    assert "seed" in str(caught.value)


@pytest.mark.prove
def test_a_run_that_had_no_room_goes_on_in_smaller_passes(
    config_file: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = loop.optimizer_step

    def full(job: loop.Job, step: Step, *rest: Any) -> Any:
        if step.number == 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(job, step, *rest)

    given = [f"output_dir={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "optimizer_step", full)
        with pytest.raises(EnvironmentProblem, match="step 21: out of memory"):
            run.execute(config.load(config_file, given), say=lambda text: None)
    said: list[str] = []
    smaller = [*given, "max_tokens_per_micro_batch=30", "activation_checkpointing=true"]
    run.execute(config.load(config_file, smaller), resume=True, say=said.append)
    assert "max_tokens_per_micro_batch 30 instead of 60: the same mathematics, other bits" in said
    assert "resumed at step 18 of 36" in said
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["decisions"]["max_tokens_per_micro_batch"], manifest["state"]) == (30, "finished")
    ours, theirs = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (tmp_path / "run", uninterrupted)
    )
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 5e-5


def test_changed_data_are_refused(config_file: Path, worker: Worker, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    worker.run(config_file, folder, "new")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"state": "stopped"}))
    data = config_file.parent / "train.jsonl"
    before = data.read_text()
    try:
        data.write_text(before.replace("violin", "guitar", 1))
        with pytest.raises(UserError, match="data"):
            run.execute(config.load(config_file, [f"output_dir={folder}"]), resume=True)
    finally:
        data.write_text(before)


def test_a_folder_with_something_in_it_is_left_alone(config_file: Path, uninterrupted: Path, tmp_path: Path) -> None:
    before = outcome(uninterrupted)
    with pytest.raises(UserError, match="--resume"):
        run.execute(config.load(config_file, [f"output_dir={uninterrupted}"]))
    assert outcome(uninterrupted) == before
    finished = run.execute(config.load(config_file, [f"output_dir={uninterrupted}"]), resume=True)
    assert finished == uninterrupted
    assert outcome(uninterrupted) == before
