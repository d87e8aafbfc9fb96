"""Runs in processes of their own, to be killed and resumed, and what must be equal afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.helpers.processes import ENVIRONMENT, ROOT
from tests.helpers.tiny_models import tiny_llama

STEPS_PER_EPOCH, EPOCHS = 12, 3
STEPS = STEPS_PER_EPOCH * EPOCHS
ROWS = 46
LONGEST_S = 600
"""Of a run, beside much other work; one that has not ended by then waits for ever."""
WORDS = (
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
)


def write_config(folder: Path, objective: str = "sft") -> Path:
    """The configuration of a small run in three epochs, with dropout, its model and its data: pairs for any other objective."""
    tiny_llama(folder / "model")
    rng = random.Random(0)
    rows = [
        {
            "instruction": " ".join(rng.choices(WORDS, k=rng.randint(2, 12))),
            "output": " ".join(rng.choices(WORDS, k=rng.randint(1, 20))),
        }
        for _ in range(ROWS)
    ]
    if objective != "sft":
        worse = [" ".join(rng.choices(WORDS, k=rng.randint(1, 20))) for _ in rows]
        rows = [
            {"prompt": row["instruction"], "chosen": f"good {row['output']}", "rejected": f"bad {bad}"}
            for row, bad in zip(rows, worse, strict=True)
        ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "held.jsonl").write_text("\n".join(map(json.dumps, rows[:5])) + "\n")
    path = folder / "mine.yaml"
    path.write_text(f"""
model: {{path: {folder / "model"}, dtype: float32}}
data: {{train: {folder / "train.jsonl"}, eval: {folder / "held.jsonl"}}}
tuning: {{kind: lora, r: 4, lora_dropout: 0.1}}
objective: {objective}
training: {{num_train_epochs: {EPOCHS}, global_batch_size: 4, learning_rate: 1e-3, save_steps: 3, eval_steps: 5,
  max_tokens_per_micro_batch: 60}}
output_dir: unused
""")
    return path


class Worker:
    """Starts runs of one process or of several; see run_worker.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.run_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT},
            cwd=ROOT,
        )

    def start(self, config_file: Path, folder: Path, how: str, processes: int = 1) -> list[int]:
        """Ids of the new processes."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{config_file} {folder} {how} {processes}\n")
        self.process.stdin.flush()
        self.pids = self._numbers()
        return self.pids

    def exit_codes(self) -> list[int]:
        """Waits for the processes that were started last; kills them where they do not end."""
        overdue = threading.Timer(LONGEST_S, kill, [self.pids])
        overdue.start()
        try:
            return self._numbers()
        finally:
            overdue.cancel()

    def run(self, config_file: Path, folder: Path, how: str, processes: int = 1) -> None:
        """A run to its end."""
        self.start(config_file, folder, how, processes)
        assert self.exit_codes() == [0] * processes

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)

    def _numbers(self) -> list[int]:
        assert self.process.stdout is not None
        return [int(word) for word in self.process.stdout.readline().split()]


def kill(pids: list[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it came to its end first
            os.kill(pid, number)


def steps_in(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b'"loss"') if path.exists() else 0


def noted(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """What a process of `Worker` noted."""
    path = folder / f"noted-{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rows_of(folder: Path, rank: int = 0) -> dict[int, list[int]]:
    """step -> rows, of the attempt that counted (the last one)."""
    return {line["step"]: line["rows"] for line in noted(folder, rank) if "step" in line}


def outcome(folder: Path) -> dict[str, bytes]:
    """Everything that must be equal to the bit."""
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    (result,) = [*folder.glob("adapter/*.safetensors"), *folder.glob("model/*.safetensors")]
    return {
        "result": result.read_bytes(),
        "state": (last / "state.json").read_bytes(),
        "tensors": (last / "tensors.safetensors").read_bytes(),
        "metrics": (folder / "metrics.jsonl").read_bytes(),
        "row losses": (folder / "row_losses.jsonl").read_bytes(),
    }


def differences(one: Path, other: Path) -> list[str]:
    """What of two runs is not equal to the bit; the sequence of rows too, where it was noted."""
    first, second = outcome(one), outcome(other)
    return [name for name in first if first[name] != second[name]] + ["rows"] * (rows_of(one) != rows_of(other))


def kill_and_resume(
    worker: Worker, config_file: Path, place: Path, whole: Path, *, kills: int, seed: int, processes: int = 1
) -> list[int]:
    """SIGKILL at random moments of epochs 2 and 3, several in one run, and during resumes themselves; each run must end as
    `whole` did. The steps at which it came.
    """
    rng, chain, killed_at = random.Random(seed), 0, list[int]()
    while len(killed_at) < kills:
        folder, how, chain = place / f"chain-{chain}", "new", chain + 1
        for _ in range(rng.randint(2, 5)):
            threshold = rng.randint(STEPS_PER_EPOCH, STEPS - 1)
            pids = worker.start(config_file, folder, how, processes)
            begun, deadline = steps_in(folder), time.monotonic() + 60
            while steps_in(folder) < threshold or (
                how == "resume" and steps_in(folder) == begun and rng.random() < 0.999
            ):
                if time.monotonic() > deadline or (folder / "adapter").exists():
                    break
                time.sleep(0.001)
            time.sleep(rng.random() * 0.03)
            kill(rng.choice([pids, pids[:1], pids[-1:]]))
            if -signal.SIGKILL in worker.exit_codes():
                killed_at.append(steps_in(folder))
            how = "resume"
        worker.run(config_file, folder, "resume", processes)
        assert not differences(folder, whole), folder.name
    return killed_at
