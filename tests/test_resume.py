"""A run that is killed and resumed is the run that was not: weights, optimizer, metrics and rows, to the bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier import config, run
from luthier.errors import UserError
from tests.helpers.tiny_models import tiny_llama

ROOT = Path(__file__).parent.parent
KILLS = 20
STEPS_PER_EPOCH, EPOCHS = 12, 3


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    tiny_llama(folder / "model")
    words = [
        "the",
        "luthier",
        "builds",
        "and",
        "tunes",
        "a",
        "violin",
        "for",
        "France",
        "and",
        "the",
        "capital",
        "is",
        "Paris",
    ]
    rng = random.Random(0)
    rows = [
        {
            "instruction": " ".join(rng.choices(words, k=rng.randint(2, 12))),
            "output": " ".join(rng.choices(words, k=rng.randint(1, 20))),
        }
        for _ in range(46)
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "held.jsonl").write_text("\n".join(map(json.dumps, rows[:5])) + "\n")
    path = folder / "mine.yaml"
    path.write_text(f"""
model: {folder / "model"}
data: {{train: {folder / "train.jsonl"}, eval: {folder / "held.jsonl"}}}
tuning: {{kind: lora, r: 4, lora_dropout: 0.1}}
training: {{num_train_epochs: {EPOCHS}, global_batch_size: 4, learning_rate: 1e-3, save_steps: 3, eval_steps: 5,
  max_tokens_per_micro_batch: 60}}
output_dir: unused
""")
    return path


class Worker:
    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.resume_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )

    def start(self, config_file: Path, folder: Path, how: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{config_file} {folder} {how}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def exit_code(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    started = Worker()
    yield started
    assert started.process.stdin is not None
    started.process.stdin.close()
    started.process.wait(timeout=30)


def steps_in(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b'"loss"') if path.exists() else 0


def rows_of(folder: Path) -> dict[int, list[int]]:
    """step -> rows, of the attempt that counted (the last one)."""
    lines = (json.loads(line) for line in (folder / "rows.log").read_text().splitlines())
    return dict(lines)


def outcome(folder: Path) -> dict[str, bytes]:
    """Everything that must be equal to the bit."""
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return {
        "weights": (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
        "state": (last / "state.json").read_bytes(),
        "optimizer": (last / "tensors.safetensors").read_bytes(),
        "metrics": (folder / "metrics.jsonl").read_bytes(),
        "row losses": (folder / "row_losses.jsonl").read_bytes(),
    }


def run_to_the_end(worker: Worker, config_file: Path, folder: Path, how: str) -> None:
    worker.start(config_file, folder, how)
    assert worker.exit_code() == 0


@pytest.fixture(scope="module")
def uninterrupted(worker: Worker, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_to_the_end(worker, config_file, folder, "new")
    assert steps_in(folder) == STEPS_PER_EPOCH * EPOCHS
    return folder


@pytest.mark.processes
def test_twenty_kills(worker: Worker, config_file: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments of epochs 2 and 3, several in one run, and during resumes themselves."""
    rng, kills, chain, want, rows = random.Random(1), 0, 0, outcome(uninterrupted), rows_of(uninterrupted)
    killed_at: list[int] = []
    while kills < KILLS:
        folder, how, chain = tmp_path / f"chain-{chain}", "new", chain + 1
        for _ in range(rng.randint(2, 5)):
            threshold = rng.randint(STEPS_PER_EPOCH, STEPS_PER_EPOCH * EPOCHS - 1)
            pid = worker.start(config_file, folder, how)
            begun, deadline = steps_in(folder), time.monotonic() + 60
            while steps_in(folder) < threshold or (
                how == "resume" and steps_in(folder) == begun and rng.random() < 0.999
            ):
                if time.monotonic() > deadline or (folder / "adapter").exists():
                    break
                time.sleep(0.001)
            time.sleep(rng.random() * 0.03)
            os.kill(pid, signal.SIGKILL)
            if worker.exit_code() == -signal.SIGKILL:
                kills += 1
                killed_at.append(steps_in(folder))
            how = "resume"
        run_to_the_end(worker, config_file, folder, "resume")
        got = outcome(folder)
        for name, value in want.items():
            assert got[name] == value, f"{name} differ after kills in {folder.name}"
        assert rows_of(folder) == rows
    assert min(killed_at) >= STEPS_PER_EPOCH
    assert len(set(killed_at)) > KILLS // 3, killed_at


@pytest.mark.processes
def test_a_damaged_checkpoint_falls_back_to_the_same_bits(
    worker: Worker, config_file: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    pid = worker.start(config_file, folder, "new")
    while steps_in(folder) < 20:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    worker.exit_code()
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    (newest / "tensors.safetensors").write_bytes(b"damaged")
    run_to_the_end(worker, config_file, folder, "resume")
    assert outcome(folder) == outcome(uninterrupted)


@pytest.mark.processes
def test_sigterm_saves_and_resumes(worker: Worker, config_file: Path, uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pid = worker.start(config_file, folder, "new")
    while steps_in(folder) < 17:
        time.sleep(0.001)
    os.kill(pid, signal.SIGTERM)
    assert worker.exit_code() == 143
    stopped = steps_in(folder)
    assert f"step-{stopped:06d}" in [path.name for path in (folder / "checkpoints").iterdir()]
    assert json.loads((folder / "manifest.json").read_text())["state"] == "stopped"
    run_to_the_end(worker, config_file, folder, "resume")
    assert {name: value for name, value in outcome(folder).items() if name != "state"} == {
        name: value for name, value in outcome(uninterrupted).items() if name != "state"
    }


def test_a_changed_configuration_is_refused_with_each_difference(config_file: Path, uninterrupted: Path) -> None:
    changed = config.load(config_file, [f"output_dir={uninterrupted}", "learning_rate=5e-4", "seed=3"])
    with pytest.raises(UserError, match="learning_rate") as caught:
        run.train(changed, resume=True)
    assert "seed" in str(caught.value)


def test_changed_data_are_refused(config_file: Path, worker: Worker, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    worker.start(config_file, folder, "new")
    assert worker.exit_code() == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"state": "stopped"}))
    data = config_file.parent / "train.jsonl"
    before = data.read_text()
    try:
        data.write_text(before.replace("violin", "guitar", 1))
        with pytest.raises(UserError, match="data"):
            run.train(config.load(config_file, [f"output_dir={folder}"]), resume=True)
    finally:
        data.write_text(before)


def test_a_folder_with_something_in_it_is_left_alone(config_file: Path, uninterrupted: Path, tmp_path: Path) -> None:
    before = outcome(uninterrupted)
    with pytest.raises(UserError, match="--resume"):
        run.train(config.load(config_file, [f"output_dir={uninterrupted}"]))
    assert outcome(uninterrupted) == before
    with pytest.raises(UserError, match="no run to resume"):
        run.train(config.load(config_file, [f"output_dir={tmp_path / 'new'}"]), resume=True)
    assert not (tmp_path / "new").exists()
    finished = run.train(config.load(config_file, [f"output_dir={uninterrupted}"]), resume=True)
    assert finished.folder == uninterrupted
    assert outcome(uninterrupted) == before
